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

class GpuUpdate : public Update<BertStep> {
 public:
  GpuUpdate(OpKernelConstruction* c, bool is_lamb) : Update(c, is_lamb) {}

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
      parameters[i].adapt = adapt_[i];
    }
    return parameters;
  }

  // What the scalars say is read on the device.
  BertStep step_of(OpKernelContext* c) const {
    BertStep step = step_;
    step.rate = scalar(c, 0);
    step.gradient_scale = scalar(c, 1);
    step.correction_1 = step.correction_2 = nullptr;
    return step;
  }
};

class Adam : public GpuUpdate {
 public:
  explicit Adam(OpKernelConstruction* c) : GpuUpdate(c, false) {}
  void Compute(OpKernelContext* c) override {
    Variables all;
    OP_REQUIRES_OK(c, all.open(c, n_, copy));
    if (!c->status().ok()) return;
    require(c, bert_gpu_adam(parameters_of(all).data(), n_, step_of(c),
                             stream_of(c)));
  }
};

class Lamb : public GpuUpdate {
 public:
  explicit Lamb(OpKernelConstruction* c) : GpuUpdate(c, true) {}
  void Compute(OpKernelContext* c) override {
    Variables all;
    OP_REQUIRES_OK(c, all.open(c, n_, copy));
    const std::vector<BertParameter> parameters = parameters_of(all);
    BertStep step = step_of(c);
    step.correction_1 = scalar(c, 2);
    step.correction_2 = scalar(c, 3);
    Tensor memory;
    void* scratch = scratch_of(
        c, bert_gpu_lamb_scratch(parameters.data(), n_), &memory);
    if (!c->status().ok()) return;
    require(c, bert_gpu_lamb(parameters.data(), n_, step, scratch,
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
