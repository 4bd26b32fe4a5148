"""The starter: runs the first step of items, and gives a task of its own to each that suspends.

The worker engine (_worker/engine.py) calls `Starter.run` with the items of a chunk.
`amp_ext.starter` is the same, compiled; this module is used where the extension is not built.

To make a task for each item costs several times what a short item costs. So the starter runs the
first step of an item itself, while `asyncio.current_task()` is a *reusable task*: a real task, in a
context of its own, that waits at its *gate* (a future-like object which only the starter opens). If
the item finishes in this step and left the reusable task as it was, that task serves the next item.
If the item suspends, the reusable task adopts it, and runs it from there on as a usual task.

    WAITING --item suspends--> ADOPTING --> RUNNING --SystemExit--> ENDING --> task done
       \\-----item finished, and left traces on the task--> FINISHED --------> task done

The coroutine of a reusable task awaits an `ItemCoroutine` (driver.py), which is both the gate and,
after the adoption, what runs the item's coroutine. A task that waits for a future has given it a
callback that wakes the task. The starter calls this callback itself, and so steps the task at once,
without a turn of the loop.

If the loop has a task factory, it makes the tasks of all items that are coroutines. (Except
asyncio's eager factory, because a starter itself starts tasks eagerly.)

STARTER-1  An item runs in a real task that is no other item's at that time. The item finds it as a
    new task is: no callbacks, attributes, cancellation requests, references or weak references.
    `untouched` checks this after each item. (Code that calls a method of `asyncio.Task` past the
    class of the task is not noticed.)
STARTER-2  An item runs in a copy of the context in which the starter was made. No other item sees
    the variables that it sets.
STARTER-3  A reusable task that is not untouched becomes a task that is done, with the outcome of
    its item, for the code that kept it.
STARTER-4  A suspended item is in the state that a task would be in which had run its coroutine from
    the start: it waits for the same future, and gets a cancellation requested in the first step.
STARTER-5  SystemExit and KeyboardInterrupt of an item are its outcome. They do not pass through a
    callback of the loop, because that would stop the loop.
STARTER-6  Between two calls of `run`, `asyncio.all_tasks()` does not list a reusable task, it is
    not current, and only the starter refers to it.
STARTER-7  An item is marked as started before its function is called (WORKER-1). By then the value
    of the item before it is in `out` (WORKER-6).
STARTER-8  The task of an item shows the item's own coroutine, and a name that no other item of the
    worker has. A task factory gets a real coroutine, which awaits the item's and has its names.
STARTER-9  While items with a time limit run their first steps, a time is marked from which on the
    item runs that was started last. It is not after the start, and at most `TIME_NS` and the tick
    of a coarse clock before it: so items that finish at once share a mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from sys import getrefcount
from time import monotonic_ns
from types import CoroutineType
from typing import Any, Final, Protocol
from weakref import getweakrefcount

from .._wire.frames import Mode
from . import tasks
from .driver import ItemCoroutine, MarkedItem
from .tasks import DONE, FULL, RAISED, SUSPENDED

__all__ = ["DONE", "FULL", "RAISED", "SUSPENDED", "Starter"]

TIME_NS: Final = 4_000_000  # STARTER-9
_TOUCHED: Final = 4  # ended a burst: the item finished, and left traces on its task (STARTER-3)
_FACTORY: Final = 5  # ended a burst: the loop's task factory makes the task of a coroutine

#: Types whose values are no awaitables, so that `run` checks nothing more.
_VALUES: Final = frozenset({bool, bytes, dict, float, int, list, set, str, tuple, type(None)})


class StartedMarks(Protocol):
    """The number of items started, where the parent can read it."""

    def mark_started(self, n: int) -> object:
        """Store the total `n`."""

    def mark_time(self, first: int, since: int) -> object:
        """Store since when the item runs that was started last, if its number is `first` or more.

        Items are counted from 1; the time is in nanoseconds.
        """


class Sink(Protocol):
    """Takes the values of items: a list, or a journal."""

    def append(self, value: Any, /) -> bool | None:
        """Take a value; False if it must be sent before another item runs."""


class ReusableTask:
    """A task that waits at its gate, and the state that it has while it is untouched."""

    __slots__ = ("_coro", "_references", "_weakrefs", "context", "item_coro", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self.context = context
        self.item_coro = ItemCoroutine(loop)
        self._coro = tasks.drive(self.item_coro)  # `get_coro()` returns it in a plain function
        self.task = tasks.waiting_task(MarkedItem, self.item_coro, self._coro, loop, context)
        self.task._log_destroy_pending = False
        self.item_coro.marked = False

    def remember(self) -> None:
        """Remember the state of the task, at the start of a burst."""
        self._references = self._count()
        self._weakrefs = getweakrefcount(self.task)

    def untouched(self, inherited: tuple[tuple[ContextVar[Any], Any], ...]) -> bool:
        """Whether task (STARTER-1) and context (STARTER-2) still have the state remembered."""
        return (
            self._count() == self._references
            and getweakrefcount(self.task) == self._weakrefs
            and not self.item_coro.marked
            and not self.item_coro.cancelled
            and len(self.context) == len(inherited)
            and (not inherited or all(self.context.get(var) is value for var, value in inherited))
        )

    def _count(self) -> tuple[int, int, int]:
        return getrefcount(self.task), getrefcount(self.context), getrefcount(self._coro)


class Starter:
    """Runs the first step of items, and gives a task to each that suspends.

    Make it in the context that items shall see a copy of: after the initializer. When an item that
    was suspended returns, `on_value` gets the value before anything else can run. `started`: how
    many items other starters of this worker have started before.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counter: StartedMarks,
        on_value: Callable[[Any], object] | None = None,
        started: int = 0,
    ) -> None:
        self._loop = loop
        self._counter = counter
        self._mark_started = counter.mark_started
        self._on_value = on_value
        self._started = started
        self._since: int | None = None  # during `run`, if items have a time limit: what is marked
        self._base = copy_context()
        self._inherited = tuple(self._base.items())
        self._idle: ReusableTask | None = None

    def run(
        self,
        mode: int,
        func: Callable[..., Any],
        items: list[Any],
        start: int,
        stop: int,
        out: Sink,
        deadline_ns: int,
        timed: bool = False,
    ) -> tuple[int, int, Any]:
        """Start `items[start:stop]` in order, until one of them raises or suspends.

        Values go to `out`; if that raises, the item's error is that of `tasks.unsendable`. Returns
        `(n, RAISED, exception)` or `(n, SUSPENDED, task)`, where n is that item; or, where n is the
        first item not started, `(n, FULL, None)` if `out` returned False, and `(n, DONE, None)` if
        n is `stop` or `time.monotonic_ns()` has reached `deadline_ns`. A task may be done already;
        `tasks.outcome` returns its outcome. If `timed`, the start time of each item is marked, too
        (STARTER-9). Call it in a callback of the running loop, not in a task.
        """
        at, what = start, None
        self._since = 0 if timed else None
        try:
            while True:
                reusable = self._enter()
                try:
                    at, status, what = reusable.context.run(
                        self._burst, reusable, mode, func, items, at, stop, out, deadline_ns
                    )
                except BaseException:  # no item raised it: the mark could not be set
                    self._keep(reusable)
                    self.close()
                    raise
                finally:
                    tasks.leave(self._loop, reusable.task)
                if status != _TOUCHED:
                    return at, *self._ended(reusable, status, what)
                what, error, given = what
                what, error = self._retire(reusable, what, error)
                if given is not None:
                    error = None  # `out` has its value already, which stays its result
                elif error is None:
                    given, error = _give(out, what)
                if error is not None:
                    return at, RAISED, error
                at += 1
                if given == FULL:
                    return at, FULL, None
        finally:
            what = error = None  # tracebacks of items keep this frame (see `_burst`)

    def close(self) -> None:
        """Drop the reusable task."""
        reusable, self._idle = self._idle, None
        if reusable is not None:
            reusable.item_coro.drop()

    def _burst(
        self,
        reusable: ReusableTask,
        mode: int,
        func: Callable[..., Any],
        items: list[Any],
        at: int,
        stop: int,
        out: Sink,
        deadline_ns: int,
    ) -> tuple[int, int, Any]:
        """Run items in one reusable task, as long as they leave it untouched."""
        item_coro, inherited = reusable.item_coro, self._inherited
        factory = self._task_factory()
        reusable.remember()
        try:
            while at < stop and (now := monotonic_ns()) < deadline_ns:
                self._started = item_coro.number = number = self._started + 1
                if self._since is not None and now - self._since > TIME_NS:
                    self._since = now
                    self._counter.mark_time(number, now)  # STARTER-9
                self._mark_started(number)  # STARTER-7
                value, error, coro = _called(mode, func, items[at])
                if coro is not None:
                    if factory is not None:
                        return at, _FACTORY, (coro, reusable.untouched(inherited))
                    item_coro.inner = coro
                    value, error, suspended = _first_step(coro)
                    if suspended:
                        return at, SUSPENDED, value
                    coro = None
                given = None  # not yet, if the outcome may become a cancellation (`_retire`)
                if error is None and not item_coro.cancelled:
                    given, error = _give(out, value)
                if not reusable.untouched(inherited):
                    return at, _TOUCHED, (value, error, given)
                if error is not None:
                    return at, RAISED, error
                at += 1
                if given == FULL:
                    return at, FULL, None
            return at, DONE, None
        finally:
            # An exception refers to its traceback, that to the item's frame, and that to the frames
            # of its callers. A variable there that refers to the exception would close a cycle.
            value = error = coro = None

    def _task_factory(self) -> object:
        """The loop's task factory that must make the tasks of coroutines, or None."""
        factory = self._loop.get_task_factory()
        return None if factory is tasks.EAGER_FACTORY else factory

    def _ended(self, reusable: ReusableTask, status: int, what: Any) -> tuple[int, Any]:
        """What `run` returns for the item that ended a burst: its status, and task or error."""
        if status == SUSPENDED:
            return SUSPENDED, self._adopt(reusable, what)
        if status == _FACTORY:
            return self._hand_over(reusable, *what)
        self._keep(reusable)
        try:
            return status, what
        finally:
            what = None

    # -- reusable tasks ------------------------------------------------------------------------

    def _enter(self) -> ReusableTask:
        """Make a reusable task current: the idle one, or a new one.

        Until `_keep`, it belongs to this call of `run` alone (STARTER-6): an item may run the loop,
        and so start another call.
        """
        reusable, self._idle = self._idle, None
        if reusable is None:
            reusable = ReusableTask(self._loop, self._base.copy())
        else:
            tasks.register(reusable.task)
        tasks.enter(self._loop, reusable.task)
        return reusable

    def _keep(self, reusable: ReusableTask) -> None:
        tasks.unregister(reusable.task)
        reusable.item_coro.inner = None  # until now, for code that may have kept the task
        self._idle = reusable

    def _adopt(self, reusable: ReusableTask, yielded: object) -> asyncio.Task[Any]:
        """Give a reusable task to the item that suspended in it (STARTER-4)."""
        task, item_coro, context = reusable.task, reusable.item_coro, reusable.context
        task._log_destroy_pending = True
        item_coro.on_value = self._on_value
        context.run(item_coro.adopt, yielded)
        if item_coro.cancel_message is not None:
            # The task has cleared its request in order to throw. Request it again, now that there
            # is something to cancel; `uncancel` restores the count, which is not 0 before.
            tasks.enter(self._loop, task)
            try:
                context.run(task.cancel, *item_coro.cancel_message)
                task.uncancel()
            finally:
                tasks.leave(self._loop, task)
        return task

    def _retire(
        self, reusable: ReusableTask, value: object, error: BaseException | None
    ) -> tuple[Any, BaseException | None]:
        """Finish a reusable task for the code that kept it (STARTER-3); returns the outcome."""
        trace = None if error is None else tasks.traceback_of(error)
        reusable.context.run(reusable.item_coro.finish, value, error)
        ended = tasks.outcome(reusable.task)
        if reusable.item_coro.cancelled:  # a task that ends with a request pending is cancelled
            return ended
        if error is not None:
            BaseException.with_traceback(error, trace)  # without the frames of `finish`
        return value, error

    def _hand_over(
        self, reusable: ReusableTask, coro: Coroutine[Any, Any, Any], untouched: bool
    ) -> tuple[int, Any]:
        """Let the loop's task factory make the task of an item."""
        item_coro = ItemCoroutine(self._loop, coro)
        guard = tasks.guarded(item_coro)
        try:
            task = reusable.context.run(self._loop.create_task, guard)
            if tasks.is_made_of(task, guard):
                item_coro.on_value = self._on_value
        except BaseException as error:  # noqa: BLE001 - an error of the factory is the item's
            guard.close()
            coro.close()
            return RAISED, error
        finally:
            if untouched:
                self._keep(reusable)
            else:
                self._retire(reusable, None, None)
        return SUSPENDED, task


def _called(
    mode: int, func: Callable[..., Any], item: Any
) -> tuple[Any, BaseException | None, Coroutine[Any, Any, Any] | None]:
    """Call a function with an item; returns its value, its exception, or its coroutine."""
    try:
        if mode == Mode.MAP:
            value = func(item)
        elif mode == Mode.STAR:
            value = func(*item)
        else:
            args, kwargs = item
            value = func(*args, **kwargs)
        if type(value) in _VALUES:
            return value, None, None
        if type(value) is not CoroutineType:
            value = tasks.as_coroutine(value)
    except BaseException as error:  # noqa: BLE001 - STARTER-5
        return None, _without_our_frame(error), None
    if type(value) is CoroutineType:
        return None, None, value
    return value, None, None


def _give(out: Sink, value: Any) -> tuple[int | None, BaseException | None]:
    """Append a value to `out`: DONE or FULL; or the error, such as one of pickling it."""
    try:
        return FULL if out.append(value) is False else DONE, None
    except BaseException as error:  # noqa: BLE001 - STARTER-5
        return None, tasks.unsendable(value, error)


def _first_step(coro: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None, bool]:
    """Step a coroutine; returns its value, its exception, or what it yielded and True."""
    try:
        return coro.send(None), None, True
    except StopIteration as stop:
        return stop.value, None, False
    except BaseException as error:  # noqa: BLE001 - STARTER-5
        return None, _without_our_frame(error), False


def _without_our_frame(error: BaseException) -> BaseException:
    """The exception as from a task: its traceback without our frame, which would form a cycle."""
    trace = tasks.traceback_of(error)
    if trace is not None:
        BaseException.with_traceback(error, trace.tb_next)  # its attribute may be read-only
    return error
