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

/* The object of an owned reference, which passes to the variable that receives it. */
static inline PyObject *amp_taken(PyObject *reference)
{
    return reference;
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

/* What a task and its context are like at the start of a burst. References are borrowed: to take
   and to drop them was a tenth of the time of an item that returns at once, after each of which the
   check runs. */
typedef struct {
    PyObject *task, *context, *coro;
    PyObject *attributes; /* the task's __dict__ */
    Py_ssize_t attribute_count, variable_count;
    Py_ssize_t task_references, context_references, coro_references, weak_references;
} amp_task_state;

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

static inline void amp_remember(amp_task_state *state)
{
    state->task_references = Py_REFCNT(state->task);
    state->context_references = Py_REFCNT(state->context);
    state->coro_references = Py_REFCNT(state->coro);
    state->weak_references = amp_weakrefs(state->task);
}

/* Whether nothing was added to the task (STARTER-1) or to its context (STARTER-2), and no code kept
   one of them. */
static inline int amp_is_untouched(const amp_task_state *state)
{
    PyObject *context = state->context;
    return Py_REFCNT(state->task) == state->task_references &&
           Py_REFCNT(context) == state->context_references &&
           Py_REFCNT(state->coro) == state->coro_references &&
           amp_weakrefs(state->task) == state->weak_references &&
           PyDict_GET_SIZE(state->attributes) == state->attribute_count &&
           Py_TYPE(context)->tp_as_mapping->mp_length(context) == state->variable_count;
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
