/* The sums of compare/plain.py in one pass, for float32, bfloat16 and float16.
 *
 * Values are loaded a chunk at a time as float, which holds all three types exactly, and added up
 * as double. Optional: without a compiler the package adds up in NumPy.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

/* One copy per instruction set, chosen when the library is loaded; needs glibc's ifunc. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && \
    (__GNUC__ >= 12 || __clang_major__ >= 16)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CHUNK = 256, BINS = 256, LANES = 4, ULP_LIMIT = 0x7fffffff };
enum { F32, BF16, F16 }; /* kernels.py has the same numbers */

/* Tensors in a file may lie at any address. */
typedef uint16_t __attribute__((aligned(1), may_alias)) loose16;
typedef uint32_t __attribute__((aligned(1), may_alias)) loose32;

/* The fields of sums.TOTALS, in that order. */
typedef struct {
    double sum_d, abs_d, sq_d, sq_g, sq_c, dot, max_d, max_g, sum_rel, max_rel, low_sq_d, low_sq_g;
    int64_t compared, outside, mismatches, low_overflows;
    int64_t nonfinite[2][3]; /* golden, candidate: NaN, +inf, -inf */
    int64_t worst[3], first[3]; /* segment, position, channel */
    double worst_values[2], first_values[2];
    double ulp_max;
} Totals;

/* [positions, outer, inner] at a base address; strides in bytes. */
typedef struct {
    const char *base;
    int type;
    Py_ssize_t position, outer, inner;
} Side;

typedef struct {
    Side golden, candidate;
    Py_ssize_t positions, outer, inner;
    int narrow;
    double denominator, rtol, atol;
    int64_t segment;
    Totals *totals;
    int64_t *histogram;
    double *token_d, *token_g, *channel_d, *channel_g; /* NULL where not told apart */
} Job;

typedef struct {
    float g[CHUNK], c[CHUNK];
    float low_g[CHUNK], low_c[CHUNK];
    uint32_t distance[CHUNK];
    int32_t bin[CHUNK];
} Scratch;

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* Multiplying moves the exponent and makes subnormal numbers normal; NaN and inf lie apart. */
INLINE float from_half(uint32_t h) {
    uint32_t size = (h & 0x7fff) << 13;
    uint32_t finite = bits_of(float_of(size) * 0x1p112f);
    uint32_t magnitude = size >= 0x0f800000 ? size | 0x7f800000 : finite;
    return float_of(magnitude | (h & 0x8000) << 16);
}

/* Round to nearest, ties to even; the result may be infinite. */
INLINE uint32_t to_half(float x) {
    uint32_t u = bits_of(x), size = u & 0x7fffffff;
    uint32_t small = bits_of(float_of(size) + 0.5f) - 0x3f000000;
    uint32_t normal = (size + 0xc8000fff + (size >> 13 & 1)) >> 13;
    uint32_t h = size >= 0x477ff000 ? 0x7c00 : size < 0x38800000 ? small : normal;
    return h | (u >> 16 & 0x8000);
}

INLINE uint32_t to_bfloat(float x) {
    uint32_t u = bits_of(x);
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

/* Neighbours differ by 1, and both zeros are 0. */
INLINE int32_t ordinal(float x, int narrow, int inexact) {
    uint32_t u = narrow == F16               ? to_half(x)
                 : narrow == BF16 && inexact ? to_bfloat(x)
                 : narrow == BF16            ? bits_of(x) >> 16
                                             : bits_of(x);
    const int width = narrow == F32 ? 31 : 15;
    uint32_t negative = -(u >> width & 1); /* arithmetic, since compilers do not vectorise jumps */
    return (int32_t)(((u & ((1u << width) - 1)) ^ negative) - negative);
}

INLINE float rounded(float x, int narrow) {
    return narrow == BF16 ? float_of(to_bfloat(x) << 16) : from_half(to_half(x));
}

INLINE void load_run(const char *from, Py_ssize_t step, Py_ssize_t n, int type, float *to) {
    if (type == F32 && step == 4) {
        memcpy(to, from, 4 * n);
    } else if (type == BF16 && step == 2) {
        const loose16 *h = (const loose16 *)from;
#pragma omp simd
        for (Py_ssize_t i = 0; i < n; i++) to[i] = float_of((uint32_t)h[i] << 16);
    } else if (type == F16 && step == 2) {
        const loose16 *h = (const loose16 *)from;
#pragma omp simd
        for (Py_ssize_t i = 0; i < n; i++) to[i] = from_half(h[i]);
    } else {
        for (Py_ssize_t i = 0; i < n; i++, from += step) {
            if (type == F32) to[i] = float_of(*(const loose32 *)from);
            else if (type == BF16) to[i] = float_of((uint32_t)*(const loose16 *)from << 16);
            else to[i] = from_half(*(const loose16 *)from);
        }
    }
}

/* Load `n` channels from `channel` on of one position. */
INLINE void load(const Side *side, Py_ssize_t inner, Py_ssize_t position, Py_ssize_t channel,
                 Py_ssize_t n, float *to) {
    const char *base = side->base + position * side->position;
    while (n > 0) {
        Py_ssize_t a = channel / inner, b = channel % inner;
        Py_ssize_t run = inner - b < n ? inner - b : n;
        const char *from = base + a * side->outer + b * side->inner;
        load_run(from, side->inner, run, side->type, to);
        to += run, channel += run, n -= run;
    }
}

/* The largest size as bits, which order as the numbers do; NaN comes after inf. */
INLINE uint32_t largest(const float *x, Py_ssize_t n) {
    uint32_t most = 0;
#pragma omp simd reduction(max : most)
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t size = bits_of(x[i]) & 0x7fffffff;
        most = size > most ? size : most;
    }
    return most;
}

INLINE int all_finite(const float *x, Py_ssize_t n) { return largest(x, n) < 0x7f800000; }

/* 0 finite, 1 NaN, 2 +inf, 3 -inf */
INLINE int kind(float x) {
    uint32_t u = bits_of(x), size = u & 0x7fffffff;
    return size < 0x7f800000 ? 0 : size > 0x7f800000 ? 1 : u == size ? 2 : 3;
}

INLINE void note(int64_t *place, double *values, const Job *job, const Scratch *s, int64_t p,
                 int64_t channel, Py_ssize_t i) {
    place[0] = job->segment, place[1] = p, place[2] = channel + i;
    values[0] = s->g[i], values[1] = s->c[i];
}

/* Count what is not finite and make both sides 0 there; return the number of such places. */
static Py_ssize_t mask(const Job *job, Scratch *s, Py_ssize_t n, int64_t p, int64_t channel) {
    Totals *t = job->totals;
    Py_ssize_t left_out = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int g = kind(s->g[i]), c = kind(s->c[i]);
        if (!g && !c) continue;
        left_out++;
        if (g) t->nonfinite[0][g - 1]++;
        if (c) t->nonfinite[1][c - 1]++;
        if (g != c) {
            t->mismatches++;
            if (t->first[0] < 0) note(t->first, t->first_values, job, s, p, channel, i);
        }
        s->g[i] = s->c[i] = 0;
    }
    return left_out;
}

INLINE void distances(const Job *job, Scratch *s, Py_ssize_t n, int narrow, int mixed,
                      int64_t (*histogram)[BINS]) {
    uint32_t most = 0;
#pragma omp simd
    for (Py_ssize_t i = 0; i < n; i++) {
        int32_t g = ordinal(s->g[i], narrow, mixed), c = ordinal(s->c[i], narrow, mixed);
        int32_t high = g > c ? g : c, low = g > c ? c : g;
        s->distance[i] = (uint32_t)high - (uint32_t)low;
    }
#pragma omp simd reduction(max : most)
    for (Py_ssize_t i = 0; i < n; i++) most = s->distance[i] > most ? s->distance[i] : most;
#pragma omp simd
    for (Py_ssize_t i = 0; i < n; i++) {
        uint32_t distance = s->distance[i] > ULP_LIMIT ? ULP_LIMIT : s->distance[i];
        int32_t bin = (int32_t)(bits_of((float)(int32_t)distance) >> 20) - (127 * 8 - 1);
        s->bin[i] = bin > 0 ? bin : 0;
    }
    if (most > job->totals->ulp_max) job->totals->ulp_max = most;
    if (!most) {
        histogram[0][0] += n;
        return;
    }
    /* Several histograms, so that equal distances in a row need not wait for each other. */
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) histogram[lane][s->bin[i + lane]]++;
    for (; i < n; i++) histogram[0][s->bin[i]]++;
}

INLINE void add_rounded(const Job *job, Scratch *s, Py_ssize_t n, int narrow) {
#pragma omp simd
    for (Py_ssize_t i = 0; i < n; i++) {
        s->low_g[i] = rounded(s->g[i], narrow);
        s->low_c[i] = rounded(s->c[i], narrow);
    }
    if (!all_finite(s->low_g, n) || !all_finite(s->low_c, n))
        for (Py_ssize_t i = 0; i < n; i++)
            if (kind(s->low_g[i]) || kind(s->low_c[i])) {
                job->totals->low_overflows++;
                s->low_g[i] = s->low_c[i] = 0;
            }
    double sq_d = 0, sq_g = 0;
#pragma omp simd reduction(+ : sq_d, sq_g)
    for (Py_ssize_t i = 0; i < n; i++) {
        double g = s->low_g[i], d = (double)s->low_c[i] - g;
        sq_d += d * d;
        sq_g += g * g;
    }
    job->totals->low_sq_d += sq_d;
    job->totals->low_sq_g += sq_g;
}

/* Add a chunk's sums to the totals, its squares to those of its token and channels. */
INLINE void add_sums(const Job *job, const Scratch *s, Py_ssize_t n, int64_t p, int64_t channel,
                     int by_channel, double *token_d, double *token_g) {
    const double least = job->denominator, rtol = job->rtol, atol = job->atol;
    double *to_d = by_channel ? job->channel_d + channel : NULL;
    double *to_g = by_channel ? job->channel_g + channel : NULL;
    double sum_d = 0, abs_d = 0, sq_d = 0, sq_g = 0, sq_c = 0, dot = 0;
    double max_d = 0, sum_rel = 0, max_rel = 0, outside = 0;
#pragma omp simd reduction(+ : sum_d, abs_d, sq_d, sq_g, sq_c, dot, sum_rel, outside) \
    reduction(max : max_d, max_rel)
    for (Py_ssize_t i = 0; i < n; i++) {
        double g = s->g[i], c = s->c[i], d = c - g, size = fabs(d), of = fabs(g);
        sum_d += d;
        abs_d += size;
        sq_d += d * d;
        sq_g += g * g;
        sq_c += c * c;
        dot += g * c;
        max_d = size > max_d ? size : max_d;
        double relative = size / (of > least ? of : least);
        sum_rel += relative;
        max_rel = relative > max_rel ? relative : max_rel;
        outside += size > atol + rtol * of ? 1.0 : 0.0;
        if (by_channel) {
            to_d[i] += d * d;
            to_g[i] += g * g;
        }
    }
    Totals *t = job->totals;
    if (max_d > t->max_d) {
        Py_ssize_t i = 0;
        while (fabs((double)s->c[i] - (double)s->g[i]) != max_d) i++;
        t->max_d = max_d;
        note(t->worst, t->worst_values, job, s, p, channel, i);
    }
    t->sum_d += sum_d, t->abs_d += abs_d, t->sq_c += sq_c, t->dot += dot, t->sum_rel += sum_rel;
    const double max_g = float_of(largest(s->g, n));
    t->max_g = max_g > t->max_g ? max_g : t->max_g;
    t->max_rel = max_rel > t->max_rel ? max_rel : t->max_rel;
    t->outside += (int64_t)outside;
    *token_d += sq_d;
    *token_g += sq_g;
}

CLONED static void run(const Job *job) {
    int64_t histogram[LANES][BINS];
    Scratch s;
    memset(histogram, 0, sizeof histogram);
    Totals *t = job->totals;
    const Py_ssize_t width = job->outer * job->inner;
    const int mixed = job->golden.type != job->candidate.type;
    for (Py_ssize_t p = 0; p < job->positions; p++) {
        double token_d = 0, token_g = 0;
        for (Py_ssize_t channel = 0; channel < width; channel += CHUNK) {
            const Py_ssize_t n = width - channel < CHUNK ? width - channel : CHUNK;
            load(&job->golden, job->inner, p, channel, n, s.g);
            load(&job->candidate, job->inner, p, channel, n, s.c);
            Py_ssize_t left_out = 0;
            if (!all_finite(s.g, n) || !all_finite(s.c, n))
                left_out = mask(job, &s, n, p, channel);
            t->compared += n - left_out;
            histogram[0][0] -= left_out; /* they come to lie there */
            if (job->narrow == F32) distances(job, &s, n, F32, 0, histogram);
            else if (job->narrow == F16) distances(job, &s, n, F16, 1, histogram);
            else if (mixed) distances(job, &s, n, BF16, 1, histogram);
            else distances(job, &s, n, BF16, 0, histogram);
            if (mixed && job->narrow == BF16) add_rounded(job, &s, n, BF16);
            else if (mixed) add_rounded(job, &s, n, F16);
            if (job->channel_d) add_sums(job, &s, n, p, channel, 1, &token_d, &token_g);
            else add_sums(job, &s, n, p, channel, 0, &token_d, &token_g);
        }
        t->sq_d += token_d, t->sq_g += token_g;
        if (job->token_d) job->token_d[p] += token_d, job->token_g[p] += token_g;
    }
    for (int lane = 0; lane < LANES; lane++)
        for (int bin = 0; bin < BINS; bin++) job->histogram[bin] += histogram[lane][bin];
}

/* Sum the squares of the finite values, and count them. */
CLONED static void run_square(const Job *job, double *square, int64_t *count) {
    float x[CHUNK];
    const Py_ssize_t width = job->outer * job->inner;
    for (Py_ssize_t p = 0; p < job->positions; p++)
        for (Py_ssize_t channel = 0; channel < width; channel += CHUNK) {
            Py_ssize_t n = width - channel < CHUNK ? width - channel : CHUNK, finite = n;
            load(&job->golden, job->inner, p, channel, n, x);
            if (!all_finite(x, n))
                for (Py_ssize_t i = 0; i < n; i++)
                    if (kind(x[i])) x[i] = 0, finite--;
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (Py_ssize_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
            *square += sum;
            *count += finite;
        }
}

PyDoc_STRVAR(accumulate_doc,
    "accumulate(golden, candidate, sizes, narrow, units, segment, before, *sums)\n\n"
    "Add up one segment. A side is (address, type, three strides in bytes), sizes are (positions,\n"
    "outer, inner), units are (denominator, rtol, atol), `before` counts the positions of earlier\n"
    "segments. The sums are totals, histogram, token_d, token_g, channel_d and channel_g.");

static PyObject *accumulate(PyObject *self, PyObject *args) {
    Job job;
    Py_buffer sums[6];
    unsigned long long g, c;
    long long segment;
    Py_ssize_t before;
    (void)self;
    if (!PyArg_ParseTuple(args, "(Kinnn)(Kinnn)(nnn)i(ddd)Lnw*w*w*w*w*w*", &g, &job.golden.type,
                          &job.golden.position, &job.golden.outer, &job.golden.inner, &c,
                          &job.candidate.type, &job.candidate.position, &job.candidate.outer,
                          &job.candidate.inner, &job.positions, &job.outer, &job.inner,
                          &job.narrow, &job.denominator, &job.rtol, &job.atol, &segment, &before,
                          &sums[0], &sums[1], &sums[2], &sums[3], &sums[4], &sums[5]))
        return NULL;
    job.golden.base = (const char *)(uintptr_t)g;
    job.candidate.base = (const char *)(uintptr_t)c;
    job.segment = segment;
    job.totals = sums[0].buf;
    job.histogram = sums[1].buf;
    job.token_d = sums[2].len ? (double *)sums[2].buf + before : NULL;
    job.token_g = sums[2].len ? (double *)sums[3].buf + before : NULL;
    job.channel_d = sums[4].len ? sums[4].buf : NULL;
    job.channel_g = sums[4].len ? sums[5].buf : NULL;
    const Py_ssize_t tokens = 8 * (before + job.positions), channels = 8 * job.outer * job.inner;
    const int fits = sums[0].len == sizeof(Totals) && sums[1].len == 8 * BINS &&
                     (!sums[2].len || sums[2].len >= tokens) && sums[2].len == sums[3].len &&
                     (!sums[4].len || sums[4].len == channels) && sums[4].len == sums[5].len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        run(&job);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "The sums have not the sizes of the segment.");
    }
    for (int i = 0; i < 6; i++) PyBuffer_Release(&sums[i]);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(golden_square_doc,
    "golden_square(golden, sizes)\n\n"
    "Return the sum of squares and the number of the finite values of one side.");

static PyObject *golden_square(PyObject *self, PyObject *args) {
    Job job;
    unsigned long long g;
    double square = 0;
    int64_t count = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "(Kinnn)(nnn)", &g, &job.golden.type, &job.golden.position,
                          &job.golden.outer, &job.golden.inner, &job.positions, &job.outer,
                          &job.inner))
        return NULL;
    job.golden.base = (const char *)(uintptr_t)g;
    Py_BEGIN_ALLOW_THREADS
    run_square(&job, &square, &count);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("dL", square, (long long)count);
}

static PyMethodDef methods[] = {
    {"accumulate", accumulate, METH_VARARGS, accumulate_doc},
    {"golden_square", golden_square, METH_VARARGS, golden_square_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "The sums over a pair of tensors, compiled.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
