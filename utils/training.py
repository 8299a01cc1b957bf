"""The training loop around a model: start, update, hooks, resume, ranks."""

import hashlib
import os

import tensorflow.compat.v1 as tf

import modeling
import optimization
from utils import checkpoints
from utils import files
from utils import hooks
from utils import input_pipeline
from utils import kernels
from utils import precision
from utils import replica
from utils import session
from utils import stopping
from utils import stopwatch
from utils.errors import Stopped
from utils.errors import UserError
from utils.logs import LOGGER

RECORDS_CONSUMED = "records_consumed"
BEST_FOLDER = "best"
# Programs that XLA compiles at most for batches of one size.
ROW_BUCKETS = 8


def global_batch(config):
  """Returns the number of sequences of an update, those of all ranks."""
  return (config.train_batch_size * config.num_accumulation_steps
          * replica.size())


def estimator(config, bert_config, model_fn, **params):
  """Returns the tf.estimator.Estimator of a run.

  Args:
    config: the runner's NamedTuple of settings.
    bert_config: modeling.BertConfig.
    model_fn: the runner's model function.
    **params: plain values that join `config`, `bert_config`, `precision` and
      `fused_ops` in the model function's params: `checkpoint` (the prefix that
      will be restored, or None) and, in training, `run` (a `Run`).
  """
  settled = precision.settle(config.use_fp16, config.use_bf16, config.use_xla)
  fused_ops = kernels.settle(config.fused_ops, config.use_xla)
  return tf.estimator.Estimator(
      model_fn=model_fn,
      config=session.run_config(replica.own_folder(config.output_dir),
                                config.seed, replica.thread_count(), settled),
      params=dict(params, config=config, bert_config=bert_config,
                  precision=settled, fused_ops=fused_ops))


def encoder(features, bert_config, is_training, options):
  """Returns the modeling.BertModel of a batch.

  Args:
    features: dict of int32 `input_ids`, `input_mask`, `segment_ids`
      [batch, seq].
    bert_config: modeling.BertConfig.
    is_training: bool, whether dropout is on.
    options: modeling.ModelOptions.
  """
  return modeling.BertModel(
      config=bert_config, is_training=is_training,
      input_ids=features["input_ids"], input_mask=features["input_mask"],
      token_type_ids=features["segment_ids"], use_one_hot_embeddings=False,
      options=options)


def _layout(params):
  """Returns the modeling.ModelOptions of padding."""
  return dict(
      remove_padding=params["config"].remove_padding,
      row_buckets=ROW_BUCKETS if params["precision"].xla else None)


def inference_options(params):
  """Returns modeling.ModelOptions of evaluation and prediction."""
  return modeling.ModelOptions(
      matmul_dtype=params["precision"].matmul_dtype,
      fused_ops=params["fused_ops"], **_layout(params))


def inference_hooks():
  """Returns the hooks of evaluation and prediction: weights from rank 0."""
  return [replica.BroadcastHook()]


def checkpoint_to_use(config):
  """Returns the prefix to evaluate or predict with, and logs why.

  Rank 0 looks for it and reads it; the others get None and its weights.

  Raises:
    UserError: if neither the folder nor --init_checkpoint has one;
      Estimator would silently use random weights.
  """
  if not replica.is_chief():
    return None
  prefix = checkpoints.latest(config.output_dir)
  if prefix is not None:
    LOGGER.info("using %s, the newest in --output_dir", prefix)
    return prefix
  if config.init_checkpoint:
    LOGGER.info("using --init_checkpoint %s: --output_dir has none",
                config.init_checkpoint)
    return config.init_checkpoint
  raise UserError(
      "no checkpoint in --output_dir %s and no --init_checkpoint: train "
      "first, or name one" % config.output_dir)


def restoring(params):
  """Returns a Scaffold that restores the checkpoint; None but on rank 0.

  Raises:
    UserError: unless the checkpoint holds every weight of the graph.
  """
  if not replica.is_chief():
    return None
  return session.inference_scaffold(params["checkpoint"])


def _seeded(seed):
  """Returns a getter of variables whose random values follow their names.

  By default they would follow the number of operations made before, so that
  the same seed meant other weights with another number of micro-batches.
  """
  def seeded(getter, name, *args, **kwargs):
    initializer = kwargs.get("initializer")
    if isinstance(initializer, tf.truncated_normal_initializer):
      digest = hashlib.sha256(("%d %s" % (seed, name)).encode("utf-8")).digest()
      kwargs["initializer"] = tf.truncated_normal_initializer(
          initializer.mean, initializer.stddev,
          seed=int.from_bytes(digest[:4], "little") >> 1)
    return getter(name, *args, **kwargs)
  return seeded


def _weights_of_all(weights):
  """Returns {tag: float32 scalar}, summed over all ranks.

  They depend on the input alone, so that this small exchange is over before
  the first backward pass needs it.
  """
  tags = sorted(weights)
  vector = tf.stack([tf.cast(weights[tag], tf.float32) for tag in tags])
  return dict(zip(tags, tf.unstack(replica.sum_over_ranks(vector, "weights"))))


def loss_function(params, features, totals_of, weights):
  """Returns the loss function of `optimization.window_gradients`.

  Each part of the loss is a mean over the whole window and all ranks: the sum
  of a micro-batch is divided by the weight of all of them, so that k
  micro-batches of b on R ranks mean what one batch of k * b * R means.

  Args:
    params: the model function's params.
    features: dict of tensors [batch, ...], or [k, batch, ...] where there are
      k > 1 micro-batches.
    totals_of: function of one micro-batch's features and modeling.ModelOptions
      that returns {tag: float32 scalar}, sums of losses.
    weights: {tag: scalar} of the same tags: what this rank's window adds to
      what the sums are divided by.
  """
  config = params["config"]
  divisors = _weights_of_all(weights)
  step = tf.identity(tf.train.get_or_create_global_step())

  def loss_of(number):
    micro = features
    if config.num_accumulation_steps > 1:
      micro = {name: value[number] for name, value in features.items()}
    options = modeling.ModelOptions(
        dropout_key=modeling.DropoutKey(
            seed=config.seed, step=step, micro_batch=number,
            rank=replica.rank()),
        matmul_dtype=params["precision"].matmul_dtype,
        fused_ops=params["fused_ops"], **_layout(params))
    totals = totals_of(micro, options)
    parts = {tag: total / divisors[tag] for tag, total in totals.items()}
    return tf.add_n([parts[tag] for tag in sorted(parts)]), parts
  return loss_of


def train_spec(params, features, totals_of, weights, log_losses=True):
  """Returns the EstimatorSpec of training.

  Args:
    params: the model function's params.
    features: see `loss_function`.
    totals_of: see `loss_function`; the parts are reported by their tags.
    weights: see `loss_function`.
    log_losses: whether the log gets lines beside the rows of metrics.jsonl.
  """
  config, run = params["config"], params["run"]
  asked = tf.placeholder_with_default(0.0, [], name="asked_to_stop")
  parts_of = loss_function(params, features, totals_of, weights)

  def loss_of(number):
    loss, sums = parts_of(number)
    return loss, dict(sums, asked_to_stop=asked)

  with tf.variable_scope(tf.get_variable_scope(),
                         custom_getter=_seeded(config.seed)):
    consumed = tf.get_variable(
        RECORDS_CONSUMED, [], tf.int64, trainable=False,
        initializer=tf.zeros_initializer())
    update = optimization.build_update(
        loss_of, config.learning_rate * replica.size(), run.total_steps,
        run.warmup_steps, optimizer_type=config.optimizer_type,
        num_accumulation_steps=config.num_accumulation_steps,
        loss_scale=params["precision"].scales_loss or config.allreduce_fp16,
        exchange=replica.exchange(config.allreduce_fp16),
        records=(consumed, tf.constant(global_batch(config), tf.int64)),
        fused_ops=params["fused_ops"])
  if run.checkpoint is None and config.init_checkpoint and replica.is_chief():
    checkpoints.log_report(checkpoints.init_from(
        config.init_checkpoint, tf.trainable_variables(),
        optional_scopes=("cls",)), LOGGER)
  with tf.control_dependencies([update.train_op]):
    step = tf.identity(tf.train.get_global_step().read_value())
  # Estimator's own NaN hook comes before ours and ends in a traceback.
  shown_loss = tf.where(update.is_finite, update.loss,
                        tf.zeros_like(update.loss))
  return tf.estimator.EstimatorSpec(
      mode=tf.estimator.ModeKeys.TRAIN, loss=shown_loss,
      train_op=update.train_op,
      scaffold=session.training_scaffold(run.checkpoint),
      training_hooks=_training_hooks(params, update, step, asked, log_losses))


def _training_hooks(params, update, step, asked, log_losses):
  """Returns the hooks of training; the order is that in which they run."""
  config, run, settled = (params[name]
                          for name in ("config", "run", "precision"))
  sums = dict(update.sums)
  xla = [precision.XlaReportHook()] if settled.xla else []
  run.stop_hook = stopping.StopHook(
      run.request, asked, sums.pop("asked_to_stop"), step, run.last_step)
  reported = dict(sums if len(sums) > 1 else {}, loss=update.loss, step=step,
                  learning_rate=update.learning_rate,
                  grad_norm=update.grad_norm, is_finite=update.is_finite)
  if update.loss_scale is not None:
    reported["loss_scale"] = update.loss_scale
  run.guard.watch(reported)
  every = [replica.BroadcastHook(), run.guard]
  if not replica.is_chief():
    return every + [run.stop_hook]
  return every + xla + [
      hooks.MetricsHook(reported, config.output_dir, run.total_steps,
                        config.log_every_steps, run.stopwatch, log_losses),
      hooks.CheckpointHook(step, config.output_dir,
                           config.save_checkpoints_steps,
                           config.keep_checkpoint_max),
      run.stop_hook]


class Run(object):
  """What the parts of one training have in common.

  Attributes:
    checkpoint: prefix that rank 0 restores, or None.
    last_step: where the latest part ends.
    total_steps: optimizer steps of the whole run.
    warmup_steps: steps of rising rate.
    request: an entered `stopping.StopRequest`.
    guard: `hooks.FiniteGuardHook`.
    stopwatch: `stopwatch.Stopwatch`.
    stop_hook: `stopping.StopHook` of the latest part.
  """

  def __init__(self, config, total_steps, warmup_steps, request):
    self.checkpoint = None
    self.last_step = total_steps
    self.total_steps = total_steps
    self.warmup_steps = warmup_steps
    self.request = request
    self.guard = hooks.FiniteGuardHook(config.nan_policy)
    self.stopwatch = stopwatch.Stopwatch(global_batch(config))
    self.stop_hook = None

  def __deepcopy__(self, unused_memo):
    # Estimator copies its params; this is one and the same for all parts.
    return self


def _start(config):
  """Returns (prefix, step, records consumed), found by rank 0 for all."""
  if not replica.is_chief():
    return replica.from_chief(None)
  prefix = checkpoints.latest(config.output_dir)
  checkpoints.set_newest(config.output_dir, prefix)
  step = consumed = 0
  if prefix is None:
    LOGGER.info("starting at step 0 from %s", (
        "--init_checkpoint " + config.init_checkpoint)
                if config.init_checkpoint else "random weights")
  else:
    step = int(checkpoints.read_variable(prefix, "global_step", 0))
    consumed = int(checkpoints.read_variable(
        prefix, RECORDS_CONSUMED, step * global_batch(config)))
    LOGGER.info("going on from %s (step %d, %d records consumed)%s",
                prefix, step, consumed,
                ": it is in --output_dir, so --init_checkpoint is not used"
                if config.init_checkpoint else "")
  return replica.from_chief((prefix, step, consumed))


def _log_batch(config):
  """Tells what an update is made of."""
  ranks, k = replica.size(), config.num_accumulation_steps
  if ranks * k == 1:
    return
  LOGGER.info(
      "an update has %d sequences: %d ranks x %d micro-batches x %d; peak rate "
      "%g = %d ranks x %g", global_batch(config), ranks, k,
      config.train_batch_size, ranks * config.learning_rate, ranks,
      config.learning_rate)


def train(config, bert_config, model_fn, total_steps, warmup_steps,
          make_batches, make_dataset, inspect=None, evaluate=None):
  """Trains to `total_steps` from wherever the run's folder stands.

  Args:
    config: the runner's NamedTuple of settings.
    bert_config: modeling.BertConfig.
    model_fn: the runner's model function.
    total_steps: optimizer steps of the whole run.
    warmup_steps: steps of rising rate.
    make_batches: function of the number of records that all ranks have
      consumed that returns the endless rest of this rank's batches.
    make_dataset: function of a `Source` that returns a tf.data.Dataset.
    inspect: see `Source`.
    evaluate: function without arguments that scores the newest checkpoint
      and returns (name of the score, its value, the higher the better), on
      rank 0; called every --eval_every_steps steps, the best is kept.

  Raises:
    Stopped: if training was asked to stop; it has saved a checkpoint.
  """
  prefix, step, consumed = _start(config)
  if step >= total_steps:
    LOGGER.info("already trained to step %d of %d: nothing left to train",
                step, total_steps)
    return
  _log_batch(config)
  with stopping.StopRequest(config.output_dir) as request:
    run = Run(config, total_steps, warmup_steps, request)
    while step < total_steps:
      _train_part(config, bert_config, model_fn, run, (prefix, consumed),
                  _end_of_part(config, step, total_steps),
                  (make_batches, make_dataset, inspect))
      before, (prefix, step, consumed) = step, _newest(config)
      if run.stop_hook.has_stopped:
        raise Stopped("stopped as asked at step %d of %d, checkpoint saved; "
                      "the same command goes on" % (step, total_steps))
      if config.eval_every_steps and evaluate and step > before:
        _keep_best(config, prefix, step, evaluate())
  if replica.is_chief():
    hooks.close_training(config.output_dir, step, run.stopwatch,
                         run.guard.skipped)


def _end_of_part(config, step, total_steps):
  every = config.eval_every_steps or total_steps
  return min(total_steps, (step // every + 1) * every)


def _train_part(config, bert_config, model_fn, run, start, end, data):
  """Trains from `start`, (prefix, records consumed), to step `end`."""
  prefix, consumed = start
  make_batches, make_dataset, inspect = data
  source = input_pipeline.Source(
      lambda: make_batches(consumed), inspect,
      batches_a_step=config.num_accumulation_steps)
  run.last_step = end
  # The others get what rank 0 has read.
  run.checkpoint = prefix if replica.is_chief() else None
  with replica.peers(), input_pipeline.surfaced(source):
    estimator(config, bert_config, model_fn, run=run,
              checkpoint=run.checkpoint).train(
                  lambda: make_dataset(source))


def _newest(config):
  """Returns (prefix, step, records consumed) of what was saved just now."""
  if not replica.is_chief():
    return replica.from_chief(None)
  prefix = os.path.join(config.output_dir, os.path.basename(
      tf.train.latest_checkpoint(config.output_dir)))
  return replica.from_chief((
      prefix, int(checkpoints.read_variable(prefix, "global_step")),
      int(checkpoints.read_variable(prefix, RECORDS_CONSUMED))))


def _keep_best(config, prefix, step, score):
  """Copies checkpoint `prefix` if no earlier one has a better score."""
  if not replica.is_chief():
    return
  folder = os.path.join(config.output_dir, BEST_FOLDER)
  path = os.path.join(folder, "best.json")
  name, value = score
  best = files.read_json(path, BEST_FOLDER) if os.path.exists(path) else None
  if best and best["score"] == name and best["value"] >= value:
    LOGGER.info("step %d: %s %.4f; the best is still %.4f of step %d", step,
                name, value, best["value"], best["step"])
    return
  checkpoints.copy(prefix, folder)
  files.write_json(path, {"step": step, "score": name, "value": value})
  LOGGER.info("step %d: %s %.4f is the best so far, kept in %s", step, name,
              value, folder)
