// The threads of a kernel, in one thread of the host. A fiber runs thread after thread until one waits for others, then
// another fiber does; so a kernel without barriers is a plain loop. Blocks that may wait for one another run together.
#include <sys/mman.h>
#include "driver.hpp"

namespace cuda_on_cpu {

Thread* now;
dim3 block_dim, grid_dim;
long progress, rounds;

// Keeps the registers that a call keeps, and goes on where another fiber did so.
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(.globl cuda_on_cpu_switch
cuda_on_cpu_switch: pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi)
    movq %rsi, %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret)");

struct Fiber {
    void* at;
    char* stack;
    Thread* thread;
    const long* turn;  // that the thread waits for, and its number now; null where it asks again and again
    long number;
};
constexpr size_t STACK = 1 << 17, STAGGERED = 1 << 16;  // else all stacks were in the same lines of a cache
constexpr int PATIENCE = 10000;                         // rounds in which threads ask and nothing changes
constexpr unsigned NOBODY_WROTE = 0x7fc07fc0;           // NaN of every type
static vector<Fiber*> idle, waiting, turns;  // of which those before `place` have had their turn
static size_t place;
static Fiber* running;
static void* scheduler;
static vector<Thread*> order;  // in which threads begin
static size_t begun, done;
static string failure;
static const Kernel* kernel;
static void** arguments;
static Statics statics;
static Block* loaded;  // whose __shared__ variables are where the kernel has them

static void load(Block* block) {
    if (!statics.size || block == loaded) return;
    if (loaded) memcpy(loaded->statics, statics.at, statics.size);
    memcpy(statics.at, block->statics, statics.size);
    loaded = block;
}
static Fiber* next();
// Goes on with a fiber, or with the scheduler where there is none; returns when somebody goes on with this one.
static void go_on(Fiber* fiber, void** from) {
    running = fiber;
    if (fiber && (now = fiber->thread)) load(now->block);
    cuda_on_cpu_switch(from, fiber ? fiber->at : scheduler);
}
void yield() {
    Fiber* me = running;
    (me->thread ? waiting : idle).push_back(me);
    go_on(next(), &me->at);
}
static void wait(const long& turn, long number) {
    while (turn == number) {
        running->turn = &turn, running->number = number;
        yield();
    }
    running->turn = nullptr;
}
void fail(const char* why) { failure = why; }

// ---- barriers
static void look(Barrier& barrier, int alive) {
    progress++;
    if (barrier.come == alive && alive) barrier = {0, barrier.turn + 1};
}
static void look(Warp& warp, Warp::Group& group) {  // lanes that are done count
    if (group.come && ((group.come | ~warp.there) & group.mask) == group.mask)
        group.came = group.come, group.come = 0, group.turn++;
}
static long arrive(Barrier& barrier, int alive) {
    const long turn = barrier.turn;
    barrier.come++;
    look(barrier, alive);
    return turn;
}
void block_barrier() {
    Block& block = *now->block;
    wait(block.barrier.turn, arrive(block.barrier, block.alive));
}
void cluster_arrive() { now->cluster_turn = arrive(now->block->cluster->barrier, now->block->cluster->alive); }
void cluster_wait() { wait(now->block->cluster->barrier.turn, now->cluster_turn); }
void warp_barrier(unsigned mask) {
    Warp& warp = *now->warp;
    int i = 0;
    while (i < warp.count && warp.groups[i].mask != mask) i++;
    if (i == (int)std::size(warp.groups)) return fail("lanes wait for one another in too many groups");
    Warp::Group& group = warp.groups[i];
    if (i == warp.count) group = {mask}, warp.count++;
    const long turn = group.turn;
    if (!(mask >> now->lane & 1)) fail("a lane is not in the mask that it gives");
    group.come |= 1u << now->lane;
    progress++;
    look(warp, group);
    wait(group.turn, turn);
}
// What is sent comes later, in an order of its own: while somebody waits, one after the other.
static vector<Sent> sent;
void send(const Sent& words) { sent.push_back(words); }
void receive_one() {
    static uint64_t drawn = 1;
    if (sent.empty()) return;
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    std::swap(sent[(drawn >> 33) % sent.size()], sent.back());
    const Sent one = sent.back();
    sent.pop_back();
    memcpy(one.to, one.words, one.size);
    one.arrivals->missing -= one.size;
    one.arrivals->check();
}

// ---- fibers
static void leave(Thread* thread) {
    Block& block = *thread->block;
    done++, block.alive--, block.cluster->alive--;
    thread->warp->there &= ~(1u << thread->lane);
    if (waiting.empty()) return;
    for (int i = 0; i < thread->warp->count; i++) look(*thread->warp, thread->warp->groups[i]);
    look(block.barrier, block.alive);
    look(block.cluster->barrier, block.cluster->alive);
}
static void fiber_main() {
    for (;;) {
        while (begun < order.size()) {
            now = running->thread = order[begun++];
            load(now->block);
            kernel->call(arguments);
            leave(running->thread);
        }
        running->thread = nullptr;
        yield();
    }
}
static Fiber* take_fiber() {
    static size_t made;
    if (idle.empty()) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        char* stack = (char*)mmap(nullptr, STACK + STAGGERED, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (stack == MAP_FAILED) perror("cuda_on_cpu: no memory for threads"), abort();
        void** top = (void**)(stack + STACK + made++ * 320 % STAGGERED) - 8;  // six registers, and where it begins
        std::fill_n(top, 8, nullptr);
        top[6] = (void*)fiber_main;
        idle.push_back(new Fiber{top, stack});
    }
    Fiber* fiber = idle.back();
    return idle.pop_back(), fiber;
}
static Fiber* next() {  // the next of this round that need not wait
    if (begun < order.size()) return take_fiber();
    while (place < turns.size()) {
        Fiber* fiber = turns[place++];
        if (!fiber->turn || *fiber->turn != fiber->number) return fiber;
        waiting.push_back(fiber);
    }
    return nullptr;
}

// ---- blocks
static uint64_t state;
template <class T> static void shuffle(vector<T>& items) {  // from 0 the order stays
    for (size_t left = state ? items.size() : 0; left > 1; left--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(items[left - 1], items[(state >> 33) % left]);
    }
}
static void run_threads() {
    for (int patience = PATIENCE; done < order.size();) {
        rounds++;
        const long before = progress + begun + done;
        if (begun < order.size()) go_on(take_fiber(), &scheduler);
        shuffle(waiting);
        turns.clear(), turns.swap(waiting), place = 0;
        const bool asks = std::any_of(turns.begin(), turns.end(), [](Fiber* fiber) { return !fiber->turn; });
        if (Fiber* first = next()) go_on(first, &scheduler);
        if (progress + (long)(begun + done) != before) patience = PATIENCE;
        else if (!asks || !patience--) {
            failure = "threads wait for what never comes";
            for (Fiber* fiber : std::exchange(waiting, {})) munmap(fiber->stack, STACK + STAGGERED), delete fiber;
            return;
        }
    }
}
static void run_blocks(int first, int count, unsigned shared) {
    static struct { vector<Thread> threads; vector<Warp> warps; vector<Block> blocks; vector<Cluster> clusters; } all;
    static vector<unsigned> memory;
    auto& [threads, warps, blocks, clusters] = all;
    const unsigned x = block_dim.x, y = block_dim.y, size = x * y * block_dim.z, in_block = (size + 31) / 32;
    const size_t dynamic = (shared + 255) / 128 * 128, room = dynamic + (statics.size + 127) / 128 * 128;
    memory.assign(room * count / 4 + 32, NOBODY_WROTE);
    auto* begin = (unsigned char*)(((uintptr_t)memory.data() + 127) / 128 * 128);
    threads.assign((size_t)count * size, {}), blocks.assign(count, {}), warps.resize(count * in_block);
    clusters.assign((count + kernel->cluster - 1) / kernel->cluster, {});
    order.clear();
    begun = done = 0, loaded = nullptr;
    for (int b = 0; b < count; b++) {
        const unsigned n = first + b;
        unsigned char* own = begin + room * b;
        Cluster* cluster = &clusters[b / kernel->cluster];
        cluster->alive += size;
        blocks[b] = {{n % grid_dim.x, n / grid_dim.x % grid_dim.y, n / grid_dim.x / grid_dim.y}, own, own + dynamic,
                     (unsigned char*)statics.at, {}, (int)size, b % kernel->cluster, cluster};
        for (unsigned t = 0; t < size; t++) {
            Warp* warp = &warps[b * in_block + t / 32];
            if (t % 32 == 0) warp->there = 0, warp->count = 1, warp->groups[0] = {~0u};
            warp->there |= 1u << t % 32;
            threads[(size_t)b * size + t] = {{t % x, t / x % y, t / x / y}, (int)t % 32, &blocks[b], warp};
            order.push_back(&threads[(size_t)b * size + t]);
        }
    }
    state = settings["seed"];
    shuffle(order);
    run_threads();
}
}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;
string execute(const Kernel* what, dim3 grid, dim3 block, unsigned shared, bool together, void** args, Statics own) {
    kernel = what, arguments = args, grid_dim = grid, block_dim = block, statics = own, failure.clear(), sent.clear();
    const int blocks = grid.x * grid.y * grid.z, step = together ? blocks : what->cluster;
    for (int b = 0; b < blocks && failure.empty(); b += step) run_blocks(b, std::min(step, blocks - b), shared);
    return failure;
}
