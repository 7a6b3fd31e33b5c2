// This runs the threads of all kernels as fibers. It is compiled once, for it takes longer than most kernels.

namespace shim {

std::vector<Fiber> fibers;
std::vector<Barrier> barriers[3];
Fiber* now;
jmp_buf scheduler;
dim3_ blockDim_, gridDim_;
long progress;
bool misused;
void (*body)(void**);
void** arguments;

static int alive;  // threads that are not done

static void resume(Fiber* fiber) {
    now = fiber;
    if (_setjmp(scheduler)) return;
    if (fiber->begun) _longjmp(fiber->place, 1);
    fiber->begun = true;
    setcontext(&fiber->context);
}

static void run_fiber() {
    body(arguments);
    alive--;
    progress++;
    now->thread = -1;
    yield();
}

// Runs the threads of all blocks from `first` to `last` as fibers. True: they wait for what never comes.
bool run_blocks(int first, int last, int threads, int shared, int cluster, unsigned seed) {
    const int blocks = last - first, warps = (threads + 31) / 32;
    std::vector<Block> all(blocks);
    std::vector<Warp> lanes(blocks * warps);
    std::vector<uint4> memory((size_t)blocks * (shared / 16 + 1), uint4{0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0});
    // Memory of stacks is neither written nor kept.
    constexpr size_t STACK = 1 << 16;
    char* const stacks = new char[STACK * blocks * threads];
    fibers = std::vector<Fiber>(blocks * threads);
    for (auto& of_a_kind : barriers) of_a_kind.assign(fibers.size(), Barrier{});
    std::vector<int> order;
    for (int b = 0; b < blocks; b++) {
        const int cluster_first = b / cluster * cluster * threads;
        all[b] = {block_index(first + b), (unsigned char*)&memory[(size_t)b * (shared / 16 + 1)], b * threads, cluster_first,
                  cluster * threads};
        for (int t = 0; t < threads; t++) {
            const int i = b * threads + t;
            Fiber* fiber = &fibers[i];
            fiber->block = &all[b];
            fiber->warp = &lanes[b * warps + t / 32];
            fiber->thread = t;
            getcontext(&fiber->context);
            fiber->context.uc_stack.ss_sp = &stacks[STACK * i];
            fiber->context.uc_stack.ss_size = STACK;
            fiber->context.uc_link = nullptr;
            makecontext(&fiber->context, run_fiber, 0);
            order.push_back(i);
        }
    }
    alive = (int)fibers.size();
    uint64_t state = seed;
    bool stuck = misused = false;
    while (alive && !stuck) {
        const long before = progress;
        for (size_t left = seed ? order.size() : 0; left > 1; left--) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            std::swap(order[left - 1], order[(state >> 33) % left]);
        }
        for (int i : order)
            if (fibers[i].thread >= 0) resume(&fibers[i]);
        stuck = progress == before;
    }
    delete[] stacks;
    return stuck || misused;
}

}  // namespace shim
