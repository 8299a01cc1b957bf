"""A SavedModel as ONNX, for servers without TensorFlow.

The converter needs packages that fit neither TensorFlow stack; it runs as a
process of its own in the environment of `scripts/trtis/setup.sh --only onnx`.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

from utils import files
from utils import workers
from utils.errors import UserError
from utils.logs import LOGGER

MODEL_FILE = "model.onnx"
_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SETUP = "bash scripts/trtis/setup.sh --only onnx"
# Of utils.onnx_conversion, which cannot be imported here.
_DIFFERENT = 3
_SHOWN_LINES = 8


def interpreter():
  """Returns the path of the converter's Python.

  Raises:
    UserError: where its environment is not there, or not whole.
  """
  folder = os.path.abspath(os.path.join(
      os.environ.get("BERT_VENV_DIR") or str(_ROOT / ".venv"), "onnx"))
  python = os.path.join(folder, "bin", "python")
  if not (os.path.isfile(os.path.join(folder, "setup-stamp"))
          and os.access(python, os.X_OK)):
    raise UserError("--export_format=onnx: the converter's environment %s is "
                    "not there, or not whole: make it with `%s`"
                    % (folder, _SETUP))
  return python


def _environment():
  """Returns the child's environment variables."""
  env = dict(os.environ, CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="2")
  for name in ("PYTHONPATH", "PYTHONHOME", "TF_XLA_FLAGS"):
    env.pop(name, None)
  return env


def _run(command, log):
  """Runs the converter and returns its exit status; it never outlives us."""
  with open(log, "w", encoding="utf-8") as stream:
    child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT,
                             stdin=subprocess.DEVNULL, cwd=str(_ROOT),
                             env=_environment(),
                             preexec_fn=functools.partial(
                                 workers.die_with_parent, os.getpid()))
    try:
      return child.wait()
    finally:
      with contextlib.suppress(ProcessLookupError):
        child.kill()


def _show_end(log):
  with open(log, encoding="utf-8", errors="replace") as stream:
    lines = [line.rstrip() for line in stream if line.strip()]
  for line in lines[-_SHOWN_LINES:]:
    LOGGER.error("converter: %s", line)


def _check(status, report, log):
  """Raises UserError unless the conversion is done and right."""
  if status == _DIFFERENT:
    raise UserError(
        "--export_format=onnx: refused, ONNX Runtime differs from TensorFlow "
        "by %(difference).3g where the largest logit is %(largest_logit).3g; "
        "up to %(tolerance)g of it would do: export it in fp32, or as a "
        "savedmodel" % files.read_json(report, "report of the conversion"))
  if status:
    _show_end(log)
    raise UserError(
        "--export_format=onnx: the converter failed (%s); its last lines "
        "stand above, all of them in %s"
        % ("signal %d" % -status if status < 0 else "status %d" % status, log))


def _say(report):
  LOGGER.info(
      "in ONNX: %(difference).2g apart from TensorFlow where the largest logit "
      "is %(largest_logit).2g (at most %(tolerance)g of it), in %(sequences)d "
      "sequences of all lengths", report)


def convert(saved_model_dir, onnx_path, float16, *, vocab_size,
            max_batch_size, log):
  """Writes a SavedModel as ONNX, checked against TensorFlow, or not at all.

  Args:
    saved_model_dir: folder with the signature of `utils.signature`, without
      fused ops.
    onnx_path: the file to write.
    float16: bool, whether weights and products are float16; inputs and outputs
      stay int32 and float32.
    vocab_size: int, rows of the word embeddings.
    max_batch_size: int, sequences of the largest batch to check.
    log: path of the converter's output; stays there if it fails.

  Raises:
    UserError: if the environment is missing, the conversion fails, or the
      result is not what TensorFlow computes.
  """
  python = interpreter()
  folder = tempfile.mkdtemp(
      prefix=".onnx.", dir=os.path.dirname(os.path.abspath(onnx_path)))
  try:
    temporary = os.path.join(folder, MODEL_FILE)
    report = os.path.join(folder, "report.json")
    _check(_run([
        python, "-m", "utils.onnx_conversion", "--output=" + temporary,
        "--saved_model=" + os.path.abspath(saved_model_dir),
        "--report=" + report,
        "--precision=" + ("float16" if float16 else "float32"),
        "--vocab_size=%d" % vocab_size, "--max_batch_size=%d" % max_batch_size,
    ], log), report, log)
    _say(files.read_json(report, "report of the conversion"))
    os.replace(temporary, onnx_path)
    os.remove(log)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
