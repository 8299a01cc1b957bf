"""The kernels as functions of tensors, with their gradients.

Float32; on GPUs the mixed precision pass makes what is [n, ...] float16. Shapes:
n rows (tokens), w and h widths. Sources of the formulas are named in
kernels/cpu_kernels.cc.
"""

import tensorflow.compat.v1 as tf

from fused_ops import library


def bias_gelu(x, bias, exact):
  """Returns gelu(x + bias), float32 [n, w].

  Args:
    x: float32 [n, w].
    bias: float32 [w].
    exact: bool, by the normal distribution, not by the published tanh.
  """
  return library.load().bert_bias_gelu(x=x, bias=bias, exact=exact)


@tf.RegisterGradient("BertBiasGelu")
def _bias_gelu_grad(op, dy):
  return library.load().bert_bias_gelu_grad(
      dy=dy, x=op.inputs[0], bias=op.inputs[1], exact=op.get_attr("exact"))


def dropout_add_norm(x, bias, residual, gamma, beta, rate, seed):
  """Returns layer_norm(dropout(x + bias) + residual), float32 [n, h].

  The mask is made anew in the backward pass from `seed`.

  Args:
    x: float32 [n, h].
    bias: float32 [h].
    residual: float32 [n, h].
    gamma: float32 [h].
    beta: float32 [h].
    rate: float in [0, 1), the probability of zero; to the next of 65536 parts.
    seed: int64 [2], by which the mask is decided.
  """
  return library.load().bert_dropout_add_norm(
      x=x, bias=bias, residual=residual, gamma=gamma, beta=beta, seed=seed,
      rate=rate)[0]


@tf.RegisterGradient("BertDropoutAddNorm")
def _dropout_add_norm_grad(op, dy, *unused):
  _, _, _, gamma, _, seed = op.inputs
  _, z, mean, scale = op.outputs
  dx, dz, dbias, dgamma, dbeta = library.load().bert_dropout_add_norm_grad(
      dy=dy, z=z, mean=mean, scale=scale, gamma=gamma, seed=seed,
      rate=op.get_attr("rate"))
  return dx, dbias, dz, dgamma, dbeta, None


def attention(query, key, value, starts, heads, rate, seed):
  """Returns multi-head self-attention of packed sequences, float32 [n, h].

  Args:
    query: float32 [n, h].
    key: float32 [n, h].
    value: float32 [n, h].
    starts: int32 [batch + 1], where each sequence's rows begin, and n.
    heads: int, divides h.
    rate: float in [0, 1), of the probabilities' dropout.
    seed: int64 [2].
  """
  return library.load().bert_attention(
      query=query, key=key, value=value, starts=starts, seed=seed, heads=heads,
      rate=rate)[0]


@tf.RegisterGradient("BertAttention")
def _attention_grad(op, dout, unused):
  query, key, value, starts, seed = op.inputs
  out, log_sum = op.outputs
  return library.load().bert_attention_grad(
      dout=dout, query=query, key=key, value=value, out=out, log_sum=log_sum,
      starts=starts, seed=seed, heads=op.get_attr("heads"),
      rate=op.get_attr("rate")) + (None, None)


def cross_entropy(logits, bias, labels):
  """Returns -log softmax(logits + bias)[labels], float32 [n].

  Args:
    logits: float32 [n, classes].
    bias: float32 [classes].
    labels: int32 [n].
  """
  return library.load().bert_cross_entropy(
      logits=logits, bias=bias, labels=labels)[0]


@tf.RegisterGradient("BertCrossEntropy")
def _cross_entropy_grad(op, dloss, unused):
  logits, bias, labels = op.inputs
  dlogits, dbias = library.load().bert_cross_entropy_grad(
      dloss=dloss, logits=logits, bias=bias, labels=labels,
      log_sum=op.outputs[1])
  return dlogits, dbias, None


def global_norm(tensors):
  """Returns sqrt(sum of squares) over all float32 tensors, a scalar."""
  return library.load().bert_global_norm(tensors=tensors)


def adam(variables, m, v, gradients, rate, gradient_scale, decay, beta_1,
         beta_2, epsilon):
  """Returns the operation that updates all variables and slots in one pass.

  See `optimization.AdamWeightDecayOptimizer`.

  Args:
    variables: list of float32 resource variables.
    m: list of variables, the first moments.
    v: list of variables, the second moments.
    gradients: list of float32 tensors.
    rate: float32 scalar tensor.
    gradient_scale: float32 scalar tensor that gradients are multiplied with.
    decay: list of float, the weight decay of each variable.
    beta_1: float.
    beta_2: float.
    epsilon: float.
  """
  return library.load().bert_adam(
      variable=_handles(variables), m=_handles(m), v=_handles(v),
      gradient=gradients, rate=rate, gradient_scale=gradient_scale,
      decay=decay, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)


def lamb(variables, m, v, gradients, rate, gradient_scale, decay, beta_1,
         beta_2, epsilon, corrections, adapt):
  """Returns the operation of `optimization.LAMBOptimizer` for all variables.

  Args: those of `adam`, and
    corrections: two float32 scalar tensors, 1 - beta ** t.
    adapt: list of bool, whether a variable's rate is adapted.
  """
  return library.load().bert_lamb(
      variable=_handles(variables), m=_handles(m), v=_handles(v),
      gradient=gradients, rate=rate, gradient_scale=gradient_scale,
      correction_1=corrections[0], correction_2=corrections[1],
      decay=decay, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, adapt=adapt)


def _handles(variables):
  return [variable.handle for variable in variables]
