"""Whether a run takes the kernels of fused_ops: decided and told here alone."""

import functools
import os
import shutil

from fused_ops import library
from utils import stack
from utils.errors import UserError
from utils.logs import LOGGER


@functools.lru_cache(maxsize=None)
def settle(asked, use_xla, flag="--fused_ops=on"):
  """Decides whether a run takes the kernels, and says why where not.

  Later calls return the same and log nothing.

  Args:
    asked: "auto", "on" or "off".
    use_xla: bool.
    flag: what asked for "on", for the message.

  Returns:
    bool.

  Raises:
    UserError: if they are asked for and cannot be taken.
  """
  if asked == "off":
    return False
  if use_xla:
    fault = "XLA makes kernels of its own"
  elif stack.gpu_available():
    fault = library.gpu_fault(stack.compute_capability())
  else:
    fault = library.fault()
  if fault is None:
    return True
  if asked == "on":
    raise UserError("%s: %s" % (flag, fault))
  LOGGER.info("fused_ops: not taken, %s: the framework's own operations do the "
              "same", fault)
  return False


def library_name():
  """Returns the file name of the kernels' library, with TensorFlow's version.
  """
  return library.path().name


def copy_library(folder):
  """Copies the kernels' library into a folder, under its own name."""
  shutil.copyfile(str(library.path()), os.path.join(folder, library_name()))
