# cython: language_level=3
"""What the coroutine of a spare task awaits: `aiomultiprocess._pure.driver`, compiled."""

cimport cython
from cpython.object cimport PyObject


@cython.final
cdef class ItemCoroutine:
    """Runs an item for the coroutine of a task; the gate of a spare while it has no item."""

    def __cinit__(self, loop, coro=None):
        self.loop = loop
        self.coro = coro
        self.stage = PARKED if coro is None else RUNNING

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
            pass  # the task has it, and raises it to stop the loop (STARTER-5)

    # -- the gate, as a task sees it ---------------------------------------------------------------

    def get_loop(self):
        return self.loop

    def add_done_callback(self, wakeup, *, context):
        self.wakeup = wakeup
        if self.stage == ENDING:
            self.loop.call_soon(self.wake, context=context)

    def cancel(self, msg=None):
        self.cancelled = True
        return False  # so the task notes the request, as one does that runs

    def result(self):
        """What the gate was waited for: nothing."""

    # -- what the coroutine awaits -----------------------------------------------------------------

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        """Step, as the task asks: this is send(None)."""
        if self.stage == RUNNING:
            return self.step()
        if self.stage == ADOPTING:
            return self.adopted()
        if self.stage == PARKED:
            return self.gate()
        self.end()

    def send(self, value, /):
        if self.stage == RUNNING and value is not None:
            return self.step_with(self.coro.send, value)
        return self.__next__()

    def throw(self, error, /, *more):
        """Step with an exception, which is a CancelledError until the item runs here."""
        if self.stage == RUNNING:
            return self.step_with(self.coro.throw, error)
        if self.stage == ADOPTING:
            self.cancel_message = error.args
            return self.adopted()
        if self.error is None:
            raise error
        self.end()

    def close(self):
        if self.coro is not None:
            self.coro.close()

    def __getattr__(self, name):
        """`cr_frame`, `__qualname__` and the like are those of the item's coroutine."""
        return getattr(self.coro, name)

    cdef object step(self):
        cdef PyObject *result = NULL
        cdef PySendResult sent = PyIter_Send(<PyObject *>self.coro, <PyObject *>None, &result)
        if sent == PYGEN_NEXT:
            return take(result)
        if sent == PYGEN_RETURN:
            value = take(result)
            self.tell(value)
            raise StopIteration(value)
        error = take(amp_take_error())
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return self.end_later(error)
        raise error

    cdef object step_with(self, step, what):
        try:
            return step(what)
        except StopIteration as stop:
            self.tell(stop.value)
            raise
        except (KeyboardInterrupt, SystemExit) as stopper:
            return self.end_later(stopper)

    cdef int tell(self, value) except -1:
        if self.on_value is not None:
            self.on_value(value)
        return 0

    cdef object end_later(self, error):
        """End the task in a step that is ours, a turn later (STARTER-5)."""
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
