"""What the coroutine of a spare task awaits, for starter.pyx."""

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport uint64_t

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT

    PySendResult PyIter_Send(PyObject *, PyObject *, PyObject **)

cdef extern from "starter.h":
    PyObject *amp_take_error()


cdef inline object take(PyObject *reference):
    """An object of a reference that was ours and is so no more."""
    value = <object>reference
    Py_XDECREF(reference)
    return value


cdef enum Stage:
    PARKED
    ADOPTING
    RUNNING
    FINISHED
    ENDING


@cython.final
cdef class ItemCoroutine:
    cdef public bint _asyncio_future_blocking
    cdef object __weakref__
    cdef Stage stage
    cdef bint cancelled        # the task was cancelled, and the gate could not be
    cdef tuple cancel_message  # arguments of the cancellation that an adopted item has to get
    cdef object loop
    cdef object wakeup
    cdef object value          # what the task is told next: a yielded object, or the outcome,
    cdef object error          # which is this, if it is not None
    cdef object on_value       # called with what the item returns, before anything else can run
    cdef public object coro    # writable: a copy of the worker halts it (copies.py)
    cdef readonly uint64_t number  # of the item among all that the worker has started

    cdef int adopt(self, yielded) except -1
    cdef int finish(self, value, error) except -1
    cpdef wake(self)
    cdef object step(self)
    cdef object step_with(self, step, what)
    cdef object end_later(self, error)
    cdef int tell(self, value) except -1
    cdef object gate(self)
    cdef object adopted(self)
    cdef int end(self) except -1
