# cython: language_level=3, boundscheck=False, wraparound=False
"""The starter of items: `aiomultiprocess.starter`, compiled. Its theory and rules (S1-S8) are there.

What differs: what may have been attached to the task of an item is read from it after each item; of
a run of quick items, most see a coarse clock only.

What both starters share is handed over by `share`, once and before the first of them is made:
nothing in here imports aiomultiprocess.
"""

import sys
from _asyncio import Task
from asyncio.tasks import _enter_task as enter_task
from asyncio.tasks import _leave_task as leave_task
from asyncio.tasks import _register_task as register
from asyncio.tasks import _unregister_task as unregister
from contextvars import copy_context
from inspect import getattr_static

cimport cython
from cpython.contextvars cimport PyContext_Copy, PyContext_Enter, PyContext_Exit
from cpython.dict cimport PyDict_Size
from cpython.object cimport PyObject
from cpython.ref cimport Py_REFCNT
from libc.stdint cimport int64_t, uint64_t

from amp_ext.driver cimport (
    PYGEN_ERROR, PYGEN_NEXT, PYGEN_RETURN, ItemCoroutine, PyIter_Send, PySendResult, amp_take_error, take,
)
from amp_ext.journal cimport Journal
from amp_ext.ring cimport Mapping

cdef extern from "Python.h":
    bint PyCoro_CheckExact(PyObject *)
    object PyObject_GenericGetDict(object, void *)
    Py_ssize_t PyObject_Size(object) except -1

cdef extern from "starter.h":
    int64_t amp_monotonic_ns()
    int64_t amp_monotonic_coarse_ns()
    Py_ssize_t amp_weakrefs(object)
    object amp_peek(object, object)
    PyObject *amp_call(int, object, object, object)

cdef enum:
    _DONE = 0        # as in aiomultiprocess._pure.tasks
    _RAISED = 1
    _SUSPENDED = 2
    _FULL = 3
    _TOUCHED = 4     # ended a burst: the item finished, but its spare is not as it was
    _FACTORY = 5     # ended a burst: a coroutine that the loop's task factory is to have

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
cdef object parked = None
cdef object traceback_of = None
cdef object unsendable = None
cdef object READ_CALLBACKS = getattr_static(Task, "_callbacks")
cdef object READ_NAME = getattr_static(Task, "get_name")

# Tasks that were started eagerly are listed in a set, which is a quarter of the work that the
# WeakSet of the others is: good for a spare, which is listed for as long as a burst.
cdef bint EAGER = (3, 12) <= sys.version_info < (3, 14)
cdef object register_eager = None
cdef object unregister_eager = None
if EAGER:
    from asyncio.tasks import _register_eager_task as register_eager
    from asyncio.tasks import _unregister_eager_task as unregister_eager

cdef enum:
    STRIDE = 8             # quick items between two looks at the exact clock
    STRIDE_NS = 16_000     # that many items are quick if they took less


def share(tasks):
    """Take what both starters know of tasks: the module `aiomultiprocess._pure.tasks`."""
    global as_coroutine, drive, eager_factory, guarded, is_made_of, item_type, outcome, parked
    global traceback_of, unsendable
    if (tasks.DONE, tasks.RAISED, tasks.SUSPENDED, tasks.FULL) != (DONE, RAISED, SUSPENDED, FULL):
        raise ImportError("amp_ext and aiomultiprocess are of different versions")
    as_coroutine = tasks.as_coroutine
    drive = tasks.drive
    eager_factory = tasks.EAGER_FACTORY
    guarded = tasks.guarded
    is_made_of = tasks.is_made_of
    item_type = tasks.Item
    outcome = tasks.outcome
    parked = tasks.parked
    traceback_of = tasks.traceback_of
    unsendable = tasks.unsendable


@cython.final
cdef class ReusableTask:
    """A parked task, and how it looks when it is untouched."""

    cdef object task
    cdef object context
    cdef object coro           # the task's own: a function may keep it, having no other
    cdef ItemCoroutine driver
    cdef object attributes     # the task's __dict__
    cdef object name           # while none is set
    cdef bint listed           # in the WeakSet of all tasks, and not among the eager ones
    cdef bint quiet            # asyncio does not complain if the task is dropped
    cdef Py_ssize_t attribute_count
    cdef Py_ssize_t task_references
    cdef Py_ssize_t context_references
    cdef Py_ssize_t coro_references
    cdef Py_ssize_t weak_references

    def __cinit__(self, loop, context):
        self.context = context
        self.driver = ItemCoroutine(loop)
        self.coro = drive(self.driver)
        self.task = parked(item_type, self.driver, self.coro, loop, context)
        self.attributes = PyObject_GenericGetDict(self.task, NULL)
        self.attribute_count = PyDict_Size(self.attributes)
        self.name = amp_peek(READ_NAME, self.task)
        self.listed = True

    cdef int list(self) except -1:
        """List the task as one that is not (only) eager, as asyncio lists it once it waits."""
        if not self.listed:
            register(self.task)
            self.listed = True
            if EAGER:
                unregister_eager(self.task)
        return 0

    cdef int look(self) except -1:
        """Remember how the task looks now, within a burst and before an item."""
        self.task_references = Py_REFCNT(self.task)
        self.context_references = Py_REFCNT(self.context)
        self.coro_references = Py_REFCNT(self.coro)
        self.weak_references = amp_weakrefs(self.task)
        return 0

    cdef bint untouched(self, tuple inherited) except -1:
        """Whether the task still looks so (STARTER-1), and the context holds what it inherited (STARTER-2)."""
        return (
            Py_REFCNT(self.task) == self.task_references
            and Py_REFCNT(self.context) == self.context_references
            and Py_REFCNT(self.coro) == self.coro_references
            and not self.driver.cancelled
            and amp_weakrefs(self.task) == self.weak_references
            and PyDict_Size(self.attributes) == self.attribute_count
            and not amp_peek(READ_CALLBACKS, self.task)
            and amp_peek(READ_NAME, self.task) is self.name
            and PyObject_Size(self.context) == len(inherited)
            and (not inherited or inherits(self.context, inherited))
        )


cdef bint inherits(context, tuple inherited) except -1:
    for var, value in inherited:
        if context.get(var) is not value:
            return False
    return True


@cython.final
cdef class Starter:
    """Runs the first step of items, and makes tasks of those that need more.

    Made where the items' context variables are as items shall see them: after the initializer.
    `on_value` is called with what an item returns that was suspended, before anything else can run.
    """

    cdef object loop
    cdef object mark_started
    cdef object on_value
    cdef Mapping mapping       # takes the mark directly, if that is what counts
    cdef uint64_t started
    cdef object base
    cdef tuple inherited
    cdef ReusableTask spare
    # during a run: where values go, and the same if it is a journal
    cdef object out
    cdef Journal journal
    # how a burst ended
    cdef object value
    cdef object error
    cdef int kept              # _DONE: the value was given away; _FULL; _TOUCHED: it was not
    cdef bint reusable

    def __init__(self, loop, counter, on_value=None):
        self.loop = loop
        self.on_value = on_value
        self.mapping = counter if isinstance(counter, Mapping) else None
        self.mark_started = counter.mark_started
        self.base = copy_context()
        self.inherited = tuple(self.base.items())

    def run(
        self, int mode, func, list items, Py_ssize_t start, Py_ssize_t stop, out,
        int64_t deadline_ns,
    ):
        """Start `items[start:stop]` in order, until one of them raises or suspends.

        Values go to `out`; if that raises, its item raises `_tasks.unsendable`. Returns
        `(n, RAISED, exception)` or `(n, SUSPENDED, task)` for item n; or, item n being the first
        that was not started, `(n, FULL, None)` if `out` says so, and `(n, DONE, None)` if n is
        `stop` or `time.monotonic_ns()` has reached `deadline_ns`. A task may be done already;
        `_tasks.outcome` tells what it ended with. Call it from a callback of the running loop, not
        from a task.
        """
        if not 0 <= start <= stop <= len(items):
            raise IndexError(f"no items[{start}:{stop}] in a list of {len(items)}")
        self.out = out
        self.journal = out if isinstance(out, Journal) else None
        try:
            return self.bursts(mode, func, items, start, stop, deadline_ns)
        finally:
            self.out = self.journal = None

    cdef tuple bursts(
        self, int mode, func, list items, Py_ssize_t at, Py_ssize_t stop, int64_t deadline_ns
    ):
        """One burst after another, until it is not for a touched spare that one ends."""
        cdef ReusableTask spare
        cdef int status
        while True:
            spare = self.enter()
            try:
                status = self.burst(spare, mode, func, items, &at, stop, deadline_ns)
            except BaseException:  # not an item's: the mark could not be set
                self.keep(spare)
                self.close()
                raise
            finally:
                self.leave(spare)
            value, self.value = self.value, None
            error, self.error = self.error, None
            if status == _DONE or status == _FULL:
                self.keep(spare)
                return at, status, None
            if status == _RAISED:
                self.keep(spare)
                return at, RAISED, error
            if status == _SUSPENDED:
                return at, SUSPENDED, self.adopt(spare, value)
            if status == _FACTORY:
                return self.hand_over(spare, value, at)
            value, error = self.retire(spare, value, error)
            if self.kept == _TOUCHED:  # else its value was given, and stays its answer
                if error is None:
                    error = self.give(value)
                if error is not None:
                    return at, RAISED, error
            at += 1
            if self.kept == _FULL:
                return at, FULL, None

    def close(self):
        """Give up the spare."""
        spare, self.spare = self.spare, None
        if spare is not None:
            (<ReusableTask>spare).driver.wakeup = None

    cdef int burst(
        self, ReusableTask spare, int mode, func, list items, Py_ssize_t *at, Py_ssize_t stop,
        int64_t deadline,
    ) except -1:
        """Run items in the context and as the task of one spare, as long as it may be reused."""
        cdef ItemCoroutine driver = spare.driver
        cdef Journal journal = self.journal
        cdef tuple inherited = self.inherited
        cdef bint handed = self.has_factory()
        cdef int64_t now, before = 0
        cdef int unwatched = 0
        cdef PyObject *result = NULL
        cdef PySendResult sent
        value = error = None
        spare.look()
        while at[0] < stop:
            if unwatched == 0:
                now = amp_monotonic_ns()
                if now >= deadline:
                    return _DONE
                unwatched = STRIDE if now - before < STRIDE_NS else 1
                before = now
            elif amp_monotonic_coarse_ns() >= deadline:  # slow ones came after quick ones
                return _DONE
            unwatched -= 1
            self.mark()  # STARTER-7
            driver.number = self.started
            sent = call(driver, mode, func, items[at[0]], &result)
            if sent == PYGEN_NEXT and not handed:
                sent = PyIter_Send(<PyObject *>driver.coro, <PyObject *>None, &result)
                if sent == PYGEN_NEXT:
                    self.value = take(result)
                    return _SUSPENDED
            if sent == PYGEN_RETURN:
                value = take(result)
            elif sent == PYGEN_ERROR:
                error = take(amp_take_error())
            else:
                self.value, driver.coro = driver.coro, None
                self.reusable = spare.untouched(inherited)
                return _FACTORY
            self.kept = _TOUCHED  # a value that may become a cancellation (retire) has to wait
            if error is None and not driver.cancelled:
                if journal is not None and journal.add_quickly(value):
                    self.kept = _DONE
                else:
                    error = self.give(value)
            if not spare.untouched(inherited):
                self.value = value
                self.error = error
                return _TOUCHED
            if error is not None:
                self.error = error
                return _RAISED
            at[0] += 1
            if self.kept == _FULL:
                return _FULL
        return _DONE

    cdef bint has_factory(self) except -1:
        """Whether the loop's task factory is to make the tasks of coroutines."""
        factory = self.loop.get_task_factory()
        return factory is not None and factory is not eager_factory

    cdef object give(self, value):
        """Give a value away; returns why it cannot be had (it may have to be pickled)."""
        try:
            if self.journal is not None:
                self.kept = _DONE if self.journal.add(value) else _FULL
            else:
                self.kept = _FULL if self.out.append(value) is False else _DONE
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

    # -- spares ------------------------------------------------------------------------------------

    cdef ReusableTask enter(self):
        """Make a spare the current task. It is this call's alone until it is kept (STARTER-6)."""
        cdef ReusableTask spare = self.spare
        self.spare = None
        if spare is None:
            spare = ReusableTask(self.loop, PyContext_Copy(self.base))
        elif EAGER:
            register_eager(spare.task)
        else:
            spare.list()
        enter_task(self.loop, spare.task)
        PyContext_Enter(spare.context)
        return spare

    cdef int leave(self, ReusableTask spare) except -1:
        PyContext_Exit(spare.context)
        leave_task(self.loop, spare.task)
        return 0

    cdef int keep(self, ReusableTask spare) except -1:
        if not spare.quiet:
            spare.quiet = True
            spare.task._log_destroy_pending = False
        if spare.listed:
            spare.listed = False
            unregister(spare.task)
        else:
            unregister_eager(spare.task)
        spare.driver.coro = None  # it was left for those who may have kept the task
        self.spare = spare
        return 0

    cdef object adopt(self, ReusableTask spare, yielded):
        """Give a spare to the item that suspended in it (STARTER-4)."""
        cdef ItemCoroutine driver = spare.driver
        task = spare.task
        if spare.quiet:
            task._log_destroy_pending = True
        driver.on_value = self.on_value
        spare.list()
        PyContext_Enter(spare.context)
        try:
            driver.adopt(yielded)
        finally:
            PyContext_Exit(spare.context)
        if driver.cancel_message is not None:
            self.cancel_again(spare)
        return task

    cdef int cancel_again(self, ReusableTask spare) except -1:
        """Cancel what an item waits for that was cancelled in its first step (STARTER-4).

        The task took its request back in order to throw. It is made again, now that there is
        something to cancel; `uncancel` keeps the count, which is not 0 before.
        """
        enter_task(self.loop, spare.task)
        try:
            spare.context.run(spare.task.cancel, *spare.driver.cancel_message)
            spare.task.uncancel()
        finally:
            leave_task(self.loop, spare.task)
        return 0

    cdef tuple retire(self, ReusableTask spare, value, error):
        """Make a spare done for those who kept it (STARTER-3); returns the outcome of its item."""
        trace = None if error is None else traceback_of(error)
        spare.list()
        PyContext_Enter(spare.context)
        try:
            spare.driver.finish(value, error)
        finally:
            PyContext_Exit(spare.context)
        ended = outcome(spare.task)
        if spare.driver.cancelled:  # a request that was not served makes a value a cancellation
            return ended
        if error is not None:
            BaseException.with_traceback(error, trace)  # without the steps through the driver
        return value, error

    cdef tuple hand_over(self, ReusableTask spare, coro, Py_ssize_t at):
        """Let the loop's task factory make the task of an item."""
        cdef bint reusable = self.reusable
        cdef ItemCoroutine driver = ItemCoroutine(self.loop, coro)
        guard = guarded(driver)
        try:
            task = spare.context.run(self.loop.create_task, guard)
            if is_made_of(task, guard):
                driver.on_value = self.on_value
        except BaseException as error:  # the factory's failure is the item's
            guard.close()
            coro.close()
            result = at, RAISED, error
        else:
            result = at, SUSPENDED, task
        if reusable:
            self.keep(spare)
        else:
            self.retire(spare, None, None)
        return result


cdef inline PySendResult call(
    ItemCoroutine driver, int mode, func, item, PyObject **result
) noexcept:
    """Call a function with an item. PYGEN_NEXT: the driver has a coroutine to be stepped."""
    cdef PyObject *called = amp_call(mode, func, item, as_coroutine)
    if called is NULL:
        return PYGEN_ERROR
    if PyCoro_CheckExact(called):
        driver.coro = take(called)
        return PYGEN_NEXT
    result[0] = called
    return PYGEN_RETURN
