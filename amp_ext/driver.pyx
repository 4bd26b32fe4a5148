# cython: language_level=3
"""What tasks wait for, compiled; see aiomultiprocess/_pure/driver.py.

`ItemCoroutine` is for starter.pyx alone. Rules: STARTER-1 to STARTER-8 in
aiomultiprocess/_pure/starter.py.
"""

cimport cython
from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        object (*tp_descr_get)(object, object, object)
        int (*tp_descr_set)(object, object, object) except -1

    PyTypeObject *Py_TYPE(object)


@cython.final
cdef class BlockingFlag:
    """`_asyncio_future_blocking` of futures that become a `kind` once others than a task read it.

    Two functions in C: in Python they took 0.15 us of each `apply`.
    """

    cdef object flag
    cdef object kind

    def __cinit__(self, flag, kind):
        self.flag = flag
        self.kind = kind

    def __get__(self, future, owner):
        if future is None:
            return self
        if Py_TYPE(self.flag).tp_descr_get(self.flag, future, owner):
            return True
        future.__class__ = self.kind
        return False

    def __set__(self, future, value):
        Py_TYPE(self.flag).tp_descr_set(self.flag, future, value)


@cython.final
cdef class ItemCoroutine:
    """Runs the coroutine of an item; the gate of a reusable task while that has no item."""

    def __cinit__(self, loop, inner=None):
        self.loop = loop
        self.inner = inner
        self.stage = WAITING if inner is None else RUNNING

    # -- for the starter ---------------------------------------------------------------------------

    cdef int adopt(self, yielded) except -1:
        """Make the task wait for what its item has yielded."""
        self.stage = ADOPTING
        self.value = yielded
        self.wake()
        return 0

    cdef int finish(self, value, error) except -1:
        """Make the task done (STARTER-3)."""
        self.stage = FINISHED
        self.value = value
        self.error = error
        self.wake()
        return 0

    cpdef wake(self):
        wakeup, self.wakeup = self.wakeup, None
        try:
            wakeup(self)
        except (KeyboardInterrupt, SystemExit):
            pass  # the task keeps the error, and also raises it (STARTER-5)

    # -- the gate, as a task sees it ---------------------------------------------------------------

    def get_loop(self):
        return self.loop

    def add_done_callback(self, wakeup, *, context):
        self.wakeup = wakeup
        if self.stage == ENDING:
            self.loop.call_soon(self.wake, context=context)

    def cancel(self, msg=None):
        self.cancelled = True
        return False  # then the task notes the request, as a running task does

    def result(self):
        """The gate has no result."""

    # -- what the coroutine awaits -----------------------------------------------------------------

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        """Step the item: `send(None)`."""
        if self.stage == RUNNING:
            return self.step()
        if self.stage == ADOPTING:
            return self.adopted()
        if self.stage == WAITING:
            return self.gate()
        self.end()

    def send(self, value, /):
        if self.stage == RUNNING and value is not None:
            return self.step_with(self.inner.send, value)
        return self.__next__()

    def throw(self, error, /, *more):
        """Step with an exception; before the item runs here, that is always a CancelledError."""
        if self.stage == RUNNING:
            return self.step_with(self.inner.throw, error)
        if self.stage == ADOPTING:
            self.cancel_message = error.args
            return self.adopted()
        if self.error is None:
            raise error
        self.end()

    def close(self):
        if self.inner is not None:
            self.inner.close()

    def __getattr__(self, name):
        """Attributes such as `cr_frame` and `__qualname__` are those of the item's coroutine."""
        return getattr(self.inner, name)

    cdef object step(self):
        cdef PyObject *result = NULL
        cdef PySendResult sent = PyIter_Send(<PyObject *>self.inner, <PyObject *>None, &result)
        if sent == PYGEN_NEXT:
            return amp_taken(result)
        if sent == PYGEN_RETURN:
            value = amp_taken(result)
            self.report(value)
            raise StopIteration(value)
        error = amp_taken(amp_take_error())
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return self.end_later(error)
        raise error

    cdef object step_with(self, step, what):
        try:
            return step(what)
        except StopIteration as stop:
            self.report(stop.value)
            raise
        except (KeyboardInterrupt, SystemExit) as stopper:
            return self.end_later(stopper)

    cdef int report(self, value) except -1:
        if self.on_value is not None:
            self.on_value(value)
        return 0

    cdef object end_later(self, error):
        """End the task from `wake`, one turn later (STARTER-5)."""
        self.stage = ENDING
        self.error = error
        return self.gate()

    cdef object gate(self):
        self._asyncio_future_blocking = True
        return self

    cdef object adopted(self):
        self.stage = RUNNING
        yielded, self.value = self.value, None
        return yielded

    cdef int end(self) except -1:
        value, self.value = self.value, None
        error, self.error = self.error, None
        if error is None:
            raise StopIteration(value)
        if isinstance(error, StopIteration):  # a coroutine cannot raise it either
            raise RuntimeError(f"item raised {error!r}")
        raise error
