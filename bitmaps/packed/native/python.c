/* A layer's product, called from Python: one function for the plain case, which is nearly every
 * call. For one token with a1, a kernel takes one to four microseconds; checking the inputs in
 * Python and calling through ctypes takes another two and a half.
 *
 * Any other case returns None. Then bitmaps/packed/operations.py converts the inputs, or says
 * what is wrong with them. PyTorch is used like any Python object, so nothing here depends on
 * its build. */
#if __has_include(<Python.h>) /* or else a layer does without */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

enum { MOST_DIMENSIONS = 8 };

extern int bitmaps_linears(const struct plan *plan, int threads, const float *x, int64_t m,
                           float *const *y);

static PyObject *tensor_type, *float32, *get_num_threads, *get_tracing_state;
/* Names of attributes. */
static PyObject *shape, *dtype, *is_cpu, *is_contiguous, *new_empty, *data_ptr;
/* Names of a layer's buffers: weight, high, low, bias, column. */
enum { BUFFERS = 5, BIAS = 3 };
static PyObject *buffers[BUFFERS];

/* 1 if the attribute is the wanted object, 0 if not, -1 for an error. */
static int attribute_is(PyObject *of, PyObject *name, const PyObject *wanted)
{
    PyObject *found = PyObject_GetAttr(of, name);
    Py_XDECREF(found); /* only compared: `wanted` is owned elsewhere */
    return found ? found == wanted : -1;
}

/* The same for the result of a method without arguments or, if there is no name, of a function. */
static int call_gives(PyObject *of, PyObject *name, const PyObject *wanted)
{
    PyObject *found = name ? PyObject_CallMethodNoArgs(of, name) : PyObject_CallNoArgs(of);
    Py_XDECREF(found);
    return found ? found == wanted : -1;
}

/* Whether the buffers of the layer and of its weight are still those that the plan points to; -1
 * for an error. */
static int are_same(PyObject *part, PyObject *of_weight, PyObject *of_layer)
{
    for (int i = 0; i < BUFFERS; i++) {
        PyObject *of = i == BIAS ? of_layer : of_weight;
        if (PyDict_GetItemWithError(of, buffers[i]) != PyTuple_GET_ITEM(part, i))
            return PyErr_Occurred() ? -1 : 0;
    }
    return 1;
}

/* The address of a tensor's numbers. Returns 0 for an error. */
static int numbers(PyObject *tensor, float **to)
{
    PyObject *address = PyObject_CallMethodNoArgs(tensor, data_ptr);
    *to = address ? PyLong_AsVoidPtr(address) : NULL; /* also NULL if the tensor has no numbers */
    Py_XDECREF(address);
    return !PyErr_Occurred();
}

/* Returns 0 for an error. */
static int number_of_threads(int *to)
{
    PyObject *number = PyObject_CallNoArgs(get_num_threads);
    *to = number ? (int)PyLong_AsLong(number) : 0;
    Py_XDECREF(number);
    return !PyErr_Occurred();
}

/* y = x w^T + bias, where `sizes` is the shape of x. */
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
    if (PyErr_Occurred())
        return NULL;
    PyObject *y = PyObject_VectorcallMethod(new_empty, arguments, outer + 2, NULL);
    if (!y)
        return NULL;
    int threads, failed = 1;
    float *from, *to;
    if (number_of_threads(&threads) && numbers(x, &from) && numbers(y, &to)) {
        if (m && !(from && to)) { /* torch.func or a fake mode: operations.py raises the error */
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

/* 1 if a call is plain, 0 if not, -1 for an error. It is if x is a contiguous fp32 tensor on the
 * CPU, of no derived class, if the buffers are those of `part`, and if torch.jit.trace is not
 * recording. */
static int is_plain(PyObject *x, PyObject *part, PyObject *of_weight, PyObject *of_layer)
{
    int plain = (PyObject *)Py_TYPE(x) == tensor_type ? are_same(part, of_weight, of_layer) : 0;
    plain = plain == 1 ? attribute_is(x, dtype, float32) : plain;
    plain = plain == 1 ? attribute_is(x, is_cpu, Py_True) : plain;
    plain = plain == 1 ? call_gives(x, is_contiguous, Py_True) : plain;
    return plain == 1 ? call_gives(get_tracing_state, NULL, Py_None) : plain;
}

/* What `linear` returns, bound to its arguments. Takes x (..., k), the buffers of the weight and
 * those of the layer. Returns y, or None if the call is not plain. */
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
    const int plain = is_plain(x, part, arguments[1], arguments[2]);
    if (plain < 0)
        return NULL;
    PyObject *sizes = plain ? PyObject_GetAttr(x, shape) : Py_NewRef(Py_None);
    if (!sizes)
        return NULL;
    const Py_ssize_t dimensions = PyTuple_Check(sizes) ? PyTuple_GET_SIZE(sizes) : 0;
    if (dimensions > 0 && dimensions <= MOST_DIMENSIONS
        && PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, dimensions - 1)) == k)
        y = product(plan, x, sizes, n);
    else if (!PyErr_Occurred())
        y = Py_NewRef(Py_None);
    Py_DECREF(sizes);
    return y;
}

static PyMethodDef product_of_linear = {
    .ml_name = "product",
    .ml_meth = (PyCFunction)(void (*)(void))call,
    .ml_flags = METH_FASTCALL,
};

/* linear(part, plan, k, n, owners): `part` has the five tensors (or None) of the layer; `plan`
 * is an address that is valid as long as `owners` live. */
static PyObject *linear(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *part, *plan, *k, *n, *owners;
    if (!PyArg_ParseTuple(arguments, "O!O!O!O!O", &PyTuple_Type, &part, &PyLong_Type, &plan,
                          &PyLong_Type, &k, &PyLong_Type, &n, &owners))
        return NULL;
    if (PyTuple_GET_SIZE(part) != BUFFERS || !PyLong_AsVoidPtr(plan) || PyLong_AsLongLong(k) < 1) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError,
                            "linear takes five tensors, the address of a plan, k and n");
        return NULL;
    }
    return PyCFunction_New(&product_of_linear, arguments);
}

/* Look up the names, and what is used of PyTorch. */
static int prepare(PyObject *Py_UNUSED(module))
{
    static const char *const names[BUFFERS] = {"data", "high", "low", "bias", "column"};
    for (int i = 0; i < BUFFERS; i++)
        if (!(buffers[i] = PyUnicode_InternFromString(names[i])))
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
static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernels",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
#endif
