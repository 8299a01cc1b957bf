"""Checks the kernels' operations, as TensorFlow runs them, against float64.

  python fused_ops/op_check.py [--device /GPU:0] [--only attention] [--quick]

The cases are those of gpu_check.py, but each kernel is called through its
operation in a session. fused_ops/build.py runs it on a GPU: kernels are taken
there only after it has passed. Takes half a minute. Prints what failed and a
last line with how many did not; exits with 0 if all is right, 1 if not, and 2
if it could not be found out.
"""

import argparse
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from fused_ops import gpu_cases
from fused_ops import gpu_device
from fused_ops import library
from utils import stack
import numpy as np
import tensorflow.compat.v1 as tf
# tf.compat.v1 does not say which kernels there are.
from tensorflow.python.framework import kernels as registry

_DTYPES = {"float32": tf.float32, "float16": tf.float16,
           "bfloat16": tf.bfloat16, "int32": tf.int32}


class Session(object):
  """Stands for `gpu_device.Gpu`: the same cases, by operations of TensorFlow.

  An array is bytes on the host; a call feeds its inputs to a graph of one
  operation and keeps what that returns.

  Attributes:
    shift: unused; TensorFlow decides where arrays begin.
    types: int, for how many of `gpu_device.TYPES` the device has kernels.
  """

  def __init__(self, operations, device):
    """Opens nothing yet.

    Args:
      operations: the module of tf.load_op_library.
      device: str, such as "/GPU:0".
    """
    self._operations = operations
    self._device = device
    kind = tf.DeviceSpec.from_string(device).device_type
    self.types = sum(
        kernel.device_type == kind for kernel in
        registry.get_registered_kernels_for_op("BertBiasGelu").kernel)
    self.shift = 0
    self._numbers = itertools.count(1)
    self._bytes = {}
    self._arrays = {}

  # What gpu_cases.py asks of a GPU.

  def empty(self, shape, kind):
    array = gpu_device.Array(next(self._numbers), kind, shape)
    self._arrays[array.pointer] = array
    self.poison(array)
    return array

  def array(self, values, kind):
    array = self.empty(np.shape(values), kind)
    self._bytes[array.pointer] = gpu_device.encode(values, kind)
    return array

  def poison(self, array):
    self._bytes[array.pointer] = b"\xff" * array.bytes

  def raw(self, array):
    return self._bytes[array.pointer]

  def wait(self):
    pass

  def release(self):
    self._bytes, self._arrays = {}, {}

  def ask(self, name, *unused):
    """Operations make their own scratch memory."""
    del name
    return 8

  def call(self, name, *arguments):
    """Runs a kernel's operation.

    Raises:
      gpu_device.GpuError: if that fails.
    """
    if name == "harness_copy":
      target, source, _ = arguments
      self._bytes[target.pointer] = self._bytes[source.pointer]
      return
    operation = getattr(self, "_" + name[len("bert_gpu_"):])
    with tf.Graph().as_default(), tf.device(self._device):
      feeds = {}
      results = operation(lambda array: self._fed(array, feeds), *arguments)
      config = tf.ConfigProto()
      config.gpu_options.allow_growth = True
      try:
        with tf.Session(config=config) as session:
          session.run(tf.global_variables_initializer(), feeds)
          found = session.run([tensor for _, tensor in results], feeds)
      except tf.errors.OpError as error:
        # What follows names the node; 2.15 puts lines before it, too.
        raise gpu_device.GpuError(
            str(error).split("\n\t [[")[0].splitlines()[-1])
    for (array, _), values in zip(results, found):
      if values.nbytes != array.bytes:
        raise gpu_device.GpuError("%s: an output of shape %s, not %s" % (
            name, values.shape, array.shape))
      self._bytes[array.pointer] = values.tobytes()

  def _fed(self, array, feeds):
    """Returns a placeholder that gets an array's values."""
    dtype = _DTYPES[array.kind]
    tensor = tf.placeholder(dtype, array.shape)
    feeds[tensor] = np.frombuffer(
        self.raw(array), dtype.as_numpy_dtype).reshape(array.shape)
    return tensor

  # The operations: those of gpu_kernels.h, and its order of arguments. `fed`
  # makes a tensor of an array. They return [(array, tensor)].

  def _bias_gelu(self, fed, _, x, bias, rows, width, exact, y, stream):
    del rows, width, stream
    return [(y, self._operations.bert_bias_gelu(
        x=fed(x), bias=fed(bias), exact=bool(exact)))]

  def _bias_gelu_grad(self, fed, _, dy, x, bias, rows, width, exact, scratch,
                      dx, dbias, stream):
    del rows, width, scratch, stream
    return list(zip((dx, dbias), self._operations.bert_bias_gelu_grad(
        dy=fed(dy), x=fed(x), bias=fed(bias), exact=bool(exact))))

  def _dropout_add_norm(self, fed, _, x, bias, residual, gamma, beta, dropout,
                        rows, width, z, mean, scale, y, stream):
    del rows, width, stream
    return list(zip((y, z, mean, scale),
                    self._operations.bert_dropout_add_norm(
                        x=fed(x), bias=fed(bias), residual=fed(residual),
                        gamma=fed(gamma), beta=fed(beta), **_mask(dropout))))

  def _dropout_add_norm_grad(self, fed, _, dy, z, mean, scale, gamma, dropout,
                             rows, width, scratch, dx, dz, dbias, dgamma,
                             dbeta, stream):
    del rows, width, scratch, stream
    return list(zip((dx, dz, dbias, dgamma, dbeta),
                    self._operations.bert_dropout_add_norm_grad(
                        dy=fed(dy), z=fed(z), mean=fed(mean), scale=fed(scale),
                        gamma=fed(gamma), **_mask(dropout))))

  def _attention(self, fed, _, query, key, value, starts, dropout, batch,
                 tokens, heads, size, out, log_sum, stream):
    del batch, tokens, size, stream
    return list(zip((out, log_sum), self._operations.bert_attention(
        query=fed(query), key=fed(key), value=fed(value), starts=fed(starts),
        heads=heads, **_mask(dropout))))

  def _attention_grad(self, fed, _, dout, query, key, value, out, log_sum,
                      starts, dropout, batch, tokens, heads, size, scratch,
                      dquery, dkey, dvalue, stream):
    del batch, tokens, size, scratch, stream
    return list(zip((dquery, dkey, dvalue),
                    self._operations.bert_attention_grad(
                        dout=fed(dout), query=fed(query), key=fed(key),
                        value=fed(value), out=fed(out), log_sum=fed(log_sum),
                        starts=fed(starts), heads=heads, **_mask(dropout))))

  def _cross_entropy(self, fed, _, logits, bias, labels, rows, classes, loss,
                     log_sum, stream):
    del rows, classes, stream
    return list(zip((loss, log_sum), self._operations.bert_cross_entropy(
        logits=fed(logits), bias=fed(bias), labels=fed(labels))))

  def _cross_entropy_grad(self, fed, _, dloss, logits, bias, labels, log_sum,
                          rows, classes, scratch, dlogits, dbias, stream):
    del rows, classes, scratch, stream
    return list(zip((dlogits, dbias), self._operations.bert_cross_entropy_grad(
        dloss=fed(dloss), logits=fed(logits), bias=fed(bias),
        labels=fed(labels), log_sum=fed(log_sum))))

  def _adam(self, fed, parameters, count, step, stream):
    del stream
    return self._update(fed, parameters, count, step, {})

  def _lamb(self, fed, parameters, count, step, scratch, stream):
    del scratch, stream
    return self._update(fed, parameters, count, step, dict(
        adapt=[bool(one.adapt) for one in parameters],
        **{name: self._scalar(fed, getattr(step, name))
           for name in ("correction_1", "correction_2")}))

  def _scalar(self, fed, pointer):
    return tf.reshape(fed(self._arrays[pointer]), [])

  def _update(self, fed, parameters, count, step, more):
    """An update of variables, some of which are being read meanwhile."""
    arrays = {name: [self._arrays[getattr(one, name)] for one in parameters]
              for name in "wmvg"}
    variables = {
        name: [tf.get_variable("%s%d" % (name, i), initializer=fed(array),
                               use_resource=True)
               for i, array in enumerate(arrays[name])] for name in "wmv"}
    handles = {name: [one.handle for one in variables[name]] for name in "wmv"}
    read = [variables["w"][i].read_value() for i in range(0, count, 2)]
    update = (self._operations.bert_lamb if more else
              self._operations.bert_adam)
    with tf.control_dependencies(read):
      done = update(
          variable=handles["w"], m=handles["m"], v=handles["v"],
          gradient=[fed(array) for array in arrays["g"]],
          rate=self._scalar(fed, step.rate),
          gradient_scale=self._scalar(fed, step.gradient_scale),
          decay=[one.decay for one in parameters], beta_1=step.beta_1,
          beta_2=step.beta_2, epsilon=step.epsilon, **more)
    with tf.control_dependencies([done]):
      results = [(array, variable.read_value()) for name in "wmv"
                 for array, variable in zip(arrays[name], variables[name])]
      # What was read before must not have changed under its reader. An
      # assertion's text has no place on a GPU.
      with tf.device("/CPU:0"):
        unchanged = [
            tf.debugging.assert_equal(before, fed(arrays["w"][2 * i]))
            for i, before in enumerate(read)]
    with tf.control_dependencies(unchanged):
      return [(array, tf.identity(tensor)) for array, tensor in results]

  def _global_norm(self, fed, tensors, count, scratch, norm, stream):
    del count, scratch, stream
    return [(norm, self._operations.bert_global_norm(
        tensors=[fed(self._arrays[one.values]) for one in tensors]))]


def _mask(dropout):
  """Returns the arguments of an operation with dropout."""
  return dict(seed=tf.constant([dropout.key, dropout.counter], tf.int64),
              rate=dropout.zeroes / 65536.0)


def check(session, groups, quick=False):
  """Checks kernels.

  Args:
    session: `Session`.
    groups: names of `gpu_cases.groups()`.
    quick: bool, whether every third shape will do.

  Returns:
    [row], see `gpu_cases.check_case`.
  """
  rows = []
  for group in groups:
    kernel, shapes, _ = gpu_cases.groups()[group]
    for kind in gpu_cases.kinds_of(kernel, session.types):
      for arguments in shapes[::3 if quick else 1]:
        rows.append(gpu_cases.check_case(session, kernel, kind, arguments, 0))
        session.release()
  return rows


def _open(options):
  """Returns the `Session` of the command line.

  Raises:
    ValueError, tf.errors.OpError: with what is amiss.
  """
  if "GPU" in options.device and not stack.gpu_available():
    raise ValueError("TensorFlow has no GPU here")
  if not options.library and library.fault():
    raise ValueError("the kernels are " + library.fault())
  session = Session(tf.load_op_library(options.library) if options.library
                    else library.load(), options.device)
  if not session.types:
    raise ValueError("the kernels were not built for %s" % options.device)
  return session


def main(arguments=None):
  """Returns the exit code."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--device", default="/GPU:0",
                      help="TensorFlow's name (default %(default)s)")
  parser.add_argument("--library", help="file with the operations; default: "
                      "that of this checkout")
  parser.add_argument("--only", nargs="+", default=list(gpu_cases.groups()),
                      choices=list(gpu_cases.groups()), metavar="KERNEL",
                      help=", ".join(gpu_cases.groups()))
  parser.add_argument("--quick", action="store_true", help="fewer shapes")
  options = parser.parse_args(arguments)
  stack.configure()
  try:
    session = _open(options)
  except (ValueError, tf.errors.OpError) as error:
    print("op_check: %s" % str(error).splitlines()[0], file=sys.stderr)
    return library.CHECK_UNKNOWN
  rows = check(session, options.only, options.quick)
  bad = [row for row in rows if row.get("fault")]
  for row in bad:
    print("FAIL %s: %s" % (row["check"], row["fault"]))
  print("%d of %d checks of operations on %s passed" % (
      len(rows) - len(bad), len(rows), options.device))
  return 1 if bad else 0


if __name__ == "__main__":
  sys.exit(main())
