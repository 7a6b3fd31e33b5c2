// Devices and their memory, which is the host's, and errors.
#include "driver.hpp"

thread_local int device;
static map<char*, Room> memory;
constexpr size_t FILLED = 16 << 20;  // that much of new memory holds NaN

const Room* room_of(const void* p) {
    auto i = memory.upper_bound((char*)p);
    return i != memory.begin() && (char*)p < (--i)->first + i->second.size ? &i->second : nullptr;
}
int processors() {
    static const map<int, int> known = {{75, 40}, {80, 108}, {89, 128}, {120, 170}};
    return known.count(settings[SM]) ? known.at(settings[SM]) : 132;
}
int most_shared() {
    static const map<int, int> known = {{75, 65536}, {80, 166912}, {90, 232448}, {100, 232448}};
    return known.count(settings[SM]) ? known.at(settings[SM]) : 101376;
}
// Written from CUDA's headers when this is built.
static const map<int, const char*> RUNTIME_ERRORS = {
#include "runtime_errors.inc"
}, DRIVER_ERRORS = {
#include "driver_errors.inc"
};

extern "C" {
const char* cudaGetErrorName(cudaError_t e) { return RUNTIME_ERRORS.count(e) ? RUNTIME_ERRORS.at(e) : "unknown"; }
CUresult cuGetErrorName(CUresult e, const char** text) {
    return *text = DRIVER_ERRORS.count(e) ? DRIVER_ERRORS.at(e) : "unknown", CUDA_SUCCESS;
}
const char* cudaGetErrorString(cudaError_t e) {
    return e >= 900 && e <= 907 ? "operation not permitted when stream is capturing" : "an error of CUDA on the CPU";
}
CUresult cuGetErrorString(CUresult e, const char** s) { return *s = cudaGetErrorString((cudaError_t)e), CUDA_SUCCESS; }

cudaError_t cudaDriverGetVersion(int* version) { return *version = 12090, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 12090, cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { return *d = device, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = settings[DEVICES], cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= settings[DEVICES]) return cudaErrorInvalidDevice;
    return device = d, cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const map<int, int> known = {
        {cudaDevAttrComputeCapabilityMajor, settings[SM] / 10}, {cudaDevAttrComputeCapabilityMinor, settings[SM] % 10},
        {cudaDevAttrMaxSharedMemoryPerBlock, 49152}, {cudaDevAttrMaxSharedMemoryPerBlockOptin, most_shared()},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, most_shared() + 1024}, {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048}, {cudaDevAttrMultiProcessorCount, processors()},
        {cudaDevAttrMaxRegistersPerBlock, 65536}, {cudaDevAttrWarpSize, 32}};
    return *value = known.count(attribute) ? known.at(attribute) : 1, cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    *p = {};
    strcpy(p->name, "CUDA on the CPU");
    p->major = settings[SM] / 10, p->minor = settings[SM] % 10, p->multiProcessorCount = processors(), p->warpSize = 32;
    p->totalGlobalMem = 80ull << 30, p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = most_shared();
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->regsPerBlock = 65536;
    for (int i = 0; i < 3; i++) p->maxThreadsDim[i] = i < 2 ? 1024 : 64, p->maxGridSize[i] = i ? 65535 : 2147483647;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** p, size_t size) {
    LOCK;
    counts[MALLOCS]++;
    counts[MALLOCS_IN_CAPTURE] += capturing();
    if (capturing(true)) return spoil("cudaMalloc in a capture that is not relaxed");
    if (size > 64ull << 30 || posix_memalign(p, 512, size)) return cudaErrorMemoryAllocation;
    memset(*p, 0xff, std::min(size, FILLED));
    memory[(char*)*p] = {size, device};
    return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
    LOCK;
    if (p && !memory.erase((char*)p)) return problem("free of memory that is not there"), cudaErrorInvalidValue;
    return capturing() || finish_all(), free(p), cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) {
    return posix_memalign(p, 512, size) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) { LOCK; return capturing() || finish_all(), free(p), cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* free, size_t* all) { return *free = 70ull << 30, *all = 80ull << 30, cudaSuccess; }
static bool within(const void* to, const void* from) {  // whether both are a device's; counts what crosses
    if (!room_of(to) != !room_of(from)) counts[room_of(to) ? TO_DEVICE : TO_HOST]++;
    return room_of(to) && room_of(from);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
    LOCK;
    counts[MEMCPY]++;
    within(to, from);
    note("  memcpy");
    if (capturing()) return spoil("memcpy in a capture");
    if (auto error = finish(nullptr)) return error;
    return memmove(to, from, size), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t stream) {
    LOCK;
    const string what = "memcpyAsync of " + to_string(size) + " bytes, kind " + to_string(kind);
    const bool inside = within(to, from);
    if (!inside && is_capturing(stream)) problem("host memory in a capture: " + what);
    auto copy = [=] { return memmove(to, from, size), cudaSuccess; };
    const auto error = submit(stream, MEMCPY_ASYNC, what, copy, {to, from});
    return error || inside || is_capturing(stream) ? error : finish(stream);  // as for memory that is not pinned
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
    LOCK;
    return submit(stream, MEMSET, "memset", [=] { return memset(to, value, size), cudaSuccess; }, {to});
}
cudaError_t cudaMemset(void* to, int value, size_t size) { return cudaMemsetAsync(to, value, size, nullptr); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    LOCK;
    const Room* room = room_of(p);
    *a = {room ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, room ? room->device : 0, (void*)p};
    return cudaSuccess;
}
}
