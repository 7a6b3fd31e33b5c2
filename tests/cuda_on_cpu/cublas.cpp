// cuBLAS by its definition: products of matrices whose columns lie one after the other, sums in float or double.
#include <set>
#include "include/cuda_on_cpu.hpp"
#include "cuda_fp16.h"
#include "cuda_bf16.h"
#include "library.hpp"

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
enum Compute { FLOAT = 68, DOUBLE = 70, DOUBLE_PEDANTIC = 71, TF32 = 77 };
struct Handle { void *stream, *workspace; int mode, pointers; };

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
    if (type == F32) return ((const float*)p)[i];
    if (type == F64) return ((const double*)p)[i];
    return type == F16 ? (float)((const __half*)p)[i] : (float)((const __nv_bfloat16*)p)[i];
}
void put(void* p, int type, size_t i, double v) {
    if (type == F32) ((float*)p)[i] = (float)v;
    else if (type == F64) ((double*)p)[i] = v;
    else if (type == F16) ((__half*)p)[i] = __float2half_rn((float)v);
    else ((__nv_bfloat16*)p)[i] = __float2bfloat16_rn((float)v);
}
template <class T> void multiply(const Product& p, const void* a, const void* b, void* c) {
    auto element = [&](const void* x, int type, bool transposed, int ld, size_t row, size_t column) {
        const double v = get(x, type, transposed ? row * ld + column : column * ld + row);
        return p.compute == TF32 ? (T)__uint_as_float((__float_as_uint((float)v) + 0x1000u) & ~0x1fffu) : (T)v;
    };
    std::vector<T> A((size_t)p.m * p.k), C(p.m);  // columns
    for (int k = 0; k < p.k; k++)
        for (int i = 0; i < p.m; i++) A[(size_t)k * p.m + i] = element(a, p.type_a, p.transposed_a, p.lda, i, k);
    for (int j = 0; j < p.n; j++) {
        std::fill(C.begin(), C.end(), T(0));
        for (int k = 0; k < p.k; k++) {
            const T v = element(b, p.type_b, p.transposed_b, p.ldb, k, j), *from = &A[(size_t)k * p.m];
            for (int i = 0; i < p.m; i++) C[i] += from[i] * v;
        }
        for (int i = 0; i < p.m; i++) {
            const size_t at = (size_t)j * p.ldc + i;
            put(c, p.type_c, at, (T)p.alpha * C[i] + (p.beta ? (T)p.beta * (T)get(c, p.type_c, at) : T(0)));
        }
    }
}
void work(void* data) {
    Product p;
    memcpy(&p, data, sizeof p);
    for (int i = 0; i < p.batch; i++) {
        const void* a = p.as ? p.as[i] : (const char*)p.a + i * p.step_a * size_of(p.type_a);
        const void* b = p.bs ? p.bs[i] : (const char*)p.b + i * p.step_b * size_of(p.type_b);
        void* c = p.cs ? p.cs[i] : (char*)p.c + i * p.step_c * size_of(p.type_c);
        (p.type_a == F64 ? multiply<double> : multiply<float>)(p, a, b, c);
    }
}
int product(Handle* h, const char* what, Product p, const void* alpha, const void* beta) {
    auto known = [](int t) { return t == F32 || t == F64 || t == F16 || t == BF16; };
    if (!known(p.type_a) || p.type_a != p.type_b || !known(p.type_c)) return NOT_SUPPORTED;
    if (p.m < 0 || p.n < 0 || p.k < 0 || p.batch < 0 || p.lda < std::max(1, p.transposed_a ? p.k : p.m) ||
        p.ldb < std::max(1, p.transposed_b ? p.n : p.k) || p.ldc < std::max(1, p.m)) return INVALID_VALUE;
    // In a capture cuBLAS can neither load its kernels, which it does at the first product of a kind, nor take memory.
    static std::set<std::tuple<int, int, int, int, int>> loaded;
    const bool first = loaded.emplace(p.transposed_a, p.transposed_b, p.type_a, p.type_c, p.compute).second;
    const char* wrong = first ? "is the first of its kind" : "has no workspace";
    if (cuda_on_cpu_captures(h->stream) && (first || !h->workspace))
        return cuda_on_cpu_problem((std::string("a product in a capture ") + wrong).c_str()), INTERNAL_ERROR;
    const bool wide = p.compute == DOUBLE || p.compute == DOUBLE_PEDANTIC;
    p.alpha = wide ? *(const double*)alpha : *(const float*)alpha;
    p.beta = wide ? *(const double*)beta : *(const float*)beta;
    char text[160];
    snprintf(text, sizeof text, "%s %d%d m%d n%d k%d lda%d ldb%d ldc%d batch%d types %d>%d compute %d", what,
             p.transposed_a, p.transposed_b, p.m, p.n, p.k, p.lda, p.ldb, p.ldc, p.batch, p.type_a, p.type_c,
             p.compute);
    return cuda_on_cpu_submit(h->stream, text, true, work, &p, sizeof p) ? EXECUTION_FAILED : SUCCESS;
}

}  // namespace

extern "C" {
int cublasCreate_v2(Handle** h) { return *h = new Handle{}, SUCCESS; }
int cublasDestroy_v2(Handle* h) { return delete h, SUCCESS; }
int cublasSetStream_v2(Handle* h, void* s) { return h->stream = s, h->workspace = nullptr, SUCCESS; }
int cublasGetStream_v2(Handle* h, void** s) { return *s = h->stream, SUCCESS; }
int cublasSetWorkspace_v2(Handle* h, void* workspace, size_t) { return h->workspace = workspace, SUCCESS; }
int cublasGetVersion_v2(Handle*, int* v) { return *v = 120902, SUCCESS; }
int cublasSetMathMode(Handle* h, int mode) { return h->mode = mode, SUCCESS; }
int cublasGetMathMode(Handle* h, int* mode) { return *mode = h->mode, SUCCESS; }
int cublasSetPointerMode_v2(Handle* h, int mode) { return h->pointers = mode, SUCCESS; }
int cublasGetPointerMode_v2(Handle* h, int* mode) { return *mode = h->pointers, SUCCESS; }

// The product that each function makes of its parameters. Vectors are matrices of one row, whose leading dimension is
// the step: the row of op(A) x is (the row of x) op(A)^T.
#define SHAPE Handle *h, int ta, int tb, int m, int n, int k, const void* al
#define BETA const void* be
#define IN(X) const void *X, int ld##X
#define MANY(X) const void* const* X, int ld##X
#define TYPED(X) const void *X, int X##t, int ld##X
#define OUT void* C, int ldC
#define TYPED_OUT void* C, int Ct, int ldC
#define FUNCTION(name, alpha, beta, shape, ...) \
    int cublas##name(__VA_ARGS__) { const Product p = shape; return product(h, #name, p, alpha, beta); }
#define REAL(name, alpha, beta, shape, ...) \
    int cublasS##name(__VA_ARGS__) { \
        constexpr int t = F32, compute = FLOAT; \
        static const float one = 1, zero = 0; \
        const Product p = shape; \
        return product(h, "S" #name, p, alpha, beta); \
    } \
    int cublasD##name(__VA_ARGS__) { \
        constexpr int t = F64, compute = DOUBLE; \
        static const double one = 1, zero = 0; \
        const Product p = shape; \
        return product(h, "D" #name, p, alpha, beta); \
    }
FUNCTION(GemmStridedBatchedEx, al, be,
         (Product{ta, tb, m, n, k, At, Bt, Ct, ldA, ldB, ldC, batch, compute, A, B, C, sA, sB, sC}), SHAPE, TYPED(A),
         long long sA, TYPED(B), long long sB, BETA, TYPED_OUT, long long sC, int batch, int compute, int)
FUNCTION(GemmEx, al, be, (Product{ta, tb, m, n, k, At, Bt, Ct, ldA, ldB, ldC, 1, compute, A, B, C}), SHAPE, TYPED(A),
         TYPED(B), BETA, TYPED_OUT, int compute, int)
FUNCTION(SgemmEx, al, be, (Product{ta, tb, m, n, k, At, Bt, Ct, ldA, ldB, ldC, 1, FLOAT, A, B, C}), SHAPE, TYPED(A),
         TYPED(B), BETA, TYPED_OUT)
REAL(gemm_v2, al, be, (Product{ta, tb, m, n, k, t, t, t, ldA, ldB, ldC, 1, compute, A, B, C}), SHAPE, IN(A), IN(B),
     BETA, OUT)
REAL(gemmStridedBatched, al, be,
     (Product{ta, tb, m, n, k, t, t, t, ldA, ldB, ldC, batch, compute, A, B, C, sA, sB, sC}), SHAPE, IN(A), long long sA, IN(B), long long sB, BETA, OUT, long long sC, int batch)
REAL(gemmBatched, al, be, (Product{ta, tb, m, n, k, t, t, t, ldA, ldB, ldC, batch, compute, 0, 0, 0, 0, 0, 0, A, B, C}),
     SHAPE, MANY(A), MANY(B), BETA, void* const* C, int ldC, int batch)
REAL(gemv_v2, al, be, (Product{0, !ta, 1, ta ? n : m, ta ? m : n, t, t, t, ldx, ldA, ldC, 1, compute, x, A, C}),
     Handle* h, int ta, int m, int n, const void* al, IN(A), IN(x), BETA, OUT)
REAL(ger_v2, al, &one, (Product{1, 0, m, n, 1, t, t, t, ldx, ldy, ldC, 1, compute, x, y, C}), Handle* h, int m, int n,
     const void* al, IN(x), IN(y), OUT)
REAL(dot_v2, &one, &zero, (Product{0, 1, 1, 1, n, t, t, t, ldx, ldy, 1, 1, compute, x, y, C}), Handle* h, int n, IN(x),
     IN(y), void* C)
}
