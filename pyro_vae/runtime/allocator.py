"""Keep freed memory in the allocator so that the next tensor can reuse it."""

import torch

BLOCK_BYTES = 2**25 - 2**16  # just below 32 MB, the largest block to which glibc adapts


def keep_freed_memory() -> None:
    """Let the C library keep about 64 MB of freed memory instead of returning it to the system.

    A chunk of samples takes some megabytes. The system clears returned memory page by page when it
    is used again, and this takes as long as scoring. The amount that glibc keeps depends on the
    largest block that was freed (`man mallopt`, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD), so this
    function allocates and frees a large block. It is never written to. Thresholds that the user has
    set remain, and other C libraries are not affected.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8)
