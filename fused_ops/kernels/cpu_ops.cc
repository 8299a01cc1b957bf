// TensorFlow's face of cpu_kernels.h: what layers and losses need.

#include "fused_ops/kernels/cpu_ops.h"

namespace bert {
namespace {

// What the attribute `rate` and the input `seed` [2] say.
Dropout dropout_of(OpKernelContext* context, int seed, float rate) {
  const auto values = context->input(seed).flat<int64>();
  Dropout dropout;
  dropout.key = static_cast<uint64_t>(values(0));
  dropout.counter = static_cast<uint64_t>(values(1));
  dropout.zeroes = zeroes_of(rate);
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
    if (!c->status().ok()) return;
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
    if (!c->status().ok()) return;
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
    if (!c->status().ok()) return;
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
    if (!c->status().ok()) return;
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
    if (!c->status().ok()) return;
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
    if (!c->status().ok()) return;
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
    if (!c->status().ok()) return;
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
    if (!c->status().ok()) return;
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

// Declarations ---------------------------------------------------------------

// Output i has the shape of input inputs[i].
template <int... inputs>
Status shapes_of(InferenceContext* c) {
  int output = 0;
  for (int input : {inputs...}) c->set_output(output++, c->input(input));
  return Status();
}

// Float32 on CPUs; biases, statistics and losses are float32 with any type.
#define BERT_TYPE .Attr("T: {float, half, bfloat16} = DT_FLOAT")

REGISTER_OP("BertBiasGelu")
    BERT_TYPE
    .Input("x: T").Input("bias: float").Attr("exact: bool")
    .Output("y: T")
    .SetShapeFn(shapes_of<0>);
REGISTER_OP("BertBiasGeluGrad")
    BERT_TYPE
    .Input("dy: T").Input("x: T").Input("bias: float")
    .Attr("exact: bool").Output("dx: T").Output("dbias: float")
    .SetShapeFn(shapes_of<1, 2>);
REGISTER_OP("BertDropoutAddNorm")
    BERT_TYPE
    .Input("x: T").Input("bias: float").Input("residual: T")
    .Input("gamma: float").Input("beta: float").Input("seed: int64")
    .Attr("rate: float")
    .Output("y: T").Output("z: T").Output("mean: float")
    .Output("scale: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(0));
      c->set_output(2, c->Vector(c->Dim(c->input(0), 0)));
      c->set_output(3, c->Vector(c->Dim(c->input(0), 0)));
      return Status();
    });
REGISTER_OP("BertDropoutAddNormGrad")
    BERT_TYPE
    .Input("dy: T").Input("z: T").Input("mean: float")
    .Input("scale: float").Input("gamma: float").Input("seed: int64")
    .Attr("rate: float")
    .Output("dx: T").Output("dz: T").Output("dbias: float")
    .Output("dgamma: float").Output("dbeta: float")
    .SetShapeFn(shapes_of<0, 0, 4, 4, 4>);
REGISTER_OP("BertAttention")
    BERT_TYPE
    .Input("query: T").Input("key: T").Input("value: T")
    .Input("starts: int32").Input("seed: int64")
    .Attr("heads: int").Attr("rate: float")
    .Output("out: T").Output("log_sum: float")
    .SetShapeFn([](InferenceContext* c) {
      int heads;
      TF_RETURN_IF_ERROR(c->GetAttr("heads", &heads));
      c->set_output(0, c->input(0));
      c->set_output(1, c->Matrix(heads, c->Dim(c->input(0), 0)));
      return Status();
    });
REGISTER_OP("BertAttentionGrad")
    BERT_TYPE
    .Input("dout: T").Input("query: T").Input("key: T")
    .Input("value: T").Input("out: T").Input("log_sum: float")
    .Input("starts: int32").Input("seed: int64")
    .Attr("heads: int").Attr("rate: float")
    .Output("dquery: T").Output("dkey: T").Output("dvalue: T")
    .SetShapeFn(shapes_of<1, 2, 3>);
REGISTER_OP("BertCrossEntropy")
    BERT_TYPE
    .Input("logits: T").Input("bias: float").Input("labels: int32")
    .Output("loss: float").Output("log_sum: float")
    .SetShapeFn(shapes_of<2, 2>);
REGISTER_OP("BertCrossEntropyGrad")
    BERT_TYPE
    .Input("dloss: float").Input("logits: T").Input("bias: float")
    .Input("labels: int32").Input("log_sum: float")
    .Output("dlogits: T").Output("dbias: float")
    .SetShapeFn(shapes_of<1, 2>);

BERT_FLOAT_KERNEL("BiasGelu", BiasGelu);
BERT_FLOAT_KERNEL("BiasGeluGrad", BiasGeluGrad);
BERT_FLOAT_KERNEL("DropoutAddNorm", DropoutAddNorm);
BERT_FLOAT_KERNEL("DropoutAddNormGrad", DropoutAddNormGrad);
BERT_FLOAT_KERNEL("Attention", Attention);
BERT_FLOAT_KERNEL("AttentionGrad", AttentionGrad);
BERT_FLOAT_KERNEL("CrossEntropy", CrossEntropy);
BERT_FLOAT_KERNEL("CrossEntropyGrad", CrossEntropyGrad);

}  // namespace
}  // namespace bert
