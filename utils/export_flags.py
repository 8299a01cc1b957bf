"""Flags of the export to an inference server, and checks of their values."""

import re

from absl import flags

from utils import model_config
from utils.errors import UserError

_LONGEST_NAME = 200
# Milliseconds; a server counts in thousandths of them.
_DELAYS = (.001, 3600e3)
_LARGEST = {
    "trtis_model_version": model_config.LARGEST["version"],
    "trtis_max_batch_size": model_config.LARGEST["max_batch_size"],
    "trtis_engine_count": model_config.LARGEST["engine_count"],
}


def define():
  """Declares them; names and defaults are the reference's where it has them."""
  flags.DEFINE_bool(
      "export_trtis", False,
      "Export for the TensorRT (Triton) Inference Server.")
  flags.DEFINE_enum(
      "export_format", "savedmodel", ["savedmodel", "onnx"],
      "What the server reads: by its TensorFlow or its ONNX Runtime.")
  flags.DEFINE_bool(
      "export_fused_ops", False, "Keep the kernels of fused_ops in the graph: "
      "the server then has to load them, too.")
  flags.DEFINE_string(
      "trtis_model_repository", None, "Folder of the models that a server "
      "serves; default: <output_dir>/trtis_models.")
  flags.DEFINE_string("trtis_model_name", "bert", "Name of the export.")
  flags.DEFINE_integer("trtis_model_version", 1, "Version of the export.")
  flags.DEFINE_integer(
      "trtis_max_batch_size", 8, "Largest batch that the server forms.")
  flags.DEFINE_float(
      "trtis_dyn_batching_delay", 0,
      "Milliseconds that the server waits for a batch to fill; 0 (or -1): no "
      "batches but those of the clients.")
  flags.DEFINE_integer(
      "trtis_max_queue_size", 0, "Requests that may wait at the server, with "
      "--trtis_dyn_batching_delay; more are refused; 0: any number.")
  flags.DEFINE_integer(
      "trtis_engine_count", 1, "Copies of the model, on each GPU.")
  flags.DEFINE_bool(
      "trtis_model_overwrite", False, "Replace an export of that version.")


def checked(config):
  """Returns a runner's settings with the export's in one spelling.

  Args:
    config: NamedTuple with the flags of `define`.

  Raises:
    UserError: for a value that no export can have.
  """
  if not config.export_trtis:
    return config
  # A folder name on all systems, which clients put into addresses.
  if (not re.match(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z", config.trtis_model_name)
      or len(config.trtis_model_name) > _LONGEST_NAME):
    raise UserError(
        "--trtis_model_name=%s: give a plain folder name of letters, digits "
        "and _ . -, up to %d of them"
        % (config.trtis_model_name, _LONGEST_NAME))
  for name, largest in _LARGEST.items():
    if not 1 <= getattr(config, name) <= largest:
      raise UserError("--%s=%d: give 1 or more, up to %d"
                      % (name, getattr(config, name), largest))
  if config.use_bf16:
    raise UserError(
        "--use_bf16: servers have no such precision: export without it, or "
        "with --use_fp16, in a command of its own")
  if config.export_fused_ops and config.export_format == "onnx":
    raise UserError("--export_fused_ops: not together with "
                    "--export_format=onnx, which has no such operations")
  if config.export_fused_ops and config.fused_ops == "off":
    raise UserError("--export_fused_ops: not together with --fused_ops=off")
  return _batching_checked(config)


def _batching_checked(config):
  delay = config.trtis_dyn_batching_delay
  if delay == -1:  # the reference's other word for static batching
    delay = 0.0
  if delay and not _DELAYS[0] <= delay <= _DELAYS[1]:
    raise UserError("--trtis_dyn_batching_delay=%g: give milliseconds, 0 or "
                    "%g to %d" % ((delay,) + _DELAYS))
  if delay and config.trtis_max_batch_size == 1:
    raise UserError(
        "--trtis_dyn_batching_delay=%g: a server puts no requests together "
        "with --trtis_max_batch_size=1: give a larger one, or no delay" % delay)
  largest = model_config.LARGEST["max_queue_size"]
  if not 0 <= config.trtis_max_queue_size <= largest:
    raise UserError("--trtis_max_queue_size=%d: give 0 (any number) or more, "
                    "up to %d" % (config.trtis_max_queue_size, largest))
  if config.trtis_max_queue_size and not delay:
    raise UserError(
        "--trtis_max_queue_size=%d: a queue belongs to dynamic batching: give "
        "--trtis_dyn_batching_delay, too" % config.trtis_max_queue_size)
  return config._replace(trtis_dyn_batching_delay=delay)
