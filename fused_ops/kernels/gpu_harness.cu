// What fused_ops/gpu_check.py needs of the CUDA runtime: all of it is linked in
// here, so that no library has to be found. Not part of the kernels.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

extern "C" {

const char* harness_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

// How many of BertType's there are.
int harness_types() { return CUDART_VERSION >= 11000 ? 3 : 2; }

// "name|architecture|driver's CUDA|runtime's CUDA|bytes of L2".
int harness_describe(char* text, int size) {
  cudaDeviceProp properties;
  int driver = 0, runtime = 0;
  const cudaError_t error = cudaGetDeviceProperties(&properties, 0);
  if (error != cudaSuccess) return error;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  std::snprintf(text, size, "%s|sm_%d%d|%d.%d|%d.%d|%d", properties.name,
                properties.major, properties.minor, driver / 1000,
                driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10,
                properties.l2CacheSize);
  return cudaSuccess;
}

int harness_allocate(int64_t bytes, void** memory) {
  return cudaMalloc(memory, bytes);
}

int harness_free(void* memory) { return cudaFree(memory); }

int harness_fill(void* memory, int byte, int64_t bytes) {
  return cudaMemset(memory, byte, bytes);
}

// Between host and device, or on the device.
int harness_copy(void* to, const void* from, int64_t bytes) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, nullptr);
}

int harness_wait() { return cudaDeviceSynchronize(); }

int harness_event(cudaEvent_t* event) { return cudaEventCreate(event); }

int harness_record(cudaEvent_t event) {
  return cudaEventRecord(event, nullptr);
}

int harness_elapsed(cudaEvent_t begin, cudaEvent_t end, float* milliseconds) {
  return cudaEventElapsedTime(milliseconds, begin, end);
}

}  // extern "C"
