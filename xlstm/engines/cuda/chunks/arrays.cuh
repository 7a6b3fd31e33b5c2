// The arrays of all kernels of a chunkwise mLSTM; each kernel reads those that it needs. A group is a head of a sequence. Numbers
// of steps are (groups, chunks, L), unless a comment says (T, groups). Numbers of chunks are (groups, chunks).

struct View {  // of (T, B, N, ...), whose last axis is contiguous
    const IO* at;
    long long t, b, n;
    DEVICE const IO* operator()(long long step, long long group, int heads) const {
        return at + step * t + group / heads * b + group % heads * n;
    }
};
struct Arrays {
    View q, k, v, i, f, dh;
    const float *C0, *n0, *m0;             // the state before the first step, or none
    float *logf, *read, *write, *keep;     // weights of the state in (6) and (9)
    double *b, *w, *most, *r, *m;          // (1) to (3)
    IO* C;                                 // before each chunk and after the last one, (groups, chunks + 1, K, V)
    float* n;                              // likewise, (groups, chunks + 1, K)
    float *end_C, *end_n, *end_m;          // the state after the last step
    float *s, *den;                        // (6) (7)
    IO* h;                                 // (T, groups, V)
    const float *dh_h, *ds;                // -den times the gradient with respect to den, and that to s, (groups, T)
    const float *dend_C, *dend_n;          // gradients of the final state, or none
    IO* dC;                                // of the state after each chunk, (groups, chunks, K, V)
    float* dn;                             // likewise, (groups, chunks, K)
    float *dC0, *dn0, *dm0;
    float* inner;                          // shares of sums of C dC + n dn of each state, (tiles, groups, chunks + 1)
    IO *dq, *dk, *dv;                      // (T, groups, ...)
    float* dw;
    const float* dend_m;                   // gradient of the final m, or none
    float* dm;                             // of m after each chunk, through the maximum of later ones
    float *more_w, *more_b, *more_m;       // gradients of w, b and m0 through the maximum, or none
    IO *di, *df;                           // (T, groups)
    long long T, groups, chunks;
};

// Rows of a chunk, in a view or in an array (T, groups, WIDTH).
DEVICE const IO* row_of(const Arrays& a, const View& view, long long group, long long step) {
    return step < a.T ? view(step, group, HEADS) : nullptr;
}
template <class T>
DEVICE const T* beside(const T* row, int column, int width) {
    return row && column < width ? row + column : nullptr;
}
