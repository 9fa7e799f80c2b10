// Streams that really run beside the program: each has a thread, and work waits a random while.
//
// What is not ordered by the program happens in any order here, so a missing wait, or memory that is
// freed or written too early, shows itself. A recording keeps what is queued for later.
#ifndef VITCX_EMULATOR_STREAMS_HPP
#define VITCX_EMULATOR_STREAMS_HPP

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace emulator {

using Work = std::function<void()>;
using Clock = std::chrono::steady_clock;

// A point in a stream.
struct Point {
  std::mutex mutex;
  std::condition_variable reached;
  bool done = false;
  Clock::time_point when;

  void reach() {
    std::lock_guard<std::mutex> lock(mutex);
    done = true;
    when = Clock::now();
    reached.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    reached.wait(lock, [&] { return done; });
  }

  bool is_done() {
    std::lock_guard<std::mutex> lock(mutex);
    return done;
  }
};

struct Recording {
  std::vector<Work> work;
  bool broken = false;
};

struct Event {
  bool timed = false;
  int device = 0;
  std::shared_ptr<Point> point;          // null until recorded
  std::shared_ptr<Recording> recording;  // that it was last recorded in
};

inline unsigned most_delay() {
  static const unsigned value = [] {
    const char* text = std::getenv("VITCX_EMULATOR_DELAY_US");
    return text == nullptr ? 0u : static_cast<unsigned>(std::atoi(text));
  }();
  return value;
}

class Stream {
 public:
  // `of` is its device; -1 for a default stream, which every device has.
  explicit Stream(int of = -1) : device(of), worker_(&Stream::run, this) {}

  // Finishes what is queued.
  ~Stream() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
      some_.notify_all();
    }
    worker_.join();
  }

  // Queue, or record.
  void add(Work work) {
    if (recording != nullptr) {
      recording->work.push_back(std::move(work));
      return;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(work));
    some_.notify_all();
  }

  std::shared_ptr<Point> mark() {
    auto point = std::make_shared<Point>();
    add([point] { point->reach(); });
    return point;
  }

  const int device;
  std::shared_ptr<Recording> recording;
  void* graph = nullptr;  // of the recording, where it began here and not by waiting

 private:
  void run() {
    std::minstd_rand random{static_cast<unsigned>(reinterpret_cast<uintptr_t>(this) >> 4)};
    for (;;) {
      Work work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        some_.wait(lock, [&] { return closing_ || !queue_.empty(); });
        if (queue_.empty()) return;
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      if (most_delay() > 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % most_delay()));
      }
      work();
    }
  }

  std::mutex mutex_;
  std::condition_variable some_;
  std::deque<Work> queue_;
  bool closing_ = false;
  std::thread worker_;
};

}  // namespace emulator

#endif  // VITCX_EMULATOR_STREAMS_HPP
