"""The C API as the codec needs it: what looks at a value takes a borrowed pointer.

Cython's own declarations take objects and count a reference to each that passes through a variable;
the encoder looks at a value for less time than that takes. What makes a value, for the decoder,
returns an object, so that Cython drops it where something fails.
"""

from cpython.object cimport PyObject, PyTypeObject

cdef extern from "Python.h":
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
    object PyLong_FromLong(long)
    object PyLong_FromLongLong(long long)

    bint PyFloat_CheckExact(PyObject *)
    double PyFloat_AS_DOUBLE(PyObject *)
    object PyFloat_FromDouble(double)

    bint PyUnicode_CheckExact(PyObject *)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject *)
    Py_ssize_t PyUnicode_GetLength(PyObject *) except -1
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *)
    object PyUnicode_New(Py_ssize_t, int)
    void *PyUnicode_DATA(PyObject *)
    object PyUnicode_DecodeUTF8(const char *, Py_ssize_t, const char *)

    bint PyBytes_CheckExact(PyObject *)
    char *PyBytes_AS_STRING(PyObject *)
    Py_ssize_t PyBytes_GET_SIZE(PyObject *)
    PyObject *PyBytes_FromStringAndSize(const char *, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    object PyBytes_New "PyBytes_FromStringAndSize"(const char *, Py_ssize_t)
    object PyByteArray_FromStringAndSize(const char *, Py_ssize_t)
    PyObject *PyByteArray_New "PyByteArray_FromStringAndSize"(const char *, Py_ssize_t) except NULL
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
    int PyDict_SetItem(object, object, object) except -1

    bint PyAnySet_CheckExact(PyObject *)
    bint PyFrozenSet_CheckExact(PyObject *)
    object PySet_New(PyObject *)
    object PyFrozenSet_New(PyObject *)
    Py_ssize_t PySet_GET_SIZE(PyObject *)
    int PySet_Add(object, object) except -1
