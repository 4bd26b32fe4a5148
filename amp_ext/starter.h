/* What starter.pyx and driver.pyx call in C: Python calls would cost too much for each item. */

#ifndef AMP_STARTER_H
#define AMP_STARTER_H

#include <Python.h>
#include <stdint.h>
#include <time.h>

/* How a function is called with an item: `Mode` of _wire/frames.py. */
enum { AMP_MAP = 0, AMP_STAR = 1, AMP_APPLY = 2 };

/* time.monotonic_ns() */
static inline int64_t amp_monotonic_ns(void)
{
    struct timespec now;
#ifdef __APPLE__
    clock_gettime(CLOCK_UPTIME_RAW, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The same in a quarter of the time, but up to one tick of the kernel behind (10 ms at most). The
   exact time where there is no coarse clock. */
static inline int64_t amp_monotonic_coarse_ns(void)
{
#ifdef CLOCK_MONOTONIC_COARSE
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#else
    return amp_monotonic_ns();
#endif
}

/* Clear the exception that is set, and return it: a new reference. */
static inline PyObject *amp_take_error(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != NULL) {
        PyException_SetTraceback(value, trace);
        Py_DECREF(trace);
    }
    Py_DECREF(type);
    return value;
#endif
}

/* weakref.getweakrefcount(); the object's type must support weak references. */
static inline Py_ssize_t amp_weakrefs(PyObject *object)
{
    char *list = (char *)object + Py_TYPE(object)->tp_weaklistoffset;
    Py_ssize_t count = 0;
    for (PyWeakReference *ref = *(PyWeakReference **)list; ref != NULL; ref = ref->wr_next) {
        count++;
    }
    return count;
}

/* Read an attribute of an object, or call its method without arguments, by the descriptor of its
   type: no lookup. A new reference. */
static inline PyObject *amp_peek(PyObject *descriptor, PyObject *object)
{
    if (Py_IS_TYPE(descriptor, &PyGetSetDescr_Type)) {
        PyGetSetDef *def = ((PyGetSetDescrObject *)descriptor)->d_getset;
        return def->get(object, def->closure);
    }
    if (Py_IS_TYPE(descriptor, &PyMethodDescr_Type)) {
        PyMethodDef *def = ((PyMethodDescrObject *)descriptor)->d_method;
        if (def->ml_flags == METH_NOARGS) {
            return def->ml_meth(object, NULL);
        }
    }
    return PyObject_CallOneArg(descriptor, object);
}

/* func(*args, **kwargs), kwargs may be NULL. */
static inline PyObject *amp_call_unpacked(PyObject *func, PyObject *args, PyObject *kwargs)
{
    if (PyTuple_CheckExact(args)) {
        return PyObject_Call(func, args, kwargs);
    }
    PyObject *tuple = PySequence_Tuple(args);
    if (tuple == NULL) {
        return NULL;
    }
    PyObject *result = PyObject_Call(func, tuple, kwargs);
    Py_DECREF(tuple);
    return result;
}

/* Whether an object that is no coroutine may be awaitable. */
static inline int amp_maybe_awaitable(PyObject *object)
{
    PyAsyncMethods *methods = Py_TYPE(object)->tp_as_async;
    return (methods != NULL && methods->am_await != NULL) || PyGen_CheckExact(object);
}

static inline PyObject *amp_call_plain(int mode, PyObject *func, PyObject *item)
{
    if (mode == AMP_MAP) {
        return PyObject_CallOneArg(func, item);
    }
    if (mode == AMP_STAR) {
        return amp_call_unpacked(func, item, NULL);
    }
    if (!PyTuple_CheckExact(item) || PyTuple_GET_SIZE(item) != 2 ||
        !PyDict_Check(PyTuple_GET_ITEM(item, 1))) {
        PyErr_Format(PyExc_TypeError, "an item of apply is (args, kwargs), not %R", item);
        return NULL;
    }
    return amp_call_unpacked(func, PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1));
}

/* Call a function with an item. Returns its value, or the coroutine to step: a new reference, or
   NULL with an exception set. as_coroutine(object) returns a coroutine for another awaitable, and
   any other object itself. */
static inline PyObject *amp_call(int mode, PyObject *func, PyObject *item, PyObject *as_coroutine)
{
    PyObject *called = amp_call_plain(mode, func, item);
    if (called == NULL || PyCoro_CheckExact(called) || !amp_maybe_awaitable(called)) {
        return called;
    }
    PyObject *result = PyObject_CallOneArg(as_coroutine, called);
    Py_DECREF(called);
    return result;
}

#endif
