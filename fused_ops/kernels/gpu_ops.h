// What the operations of gpu_ops.cc and gpu_optimizer_ops.cc share. Host code:
// the kernels themselves are behind gpu_kernels.h.

#ifndef FUSED_OPS_KERNELS_GPU_OPS_H_
#define FUSED_OPS_KERNELS_GPU_OPS_H_

#include "fused_ops/kernels/gpu_kernels.h"
#include "fused_ops/kernels/op_tensors.h"
#include "tensorflow/core/public/version.h"
#if TF_MAJOR_VERSION < 2
#include "tensorflow/core/platform/stream_executor.h"
#else
#include "xla/stream_executor/stream.h"
#endif

// Tests register the same operations for the CPU, above kernels that run there.
#ifndef BERT_GPU_DEVICE
#define BERT_GPU_DEVICE DEVICE_GPU
#endif

namespace bert {

// The stream on which the framework orders this device's work.
inline cudaStream_t stream_of(OpKernelContext* c) {
  DeviceContext* device = c->op_device_context();
  if (!device) return nullptr;  // a CPU, see above
#if TF_MAJOR_VERSION < 2
  return *reinterpret_cast<const cudaStream_t*>(
      device->stream()->implementation()->GpuStreamMemberHack());
#else
  return static_cast<cudaStream_t>(
      device->stream()->platform_specific_handle().stream);
#endif
}

// Makes a call's failure that of the operation.
inline void require(OpKernelContext* c, cudaError_t error) {
  OP_REQUIRES(c, error == cudaSuccess,
              errors::Internal(c->op_kernel().type_string(), ": CUDA says '",
                               cudaGetErrorString(error), "'"));
}

// Scratch memory that is free again when what was launched with it has run.
inline void* scratch_of(OpKernelContext* c, int64_t bytes, Tensor* tensor) {
  const Status status = c->allocate_temp(
      DT_FLOAT, TensorShape({(bytes + 3) / 4}), tensor);
  if (!status.ok()) c->CtxFailure(status);
  return status.ok() ? values_of(*tensor) : nullptr;
}

}  // namespace bert

#endif  // FUSED_OPS_KERNELS_GPU_OPS_H_
