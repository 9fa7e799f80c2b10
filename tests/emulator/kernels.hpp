// The .cu files built by g++ and run as CUDA would run them: grids, blocks, warps that exchange values.
//
// The lanes of a warp take turns as fibers. Between two meeting points they run one after the other,
// forwards and backwards by turns, so code that needs a meeting point and has none gives wrong values.
#ifndef VITCX_EMULATOR_KERNELS_HPP
#define VITCX_EMULATOR_KERNELS_HPP

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "aggregate.cuh"
#include "blend.cuh"
#include "masks.cuh"
#include "memory.hpp"

namespace emulator {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local Dim block_index, block_size, thread_index, grid_size;

class Warp {
 public:
  static constexpr int kLanes = 32;

  // Run `lane` for each of 32 threads; they meet in `meet`.
  template <typename F>
  void run(F&& lane) {
    current = this;
    auto* function = &lane;
    using Function = std::remove_reference_t<F>;
    for (int i = 0; i < kLanes; ++i) {
      done_[i] = false;
      getcontext(&lanes_[i]);
      lanes_[i].uc_stack.ss_sp = stacks_[i];
      lanes_[i].uc_stack.ss_size = sizeof stacks_[i];
      lanes_[i].uc_link = nullptr;
      const auto bits = reinterpret_cast<uintptr_t>(function);
      makecontext(&lanes_[i], reinterpret_cast<void (*)()>(&Warp::enter<Function>), 2,
                  static_cast<unsigned>(bits >> 32), static_cast<unsigned>(bits));
    }
    for (int round = 0;; ++round) {
      int running = 0;
      for (int turn = 0; turn < kLanes; ++turn) {
        lane_ = round % 2 == 0 ? turn : kLanes - 1 - turn;
        if (done_[lane_]) continue;
        thread_index = {static_cast<unsigned>(lane_), 0, 0};
        swapcontext(&scheduler_, &lanes_[lane_]);
        running += !done_[lane_];
      }
      if (running == 0) break;
      if (running != kLanes) die("part of a warp ended while the rest waits for it");
    }
    current = nullptr;
  }

  // Every lane gets here before any goes on.
  void meet() { swapcontext(&lanes_[lane_], &scheduler_); }

  float exchange(float value, int mask) {
    const int lane = lane_;
    values_[lane] = value;
    meet();
    const float other = values_[lane ^ mask];
    meet();
    return other;
  }

  static inline thread_local Warp* current = nullptr;

 private:
  template <typename F>
  static void enter(unsigned high, unsigned low) {
    auto* lane = reinterpret_cast<F*>(uintptr_t{high} << 32 | low);
    (*lane)();
    current->done_[current->lane_] = true;
    swapcontext(&current->lanes_[current->lane_], &current->scheduler_);
  }

  ucontext_t scheduler_, lanes_[kLanes];
  alignas(16) unsigned char stacks_[kLanes][64 << 10];
  float values_[kLanes];
  bool done_[kLanes];
  int lane_ = 0;
};

// A device address becomes a host one; whether it is a live allocation is checked. A number stays.
template <typename T>
T argument(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  if constexpr (std::is_pointer_v<T>) {
    const auto address = reinterpret_cast<uint64_t>(value);
    if (address == 0) return nullptr;
    if (!Memory::get().holds(address, 1)) die("a kernel was given an address that is not alive");
    return reinterpret_cast<T>(Memory::host(address));
  } else {
    return value;
  }
}

inline constexpr uint64_t padded(uint64_t size) { return (size + 7) / 8 * 8; }

// The arguments as they were when the kernel was queued.
template <typename... A>
class Call {
 public:
  Call(void (*kernel)(A...), void** parameters) : kernel_(kernel) {
    take(parameters, std::index_sequence_for<A...>{});
  }

  void operator()(Dim grid, Dim block) const {
    const std::tuple<A...> arguments = read(std::index_sequence_for<A...>{});
    grid_size = grid;
    block_size = block;
    static thread_local Warp* warp = new Warp;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          block_index = {x, y, z};
          if (block.x == Warp::kLanes) {
            warp->run([&] { std::apply(kernel_, arguments); });
            continue;
          }
          // No kernel of more than one warp exchanges anything.
          for (unsigned t = block.x; t-- > 0;) {
            thread_index = {t, 0, 0};
            std::apply(kernel_, arguments);
          }
        }
      }
    }
  }

 private:
  template <size_t... I>
  void take(void** parameters, std::index_sequence<I...>) {
    (std::memcpy(bytes_[I], parameters[I], sizeof(A)), ...);
  }

  template <size_t... I>
  std::tuple<A...> read(std::index_sequence<I...>) const {
    return {argument<A>(bytes_[I])...};
  }

  void (*kernel_)(A...);
  unsigned char bytes_[sizeof...(A)][8];
};

}  // namespace emulator

// What the sources ask of nvcc.
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(most)
#define blockIdx ::emulator::block_index
#define blockDim ::emulator::block_size
#define threadIdx ::emulator::thread_index
#define gridDim ::emulator::grid_size
#define __syncwarp() ::emulator::Warp::current->meet()
#define __shfl_xor_sync(lanes, value, mask) ::emulator::Warp::current->exchange(value, mask)
#define __CUDACC_RTC__  // no launchers: they need nvcc's syntax

#include "aggregate.cu"
#include "blend.cu"
#include "masks.cu"

#endif  // VITCX_EMULATOR_KERNELS_HPP
