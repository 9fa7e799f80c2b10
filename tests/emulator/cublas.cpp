// The four calls of cuBLAS that this project makes, on the emulated driver: column-major, in order.
#include <dlfcn.h>

#include <cstdint>
#include <memory>

namespace {

struct Handle {
  void* stream = nullptr;
};

struct Product {
  bool transpose_a, transpose_b;
  int m, n, k, lda, ldb, ldc;
  float alpha, beta;
  const float *a, *b;
  float* c;
};

template <typename F>
F* driver(const char* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  return reinterpret_cast<F*>(dlsym(library, name));
}

float* host(const float* address) {
  const auto find = driver<void*(uint64_t)>("emulator_host");
  return static_cast<float*>(find(reinterpret_cast<uint64_t>(address)));
}

void multiply(void* data) {
  const std::unique_ptr<const Product> p(static_cast<const Product*>(data));
  const float *a = host(p->a), *b = host(p->b);
  float* const c = host(p->c);
  for (int column = 0; column < p->n; ++column) {
    for (int row = 0; row < p->m; ++row) {
      double sum = 0;
      for (int i = 0; i < p->k; ++i) {
        sum += double{a[p->transpose_a ? i + row * p->lda : row + i * p->lda]} *
               b[p->transpose_b ? column + i * p->ldb : i + column * p->ldb];
      }
      float& to = c[row + column * p->ldc];
      to = static_cast<float>(p->alpha * sum + (p->beta == 0 ? 0 : p->beta * to));
    }
  }
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
  *handle = new Handle;
  return 0;
}

int cublasDestroy_v2(void* handle) {
  delete static_cast<Handle*>(handle);
  return 0;
}

int cublasSetStream_v2(void* handle, void* stream) {
  static_cast<Handle*>(handle)->stream = stream;
  return 0;
}

int cublasSgemm_v2(void* handle, int transpose_a, int transpose_b, int m, int n, int k,
                   const float* alpha, const float* a, int lda, const float* b, int ldb,
                   const float* beta, float* c, int ldc) {
  auto* product = new Product{transpose_a != 0, transpose_b != 0, m,      n,     k, lda, ldb, ldc,
                              *alpha,           *beta,            a,      b,     c};
  const auto queue = driver<int(void*, void (*)(void*), void*)>("emulator_queue");
  return queue(static_cast<Handle*>(handle)->stream, multiply, product) == 0 ? 0 : 13;
}

}  // extern "C"
