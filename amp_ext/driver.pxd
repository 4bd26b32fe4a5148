"""What the coroutine of an item's task awaits, for starter.pyx."""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT

    PySendResult PyIter_Send(PyObject *, PyObject *, PyObject **)

cdef extern from "starter.h":
    PyObject *amp_take_error()
    object amp_taken(PyObject *)


cdef enum Stage:
    WAITING
    ADOPTING
    RUNNING
    FINISHED
    ENDING


@cython.final
cdef class ItemCoroutine:
    cdef public bint _asyncio_future_blocking
    cdef public bint marked    # anything was attached to the task (STARTER-1)
    cdef object __weakref__
    cdef Stage stage
    cdef bint cancelled        # the task was cancelled while it waited at the gate
    cdef tuple cancel_message  # of a cancellation in the first step, to be requested again
    cdef object loop
    cdef object wakeup
    cdef object value          # what the next step yields, or the value to end with
    cdef object error          # to end with instead, if it is not None
    cdef object on_value       # gets what the item returns, before anything else can run
    cdef public object inner   # the item's coroutine; in a forked copy, a `Halted` (copies.py)
    cdef readonly uint64_t number  # of the item, counted over all that this worker started

    cdef int adopt(self, yielded) except -1
    cdef int finish(self, value, error) except -1
    cpdef wake(self)
    cdef object step(self)
    cdef object step_with(self, step, what)
    cdef object end_later(self, error)
    cdef int report(self, value) except -1
    cdef object gate(self)
    cdef object adopted(self)
    cdef int end(self) except -1
