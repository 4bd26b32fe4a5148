"""The C API as the codec needs it: functions that look at a value take a borrowed pointer.

Cython's own declarations take objects, and count a reference to each object that passes through a
variable; that takes longer than to look at a value. A function that makes a plain value returns a
new reference, which the decoder passes on. A function that makes a container returns an object, so
that Cython drops it if something fails later.
"""

from cpython.object cimport PyObject, PyTypeObject

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    PyObject *Py_None
    PyObject *Py_True
    PyObject *Py_False
    PyTypeObject *Py_TYPE(PyObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    void Py_XDECREF(PyObject *)
    void PyObject_GC_Track(PyObject *)
    void PyObject_GC_UnTrack(PyObject *)

    bint PyLong_CheckExact(PyObject *)
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *) except? -1
    PyObject *PyLong_FromLong(long) except NULL
    PyObject *PyLong_FromLongLong(long long) except NULL

    bint PyFloat_CheckExact(PyObject *)
    double PyFloat_AS_DOUBLE(PyObject *)
    PyObject *PyFloat_FromDouble(double) except NULL

    bint PyUnicode_CheckExact(PyObject *)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *)
    Py_ssize_t PyUnicode_GetLength(PyObject *) except -1
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *)
    PyObject *PyUnicode_New(Py_ssize_t, int) except NULL
    void *PyUnicode_DATA(PyObject *)
    PyObject *PyUnicode_DecodeUTF8(const char *, Py_ssize_t, const char *) except NULL

    bint PyBytes_CheckExact(PyObject *)
    char *PyBytes_AS_STRING(PyObject *)
    Py_ssize_t PyBytes_GET_SIZE(PyObject *)
    PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t) except NULL
    object PyBytes_New "PyBytes_FromStringAndSize"(const char *, Py_ssize_t)
    char *PyByteArray_AS_STRING(PyObject *)
    int PyByteArray_Resize(PyObject *, Py_ssize_t) except -1

    bint PyList_CheckExact(PyObject *)
    bint PyTuple_CheckExact(PyObject *)
    object PyList_New(Py_ssize_t)
    object PyTuple_New(Py_ssize_t)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject *)
    PyObject **PySequence_Fast_ITEMS(PyObject *)

    bint PyDict_CheckExact(PyObject *)
    Py_ssize_t PyDict_GET_SIZE(PyObject *)
    bint PyDict_Next(PyObject *, Py_ssize_t *, PyObject **, PyObject **)
    PyObject *PyDict_GetItemWithError(object, PyObject *) except? NULL
    int PyDict_SetItem(PyObject *, PyObject *, PyObject *)  # as PySet_Add, checked in decoder.pyx

    bint PyAnySet_CheckExact(PyObject *)
    bint PyFrozenSet_CheckExact(PyObject *)
    object PySet_New(PyObject *)
    object PyFrozenSet_New(PyObject *)
    Py_ssize_t PySet_GET_SIZE(PyObject *)
    int PySet_Add(PyObject *, PyObject *)
