"""The learning rate, AdamW and LAMB, and what an update is, said once.

Order of an update (`build_update`):

  1. loss times loss scale; its gradients, dense and in float32
  2. their sum over the window's micro-batches (`window_gradients`)
  3. their sum over all ranks, still scaled
  4. unscaled: their global norm, and the test that it and the loss are finite,
     with the same answer on all ranks, since they all have the same sums
  5. only if they are: clip, then weights and slots, step + 1, and the scale's
     growth; else the scale is halved and nothing else changes
  6. always: the count of consumed records

A micro-batch and a rank contribute a share of the window's loss, never a mean
of their own: so k micro-batches of b on R ranks are one batch of k * b * R.

The step is read once, before everything, and handed down; its increment waits
for all weights. So nothing depends on the order in which threads run.
"""

import re
import typing

import tensorflow.compat.v1 as tf

from fused_ops import ops as kernels
from utils import stack
from utils.errors import UserError

# As published: layer norms and biases are not decayed.
NO_DECAY = ("LayerNorm", "layer_norm", "bias")
# The framework's defaults for mixed precision (its DynamicLossScale).
INITIAL_LOSS_SCALE = 2.0 ** 15
LOSS_SCALE_PERIOD = 2000


class Update(typing.NamedTuple):
  """What `build_update` makes; the scalars are those of all ranks together.

  Attributes:
    train_op: operation that runs one update.
    learning_rate: float32 scalar tensor, the rate of this update.
    grad_norm: float32 scalar tensor, the global norm before clipping.
    is_finite: bool scalar tensor; False means that nothing was updated.
    loss: float32 scalar tensor.
    sums: {tag: float32 scalar tensor} of the loss function's other sums.
    loss_scale: float32 scalar tensor that this update used; None without one.
  """
  train_op: typing.Any
  learning_rate: typing.Any
  grad_norm: typing.Any
  is_finite: typing.Any
  loss: typing.Any
  sums: typing.Any
  loss_scale: typing.Any


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

  Both keep Adam's moments, under the names of published checkpoints; a
  subclass turns them into the direction of a step (`_direction`), and has the
  kernel that does so for all variables at once (`_update_all`).
  """

  SLOTS = ("adam_m", "adam_v")

  def __init__(self, rate, weight_decay_rate, beta_1, beta_2, epsilon,
               exclude_from_weight_decay, name):
    super(_DecayOptimizer, self).__init__(False, name)
    self.learning_rate = rate
    self.weight_decay_rate = weight_decay_rate
    self.beta_1 = beta_1
    self.beta_2 = beta_2
    self.epsilon = epsilon
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

  def apply_at_once(self, pairs, factor):
    """Returns the operation of one kernel that updates all variables.

    Args:
      pairs: [(dense float32 gradient, resource variable)].
      factor: float32 scalar tensor that the gradients are multiplied with.
    """
    variables = [var for _, var in pairs]
    self.make_slots(variables)
    m, v = zip(*(self._made_slots[_name_of(var)] for var in variables))
    names = [_name_of(var) for var in variables]
    return self._update_all(names, dict(
        variables=variables, m=m, v=v, gradients=[grad for grad, _ in pairs],
        rate=self.learning_rate, gradient_scale=factor, beta_1=self.beta_1,
        beta_2=self.beta_2, epsilon=self.epsilon,
        decay=[self.weight_decay_rate if self._decays(name) else 0.0
               for name in names]))

  def _update(self, grad, var, slots):
    """Returns an operation; `grad` is dense float32 of the shape of `var`."""
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
      delta = self._direction(
          m.read_value(), v.read_value(), var.read_value(), _name_of(var))
    return _kernel("ApplyGradientDescent", dict(var=var),
                   alpha=self.learning_rate, delta=delta)

  def _direction(self, m, v, weight, name):
    """Returns what the rate multiplies, of the shape of `weight`."""
    raise NotImplementedError

  def _decays(self, name):
    """Says whether the variable of that name is decayed."""
    return bool(self.weight_decay_rate) and not _matches(
        name, self.exclude_from_weight_decay)


class AdamWeightDecayOptimizer(_DecayOptimizer):
  """Adam with decoupled weight decay and without bias correction.

  m = beta_1 m + (1 - beta_1) g;  v = beta_2 v + (1 - beta_2) g^2;
  w = w - rate (m / (sqrt(v) + epsilon) + weight_decay_rate w)

  (Kingma and Ba, 1412.6980, algorithm 1 without its bias correction;
  Loshchilov and Hutter, 1711.05101, algorithm 2.)
  """

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
        learning_rate, weight_decay_rate, beta_1, beta_2, epsilon,
        exclude_from_weight_decay, name)

  def _direction(self, m, v, weight, name):
    direction = m / (tf.sqrt(v) + self.epsilon)
    if self._decays(name):
      direction += self.weight_decay_rate * weight
    return direction

  def _update_all(self, names, inputs):
    return kernels.adam(**inputs)


class LAMBOptimizer(_DecayOptimizer):
  """LAMB (You et al., 1904.00962, algorithm 2), for very large batches.

  m and v as in Adam;  m' = m / (1 - beta_1^t);  v' = v / (1 - beta_2^t);
  u = m' / (sqrt(v') + epsilon) + weight_decay_rate w;
  w = w - rate (|w| / |u|) u

  with t = 1 in the first update. The norms are of the whole tensor; their
  ratio is 1 where one of them is 0, and for variables that are excluded, as
  in the authors' code: what is not decayed is not adapted either.
  """

  def __init__(self,
               learning_rate,  # pylint: disable=redefined-outer-name
               step,
               weight_decay_rate=0.0,
               beta_1=0.9,
               beta_2=0.999,
               epsilon=1e-6,
               exclude_from_weight_decay=None,
               exclude_from_layer_adaptation=None,
               name="LAMBOptimizer"):
    """Keeps the arguments: those of `AdamWeightDecayOptimizer`, and two.

    Args:
      step: integer scalar tensor or int, the number of updates done before
        this one.
      exclude_from_layer_adaptation: the same, for the ratio of norms; those
        of `exclude_from_weight_decay` when None.
    """
    super(LAMBOptimizer, self).__init__(
        learning_rate, weight_decay_rate, beta_1, beta_2, epsilon,
        exclude_from_weight_decay, name)
    self.exclude_from_layer_adaptation = (
        exclude_from_weight_decay if exclude_from_layer_adaptation is None
        else exclude_from_layer_adaptation)
    count = tf.cast(step, tf.float32) + 1.0
    self._correction_1 = 1.0 - tf.pow(beta_1, count)
    self._correction_2 = 1.0 - tf.pow(beta_2, count)

  def _direction(self, m, v, weight, name):
    direction = (m / self._correction_1) / (
        tf.sqrt(v / self._correction_2) + self.epsilon)
    if self._decays(name):
      direction += self.weight_decay_rate * weight
    if _matches(name, self.exclude_from_layer_adaptation):
      return direction
    weight_norm = _global_norm([weight])
    norm = _global_norm([direction])
    usable = (weight_norm > 0.0) & (norm > 0.0)
    ratio = weight_norm / tf.where(usable, norm, tf.ones_like(norm))
    return direction * tf.where(usable, ratio, tf.ones_like(ratio))

  def _update_all(self, names, inputs):
    return kernels.lamb(
        corrections=(self._correction_1, self._correction_2),
        adapt=[not _matches(name, self.exclude_from_layer_adaptation)
               for name in names], **inputs)


def _kernel(name, variables, **inputs):
  """Returns the operation of a kernel that updates variables in place."""
  if _is_reference(variables["var"]):
    return getattr(tf.raw_ops, name)(**variables, **inputs).op
  handles = {key: variable.handle for key, variable in variables.items()}
  return getattr(tf.raw_ops, "Resource" + name)(**handles, **inputs)


def _matches(name, patterns):
  """Says whether a pattern of the list, or None, is found in `name`."""
  return any(re.search(pattern, name) for pattern in patterns or ())


def _name_of(var):
  return re.sub(r":\d+$", "", var.name)


def _is_reference(var):
  """Says whether a variable is of the older kind, without a handle."""
  return var.dtype != var.dtype.base_dtype


def dense_gradient(grad, rows=None):
  """Returns a gradient as a dense float32 tensor; None stays None.

  The word table's gradient arrives as rows and indices (of which some repeat);
  all later steps, and the exchange between ranks, want it whole.

  Args:
    grad: tensor, tf.IndexedSlices or None.
    rows: int, the number of rows of the variable, where it is known.
  """
  if grad is None:
    return None
  if isinstance(grad, tf.IndexedSlices) and rows is not None:
    grad = tf.math.unsorted_segment_sum(grad.values, grad.indices, rows)
  return tf.cast(tf.convert_to_tensor(grad), tf.float32)


def _global_norm(grads):
  """Returns sqrt(sum of squares) over all tensors, float32.

  The reference leaves rows of the word table that occur twice apart here, so
  that it clips by a slightly different norm. Not finite where a value is not,
  or where the sum of squares leaves float32.
  """
  # Not tf.add_n, which the framework's memory optimizer may turn into additions
  # in the order of arrival (utils/session.py switches it off).
  return tf.sqrt(2.0 * tf.reduce_sum(tf.stack(
      [tf.nn.l2_loss(grad) for grad in grads])))


def _all_finite(*scalars):
  return tf.reduce_all(tf.stack([tf.is_finite(tf.cast(scalar, tf.float32))
                                 for scalar in scalars]))


class LossScale(object):
  """The scale of mixed precision: grows slowly, halves at an overflow.

  (Micikevicius et al., 1710.03740, section 3.2.) Doubled after
  `LOSS_SCALE_PERIOD` good steps in a row. Its two variables are saved, under
  the names that the framework's own has.
  """

  def __init__(self, initial=INITIAL_LOSS_SCALE, period=LOSS_SCALE_PERIOD):
    self._period = period
    self._scale = tf.get_variable(
        "current_loss_scale", [], tf.float32, trainable=False,
        initializer=tf.constant_initializer(initial))
    self._good_steps = tf.get_variable(
        "good_steps", [], tf.int64, trainable=False,
        initializer=tf.zeros_initializer())
    self.value = tf.identity(self._scale)

  def grow(self):
    """Returns the operation for a good step."""
    good = self._good_steps + 1
    due = good >= self._period
    scale = tf.where(due, self.value * 2.0, self.value)
    return tf.group(
        self._scale.assign(tf.where(tf.is_finite(scale), scale, self.value)),
        self._good_steps.assign(tf.where(due, tf.zeros_like(good), good)))

  def shrink(self):
    """Returns the operation for a step that overflowed."""
    return tf.group(self._scale.assign(tf.maximum(self.value / 2.0, 1.0)),
                    self._good_steps.assign(0))


class _Window(typing.NamedTuple):
  """Sums over a window's micro-batches: gradients, loss, other sums."""
  grads: typing.Any
  loss: typing.Any
  sums: typing.Any


def window_gradients(loss_of, num_accumulation_steps=1, scale=None):
  """Adds up gradients over the micro-batches of one window.

  All but the last run in a loop, whose sums are never saved; the last one
  runs after it, so that the exchange between ranks can begin while its
  backward pass goes on.

  Args:
    loss_of: function that builds the graph of one micro-batch, given its
      number, an int32 scalar tensor: returns its share of the window's loss,
      float32 scalar, and {tag: float32 scalar} to be added up likewise.
    num_accumulation_steps: int, the number of micro-batches.
    scale: float32 scalar tensor that the loss is multiplied with, or None.

  Returns:
    (trainable variables that have a gradient, `_Window` of dense float32
    gradients of the scaled loss, and the loss and sums without the scale).

  Raises:
    ValueError: if no variable has a gradient.
  """
  variables = []

  def build(number):
    # The same scope object each time: modules find the variables again.
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
      loss, sums = loss_of(number)
    if not variables:
      variables.extend(tf.trainable_variables())
    grads = tf.gradients(loss if scale is None else loss * scale, variables)
    return _Window([dense_gradient(grad, var.shape.as_list()[0]
                                   if var.shape.ndims else None)
                    for grad, var in zip(grads, variables)],
                   tf.cast(loss, tf.float32),
                   {tag: tf.cast(value, tf.float32)
                    for tag, value in sums.items()})

  number = tf.constant(num_accumulation_steps - 1)
  # Built first, since the loop needs the variables; runs last.
  last = build(number)
  used = [i for i, grad in enumerate(last.grads) if grad is not None]
  if not used:
    raise ValueError("The loss depends on no trainable variable.")
  last = last._replace(grads=[last.grads[i] for i in used])
  variables = [variables[i] for i in used]
  if num_accumulation_steps == 1:
    return variables, last
  earlier = _loop(build, num_accumulation_steps - 1, last)
  stack.run_after(number.op, tf.nest.flatten(earlier)[-1].op)
  return variables, tf.nest.map_structure(tf.add, earlier, last)


def _loop(build, count, like):
  """Returns the sums, a structure as `like`, of `build(0 .. count - 1)`."""
  flat = tf.nest.flatten(like)
  zeros = [tf.zeros(value.shape, value.dtype) for value in flat]

  def body(number, *sums):
    parts = tf.nest.flatten(build(number))
    return [number + 1] + [a + b for a, b in zip(sums, parts)]

  return tf.nest.pack_sequence_as(like, tf.while_loop(
      lambda number, *unused: number < count, body,
      [tf.constant(0)] + zeros, back_prop=False, parallel_iterations=1)[1:])


def make_optimizer(optimizer_type, rate, step):
  """Returns the optimizer of that type with the published settings.

  Args:
    optimizer_type: "adam" (AdamW) or "lamb".
    rate: float32 scalar tensor.
    step: integer scalar tensor, the number of updates done.
  """
  settings = dict(weight_decay_rate=0.01, beta_1=0.9, beta_2=0.999,
                  epsilon=1e-6, exclude_from_weight_decay=NO_DECAY)
  if optimizer_type == "adam":
    return AdamWeightDecayOptimizer(rate, **settings)
  return LAMBOptimizer(rate, step, **settings)


def build_update(loss,
                 init_lr,
                 num_train_steps,
                 num_warmup_steps,
                 *,
                 optimizer_type="adam",
                 num_accumulation_steps=1,
                 loss_scale=False,
                 exchange=None,
                 global_step=None,
                 records=None,
                 clip_norm=1.0,
                 fused_ops=False):
  """Builds one update of all trainable variables, as published.

  Args:
    loss: float scalar tensor, or a function as `window_gradients` takes it.
    init_lr: float.
    num_train_steps: int.
    num_warmup_steps: int, less than `num_train_steps`; None is 0.
    optimizer_type: "adam" or "lamb"; the rate falls linearly for the first,
      as a square root for the second.
    num_accumulation_steps: int, micro-batches; above 1 `loss` is a function.
    loss_scale: bool, whether to scale the loss as mixed precision needs it.
    exchange: None for a single rank, else a function of a list of gradients
      and a vector of scalars that returns the sums of both over all ranks.
    global_step: integer variable; the graph's global step when None.
    records: (variable, increment) or None: a counter that advances even where
      an update is skipped.
    clip_norm: float, the largest global norm of the gradients.
    fused_ops: bool, whether one kernel updates all variables.

  Returns:
    `Update`. A loss or gradient that is not finite changes no weight or slot,
    nor the step.

  Raises:
    UserError: if the schedule does not fit.
    ValueError: if no variable has a gradient.
  """
  if global_step is None:
    global_step = tf.train.get_or_create_global_step()
  step = tf.identity(global_step)
  rate = learning_rate(step, init_lr, num_train_steps, num_warmup_steps,
                       power=0.5 if optimizer_type == "lamb" else 1.0)
  optimizer = make_optimizer(optimizer_type, rate, step)
  scale = LossScale() if loss_scale else None
  variables, window = window_gradients(
      loss if callable(loss) else lambda number: (loss, {}),
      num_accumulation_steps, scale.value if scale else None)
  if exchange is not None:
    window = _exchanged(window, exchange)
  norm, factor = _clipping(window.grads, scale, clip_norm, fused_ops)
  finite = _all_finite(window.loss, norm)
  train_op = _update_if(finite, optimizer, list(zip(window.grads, variables)),
                        factor, scale, fused_ops,
                        lambda: global_step.assign(step + 1).op)
  train_op = _count_after(train_op, records)
  return Update(train_op, rate, norm, finite, window.loss, window.sums,
                scale.value if scale else None)


def _clipping(grads, scale, clip_norm, fused_ops):
  """Returns (the unscaled gradients' norm, factor that clips and unscales)."""
  # Scales are powers of two, so that dividing the norm is dividing them all.
  unscale = 1.0 / scale.value if scale else 1.0
  norm = (kernels.global_norm if fused_ops else _global_norm)(grads) * unscale
  return norm, unscale * (clip_norm / tf.maximum(norm, clip_norm))


def _count_after(operation, records):
  """Returns the operation that adds to a counter, if any, after another."""
  if records is None:
    return operation
  counter, increment = records
  with tf.control_dependencies([operation]):
    return tf.assign_add(counter, tf.cast(
        increment, counter.dtype.base_dtype)).op


def _update_if(finite, optimizer, pairs, factor, scale, fused_ops, advance):
  """Returns the operation that updates all, or shrinks the scale alone.

  Args:
    finite: bool scalar tensor, which of the two.
    optimizer: `_DecayOptimizer`.
    pairs: [(gradient, variable)].
    factor: float32 scalar tensor that clips and unscales the gradients.
    scale: `LossScale` or None.
    fused_ops: see `build_update`.
    advance: function that returns the operation for the step, the last.
  """
  # Variables must not be made inside a branch.
  optimizer.make_slots([var for _, var in pairs])

  def update():
    done = (optimizer.apply_at_once(pairs, factor) if fused_ops else
            optimizer.apply_gradients([(grad * factor, var)
                                       for grad, var in pairs]))
    with tf.control_dependencies([done] + ([scale.grow()] if scale else [])):
      last = advance()
    with tf.control_dependencies([last]):
      return tf.constant(True)

  def skip():
    with tf.control_dependencies([scale.shrink()] if scale else []):
      return tf.constant(False)

  return tf.cond(finite, update, skip).op


def _exchanged(window, exchange):
  """Returns the window's sums over all ranks."""
  tags = sorted(window.sums)
  grads, scalars = exchange(window.grads, tf.stack(
      [window.loss] + [window.sums[tag] for tag in tags]))
  scalars = tf.unstack(scalars)
  return _Window(grads, scalars[0], dict(zip(tags, scalars[1:])))


def create_optimizer(loss, init_lr, num_train_steps, num_warmup_steps,
                     use_tpu=False, **new):
  """Returns the operation that trains; see `build_update` for what is new."""
  if use_tpu:
    raise ValueError("TPUs are not supported.")
  return build_update(loss, init_lr, num_train_steps, num_warmup_steps,
                      **new).train_op
