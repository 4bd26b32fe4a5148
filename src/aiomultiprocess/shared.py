"""`share`: put a large object into memory that all workers read, and pass it as a few bytes.

with aiomultiprocess.share(table) as shared:
    async for found in pool.map(partial(look_up, shared), keys):  # in look_up: shared.value
        ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ._transport.shared_objects import Shared

T = TypeVar("T")

__all__ = ["Shared", "share"]


def share(obj: T) -> Shared[T]:
    """Put an object into shared memory once, for all tasks of all pools of this process.

    It is pickled here and now, as arguments of tasks are by default: what pickle refuses goes by
    cloudpickle, if that is installed. What pickle gives out of band (contiguous arrays of NumPy and
    Arrow, frames of pandas over them) is then in no process a second time, and cannot be written.
    Pass what this returns to tasks, in their items or arguments, in `initargs` or in a
    `functools.partial`, and use its `value` there.
    `bytes` and `str` have memory of their own, and so has an array that NumPy pickles as a whole
    (not contiguous, a subclass such as a memmap, of dates or objects): each process makes a copy of
    them when it first uses `value`. A descriptor is taken in each process that has the object.

    The memory is freed when no one needs it: neither the object that this returns (`with` gives it
    up at the end of its block), nor a task that is not settled, nor a pool that starts its workers
    with it. Writing takes half a second to a second for each GB; in a running loop, call it by
    `asyncio.to_thread`.

    Raises:
        RuntimeError: in a worker of a pool, and where the system has no Unix sockets.
        OSError: there is no memory, or no descriptor, for it.
        pickle.PicklingError: it cannot be pickled.
    """
    from ._parent.serializers import dumps_apart  # here: every worker may import this module
    from ._transport.shared_objects import make
    from ._worker.current import running_worker

    if running_worker() is not None:
        raise RuntimeError(
            "share() was called in a worker of a Pool: share the object where the pool is made"
        )
    return make(*dumps_apart(obj))


def __getattr__(name: str) -> Any:
    if name != "Shared":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._transport.shared_objects import Shared

    return Shared
