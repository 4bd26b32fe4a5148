# cython: language_level=3
"""The thread of watchdog.h for Python: ends a worker after its parent died."""

from cpython.exc cimport PyErr_SetFromErrno
from libc cimport errno

cdef extern from "watchdog.h":
    ctypedef int pid_t
    int amp_watch_start(int fd, pid_t parent, double grace)


def start(int fd, pid_t parent_pid, double grace):
    """Watch `fd` in a native thread; see watchdog.pyi."""
    if fd < 0:
        raise ValueError(f"fd must be an open descriptor, not {fd}")
    if not 0 <= grace < 1e9:
        raise ValueError(f"grace must be from 0 to 1e9 seconds, not {grace}")
    errno.errno = amp_watch_start(fd, parent_pid, grace)
    if errno.errno != 0:
        PyErr_SetFromErrno(OSError)
