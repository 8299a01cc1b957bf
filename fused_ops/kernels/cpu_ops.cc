// TensorFlow's face of cpu_kernels.h: one source for 1.15 and 2.15.
//
// Work is divided among the threads of the framework's own pool. All that is
// summed over rows is summed in blocks of kRowBlock and then block by block, and
// so gives the same bits with any number of threads.

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <vector>

#include "fused_ops/kernels/cpu_kernels.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace bert {
namespace {

using namespace tensorflow;  // NOLINT: its macros need it

// The table for this processor.
const Kernels& kernels() {
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

const float* in(OpKernelContext* context, int i) {
  return context->input(i).flat<float>().data();
}

// An output of the shape of an input, or null after an error.
float* out_like(OpKernelContext* context, int output, int input) {
  Tensor* tensor = nullptr;
  const Status status = context->allocate_output(
      output, context->input(input).shape(), &tensor);
  if (!status.ok()) {
    context->CtxFailure(status);
    return nullptr;
  }
  return tensor->flat<float>().data();
}

float* out_of(OpKernelContext* context, int output, const TensorShape& shape) {
  Tensor* tensor = nullptr;
  const Status status = context->allocate_output(output, shape, &tensor);
  if (!status.ok()) {
    context->CtxFailure(status);
    return nullptr;
  }
  return tensor->flat<float>().data();
}

// Checks that inputs have `rows` x `width` or, with rows 0, `width` values.
struct Expected {
  int input;
  int64_t rows, width;
};

bool fits(OpKernelContext* context, std::initializer_list<Expected> expected) {
  for (const Expected& e : expected) {
    const TensorShape& shape = context->input(e.input).shape();
    const bool good = e.rows < 0
        ? shape.dims() == 1 && shape.dim_size(0) == e.width
        : shape.dims() == 2 && shape.dim_size(0) == e.rows &&
              shape.dim_size(1) == e.width;
    if (!good) {
      context->CtxFailure(errors::InvalidArgument(
          "input ", e.input, " of ", context->op_kernel().type_string(),
          " has shape ", shape.DebugString(), ", not ",
          e.rows < 0 ? "" : std::to_string(e.rows) + " x ", e.width));
      return false;
    }
  }
  return true;
}
constexpr int64_t kVector = -1;

// What the attribute `rate` and the input `seed` [2] say.
Dropout dropout_of(OpKernelContext* context, int seed, float rate) {
  const auto values = context->input(seed).flat<int64>();
  Dropout dropout;
  dropout.key = static_cast<uint64_t>(values(0));
  dropout.counter = static_cast<uint64_t>(values(1));
  dropout.zeroes = static_cast<uint32_t>(rate * 65536.0f + 0.5f);
  return dropout;
}

// Bias and GELU --------------------------------------------------------------

class BiasGelu : public OpKernel {
 public:
  explicit BiasGelu(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("exact", &exact_));
  }
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{0, rows, width}, {1, kVector, width}})) return;
    const float *x = in(c, 0), *bias = in(c, 1);
    float* y = out_like(c, 0, 0);
    if (!y) return;
    in_parallel(c, rows, 4 * width, [&](int64_t begin, int64_t end) {
      kernels().bias_gelu(x + begin * width, bias, end - begin, width, exact_,
                          y + begin * width);
    });
  }

 private:
  bool exact_;
};

class BiasGeluGrad : public OpKernel {
 public:
  explicit BiasGeluGrad(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("exact", &exact_));
  }
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{1, rows, width}, {2, kVector, width}})) return;
    const float *dy = in(c, 0), *x = in(c, 1), *bias = in(c, 2);
    float *dx = out_like(c, 0, 1), *dbias = out_like(c, 1, 2);
    if (!dx || !dbias) return;
    RowSums sums(rows, width, 1);
    sums.add_up(c, rows, 6, [&](int64_t first, int64_t count, float* sum) {
      const int64_t at = first * width;
      kernels().bias_gelu_grad(dy + at, x + at, bias, count, width, exact_,
                               dx + at, sum);
    });
    sums.write(0, dbias);
  }

 private:
  bool exact_;
};

// Dropout, residual and layer norm -------------------------------------------

class DropoutAddNorm : public OpKernel {
 public:
  explicit DropoutAddNorm(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("rate", &rate_));
  }
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{1, kVector, width}, {2, rows, width}, {3, kVector, width},
                  {4, kVector, width}, {5, kVector, 2}})) return;
    const float *x = in(c, 0), *bias = in(c, 1), *residual = in(c, 2),
                *gamma = in(c, 3), *beta = in(c, 4);
    const Dropout dropout = dropout_of(c, 5, rate_);
    float *y = out_like(c, 0, 0), *z = out_like(c, 1, 0),
          *mean = out_of(c, 2, TensorShape({rows})),
          *scale = out_of(c, 3, TensorShape({rows}));
    if (!y || !z || !mean || !scale) return;
    in_parallel(c, rows, 4 * width, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * width;
      kernels().dropout_add_norm(
          x + at, bias, residual + at, gamma, beta, dropout, begin, end - begin,
          width, z + at, mean + begin, scale + begin, y + at);
    });
  }

 private:
  float rate_;
};

class DropoutAddNormGrad : public OpKernel {
 public:
  explicit DropoutAddNormGrad(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("rate", &rate_));
  }
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{1, rows, width}, {2, kVector, rows}, {3, kVector, rows},
                  {4, kVector, width}, {5, kVector, 2}})) return;
    const float *dy = in(c, 0), *z = in(c, 1), *mean = in(c, 2),
                *scale = in(c, 3), *gamma = in(c, 4);
    const Dropout dropout = dropout_of(c, 5, rate_);
    float *dx = out_like(c, 0, 0), *dz = out_like(c, 1, 0),
          *dbias = out_like(c, 2, 4), *dgamma = out_like(c, 3, 4),
          *dbeta = out_like(c, 4, 4);
    if (!dx || !dz || !dbias || !dgamma || !dbeta) return;
    RowSums sums(rows, width, 3);
    sums.add_up(c, rows, 6, [&](int64_t first, int64_t count, float* sum) {
      const int64_t at = first * width;
      kernels().dropout_add_norm_grad(
          dy + at, z + at, mean + first, scale + first, gamma, dropout, first,
          count, width, dx + at, dz + at, sum, sum + width, sum + 2 * width);
    });
    sums.write(0, dbias);
    sums.write(1, dgamma);
    sums.write(2, dbeta);
  }

 private:
  float rate_;
};

// Attention ------------------------------------------------------------------

class AttentionBase : public OpKernel {
 public:
  explicit AttentionBase(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("rate", &rate_));
    OP_REQUIRES_OK(c, c->GetAttr("heads", &heads_));
  }

 protected:
  // Calls work(sequence's first row, its length, head, scratch) for all heads
  // of all sequences.
  template <typename Work>
  void for_each_head(OpKernelContext* c, const Tensor& starts, int64_t tokens,
                     int64_t size, Work work) {
    const auto first = starts.flat<int32>();
    const int64_t batch = first.size() - 1;
    int64_t longest = 0;
    OP_REQUIRES(c, batch >= 0 && first(0) == 0 && first(batch) == tokens,
                errors::InvalidArgument("`starts` does not go from 0 to the "
                                        "number of tokens, ", tokens));
    for (int64_t i = 0; i < batch; ++i) {
      OP_REQUIRES(c, first(i) <= first(i + 1),
                  errors::InvalidArgument("`starts` falls"));
      longest = std::max<int64_t>(longest, first(i + 1) - first(i));
    }
    const int64_t cost = 8 * (longest * longest * size / 4 + 1);
    in_parallel(c, batch * heads_, cost, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(attention_scratch(longest, size));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = first(i / heads_);
        const int64_t length = first(i / heads_ + 1) - row;
        if (length) work(row, length, i % heads_, scratch.data());
      }
    });
  }

  float rate_;
  int heads_;
};

class Attention : public AttentionBase {
 public:
  explicit Attention(OpKernelConstruction* c) : AttentionBase(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t tokens = c->input(0).dim_size(0),
                  width = c->input(0).dim_size(1), size = width / heads_;
    if (!fits(c, {{1, tokens, width}, {2, tokens, width}, {4, kVector, 2}})) {
      return;
    }
    const float *query = in(c, 0), *key = in(c, 1), *value = in(c, 2);
    const Dropout dropout = dropout_of(c, 4, rate_);
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    float *out = out_like(c, 0, 0),
          *log_sum = out_of(c, 1, TensorShape({heads_, tokens}));
    if (!out || !log_sum) return;
    for_each_head(c, c->input(3), tokens, size, [&](
        int64_t row, int64_t length, int64_t head, float* scratch) {
      const int64_t at = row * width + head * size;
      kernels().attention(query + at, key + at, value + at, length, size, width,
                          scale, dropout, row, head, scratch, out + at,
                          log_sum + head * tokens + row);
    });
  }
};

class AttentionGrad : public AttentionBase {
 public:
  explicit AttentionGrad(OpKernelConstruction* c) : AttentionBase(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t tokens = c->input(0).dim_size(0),
                  width = c->input(0).dim_size(1), size = width / heads_;
    if (!fits(c, {{1, tokens, width}, {2, tokens, width}, {3, tokens, width},
                  {4, tokens, width}, {5, heads_, tokens}, {7, kVector, 2}})) {
      return;
    }
    const float *dout = in(c, 0), *query = in(c, 1), *key = in(c, 2),
                *value = in(c, 3), *out = in(c, 4), *log_sum = in(c, 5);
    const Dropout dropout = dropout_of(c, 7, rate_);
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    float *dquery = out_like(c, 0, 1), *dkey = out_like(c, 1, 2),
          *dvalue = out_like(c, 2, 3);
    if (!dquery || !dkey || !dvalue) return;
    for_each_head(c, c->input(6), tokens, size, [&](
        int64_t row, int64_t length, int64_t head, float* scratch) {
      const int64_t at = row * width + head * size;
      kernels().attention_grad(
          dout + at, query + at, key + at, value + at, out + at,
          log_sum + head * tokens + row, length, size, width, scale, dropout,
          row, head, scratch, dquery + at, dkey + at, dvalue + at);
    });
  }
};

// Softmax cross-entropy ------------------------------------------------------

bool labels_fit(OpKernelContext* c, const Tensor& labels, int64_t rows,
                int64_t classes) {
  const auto label = labels.flat<int32>();
  if (label.size() != rows) {
    c->CtxFailure(errors::InvalidArgument(label.size(), " labels for ", rows,
                                          " rows"));
    return false;
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (label(i) < 0 || label(i) >= classes) {
      c->CtxFailure(errors::InvalidArgument("label ", label(i), " of ", classes,
                                            " classes"));
      return false;
    }
  }
  return true;
}

class CrossEntropy : public OpKernel {
 public:
  explicit CrossEntropy(OpKernelConstruction* c) : OpKernel(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0),
                  classes = c->input(0).dim_size(1);
    if (!fits(c, {{1, kVector, classes}}) ||
        !labels_fit(c, c->input(2), rows, classes)) return;
    const float *logits = in(c, 0), *bias = in(c, 1);
    const auto label = c->input(2).flat<int32>();
    float *loss = out_of(c, 0, TensorShape({rows})),
          *log_sum = out_of(c, 1, TensorShape({rows}));
    if (!loss || !log_sum) return;
    in_parallel(c, rows, 4 * classes, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        kernels().cross_entropy(logits + i * classes, bias, classes, label(i),
                                loss + i, log_sum + i);
      }
    });
  }
};

class CrossEntropyGrad : public OpKernel {
 public:
  explicit CrossEntropyGrad(OpKernelConstruction* c) : OpKernel(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(1).dim_size(0),
                  classes = c->input(1).dim_size(1);
    if (!fits(c, {{0, kVector, rows}, {2, kVector, classes},
                  {4, kVector, rows}}) ||
        !labels_fit(c, c->input(3), rows, classes)) return;
    const float *dloss = in(c, 0), *logits = in(c, 1), *bias = in(c, 2),
                *log_sum = in(c, 4);
    const auto label = c->input(3).flat<int32>();
    float *dlogits = out_like(c, 0, 1), *dbias = out_like(c, 1, 2);
    if (!dlogits || !dbias) return;
    RowSums sums(rows, classes, 1);
    sums.add_up(c, rows, 4, [&](int64_t first, int64_t count, float* sum) {
      for (int64_t i = first; i < first + count; ++i) {
        kernels().cross_entropy_grad(dloss[i], logits + i * classes, bias,
                                     classes, label(i), log_sum[i],
                                     dlogits + i * classes, sum);
      }
    });
    sums.write(0, dbias);
  }
};

// Optimizers -----------------------------------------------------------------

// Tensor::RefCountIsOne() is private in 1.15, where the framework's own kernels
// are friends. An explicit instantiation may name what is private.
template <typename Tag, typename Tag::type kMember>
struct Grant {
  friend typename Tag::type member_of(Tag) { return kMember; }
};
struct RefCountIsOne {
  typedef bool (Tensor::*type)() const;
  friend type member_of(RefCountIsOne);
};
template struct Grant<RefCountIsOne, &Tensor::RefCountIsOne>;

// Parameters that one thread works on at a time.
constexpr int64_t kChunk = 1 << 15;

struct Chunk {
  int variable;
  int64_t begin, count;
};

// Variables, their two slots and gradients, locked while this lives.
class Parameters {
 public:
  ~Parameters() {
    for (auto it = locked_.rbegin(); it != locked_.rend(); ++it) (*it)->unlock();
  }

  // Takes inputs 0 to n - 1 as variables, then n of each slot, then gradients.
  Status open(OpKernelContext* c, int n) {
    for (int i = 0; i < 3 * n; ++i) {
      core::RefCountPtr<Var> variable;
      TF_RETURN_IF_ERROR(LookupResource(c, HandleFromInput(c, i), &variable));
      variables_.push_back(std::move(variable));
    }
    std::vector<mutex*> mutexes;
    for (auto& variable : variables_) mutexes.push_back(variable->mu());
    std::sort(mutexes.begin(), mutexes.end());
    if (std::unique(mutexes.begin(), mutexes.end()) != mutexes.end()) {
      return errors::InvalidArgument("a variable occurs twice");
    }
    for (mutex* one : mutexes) {
      one->lock();
      locked_.push_back(one);
    }
    for (int i = 0; i < 3 * n; ++i) {
      Tensor* tensor = variables_[i]->tensor();
      const Tensor& gradient = c->input(3 * n + i % n);
      if (!tensor->IsInitialized() || tensor->dtype() != DT_FLOAT ||
          tensor->shape() != gradient.shape()) {
        return errors::InvalidArgument(
            "variable ", i % n, " is not initialized, or not of the shape ",
            gradient.shape().DebugString(), " of its gradient");
      }
      TF_RETURN_IF_ERROR(own(c, variables_[i].get()));
      values_.push_back(tensor->flat<float>().data());
    }
    for (int i = 0; i < n; ++i) {
      const Tensor& gradient = c->input(3 * n + i);
      gradients_.push_back(gradient.flat<float>().data());
      for (int64_t at = 0; at < gradient.NumElements(); at += kChunk) {
        chunks_.push_back({i, at, std::min<int64_t>(
            kChunk, gradient.NumElements() - at)});
      }
    }
    n_ = n;
    return Status();
  }

  const std::vector<Chunk>& chunks() const { return chunks_; }
  float* variable(const Chunk& k) const { return values_[k.variable] + k.begin; }
  float* m(const Chunk& k) const { return values_[n_ + k.variable] + k.begin; }
  float* v(const Chunk& k) const {
    return values_[2 * n_ + k.variable] + k.begin;
  }
  const float* gradient(const Chunk& k) const {
    return gradients_[k.variable] + k.begin;
  }

 private:
  // Who has read a variable may still hold its buffer: then it gets a new one.
  static Status own(OpKernelContext* c, Var* variable) {
    Tensor* tensor = variable->tensor();
    if (variable->copy_on_read_mode.load() ||
        (tensor->*member_of(RefCountIsOne()))()) {
      return Status();
    }
    Tensor copy;
    TF_RETURN_IF_ERROR(c->allocate_temp(DT_FLOAT, tensor->shape(), &copy));
    const float* from = tensor->flat<float>().data();
    float* to = copy.flat<float>().data();
    in_parallel(c, tensor->NumElements(), 1, [&](int64_t begin, int64_t end) {
      std::copy(from + begin, from + end, to + begin);
    });
    *tensor = copy;
    return Status();
  }

  int n_ = 0;
  std::vector<core::RefCountPtr<Var>> variables_;
  std::vector<mutex*> locked_;
  std::vector<float*> values_;
  std::vector<const float*> gradients_;
  std::vector<Chunk> chunks_;
};

class UpdateBase : public OpKernel {
 public:
  explicit UpdateBase(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("N", &n_));
    OP_REQUIRES_OK(c, c->GetAttr("beta_1", &step_.beta_1));
    OP_REQUIRES_OK(c, c->GetAttr("beta_2", &step_.beta_2));
    OP_REQUIRES_OK(c, c->GetAttr("epsilon", &step_.epsilon));
    OP_REQUIRES_OK(c, c->GetAttr("decay", &decay_));
    OP_REQUIRES(c, static_cast<int>(decay_.size()) == n_,
                errors::InvalidArgument("`decay` has to have N values"));
  }

 protected:
  float scalar(OpKernelContext* c, int i) const {
    return c->input(4 * n_ + i).flat<float>()(0);
  }

  AdamStep step_of(OpKernelContext* c) const {
    AdamStep step = step_;
    step.rate = scalar(c, 0);
    step.gradient_scale = scalar(c, 1);
    step.correction_1 = step.correction_2 = 1.0f;
    return step;
  }

  int n_;
  AdamStep step_;
  std::vector<float> decay_;
};

class AdamUpdate : public UpdateBase {
 public:
  explicit AdamUpdate(OpKernelConstruction* c) : UpdateBase(c) {}
  void Compute(OpKernelContext* c) override {
    Parameters all;
    OP_REQUIRES_OK(c, all.open(c, n_));
    const AdamStep step = step_of(c);
    in_parallel(c, all.chunks().size(), 10 * kChunk,
                [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Chunk& k = all.chunks()[i];
        AdamStep one = step;
        one.decay = decay_[k.variable];
        kernels().adam(one, k.count, all.gradient(k), all.m(k), all.v(k),
                       all.variable(k));
      }
    });
  }
};

class LambUpdate : public UpdateBase {
 public:
  explicit LambUpdate(OpKernelConstruction* c) : UpdateBase(c) {
    OP_REQUIRES_OK(c, c->GetAttr("adapt", &adapt_));
    OP_REQUIRES(c, static_cast<int>(adapt_.size()) == n_,
                errors::InvalidArgument("`adapt` has to have N values"));
  }
  void Compute(OpKernelContext* c) override {
    Parameters all;
    OP_REQUIRES_OK(c, all.open(c, n_));
    AdamStep step = step_of(c);
    step.correction_1 = scalar(c, 2);
    step.correction_2 = scalar(c, 3);
    const int64_t chunks = all.chunks().size();
    std::vector<double> square_w(chunks), square_direction(chunks);
    std::vector<std::vector<float>> directions(chunks);
    in_parallel(c, chunks, 12 * kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Chunk& k = all.chunks()[i];
        AdamStep one = step;
        one.decay = decay_[k.variable];
        directions[i].resize(k.count);
        kernels().lamb(one, k.count, all.gradient(k), all.m(k), all.v(k),
                       all.variable(k), directions[i].data(), &square_w[i],
                       &square_direction[i]);
      }
    });
    std::vector<double> w(n_), direction(n_);
    for (int64_t i = 0; i < chunks; ++i) {
      w[all.chunks()[i].variable] += square_w[i];
      direction[all.chunks()[i].variable] += square_direction[i];
    }
    in_parallel(c, chunks, 2 * kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Chunk& k = all.chunks()[i];
        const double a = w[k.variable], b = direction[k.variable];
        const double ratio =
            adapt_[k.variable] && a > 0 && b > 0 ? std::sqrt(a / b) : 1.0;
        kernels().subtract(step.rate * static_cast<float>(ratio), k.count,
                           directions[i].data(), all.variable(k));
      }
    });
  }

 private:
  std::vector<bool> adapt_;
};

// The global norm of tensors, with one pass over each.
class GlobalNorm : public OpKernel {
 public:
  explicit GlobalNorm(OpKernelConstruction* c) : OpKernel(c) {}
  void Compute(OpKernelContext* c) override {
    std::vector<Chunk> chunks;
    for (int i = 0; i < c->num_inputs(); ++i) {
      const int64_t size = c->input(i).NumElements();
      for (int64_t at = 0; at < size; at += kChunk) {
        chunks.push_back({i, at, std::min<int64_t>(kChunk, size - at)});
      }
    }
    std::vector<double> squares(chunks.size());
    in_parallel(c, chunks.size(), 2 * kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        squares[i] = kernels().sum_of_squares(
            chunks[i].count,
            c->input(chunks[i].variable).flat<float>().data() + chunks[i].begin);
      }
    });
    double total = 0;
    for (double square : squares) total += square;
    float* norm = out_of(c, 0, TensorShape({}));
    if (norm) *norm = static_cast<float>(std::sqrt(total));
  }
};

// Declarations ---------------------------------------------------------------

using shape_inference::InferenceContext;

// Output i has the shape of input inputs[i].
template <int... inputs>
Status shapes_of(InferenceContext* c) {
  int output = 0;
  for (int input : {inputs...}) c->set_output(output++, c->input(input));
  return Status();
}

REGISTER_OP("BertBiasGelu")
    .Input("x: float").Input("bias: float").Attr("exact: bool")
    .Output("y: float")
    .SetShapeFn(shapes_of<0>);
REGISTER_OP("BertBiasGeluGrad")
    .Input("dy: float").Input("x: float").Input("bias: float")
    .Attr("exact: bool").Output("dx: float").Output("dbias: float")
    .SetShapeFn(shapes_of<1, 2>);
REGISTER_OP("BertDropoutAddNorm")
    .Input("x: float").Input("bias: float").Input("residual: float")
    .Input("gamma: float").Input("beta: float").Input("seed: int64")
    .Attr("rate: float")
    .Output("y: float").Output("z: float").Output("mean: float")
    .Output("scale: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(0));
      c->set_output(2, c->Vector(c->Dim(c->input(0), 0)));
      c->set_output(3, c->Vector(c->Dim(c->input(0), 0)));
      return Status();
    });
REGISTER_OP("BertDropoutAddNormGrad")
    .Input("dy: float").Input("z: float").Input("mean: float")
    .Input("scale: float").Input("gamma: float").Input("seed: int64")
    .Attr("rate: float")
    .Output("dx: float").Output("dz: float").Output("dbias: float")
    .Output("dgamma: float").Output("dbeta: float")
    .SetShapeFn(shapes_of<0, 0, 4, 4, 4>);
REGISTER_OP("BertAttention")
    .Input("query: float").Input("key: float").Input("value: float")
    .Input("starts: int32").Input("seed: int64")
    .Attr("heads: int").Attr("rate: float")
    .Output("out: float").Output("log_sum: float")
    .SetShapeFn([](InferenceContext* c) {
      int heads;
      TF_RETURN_IF_ERROR(c->GetAttr("heads", &heads));
      c->set_output(0, c->input(0));
      c->set_output(1, c->Matrix(heads, c->Dim(c->input(0), 0)));
      return Status();
    });
REGISTER_OP("BertAttentionGrad")
    .Input("dout: float").Input("query: float").Input("key: float")
    .Input("value: float").Input("out: float").Input("log_sum: float")
    .Input("starts: int32").Input("seed: int64")
    .Attr("heads: int").Attr("rate: float")
    .Output("dquery: float").Output("dkey: float").Output("dvalue: float")
    .SetShapeFn(shapes_of<1, 2, 3>);
REGISTER_OP("BertCrossEntropy")
    .Input("logits: float").Input("bias: float").Input("labels: int32")
    .Output("loss: float").Output("log_sum: float")
    .SetShapeFn(shapes_of<2, 2>);
REGISTER_OP("BertCrossEntropyGrad")
    .Input("dloss: float").Input("logits: float").Input("bias: float")
    .Input("labels: int32").Input("log_sum: float")
    .Output("dlogits: float").Output("dbias: float")
    .SetShapeFn(shapes_of<1, 2>);
REGISTER_OP("BertAdam")
    .Input("variable: N * resource").Input("m: N * resource")
    .Input("v: N * resource").Input("gradient: N * float")
    .Input("rate: float").Input("gradient_scale: float")
    .Attr("N: int >= 1").Attr("beta_1: float").Attr("beta_2: float")
    .Attr("epsilon: float").Attr("decay: list(float)")
    .SetIsStateful();
REGISTER_OP("BertLamb")
    .Input("variable: N * resource").Input("m: N * resource")
    .Input("v: N * resource").Input("gradient: N * float")
    .Input("rate: float").Input("gradient_scale: float")
    .Input("correction_1: float").Input("correction_2: float")
    .Attr("N: int >= 1").Attr("beta_1: float").Attr("beta_2: float")
    .Attr("epsilon: float").Attr("decay: list(float)")
    .Attr("adapt: list(bool)")
    .SetIsStateful();
REGISTER_OP("BertGlobalNorm")
    .Input("tensors: N * float").Attr("N: int >= 1").Output("norm: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Scalar());
      return Status();
    });

#define BERT_KERNEL(name, type) \
  REGISTER_KERNEL_BUILDER(Name("Bert" name).Device(DEVICE_CPU), type)
BERT_KERNEL("BiasGelu", BiasGelu);
BERT_KERNEL("BiasGeluGrad", BiasGeluGrad);
BERT_KERNEL("DropoutAddNorm", DropoutAddNorm);
BERT_KERNEL("DropoutAddNormGrad", DropoutAddNormGrad);
BERT_KERNEL("Attention", Attention);
BERT_KERNEL("AttentionGrad", AttentionGrad);
BERT_KERNEL("CrossEntropy", CrossEntropy);
BERT_KERNEL("CrossEntropyGrad", CrossEntropyGrad);
BERT_KERNEL("Adam", AdamUpdate);
BERT_KERNEL("Lamb", LambUpdate);
BERT_KERNEL("GlobalNorm", GlobalNorm);

}  // namespace
}  // namespace bert
