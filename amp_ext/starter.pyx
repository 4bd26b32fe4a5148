# cython: language_level=3, boundscheck=False, wraparound=False
"""The starter, compiled: aiomultiprocess/_pure/starter.py has theory and rules (STARTER-1 to -9).

Two things differ from the twin. There, a task notes that an item has set an attribute of it; here,
the starter counts the attributes. And while items finish quickly, the starter reads the exact clock
before every STRIDE-th of them, and a coarse clock before the others.

`aiomultiprocess._accel` calls `share` once, before a Starter is made, with what both starters use:
no module of amp_ext imports aiomultiprocess.
"""

import sys
from asyncio.tasks import _enter_task as enter_task
from asyncio.tasks import _leave_task as leave_task
from asyncio.tasks import _register_task as register
from asyncio.tasks import _unregister_task as unregister
from contextvars import copy_context

cimport cython
from cpython.contextvars cimport PyContext_Copy, PyContext_Enter, PyContext_Exit
from cpython.dict cimport PyDict_Size
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from amp_ext.driver cimport (
    PYGEN_ERROR, PYGEN_NEXT, PYGEN_RETURN, ItemCoroutine, PyIter_Send, PySendResult,
    amp_take_error, amp_taken,
)
from amp_ext.journal cimport Journal
from amp_ext.ring cimport Mapping

cdef extern from "Python.h":
    bint PyCoro_CheckExact(PyObject *)
    object PyObject_GenericGetDict(object, void *)

cdef extern from "starter.h":
    ctypedef struct amp_task_state:
        PyObject *task
        PyObject *context
        PyObject *coro
        PyObject *attributes
        Py_ssize_t attribute_count
        Py_ssize_t variable_count

    int64_t amp_monotonic_ns()
    int64_t amp_monotonic_coarse_ns()
    void amp_remember(amp_task_state *)
    bint amp_is_untouched(const amp_task_state *)
    PyObject *amp_call(int, object, object, object)

cdef enum:
    _DONE = 0        # as in aiomultiprocess._pure.tasks
    _RAISED = 1
    _SUSPENDED = 2
    _FULL = 3
    _TOUCHED = 4     # ended a burst: the item finished, and left traces on its task (STARTER-3)
    _FACTORY = 5     # ended a burst: the loop's task factory makes the task of a coroutine

DONE = _DONE
FULL = _FULL
RAISED = _RAISED
SUSPENDED = _SUSPENDED

cdef object as_coroutine = None
cdef object drive = None
cdef object eager_factory = None
cdef object guarded = None
cdef object is_made_of = None
cdef object item_type = None
cdef object outcome = None
cdef object waiting_task = None
cdef object traceback_of = None
cdef object unsendable = None

# asyncio lists eagerly started tasks in a set, and others in a WeakSet, which takes four times as
# long. A reusable task is listed during each burst: so as an eager one, where Python has them.
cdef bint EAGER = (3, 12) <= sys.version_info < (3, 14)
cdef object register_eager = None
cdef object unregister_eager = None
if EAGER:
    from asyncio.tasks import _register_eager_task as register_eager
    from asyncio.tasks import _unregister_eager_task as unregister_eager

cdef enum:
    STRIDE = 8             # items between two readings of the exact clock, while items are quick
    STRIDE_NS = 16_000     # items are quick if those since the last exact reading took less: one or
                           # STRIDE
    TIME_NS = 4_000_000    # STARTER-9


def share(tasks):
    """Keep what both starters use: functions of the module `aiomultiprocess._pure.tasks`."""
    global as_coroutine, drive, eager_factory, guarded, is_made_of, item_type, outcome, waiting_task
    global traceback_of, unsendable
    if (tasks.DONE, tasks.RAISED, tasks.SUSPENDED, tasks.FULL) != (DONE, RAISED, SUSPENDED, FULL):
        raise ImportError(
            "amp_ext and aiomultiprocess are of different versions; install both from one release"
        )
    as_coroutine = tasks.as_coroutine
    drive = tasks.drive
    eager_factory = tasks.EAGER_FACTORY
    guarded = tasks.guarded
    is_made_of = tasks.is_made_of
    item_type = tasks.Item
    outcome = tasks.outcome
    waiting_task = tasks.waiting_task
    traceback_of = tasks.traceback_of
    unsendable = tasks.unsendable


@cython.final
cdef class ReusableTask:
    """A task that waits at its gate, and the state that it has while it is untouched."""

    cdef object task
    cdef object context
    cdef object coro           # the task's; `get_coro()` returns it in a plain function
    cdef ItemCoroutine item_coro
    cdef object attributes     # the task's __dict__
    cdef amp_task_state state  # at the start of the burst
    cdef bint listed           # in the WeakSet of all tasks, and not among the eager ones
    cdef bint quiet            # asyncio logs nothing if the task is dropped

    def __cinit__(self, loop, context, Py_ssize_t variable_count):
        self.context = context
        self.item_coro = ItemCoroutine(loop)
        self.coro = drive(self.item_coro)
        self.task = waiting_task(item_type, self.item_coro, self.coro, loop, context)
        self.attributes = PyObject_GenericGetDict(self.task, NULL)
        self.listed = True
        self.state.task = <PyObject *>self.task
        self.state.context = <PyObject *>self.context
        self.state.coro = <PyObject *>self.coro
        self.state.attributes = <PyObject *>self.attributes
        self.state.attribute_count = PyDict_Size(self.attributes)
        self.state.variable_count = variable_count

    cdef int list(self) except -1:
        """List the task in the WeakSet, as asyncio does once an eagerly started task waits."""
        if not self.listed:
            register(self.task)
            self.listed = True
            if EAGER:
                unregister_eager(self.task)
        return 0

    cdef bint untouched(self, tuple inherited) except -1:
        """Whether task (STARTER-1) and context (STARTER-2) still have the state remembered."""
        return (
            not self.item_coro.marked
            and not self.item_coro.cancelled
            and amp_is_untouched(&self.state)
            and (not inherited or inherits(self.context, inherited))
        )


cdef bint inherits(context, tuple inherited) except -1:
    for var, value in inherited:
        if context.get(var) is not value:
            return False
    return True


@cython.final
cdef class Starter:
    """Runs the first step of items, and gives a task to each that suspends.

    Make it in the context that items shall see a copy of: after the initializer. When an item that
    was suspended returns, `on_value` gets the value before anything else can run. `started`: how
    many items other starters of this worker have started before.
    """

    cdef object loop
    cdef object counter
    cdef object mark_started
    cdef object on_value
    cdef Mapping mapping       # the counter, if it is a Mapping: called without Python's overhead
    cdef uint64_t started
    cdef object base
    cdef tuple inherited
    cdef ReusableTask idle     # kept between two calls of `run`
    # during `run`: the sink of values, and the same object if it is a Journal
    cdef object out
    cdef Journal journal
    # how a burst ended
    cdef object value
    cdef object error
    cdef int given             # _DONE or _FULL: `out` has the value; _TOUCHED: not yet
    cdef bint is_untouched     # the task, when the burst ended with _FACTORY
    cdef int64_t since         # during `run`, if the items have a time limit: what is marked; or -1

    def __init__(self, loop, counter, on_value=None, uint64_t started=0):
        self.started = started
        self.loop = loop
        self.on_value = on_value
        self.mapping = counter if isinstance(counter, Mapping) else None
        self.counter = counter
        self.mark_started = counter.mark_started
        self.base = copy_context()
        self.inherited = tuple(self.base.items())

    def run(
        self, int mode, func, list items, Py_ssize_t start, Py_ssize_t stop, out,
        int64_t deadline_ns, bint timed=False,
    ):
        """Start `items[start:stop]` in order, until one of them raises or suspends.

        Values go to `out`; if that raises, the item's error is that of `tasks.unsendable`. Returns
        `(n, RAISED, exception)` or `(n, SUSPENDED, task)`, where n is that item; or, where n is the
        first item not started, `(n, FULL, None)` if `out` returned False, and `(n, DONE, None)` if
        n is `stop` or `time.monotonic_ns()` has reached `deadline_ns`. A task may be done already;
        `tasks.outcome` returns its outcome. If `timed`, the start time of each item is marked, too
        (STARTER-9). Call it in a callback of the running loop, not in a task.
        """
        if not 0 <= start <= stop <= len(items):
            raise IndexError(f"no items[{start}:{stop}] in a list of {len(items)}")
        self.out = out
        self.since = 0 if timed else -1
        self.journal = out if isinstance(out, Journal) else None
        try:
            return self.bursts(mode, func, items, start, stop, deadline_ns)
        finally:
            self.out = self.journal = None

    cdef tuple bursts(
        self, int mode, func, list items, Py_ssize_t at, Py_ssize_t stop, int64_t deadline_ns
    ):
        """Run one burst after another, as long as each ends by a reusable task with traces."""
        cdef ReusableTask reusable
        cdef int status
        while True:
            reusable = self.enter()
            try:
                status = self.burst(reusable, mode, func, items, &at, stop, deadline_ns)
            except BaseException:  # no item raised it: the mark could not be set
                self.keep(reusable)
                self.close()
                raise
            finally:
                self.leave(reusable)
            value, self.value = self.value, None
            error, self.error = self.error, None
            if status == _DONE or status == _FULL:
                self.keep(reusable)
                return at, status, None
            if status == _RAISED:
                self.keep(reusable)
                return at, RAISED, error
            if status == _SUSPENDED:
                return at, SUSPENDED, self.adopt(reusable, value)
            if status == _FACTORY:
                return self.hand_over(reusable, value, at)
            value, error = self.retire(reusable, value, error)
            if self.given == _TOUCHED:  # else `out` has its value already, which stays its result
                if error is None:
                    error = self.give(value)
                if error is not None:
                    return at, RAISED, error
            at += 1
            if self.given == _FULL:
                return at, FULL, None

    def close(self):
        """Drop the reusable task."""
        reusable, self.idle = self.idle, None
        if reusable is not None:
            (<ReusableTask>reusable).item_coro.wakeup = None

    cdef int burst(
        self, ReusableTask reusable, int mode, func, list items, Py_ssize_t *at, Py_ssize_t stop,
        int64_t deadline,
    ) except -1:
        """Run items in one reusable task, as long as they leave it untouched."""
        cdef ItemCoroutine item_coro = reusable.item_coro
        cdef Journal journal = self.journal
        cdef tuple inherited = self.inherited
        cdef bint has_factory = self.has_factory()
        cdef int64_t now, coarse, before = 0
        cdef int unclocked = 0
        cdef PyObject *result = NULL
        cdef PySendResult sent
        value = error = None
        amp_remember(&reusable.state)
        while at[0] < stop:
            if unclocked == 0:
                now = amp_monotonic_ns()
                if now >= deadline:
                    return _DONE
                unclocked = STRIDE if now - before < STRIDE_NS else 1
                before = coarse = now
            else:
                coarse = amp_monotonic_coarse_ns()
                if coarse >= deadline:  # slow items follow quick ones
                    return _DONE
            unclocked -= 1
            if self.since >= 0 and coarse - self.since > TIME_NS:
                self.mark_time(coarse)  # STARTER-9
            self.mark()  # STARTER-7
            item_coro.number = self.started
            sent = call(item_coro, mode, func, items[at[0]], &result)
            if sent == PYGEN_NEXT and not has_factory:
                sent = PyIter_Send(<PyObject *>item_coro.inner, <PyObject *>None, &result)
                if sent == PYGEN_NEXT:
                    self.value = amp_taken(result)
                    return _SUSPENDED
            if sent == PYGEN_RETURN:
                value = amp_taken(result)
            elif sent == PYGEN_ERROR:
                error = amp_taken(amp_take_error())
            else:
                self.value, item_coro.inner = item_coro.inner, None
                self.is_untouched = reusable.untouched(inherited)
                return _FACTORY
            self.given = _TOUCHED  # not yet, if the outcome may become a cancellation (`retire`)
            if error is None and not item_coro.cancelled:
                if journal is not None and journal.add_quickly(value):
                    self.given = _DONE
                else:
                    error = self.give(value)
            if not reusable.untouched(inherited):
                self.value = value
                self.error = error
                return _TOUCHED
            if error is not None:
                self.error = error
                return _RAISED
            at[0] += 1
            if self.given == _FULL:
                return _FULL
        return _DONE

    cdef bint has_factory(self) except -1:
        """Whether the loop has a task factory that must make the tasks of coroutines."""
        factory = self.loop.get_task_factory()
        return factory is not None and factory is not eager_factory

    cdef object give(self, value):
        """Append a value to `out`; returns None or the error, such as one of pickling it."""
        try:
            if self.journal is not None:
                self.given = _DONE if self.journal.add(value) else _FULL
            else:
                self.given = _FULL if self.out.append(value) is False else _DONE
        except BaseException as error:  # STARTER-5
            return unsendable(value, error)
        return None

    cdef inline int mark(self) except -1:
        self.started += 1
        if self.mapping is not None:
            self.mapping.mark_started(self.started)
        else:
            self.mark_started(self.started)
        return 0

    cdef int mark_time(self, int64_t since) except -1:
        self.since = since
        if self.mapping is not None:
            self.mapping.mark_time(self.started + 1, since)
        else:
            self.counter.mark_time(self.started + 1, since)
        return 0

    # -- reusable tasks ----------------------------------------------------------------------------

    cdef ReusableTask enter(self):
        """Make a reusable task current: the idle one, or a new one.

        Until `keep`, it belongs to this call of `run` alone (STARTER-6): an item may run the loop,
        and so start another call.
        """
        cdef ReusableTask reusable = self.idle
        self.idle = None
        if reusable is None:
            reusable = ReusableTask(self.loop, PyContext_Copy(self.base), len(self.inherited))
        elif EAGER:
            register_eager(reusable.task)
        else:
            reusable.list()
        enter_task(self.loop, reusable.task)
        PyContext_Enter(reusable.context)
        return reusable

    cdef int leave(self, ReusableTask reusable) except -1:
        PyContext_Exit(reusable.context)
        leave_task(self.loop, reusable.task)
        return 0

    cdef int keep(self, ReusableTask reusable) except -1:
        if not reusable.quiet:
            reusable.quiet = True
            reusable.task._log_destroy_pending = False
        if reusable.listed:
            reusable.listed = False
            unregister(reusable.task)
        else:
            unregister_eager(reusable.task)
        reusable.item_coro.inner = None  # until now, for code that may have kept the task
        self.idle = reusable
        return 0

    cdef object adopt(self, ReusableTask reusable, yielded):
        """Give a reusable task to the item that suspended in it (STARTER-4)."""
        cdef ItemCoroutine item_coro = reusable.item_coro
        task = reusable.task
        if reusable.quiet:
            task._log_destroy_pending = True
        item_coro.on_value = self.on_value
        reusable.list()
        PyContext_Enter(reusable.context)
        try:
            item_coro.adopt(yielded)
        finally:
            PyContext_Exit(reusable.context)
        if item_coro.cancel_message is not None:
            self.cancel_again(reusable)
        return task

    cdef int cancel_again(self, ReusableTask reusable) except -1:
        """Cancel what an item waits for that was cancelled in its first step (STARTER-4).

        The task has cleared its request in order to throw. Request it again, now that there is
        something to cancel; `uncancel` restores the count, which is not 0 before.
        """
        enter_task(self.loop, reusable.task)
        try:
            reusable.context.run(reusable.task.cancel, *reusable.item_coro.cancel_message)
            reusable.task.uncancel()
        finally:
            leave_task(self.loop, reusable.task)
        return 0

    cdef tuple retire(self, ReusableTask reusable, value, error):
        """Finish a reusable task for the code that kept it (STARTER-3); returns the outcome."""
        trace = None if error is None else traceback_of(error)
        reusable.list()
        PyContext_Enter(reusable.context)
        try:
            reusable.item_coro.finish(value, error)
        finally:
            PyContext_Exit(reusable.context)
        ended = outcome(reusable.task)
        if reusable.item_coro.cancelled:  # a task that ends with a request pending is cancelled
            return ended
        if error is not None:
            BaseException.with_traceback(error, trace)  # without the frames of `finish`
        return value, error

    cdef tuple hand_over(self, ReusableTask reusable, coro, Py_ssize_t at):
        """Let the loop's task factory make the task of an item."""
        cdef bint is_untouched = self.is_untouched
        cdef ItemCoroutine item_coro = ItemCoroutine(self.loop, coro)
        guard = guarded(item_coro)
        try:
            task = reusable.context.run(self.loop.create_task, guard)
            if is_made_of(task, guard):
                item_coro.on_value = self.on_value
        except BaseException as error:  # an error of the factory is the item's
            guard.close()
            coro.close()
            result = at, RAISED, error
        else:
            result = at, SUSPENDED, task
        if is_untouched:
            self.keep(reusable)
        else:
            self.retire(reusable, None, None)
        return result


@cython.final
cdef class TurnClock:
    """Stands in for the `select` of a loop's selector: aiomultiprocess/_pure/turns.py."""

    cdef object select
    cdef object memory
    cdef Mapping mapping       # the memory, if it is a Mapping: called without Python's overhead
    cdef bint stopped
    cdef uint64_t phase        # the lowest bit of the first word
    cdef int64_t origin
    cdef int64_t busy

    def __init__(self, memory, select):
        self.memory = memory
        self.mapping = memory if isinstance(memory, Mapping) else None
        self.select = select
        self.begin()

    def wait(self, timeout=None):
        if self.stopped:
            return self.select(timeout)
        self.busy = amp_monotonic_ns() - self.origin
        if timeout is not None and timeout <= 0:
            self.end(1)  # the next turn begins at once
            return self.select(timeout)
        self.end(0)
        try:
            return self.select(timeout)
        finally:
            if not self.stopped:
                self.begin()

    def stop(self, *, bint idle):
        if idle and not self.stopped:
            self.busy = amp_monotonic_ns() - self.origin
            self.end(0)
        self.stopped = True

    cdef int begin(self) except -1:
        cdef uint64_t word
        self.origin = amp_monotonic_ns() - self.busy
        self.phase ^= 1
        word = (<uint64_t>self.origin & ~<uint64_t>1) | self.phase
        if self.mapping is not None:
            self.mapping.begin_turn(word)
        else:
            self.memory.begin_turn(word)
        return 0

    cdef int end(self, uint64_t in_turn) except -1:
        cdef uint64_t word = (<uint64_t>self.busy & ~<uint64_t>1) | (self.phase ^ in_turn)
        if self.mapping is not None:
            self.mapping.end_turn(word)
        else:
            self.memory.end_turn(word)
        return 0


cdef inline PySendResult call(
    ItemCoroutine item_coro, int mode, func, item, PyObject **result
) noexcept:
    """Call a function with an item. PYGEN_NEXT: `item_coro.inner` is the coroutine to step."""
    cdef PyObject *called = amp_call(mode, func, item, as_coroutine)
    if called is NULL:
        return PYGEN_ERROR
    if PyCoro_CheckExact(called):
        item_coro.inner = amp_taken(called)
        return PYGEN_NEXT
    result[0] = called
    return PYGEN_RETURN
