"""How many data fit in one chunk of samples."""

import math
from collections.abc import Iterable

# Elements of the largest array of one chunk: 4 MB of float32, so that a chunk of the decoder's
# output and its log density stay near the processor's cache, and that the C library keeps what is
# freed: larger arrays go back to the system each time, and half the time goes into new pages.
CHUNK_ELEMENTS = 2**20
# Draws of one datum that are evaluated together: enough to make the encoder's share negligible.
CHUNK_DRAWS = 128


def data_per_chunk(event_shape: Iterable[int], num_samples: int) -> int:
    """Return how many data of this shape `log_weights` should take at a time."""
    rows = max(1, CHUNK_ELEMENTS // max(1, math.prod(event_shape)))
    return max(1, rows // min(num_samples, CHUNK_DRAWS))
