// Streams, events, captures and graphs, and the blocks of pools that graphs use.
//
// What a stream is given runs at once, or where LAZY is set as late as it may: when somebody waits for it.
#include <chrono>
#include <deque>
#include <set>
#include "driver.hpp"

struct Block { size_t size; long number; bool captured; };  // of a pool; numbers are in order of allocation
struct Graph { long begun, ended; vector<Op> ops; map<char*, Block> uses; bool spoiled; };  // of blocks from, to
using Shared = std::shared_ptr<Graph>;
struct Stream {
    unsigned flags; Shared capture; bool origin; std::deque<Op> queue; size_t finished;
    size_t last;    // operations of the capture until its own last one
    bool unjoined;  // nobody in the capture has waited for that one
};
struct Event { Stream* stream; size_t place; Shared capture; double time; };

static Stream default_stream;
static std::set<Stream*> streams = {&default_stream};
static map<char*, Block> blocks, freed;  // that pools have given out, and memory that went back to a pool or the device
static cudaError_t sticky = cudaSuccess;
static int strict_captures;

static Stream* stream_of(void* s) { return (uintptr_t)s <= 2 ? &default_stream : (Stream*)s; }
static bool blocking(const Stream* s) { return !(s->flags & cudaStreamNonBlocking); }  // waits for the default stream
static const Stream* captured() {
    for (auto* s : streams) if (s->capture) return s;
    return nullptr;
}
bool capturing(bool strictly) { return captured() && (!strictly || strict_captures); }
bool is_capturing(void* s) { return stream_of(s)->capture != nullptr; }

static cudaError_t run(const Op& op) {
    if (auto error = op()) sticky = error;  // after an error of a kernel all calls fail
    return sticky;
}
static void drain(Stream* s, size_t place = ~0ul) {
    while (!s->queue.empty() && s->finished < place) {
        const Op op = std::move(s->queue.front());
        s->queue.pop_front();
        s->finished++;
        run(op);
    }
}
cudaError_t finish(void* stream) {
    Stream* s = stream_of(stream);
    for (auto* o : streams) if (s == &default_stream && blocking(o)) drain(o);
    return drain(s), sticky;
}
cudaError_t finish_all() {
    for (auto* s : streams) drain(s);
    return sticky;
}
cudaError_t spoil(const string& what, cudaError_t error) {
    problem(what);
    for (auto* s : streams) if (s->capture) s->capture->spoiled = true;
    return error;
}
static void use(Graph& graph, const void* p) {
    if (auto* block = holding(blocks, p)) graph.uses.insert(*block);
}
void forget(void* from, size_t size) {
    for (auto* known : {&blocks, &freed}) {
        auto first = known->lower_bound((char*)from);
        if (first != known->begin() && std::prev(first)->first + std::prev(first)->second.size > from) first--;
        known->erase(first, known->lower_bound((char*)from + size));
    }
}
void went_back(void* from, size_t size) { forget(from, size), freed[(char*)from] = {size}; }
// Whether memory that a graph uses went back to its pool; blocks of the capture itself may, if nobody else gets them.
static bool stale(const Graph& graph) {
    for (auto& [base, block] : graph.uses) {
        bool there = block.number > graph.begun;
        auto i = blocks.lower_bound(base + block.size);
        while (i != blocks.begin() && (--i)->first + i->second.size > base) {
            if (i->second.number > graph.ended && !i->second.captured) return true;
            there |= i->second.number == block.number;
        }
        if (!there || !room_of(base)) return true;
    }
    return false;
}
cudaError_t submit(void* to, const char* kind, const string& what, Op op, const Words& words) {
    Stream* s = stream_of(to);
    char address[24];
    snprintf(address, sizeof address, "%s%lx ", s->capture ? "C " : "  ", (unsigned long)to);
    if (*kind) counts[kind]++, note(address + what);
    if (kind == string("launches") || kind == string("gemm")) {
        for (auto* word : words) {
            if (auto* room = room_of(word); room && room->device != device)
                problem("memory of device " + to_string(room->device) + " on " + to_string(device) + ": " + what);
            if (holding(freed, word)) problem("memory that was given back: " + what);
        }
    }
    if (s->capture) {
        for (auto* word : words) use(*s->capture, word);
        s->capture->ops.push_back(op);
        return s->last = s->capture->ops.size(), s->unjoined = !s->origin, cudaSuccess;
    }
    if (capturing()) {
        if (s == &default_stream && blocking(captured()))
            return spoil("the default stream in a capture: " + what, cudaErrorStreamCaptureImplicit);
        problem("work on another stream within a capture: " + what);
    }
    if (sticky || !settings["lazy"]) return sticky ? sticky : run(op);
    for (auto* o : streams)
        if (o != s && (s == &default_stream ? blocking(o) : o == &default_stream && blocking(s))) drain(o);
    return s->queue.push_back(op), cudaSuccess;
}
bool idle(void* to, const char* kind) {
    static const int& asked = settings["idle"];
    return asked && !is_capturing(to) && ++counts[kind];
}
static cudaError_t waited(const char* what, bool illegal) {
    counts["sync"]++;
    note(string("  ") + what);
    if (illegal || capturing(true)) return spoil(string(what) + " in a capture");
    if (capturing()) problem(string(what) + " in a capture");
    return cudaSuccess;
}

long cuda_on_cpu::time_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

extern "C" {
void cuda_on_cpu_took(char* p, size_t size, void* stream) {  // a block that a pool gives holds NaN
    LOCK;
    if (!p) return;  // there was no memory
    forget(p, size);
    blocks[p] = {size, ++counts["allocations"], capturing()};
    if (!capturing()) submit(stream, "", "", [=] { return memset(p, 0xff, size), cudaSuccess; });
}
void cuda_on_cpu_gave_back(char* p, size_t size) { LOCK; went_back(p, size); }
void cuda_on_cpu_recover() { LOCK; sticky = cudaSuccess; }

cudaError_t cudaDeviceSynchronize() {
    LOCK;
    const auto error = waited("deviceSynchronize", capturing());
    return error ? error : finish_all();
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) {
    LOCK;
    return *s = (cudaStream_t)*streams.insert(new Stream{flags}).first, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { LOCK; return drain(stream_of(s)), cudaSuccess; }  // events may name it
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    LOCK;
    const auto error = waited("streamSynchronize", is_capturing(s));
    return error ? error : finish(s);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t to, cudaEvent_t event, unsigned) {
    LOCK;
    Stream* s = stream_of(to);
    const Event e = *(Event*)event;
    if (!e.capture && s->capture)
        return spoil("a captured stream waits for an event of outside", cudaErrorStreamCaptureIsolation);
    if (e.capture && !s->capture) s->capture = e.capture, s->origin = false;  // the stream joins the capture
    if (e.capture && s != e.stream && e.place >= e.stream->last)
        s->unjoined |= !s->origin && e.stream->unjoined, e.stream->unjoined = false;
    if (e.capture || !e.stream || !settings["lazy"]) return cudaSuccess;
    return submit(to, "", "", [=] { return drain(e.stream, e.place), cudaSuccess; });
}
cudaError_t cudaStreamBeginCapture(cudaStream_t to, cudaStreamCaptureMode mode) {
    LOCK;
    Stream* s = stream_of(to);
    if (s == &default_stream) return problem("capture of the default stream"), cudaErrorStreamCaptureUnsupported;
    if (s->capture) return cudaErrorIllegalState;
    drain(s);
    s->capture = std::make_shared<Graph>(Graph{counts["allocations"]}), s->origin = true;
    return strict_captures += mode != cudaStreamCaptureModeRelaxed, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t to, cudaGraph_t* g) {
    LOCK;
    const Shared graph = stream_of(to)->capture;
    if (!graph || !stream_of(to)->origin) return cudaErrorIllegalState;
    bool unjoined = false;
    for (auto* s : streams)
        if (s->capture == graph) s->capture = nullptr, unjoined |= std::exchange(s->unjoined, false);
    strict_captures = 0, graph->ended = counts["allocations"];
    if (unjoined) {
        problem("a capture ends, and nobody waits for another stream of it");
        return *g = nullptr, cudaErrorStreamCaptureUnjoined;
    }
    *g = graph->spoiled ? nullptr : (cudaGraph_t) new Shared(graph);
    return graph->spoiled ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
    LOCK;
    const auto& graph = stream_of(s)->capture;
    return *status = graph ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) {
    return *e = (cudaGraphExec_t) new Shared(*(Shared*)g), cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return delete (Shared*)g, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { LOCK; return finish_all(), delete (Shared*)e, cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
    LOCK;
    if (idle(s, "graphs")) return cudaSuccess;
    const Shared graph = *(Shared*)e;
    if (stale(*graph)) return problem("a graph uses memory that went back to its pool"), cudaErrorIllegalAddress;
    return submit(s, "graphs", "graph of " + to_string(graph->ops.size()), [graph] {
        for (auto& op : graph->ops) if (auto error = op()) return error;
        return cudaSuccess;
    });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = (cudaEvent_t) new Event{}, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete (Event*)e, cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
    return *ms = std::max(1e-3, (((Event*)b)->time - ((Event*)a)->time) * 1e3), cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t to) {
    LOCK;
    Stream* s = stream_of(to);
    const size_t place = s->capture ? s->capture->ops.size() : s->finished + s->queue.size();
    return *(Event*)event = {s, place, s->capture, cuda_on_cpu::time_ns() * 1e-9}, cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    LOCK;
    auto* e = (Event*)event;
    if (auto error = waited("eventSynchronize", e->capture != nullptr)) return error;
    if (e->stream) drain(e->stream, e->place);
    return sticky;
}
}
