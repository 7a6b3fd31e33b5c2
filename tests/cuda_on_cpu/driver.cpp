// The runtime and the driver of CUDA without a GPU: memory is the host's, kernels run on the CPU, calls are counted and
// checked as CUDA checks them. See README.md.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include "cuda_on_cpu.hpp"
#include "cuda.h"
#include "cuda_runtime_api.h"

using std::string, std::map, std::vector;

// ------------------------------------------------------------------------------------------ threads as fibers
namespace cuda_on_cpu {

Thread* now;
dim3 block_dim, grid_dim;
long progress;

#if defined(__x86_64__)
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(.globl cuda_on_cpu_switch
cuda_on_cpu_switch: pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi)
    movq %rsi, %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret)");
#else
#error "cuda_on_cpu_switch of this processor is missing"
#endif

struct Fiber {  // runs threads one after the other, until one waits
    void* at;
    char* stack;
    Thread* thread;
    const long* turn;  // that the thread waits for, and its number now
    long number;
};
constexpr size_t STACK = 1 << 17, STAGGERED = 1 << 16;  // else all stacks were in the same lines of a cache
static vector<Fiber*> idle, waiting;
static Fiber* running;
static void* scheduler;
static vector<Thread*> order;  // in which threads begin
static size_t begun, done;
static string failure;
static const Kernel* kernel;
static void** arguments;

void yield() {
    Fiber* me = running;
    cuda_on_cpu_switch(&me->at, scheduler);
    now = me->thread;
}
static void wait(const long& turn, long number) {
    while (turn == number) {
        running->turn = &turn, running->number = number;
        yield();
    }
    running->turn = nullptr;
}
void fail(const char* why) { failure = why; }

static void come(Barrier& b, int alive) {
    progress++;
    if (b.come == alive && alive) b = {0, b.turn + 1};
}
void block_barrier() {
    Block& block = *now->block;
    const long turn = block.barrier.turn;
    block.barrier.come++;
    come(block.barrier, block.alive);
    wait(block.barrier.turn, turn);
}
void cluster_arrive() {
    Cluster& cluster = *now->block->cluster;
    now->cluster_turn = cluster.barrier.turn;
    cluster.barrier.come++;
    come(cluster.barrier, cluster.alive);
}
void cluster_wait() { wait(now->block->cluster->barrier.turn, now->cluster_turn); }
static void look(Warp& warp, Warp::Group& g) {  // whether all lanes have come; those that are done count
    if (g.come && ((g.come | ~warp.there) & g.mask) == g.mask) g.come = 0, g.turn++;
}
void warp_barrier(unsigned mask) {
    Warp& warp = *now->warp;
    int i = 0;
    while (i < warp.count && warp.groups[i].mask != mask) i++;
    if (i == 40) { fail("lanes wait for one another in too many groups"); return; }
    Warp::Group& group = warp.groups[i];
    if (i == warp.count) group = {mask, 0, 0}, warp.count++;
    const long turn = group.turn;
    if (!(mask >> now->lane & 1)) fail("a lane is not in the mask that it gives");
    group.come |= 1u << now->lane;
    progress++;
    look(warp, group);
    wait(group.turn, turn);
}

static void fiber_main() {
    for (;;) {
        while (begun < order.size()) {
            now = running->thread = order[begun++];
            kernel->call(arguments);
            Thread* me = running->thread;
            done++;
            if (!waiting.empty()) {  // whoever waits for this thread need not
                me->warp->there &= ~(1u << me->lane);
                for (int i = 0; i < me->warp->count; i++) look(*me->warp, me->warp->groups[i]);
                come(me->block->barrier, --me->block->alive);
                come(me->block->cluster->barrier, --me->block->cluster->alive);
            } else me->warp->there &= ~(1u << me->lane), me->block->alive--, me->block->cluster->alive--;
        }
        running->thread = nullptr;
        yield();
    }
}
static void resume(Fiber* f) {
    running = f;
    now = f->thread;
    cuda_on_cpu_switch(&scheduler, f->at);
}
static Fiber* fiber() {
    if (idle.empty()) {
        static size_t made;
        char* stack = (char*)mmap(nullptr, STACK + STAGGERED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) { perror("cuda_on_cpu: no stack"); abort(); }
        void** top = (void**)(stack + STACK + made++ * 320 % STAGGERED) - 8;  // six registers, where it begins, and what a call would leave
        std::fill_n(top, 8, nullptr);
        top[6] = (void*)fiber_main;
        idle.push_back(new Fiber{top, stack});
    }
    Fiber* f = idle.back();
    idle.pop_back();
    return f;
}
// Runs the blocks from `first` to `last` together.
static void run_blocks(int first, int last, unsigned shared, int cluster, unsigned seed) {
    const int count = last - first, threads = block_dim.x * block_dim.y * block_dim.z, warps = (threads + 31) / 32;
    static vector<Thread> all; static vector<Warp> lanes; static vector<Block> blocks; static vector<Cluster> clusters;
    const size_t room = (shared + 255) / 128 * 128;
    unsigned* memory = (unsigned*)aligned_alloc(128, room * count);
    std::fill_n(memory, room * count / 4, 0x7fc07fc0u);  // NaN
    all.assign((size_t)count * threads, Thread{}); blocks.assign(count, Block{});
    lanes.resize(count * warps); clusters.assign((count + cluster - 1) / cluster, Cluster{});
    order.clear();
    begun = done = 0;
    for (int b = 0; b < count; b++) {
        const unsigned n = first + b;
        Cluster* of = &clusters[b / cluster];
        of->alive += threads;
        blocks[b] = {{n % grid_dim.x, n / grid_dim.x % grid_dim.y, n / grid_dim.x / grid_dim.y}, (unsigned char*)memory + room * b,
                     {}, threads, b % cluster, of};
        for (int t = 0; t < threads; t++) {
            Warp* warp = &lanes[b * warps + t / 32];
            if (t % 32 == 0) warp->there = 0, warp->count = 0;
            warp->there |= 1u << t % 32;
            Thread* thread = &all[(size_t)b * threads + t];
            const unsigned x = block_dim.x, y = block_dim.y;
            *thread = {{t % x, t / x % y, t / x / y}, t % 32, &blocks[b], warp};
            order.push_back(thread);
        }
    }
    uint64_t state = seed;
    auto shuffle = [&](auto& items) {
        for (size_t left = seed ? items.size() : 0; left > 1; left--) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            std::swap(items[left - 1], items[(state >> 33) % left]);
        }
    };
    shuffle(order);
    while (done < order.size()) {
        const long before = progress + begun;
        while (begun < order.size()) {
            Fiber* f = fiber();
            resume(f);
            (f->thread ? waiting : idle).push_back(f);
        }
        shuffle(waiting);
        vector<Fiber*> still;
        still.reserve(waiting.size());
        for (Fiber* f : waiting) {
            if (!f->turn || *f->turn != f->number) resume(f);
            (f->thread ? still : idle).push_back(f);
        }
        waiting.swap(still);
        if (progress + (long)begun == before && done < order.size()) {
            failure = "threads wait for what never comes";
            for (Fiber* f : waiting) munmap(f->stack, STACK + STAGGERED), delete f;
            waiting.clear();
            break;
        }
    }
    free(memory);
}
static long seed = -1;  // of the order of threads, 0 for that of their numbers
static string execute(const Kernel* what, dim3 grid, dim3 block, unsigned shared, bool together, void** args) {
    if (seed < 0) seed = getenv("CUDA_ON_CPU_SEED") ? atoi(getenv("CUDA_ON_CPU_SEED")) : 0;
    kernel = what, arguments = args, grid_dim = grid, block_dim = block, failure.clear();
    const int blocks = grid.x * grid.y * grid.z, step = together ? blocks : what->cluster;
    for (int b = 0; b < blocks && failure.empty(); b += step) run_blocks(b, std::min(b + step, blocks), shared, what->cluster, seed);
    return failure;
}
}  // namespace cuda_on_cpu

// ------------------------------------------------------------------------------------------ what is counted and checked
static std::recursive_mutex mutex_;
#define LOCK std::lock_guard<std::recursive_mutex> guard_(mutex_)
static int setting(const char* name, int otherwise) { const char* s = getenv(name); return s ? atoi(s) : otherwise; }
static int sm() { return setting("CUDA_ON_CPU_SM", 90); }
static int processors() { return map<int, int>{{75, 40}, {80, 108}, {89, 128}, {90, 132}, {120, 170}}.emplace(sm(), 132).first->second; }
static int optin() { return sm() == 75 ? 65536 : sm() == 80 ? 166912 : sm() == 90 || sm() == 100 ? 232448 : 101376; }
static int devices() { return setting("CUDA_ON_CPU_DEVICES", 1); }
static const char* NAMES[] = {"launches", "cooperative", "memcpyAsync", "memcpy", "memset", "sync", "eventRecord", "eventQuery", "gemm",
                              "mallocs", "graphs", "captured", "illegal", "mallocs_in_capture", "to_device", "to_host", "modules", "allocations"};
enum { LAUNCHES, COOPERATIVE, COPIES, COPIES_SYNC, SETS, SYNCS, RECORDS, QUERIES, GEMMS, MALLOCS, GRAPHS, CAPTURED, ILLEGAL, MALLOCS_CAPTURED, TO_DEVICE, TO_HOST, MODULES, ALLOCATIONS, KINDS };
static long counts[KINDS];
static vector<string> names, problems;
static int keep_names;
static void problem(const string& what) {
    counts[ILLEGAL]++;
    problems.push_back(what);
    if (getenv("CUDA_ON_CPU_VERBOSE")) fprintf(stderr, "cuda_on_cpu: %s\n", what.c_str());
}
extern "C" {
void cuda_on_cpu_keep_names(int more) { LOCK; keep_names += more; if (!keep_names) names.clear(); }
int cuda_on_cpu_set(const char* name, int value) { LOCK; const int before = cuda_on_cpu::seed; if (!strcmp(name, "seed")) cuda_on_cpu::seed = value; return std::max(before, 0); }
long cuda_on_cpu_count(int k) { return counts[k]; }
const char* cuda_on_cpu_count_name(int k) { return k < KINDS ? NAMES[k] : nullptr; }
const char* cuda_on_cpu_lines(int which) {
    LOCK;
    static string s;
    s.clear();
    for (auto& n : which ? problems : names) s += n + "\n";
    return s.c_str();
}
void cuda_on_cpu_took(void*, size_t, void*) { LOCK; counts[ALLOCATIONS]++; }
void cuda_on_cpu_gave_back(void*) {}
}

// ------------------------------------------------------------------------------------------ streams, captures, events
using Op = std::function<cudaError_t()>;
struct Graph { vector<Op> ops; bool spoiled = false; };
struct Stream { unsigned flags = 0; std::shared_ptr<Graph> capture; bool origin = false; std::deque<Op> queue; size_t finished = 0; };
struct Event { Stream* stream = nullptr; size_t place = 0; std::shared_ptr<Graph> capture; double time = 0; };
static Stream null_stream;
static std::set<Stream*> streams = {&null_stream};
static cudaError_t sticky = cudaSuccess;
static int global_captures;
static Stream* stream_of(void* s) { return s == nullptr || s == (void*)1 || s == (void*)2 ? &null_stream : (Stream*)s; }
static Stream* capturing() { for (auto* s : streams) if (s->capture) return s; return nullptr; }
static bool lazy() { static const bool on = setting("CUDA_ON_CPU_LAZY", 0); return on; }
static double seconds() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static cudaError_t failed(cudaError_t e) { return e ? sticky = e : e; }

// What is given to a stream runs at once; with CUDA_ON_CPU_LAZY=1 as late as it may: when somebody waits for it.
static void drain(Stream* s, size_t place = ~0ul) {
    while (!s->queue.empty() && s->finished < place) {
        Op op = std::move(s->queue.front());
        s->queue.pop_front();
        s->finished++;
        failed(op());
    }
}
static void drain_all() { for (auto* s : streams) drain(s); }
static cudaError_t spoil(const string& what, cudaError_t e = cudaErrorStreamCaptureUnsupported) {
    problem(what);
    for (auto* s : streams) if (s->capture) s->capture->spoiled = true;
    return e;
}
static cudaError_t submit(void* to, const string& what, Op op) {
    Stream* s = stream_of(to);
    if (keep_names) {
        char stream[24];
        snprintf(stream, sizeof stream, "%s%lx ", s->capture ? "C " : "  ", (unsigned long)to);
        names.push_back(stream + what);
    }
    if (s->capture) {
        counts[CAPTURED]++;
        s->capture->ops.push_back(op);
        return cudaSuccess;
    }
    if (capturing()) {
        if (s == &null_stream && !(capturing()->flags & 1)) return spoil("the default stream in a capture: " + what, cudaErrorStreamCaptureImplicit);
        problem("work on another stream within a capture: " + what);
    }
    if (sticky) return sticky;
    if (!lazy()) return failed(op());
    for (auto* o : streams) if (o != s && (s == &null_stream ? !(o->flags & 1) : o == &null_stream && !(s->flags & 1))) drain(o);
    s->queue.push_back(op);
    return cudaSuccess;
}
static cudaError_t waited(const char* what) {
    counts[SYNCS]++;
    if (keep_names) names.push_back(string("  ") + what);
    return capturing() && global_captures ? spoil(string(what) + " in a capture") : cudaSuccess;
}

// ------------------------------------------------------------------------------------------ memory
struct Room { size_t size; int device; };
static map<char*, Room> memory;
static thread_local int device;
static bool known(const void* p, Room* found = nullptr) {
    auto i = memory.upper_bound((char*)p);
    if (i == memory.begin() || (char*)p >= (--i)->first + std::max(i->second.size, (size_t)1)) return false;
    if (found) *found = i->second;
    return true;
}

extern "C" {
const char* cudaGetErrorName(cudaError_t e) {
    static const map<int, const char*> known = {{1, "InvalidValue"}, {2, "MemoryAllocation"}, {101, "InvalidDevice"}, {719, "LaunchFailure"},
        {401, "IllegalState"}, {600, "NotReady"}, {900, "StreamCaptureUnsupported"}, {901, "StreamCaptureInvalidated"},
        {905, "StreamCaptureIsolation"}, {906, "StreamCaptureImplicit"}, {907, "CapturedEvent"}};
    static thread_local char b[60];
    snprintf(b, 60, known.count(e) ? "cudaError%s" : "cudaError%s%d", known.count(e) ? known.at(e) : "", e);
    return b;
}
const char* cudaGetErrorString(cudaError_t e) {
    static thread_local char b[60];
    snprintf(b, 60, e >= 900 && e < 908 ? "operation not permitted when stream is capturing" : "error %d of the fake CUDA", e);
    return b;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* v) { *v = 12090; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { *v = 12090; return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { *d = device; return cudaSuccess; }
cudaError_t cudaSetDevice(int d) { if (d < 0 || d >= devices()) return cudaErrorInvalidDevice; device = d; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* c) { *c = devices(); return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
    const map<int, int> known = {{75, sm() / 10}, {76, sm() % 10}, {16, processors()}, {97, optin()}, {8, 49152}, {1, 1024},
                                 {10, 32}, {39, 2048}, {95, 1}, {115, 1}, {81, 49152 * 2}, {82, 65536}, {12, 65536}};
    *v = known.count(a) ? known.at(a) : 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, sm() == 75 ? "Tesla T4" : sm() == 89 ? "NVIDIA GeForce RTX 4090" : "NVIDIA H100 80GB HBM3");
    p->major = sm() / 10, p->minor = sm() % 10, p->multiProcessorCount = processors(), p->totalGlobalMem = 80ull << 30;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = optin(), p->warpSize = 32, p->maxThreadsPerBlock = 1024;
    p->regsPerBlock = 65536, p->maxThreadsPerMultiProcessor = 2048;
    for (int i = 0; i < 3; i++) p->maxThreadsDim[i] = i < 2 ? 1024 : 64, p->maxGridSize[i] = i ? 65535 : 2147483647;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    LOCK;
    if (auto e = waited("deviceSynchronize")) return e;
    if (capturing()) return spoil("deviceSynchronize in a capture");
    drain_all();
    return sticky;
}
cudaError_t cudaMalloc(void** p, size_t n) {
    LOCK;
    counts[MALLOCS]++;
    if (capturing()) {
        counts[MALLOCS_CAPTURED]++;
        if (global_captures) return spoil("cudaMalloc in a capture that is not relaxed");
    }
    if (n > (64ull << 30) || posix_memalign(p, 512, n)) return cudaErrorMemoryAllocation;
    if (n < (16 << 20)) memset(*p, 0xff, n);  // NaN of every type
    memory[(char*)*p] = {n, device};
    return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFree(void* p) {
    LOCK;
    if (!p) return cudaSuccess;
    if (!memory.erase((char*)p)) { problem("free of memory that is not there"); return cudaErrorInvalidValue; }
    if (!capturing()) drain_all();
    free(p);
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return posix_memalign(p, 512, n) ? cudaErrorMemoryAllocation : cudaSuccess; }
cudaError_t cudaFreeHost(void* p) { LOCK; if (!capturing()) drain_all(); free(p); return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) { *f = 70ull << 30, *t = 80ull << 30; return cudaSuccess; }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) {
    LOCK;
    counts[COPIES_SYNC]++;
    if (known(d) != known(s)) counts[known(d) ? TO_DEVICE : TO_HOST]++;
    if (keep_names) names.push_back("  memcpy");
    if (capturing()) return spoil("memcpy in a capture");
    drain_all();
    if (!sticky) memmove(d, s, n);
    return sticky;
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind kind, cudaStream_t t) {
    LOCK;
    counts[COPIES]++;
    const string what = "memcpyAsync of " + std::to_string(n) + " bytes, kind " + std::to_string(kind);
    const bool from = known(s), to = known(d);
    if (from != to) counts[to ? TO_DEVICE : TO_HOST]++;
    if (stream_of(t)->capture && !(from && to)) problem("host memory in a capture: " + what);
    auto e = submit(t, what, [=] { memmove(d, s, n); return cudaSuccess; });
    if (lazy() && !stream_of(t)->capture && !(from && to)) drain(stream_of(t));  // as for memory that is not pinned
    return e;
}
cudaError_t cudaMemcpyPeer(void* d, int, const void* s, int, size_t n) { return cudaMemcpy(d, s, n, cudaMemcpyDeviceToDevice); }
cudaError_t cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, cudaStream_t t) { return cudaMemcpyAsync(d, s, n, cudaMemcpyDeviceToDevice, t); }
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t t) {
    LOCK;
    counts[SETS]++;
    return submit(t, "memset", [=] { memset(d, v, n); return cudaSuccess; });
}
cudaError_t cudaMemset(void* d, int v, size_t n) { return cudaMemsetAsync(d, v, n, nullptr); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    LOCK;
    memset(a, 0, sizeof *a);
    Room room = {0, 0};
    a->type = known(p, &room) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    a->devicePointer = (void*)p, a->device = room.device;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) { LOCK; auto* n = new Stream; n->flags = flags; streams.insert(n); *s = (cudaStream_t)n; return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) { return cudaStreamCreateWithFlags(s, flags); }
cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned* f) { *f = stream_of(s)->flags; return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* f) { *f = 0; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { LOCK; drain(stream_of(s)); return cudaSuccess; }  // kept: events may name it
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    LOCK;
    if (auto e = waited("streamSynchronize")) return e;
    if (stream_of(s)->capture) return spoil("streamSynchronize of a stream that is captured");
    if (capturing()) problem("streamSynchronize of another stream in a capture");
    if (s == nullptr) drain_all(); else drain(stream_of(s));
    return sticky;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    LOCK;
    if (stream_of(s)->capture) return spoil("streamQuery of a stream that is captured");
    return sticky ? sticky : stream_of(s)->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t to, cudaEvent_t event, unsigned) {
    LOCK;
    Stream* s = stream_of(to);
    auto* e = (Event*)event;
    if (e->capture) {  // the stream joins the capture
        if (!s->capture) s->capture = e->capture, s->origin = false;
        return cudaSuccess;
    }
    if (s->capture) return spoil("a captured stream waits for an event of outside", cudaErrorStreamCaptureIsolation);
    if (e->stream && lazy()) { Stream* of = e->stream; const size_t place = e->place; return submit(to, "wait", [=] { drain(of, place); return cudaSuccess; }); }
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t to, cudaStreamCaptureMode mode) {
    LOCK;
    Stream* s = stream_of(to);
    if (s == &null_stream) { problem("capture of the default stream"); return cudaErrorStreamCaptureUnsupported; }
    if (s->capture) return cudaErrorIllegalState;
    drain(s);
    s->capture = std::make_shared<Graph>(), s->origin = true;
    if (mode != cudaStreamCaptureModeRelaxed) global_captures++;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t to, cudaGraph_t* g) {
    LOCK;
    Stream* s = stream_of(to);
    if (!s->capture || !s->origin) return cudaErrorIllegalState;
    auto graph = s->capture;
    for (auto* o : streams) if (o->capture == graph) o->capture = nullptr;
    global_captures = 0;
    *g = graph->spoiled ? nullptr : (cudaGraph_t) new std::shared_ptr<Graph>(graph);
    return graph->spoiled ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* c) {
    LOCK;
    const auto& graph = stream_of(s)->capture;
    *c = !graph ? cudaStreamCaptureStatusNone : graph->spoiled ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) { *e = (cudaGraphExec_t) new std::shared_ptr<Graph>(*(std::shared_ptr<Graph>*)g); return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete (std::shared_ptr<Graph>*)g; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { LOCK; drain_all(); delete (std::shared_ptr<Graph>*)e; return cudaSuccess; }
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    LOCK;
    counts[GRAPHS]++;
    auto graph = *(std::shared_ptr<Graph>*)e;
    return submit(s, "graph of " + std::to_string(graph->ops.size()), [graph] {
        for (auto& op : graph->ops) if (auto e = op()) return e;
        return cudaSuccess;
    });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = (cudaEvent_t) new Event; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete (Event*)e; return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* f, cudaEvent_t a, cudaEvent_t b) { *f = std::max(1e-3, (((Event*)b)->time - ((Event*)a)->time) * 1e3); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t to) {
    LOCK;
    counts[RECORDS]++;
    Stream* s = stream_of(to);
    *(Event*)event = {s, s->finished + s->queue.size(), s->capture, seconds()};
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    LOCK;
    counts[QUERIES]++;
    auto* e = (Event*)event;
    if (e->capture) return spoil("eventQuery of an event that was captured", cudaErrorCapturedEvent);
    return !e->stream || e->stream->finished >= e->place ? sticky : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    LOCK;
    if (auto e = waited("eventSynchronize")) return e;
    auto* e = (Event*)event;
    if (e->capture) return spoil("eventSynchronize of an event that was captured", cudaErrorCapturedEvent);
    if (capturing()) problem("eventSynchronize in a capture");
    if (e->stream) drain(e->stream, e->place);
    return sticky;
}

// ------------------------------------------------------------------------------------------ modules and launches
CUresult cuGetErrorName(CUresult e, const char** s) {
    static const map<int, const char*> known = {{1, "INVALID_VALUE"}, {2, "OUT_OF_MEMORY"}, {200, "INVALID_IMAGE"}, {500, "NOT_FOUND"},
        {719, "LAUNCH_FAILED"}, {720, "COOPERATIVE_LAUNCH_TOO_LARGE"}, {900, "STREAM_CAPTURE_UNSUPPORTED"}, {912, "INVALID_CLUSTER_SIZE"}};
    static thread_local char b[60];
    snprintf(b, 60, known.count(e) ? "CUDA_ERROR_%s" : "CUDA_ERROR_%s%d", known.count(e) ? known.at(e) : "", e);
    *s = b;
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char** s) { *s = cudaGetErrorString((cudaError_t)e); return CUDA_SUCCESS; }
CUresult cuInit(unsigned) { return CUDA_ERROR_NO_DEVICE; }  // for those who bring a runtime of their own
CUresult cuCtxGetCurrent(CUcontext* c) { *c = (CUcontext)0x77; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* d) { *d = device; return CUDA_SUCCESS; }
CUresult cuCtxCreate_v2(CUcontext* c, unsigned, CUdevice) { *c = (CUcontext)0x77; return CUDA_SUCCESS; }
CUresult cuCtxDestroy_v2(CUcontext) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUresult cuStreamGetCtx(CUstream, CUcontext* c) { *c = (CUcontext)0x77; return CUDA_SUCCESS; }

struct Function { string name; const cuda_on_cpu::Kernel* kernel; int dynamic = 49152; bool large = false; };

CUresult cuModuleLoadData(CUmodule* m, const void* image) {
    LOCK;
    counts[MODULES]++;
    if (capturing()) {
        problem("a module is loaded in a capture");
        if (global_captures) return (CUresult)spoil("a module is loaded in a capture that is not relaxed");
    }
    auto* e = (const unsigned char*)image;
    if (memcmp(e, "\x7f" "ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
    const size_t size = *(size_t*)(e + 0x28) + *(uint16_t*)(e + 0x3c) * *(uint16_t*)(e + 0x3a);  // its table of sections is last
    static int loaded;
    const string path = "/tmp/cuda_on_cpu-" + std::to_string(getpid()) + "-" + std::to_string(loaded++) + ".so";
    FILE* f = fopen(path.c_str(), "wb");
    if (!f) return CUDA_ERROR_OPERATING_SYSTEM;
    fwrite(image, 1, size, f);
    fclose(f);
    *m = (CUmodule)dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    unlink(path.c_str());
    if (!*m) { problem(dlerror()); return CUDA_ERROR_INVALID_IMAGE; }
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
    LOCK;
    auto found = (void* (*)())dlsym(m, (string("cuda_on_cpu_kernel_") + name).c_str());
    if (!found) { problem(string("no kernel ") + name); return CUDA_ERROR_NOT_FOUND; }
    *f = (CUfunction) new Function{name, (const cuda_on_cpu::Kernel*)found()};
    return CUDA_SUCCESS;
}
CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* n, CUmodule m, const char* name) {
    *p = (CUdeviceptr)dlsym(m, name), *n = 0;
    return *p ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
    auto* k = (Function*)f;
    *v = a == 8 ? k->dynamic : a == 0 ? (k->kernel->threads ? k->kernel->threads : 1024) : a == 4 ? 32 : 0;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
    LOCK;
    auto* k = (Function*)f;
    if (a == 8 && v > optin()) { problem("more shared memory than a block may have: " + std::to_string(v)); return CUDA_ERROR_INVALID_VALUE; }
    if (a == 8) k->dynamic = std::max(v, 49152);
    if (a == 14) k->large = v;
    return CUDA_SUCCESS;
}
static CUresult launch(CUfunction f, dim3 grid, dim3 block, unsigned shared, CUstream s, void** given, bool together) {
    LOCK;
    counts[LAUNCHES]++;
    auto* k = (Function*)f;
    const cuda_on_cpu::Kernel& kernel = *k->kernel;
    const unsigned threads = block.x * block.y * block.z;
    const string what = k->name.substr(0, 90) + " grid " + std::to_string(grid.x) + "," + std::to_string(grid.y) + " block " +
                        std::to_string(threads) + " shared " + std::to_string(shared);
    if (threads > 1024 || !threads || (kernel.threads && threads > (unsigned)kernel.threads) || grid.y > 65535 || grid.z > 65535 ||
        !grid.x || !grid.y || !grid.z || (int)shared > k->dynamic || grid.x % kernel.cluster || kernel.cluster > (k->large ? 16 : 8)) {
        problem("a launch beyond limits: " + what);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (kernel.cluster > setting("CUDA_ON_CPU_CLUSTER", 16)) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    if (together) {
        counts[COOPERATIVE]++;
        if (grid.x * grid.y * grid.z > (unsigned)processors()) { problem("a cooperative grid beyond the device: " + what); return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE; }
    }
    size_t total = 0;
    for (int i = 0; i < kernel.count; i++) total += (kernel.sizes[i] + 15) / 16 * 16;
    std::shared_ptr<char> copy((char*)aligned_alloc(64, total + 64), free);
    vector<void*> args;
    total = 0;
    for (int i = 0; i < kernel.count; i++) {
        args.push_back(copy.get() + total);
        memcpy(args.back(), given[i], kernel.sizes[i]);
        total += (kernel.sizes[i] + 15) / 16 * 16;
    }
    return (CUresult)submit(s, what, [=, &kernel]() mutable {
        const string failure = cuda_on_cpu::execute(&kernel, grid, block, shared, together, args.data());
        (void)copy;
        if (failure.empty()) return cudaSuccess;
        problem(what + ": " + failure);
        return cudaErrorLaunchFailure;
    });
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                        CUstream s, void** args, void**) { return launch(f, dim3(gx, gy, gz), dim3(bx, by, bz), shared, s, args, false); }
CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                   unsigned shared, CUstream s, void** args) { return launch(f, dim3(gx, gy, gz), dim3(bx, by, bz), shared, s, args, true); }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) { *n = 1; return CUDA_SUCCESS; }
CUresult cuOccupancyMaxPotentialBlockSize(int* a, int* b, CUfunction, CUoccupancyB2DSize, size_t, int) { *a = processors(), *b = 256; return CUDA_SUCCESS; }

// For cublas.cpp and thrust.cpp.
int cuda_on_cpu_submit(void* stream, const char* what, void (*go)(void*), const void* data, size_t size) {
    LOCK;
    counts[strcmp(what, "sort") ? GEMMS : LAUNCHES]++;
    string kept((const char*)data, size);
    return submit(stream, what, [=]() mutable { go(kept.data()); return cudaSuccess; }) ? 13 : 0;
}
}
