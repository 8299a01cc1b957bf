// What fused_ops/kernels/gpu_*.{h,cc} take from CUDA, for a machine without it.
// The functions are in gpu_kernels_on_cpu.cc.

#ifndef TESTS_STAND_IN_CUDA_RUNTIME_API_H_
#define TESTS_STAND_IN_CUDA_RUNTIME_API_H_

#include <cstddef>

#define CUDART_VERSION 11000

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes,
                            cudaStream_t stream);

#endif  // TESTS_STAND_IN_CUDA_RUNTIME_API_H_
