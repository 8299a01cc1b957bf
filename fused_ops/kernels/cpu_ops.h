// What the operations of cpu_ops.cc and cpu_optimizer_ops.cc share: threads, sums
// over rows. One source for TensorFlow 1.15 and 2.15.
//
// Work is divided among the threads of the framework's own pool. All that is
// summed over rows is summed in blocks of kRowBlock and then block by block, and
// so gives the same bits with any number of threads.

#ifndef FUSED_OPS_KERNELS_CPU_OPS_H_
#define FUSED_OPS_KERNELS_CPU_OPS_H_

#include <algorithm>
#include <vector>

#include "fused_ops/kernels/cpu_kernels.h"
#include "fused_ops/kernels/op_tensors.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace bert {

using shape_inference::InferenceContext;

// The table for this processor.
inline const Kernels& kernels() {
  static const Kernels& table =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
          ? kernels_avx512()
          : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                ? kernels_avx2()
                : kernels_generic();
  return table;
}

// Calls work(begin, end) for parts of [0, total), on the framework's threads.
template <typename Work>
void in_parallel(OpKernelContext* context, int64_t total, int64_t cost,
                 Work work) {
  auto& pool = *context->device()->tensorflow_cpu_worker_threads();
  Shard(pool.num_threads, pool.workers, total, cost,
        [&work](int64 begin, int64 end) { work(begin, end); });
}

// `count` vectors of sums over rows, of `width` floats each.
class RowSums {
 public:
  RowSums(int64_t rows, int64_t width, int64_t count)
      : blocks_((rows + kRowBlock - 1) / kRowBlock), width_(width),
        count_(count), sums_(blocks_ * count * width, 0.0f) {}

  // Calls work(first row, rows, sums of the block) for each block; the sums'
  // vectors follow each other.
  template <typename Work>
  void add_up(OpKernelContext* context, int64_t rows, int64_t cost, Work work) {
    in_parallel(context, blocks_, cost * kRowBlock * width_,
                [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kRowBlock;
        work(first, std::min(kRowBlock, rows - first),
             sums_.data() + block * count_ * width_);
      }
    });
  }

  void write(int64_t which, float* total) const {
    std::fill(total, total + width_, 0.0f);
    for (int64_t block = 0; block < blocks_; ++block) {
      const float* sums = sums_.data() + (block * count_ + which) * width_;
      for (int64_t j = 0; j < width_; ++j) total[j] += sums[j];
    }
  }

 private:
  const int64_t blocks_, width_, count_;
  std::vector<float> sums_;
};

}  // namespace bert

// A build of the operations for another device alone leaves these kernels out.
#ifndef BERT_NO_CPU_KERNELS
#define BERT_KERNEL(name, type) \
  REGISTER_KERNEL_BUILDER(Name("Bert" name).Device(DEVICE_CPU), type)
#define BERT_FLOAT_KERNEL(name, type)                                      \
  REGISTER_KERNEL_BUILDER(                                                 \
      Name("Bert" name).Device(DEVICE_CPU).TypeConstraint<float>("T"), type)
#else
#define BERT_KERNEL(name, type)
#define BERT_FLOAT_KERNEL(name, type)
#endif

#endif  // FUSED_OPS_KERNELS_CPU_OPS_H_
