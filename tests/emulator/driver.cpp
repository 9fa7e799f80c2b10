// A CUDA driver with two devices on host memory: as much of libcuda.so.1 as cuda.core and this project call.
//
// For tests without a GPU: the real cuda.core and cuda.bindings load it as they load NVIDIA's. What a
// program may not do is refused as the driver refuses it: work on a thread with no device, waiting
// in a recording, recordings that are not joined, memory that is not alive. Types are written out, so
// that no CUDA header is needed.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <unordered_map>

#include "kernels.hpp"
#include "streams.hpp"

using emulator::Clock;
using emulator::Event;
using emulator::Kind;
using emulator::Memory;
using emulator::Point;
using emulator::Recording;
using emulator::Stream;
using emulator::Work;

namespace {

enum Status {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialised = 3,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureUnmatched = 903,
  kCaptureUnjoined = 904,
};

const std::map<int, std::pair<const char*, const char*>>& errors() {
  static const std::map<int, std::pair<const char*, const char*>> table = {
      {kSuccess, {"CUDA_SUCCESS", "no error"}},
      {kInvalidValue, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
      {kOutOfMemory, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
      {kNotInitialised, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
      {kInvalidDevice, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
      {kInvalidContext, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
      {kInvalidHandle, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
      {kNotFound, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
      {kNotReady, {"CUDA_ERROR_NOT_READY", "device not ready"}},
      {kIllegalAddress, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
      {kCaptureUnsupported,
       {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
      {kCaptureInvalidated,
       {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        "operation failed due to a previous error during capture"}},
      {kCaptureUnmatched,
       {"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not initiated in this stream"}},
      {kCaptureUnjoined,
       {"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"}},
  };
  return table;
}

using Launch = std::function<Work(emulator::Dim grid, emulator::Dim block, void** parameters)>;

template <typename... A>
Launch launch_of(void (*kernel)(A...), bool meets = false) {
  return [kernel, meets](emulator::Dim grid, emulator::Dim block, void** parameters) -> Work {
    emulator::Call<A...> call(kernel, meets, parameters);
    return [call, grid, block] { call(grid, block); };
  };
}

struct Kernel {
  const char* name;
  unsigned most_threads;
  Launch launch;
};

std::vector<Kernel>& all_kernels() {
  static auto* table = new std::vector<Kernel>{
#define VITCX_KERNEL(NAME, MOST) {#NAME, MOST, launch_of(NAME)}
      VITCX_KERNEL(vitcx_blend, 256),           VITCX_KERNEL(vitcx_normalise, 32),
      VITCX_KERNEL(vitcx_gram_apply, 256),      VITCX_KERNEL(vitcx_cosine_distance, 256),
      VITCX_KERNEL(vitcx_cluster_masks, 32),    VITCX_KERNEL(vitcx_weighted_masks, 128),
      VITCX_KERNEL(vitcx_saliency, 256),
      {"vitcx_complete_linkage", 768, launch_of(vitcx_complete_linkage, true)},
#undef VITCX_KERNEL
  };
  return *table;
}

struct Library {
  std::string image;
};

// What a program has graphs keep alive; `destroy` runs when nobody holds it any more.
struct UserObject {
  void* held;
  void (*destroy)(void*);
  unsigned references;
};

void release(UserObject* object, unsigned count) {
  if (count > object->references) emulator::die("a user object was released too often");
  if ((object->references -= count) > 0) return;
  object->destroy(object->held);
  delete object;
}

// A graph is made when its recording begins, as the driver makes it; an executable one is a copy.
struct Graph {
  std::shared_ptr<Recording> recording;
  std::vector<UserObject*> kept;
};

struct Device {
  std::mutex mutex;
  std::unordered_map<uint64_t, std::unique_ptr<Stream>> streams;
  std::atomic<uint64_t> graphs{0};
  uint64_t next_stream = 0x5000;
  bool initialised = false;
  unsigned leaving = 0;  // streams that were destroyed and finish what they have
  std::condition_variable left;

  Stream* stream(void* handle) {
    auto id = reinterpret_cast<uint64_t>(handle);
    std::lock_guard<std::mutex> lock(mutex);
    if (id <= 2) {  // the default streams
      id = std::max<uint64_t>(id, 1);
      if (streams.count(id) == 0) streams[id] = std::make_unique<Stream>();
    }
    const auto found = streams.find(id);
    return found == streams.end() ? nullptr : found->second.get();
  }
};

Device& device() {
  static auto* only = new Device;
  return *only;
}

constexpr int kDevices = 2;
int contexts[kDevices];  // their addresses are the devices' primary contexts, and their pools
thread_local std::vector<void*> context_stack;

void* current_context() { return context_stack.empty() ? nullptr : context_stack.back(); }

int device_of(const void* context) { return static_cast<int>(static_cast<const int*>(context) - contexts); }

int current_device() { return device_of(current_context()); }

// What a pass of any call needs: a device that is current on the calling thread.
#define NEEDS_CONTEXT \
  if (current_context() == nullptr) return kInvalidContext
// What a kernel and an event need: a stream of the device that is current.
#define NEEDS_DEVICE_OF(stream) \
  if ((stream)->device >= 0 && (stream)->device != current_device()) return kInvalidHandle
#define STREAM_OF(variable, handle)                   \
  Stream* const variable = device().stream(handle);   \
  if (variable == nullptr) return kInvalidHandle

// A copy's side is on the device or pinned, where it can go in stream order, or it is not.
bool in_stream_order(uint64_t address, uint64_t size) { return Memory::get().holds(address, size); }

bool is_tagged(uint64_t address) { return emulator::tag() != 0 && (address & emulator::tag()) != 0; }

int copy(uint64_t to, uint64_t from, uint64_t size, Stream* stream) {
  if (size == 0) return kSuccess;
  for (const uint64_t side : {to, from}) {
    if (is_tagged(side) && !in_stream_order(side, size)) return kIllegalAddress;
  }
  const auto move = [to, from, size] {
    for (const uint64_t side : {to, from}) {
      if (is_tagged(side) && !in_stream_order(side, size)) {
        emulator::die("memory was freed before a copy that was queued");
      }
    }
    std::memcpy(Memory::host(to), Memory::host(from), size);
  };
  if (in_stream_order(to, size) && in_stream_order(from, size)) {
    stream->add(move);
  } else if (stream->recording != nullptr) {
    return kCaptureUnsupported;
  } else {  // pageable memory: the driver stages it, and the call ends when that is done
    stream->mark()->wait();
    move();
  }
  return kSuccess;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// --- for tests ------------------------------------------------------------------------------------

void emulator_set_memory(uint64_t bytes) { Memory::get().set_limit(bytes); }

// What is still there: allocations, streams that were created, graphs.
void emulator_count(uint64_t* counts) {
  std::lock_guard<std::mutex> lock(device().mutex);
  uint64_t streams = 0;
  for (const auto& [id, stream] : device().streams) streams += id > 2;
  counts[0] = Memory::get().live();
  counts[1] = streams;
  counts[2] = device().graphs;
}

// Work of another library on a stream, as its kernels would be queued.
int emulator_queue(void* stream, void (*function)(void*), void* data) {
  STREAM_OF(s, stream);
  s->add([function, data] { function(data); });
  return kSuccess;
}

// The address on the host of device memory.
void* emulator_host(uint64_t address) { return Memory::host(address); }

// --- initialising, devices, contexts --------------------------------------------------------------

int cuInit(unsigned) {
  device().initialised = true;
  return kSuccess;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

int cuGetErrorName(int status, const char** name) {
  const auto found = errors().find(status);
  *name = found == errors().end() ? nullptr : found->second.first;
  return *name == nullptr ? kInvalidValue : kSuccess;
}

int cuGetErrorString(int status, const char** text) {
  const auto found = errors().find(status);
  *text = found == errors().end() ? nullptr : found->second.second;
  return *text == nullptr ? kInvalidValue : kSuccess;
}

int cuDeviceGetCount(int* count) {
  if (!device().initialised) return kNotInitialised;
  *count = kDevices;
  return kSuccess;
}

int cuDeviceGet(int* found, int ordinal) {
  if (!device().initialised) return kNotInitialised;
  if (ordinal < 0 || ordinal >= kDevices) return kInvalidDevice;
  *found = ordinal;
  return kSuccess;
}

int cuDeviceGetName(char* name, int size, int) {
  std::snprintf(name, static_cast<size_t>(size), "Emulated GPU");
  return kSuccess;
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = Memory::get().limit();
  return kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  static const std::map<int, int> values = {
      {1, 1024},    // threads a block
      {2, 1024},    {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535},  // block, grid
      {10, 32},     // warp
      {16, 4},      // multiprocessors
      {39, 2048},   // threads a multiprocessor
      {41, 1},      // unified addressing
      {75, 9},      {76, 0},  // compute capability
      {102, 1},     // virtual memory management
      {115, 1},     // memory pools
  };
  const auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  return kSuccess;
}

int cuDeviceGetUuid_v2(void* uuid, int device) {
  std::memset(uuid, 7 + device, 16);
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = &contexts[device];
  return kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }

int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return kSuccess;
}

int cuCtxSetCurrent(void* context) {
  if (!context_stack.empty()) context_stack.pop_back();
  if (context != nullptr) context_stack.push_back(context);
  return kSuccess;
}

int cuCtxGetCurrent(void** context) {
  *context = current_context();
  return kSuccess;
}

int cuCtxPushCurrent_v2(void* context) {
  context_stack.push_back(context);
  return kSuccess;
}

int cuCtxPopCurrent_v2(void** context) {
  NEEDS_CONTEXT;
  if (context != nullptr) *context = current_context();
  context_stack.pop_back();
  return kSuccess;
}

int cuCtxGetDevice(int* found) {
  NEEDS_CONTEXT;
  *found = current_device();
  return kSuccess;
}

int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  NEEDS_CONTEXT;
  *least = 0;
  *greatest = -5;
  return kSuccess;
}

int cuCtxSynchronize() {
  NEEDS_CONTEXT;
  std::vector<std::shared_ptr<Point>> points;
  {
    std::lock_guard<std::mutex> lock(device().mutex);
    for (auto& [id, stream] : device().streams) {
      if (stream->recording != nullptr) return kCaptureUnsupported;
      points.push_back(stream->mark());
    }
  }
  for (auto& point : points) point->wait();
  std::unique_lock<std::mutex> lock(device().mutex);
  device().left.wait(lock, [] { return device().leaving == 0; });
  return kSuccess;
}

// --- memory ---------------------------------------------------------------------------------------

int cuMemAlloc_v2(uint64_t* address, size_t size) {
  NEEDS_CONTEXT;
  if (size == 0) return kInvalidValue;
  *address = Memory::get().allocate(size, Kind::device, current_device());
  return *address == 0 ? kOutOfMemory : kSuccess;
}

int cuMemFree_v2(uint64_t address) {
  NEEDS_CONTEXT;
  if (address == 0) return kSuccess;
  const int status = cuCtxSynchronize();  // as the driver does
  if (status != kSuccess) return status;
  return Memory::get().release(address) ? kSuccess : kInvalidValue;
}

int cuMemAllocHost_v2(void** address, size_t size) {
  NEEDS_CONTEXT;
  *address = reinterpret_cast<void*>(Memory::get().allocate(size, Kind::pinned, current_device()));
  return *address == nullptr ? kOutOfMemory : kSuccess;
}

int cuMemHostAlloc(void** address, size_t size, unsigned) { return cuMemAllocHost_v2(address, size); }

int cuMemFreeHost(void* address) {
  NEEDS_CONTEXT;
  const int status = cuCtxSynchronize();
  if (status != kSuccess) return status;
  return Memory::get().release(reinterpret_cast<uint64_t>(address)) ? kSuccess : kInvalidValue;
}

int cuDeviceGetDefaultMemPool(void** pool, int device) {
  *pool = &contexts[device];
  return kSuccess;
}

int cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }

int cuMemPoolCreate(void** pool, const void*) {
  NEEDS_CONTEXT;
  *pool = current_context();
  return kSuccess;
}

int cuMemPoolDestroy(void*) { return kSuccess; }
int cuMemPoolSetAttribute(void*, int, void*) { return kSuccess; }
int cuMemPoolSetAccess(void*, const void*, size_t) { return kSuccess; }

int cuMemPoolGetAttribute(void*, int, void* value) {
  *static_cast<uint64_t*>(value) = Memory::get().used();
  return kSuccess;
}

int cuMemAllocFromPoolAsync(uint64_t* address, size_t size, void* pool, void* stream) {
  STREAM_OF(s, stream);
  if (s->recording != nullptr) return kCaptureUnsupported;  // a memory node; nothing here wants one
  if (size == 0) return kInvalidValue;
  const int on = pool != nullptr ? device_of(pool) : s->device >= 0 ? s->device : current_device();
  *address = Memory::get().allocate(size, Kind::device, on);
  // A pool reuses what other streams are about to free, and has this one wait for it.
  if (*address == 0 && cuCtxSynchronize() == kSuccess) {
    *address = Memory::get().allocate(size, Kind::device, on);
  }
  return *address == 0 ? kOutOfMemory : kSuccess;
}

int cuMemAllocAsync(uint64_t* address, size_t size, void* stream) {
  return cuMemAllocFromPoolAsync(address, size, nullptr, stream);
}

int cuMemFreeAsync(uint64_t address, void* stream) {
  STREAM_OF(s, stream);
  if (s->recording != nullptr) return kCaptureUnsupported;
  if (!Memory::get().holds(address, 1)) return kInvalidValue;
  s->add([address] {
    if (!Memory::get().release(address)) emulator::die("device memory was freed twice");
  });
  return kSuccess;
}

int cuMemcpyAsync(uint64_t to, uint64_t from, size_t size, void* stream) {
  NEEDS_CONTEXT;
  STREAM_OF(s, stream);
  return copy(to, from, size, s);
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* stream) {
  return cuMemcpyAsync(to, reinterpret_cast<uint64_t>(from), size, stream);
}

int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* stream) {
  return cuMemcpyAsync(reinterpret_cast<uint64_t>(to), from, size, stream);
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void* stream) {
  return cuMemcpyAsync(to, from, size, stream);
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, void* stream) {
  NEEDS_CONTEXT;
  STREAM_OF(s, stream);
  if (!in_stream_order(address, size)) return kInvalidValue;
  s->add([=] { std::memset(Memory::host(address), value, size); });
  return kSuccess;
}

// CUpointer_attribute: context, memory type, device pointer, host pointer, managed, device ordinal.
int cuPointerGetAttribute(void* value, int attribute, uint64_t address) {
  Kind kind;
  int device;
  if (!Memory::get().holds(address, 1, &kind, &device)) return kInvalidValue;
  const bool on_device = kind == Kind::device;
  switch (attribute) {
    case 1: *static_cast<void**>(value) = &contexts[device]; return kSuccess;
    case 2: *static_cast<unsigned*>(value) = on_device ? 2 : 1; return kSuccess;
    case 3: *static_cast<uint64_t*>(value) = address; return kSuccess;
    case 4:
      *static_cast<uint64_t*>(value) = on_device ? 0 : address;
      return on_device ? kInvalidValue : kSuccess;
    case 8: *static_cast<unsigned*>(value) = 0; return kSuccess;
    case 9: *static_cast<int*>(value) = device; return kSuccess;
    default: return kInvalidValue;
  }
}

int cuPointerGetAttributes(unsigned count, const int* attributes, void** values, uint64_t address) {
  for (unsigned i = 0; i < count; ++i) {
    if (cuPointerGetAttribute(values[i], attributes[i], address) == kSuccess) continue;
    // Unknown memory is no error of this call: its attributes are zeros, its device -2.
    if (attributes[i] == 9) *static_cast<int*>(values[i]) = -2;
    else if (attributes[i] == 2 || attributes[i] == 8) *static_cast<unsigned*>(values[i]) = 0;
    else *static_cast<uint64_t*>(values[i]) = 0;
  }
  return kSuccess;
}

// --- streams and events ---------------------------------------------------------------------------

int cuStreamCreateWithPriority(void** stream, unsigned, int) {
  NEEDS_CONTEXT;
  std::lock_guard<std::mutex> lock(device().mutex);
  const uint64_t id = device().next_stream += 0x10;
  device().streams[id] = std::make_unique<Stream>(current_device());
  *stream = reinterpret_cast<void*>(id);
  return kSuccess;
}

int cuStreamCreate(void** stream, unsigned flags) {
  return cuStreamCreateWithPriority(stream, flags, 0);
}

int cuStreamDestroy_v2(void* stream) {
  std::lock_guard<std::mutex> lock(device().mutex);
  const auto found = device().streams.find(reinterpret_cast<uint64_t>(stream));
  if (found == device().streams.end()) return kInvalidHandle;
  Stream* const last = found->second.release();
  device().streams.erase(found);
  ++device().leaving;
  std::thread([last] {
    delete last;  // waits for its work
    std::lock_guard<std::mutex> lock(device().mutex);
    --device().leaving;
    device().left.notify_all();
  }).detach();
  return kSuccess;
}

int cuStreamSynchronize(void* stream) {
  STREAM_OF(s, stream);
  if (s->recording != nullptr) {
    s->recording->broken = true;
    return kCaptureUnsupported;
  }
  s->mark()->wait();
  return kSuccess;
}

int cuStreamQuery(void* stream) {
  STREAM_OF(s, stream);
  if (s->recording != nullptr) return kCaptureUnsupported;
  return s->mark()->is_done() ? kSuccess : kNotReady;
}

int cuStreamGetFlags(void*, unsigned* flags) {
  *flags = 1;  // non-blocking
  return kSuccess;
}

int cuStreamGetPriority(void*, int* priority) {
  *priority = 0;
  return kSuccess;
}

int cuStreamGetCtx(void* stream, void** context) {
  STREAM_OF(s, stream);
  if (s->device < 0) NEEDS_CONTEXT;
  *context = s->device >= 0 ? &contexts[s->device] : current_context();
  return kSuccess;
}

int cuStreamGetCtx_v2(void* stream, void** context, void** green) {
  if (green != nullptr) *green = nullptr;
  return cuStreamGetCtx(stream, context);
}

int cuStreamGetDevice(void* stream, int* found) {
  STREAM_OF(s, stream);
  if (s->device < 0) NEEDS_CONTEXT;
  *found = s->device >= 0 ? s->device : current_device();
  return kSuccess;
}

int cuStreamGetId(void* stream, uint64_t* id) {
  STREAM_OF(s, stream);
  *id = reinterpret_cast<uint64_t>(stream);
  return kSuccess;
}

int cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  return emulator_queue(stream, function, data);
}

int cuEventCreate(void** event, unsigned flags) {
  NEEDS_CONTEXT;
  auto* made = new Event;
  made->timed = (flags & 2) == 0;
  made->device = current_device();
  *event = made;
  return kSuccess;
}

int cuEventDestroy_v2(void* event) {
  delete static_cast<Event*>(event);
  return kSuccess;
}

int cuEventRecord(void* event, void* stream) {
  STREAM_OF(s, stream);
  auto* e = static_cast<Event*>(event);
  if (s->device >= 0 && s->device != e->device) return kInvalidHandle;
  e->recording = s->recording;
  e->point = s->recording == nullptr ? s->mark() : nullptr;
  return kSuccess;
}

int cuEventRecordWithFlags(void* event, void* stream, unsigned) { return cuEventRecord(event, stream); }

int cuEventQuery(void* event) {
  auto* e = static_cast<Event*>(event);
  if (e->recording != nullptr) return kCaptureUnsupported;
  return e->point == nullptr || e->point->is_done() ? kSuccess : kNotReady;
}

int cuEventSynchronize(void* event) {
  auto* e = static_cast<Event*>(event);
  if (e->recording != nullptr) return kCaptureUnsupported;
  if (e->point != nullptr) e->point->wait();
  return kSuccess;
}

int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  auto *a = static_cast<Event*>(start), *b = static_cast<Event*>(end);
  if (!a->timed || !b->timed || a->point == nullptr || b->point == nullptr) return kInvalidHandle;
  if (!a->point->is_done() || !b->point->is_done()) return kNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(b->point->when - a->point->when).count();
  return kSuccess;
}

int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}

int cuStreamWaitEvent(void* stream, void* event, unsigned) {
  STREAM_OF(s, stream);
  auto* e = static_cast<Event*>(event);
  if (e->recording != nullptr) {
    if (s->recording == nullptr) s->recording = e->recording;  // this stream joins the recording
    return kSuccess;
  }
  if (s->recording != nullptr) return e->point == nullptr ? kSuccess : 905;  // waits for the outside
  if (e->point != nullptr) {
    s->add([point = e->point] { point->wait(); });
  }
  return kSuccess;
}

// --- graphs ---------------------------------------------------------------------------------------

int cuStreamBeginCapture_v2(void* stream, int) {
  STREAM_OF(s, stream);
  if (reinterpret_cast<uint64_t>(stream) <= 1) return kCaptureUnsupported;
  if (s->recording != nullptr) return kCaptureUnsupported;
  s->recording = std::make_shared<Recording>();
  s->graph = new Graph{s->recording, {}};
  ++device().graphs;
  return kSuccess;
}

int cuStreamIsCapturing(void* stream, int* status) {
  STREAM_OF(s, stream);
  *status = s->recording == nullptr ? 0 : s->recording->broken ? 2 : 1;
  return kSuccess;
}

int cuStreamGetCaptureInfo_v2(void* stream, int* status, uint64_t* id, void** graph,
                              const void*** dependencies, size_t* count) {
  const int found = cuStreamIsCapturing(stream, status);
  if (found != kSuccess) return found;
  if (id != nullptr) *id = 1;
  if (graph != nullptr) *graph = device().stream(stream)->graph;
  if (dependencies != nullptr) *dependencies = nullptr;
  if (count != nullptr) *count = 0;
  return kSuccess;
}

int cuStreamGetCaptureInfo_v3(void* stream, int* status, uint64_t* id, void** graph,
                              const void*** dependencies, const void** edges, size_t* count) {
  if (edges != nullptr) *edges = nullptr;
  return cuStreamGetCaptureInfo_v2(stream, status, id, graph, dependencies, count);
}

int cuStreamEndCapture(void* stream, void** graph) {
  STREAM_OF(s, stream);
  if (graph != nullptr) *graph = nullptr;
  if (s->graph == nullptr) return kCaptureUnmatched;
  const std::shared_ptr<Recording> recording = s->recording;
  void* const recorded = s->graph;
  s->recording = nullptr;
  s->graph = nullptr;
  {
    std::lock_guard<std::mutex> lock(device().mutex);
    for (auto& [id, other] : device().streams) {
      if (other->recording == recording) other->recording = nullptr;
    }
  }
  if (recording->broken) return kCaptureInvalidated;
  if (graph != nullptr) *graph = recorded;
  return kSuccess;
}

int cuGraphInstantiateWithFlags(void** executable, void* graph, uint64_t) {
  if (graph == nullptr) return kInvalidValue;
  const auto* from = static_cast<Graph*>(graph);
  for (UserObject* object : from->kept) ++object->references;
  *executable = new Graph{std::make_shared<Recording>(*from->recording), from->kept};
  ++device().graphs;
  return kSuccess;
}

struct InstantiateParams {
  uint64_t flags;
  void *upload_stream, *error_node;
  int result;
};

int cuGraphInstantiateWithParams(void** executable, void* graph, InstantiateParams* params) {
  params->error_node = nullptr;
  params->result = 0;
  return cuGraphInstantiateWithFlags(executable, graph, params->flags);
}

int cuGraphDestroy(void* graph) {
  for (UserObject* object : static_cast<Graph*>(graph)->kept) release(object, 1);
  delete static_cast<Graph*>(graph);
  --device().graphs;
  return kSuccess;
}

int cuGraphExecDestroy(void* graph) { return cuGraphDestroy(graph); }

int cuGraphLaunch(void* executable, void* stream) {
  STREAM_OF(s, stream);
  // As they are now: an executable may be destroyed while it runs.
  for (const Work& work : static_cast<Graph*>(executable)->recording->work) s->add(work);
  return kSuccess;
}

int cuGraphClone(void** clone, void* graph) { return cuGraphInstantiateWithFlags(clone, graph, 0); }

int cuUserObjectCreate(void** object, void* held, void (*destroy)(void*), unsigned references,
                       unsigned) {
  *object = new UserObject{held, destroy, references};
  return kSuccess;
}

int cuUserObjectRelease(void* object, unsigned count) {
  release(static_cast<UserObject*>(object), count);
  return kSuccess;
}

int cuGraphRetainUserObject(void* graph, void* object, unsigned count, unsigned flags) {
  auto* kept = static_cast<UserObject*>(object);
  for (unsigned i = 0; i < count; ++i) static_cast<Graph*>(graph)->kept.push_back(kept);
  if (flags != 1) kept->references += count;  // 1: the program's references move here
  return kSuccess;
}

int cuGraphReleaseUserObject(void* graph, void* object, unsigned count) {
  auto& kept = static_cast<Graph*>(graph)->kept;
  for (unsigned i = 0; i < count; ++i) {
    const auto found = std::find(kept.begin(), kept.end(), object);
    if (found == kept.end()) return kInvalidValue;
    kept.erase(found);
    release(static_cast<UserObject*>(object), 1);
  }
  return kSuccess;
}

int cuGraphUpload(void*, void*) { return kSuccess; }

// --- kernels --------------------------------------------------------------------------------------

// `image` is an ELF file; the end of its section headers, which NVRTC writes last, is its length.
int cuLibraryLoadData(void** library, const void* image, int*, void**, unsigned, int*, void**, unsigned) {
  NEEDS_CONTEXT;
  const auto* bytes = static_cast<const char*>(image);
  if (std::memcmp(bytes, "\x7f" "ELF", 4) != 0) return kInvalidValue;
  uint64_t offset;
  uint16_t size, count;
  std::memcpy(&offset, bytes + 40, 8);
  std::memcpy(&size, bytes + 58, 2);
  std::memcpy(&count, bytes + 60, 2);
  uint64_t end = offset + uint64_t{size} * count;
  for (unsigned i = 0; i < count; ++i) {  // or of its last section
    uint64_t at, length;
    uint32_t type;
    std::memcpy(&type, bytes + offset + size * i + 4, 4);
    std::memcpy(&at, bytes + offset + size * i + 24, 8);
    std::memcpy(&length, bytes + offset + size * i + 32, 8);
    if (type != 8) end = std::max(end, at + length);
  }
  *library = new Library{std::string(bytes, end)};
  return kSuccess;
}

int cuLibraryUnload(void* library) {
  delete static_cast<Library*>(library);
  return kSuccess;
}

int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  const std::string zero_ended(name, std::strlen(name) + 1);
  if (static_cast<Library*>(library)->image.find(zero_ended) == std::string::npos) return kNotFound;
  for (Kernel& k : all_kernels()) {
    if (zero_ended.c_str() == std::string(k.name)) {
      *kernel = &k;
      return kSuccess;
    }
  }
  return kNotFound;
}

int cuKernelGetFunction(void** function, void* kernel) {
  *function = kernel;
  return kSuccess;
}

int cuKernelGetLibrary(void** library, void*) {
  *library = nullptr;
  return kSuccess;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t) {
  *blocks = 2048 / std::max(threads, 1);
  return kSuccess;
}

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void *stream, *attributes;
  unsigned attribute_count;
};

int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void**) {
  NEEDS_CONTEXT;
  STREAM_OF(s, config->stream);
  NEEDS_DEVICE_OF(s);
  const auto* kernel = static_cast<const Kernel*>(function);
  const auto [gx, gy, gz] = config->grid;
  const auto [bx, by, bz] = config->block;
  if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || bx == 0 || by != 1 || bz != 1 ||
      bx > kernel->most_threads || config->shared_bytes != 0) {
    return kInvalidValue;
  }
  s->add(kernel->launch({gx, gy, gz}, {bx, by, bz}, parameters));
  return kSuccess;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** parameters, void** extra) {
  const LaunchConfig config{{gx, gy, gz}, {bx, by, bz}, shared, stream, nullptr, 0};
  return cuLaunchKernelEx(&config, function, parameters, extra);
}

// NVRTC asks for tables that are not documented, and does without.
int cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return kNotFound;
}

// --- finding functions ----------------------------------------------------------------------------

// By the name in the documentation; the newest version of a function that is here.
int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
  static void* self = [] {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(&cuInit), &info);
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }();
  *function = nullptr;
  for (const char* suffix : {"_v3", "_v2", ""}) {
    *function = dlsym(self, (std::string(name) + suffix).c_str());
    if (*function != nullptr) break;
  }
  if (found != nullptr) *found = *function == nullptr ? 1 : 0;
  if (*function == nullptr && std::getenv("VITCX_EMULATOR_LOG") != nullptr) {
    std::fprintf(stderr, "emulated driver: no %s\n", name);
  }
  return *function == nullptr ? kNotFound : kSuccess;
}

}  // extern "C"
#pragma GCC visibility pop
