/* A layer's product, called from Python: the plain case, which is nearly every call, in one function. For one token a kernel takes
 * one to four microseconds with a1, and looking at the inputs in Python and calling through ctypes two and a half. What is not plain gives None:
 * then bitmaps/packed/operations.py looks at it, converts it, or says what is wrong. PyTorch is used as any Python object is, so
 * that nothing here depends on how it was built.
 */
#if __has_include(<Python.h>) /* or else a layer does without */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

enum { MOST_DIMENSIONS = 8 };

extern int bitmaps_linears(const struct plan *plan, int threads, const float *x, int64_t m, float *const *y);

static PyObject *tensor_type, *float32, *get_num_threads, *get_tracing_state;
static PyObject *shape, *dtype, *is_cpu, *is_contiguous, *new_empty, *data_ptr; /* names of attributes */
static PyObject *of_part[5];                                                     /* and of buffers: weight, high, low, bias, column */

/* 1 if the attribute is this object, 0 if not, -1 for an error. */
static int attribute_is(PyObject *of, PyObject *name, const PyObject *wanted)
{
    PyObject *found = PyObject_GetAttr(of, name);
    Py_XDECREF(found); /* what is compared with lives elsewhere too */
    return found ? found == wanted : -1;
}

/* The same for what a call without arguments gives: of a method, or with no name of a function. */
static int call_gives(PyObject *of, PyObject *name, const PyObject *wanted)
{
    PyObject *found = name ? PyObject_CallMethodNoArgs(of, name) : PyObject_CallNoArgs(of);
    Py_XDECREF(found);
    return found ? found == wanted : -1;
}

/* Whether the buffers of the layer, and those of its weight, are still those that the plan points to; -1 for an error. */
static int are_same(PyObject *part, PyObject *of_weight, PyObject *of_layer)
{
    for (int i = 0; i < 5; i++)
        if (PyDict_GetItemWithError(i == 3 ? of_layer : of_weight, of_part[i]) != PyTuple_GET_ITEM(part, i))
            return PyErr_Occurred() ? -1 : 0;
    return 1;
}

/* 0 for an error, as is what follows. */
static int numbers(PyObject *tensor, float **to)
{
    PyObject *address = PyObject_CallMethodNoArgs(tensor, data_ptr);
    *to = address ? PyLong_AsVoidPtr(address) : NULL; /* NULL for a tensor without numbers too */
    Py_XDECREF(address);
    return !PyErr_Occurred();
}

static int number_of_threads(int *to)
{
    PyObject *number = PyObject_CallNoArgs(get_num_threads);
    *to = number ? (int)PyLong_AsLong(number) : 0;
    Py_XDECREF(number);
    return !PyErr_Occurred();
}

/* y = x w^T + bias, with `sizes` the shape of x. */
static PyObject *product(const struct plan *plan, PyObject *x, PyObject *sizes, PyObject *n)
{
    PyObject *arguments[MOST_DIMENSIONS + 1] = {x};
    const Py_ssize_t outer = PyTuple_GET_SIZE(sizes) - 1;
    int64_t m = 1;
    for (Py_ssize_t i = 0; i < outer; i++) {
        arguments[i + 1] = PyTuple_GET_ITEM(sizes, i);
        m *= PyLong_AsLongLong(arguments[i + 1]);
    }
    arguments[outer + 1] = n;
    PyObject *y = PyErr_Occurred() ? NULL : PyObject_VectorcallMethod(new_empty, arguments, outer + 2, NULL);
    if (!y)
        return NULL;
    int threads, failed = 1;
    float *from, *to;
    if (number_of_threads(&threads) && numbers(x, &from) && numbers(y, &to)) {
        if (m && !(from && to)) { /* torch.func looks, or a fake mode: operations.py tells */
            Py_DECREF(y);
            Py_RETURN_NONE;
        }
        Py_BEGIN_ALLOW_THREADS
        failed = bitmaps_linears(plan, threads, from, m, &to);
        Py_END_ALLOW_THREADS
        if (failed)
            PyErr_SetString(PyExc_MemoryError, "the kernels could not get memory");
    }
    if (failed)
        Py_CLEAR(y);
    return y;
}

/* What `linear` gives, bound to its arguments: called with x, the buffers of the weight and those of the layer it gives y, or None where
 * that is not plain: x a contiguous fp32 tensor (..., k) on the CPU, and of no derived class, the buffers those of `part`, and
 * torch.jit.trace not looking. */
static PyObject *call(PyObject *bound, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyDict_Check(arguments[1]) || !PyDict_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "a product takes x and two dictionaries of buffers");
        return NULL;
    }
    PyObject *const part = PyTuple_GET_ITEM(bound, 0), *const n = PyTuple_GET_ITEM(bound, 3);
    const struct plan *plan = PyLong_AsVoidPtr(PyTuple_GET_ITEM(bound, 1));
    const long long k = PyLong_AsLongLong(PyTuple_GET_ITEM(bound, 2));
    PyObject *x = arguments[0], *y = NULL;
    int plain = (PyObject *)Py_TYPE(x) == tensor_type ? are_same(part, arguments[1], arguments[2]) : 0;
    plain = plain == 1 ? attribute_is(x, dtype, float32) : plain;
    plain = plain == 1 ? attribute_is(x, is_cpu, Py_True) : plain;
    plain = plain == 1 ? call_gives(x, is_contiguous, Py_True) : plain;
    plain = plain == 1 ? call_gives(get_tracing_state, NULL, Py_None) : plain;
    if (plain < 0)
        return NULL;
    PyObject *sizes = plain ? PyObject_GetAttr(x, shape) : Py_NewRef(Py_None);
    if (!sizes)
        return NULL;
    const Py_ssize_t dimensions = PyTuple_Check(sizes) ? PyTuple_GET_SIZE(sizes) : 0;
    if (dimensions > 0 && dimensions <= MOST_DIMENSIONS && PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, dimensions - 1)) == k)
        y = product(plan, x, sizes, n);
    else if (!PyErr_Occurred())
        y = Py_NewRef(Py_None);
    Py_DECREF(sizes);
    return y;
}

static PyMethodDef product_of_linear = {"product", (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL};

/* linear(part, plan, k, n, owners): part the five tensors (or None) of the layer, plan an address that lasts as long as its owners. */
static PyObject *linear(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *part, *plan, *k, *n, *owners;
    if (!PyArg_ParseTuple(arguments, "O!O!O!O!O", &PyTuple_Type, &part, &PyLong_Type, &plan, &PyLong_Type, &k, &PyLong_Type, &n, &owners))
        return NULL;
    if (PyTuple_GET_SIZE(part) != 5 || !PyLong_AsVoidPtr(plan) || PyLong_AsLongLong(k) < 1) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "linear takes five tensors, the address of a plan, k and n");
        return NULL;
    }
    return PyCFunction_New(&product_of_linear, arguments);
}

/* The names, and what is asked of PyTorch. */
static int prepare(PyObject *Py_UNUSED(module))
{
    static const char *const parts[] = {"data", "high", "low", "bias", "column"};
    for (int i = 0; i < 5; i++)
        if (!(of_part[i] = PyUnicode_InternFromString(parts[i])))
            return -1;
    shape = PyUnicode_InternFromString("shape");
    dtype = PyUnicode_InternFromString("dtype");
    is_cpu = PyUnicode_InternFromString("is_cpu");
    is_contiguous = PyUnicode_InternFromString("is_contiguous");
    new_empty = PyUnicode_InternFromString("new_empty");
    data_ptr = PyUnicode_InternFromString("data_ptr");
    PyObject *torch = PyImport_ImportModule("torch"), *inner = PyImport_ImportModule("torch._C");
    if (torch && inner) {
        tensor_type = PyObject_GetAttrString(torch, "Tensor");
        float32 = PyObject_GetAttrString(torch, "float32");
        get_num_threads = PyObject_GetAttrString(torch, "get_num_threads");
        get_tracing_state = PyObject_GetAttrString(inner, "_get_tracing_state");
    }
    Py_XDECREF(torch);
    Py_XDECREF(inner);
    return PyErr_Occurred() ? -1 : 0;
}

static PyMethodDef functions[] = {{"linear", linear, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static PyModuleDef_Slot slots[] = {{Py_mod_exec, prepare}, {0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
#endif
