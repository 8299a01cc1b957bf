"""Serves `platform: "tensorflow_savedmodel"` through Triton's Python backend.

Reads <repository>/<version>/model.savedmodel, which a stock server with the
TensorFlow backend reads as well, and computes on the CPU. The model's parameter
`fused_ops_library` names the library of operations of its own, if it has any,
in the version's folder.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The server reads this file by way of a link; what it imports lies beside it.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(
    __file__))))

import tensorflow.compat.v1 as tf  # pylint: disable=wrong-import-position

import batching  # pylint: disable=wrong-import-position

tf.get_logger().setLevel("ERROR")  # no words on what is deprecated
SIGNATURE = "serving_default"


def load_library(path):
  """Loads a library of operations; a ValueError tells why it cannot.

  Its name tells what TensorFlow it was built against: one of another may load
  and then compute nonsense.
  """
  advice = ("export the model without --export_fused_ops, or on a machine with "
            "TensorFlow %s" % tf.__version__)
  if not os.path.isfile(path):
    raise ValueError("its library of fused operations is not there: %s" % path)
  if "_%s_" % tf.__version__ not in os.path.basename(path):
    raise ValueError("its fused operations (%s) are not for this server's "
                     "TensorFlow: %s" % (os.path.basename(path), advice))
  try:
    tf.load_op_library(path)
  except (tf.errors.OpError, OSError) as error:
    raise ValueError("its fused operations %s cannot be loaded (%s): %s"
                     % (path, batching.first_line(error), advice))


def load_signature(session, folder):
  """Reads a SavedModel into a session; returns its one signature."""
  if not os.path.isdir(folder):
    raise ValueError("there is no folder %s" % folder)
  graph = tf.saved_model.load(session, [tf.saved_model.tag_constants.SERVING],
                              folder)
  if SIGNATURE not in graph.signature_def:
    raise ValueError("%s has no signature %s" % (folder, SIGNATURE))
  return graph.signature_def[SIGNATURE]


def missing(names, there):
  """One line on the names that a signature has not, or None."""
  lacking = sorted(set(names) - set(there))
  if lacking:
    return "its signature has no %s, only %s" % (
        ", ".join(lacking), ", ".join(sorted(there)))
  return None


class TritonPythonModel(batching.Backend):
  """The model as the server knows it."""

  def load(self, folder):
    library = self.parameters.get("fused_ops_library")
    if library:
      load_library(os.path.join(folder, library))
    self._session = tf.Session(graph=tf.Graph(), config=tf.ConfigProto(
        intra_op_parallelism_threads=self.threads,
        inter_op_parallelism_threads=1))
    with self._session.graph.as_default():
      signature = load_signature(
          self._session, os.path.join(folder, "model.savedmodel"))
    fault = (missing(self.inputs, signature.inputs)
             or missing(self.outputs, signature.outputs))
    if fault:
      raise ValueError(fault)
    self._call = self._session.make_callable(
        [signature.outputs[name].name for name in self.outputs],
        feed_list=[signature.inputs[name].name for name in self.inputs])

  def run(self, arrays):
    return dict(zip(self.outputs, self._call(
        *[arrays[name] for name in self.inputs])))

  def finalize(self):
    """Called by the server at its end."""
    self._session.close()
