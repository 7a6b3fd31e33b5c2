// A GPU on a CPU, for kernels of small size: in the place of xlstm/engines/cuda/device.cuh.
//
// Every CUDA thread is a fiber. One runs until it waits for others, then another does, in an order that a seed draws: what
// lacks a barrier reads what is not there yet, in one order or another, and threads that wait in vain are found. The order
// is all that is drawn: with every barrier in its place the results are the same bits.

#define IN_SHIM 1
#define DEVICE inline
#define SHARED_MEMORY(name) unsigned char* name = shim::now->block->shared
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static  // of the one block that runs at a time
#define __restrict__
#define __cluster_dims__(x, y, z)
#define __launch_bounds__(threads, blocks)

struct uint4 { unsigned x, y, z, w; };
struct dim3_ { unsigned x, y, z; };

namespace shim {

struct Block {
    dim3_ index;
    unsigned char* shared;
    int first, cluster_first, cluster_size;  // of its threads; of the threads of its cluster
};
struct Warp { unsigned a[32][4], b[32][2]; };
struct Barrier {  // of threads one after the other
    long done;  // how often all of them have come
    int seen;   // so many of them have come more often
};
struct Fiber {
    ucontext_t context;  // that it begins with; after that it jumps, which asks nothing of the system
    jmp_buf place;
    bool begun;
    Block* block;
    Warp* warp;
    int thread;
    long waits[3];  // barriers that it has come to: of its warp, block, cluster
};

// scheduler.cpp has these for all kernels, of which one runs at a time.
extern std::vector<Fiber> fibers;
extern std::vector<Barrier> barriers[3];  // of a warp, block, cluster, at the place of its first fiber
extern Fiber* now;
extern jmp_buf scheduler;
extern dim3_ blockDim_, gridDim_;
extern long progress;  // of anything; a thread that waits for memory makes none
extern bool misused;  // a barrier, in a way that its manual forbids
extern void (*body)(void**);  // a kernel, with its arguments
extern void** arguments;

inline void yield() {
    if (!_setjmp(now->place)) _longjmp(scheduler, 1);
}

inline void arrive(int kind) {
    now->waits[kind]++;
    progress++;
}

// For the threads from `first` on: none goes on before all have arrived.
inline void wait(int kind, int first, int count) {
    const long mine = now->waits[kind];
    Barrier& barrier = barriers[kind][first];
    while (barrier.done < mine) {
        if (barrier.seen == count) barrier = {barrier.done + 1, 0};
        else if (fibers[first + barrier.seen].waits[kind] > barrier.done) barrier.seen++;
        else yield();
    }
}

inline void barrier(int kind, int first, int count) {
    arrive(kind);
    wait(kind, first, count);
}

}  // namespace shim

#define threadIdx (shim::Index{(unsigned)shim::now->thread})
#define blockIdx (shim::now->block->index)
#define blockDim shim::blockDim_
#define gridDim shim::gridDim_
namespace shim {
struct Index { unsigned x; };
}

struct half_t { unsigned short bits; };
struct bf16_t { unsigned short bits; };

DEVICE unsigned bits_of(float v) { unsigned u; std::memcpy(&u, &v, 4); return u; }
DEVICE float float_of(unsigned u) { float v; std::memcpy(&v, &u, 4); return v; }
DEVICE float widen(half_t v) { _Float16 h; std::memcpy(&h, &v.bits, 2); return (float)h; }
DEVICE float widen(bf16_t v) { return float_of((unsigned)v.bits << 16); }
DEVICE float widen(float v) { return v; }
DEVICE double widen(double v) { return v; }
DEVICE void narrow(half_t& to, float v) { const _Float16 h = (_Float16)v; std::memcpy(&to.bits, &h, 2); }
DEVICE void narrow(bf16_t& to, float v) {
    const unsigned u = bits_of(v);
    to.bits = v != v ? 0x7fff : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
DEVICE void narrow(float& to, float v) { to = v; }
DEVICE void narrow(double& to, double v) { to = v; }
DEVICE float round_tf32(float v) { return float_of((bits_of(v) + 0x1000u) & ~0x1fffu); }

// mma.sync as the PTX manual draws it: matrices by element, from the words of the lanes.
template <class T, int DEPTH, class Read>
DEVICE void mma_model(float (&c)[4], uint4 a, unsigned b0, unsigned b1, Read read) {
    shim::Fiber* me = shim::now;
    shim::Warp& warp = *me->warp;
    const int lane = me->thread % 32, first = me->block->first + me->thread / 32 * 32;
    const unsigned b[2] = {b0, b1};
    std::memcpy(warp.a[lane], &a, sizeof a);
    std::memcpy(warp.b[lane], b, sizeof b);
    shim::barrier(0, first, 32);
    constexpr int WORD = 4 / sizeof(T);  // elements
    auto A = [&](int row, int k) {  // registers by halves of rows, then of k; a lane has WORD neighbours of four per row
        const int half_k = k / (4 * WORD), within = k % (4 * WORD);
        return read(warp.a[row % 8 * 4 + within / WORD][row / 8 + 2 * half_k], within % WORD);
    };
    auto B = [&](int k, int column) {
        const int half_k = k / (4 * WORD), within = k % (4 * WORD);
        return read(warp.b[column * 4 + within / WORD][half_k], within % WORD);
    };
    float sums[4];
    for (int e = 0; e < 4; e++) {
        const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        float sum = c[e];
        for (int k = 0; k < DEPTH; k++) sum += A(row, k) * B(k, column);
        sums[e] = sum;
    }
    shim::barrier(0, first, 32);
    std::memcpy(c, sums, sizeof sums);
}
DEVICE float half_of(unsigned word, int which) { return widen(half_t{(unsigned short)(word >> (16 * which))}); }
DEVICE float bf16_of(unsigned word, int which) { return widen(bf16_t{(unsigned short)(word >> (16 * which))}); }
DEVICE float tf32_of(unsigned word, int) { return float_of(word & ~0x1fffu); }  // the hardware reads no more
DEVICE void mma(half_t, float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
    mma_model<half_t, 16>(c, a, b0, b1, half_of);
}
DEVICE void mma(bf16_t, float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
    mma_model<bf16_t, 16>(c, a, b0, b1, bf16_of);
}
DEVICE void mma(float, float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
    mma_model<float, 8>(c, a, b0, b1, tf32_of);
}

template <bool TRANSPOSED>
DEVICE uint4 load_matrices(const void* row) {
    shim::Fiber* me = shim::now;
    shim::Warp& warp = *me->warp;
    const int lane = me->thread % 32, first = me->block->first + me->thread / 32 * 32;
    std::memcpy(warp.a[lane], &row, sizeof row);
    shim::barrier(0, first, 32);
    unsigned words[4];
    for (int matrix = 0; matrix < 4; matrix++) {
        unsigned short both[2];
        for (int e = 0; e < 2; e++) {
            const int i = lane / 4, j = lane % 4 * 2 + e;
            const unsigned short* at;
            std::memcpy(&at, warp.a[matrix * 8 + (TRANSPOSED ? j : i)], sizeof at);
            if ((uintptr_t)at % 16) shim::misused = true;  // rows begin at multiples of 16 bytes
            both[e] = at[TRANSPOSED ? i : j];
        }
        std::memcpy(&words[matrix], both, 4);
    }
    shim::barrier(0, first, 32);
    return uint4{words[0], words[1], words[2], words[3]};
}

template <int LANES>
DEVICE unsigned largest(unsigned v) {
    shim::Fiber* me = shim::now;
    const int lane = me->thread % 32, first = me->block->first + me->thread / 32 * 32;
    me->warp->a[lane][0] = v;
    shim::barrier(0, first, 32);
    for (int i = lane / LANES * LANES; i < lane / LANES * LANES + LANES; i++) v = std::max(v, me->warp->a[i][0]);
    shim::barrier(0, first, 32);
    return v;
}

DEVICE unsigned from_lane_xor(unsigned v, int mask) {
    shim::Fiber* me = shim::now;
    const int lane = me->thread % 32, first = me->block->first + me->thread / 32 * 32;
    me->warp->a[lane][0] = v;
    shim::barrier(0, first, 32);
    v = me->warp->a[lane ^ mask][0];
    shim::barrier(0, first, 32);
    return v;
}

DEVICE void sync_warp() {}  // nothing in a warp waits for it
DEVICE void sync_block() { shim::barrier(1, shim::now->block->first, blockDim.x); }
DEVICE void __syncthreads() { sync_block(); }
DEVICE void arrive_cluster() { shim::arrive(2); }
DEVICE void wait_cluster() {
    const shim::Block* block = shim::now->block;
    shim::wait(2, block->cluster_first, block->cluster_size);
}
// An mbarrier as the PTX manual has it: a turn ends when a thread has said what to expect and as many bytes have come.
struct Arrivals {
    short turn, said;
    int missing;
    void check() {
        if (said && missing == 0) turn++, said = 0;
        shim::progress++;
    }
};
static_assert(sizeof(Arrivals) == 8, "as large as on a device");
DEVICE void init_arrivals(Arrivals* a) { *a = Arrivals{0, 0, 0}; }
DEVICE void publish_arrivals() {}
DEVICE void expect(Arrivals* a, int bytes) {
    if (a->said) shim::misused = true;  // of two turns at once
    a->said = 1;
    a->missing += bytes;
    a->check();
}
// What is sent comes later, in an order of its own: while somebody waits, one after the other.
struct Sent {
    int thread;  // one of the block that it is sent to
    size_t to, arrivals;  // places in shared memory
    int size;
    unsigned char bytes[16];
};
static std::vector<Sent> sent;
template <class T>
DEVICE void send_remote(T* local, int rank, const T& v, Arrivals* arrivals) {
    const shim::Block* mine = shim::now->block;
    auto place = [&](void* p) { return (size_t)((unsigned char*)p - mine->shared); };
    Sent one = {mine->cluster_first + rank * (int)blockDim.x, place(local), place(arrivals), (int)sizeof(T)};
    std::memcpy(one.bytes, &v, sizeof(T));
    sent.push_back(one);
}
DEVICE void receive_one() {
    static uint64_t drawn = 1;
    if (sent.empty()) return;
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    std::swap(sent[(drawn >> 33) % sent.size()], sent.back());
    const Sent one = sent.back();
    sent.pop_back();
    unsigned char* shared = shim::fibers[one.thread].block->shared;
    std::memcpy(shared + one.to, one.bytes, one.size);
    Arrivals* arrivals = (Arrivals*)(shared + one.arrivals);
    arrivals->missing -= one.size;
    arrivals->check();
}
DEVICE void wait_arrivals(Arrivals* a, unsigned odd) {
    while ((((volatile Arrivals*)a)->turn & 1) == odd) {
        receive_one();
        shim::yield();
    }
}
DEVICE void set_flag(unsigned* flag, unsigned value) {
    *flag = value;
    shim::progress++;
}
DEVICE void wait_flag(const unsigned* flag, unsigned value) {
    while (*(volatile const unsigned*)flag < value) shim::yield();
}
template <class T>
DEVICE void store_wide(T* to, const T& v) { *to = v; }
template <class T>
DEVICE T load_fresh(const T* from) { return *from; }
DEVICE long long nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}
DEVICE unsigned atomicAdd(unsigned* to, unsigned v) { return std::exchange(*to, *to + v); }
DEVICE unsigned atomicSub(unsigned* to, unsigned v) { return std::exchange(*to, *to - v); }
DEVICE unsigned atomicMax(unsigned* to, unsigned v) { return std::exchange(*to, *to > v ? *to : v); }

namespace shim {

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)args[I]...);
}

inline dim3_ block_index(int b) { return {b % gridDim_.x, b / gridDim_.x, 0}; }

enum Way { TOGETHER, IN_TURN, WITHOUT_WAITING };

// Runs the threads of all blocks from `first` to `last` as fibers. True: they wait for what never comes.
bool run_blocks(int first, int last, int threads, int shared, int cluster, unsigned seed);

// 1: threads wait for what never comes, or misuse what they wait for.
template <class... A>
int launch(void (*kernel)(A...), int grid_x, int grid_y, int threads, int shared, int cluster, unsigned seed, void** args,
           int way) {
    static void (*chosen)(A...);
    chosen = kernel;
    body = [](void** given) { call(chosen, given, std::index_sequence_for<A...>()); };
    arguments = args;
    blockDim_ = {(unsigned)threads, 1, 1};
    gridDim_ = {(unsigned)grid_x, (unsigned)grid_y, 1};
    const int blocks = grid_x * grid_y;
    if (way == TOGETHER) return run_blocks(0, blocks, threads, shared, cluster, seed);
    bool stuck = false;
    for (int b = 0; b < blocks && !stuck; b++) {
        if (way == IN_TURN) {
            stuck = run_blocks(b, b + 1, threads, shared, 1, seed);
            continue;
        }
        Block block = {block_index(b), nullptr, 0, 0, 0};
        Fiber fiber = {};
        fiber.block = &block;
        now = &fiber;
        for (fiber.thread = 0; fiber.thread < threads; fiber.thread++) body(args);
    }
    return stuck;
}

}  // namespace shim
