// A C++ pipeline that embeds Python, hands vitcx frames it owns, and reads the saliency in place.
//
// Nothing is copied on the way in or out: the frame is a std::vector that Python sees through a
// memoryview, the saliency is the result's own memory seen through the buffer protocol.
//
//   embed BUNDLE          prints one line of JSON per frame
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Release {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Object = std::unique_ptr<PyObject, Release>;  // an owned reference

// Take a new reference, or turn Python's error into a C++ one. The GIL must be held.
Object owned(PyObject* object) {
  if (object != nullptr) return Object(object);
  PyErr_Print();
  throw std::runtime_error("a Python call failed");
}

Object attribute(const Object& object, const char* name) {
  return owned(PyObject_GetAttrString(object.get(), name));
}

// Holds the GIL for as long as it lives: for a thread that Python did not make.
class HoldGil {
 public:
  HoldGil() : state_(PyGILState_Ensure()) {}
  ~HoldGil() { PyGILState_Release(state_); }
  HoldGil(const HoldGil&) = delete;
  HoldGil& operator=(const HoldGil&) = delete;

 private:
  PyGILState_STATE state_;
};

// A view of somebody's memory through the buffer protocol, given back at the end.
class View {
 public:
  explicit View(const Object& object) {
    if (PyObject_GetBuffer(object.get(), &buffer_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
      PyErr_Print();
      throw std::runtime_error("no contiguous buffer");
    }
  }
  ~View() { PyBuffer_Release(&buffer_); }
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  const float* data() const { return static_cast<const float*>(buffer_.buf); }
  size_t size() const { return static_cast<size_t>(buffer_.len) / sizeof(float); }

 private:
  Py_buffer buffer_{};
};

void draw(std::vector<float>& frame, size_t side_y, size_t side_x, size_t shift) {
  for (size_t c = 0; c < 3; ++c) {
    for (size_t y = 0; y < side_y; ++y) {
      for (size_t x = 0; x < side_x; ++x) {
        const bool inside = y / 8 % 4 == shift % 4 && x / 8 % 4 == shift % 4;
        frame[(c * side_y + y) * side_x + x] =
            inside ? 1.5f : static_cast<float>((c + x + y) % 7) / 7.0f - 0.5f;
      }
    }
  }
}

void run(const char* bundle) {
  Object vitcx, numpy, explainer;
  size_t height = 0, width = 0;
  {
    HoldGil gil;
    vitcx = owned(PyImport_ImportModule("vitcx"));
    numpy = owned(PyImport_ImportModule("numpy"));
    explainer = owned(PyObject_CallMethod(vitcx.get(), "load", "ss", bundle, "onnxruntime"));
    Object size =
        attribute(attribute(attribute(explainer, "bundle"), "manifest"), "input_size");
    height = PyLong_AsSize_t(PyTuple_GetItem(size.get(), 0));
    width = PyLong_AsSize_t(PyTuple_GetItem(size.get(), 1));
  }

  std::vector<float> frame(3 * height * width);  // ours, before, during and after
  for (size_t number = 0; number < 2; ++number) {
    draw(frame, height, width, number + 1);
    std::atomic<bool> done{false};
    size_t beats = 0;
    std::string failure;

    // Python runs in a worker; this thread, which holds no GIL, stays free for the next frame.
    std::thread worker([&] {
      try {
        HoldGil gil;
        Object memory = owned(PyMemoryView_FromMemory(
            reinterpret_cast<char*>(frame.data()),
            static_cast<Py_ssize_t>(frame.size() * sizeof(float)), PyBUF_READ));
        Object flat =
            owned(PyObject_CallMethod(numpy.get(), "frombuffer", "Os", memory.get(), "float32"));
        Object image = owned(PyObject_CallMethod(flat.get(), "reshape", "nnn", Py_ssize_t{3},
                                                 static_cast<Py_ssize_t>(height),
                                                 static_cast<Py_ssize_t>(width)));
        const bool same = View(image).data() == frame.data();
        Object result = owned(PyObject_CallMethod(explainer.get(), "explain", "O", image.get()));
        Object saliency = attribute(result, "saliency");
        View map(saliency);  // (1, H, W) float32, read where it lies
        size_t peak = 0;
        for (size_t i = 0; i < map.size(); ++i) {
          if (map.data()[i] > map.data()[peak]) peak = i;
        }
        std::printf(
            "{\"frame\": %zu, \"frame_is_shared\": %s, \"values\": %zu, \"peak\": [%zu, %zu], "
            "\"peak_value\": %.9g}\n",
            number, same ? "true" : "false", map.size(), peak / width, peak % width,
            static_cast<double>(map.data()[peak]));
      } catch (const std::exception& error) {
        failure = error.what();
      }
      done = true;
    });
    while (!done) {
      ++beats;
      std::this_thread::yield();
    }
    worker.join();
    if (!failure.empty()) throw std::runtime_error(failure);
    std::fprintf(stderr, "frame %zu: the pipeline's thread ran on, %zu times round\n", number,
                 beats);
  }

  HoldGil gil;  // references are given up under the GIL, and the engine closed
  owned(PyObject_CallMethod(explainer.get(), "close", nullptr));
  explainer.reset();
  numpy.reset();
  vitcx.reset();
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s BUNDLE (a folder, or demo)\n", arguments[0]);
    return 2;
  }
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  // The environment that CMake found: its packages are this program's.
  PyConfig_SetBytesString(&config, &config.program_name, VITCX_INTERPRETER);
  const PyStatus status = Py_InitializeFromConfig(&config);
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status)) {
    std::fprintf(stderr, "Python does not start: %s\n", status.err_msg);
    return 1;
  }
  PyThreadState* main_thread = PyEval_SaveThread();  // let go of the GIL
  int code = 0;
  try {
    run(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    code = 1;
  }
  std::fflush(stdout);
  PyEval_RestoreThread(main_thread);
  return Py_FinalizeEx() == 0 ? code : 1;
}
