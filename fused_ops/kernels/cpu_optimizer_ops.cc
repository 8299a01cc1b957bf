// TensorFlow's face of cpu_kernels.h: updates of all variables at once.

#include <cmath>

#include "fused_ops/kernels/cpu_ops.h"
#include "fused_ops/kernels/op_variables.h"

namespace bert {
namespace {

// Parameters that one thread works on at a time.
constexpr int64_t kChunk = 1 << 15;

struct Chunk {
  int variable;
  int64_t begin, count;
};

void copy(OpKernelContext* c, const Tensor& from, Tensor* to) {
  const float* source = from.flat<float>().data();
  float* target = to->flat<float>().data();
  in_parallel(c, from.NumElements(), 1, [&](int64_t begin, int64_t end) {
    std::copy(source + begin, source + end, target + begin);
  });
}

// The variables of an update, in chunks.
class Parameters {
 public:
  Status open(OpKernelContext* c, int n) {
    TF_RETURN_IF_ERROR(all_.open(c, n, copy));
    for (int i = 0; i < n; ++i) {
      for (int64_t at = 0; at < all_.size(i); at += kChunk) {
        chunks_.push_back({i, at, std::min<int64_t>(kChunk, all_.size(i) - at)});
      }
    }
    return Status();
  }

  const std::vector<Chunk>& chunks() const { return chunks_; }
  float* variable(const Chunk& k) const {
    return all_.variable(k.variable) + k.begin;
  }
  float* m(const Chunk& k) const { return all_.m(k.variable) + k.begin; }
  float* v(const Chunk& k) const { return all_.v(k.variable) + k.begin; }
  const float* gradient(const Chunk& k) const {
    return all_.gradient(k.variable) + k.begin;
  }

 private:
  Variables all_;
  std::vector<Chunk> chunks_;
};

class AdamUpdate : public Update<AdamStep> {
 public:
  explicit AdamUpdate(OpKernelConstruction* c) : Update(c, false) {}
  void Compute(OpKernelContext* c) override {
    Parameters all;
    OP_REQUIRES_OK(c, all.open(c, n_));
    AdamStep step = step_;
    step.rate = *scalar(c, 0);
    step.gradient_scale = *scalar(c, 1);
    step.correction_1 = step.correction_2 = 1.0f;
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

class LambUpdate : public Update<AdamStep> {
 public:
  explicit LambUpdate(OpKernelConstruction* c) : Update(c, true) {}
  void Compute(OpKernelContext* c) override {
    Parameters all;
    OP_REQUIRES_OK(c, all.open(c, n_));
    AdamStep step = step_;
    step.rate = *scalar(c, 0);
    step.gradient_scale = *scalar(c, 1);
    step.correction_1 = *scalar(c, 2);
    step.correction_2 = *scalar(c, 3);
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
    if (c->status().ok()) *norm = static_cast<float>(std::sqrt(total));
  }
};

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

BERT_KERNEL("Adam", AdamUpdate);
BERT_KERNEL("Lamb", LambUpdate);
BERT_KERNEL("GlobalNorm", GlobalNorm);

}  // namespace
}  // namespace bert
