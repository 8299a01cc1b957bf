// The variables that an update of all of them writes, on any device.

#ifndef FUSED_OPS_KERNELS_OP_VARIABLES_H_
#define FUSED_OPS_KERNELS_OP_VARIABLES_H_

#include <algorithm>
#include <vector>

#include "fused_ops/kernels/op_tensors.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace bert {

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

// Variables, their two slots and gradients, locked while this lives.
class Variables {
 public:
  // Copies the values of one tensor to another of its shape, in the order of
  // what the device does.
  typedef void (*Copy)(OpKernelContext*, const Tensor& from, Tensor* to);

  ~Variables() {
    for (auto it = locked_.rbegin(); it != locked_.rend(); ++it) (*it)->unlock();
  }

  // Takes inputs 0 to n - 1 as variables, then n of each slot, then gradients.
  Status open(OpKernelContext* c, int n, Copy copy) {
    n_ = n;
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
      TF_RETURN_IF_ERROR(own(c, variables_[i].get(), copy));
      values_.push_back(static_cast<float*>(values_of(*tensor)));
    }
    for (int i = 0; i < n; ++i) {
      const Tensor& gradient = c->input(3 * n + i);
      gradients_.push_back(static_cast<const float*>(values_of(gradient)));
      sizes_.push_back(gradient.NumElements());
    }
    return Status();
  }

  int count() const { return n_; }
  int64_t size(int i) const { return sizes_[i]; }
  float* variable(int i) const { return values_[i]; }
  float* m(int i) const { return values_[n_ + i]; }
  float* v(int i) const { return values_[2 * n_ + i]; }
  const float* gradient(int i) const { return gradients_[i]; }

 private:
  // Who has read a variable may still hold its buffer: then it gets a new one.
  static Status own(OpKernelContext* c, Var* variable, Copy copy) {
    Tensor* tensor = variable->tensor();
    if (variable->copy_on_read_mode.load() ||
        (tensor->*member_of(RefCountIsOne()))()) {
      return Status();
    }
    Tensor fresh;
    TF_RETURN_IF_ERROR(c->allocate_temp(DT_FLOAT, tensor->shape(), &fresh));
    copy(c, *tensor, &fresh);
    *tensor = fresh;
    return Status();
  }

  int n_ = 0;
  std::vector<core::RefCountPtr<Var>> variables_;
  std::vector<mutex*> locked_;
  std::vector<float*> values_;
  std::vector<const float*> gradients_;
  std::vector<int64_t> sizes_;
};

// An update of all variables. Step is a struct with beta_1, beta_2 and epsilon.
template <typename Step>
class Update : public OpKernel {
 public:
  Update(OpKernelConstruction* c, bool is_lamb) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("N", &n_));
    OP_REQUIRES_OK(c, c->GetAttr("beta_1", &step_.beta_1));
    OP_REQUIRES_OK(c, c->GetAttr("beta_2", &step_.beta_2));
    OP_REQUIRES_OK(c, c->GetAttr("epsilon", &step_.epsilon));
    OP_REQUIRES_OK(c, c->GetAttr("decay", &decay_));
    if (is_lamb) {
      OP_REQUIRES_OK(c, c->GetAttr("adapt", &adapt_));
    } else {
      adapt_.resize(n_);
    }
    OP_REQUIRES(c, static_cast<int>(decay_.size()) == n_ &&
                       static_cast<int>(adapt_.size()) == n_,
                errors::InvalidArgument("`decay` and `adapt` have to have N "
                                        "values"));
  }

 protected:
  // The i-th of the scalars that follow the gradients.
  const float* scalar(OpKernelContext* c, int i) const {
    return in(c, 4 * n_ + i);
  }

  int n_;
  Step step_;
  std::vector<float> decay_;
  std::vector<bool> adapt_;  // LAMB: whose rate is adapted
};

}  // namespace bert

#endif  // FUSED_OPS_KERNELS_OP_VARIABLES_H_
