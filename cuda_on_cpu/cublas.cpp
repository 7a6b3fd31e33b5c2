// cuBLAS by its definition: products of matrices whose columns lie one after the other, sums in float or double.
#include <set>
#include "driver.hpp"
#include "numbers.hpp"

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum Compute { FLOAT = 68, DOUBLE = 70, DOUBLE_PEDANTIC = 71, TF32 = 77 };
struct Handle { void *stream, *workspace; int mode; };
struct Matrix {
    const void* at;
    int type, ld;
    long long step;  // from the matrix of one product to the next
    bool listed = false;  // `at` has the address of each
    char* of(int product) const { return listed ? ((char**)at)[product] : (char*)at + product * step * size_of(type); }
};
struct Product { int transposed_a, transposed_b, m, n, k; Matrix a, b, c; int batch, compute; };

template <class T> void multiply(const Product& p, double alpha, double beta, int product) {
    auto element = [&](const Matrix& x, bool transposed, size_t row, size_t column) {
        const double v = get(x.of(product), x.type, transposed ? row * x.ld + column : column * x.ld + row);
        return p.compute == TF32 ? (T)__uint_as_float((__float_as_uint((float)v) + 0x1000u) & ~0x1fffu) : (T)v;
    };
    vector<T> A((size_t)p.m * p.k), C(p.m);  // columns
    for (int k = 0; k < p.k; k++)
        for (int i = 0; i < p.m; i++) A[(size_t)k * p.m + i] = element(p.a, p.transposed_a, i, k);
    for (int j = 0; j < p.n; j++) {
        std::fill(C.begin(), C.end(), T(0));
        for (int k = 0; k < p.k; k++) {
            const T v = element(p.b, p.transposed_b, k, j), *from = &A[(size_t)k * p.m];
            for (int i = 0; i < p.m; i++) C[i] += from[i] * v;
        }
        for (int i = 0; i < p.m; i++) {
            const size_t at = (size_t)j * p.c.ld + i;
            const T added = beta ? (T)beta * (T)get(p.c.of(product), p.c.type, at) : T(0);
            put(p.c.of(product), p.c.type, at, (T)alpha * C[i] + added);
        }
    }
}

static int ask(Handle* h, const Product& p, const void* alpha, const void* beta) {
    LOCK;
    if (idle(h->stream, "gemm")) return SUCCESS;
    const auto& [ta, tb, m, n, k, a, b, c, batch, compute] = p;
    auto known = [](int t) { return t == F32 || t == F64 || t == F16 || t == BF16; };
    if (!known(a.type) || a.type != b.type || !known(c.type)) return NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || batch < 0 || a.ld < std::max(1, ta ? k : m) ||
        b.ld < std::max(1, tb ? n : k) || c.ld < std::max(1, m)) return INVALID_VALUE;
    // In a capture cuBLAS can neither load its kernels, which it does at the first product of a kind, nor take memory.
    static std::set<std::array<int, 5>> loaded;
    const bool first = loaded.insert({ta, tb, a.type, c.type, compute}).second;
    const string wrong = first ? "is the first of its kind" : "has no workspace";
    if (is_capturing(h->stream) && (first || !h->workspace))
        return problem("a product in a capture " + wrong), INTERNAL_ERROR;
    char what[160];
    snprintf(what, sizeof what, "GemmEx %d%d m%d n%d k%d lda%d ldb%d ldc%d batch%d types %d>%d compute %d",
             ta, tb, m, n, k, a.ld, b.ld, c.ld, batch, a.type, c.type, compute);
    const bool wide = compute == DOUBLE || compute == DOUBLE_PEDANTIC;
    auto factor = [&](const void* f) { return wide ? *(const double*)f : *(const float*)f; };
    auto run = [p, alpha = factor(alpha), beta = factor(beta)] {
        for (int i = 0; i < p.batch; i++) (p.a.type == F64 ? multiply<double> : multiply<float>)(p, alpha, beta, i);
        return cudaSuccess;
    };
    auto bytes = [&](const Matrix& x, long count) { return count * (long)size_of(x.type) * (x.step ? batch : 1); };
    const int both = factor(beta) ? 2 : 1;  // what is added to is read, too
    if (measured) counts["bytes"] += bytes(p.a, (long)m * k) + bytes(p.b, (long)k * n) + both * bytes(p.c, (long)m * n);
    return submit(h->stream, "gemm", what, run, {a.at, b.at, c.at}) ? EXECUTION_FAILED : SUCCESS;
}

extern "C" {
int cublasCreate_v2(Handle** h) { return *h = new Handle{}, SUCCESS; }
int cublasDestroy_v2(Handle* h) { return delete h, SUCCESS; }
int cublasSetStream_v2(Handle* h, void* s) { return h->stream = s, h->workspace = nullptr, SUCCESS; }
int cublasSetWorkspace_v2(Handle* h, void* workspace, size_t) { return h->workspace = workspace, SUCCESS; }
int cublasSetMathMode(Handle* h, int mode) { return h->mode = mode, SUCCESS; }
int cublasGetMathMode(Handle* h, int* mode) { return *mode = h->mode, SUCCESS; }
int cublasGemmStridedBatchedEx(
    Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda,
    long long step_a, const void* b, int type_b, int ldb, long long step_b, const void* beta, void* c, int type_c,
    int ldc, long long step_c, int batch, int compute, int) {
    return ask(h, {ta, tb, m, n, k, {a, type_a, lda, step_a}, {b, type_b, ldb, step_b}, {c, type_c, ldc, step_c}, batch,
                   compute}, alpha, beta);
}
#define BATCHED(name, T, type, compute)                                                                              \
    int name(Handle* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* const* a, int lda,             \
             const T* const* b, int ldb, const T* beta, T* const* c, int ldc, int batch) {                           \
        return ask(h, {ta, tb, m, n, k, {a, type, lda, 0, true}, {b, type, ldb, 0, true}, {c, type, ldc, 0, true},   \
                       batch, compute}, alpha, beta);                                                                \
    }
BATCHED(cublasSgemmBatched, float, F32, FLOAT)
BATCHED(cublasDgemmBatched, double, F64, DOUBLE)
int cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int at, int lda,
                 const void* b, int bt, int ldb, const void* beta, void* c, int ct, int ldc, int compute, int how) {
    return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, at, lda, 0, b, bt, ldb, 0, beta, c, ct, ldc, 0, 1,
                                      compute, how);
}
}
