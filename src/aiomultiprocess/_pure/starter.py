"""The pure-Python starter of items: what `amp_ext.starter` does, without a compiler.

To make a Task for each item costs several times what a short item costs. So the first step of an
item is run here, by hand, while `asyncio.current_task()` is a *spare*: a real Task, in a context of
its own, that waits for a gate. If the item finishes in this step, nobody kept anything of the
spare and nothing of it has changed, the next item gets the same one. If the item suspends, the
spare adopts it: its driver is given the item's coroutine to drive from there on.

    parked --item suspends--> ADOPTING --> RUNNING --SystemExit--> ENDING --> task done
       \\-----item finished, spare is not as it was--> FINISHED ------------> task done

The coroutine of a spare awaits a `ItemCoroutine`, which is the gate as well: a future-like object that the
spare waits for. A task that waits has handed over its wake-up: to call it is to step the task now,
without a turn of the loop.

A loop that has a task factory of its own gets the coroutines of items, and makes their tasks. (Not
asyncio's eager one: to start a task eagerly is what a starter does.)

STARTER-1  An item runs in a real Task that is the task of no other item at that time, and which it finds
    as a new task is: no callbacks, no attributes, no cancellation requests, no references, no
    weak references. `_untouched` decides, after each item.
STARTER-2  An item runs in a copy of the context in which the starter was made. What it sets is seen by no
    other item.
STARTER-3  A spare that is not untouched becomes a task that is done, with the outcome of its item, for
    those who kept it.
STARTER-4  A suspended item is in the state in which a Task that ran the coroutine itself would be: it
    waits for the same future, and a cancellation requested in the first step is delivered to it.
STARTER-5  SystemExit and KeyboardInterrupt of an item are its outcome; they do not leave a callback of the
    loop, which they would stop.
STARTER-6  Between two calls of `run` a spare is not in `asyncio.all_tasks()`, not current, and known to
    nobody else.
STARTER-7  An item is marked as started before its function is called (WORKER-1), and the value of the item
    before it was given away by then (WORKER-6).
STARTER-8  The task of an item shows the item's own coroutine and a name that no other item of the worker
    has. A task factory gets a real coroutine, which has the names of the item's and awaits it.
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

_TOUCHED: Final = 4  # ended a burst: the item finished, but its spare is not as it was
_FACTORY: Final = 5  # ended a burst: a coroutine that the loop's task factory is to have

#: Types of values that are seen to be no awaitables at once.
_VALUES: Final = frozenset({bool, bytes, dict, float, int, list, set, str, tuple, type(None)})


class StartedCounter(Protocol):
    """Where the parent can read how many items have been started."""

    def mark_started(self, n: int) -> object:
        """Store the total `n`."""


class Sink(Protocol):
    """Where values go: a list, or a journal."""

    def append(self, value: Any, /) -> bool | None:
        """Take a value; False if it should travel on before anything else runs."""


class ReusableTask:
    """A parked task, and how it looks when it is untouched."""

    __slots__ = ("_coro", "_references", "_weakrefs", "context", "driver", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self.context = context
        self.driver = ItemCoroutine(loop)
        self._coro = tasks.drive(self.driver)  # a function may keep it, having no other
        self.task = tasks.parked(MarkedItem, self.driver, self._coro, loop, context)
        self.task._log_destroy_pending = False

    def look(self) -> None:
        """Remember how the task looks now, within a burst and before an item."""
        object.__setattr__(self.task, "marked", False)
        self._references = self._count()
        self._weakrefs = getweakrefcount(self.task)

    def untouched(self, inherited: tuple[tuple[ContextVar[Any], Any], ...]) -> bool:
        """Whether the task still looks so (STARTER-1), and the context holds what it inherited (STARTER-2)."""
        return (
            self._count() == self._references
            and getweakrefcount(self.task) == self._weakrefs
            and not self.driver.cancelled
            and not self.task.marked
            and len(self.context) == len(inherited)
            and (not inherited or all(self.context.get(var) is value for var, value in inherited))
        )

    def _count(self) -> tuple[int, int, int]:
        return getrefcount(self.task), getrefcount(self.context), getrefcount(self._coro)


class Starter:
    """Runs the first step of items, and makes tasks of those that need more.

    Made where the items' context variables are as items shall see them: after the initializer.
    `on_value` is called with what an item returns that was suspended, before anything else can run.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counter: StartedCounter,
        on_value: Callable[[Any], object] | None = None,
    ) -> None:
        self._loop = loop
        self._mark_started = counter.mark_started
        self._on_value = on_value
        self._started = 0
        self._base = copy_context()
        self._inherited = tuple(self._base.items())
        self._spare: ReusableTask | None = None

    def run(
        self,
        mode: int,
        func: Callable[..., Any],
        items: list[Any],
        start: int,
        stop: int,
        out: Sink,
        deadline_ns: int,
    ) -> tuple[int, int, Any]:
        """Start `items[start:stop]` in order, until one of them raises or suspends.

        Values go to `out`; if that raises, its item raises `_tasks.unsendable`. Returns
        `(n, RAISED, exception)` or `(n, SUSPENDED, task)` for item n; or, item n being the first
        that was not started, `(n, FULL, None)` if `out` says so, and `(n, DONE, None)` if n is
        `stop` or `time.monotonic_ns()` has reached `deadline_ns`. A task may be done already;
        `_tasks.outcome` tells what it ended with. Call it from a callback of the running loop, not
        from a task.
        """
        at, what = start, None
        try:
            while True:
                spare = self._enter()
                try:
                    at, status, what = spare.context.run(
                        self._burst, spare, mode, func, items, at, stop, out, deadline_ns
                    )
                except BaseException:  # not an item's: the mark could not be set
                    self._keep(spare)
                    self.close()
                    raise
                finally:
                    tasks.leave(self._loop, spare.task)
                if status != _TOUCHED:
                    return at, *self._ended(spare, status, what)
                what, error, kept = what
                what, error = self._retire(spare, what, error)
                if kept is not None:
                    error = None  # its value was given, and stays its answer
                elif error is None:
                    kept, error = _kept(out, what)
                if error is not None:
                    return at, RAISED, error
                at += 1
                if kept == FULL:
                    return at, FULL, None
        finally:
            what = error = None  # this frame lives on in the tracebacks of items (see _burst)

    def close(self) -> None:
        """Give up the spare."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.driver.drop()

    def _burst(
        self,
        spare: ReusableTask,
        mode: int,
        func: Callable[..., Any],
        items: list[Any],
        at: int,
        stop: int,
        out: Sink,
        deadline_ns: int,
    ) -> tuple[int, int, Any]:
        """Run items in the context and as the task of one spare, as long as it may be reused."""
        driver, inherited = spare.driver, self._inherited
        factory = self._loop.get_task_factory()
        if factory is tasks.EAGER_FACTORY:
            factory = None
        spare.look()
        try:
            while at < stop and monotonic_ns() < deadline_ns:
                self._started = driver.number = number = self._started + 1
                self._mark_started(number)  # STARTER-7
                value, error, coro = _called(mode, func, items[at])
                if coro is not None:
                    if factory is not None:
                        return at, _FACTORY, (coro, spare.untouched(inherited))
                    driver.coro = coro
                    value, error, suspended = _first_step(coro)
                    if suspended:
                        return at, SUSPENDED, value
                    coro = None
                kept = None  # a value that may become a cancellation (`_retire`) has to wait
                if error is None and not driver.cancelled:
                    kept, error = _kept(out, value)
                if not spare.untouched(inherited):
                    return at, _TOUCHED, (value, error, kept)
                if error is not None:
                    return at, RAISED, error
                at += 1
                if kept == FULL:
                    return at, FULL, None
            return at, DONE, None
        finally:
            # An exception holds its traceback, that the item's frame, and that its callers' frames
            # with all they know. What they know must not be the exception: that is a cycle.
            value = error = coro = None

    def _ended(self, spare: ReusableTask, status: int, what: Any) -> tuple[int, Any]:
        """What `run` returns after a burst that ended so."""
        if status == SUSPENDED:
            return SUSPENDED, self._adopt(spare, what)
        if status == _FACTORY:
            return self._hand_over(spare, *what)
        self._keep(spare)
        try:
            return status, what
        finally:
            what = None

    # -- spares --------------------------------------------------------------------------------

    def _enter(self) -> ReusableTask:
        """Make a spare the current task. It is this call's alone until it is kept (STARTER-6)."""
        spare, self._spare = self._spare, None
        if spare is None:
            spare = ReusableTask(self._loop, self._base.copy())
        else:
            tasks.register(spare.task)
        tasks.enter(self._loop, spare.task)
        return spare

    def _keep(self, spare: ReusableTask) -> None:
        tasks.unregister(spare.task)
        spare.driver.coro = None  # it was left for those who may have kept the task
        self._spare = spare

    def _adopt(self, spare: ReusableTask, yielded: object) -> asyncio.Task[Any]:
        """Give a spare to the item that suspended in it (STARTER-4)."""
        task, driver, context = spare.task, spare.driver, spare.context
        task._log_destroy_pending = True
        driver.on_value = self._on_value
        context.run(driver.adopt, yielded)
        if driver.cancel_message is not None:
            # The task took its request back in order to throw. It is made again, now that there is
            # something to cancel; `uncancel` keeps the count, which is not 0 before.
            tasks.enter(self._loop, task)
            try:
                context.run(task.cancel, *driver.cancel_message)
                task.uncancel()
            finally:
                tasks.leave(self._loop, task)
        return task

    def _retire(
        self, spare: ReusableTask, value: object, error: BaseException | None
    ) -> tuple[Any, BaseException | None]:
        """Make a spare done for those who kept it (STARTER-3); returns the outcome of its item."""
        trace = None if error is None else tasks.traceback_of(error)
        spare.context.run(spare.driver.finish, value, error)
        ended = tasks.outcome(spare.task)
        if spare.driver.cancelled:  # a request that was not served makes a value a cancellation
            return ended
        if error is not None:
            BaseException.with_traceback(error, trace)  # without the steps through the driver
        return value, error

    def _hand_over(
        self, spare: ReusableTask, coro: Coroutine[Any, Any, Any], reusable: bool
    ) -> tuple[int, Any]:
        """Let the loop's task factory make the task of an item."""
        driver = ItemCoroutine(self._loop, coro)
        guard = tasks.guarded(driver)
        try:
            task = spare.context.run(self._loop.create_task, guard)
            if tasks.is_made_of(task, guard):
                driver.on_value = self._on_value
        except BaseException as error:  # noqa: BLE001 - the factory's failure is the item's
            guard.close()
            coro.close()
            return RAISED, error
        finally:
            if reusable:
                self._keep(spare)
            else:
                self._retire(spare, None, None)
        return SUSPENDED, task


def _called(
    mode: int, func: Callable[..., Any], item: Any
) -> tuple[Any, BaseException | None, Coroutine[Any, Any, Any] | None]:
    """Call a function with an item: its value, its exception, or the coroutine to be stepped."""
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
        return None, _theirs(error), None
    if type(value) is CoroutineType:
        return None, None, value
    return value, None, None


def _kept(out: Sink, value: Any) -> tuple[int | None, BaseException | None]:
    """Give a value away: DONE or FULL, or why it cannot be had (it may have to be pickled)."""
    try:
        return FULL if out.append(value) is False else DONE, None
    except BaseException as error:  # noqa: BLE001 - STARTER-5
        return None, tasks.unsendable(value, error)


def _first_step(coro: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None, bool]:
    """Step a coroutine: its value, its exception, or what it has yielded and True."""
    try:
        return coro.send(None), None, True
    except StopIteration as stop:
        return stop.value, None, False
    except BaseException as error:  # noqa: BLE001 - STARTER-5
        return None, _theirs(error), False


def _theirs(error: BaseException) -> BaseException:
    """The exception without our frame, as from a task; and without a reference cycle through it."""
    trace = tasks.traceback_of(error)
    if trace is not None:
        BaseException.with_traceback(error, trace.tb_next)  # it may be frozen
    return error
