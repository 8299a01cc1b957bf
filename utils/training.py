"""The training loop around a model: start, update, hooks, resume."""

import tensorflow.compat.v1 as tf

import modeling
import optimization
from utils import checkpoints
from utils import hooks
from utils import input_pipeline
from utils import session
from utils.errors import UserError
from utils.logs import LOGGER

RECORDS_CONSUMED = "records_consumed"


def model_options(is_training, seed):
  """Returns modeling.ModelOptions; in training with dropout keyed by step."""
  if not is_training:
    return modeling.ModelOptions()
  step = tf.identity(tf.train.get_or_create_global_step())
  return modeling.ModelOptions(
      dropout_key=modeling.DropoutKey(seed=seed, step=step))


def estimator(config, bert_config, model_fn, **params):
  """Returns the tf.estimator.Estimator of a run.

  Args:
    config: the runner's NamedTuple of settings.
    bert_config: modeling.BertConfig.
    model_fn: the runner's model function.
    **params: plain values that join `config` and `bert_config` in the
      model function's params: `checkpoint` (the prefix that will be
      restored, or None) and, for training, `total_steps`, `warmup_steps`.
  """
  return tf.estimator.Estimator(
      model_fn=model_fn,
      config=session.run_config(config.output_dir, config.seed,
                                session.thread_count(), config.use_xla),
      params=dict(params, config=config, bert_config=bert_config))


def checkpoint_to_use(config):
  """Returns the prefix to evaluate or predict with, and logs why.

  Raises:
    UserError: if neither the folder nor --init_checkpoint has one;
      Estimator would silently use random weights.
  """
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


def train_spec(params, loss, scalars, log_losses=True):
  """Returns the EstimatorSpec of training `loss`.

  Args:
    params: the model function's params.
    loss: scalar float32 tensor.
    scalars: {tag: scalar tensor} to report beside loss, rate and norm.
    log_losses: whether the log gets lines beside the rows of metrics.jsonl.
  """
  config = params["config"]
  if params["checkpoint"] is None and config.init_checkpoint:
    checkpoints.log_report(checkpoints.init_from(
        config.init_checkpoint, tf.trainable_variables(),
        optional_scopes=("cls",)), LOGGER)
  consumed = tf.get_variable(
      RECORDS_CONSUMED, [], tf.int64, trainable=False,
      initializer=tf.zeros_initializer())
  batch = tf.constant(config.train_batch_size, tf.int64)
  update = optimization.build_update(
      loss, config.learning_rate, params["total_steps"],
      params["warmup_steps"], records=(consumed, batch))
  with tf.control_dependencies([update.train_op]):
    step = tf.identity(tf.train.get_global_step().read_value())
  reported = dict(
      scalars, loss=loss, step=step, learning_rate=update.learning_rate,
      grad_norm=update.grad_norm, is_finite=update.is_finite)
  metrics_hook = hooks.MetricsHook(
      reported, config.output_dir, params["total_steps"],
      config.log_every_steps, config.train_batch_size, log_losses)
  checkpoint_hook = hooks.CheckpointHook(
      step, config.output_dir, config.save_checkpoints_steps,
      config.keep_checkpoint_max)
  # Estimator's own NaN hook comes before ours and ends in a traceback.
  shown_loss = tf.where(update.is_finite, loss, tf.zeros_like(loss))
  return tf.estimator.EstimatorSpec(
      mode=tf.estimator.ModeKeys.TRAIN, loss=shown_loss,
      train_op=update.train_op,
      scaffold=session.training_scaffold(params["checkpoint"]),
      training_hooks=[metrics_hook, checkpoint_hook])


def _start(config, prefix):
  """Returns (step, records consumed) of `prefix`; logs what is used."""
  if prefix is None:
    LOGGER.info("starting at step 0 from %s", (
        "--init_checkpoint " + config.init_checkpoint)
                if config.init_checkpoint else "random weights")
    return 0, 0
  step = int(checkpoints.read_variable(prefix, "global_step", 0))
  consumed = int(checkpoints.read_variable(
      prefix, RECORDS_CONSUMED, step * config.train_batch_size))
  LOGGER.info("going on from %s (step %d, %d records consumed)%s",
              prefix, step, consumed,
              ": it is in --output_dir, so --init_checkpoint is not used"
              if config.init_checkpoint else "")
  return step, consumed


def train(config, bert_config, model_fn, total_steps, warmup_steps,
          make_batches, make_dataset, inspect=None):
  """Trains to `total_steps` from wherever the run's folder stands.

  Args:
    config: the runner's NamedTuple of settings.
    bert_config: modeling.BertConfig.
    model_fn: the runner's model function.
    total_steps: optimizer steps of the whole run.
    warmup_steps: steps of rising rate.
    make_batches: function of the number of records consumed that returns
      the endless rest of the run's batches.
    make_dataset: function of a `Source` that returns a tf.data.Dataset.
    inspect: see `Source`.
  """
  prefix = checkpoints.latest(config.output_dir)
  checkpoints.set_newest(config.output_dir, prefix)
  step, consumed = _start(config, prefix)
  if step >= total_steps:
    LOGGER.info("already trained to step %d of %d: nothing left to train",
                step, total_steps)
    return
  source = input_pipeline.Source(lambda: make_batches(consumed), inspect)
  with input_pipeline.surfaced(source):
    estimator(
        config, bert_config, model_fn, checkpoint=prefix,
        total_steps=total_steps, warmup_steps=warmup_steps,
    ).train(lambda: make_dataset(source), max_steps=total_steps)
