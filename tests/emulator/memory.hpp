// Device memory that bites: what a GPU would let pass, or answer with garbage, ends the process.
//
// An allocation ends at a page that nobody may touch, so a kernel that runs past it crashes; what
// lies between its size and that page is checked when it is freed. Fresh memory is NaN. Addresses
// carry a tag that makes them no host address: host code that reads device memory crashes as well.
#ifndef VITCX_EMULATOR_MEMORY_HPP
#define VITCX_EMULATOR_MEMORY_HPP

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace emulator {

constexpr uint64_t kPage = 4096, kAlignment = 256;
constexpr unsigned char kFresh = 0xff, kSlack = 0xcb;

// Bit 62: not an address on x86-64. Not set where a stand-in computes in device memory on the host.
inline uint64_t tag() {
  static const uint64_t value = std::getenv("VITCX_EMULATOR_PLAIN_ADDRESSES") ? 0 : uint64_t{1} << 62;
  return value;
}

[[noreturn]] inline void die(const char* why) {
  std::fprintf(stderr, "emulated driver: %s\n", why);
  std::abort();
}

enum class Kind { device, pinned };

struct Allocation {
  uint64_t size;
  Kind kind;
  int device;
  void* mapping;
  uint64_t mapped;
};

class Memory {
 public:
  static Memory& get() {
    static Memory* memory = new Memory;  // never destroyed: workers outlive `main`
    return *memory;
  }

  // The address as a program sees it; 0 where the device is full.
  uint64_t allocate(uint64_t size, Kind kind, int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (kind == Kind::device && used_ + size > limit_) return 0;
    const uint64_t room = (size + kAlignment - 1) / kAlignment * kAlignment;
    const uint64_t mapped = (room + kPage - 1) / kPage * kPage + kPage;
    void* mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return 0;
    auto* guard = static_cast<unsigned char*>(mapping) + mapped - kPage;
    mprotect(guard, kPage, PROT_NONE);
    unsigned char* start = guard - room;
    std::memset(start, kFresh, size);
    std::memset(start + size, kSlack, room - size);
    const uint64_t address =
        reinterpret_cast<uint64_t>(start) | (kind == Kind::device ? tag() : 0);
    live_[address] = {size, kind, device, mapping, mapped};
    if (kind == Kind::device) used_ += size;
    return address;
  }

  bool release(uint64_t address) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(address);
    if (found == live_.end()) return false;
    const Allocation& a = found->second;
    const unsigned char* start = host(address);
    for (uint64_t i = a.size; i % kAlignment != 0; ++i) {
      if (start[i] != kSlack) die("something was written past the end of an allocation");
    }
    if (a.kind == Kind::device) used_ -= a.size;
    munmap(a.mapping, a.mapped);
    live_.erase(found);
    return true;
  }

  // Whether all of [address, address + size) is one live allocation; `kind` and `device` are set then.
  bool holds(uint64_t address, uint64_t size, Kind* kind = nullptr, int* device = nullptr) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto after = live_.upper_bound(address);
    if (after == live_.begin()) return false;
    const auto& [start, a] = *--after;
    if (address + size > start + a.size) return false;
    if (kind != nullptr) *kind = a.kind;
    if (device != nullptr) *device = a.device;
    return true;
  }

  static unsigned char* host(uint64_t address) {
    return reinterpret_cast<unsigned char*>(address & ~(uint64_t{1} << 62));
  }

  uint64_t used() {
    std::lock_guard<std::mutex> lock(mutex_);
    return used_;
  }

  uint64_t live() {
    std::lock_guard<std::mutex> lock(mutex_);
    return live_.size();
  }

  uint64_t limit() const { return limit_; }

  void set_limit(uint64_t bytes) { limit_ = bytes; }

 private:
  std::mutex mutex_;
  std::map<uint64_t, Allocation> live_;
  uint64_t used_ = 0, limit_ = uint64_t{1} << 30;
};

}  // namespace emulator

#endif  // VITCX_EMULATOR_MEMORY_HPP
