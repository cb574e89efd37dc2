/* Sums over many small tensors that lie end to end, in one pass: the compiled twin of core.sums. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* One copy per instruction set, chosen when the module is loaded. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FAST
#endif

enum { LANES = 16 };

typedef struct {
    double low, high, total, squares, zeros;
} Sums;

static inline float from_float32(const void *data, Py_ssize_t i) {
    return ((const float *)data)[i];
}

static inline float from_bfloat16(const void *data, Py_ssize_t i) {
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline double from_float64(const void *data, Py_ssize_t i) {
    return ((const double *)data)[i];
}

/* Every lane adds up in float64; comparisons with NaN are false, and its square tells of it. */
#define DEFINE_SUMS(NAME, TYPE, LOAD)                                                              \
    FAST static void NAME(const void *data, Py_ssize_t first, Py_ssize_t last, Sums *out) {        \
        TYPE low[LANES], high[LANES];                                                              \
        double total[LANES] = {0}, squares[LANES] = {0};                                           \
        int32_t zeros[LANES] = {0};                                                                \
        Py_ssize_t i = first;                                                                      \
        for (int lane = 0; lane < LANES; lane++) {                                                 \
            low[lane] = INFINITY;                                                                  \
            high[lane] = -INFINITY;                                                                \
        }                                                                                          \
        for (; i + LANES <= last; i += LANES)                                                      \
            for (int lane = 0; lane < LANES; lane++) {                                             \
                TYPE value = LOAD(data, i + lane);                                                 \
                low[lane] = value < low[lane] ? value : low[lane];                                 \
                high[lane] = value > high[lane] ? value : high[lane];                              \
                total[lane] += (double)value;                                                      \
                squares[lane] += (double)value * (double)value;                                    \
                zeros[lane] += value == 0;                                                         \
            }                                                                                      \
        for (; i < last; i++) {                                                                    \
            TYPE value = LOAD(data, i);                                                            \
            low[0] = value < low[0] ? value : low[0];                                              \
            high[0] = value > high[0] ? value : high[0];                                           \
            total[0] += (double)value;                                                             \
            squares[0] += (double)value * (double)value;                                           \
            zeros[0] += value == 0;                                                                \
        }                                                                                          \
        *out = (Sums){INFINITY, -INFINITY, 0, 0, 0};                                               \
        for (int lane = 0; lane < LANES; lane++) {                                                 \
            out->low = low[lane] < out->low ? low[lane] : out->low;                                \
            out->high = high[lane] > out->high ? high[lane] : out->high;                           \
            out->total += total[lane];                                                             \
            out->squares += squares[lane];                                                         \
            out->zeros += zeros[lane];                                                             \
        }                                                                                          \
    }

DEFINE_SUMS(sums_float32, float, from_float32)
DEFINE_SUMS(sums_bfloat16, float, from_bfloat16)
DEFINE_SUMS(sums_float64, double, from_float64)

typedef void (*Kernel)(const void *, Py_ssize_t, Py_ssize_t, Sums *);

static Kernel kernel_of(const char *dtype) {
    if (strcmp(dtype, "float32") == 0)
        return sums_float32;
    if (strcmp(dtype, "bfloat16") == 0)
        return sums_bfloat16;
    return strcmp(dtype, "float64") == 0 ? sums_float64 : NULL;
}

/* sums(dtype, address, count, starts, out): starts are int64, out has five float64 a segment. */
static PyObject *sums(PyObject *module, PyObject *args) {
    const char *dtype;
    Py_ssize_t address, count;
    Py_buffer starts, out;
    if (!PyArg_ParseTuple(args, "snny*w*", &dtype, &address, &count, &starts, &out))
        return NULL;
    Kernel kernel = kernel_of(dtype);
    Py_ssize_t segments = starts.len / (Py_ssize_t)sizeof(int64_t);
    int fits = kernel && out.len == segments * (Py_ssize_t)sizeof(Sums);
    const int64_t *begin = starts.buf;
    for (Py_ssize_t i = 0; fits && i < segments; i++)
        fits = begin[i] >= 0 && begin[i] <= (i + 1 < segments ? begin[i + 1] : count);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < segments; i++)
            kernel((const void *)address, begin[i], i + 1 < segments ? begin[i + 1] : count,
                   (Sums *)out.buf + i);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "sums() of that type, or segments that do not fit");
    }
    PyBuffer_Release(&starts);
    PyBuffer_Release(&out);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"sums", sums, METH_VARARGS, "Least, greatest, sum, sum of squares and zeros of segments."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_sums", "Sums over segments, compiled.", -1, functions,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__sums(void) { return PyModule_Create(&definition); }
