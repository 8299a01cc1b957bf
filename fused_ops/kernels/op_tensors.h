// Inputs and outputs of the operations, on any device.

#ifndef FUSED_OPS_KERNELS_OP_TENSORS_H_
#define FUSED_OPS_KERNELS_OP_TENSORS_H_

#include <initializer_list>
#include <string>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace bert {

using namespace tensorflow;  // NOLINT: its macros need it

// The values of a tensor, whatever they are; null where it has none.
inline void* values_of(const Tensor& tensor) {
  return const_cast<char*>(tensor.tensor_data().data());
}

template <typename T = float>
const T* in(OpKernelContext* context, int i) {
  return static_cast<const T*>(values_of(context->input(i)));
}

// A new output. After an error the context's status says so, which has to be
// looked at: the values of an output without elements are null as well.
template <typename T = float>
T* out_of(OpKernelContext* context, int output, const TensorShape& shape) {
  Tensor* tensor = nullptr;
  const Status status = context->allocate_output(output, shape, &tensor);
  if (!status.ok()) {
    context->CtxFailure(status);
    return nullptr;
  }
  return static_cast<T*>(values_of(*tensor));
}

// A new output of the shape of an input.
template <typename T = float>
T* out_like(OpKernelContext* context, int output, int input) {
  return out_of<T>(context, output, context->input(input).shape());
}

constexpr int64_t kVector = -1;

// What an input has to be: `rows` x `width` or, with rows kVector, `width`
// values.
struct Expected {
  int input;
  int64_t rows, width;
};

inline bool fits(OpKernelContext* context,
                 std::initializer_list<Expected> expected) {
  for (const Expected& e : expected) {
    const TensorShape& shape = context->input(e.input).shape();
    const bool good = e.rows == kVector
        ? shape.dims() == 1 && shape.dim_size(0) == e.width
        : shape.dims() == 2 && shape.dim_size(0) == e.rows &&
              shape.dim_size(1) == e.width;
    if (!good) {
      context->CtxFailure(errors::InvalidArgument(
          "input ", e.input, " of ", context->op_kernel().type_string(),
          " has shape ", shape.DebugString(), ", not ",
          e.rows == kVector ? "" : std::to_string(e.rows) + " x ", e.width));
      return false;
    }
  }
  return true;
}

// Zeroes in 65536 of an operation's attribute `rate`.
inline uint32_t zeroes_of(float rate) {
  return static_cast<uint32_t>(rate * 65536.0f + 0.5f);
}

}  // namespace bert

#endif  // FUSED_OPS_KERNELS_OP_TENSORS_H_
