"""Memory of the processor: what is freed stays with the process, for the next tensor."""

import torch

BLOCK_BYTES = 2**25 - 2**16  # just below the 32 MB where glibc stops to adapt


def keep_freed_memory() -> None:
    """Have the C library keep some 64 MB of what is freed, which it else hands back each time.

    A chunk of draws takes some megabytes. Memory that glibc hands back is cleared page by page when
    it is next written to, which takes as long as scoring does. How much it keeps follows from the
    largest block that it has seen freed (`man mallopt`, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD), so
    that a large block, never written to, is freed here. Who has set these thresholds keeps them;
    other C libraries do not care.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8)
