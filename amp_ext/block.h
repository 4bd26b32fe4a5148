/* Functions that resize a bytes object while it is filled.
 *
 * `_PyBytes_Resize` frees an object that it cannot resize. An encoder that has no memory for one
 * value still needs the values before it, so a function of this file that fails leaves the object
 * unchanged. */

#ifndef AMP_BLOCK_H
#define AMP_BLOCK_H

#include <Python.h>
#include <stddef.h>
#include <string.h>

#define AMP_BYTES_HEAD ((Py_ssize_t)offsetof(PyBytesObject, ob_sval) + 1) /* and the closing zero */
#define AMP_BYTES_MOST (PY_SSIZE_T_MAX - AMP_BYTES_HEAD)

static inline int amp_try_resize(PyObject **bytes, Py_ssize_t size)
{
#ifdef Py_TRACE_REFS /* such a build keeps a list of all objects, so no object may move */
    PyObject *resized = PyBytes_FromStringAndSize(NULL, size);
    if (resized == NULL) {
        PyErr_Clear();
        return -1;
    }
    memcpy(PyBytes_AS_STRING(resized), PyBytes_AS_STRING(*bytes), Py_MIN(size, Py_SIZE(*bytes)));
    Py_DECREF(*bytes);
#else
    PyObject *resized = (PyObject *)PyObject_Realloc(*bytes, (size_t)(AMP_BYTES_HEAD + size));
    if (resized == NULL)
        return -1;
    Py_SET_SIZE((PyVarObject *)resized, size);
    PyBytes_AS_STRING(resized)[size] = 0;
#endif
    *bytes = resized;
    return 0;
}

/* Makes `*bytes`, to which only the caller has a reference, `size` bytes long. Returns 0; or -1
 * with a MemoryError set, and the object unchanged. */
static inline int amp_bytes_resize(PyObject **bytes, Py_ssize_t size)
{
    if (size < 0 || size > AMP_BYTES_MOST || amp_try_resize(bytes, size) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* A new bytearray of `size` bytes. `PyByteArray_FromStringAndSize` cannot make it: if that has no
 * memory for the bytes, it drops an uninitialized object, which prints a SystemError. */
static inline PyObject *amp_bytearray(Py_ssize_t size)
{
    PyObject *array = PyByteArray_FromStringAndSize(NULL, 0);
    if (array != NULL && PyByteArray_Resize(array, size) < 0)
        Py_CLEAR(array);
    return array;
}

/* Makes room for `more` bytes behind the first `used`: doubles the size if memory allows, else adds
 * what is needed. Returns the new size; or -1 with a MemoryError set, and the object unchanged. */
static __attribute__((noinline, unused)) Py_ssize_t amp_bytes_grow(
    PyObject **bytes, Py_ssize_t used, Py_ssize_t more)
{
    Py_ssize_t least, size = Py_SIZE(*bytes);
    if (more < 0 || more > AMP_BYTES_MOST - 64 - used) {
        PyErr_NoMemory();
        return -1;
    }
    least = used + more + 64;
    size = size > AMP_BYTES_MOST / 2 ? AMP_BYTES_MOST : 2 * size;
    if (size > least && amp_try_resize(bytes, size) == 0)
        return size;
    return amp_bytes_resize(bytes, least) < 0 ? -1 : least;
}

#endif /* AMP_BLOCK_H */
