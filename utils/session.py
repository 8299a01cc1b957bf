"""Session and Estimator settings, and restoring into a changed graph."""

import ctypes

import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2

from utils import precision
from utils import replica
from utils import stack
from utils.errors import UserError
from utils.logs import LOGGER


def keep_freed_memory():
  """Lets malloc keep what a step frees, for the next step to use.

  By default glibc hands every large tensor back to the kernel and asks for
  it again, zeroed, at the next step: on a CPU half of the time went there.
  Does nothing where the C library is another one.
  """
  mmap_max, top_pad, trim_threshold = -4, -2, -1  # malloc.h
  libc = ctypes.CDLL(None)
  if hasattr(libc, "mallopt"):
    libc.mallopt(mmap_max, 0)
    libc.mallopt(top_pad, 64 << 20)
    libc.mallopt(trim_threshold, -1)


def run_config(output_dir, seed, threads, settled):
  """Returns the Estimator's RunConfig.

  Saving, logging and summaries are left to `utils.hooks`, which guards
  them; the thread count is fixed because the order of sums depends on it.

  Args:
    output_dir: folder of the run.
    seed: seed of the initial weights.
    threads: intra-op threads.
    settled: `precision.Precision`.
  """
  if not stack.gpu_available():
    keep_freed_memory()
  config = tf.ConfigProto(
      intra_op_parallelism_threads=threads,
      inter_op_parallelism_threads=threads,
      allow_soft_placement=True)
  config.gpu_options.allow_growth = True
  # It has sums of many terms added up as they arrive: other bits in each run.
  config.graph_options.rewrite_options.memory_optimization = (
      rewriter_config_pb2.RewriterConfig.NO_MEM_OPT)
  if replica.size() > 1:
    config.gpu_options.visible_device_list = str(replica.local_rank())
  precision.apply(settled, config)
  return tf.estimator.RunConfig(
      model_dir=output_dir, tf_random_seed=seed, session_config=config,
      save_checkpoints_steps=None, save_checkpoints_secs=None,
      save_summary_steps=None, log_step_count_steps=None)


def _missing_from(prefix, variables):
  """Returns the variables that checkpoint `prefix` lacks.

  Raises:
    UserError: if a shape differs, or a trainable variable is missing.
  """
  saved = dict(tf.train.list_variables(prefix))
  missing = []
  for variable in variables:
    name = variable.op.name
    if name not in saved:
      missing.append(variable)
    elif list(saved[name]) != variable.shape.as_list():
      raise UserError(
          "checkpoint %s: %s has shape %s where this model has %s: use the "
          "config that it was trained with, or another output folder"
          % (prefix, name, list(saved[name]), variable.shape.as_list()))
  weights = set(tf.trainable_variables())
  lost = [v.op.name for v in missing if v in weights]
  if lost:
    raise UserError(
        "checkpoint %s lacks %d weights of this model, %s the first: it is "
        "of another task or config; use it as --init_checkpoint of a run in "
        "an empty output folder" % (prefix, len(lost), lost[0]))
  return missing


def inference_scaffold(prefix):
  """Returns a Scaffold that restores `prefix`, which may know of no step.

  Published weights do not; Estimator's own saver would end in a traceback.

  Args:
    prefix: checkpoint.

  Raises:
    UserError: unless it holds every weight of this graph.
  """
  variables = tf.global_variables()
  missing = _missing_from(prefix, variables)
  # These are initialized with what metrics add to the graph later on.
  for variable in missing:
    tf.add_to_collection(tf.GraphKeys.LOCAL_VARIABLES, variable)
  restored = [v for v in variables if v not in set(missing)]
  return tf.train.Scaffold(
      saver=tf.train.Saver(restored),
      ready_for_local_init_op=tf.report_uninitialized_variables(restored))


def training_scaffold(prefix):
  """Returns a Scaffold that restores `prefix` and creates what it lacks.

  A checkpoint of another optimizer has no slots for this one, and a
  published one has no reader position; Estimator's own saver would end in
  a traceback there.

  Args:
    prefix: newest checkpoint of the run's folder, or None on a fresh start.
  """
  scaffold = _scaffold(prefix)
  stack.assign_outside_xla(tf.get_default_graph())
  return scaffold


def _scaffold(prefix):
  if prefix is None:
    return tf.train.Scaffold(saver=tf.train.Saver())
  variables = tf.global_variables()
  missing = _missing_from(prefix, variables)
  if missing:
    LOGGER.info("%s lacks %d variables, created anew: %s", prefix,
                len(missing), ", ".join(v.op.name for v in missing[:5])
                + (" ..." if len(missing) > 5 else ""))
  lacking = set(missing)
  restored = [v for v in variables if v not in lacking]
  return tf.train.Scaffold(
      saver=tf.train.Saver(restored),
      ready_for_local_init_op=tf.report_uninitialized_variables(restored),
      local_init_op=tf.group(tf.train.Scaffold.default_local_init_op(),
                             tf.variables_initializer(missing)))
