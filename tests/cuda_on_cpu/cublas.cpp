// cuBLAS by its definition: products of matrices whose columns lie one after the other, sums in float or double.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#include "cuda_on_cpu.hpp"
#include "cuda_fp16.h"
#include "cuda_bf16.h"

extern "C" int cuda_on_cpu_submit(void* stream, const char* what, void (*go)(void*), const void* data, size_t size);

namespace {

struct Handle { void* stream; int mode, pointers; };
enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };

struct Product {
    int transposed_a, transposed_b, m, n, k, type_a, type_b, type_c, lda, ldb, ldc, batch, compute;
    const void *a, *b;
    void* c;
    long long step_a, step_b, step_c;  // from one product to the next, or 0 with pointers
    const void *const *as, *const *bs;
    void* const* cs;
    double alpha, beta;
};

size_t size_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }
double get(const void* p, int type, size_t i) {
    switch (type) {
        case F32: return ((const float*)p)[i];
        case F64: return ((const double*)p)[i];
        case F16: return (float)((const __half*)p)[i];
        default: return (float)((const __nv_bfloat16*)p)[i];
    }
}
void put(void* p, int type, size_t i, double v) {
    switch (type) {
        case F32: ((float*)p)[i] = (float)v; break;
        case F64: ((double*)p)[i] = v; break;
        case F16: ((__half*)p)[i] = __float2half_rn((float)v); break;
        default: ((__nv_bfloat16*)p)[i] = __float2bfloat16_rn((float)v);
    }
}
template <class T> void multiply(const Product& p, const void* a, const void* b, void* c) {
    std::vector<T> A((size_t)p.m * p.k), B((size_t)p.k * p.n), C(p.m);  // columns
    const bool tf32 = p.compute == 77;  // CUBLAS_COMPUTE_32F_FAST_TF32
    auto taken = [&](double v) { return tf32 ? (T)__uint_as_float((__float_as_uint((float)v) + 0x1000u) & ~0x1fffu) : (T)v; };
    for (int k = 0; k < p.k; k++) for (int i = 0; i < p.m; i++) A[(size_t)k * p.m + i] = taken(get(a, p.type_a, p.transposed_a ? (size_t)i * p.lda + k : (size_t)k * p.lda + i));
    for (int j = 0; j < p.n; j++) for (int k = 0; k < p.k; k++) B[(size_t)j * p.k + k] = taken(get(b, p.type_b, p.transposed_b ? (size_t)k * p.ldb + j : (size_t)j * p.ldb + k));
    for (int j = 0; j < p.n; j++) {
        std::fill(C.begin(), C.end(), T(0));
        for (int k = 0; k < p.k; k++) {
            const T v = B[(size_t)j * p.k + k], *from = &A[(size_t)k * p.m];
            for (int i = 0; i < p.m; i++) C[i] += from[i] * v;
        }
        for (int i = 0; i < p.m; i++) {
            const size_t at = (size_t)j * p.ldc + i;
            put(c, p.type_c, at, (T)p.alpha * C[i] + (p.beta ? (T)p.beta * (T)get(c, p.type_c, at) : T(0)));
        }
    }
}
void go(void* data) {
    Product p;
    memcpy(&p, data, sizeof p);
    for (int i = 0; i < p.batch; i++) {
        const void* a = p.as ? p.as[i] : (const char*)p.a + i * p.step_a * size_of(p.type_a);
        const void* b = p.bs ? p.bs[i] : (const char*)p.b + i * p.step_b * size_of(p.type_b);
        void* c = p.cs ? p.cs[i] : (char*)p.c + i * p.step_c * size_of(p.type_c);
        if (p.type_c == F64 || p.type_a == F64) multiply<double>(p, a, b, c);
        else multiply<float>(p, a, b, c);
    }
}
int product(Handle* h, const char* what, Product p, const void* alpha, const void* beta, bool wide) {
    auto known = [](int t) { return t == F32 || t == F64 || t == F16 || t == BF16; };
    if (!known(p.type_a) || p.type_a != p.type_b || !known(p.type_c)) return 15;
    if (p.m < 0 || p.n < 0 || p.k < 0 || p.batch < 0 || p.lda < std::max(1, p.transposed_a ? p.k : p.m) ||
        p.ldb < std::max(1, p.transposed_b ? p.n : p.k) || p.ldc < std::max(1, p.m)) return 7;
    p.alpha = wide ? *(const double*)alpha : *(const float*)alpha, p.beta = wide ? *(const double*)beta : *(const float*)beta;
    char text[160];
    snprintf(text, sizeof text, "%s %d%d m%d n%d k%d lda%d ldb%d ldc%d batch%d types %d>%d compute %d", what, p.transposed_a, p.transposed_b,
             p.m, p.n, p.k, p.lda, p.ldb, p.ldc, p.batch, p.type_a, p.type_c, p.compute);
    return cuda_on_cpu_submit(h->stream, text, go, &p, sizeof p);
}

}  // namespace

extern "C" {
int cublasCreate_v2(Handle** h) { *h = new Handle{}; return 0; }
int cublasDestroy_v2(Handle* h) { delete h; return 0; }
int cublasSetStream_v2(Handle* h, void* s) { h->stream = s; return 0; }
int cublasGetStream_v2(Handle* h, void** s) { *s = h->stream; return 0; }
int cublasSetWorkspace_v2(Handle*, void*, size_t) { return 0; }
int cublasGetVersion_v2(Handle*, int* v) { *v = 120902; return 0; }
int cublasSetMathMode(Handle* h, int mode) { h->mode = mode; return 0; }
int cublasGetMathMode(Handle* h, int* mode) { *mode = h->mode; return 0; }
int cublasSetPointerMode_v2(Handle* h, int mode) { h->pointers = mode; return 0; }
int cublasGetPointerMode_v2(Handle* h, int* mode) { *mode = h->pointers; return 0; }

#define SHAPE Handle *h, int ta, int tb, int m, int n, int k
int cublasGemmStridedBatchedEx(SHAPE, const void* al, const void* A, int At, int lda, long long sA, const void* B, int Bt, int ldb, long long sB,
                               const void* be, void* C, int Ct, int ldc, long long sC, int batch, int compute, int) {
    return product(h, "gemmStridedBatchedEx", {ta, tb, m, n, k, At, Bt, Ct, lda, ldb, ldc, batch, compute, A, B, C, sA, sB, sC}, al, be, compute == 70 || compute == 71);
}
int cublasGemmEx(SHAPE, const void* al, const void* A, int At, int lda, const void* B, int Bt, int ldb, const void* be, void* C, int Ct, int ldc, int compute, int) {
    return product(h, "gemmEx", {ta, tb, m, n, k, At, Bt, Ct, lda, ldb, ldc, 1, compute, A, B, C}, al, be, compute == 70 || compute == 71);
}
int cublasSgemmEx(SHAPE, const float* al, const void* A, int At, int lda, const void* B, int Bt, int ldb, const float* be, void* C, int Ct, int ldc) {
    return product(h, "SgemmEx", {ta, tb, m, n, k, At, Bt, Ct, lda, ldb, ldc, 1, 68, A, B, C}, al, be, false);
}
#define REAL_PRODUCTS(L, T, type, compute)                                                                                                     \
    int cublas##L##gemm_v2(SHAPE, const T* al, const T* A, int lda, const T* B, int ldb, const T* be, T* C, int ldc) {                          \
        return product(h, #L "gemm", {ta, tb, m, n, k, type, type, type, lda, ldb, ldc, 1, compute, A, B, C}, al, be, sizeof(T) == 8);          \
    }                                                                                                                                          \
    int cublas##L##gemmStridedBatched(SHAPE, const T* al, const T* A, int lda, long long sA, const T* B, int ldb, long long sB, const T* be,    \
                                      T* C, int ldc, long long sC, int batch) {                                                                \
        return product(h, #L "gemmStridedBatched", {ta, tb, m, n, k, type, type, type, lda, ldb, ldc, batch, compute, A, B, C, sA, sB, sC}, al, be, sizeof(T) == 8); \
    }                                                                                                                                          \
    int cublas##L##gemmBatched(SHAPE, const T* al, const void* const* A, int lda, const void* const* B, int ldb, const T* be, void* const* C, int ldc, int batch) { \
        return product(h, #L "gemmBatched", {ta, tb, m, n, k, type, type, type, lda, ldb, ldc, batch, compute, 0, 0, 0, 0, 0, 0, A, B, C}, al, be, sizeof(T) == 8); \
    }                                                                                                                                          \
    int cublas##L##gemv_v2(Handle* h, int t, int m, int n, const T* al, const T* A, int lda, const T* x, int step_x, const T* be, T* y, int step_y) { \
        /* x and y as matrices of one row: op(A) x is (x of 1 x k) op(A)^T */                                                                  \
        return product(h, #L "gemv", {0, !t, 1, t ? n : m, t ? m : n, type, type, type, step_x, lda, step_y, 1, compute, x, A, y}, al, be, sizeof(T) == 8); \
    }                                                                                                                                          \
    int cublas##L##ger_v2(Handle* h, int m, int n, const T* al, const T* x, int step_x, const T* y, int step_y, T* A, int lda) {                \
        const T one = 1;                                                                                                                       \
        return product(h, #L "ger", {1, 0, m, n, 1, type, type, type, step_x, step_y, lda, 1, compute, x, y, A}, al, &one, sizeof(T) == 8);    \
    }                                                                                                                                          \
    int cublas##L##dot_v2(Handle* h, int n, const T* x, int step_x, const T* y, int step_y, T* out) {                                          \
        const T one = 1, zero = 0;                                                                                                             \
        return product(h, #L "dot", {0, 1, 1, 1, n, type, type, type, step_x, step_y, 1, 1, compute, x, y, out}, &one, &zero, sizeof(T) == 8);  \
    }
REAL_PRODUCTS(S, float, F32, 68)
REAL_PRODUCTS(D, double, F64, 70)
}
