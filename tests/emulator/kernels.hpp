// The .cu files built by g++ and run as CUDA would run them: grids, blocks, warps that exchange values.
//
// Threads that meet take turns as fibers. Between two meeting points they run one after the other,
// forwards and backwards by turns, so code that needs a meeting point and has none gives wrong values.
#ifndef VITCX_EMULATOR_KERNELS_HPP
#define VITCX_EMULATOR_KERNELS_HPP

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "aggregate.cuh"
#include "blend.cuh"
#include "linkage.cuh"
#include "masks.cuh"
#include "memory.hpp"

namespace emulator {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local Dim block_index, block_size, thread_index, grid_size;

// The threads of a block, or of a warp, that meet.
class Threads {
 public:
  // Run `thread` for each of `count` threads; they meet in `meet`.
  template <typename F>
  void run(int count, F&& thread) {
    current = this;
    auto* function = &thread;
    using Function = std::remove_reference_t<F>;
    while (static_cast<int>(threads_.size()) < count) {
      threads_.push_back(std::make_unique<Thread>());
    }
    for (int i = 0; i < count; ++i) {
      Thread& one = *threads_[i];
      one.done = false;
      getcontext(&one.context);
      one.context.uc_stack.ss_sp = one.stack;
      one.context.uc_stack.ss_size = sizeof one.stack;
      one.context.uc_link = nullptr;
      const auto bits = reinterpret_cast<uintptr_t>(function);
      makecontext(&one.context, reinterpret_cast<void (*)()>(&Threads::enter<Function>), 2,
                  static_cast<unsigned>(bits >> 32), static_cast<unsigned>(bits));
    }
    for (int round = 0;; ++round) {
      int running = 0;
      for (int turn = 0; turn < count; ++turn) {
        index_ = round % 2 == 0 ? turn : count - 1 - turn;
        Thread& one = *threads_[index_];
        if (one.done) continue;
        thread_index = {static_cast<unsigned>(index_), 0, 0};
        swapcontext(&scheduler_, &one.context);
        running += !one.done;
      }
      if (running == 0) break;
      if (running != count) die("part of a block ended while the rest waits for it");
    }
    current = nullptr;
  }

  // Every thread gets here before any goes on.
  void meet() { swapcontext(&threads_[index_]->context, &scheduler_); }

  float exchange(float value, int mask) {
    const int index = index_;
    threads_[index]->value = value;
    meet();
    const float other = threads_[index ^ mask]->value;
    meet();
    return other;
  }

  static inline thread_local Threads* current = nullptr;

 private:
  struct Thread {
    ucontext_t context;
    alignas(16) unsigned char stack[64 << 10];
    float value;
    bool done;
  };

  template <typename F>
  static void enter(unsigned high, unsigned low) {
    auto* thread = reinterpret_cast<F*>(uintptr_t{high} << 32 | low);
    (*thread)();
    Thread& own = *current->threads_[current->index_];
    own.done = true;
    swapcontext(&own.context, &current->scheduler_);
  }

  ucontext_t scheduler_;
  std::vector<std::unique_ptr<Thread>> threads_;
  int index_ = 0;
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
  // `meets` is of a kernel whose blocks meet; those of one warp always may.
  Call(void (*kernel)(A...), bool meets, void** parameters) : kernel_(kernel), meets_(meets) {
    take(parameters, std::index_sequence_for<A...>{});
  }

  void operator()(Dim grid, Dim block) const {
    const std::tuple<A...> arguments = read(std::index_sequence_for<A...>{});
    grid_size = grid;
    block_size = block;
    static thread_local Threads* threads = new Threads;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          block_index = {x, y, z};
          if (meets_ || block.x == 32) {
            threads->run(static_cast<int>(block.x), [&] { std::apply(kernel_, arguments); });
            continue;
          }
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
  bool meets_;
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
#define __shared__ static thread_local
#define __syncthreads() ::emulator::Threads::current->meet()
#define __syncwarp() ::emulator::Threads::current->meet()
#define __shfl_xor_sync(lanes, value, mask) ::emulator::Threads::current->exchange(value, mask)
#define __CUDACC_RTC__  // no launchers: they need nvcc's syntax

#include "aggregate.cu"
#include "blend.cu"
#include "linkage.cu"
#include "masks.cu"

#endif  // VITCX_EMULATOR_KERNELS_HPP
