"""amp_ext.heap: how much freed memory malloc keeps at the end of its heap."""

def keep_freed(most: int) -> bool:
    """Have glibc keep up to `most` freed bytes, and put blocks of up to 31 MiB into its heap.

    Returns False, and changes nothing that was set before, where malloc is not glibc's of 64 bits,
    or the environment or the program set one of its thresholds.
    """
