"""Flags that both runners have, and checks of their values."""

import math

from absl import flags

from utils import checkpoints
from utils import files
from utils import replica
from utils.errors import UserError


def define_common(learning_rate, train_batch_size, max_seq_length):
  """Declares the flags that both runners have, with a runner's defaults."""
  flags.DEFINE_string(
      "bert_config_file", None, "JSON with the model's dimensions.")
  flags.DEFINE_string(
      "init_checkpoint", None,
      "Weights to start from: a prefix or a folder (its newest).")
  flags.DEFINE_string("output_dir", None, "Folder of the run.")
  flags.DEFINE_integer(
      "train_batch_size", train_batch_size,
      "Sequences a training batch, for each rank and micro-batch.")
  _define_training()
  flags.DEFINE_float(
      "learning_rate", learning_rate, "Peak rate, for each rank.")
  flags.DEFINE_integer(
      "max_seq_length", max_seq_length, "Word pieces of a sequence, with "
      "[CLS] and [SEP].")
  flags.DEFINE_integer(
      "save_checkpoints_steps", 1000, "Steps between checkpoints.")
  flags.DEFINE_integer(
      "keep_checkpoint_max", 5, "Checkpoints to keep, at least 2.")
  flags.DEFINE_integer(
      "iterations_per_loop", 1000, "Kept for old command lines; unused, "
      "since only TPUs loop on the device.")
  flags.DEFINE_integer(
      "log_every_steps", 100, "Steps between rows of metrics.jsonl.")
  flags.DEFINE_integer(
      "seed", 12345, "Seed of weights, dropout and order of records.")
  flags.DEFINE_bool(
      "horovod", False, "Work as one of the processes that mpirun or "
      "horovodrun has started.")
  flags.DEFINE_bool("use_fp16", False, "Mixed precision with float16.")
  flags.DEFINE_bool(
      "use_bf16", False, "Mixed precision with bfloat16 (tf2 stack).")
  flags.DEFINE_bool("use_xla", False, "Compile with XLA.")
  flags.DEFINE_bool(
      "remove_padding", True, "Compute on real tokens alone.")
  flags.DEFINE_enum(
      "fused_ops", "auto", ["auto", "on", "off"], "Kernels of fused_ops: where "
      "they can be taken, or an error where not, or none.")
  flags.DEFINE_string("log_file", None, "File that gets all log lines.")


def _define_training():
  """Declares how an update is made."""
  flags.DEFINE_enum(
      "optimizer_type", "adam", ["adam", "lamb"], "AdamW, or LAMB for very "
      "large batches.")
  flags.DEFINE_integer(
      "num_accumulation_steps", 1, "Micro-batches whose gradients are added up "
      "for one update.")
  flags.DEFINE_bool(
      "allreduce_fp16", False, "Exchange gradients between ranks as float16.")
  flags.DEFINE_enum(
      "nan_policy", "stop", ["stop", "skip"], "What follows a loss or gradient "
      "that is not finite: the end of the run, or the next batch.")
  flags.DEFINE_integer(
      "eval_every_steps", 0, "Steps from evaluation to evaluation while "
      "training, by which the best checkpoint is kept; 0: none.")


def check_positive(name, value):
  """Raises UserError unless flag `name` is above zero and finite."""
  if not (value > 0 and math.isfinite(value)):
    raise UserError("--%s=%s: give a number above 0" % (name, value))


def checked(config):
  """Checks the flags that both runners have.

  Args:
    config: a runner's NamedTuple with the flags of `define_common`.

  Returns:
    `config` with the prefix that --init_checkpoint means. A folder's newest
    checkpoint is read whole to be sure of it, so that is done but once.

  Raises:
    UserError: for a value that no run can have.
  """
  for name in ("train_batch_size", "learning_rate", "max_seq_length",
               "save_checkpoints_steps", "keep_checkpoint_max",
               "log_every_steps", "num_accumulation_steps"):
    check_positive(name, getattr(config, name))
  if config.eval_every_steps < 0:
    raise UserError("--eval_every_steps=%d: give 0 (none) or more"
                    % config.eval_every_steps)
  files.require_file(config.bert_config_file, "bert_config_file")
  if not config.output_dir:
    raise UserError("--output_dir is required")
  replica.start(config.horovod)
  # Rank 0 alone reads checkpoints.
  if not config.init_checkpoint or not replica.is_chief():
    return config
  return config._replace(init_checkpoint=checkpoints.resolve(
      config.init_checkpoint, "init_checkpoint"))


def check_warmup(warmup_steps, train_steps):
  """Raises UserError unless 0 <= warmup_steps < train_steps."""
  check_positive("num_train_steps", train_steps)
  if not 0 <= warmup_steps < train_steps:
    raise UserError(
        "--num_warmup_steps=%d: give a number from 0 to below "
        "--num_train_steps=%d" % (warmup_steps, train_steps))


def check_length(max_seq_length, bert_config):
  """Raises UserError if a sequence is longer than the model's positions."""
  if max_seq_length > bert_config.max_position_embeddings:
    raise UserError(
        "--max_seq_length=%d is over the model's %d positions "
        "(max_position_embeddings in --bert_config_file)"
        % (max_seq_length, bert_config.max_position_embeddings))


def check_enough(flag, batch_size, available, what):
  """Raises UserError if a batch asks for more than there is."""
  if available < 1:
    raise UserError("no %s" % what)
  if batch_size > available:
    raise UserError("--%s=%d, but there are only %d %s: use a smaller batch"
                    % (flag, batch_size, available, what))
