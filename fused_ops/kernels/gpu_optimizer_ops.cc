// TensorFlow's face of gpu_kernels.h: updates of all variables at once. The
// operations are declared in cpu_optimizer_ops.cc.

#include "fused_ops/kernels/gpu_ops.h"
#include "fused_ops/kernels/op_variables.h"

namespace bert {
namespace {

void copy(OpKernelContext* c, const Tensor& from, Tensor* to) {
  require(c, cudaMemcpyAsync(values_of(*to), values_of(from),
                             from.NumElements() * sizeof(float),
                             cudaMemcpyDeviceToDevice, stream_of(c)));
}

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
  std::vector<BertParameter> parameters_of(const Variables& all) const {
    std::vector<BertParameter> parameters(n_);
    for (int i = 0; i < n_; ++i) {
      parameters[i].weight = all.variable(i);
      parameters[i].m = all.m(i);
      parameters[i].v = all.v(i);
      parameters[i].gradient = all.gradient(i);
      parameters[i].count = all.size(i);
      parameters[i].decay = decay_[i];
      parameters[i].adapt = adapt_.empty() ? 0 : adapt_[i];
    }
    return parameters;
  }

  // What the scalars that follow the gradients say is read on the device.
  BertStep step_of(OpKernelContext* c, bool is_lamb) const {
    BertStep step = step_;
    step.rate = in(c, 4 * n_);
    step.gradient_scale = in(c, 4 * n_ + 1);
    step.correction_1 = is_lamb ? in(c, 4 * n_ + 2) : nullptr;
    step.correction_2 = is_lamb ? in(c, 4 * n_ + 3) : nullptr;
    return step;
  }

  int n_;
  BertStep step_;
  std::vector<float> decay_;
  std::vector<bool> adapt_;
};

class Adam : public UpdateBase {
 public:
  explicit Adam(OpKernelConstruction* c) : UpdateBase(c) {}
  void Compute(OpKernelContext* c) override {
    Variables all;
    OP_REQUIRES_OK(c, all.open(c, n_, copy));
    if (!c->status().ok()) return;
    require(c, bert_gpu_adam(parameters_of(all).data(), n_, step_of(c, false),
                             stream_of(c)));
  }
};

class Lamb : public UpdateBase {
 public:
  explicit Lamb(OpKernelConstruction* c) : UpdateBase(c) {
    OP_REQUIRES_OK(c, c->GetAttr("adapt", &adapt_));
    OP_REQUIRES(c, static_cast<int>(adapt_.size()) == n_,
                errors::InvalidArgument("`adapt` has to have N values"));
  }
  void Compute(OpKernelContext* c) override {
    Variables all;
    OP_REQUIRES_OK(c, all.open(c, n_, copy));
    const std::vector<BertParameter> parameters = parameters_of(all);
    Tensor memory;
    void* scratch = scratch_of(
        c, bert_gpu_lamb_scratch(parameters.data(), n_), &memory);
    if (!c->status().ok()) return;
    require(c, bert_gpu_lamb(parameters.data(), n_, step_of(c, true), scratch,
                             stream_of(c)));
  }
};

class GlobalNorm : public OpKernel {
 public:
  explicit GlobalNorm(OpKernelConstruction* c) : OpKernel(c) {}
  void Compute(OpKernelContext* c) override {
    std::vector<BertTensor> tensors;
    for (int i = 0; i < c->num_inputs(); ++i) {
      tensors.push_back({in(c, i), c->input(i).NumElements()});
    }
    const int count = c->num_inputs();
    float* norm = out_of(c, 0, TensorShape({}));
    Tensor memory;
    void* scratch = scratch_of(
        c, bert_gpu_global_norm_scratch(tensors.data(), count), &memory);
    if (!c->status().ok()) return;
    require(c, bert_gpu_global_norm(tensors.data(), count, scratch, norm,
                                    stream_of(c)));
  }
};

REGISTER_KERNEL_BUILDER(
    Name("BertAdam").Device(BERT_GPU_DEVICE)
        .HostMemory("variable").HostMemory("m").HostMemory("v"), Adam);
REGISTER_KERNEL_BUILDER(
    Name("BertLamb").Device(BERT_GPU_DEVICE)
        .HostMemory("variable").HostMemory("m").HostMemory("v"), Lamb);
REGISTER_KERNEL_BUILDER(Name("BertGlobalNorm").Device(BERT_GPU_DEVICE),
                        GlobalNorm);

}  // namespace
}  // namespace bert
