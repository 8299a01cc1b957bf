"""Serves `platform: "onnxruntime_onnx"` through Triton's Python backend.

Reads <repository>/<version>/model.onnx, which a stock server with the ONNX
Runtime backend reads as well, and computes on the CPU.
"""

import os
import sys

# The server reads this file by way of a link; what it imports lies beside it.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(
    __file__))))

import onnxruntime  # pylint: disable=wrong-import-position

import batching  # pylint: disable=wrong-import-position

# What ends the process alone: errors are answered and logged by the server.
_FATAL = 4


def open_model(path, threads):
  """Reads a model; a ValueError tells why it cannot be.

  Args:
    path: file in ONNX.
    threads: int, how many compute one batch.
  """
  if not os.path.isfile(path):
    raise ValueError("there is no file %s" % path)
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  options.inter_op_num_threads = 1
  options.log_severity_level = _FATAL
  try:
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"])
  except Exception as error:  # its classes have no common one but this
    raise ValueError("%s is no model in ONNX that ONNX Runtime %s can run (%s)"
                     % (path, onnxruntime.__version__,
                        batching.first_line(error)))


class TritonPythonModel(batching.Backend):
  """The model as the server knows it."""

  def load(self, folder):
    self._session = open_model(os.path.join(folder, "model.onnx"),
                               self.threads)
    for wanted, values, what in (
        (self.inputs, self._session.get_inputs(), "input"),
        (self.outputs, self._session.get_outputs(), "output")):
      there = [value.name for value in values]
      lacking = sorted(set(wanted) - set(there))
      if lacking:
        raise ValueError("it has no %s %s, only %s" % (
            what, ", ".join(lacking), ", ".join(sorted(there))))

  def run(self, arrays):
    if not arrays["input_mask"].any():
      # Without padding there would be no row at all, and ONNX takes a size of
      # 0 in a new shape for "as before".
      raise ValueError("input_mask is 0 everywhere: there is no word piece")
    return dict(zip(self.outputs, self._session.run(self.outputs, arrays)))
