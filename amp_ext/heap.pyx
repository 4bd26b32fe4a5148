# cython: language_level=3
"""The function of heap.h for Python: how much freed memory malloc keeps."""

cdef extern from "heap.h":
    int amp_keep_freed(size_t most) nogil


def keep_freed(size_t most):
    """Keep up to `most` freed bytes; see heap.pyi."""
    return amp_keep_freed(most) != 0
