"""The learning rate, AdamW, and the one place that says what an update is.

Order of an update (`build_update`):

  1. gradients of the loss, dense and in float32
     (a loss scale would multiply the loss before; micro-batches would be added
     up after; ranks would add up their sums last, then unscale)
  2. their global norm, and the test that it and the loss are finite
  3. only if they are: clip, then weights and slots, then step + 1
  4. always: the count of consumed records

The step is read once, before everything, and handed down; its increment waits
for all weights. So nothing depends on the order in which threads run.
"""

import re
import typing

import tensorflow.compat.v1 as tf

from utils.errors import UserError

# As published: layer norms and biases are not decayed.
NO_DECAY = ("LayerNorm", "layer_norm", "bias")


class Update(typing.NamedTuple):
  """What `build_update` makes.

  Attributes:
    train_op: operation that runs one update.
    learning_rate: float32 scalar tensor, the rate of this update.
    grad_norm: float32 scalar tensor, the global norm before clipping.
    is_finite: bool scalar tensor; False means that nothing was updated.
  """
  train_op: typing.Any
  learning_rate: typing.Any
  grad_norm: typing.Any
  is_finite: typing.Any


def learning_rate(step, init_lr, num_train_steps, num_warmup_steps, power=1.0):
  """The schedule: a linear rise, then a polynomial fall to zero.

  With N training and w warm-up steps: init_lr * s / w for s < w, then
  init_lr * ((N - s) / (N - w)) ** power, and 0 beyond N. The two meet at s = w;
  Google's code jumps there, since its fall starts at s = 0.

  Args:
    step: integer scalar tensor or int, the number of updates done.
    init_lr: float, the rate at the top.
    num_train_steps: int N.
    num_warmup_steps: int w, 0 <= w < N; None, as Google's code has it, is 0.
    power: float; 1 for Adam, 0.5 for LAMB.

  Returns:
    float32 scalar tensor.

  Raises:
    UserError: if w is not in [0, N).
  """
  num_warmup_steps = num_warmup_steps or 0
  if num_train_steps < 1:
    raise UserError("num_train_steps is %d: it must be at least 1"
                    % num_train_steps)
  if not 0 <= num_warmup_steps < num_train_steps:
    raise UserError(
        "num_warmup_steps is %d: it must be at least 0 and less than "
        "num_train_steps, %d" % (num_warmup_steps, num_train_steps))
  step = tf.cast(step, tf.int64)
  # Subtracted as integers: float32 does not know all steps beyond 2**24.
  left = tf.cast(tf.maximum(num_train_steps - step, 0), tf.float32)
  fraction = left / float(num_train_steps - num_warmup_steps)
  rate = init_lr * (fraction if power == 1.0 else tf.pow(fraction, power))
  if not num_warmup_steps:
    return rate
  rise = init_lr * (tf.cast(step, tf.float32) / float(num_warmup_steps))
  return tf.where(step < num_warmup_steps, rise, rate)


class _DecayOptimizer(tf.train.Optimizer):
  """What optimizers with decoupled weight decay share.

  A subclass names its slots (`SLOTS`) and turns a gradient, a variable and its
  slots into operations (`_update`); LAMB is to be the second one.
  """

  SLOTS = ()

  def __init__(self, rate, weight_decay_rate, exclude_from_weight_decay, name):
    super(_DecayOptimizer, self).__init__(False, name)
    self.learning_rate = rate
    self.weight_decay_rate = weight_decay_rate
    self.exclude_from_weight_decay = exclude_from_weight_decay
    self._made_slots = {}

  def make_slots(self, variables):
    """Makes the float32 slots `<variable>/<slot>`, all zero, where missing."""
    for var in variables:
      name = _name_of(var)
      if name not in self._made_slots:
        self._made_slots[name] = [
            tf.get_variable("%s/%s" % (name, slot), var.shape.as_list(),
                            tf.float32, tf.zeros_initializer(),
                            trainable=False,
                            use_resource=not _is_reference(var))
            for slot in self.SLOTS]

  def apply_gradients(self, grads_and_vars, global_step=None, name=None):
    """Returns the operation that updates the variables.

    Args:
      grads_and_vars: pairs; those without a gradient are passed over.
      global_step: ignored, as in the reference: the caller advances it.
      name: of the operation.
    """
    pairs = [(grad, var) for grad, var in grads_and_vars
             if grad is not None and var is not None]
    self.make_slots([var for _, var in pairs])
    updates = []
    for grad, var in pairs:
      slots = self._made_slots[_name_of(var)]
      updates.append(self._update(dense_gradient(grad), var, slots))
    return tf.group(*updates, name=name)

  def _update(self, grad, var, slots):
    """Returns an operation; `grad` is dense float32 of the shape of `var`."""
    raise NotImplementedError

  def _decays(self, name):
    """Says whether the variable of that name is decayed."""
    if not self.weight_decay_rate:
      return False
    return not any(re.search(pattern, name)
                   for pattern in self.exclude_from_weight_decay or ())


class AdamWeightDecayOptimizer(_DecayOptimizer):
  """Adam with decoupled weight decay and without bias correction.

  m = beta_1 m + (1 - beta_1) g;  v = beta_2 v + (1 - beta_2) g^2;
  w = w - rate (m / (sqrt(v) + epsilon) + weight_decay_rate w)

  (Kingma and Ba, 1412.6980, algorithm 1 without its bias correction;
  Loshchilov and Hutter, 1711.05101, algorithm 2.)
  """

  SLOTS = ("adam_m", "adam_v")

  def __init__(self,
               learning_rate,  # pylint: disable=redefined-outer-name
               weight_decay_rate=0.0,
               beta_1=0.9,
               beta_2=0.999,
               epsilon=1e-6,
               exclude_from_weight_decay=None,
               name="AdamWeightDecayOptimizer"):
    """Keeps the arguments.

    Args:
      learning_rate: float or float32 scalar tensor.
      weight_decay_rate: float.
      beta_1: float.
      beta_2: float.
      epsilon: float.
      exclude_from_weight_decay: regular expressions searched in the variable's
        name, or None.
      name: of the optimizer.
    """
    super(AdamWeightDecayOptimizer, self).__init__(
        learning_rate, weight_decay_rate, exclude_from_weight_decay, name)
    self.beta_1 = beta_1
    self.beta_2 = beta_2
    self.epsilon = epsilon

  def _update(self, grad, var, slots):
    m, v = slots
    # At a rate of zero the framework's kernel moves m and v, in place and in
    # one pass, and leaves the weights. Its 1 - beta_2 is float32's, 1.3e-5
    # below 0.001. It could move the weights as well, but not decay them, and a
    # decay on its own is lost in rounding once the rate is below 6e-6.
    moments = _kernel("ApplyAdam", dict(var=var, m=m, v=v),
                      beta1_power=0.0, beta2_power=0.0, lr=0.0,
                      beta1=self.beta_1, beta2=self.beta_2,
                      epsilon=self.epsilon, grad=grad)
    with tf.control_dependencies([moments]):
      delta = m.read_value() / (tf.sqrt(v.read_value()) + self.epsilon)
      if self._decays(_name_of(var)):
        delta += self.weight_decay_rate * var.read_value()
    return _kernel("ApplyGradientDescent", dict(var=var),
                   alpha=self.learning_rate, delta=delta)


def _kernel(name, variables, **inputs):
  """Returns the operation of a kernel that updates variables in place."""
  if _is_reference(variables["var"]):
    return getattr(tf.raw_ops, name)(**variables, **inputs).op
  handles = {key: variable.handle for key, variable in variables.items()}
  return getattr(tf.raw_ops, "Resource" + name)(**handles, **inputs)


def _name_of(var):
  return re.sub(r":\d+$", "", var.name)


def _is_reference(var):
  """Says whether a variable is of the older kind, without a handle."""
  return var.dtype != var.dtype.base_dtype


def dense_gradient(grad):
  """Returns a gradient as a dense float32 tensor; None stays None.

  The word table's gradient arrives as rows and indices (of which some repeat);
  all later steps, and the exchange between ranks, want it whole.
  """
  if grad is None:
    return None
  return tf.cast(tf.convert_to_tensor(grad), tf.float32)


def _global_norm(grads):
  """Returns sqrt(sum of squares) over all tensors, float32.

  The reference leaves rows of the word table that occur twice apart here, so
  that it clips by a slightly different norm. Not finite where a value is not,
  or where the sum of squares leaves float32.
  """
  return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(grad) for grad in grads]))


def _all_finite(*scalars):
  return tf.reduce_all(tf.stack([tf.is_finite(tf.cast(scalar, tf.float32))
                                 for scalar in scalars]))


def build_update(loss,
                 init_lr,
                 num_train_steps,
                 num_warmup_steps,
                 *,
                 global_step=None,
                 records=None,
                 clip_norm=1.0):
  """Builds one update of all trainable variables, as published.

  Args:
    loss: float scalar tensor.
    init_lr: float.
    num_train_steps: int.
    num_warmup_steps: int, less than `num_train_steps`; None is 0.
    global_step: integer variable; the graph's global step when None.
    records: (variable, increment) or None: a counter that advances even where
      the update is skipped, since its records are consumed.
    clip_norm: float, the largest global norm of the gradients.

  Returns:
    `Update`. A loss or a gradient that is not finite changes no weight, no
    slot and not the step.

  Raises:
    UserError: if the schedule does not fit.
    ValueError: if no variable has a gradient.
  """
  if global_step is None:
    global_step = tf.train.get_or_create_global_step()
  step = tf.identity(global_step)
  rate = learning_rate(step, init_lr, num_train_steps, num_warmup_steps)
  optimizer = AdamWeightDecayOptimizer(
      learning_rate=rate, weight_decay_rate=0.01, beta_1=0.9, beta_2=0.999,
      epsilon=1e-6, exclude_from_weight_decay=NO_DECAY)

  variables = tf.trainable_variables()
  pairs = [(dense_gradient(grad), var)
           for grad, var in zip(tf.gradients(loss, variables), variables)
           if grad is not None]
  if not pairs:
    raise ValueError("The loss depends on no trainable variable.")
  grads = [grad for grad, _ in pairs]
  norm = _global_norm(grads)
  finite = _all_finite(loss, norm)
  # Variables must not be made inside a branch.
  optimizer.make_slots([var for _, var in pairs])

  def update():
    scale = clip_norm / tf.maximum(norm, clip_norm)
    clipped = [(grad * scale, var) for grad, var in pairs]
    with tf.control_dependencies([optimizer.apply_gradients(clipped)]):
      advance = global_step.assign(step + 1).op
    with tf.control_dependencies([advance]):
      return tf.constant(True)

  done = tf.cond(finite, update, lambda: tf.constant(False))
  train_op = done.op
  if records is not None:
    counter, increment = records
    with tf.control_dependencies([done]):
      train_op = tf.assign_add(counter, tf.cast(
          increment, counter.dtype.base_dtype)).op
  return Update(train_op, rate, norm, finite)


def create_optimizer(loss, init_lr, num_train_steps, num_warmup_steps,
                     use_tpu=False, **new):
  """Returns the operation that trains; see `build_update` for what is new."""
  if use_tpu:
    raise ValueError("TPUs are not supported.")
  return build_update(loss, init_lr, num_train_steps, num_warmup_steps,
                      **new).train_op
