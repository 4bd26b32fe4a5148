"""How many CPUs this process may use; the default number of workers."""

from __future__ import annotations

import os
import sys


def usable_cpus() -> int:
    """The number of CPUs that this process may use: affinity and, in a container, its quota."""
    cpus = _affinity() or os.cpu_count() or 1
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, quota))


def _affinity() -> int | None:
    """The number of CPUs that this process may run on; None if the system does not say."""
    try:
        if sys.version_info >= (3, 13):
            return os.process_cpu_count()
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
    except OSError:  # a sandbox refuses it
        pass
    return None


def _cgroup_quota() -> int | None:
    """The quota of a cgroup v2 in CPUs, rounded up; None without a quota."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or another format
        return None
