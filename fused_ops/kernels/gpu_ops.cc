// TensorFlow's face of gpu_kernels.h: what layers and losses need. The
// operations are declared in cpu_ops.cc.

#include "fused_ops/kernels/gpu_ops.h"

namespace bert {
namespace {

class GpuKernel : public OpKernel {
 public:
  explicit GpuKernel(OpKernelConstruction* c) : OpKernel(c) {
    DataType type;
    OP_REQUIRES_OK(c, c->GetAttr("T", &type));
    type_ = type == DT_HALF ? kBertHalf
                            : type == DT_BFLOAT16 ? kBertBfloat : kBertFloat;
  }

 protected:
  // Makes outputs 0, which are sums over no rows.
  void clear(OpKernelContext* c, std::initializer_list<float*> sums,
             int64_t width) const {
    for (float* sum : sums) {
      require(c, cudaMemsetAsync(sum, 0, width * sizeof(float), stream_of(c)));
    }
  }

  int type_;
};

class WithDropout : public GpuKernel {
 public:
  explicit WithDropout(OpKernelConstruction* c) : GpuKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("rate", &rate_));
  }

 protected:
  // What the attribute `rate` and the input `seed` [2], the host's, say.
  BertDropout dropout_of(OpKernelContext* c, int seed) const {
    const int64* values = in<int64>(c, seed);
    BertDropout dropout;
    dropout.key = static_cast<uint64_t>(values[0]);
    dropout.counter = static_cast<uint64_t>(values[1]);
    dropout.zeroes = zeroes_of(rate_);
    return dropout;
  }

  float rate_;
};

// Bias and GELU --------------------------------------------------------------

class Gelu : public GpuKernel {
 public:
  explicit Gelu(OpKernelConstruction* c) : GpuKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("exact", &exact_));
  }

 protected:
  bool exact_;
};

class BiasGelu : public Gelu {
 public:
  explicit BiasGelu(OpKernelConstruction* c) : Gelu(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{0, rows, width}, {1, kVector, width}})) return;
    void* y = out_like<void>(c, 0, 0);
    if (!c->status().ok() || !rows) return;
    require(c, bert_gpu_bias_gelu(type_, in<void>(c, 0), in(c, 1), rows, width,
                                  exact_, y, stream_of(c)));
  }
};

class BiasGeluGrad : public Gelu {
 public:
  explicit BiasGeluGrad(OpKernelConstruction* c) : Gelu(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{1, rows, width}, {2, kVector, width}})) return;
    void* dx = out_like<void>(c, 0, 1);
    float* dbias = out_like(c, 1, 2);
    Tensor memory;
    void* scratch = scratch_of(c, bert_gpu_scratch(rows, width, 1), &memory);
    if (!c->status().ok()) return;
    if (!rows) return clear(c, {dbias}, width);
    require(c, bert_gpu_bias_gelu_grad(
        type_, in<void>(c, 0), in<void>(c, 1), in(c, 2), rows, width, exact_,
        scratch, dx, dbias, stream_of(c)));
  }
};

// Dropout, residual and layer norm -------------------------------------------

class DropoutAddNorm : public WithDropout {
 public:
  explicit DropoutAddNorm(OpKernelConstruction* c) : WithDropout(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{1, kVector, width}, {2, rows, width}, {3, kVector, width},
                  {4, kVector, width}, {5, kVector, 2}})) return;
    void *y = out_like<void>(c, 0, 0), *z = out_like<void>(c, 1, 0);
    float *mean = out_of(c, 2, TensorShape({rows})),
          *scale = out_of(c, 3, TensorShape({rows}));
    if (!c->status().ok() || !rows) return;
    require(c, bert_gpu_dropout_add_norm(
        type_, in<void>(c, 0), in(c, 1), in<void>(c, 2), in(c, 3), in(c, 4),
        dropout_of(c, 5), rows, width, z, mean, scale, y, stream_of(c)));
  }
};

class DropoutAddNormGrad : public WithDropout {
 public:
  explicit DropoutAddNormGrad(OpKernelConstruction* c) : WithDropout(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0), width = c->input(0).dim_size(1);
    if (!fits(c, {{1, rows, width}, {2, kVector, rows}, {3, kVector, rows},
                  {4, kVector, width}, {5, kVector, 2}})) return;
    void *dx = out_like<void>(c, 0, 0), *dz = out_like<void>(c, 1, 0);
    float *dbias = out_like(c, 2, 4), *dgamma = out_like(c, 3, 4),
          *dbeta = out_like(c, 4, 4);
    Tensor memory;
    void* scratch = scratch_of(c, bert_gpu_scratch(rows, width, 3), &memory);
    if (!c->status().ok()) return;
    if (!rows) return clear(c, {dbias, dgamma, dbeta}, width);
    require(c, bert_gpu_dropout_add_norm_grad(
        type_, in<void>(c, 0), in<void>(c, 1), in(c, 2), in(c, 3), in(c, 4),
        dropout_of(c, 5), rows, width, scratch, dx, dz, dbias, dgamma, dbeta,
        stream_of(c)));
  }
};

// Attention ------------------------------------------------------------------

// `starts` is on the device, and so is not looked at here.
class AttentionBase : public WithDropout {
 public:
  explicit AttentionBase(OpKernelConstruction* c) : WithDropout(c) {
    OP_REQUIRES_OK(c, c->GetAttr("heads", &heads_));
  }

 protected:
  int heads_;
};

class Attention : public AttentionBase {
 public:
  explicit Attention(OpKernelConstruction* c) : AttentionBase(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t tokens = c->input(0).dim_size(0),
                  width = c->input(0).dim_size(1),
                  batch = c->input(3).NumElements() - 1;
    if (!fits(c, {{1, tokens, width}, {2, tokens, width},
                  {3, kVector, batch + 1}, {4, kVector, 2}})) return;
    void* out = out_like<void>(c, 0, 0);
    float* log_sum = out_of(c, 1, TensorShape({heads_, tokens}));
    if (!c->status().ok() || !tokens) return;
    require(c, bert_gpu_attention(
        type_, in<void>(c, 0), in<void>(c, 1), in<void>(c, 2),
        in<int32>(c, 3), dropout_of(c, 4), batch, tokens, heads_,
        width / heads_, out, log_sum, stream_of(c)));
  }
};

class AttentionGrad : public AttentionBase {
 public:
  explicit AttentionGrad(OpKernelConstruction* c) : AttentionBase(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t tokens = c->input(0).dim_size(0),
                  width = c->input(0).dim_size(1),
                  batch = c->input(6).NumElements() - 1;
    if (!fits(c, {{1, tokens, width}, {2, tokens, width}, {3, tokens, width},
                  {4, tokens, width}, {5, heads_, tokens},
                  {6, kVector, batch + 1}, {7, kVector, 2}})) return;
    void *dquery = out_like<void>(c, 0, 1), *dkey = out_like<void>(c, 1, 2),
         *dvalue = out_like<void>(c, 2, 3);
    Tensor memory;
    void* scratch = scratch_of(c, heads_ * tokens * sizeof(float), &memory);
    if (!c->status().ok() || !tokens) return;
    require(c, bert_gpu_attention_grad(
        type_, in<void>(c, 0), in<void>(c, 1), in<void>(c, 2), in<void>(c, 3),
        in<void>(c, 4), in(c, 5), in<int32>(c, 6), dropout_of(c, 7), batch,
        tokens, heads_, width / heads_, static_cast<float*>(scratch), dquery,
        dkey, dvalue, stream_of(c)));
  }
};

// Softmax cross-entropy ------------------------------------------------------

class CrossEntropy : public GpuKernel {
 public:
  explicit CrossEntropy(OpKernelConstruction* c) : GpuKernel(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(0).dim_size(0),
                  classes = c->input(0).dim_size(1);
    if (!fits(c, {{1, kVector, classes}, {2, kVector, rows}})) return;
    float *loss = out_of(c, 0, TensorShape({rows})),
          *log_sum = out_of(c, 1, TensorShape({rows}));
    if (!c->status().ok() || !rows) return;
    require(c, bert_gpu_cross_entropy(
        type_, in<void>(c, 0), in(c, 1), in<int32>(c, 2), rows, classes, loss,
        log_sum, stream_of(c)));
  }
};

class CrossEntropyGrad : public GpuKernel {
 public:
  explicit CrossEntropyGrad(OpKernelConstruction* c) : GpuKernel(c) {}
  void Compute(OpKernelContext* c) override {
    const int64_t rows = c->input(1).dim_size(0),
                  classes = c->input(1).dim_size(1);
    if (!fits(c, {{0, kVector, rows}, {2, kVector, classes}, {3, kVector, rows},
                  {4, kVector, rows}})) return;
    void* dlogits = out_like<void>(c, 0, 1);
    float* dbias = out_like(c, 1, 2);
    Tensor memory;
    void* scratch = scratch_of(c, bert_gpu_scratch(rows, classes, 1), &memory);
    if (!c->status().ok()) return;
    if (!rows) return clear(c, {dbias}, classes);
    require(c, bert_gpu_cross_entropy_grad(
        type_, in(c, 0), in<void>(c, 1), in(c, 2), in<int32>(c, 3), in(c, 4),
        rows, classes, scratch, dlogits, dbias, stream_of(c)));
  }
};

#define BERT_GPU_KERNEL(name, type, ...)                                  \
  REGISTER_KERNEL_BUILDER(Name("Bert" #name)                              \
                              .Device(BERT_GPU_DEVICE)                    \
                              .TypeConstraint("T", type) __VA_ARGS__,     \
                          name)
#if CUDART_VERSION >= 11000
#define BERT_GPU_KERNELS(name, ...)                  \
  BERT_GPU_KERNEL(name, DT_FLOAT, __VA_ARGS__);      \
  BERT_GPU_KERNEL(name, DT_HALF, __VA_ARGS__);       \
  BERT_GPU_KERNEL(name, DT_BFLOAT16, __VA_ARGS__)
#else
#define BERT_GPU_KERNELS(name, ...)                  \
  BERT_GPU_KERNEL(name, DT_FLOAT, __VA_ARGS__);      \
  BERT_GPU_KERNEL(name, DT_HALF, __VA_ARGS__)
#endif

BERT_GPU_KERNELS(BiasGelu);
BERT_GPU_KERNELS(BiasGeluGrad);
BERT_GPU_KERNELS(DropoutAddNorm, .HostMemory("seed"));
BERT_GPU_KERNELS(DropoutAddNormGrad, .HostMemory("seed"));
BERT_GPU_KERNELS(Attention, .HostMemory("seed"));
BERT_GPU_KERNELS(AttentionGrad, .HostMemory("seed"));
BERT_GPU_KERNELS(CrossEntropy);
BERT_GPU_KERNELS(CrossEntropyGrad);

}  // namespace
}  // namespace bert
