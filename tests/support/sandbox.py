"""Takes system calls away from this process and its children, as a container's sandbox does.

    refuse("memfd_create", errno.EPERM)
    refuse("waitid", errno.EINVAL, {0: P_PIDFD})     # only where the first argument is that
    refuse("mmap", errno.EPERM, {3: MAP_SHARED}, masked=True)  # only with these bits in it

By seccomp: a filter that nothing takes away again, so a test calls this in a child process. It
needs no privilege. Linux only, on the machines of `_MACHINES`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Mapping

P_PIDFD = 3
MAP_SHARED = 1

#: The number of each call, on x86-64 and on aarch64.
_CALLS = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "epoll_create1": (291, 20),
    "eventfd2": (290, 19),
    "fallocate": (285, 47),
    "fcntl": (72, 25),
    "ftruncate": (77, 46),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
    "madvise": (28, 233),
    "memfd_create": (319, 279),
    "mmap": (9, 222),
    "pidfd_open": (434, 434),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "pselect6": (270, 72),
    "readv": (19, 65),
    "recvmsg": (47, 212),
    "sched_getaffinity": (204, 123),
    "sendmsg": (46, 211),
    "setsockopt": (54, 208),
    "socketpair": (53, 199),
    "sysinfo": (99, 179),
    "waitid": (247, 95),
}
_MACHINES = ("x86_64", "aarch64")

SUPPORTED = sys.platform == "linux" and platform.machine() in _MACHINES

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # of a 32-bit word at an offset
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_AT, _ARGUMENTS_AT = 0, 16  # in struct seccomp_data


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def refuse(
    call: str, error: int, arguments: Mapping[int, int] | None = None, *, masked: bool = False
) -> None:
    """Let `call` fail with `error` from now on.

    Args:
        call: its name, one of `_CALLS`.
        error: the errno.
        arguments: what the arguments at these places must be for that; any, if left out.
        masked: the arguments must have all bits that are given, and may have others.
    """
    number = _CALLS[call][_MACHINES.index(platform.machine())]
    instructions = list(_filter(number, error, arguments or {}, masked))
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(array), array)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, None)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _filter(
    number: int, error: int, arguments: Mapping[int, int], masked: bool
) -> Iterator[tuple[int, int, int, int]]:
    """Every test that fails jumps to the last instruction."""
    left = 2 * len(arguments) + 1
    yield (_LOAD, 0, 0, _NUMBER_AT)
    yield (_IF_EQUAL, 0, left, number)
    for place, value in arguments.items():
        left -= 2
        yield (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * place)
        yield (_IF_SET if masked else _IF_EQUAL, 0, left, value)
    yield (_RETURN, 0, 0, _ERRNO | error)
    yield (_RETURN, 0, 0, _ALLOW)


def _prctl(option: int, value: int, pointer: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), pointer, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
