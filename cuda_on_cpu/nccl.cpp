// NCCL by its definition, between processes of one machine, by memory that they share.
#include <atomic>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include "driver.hpp"
#include "numbers.hpp"

enum Status { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
constexpr int MOST = 8;               // ranks
constexpr size_t PIECE = 64 << 10;    // bytes that a rank shows the others at once
constexpr size_t MESSAGE = 8 << 10;   // that one rank shows another one
struct Id { char name[128]; };
struct Way { std::atomic<size_t> sent, received; size_t size; char piece[MESSAGE]; };  // from one rank to another
struct Shared { std::atomic<int> came, turn; char pieces[MOST][PIECE]; Way ways[MOST][MOST]; };
struct Comm { int size, rank, device; Shared* shared; };
struct Message { Comm* comm; void* stream; bool sends; int peer; char* at; size_t size, done; };
static thread_local vector<Message> grouped;
static thread_local int groups;

static void meet(Comm* c) {
    const int turn = c->shared->turn;
    if (++c->shared->came == c->size) c->shared->came = 0, c->shared->turn++;
    else while (c->shared->turn == turn) sched_yield();
}
static int type_of(int nccl) {
    const map<int, int> known = {{6, F16}, {7, F32}, {8, F64}, {9, BF16}};
    return known.count(nccl) ? known.at(nccl) : -1;
}
static size_t bytes_of(int nccl) {  // 0 where there is no such type
    constexpr size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return (size_t)nccl < std::size(sizes) ? sizes[nccl] : 0;
}
static int submit_to(Comm* c, void* stream, const char* what, const Words& words, Op op) {
    for (auto* p : words)
        if (auto* room = room_of(p); !room || room->device != c->device) problem("NCCL with memory of another device");
    return submit(stream, "nccl", what, op, words) ? SYSTEM_ERROR : SUCCESS;
}
// Show each rank the pieces of all of them; `use(at, count)` is called while they are there.
template <class Use> static void in_pieces(Comm* c, const char* from, size_t size, Use use) {
    for (size_t at = 0; at < size; at += PIECE) {
        const size_t count = std::min(PIECE, size - at);
        memcpy(c->shared->pieces[c->rank], from + at, count);
        meet(c);
        use(at, count);
        meet(c);
    }
}
static void sum_up(Comm* c, const void* from, void* to, size_t n, int type) {  // `to` is nullptr: for others
    const size_t each = size_of(type);
    in_pieces(c, (const char*)from, n * each, [=](size_t at, size_t count) {
        for (size_t i = 0; to && i < count / each; i++) {
            double sum = 0;
            for (int rank = 0; rank < c->size; rank++) sum += get(c->shared->pieces[rank], type, i);
            put(to, type, at / each + i, sum);
        }
    });
}
static bool moved(Message& m) {  // a piece, where the other rank has shown or taken the last one
    const int own = m.comm->rank;
    Way& way = m.comm->shared->ways[m.sends ? own : m.peer][m.sends ? m.peer : own];
    if (m.sends == (way.sent > way.received)) return false;
    const size_t count = std::min(MESSAGE, m.size - m.done);
    if (m.sends) way.size = m.size, memcpy(way.piece, m.at + m.done, count), way.sent++;
    else {
        if (way.size != m.size) problem("NCCL receives " + to_string(m.size) + " of " + to_string(way.size) + " bytes");
        memcpy(m.at + m.done, way.piece, count), way.received++;
    }
    return m.done += count, true;
}
static void go_on(vector<Message> all) {  // messages between two ranks come in order
    while (!all.empty()) {
        bool any = false;
        vector<std::pair<int, bool>> busy;
        for (auto& m : all) {
            const std::pair way(m.peer, m.sends);
            if (m.done == m.size || std::count(busy.begin(), busy.end(), way)) continue;
            busy.push_back(way), any |= moved(m);
        }
        std::erase_if(all, [](auto& m) { return m.done == m.size; });
        if (!any) sched_yield();
    }
}
static int end_group() {
    const auto all = std::exchange(grouped, {});
    if (all.empty()) return SUCCESS;
    Words words;
    for (auto& m : all) {
        if (m.comm != all[0].comm || m.stream != all[0].stream) return INVALID_USAGE;
        if (m.size) words.push_back(m.at);
    }
    auto op = [all] { return go_on(all), cudaSuccess; };
    return submit_to(all[0].comm, all[0].stream, "messages", words, op);
}
static int message(bool sends, const void* at, size_t n, int nccl, int peer, Comm* c, void* stream) {
    LOCK;
    if (!bytes_of(nccl) || peer < 0 || peer >= c->size) return INVALID_ARGUMENT;
    grouped.push_back({c, stream, sends, peer, (char*)at, n * bytes_of(nccl)});
    return groups ? SUCCESS : end_group();
}
extern "C" {
int ncclGetVersion(int* version) { return *version = 21800, SUCCESS; }
const char* ncclGetErrorString(int) { return "an error of NCCL on the CPU"; }
int ncclGetUniqueId(Id* id) {
    static int number;
    return snprintf(id->name, sizeof id->name, "/cuda_on_cpu.%d.%d", getpid(), number++), SUCCESS;
}
int ncclCommInitRankConfig(Comm** made, int size, Id id, int rank, void*) {
    if (size > MOST) return INVALID_ARGUMENT;
    const int file = shm_open(id.name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared))) return SYSTEM_ERROR;
    void* at = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    *made = new Comm{size, rank, device, (Shared*)at};
    return meet(*made), close(file), shm_unlink(id.name), SUCCESS;
}
int ncclCommDestroy(Comm* c) { return munmap(c->shared, sizeof(Shared)), delete c, SUCCESS; }
int ncclCommGetAsyncError(Comm*, int* error) { return *error = settings["nccl_error"], SUCCESS; }
int ncclAllReduce(const void* from, void* to, size_t n, int nccl, int, Comm* c, void* stream) {
    LOCK;
    const int type = type_of(nccl);
    if (type < 0) return INVALID_ARGUMENT;
    return submit_to(c, stream, "allReduce", {from, to}, [=] { return sum_up(c, from, to, n, type), cudaSuccess; });
}
int ncclReduceScatter(const void* from, void* to, size_t n, int nccl, int, Comm* c, void* stream) {
    LOCK;
    const int type = type_of(nccl);
    if (type < 0) return INVALID_ARGUMENT;
    return submit_to(c, stream, "reduceScatter", {from, to}, [=] {
        for (int rank = 0; rank < c->size; rank++)
            sum_up(c, (char*)from + rank * n * size_of(type), rank == c->rank ? to : nullptr, n, type);
        return cudaSuccess;
    });
}
int ncclAllGather(const void* from, void* to, size_t n, int nccl, Comm* c, void* stream) {
    LOCK;
    const size_t size = n * bytes_of(nccl);
    if (!bytes_of(nccl)) return INVALID_ARGUMENT;
    return submit_to(c, stream, "allGather", {from, to}, [=] {
        in_pieces(c, (const char*)from, size, [=](size_t at, size_t count) {
            for (int rank = 0; rank < c->size; rank++)
                memcpy((char*)to + rank * size + at, c->shared->pieces[rank], count);
        });
        return cudaSuccess;
    });
}
int ncclSend(const void* from, size_t n, int nccl, int peer, Comm* c, void* stream) {
    return message(true, from, n, nccl, peer, c, stream);
}
int ncclRecv(void* to, size_t n, int nccl, int peer, Comm* c, void* stream) {
    return message(false, to, n, nccl, peer, c, stream);
}
int ncclGroupStart() { return groups++, SUCCESS; }
int ncclGroupEnd() {
    LOCK;
    if (!groups) return INVALID_USAGE;
    return --groups ? SUCCESS : end_group();
}
}
