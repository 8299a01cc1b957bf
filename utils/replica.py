"""The processes ("ranks") that train one model together, through Horovod.

The only place that imports Horovod, and only for a run that asks for it. What
a rank has to know about the others it asks here; a run of one process gets the
same answers without Horovod: rank 0 of 1.

Ranks call the collective functions (`gather`, `from_chief`, the exchange of
`sums`) in the same order, or all of them wait for ever.
"""

import atexit
import contextlib
import itertools
import os
import pickle
import shutil
import socket
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf

from utils import stack
from utils.errors import PeerError
from utils.errors import UserError
from utils.errors import one_line

# What launchers tell a process of its place, in the order of trust.
_RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SIZE = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

_hvd = None
_calls = itertools.count()


def _from_environment(names, default):
  for name in names:
    if os.environ.get(name, "").isdigit():
      return int(os.environ[name])
  return default


def start(horovod):
  """Joins the other ranks, if there are any.

  Args:
    horovod: bool, whether the run was asked to use Horovod.

  Raises:
    UserError: if it was started as several processes but not for Horovod, or
      if Horovod cannot be used.
  """
  global _hvd
  launched = _from_environment(_SIZE, 1)
  if not horovod:
    if launched > 1:
      raise UserError(
          "started as %d processes, which would all write the same run: add "
          "--horovod, or start it without mpirun or horovodrun" % launched)
    return
  try:
    import horovod.tensorflow as hvd  # pylint: disable=g-import-not-at-top
    hvd.init()
  except (ImportError, AttributeError, ValueError) as error:
    raise UserError(
        "--horovod: this Python has no Horovod that works with TensorFlow %s "
        "(%s): run bash scripts/setup.sh --stack %s"
        % (tf.__version__, one_line(error)[:200], stack.NAME))
  _hvd = hvd
  atexit.register(hvd.shutdown)


def rank():
  """Returns this process's number, 0 to `size()` - 1."""
  return _hvd.rank() if _hvd else 0


def size():
  """Returns the number of processes."""
  return _hvd.size() if _hvd else 1


def local_rank():
  """Returns this process's number among those on the same machine."""
  return _hvd.local_rank() if _hvd else 0


def local_size():
  """Returns the number of processes on this machine."""
  return _hvd.local_size() if _hvd else 1


def is_chief():
  """Says whether this is the rank that writes files and the log."""
  return rank() == 0


def version():
  """Returns Horovod's version, or None for a run without it."""
  if _hvd is None:
    return None
  import horovod  # pylint: disable=g-import-not-at-top
  return horovod.__version__


def check_devices():
  """Raises UserError if there are more ranks here than GPUs."""
  gpus = len(tf.config.experimental.list_physical_devices("GPU"))
  if gpus and local_size() > gpus:
    raise UserError(
        "%d ranks on %s, which has %d GPUs: start one rank a GPU (launchers: "
        "--num_gpus %d)" % (local_size(), socket.gethostname(), gpus, gpus))


@contextlib.contextmanager
def peers():
  """Turns the failure of another rank into one line."""
  try:
    yield
  except Exception as error:
    if not is_peer_failure(error):
      raise
    raise PeerError("rank %d: another rank ended or cannot be reached (%s)"
                    % (rank(), one_line(error)[:150])) from None


def is_peer_failure(error):
  """Says whether an exception means that another rank is gone."""
  text = str(error)
  return _hvd is not None and isinstance(
      error, (tf.errors.OpError, RuntimeError)) and (
          "Horovod has been shut down" in text
          or "HorovodInternalError" in type(error).__name__
          or "Horovod" in text and "failed" in text
          or "Connection closed by peer" in text
          or "Connection reset by peer" in text)


def _all_arrays(array):
  """Returns [the array of each rank]; first dimensions may differ."""
  name = "replica.%d" % next(_calls)
  with peers(), tf.Graph().as_default():
    lengths = _hvd.allgather(tf.constant([len(array)], tf.int64),
                             name=name + ".lengths")
    values = _hvd.allgather(tf.constant(array), name=name)
    # No GPU: its memory is the training session's.
    with tf.Session(config=tf.ConfigProto(device_count={"GPU": 0})) as session:
      lengths, values = session.run([lengths, values])
  return np.split(values, np.cumsum(lengths)[:-1])


def gather_arrays(array):
  """Returns the rows of all ranks' arrays, rank 0's first.

  Args:
    array: numpy array [rows, ...]; the number of rows may differ by rank.
  """
  if size() == 1:
    return array
  return np.concatenate(_all_arrays(array))


def gather(value):
  """Returns [the value of each rank]; any picklable value, on all ranks."""
  if size() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value, protocol=4), np.uint8)
  return [pickle.loads(part.tobytes()) for part in _all_arrays(data)]


def from_chief(value):
  """Returns rank 0's value on all ranks; what others hand in is ignored."""
  return gather(value if is_chief() else None)[0]


def chief_first(make):
  """Returns `make()` of each rank, called on the others once rank 0 is done.

  For what is found in a cache the second time.
  """
  value = make() if is_chief() else None
  from_chief(None)
  return value if is_chief() else make()


def check_agreement(description):
  """Raises UserError, on all ranks, if they were not started alike.

  Args:
    description: {part: {name: value}}; the first difference is named.
  """
  first, *others = gather(description)
  for number, other in enumerate(others, 1):
    for part, values in first.items():
      for name in sorted(set(values) | set(other[part])):
        if values.get(name) != other[part].get(name):
          raise UserError(
              "the ranks differ in %s: %s is %s on rank 0 and %s on rank %d: "
              "start all of them with the same command and the same software"
              % (part, name, values.get(name), other[part].get(name), number))


def thread_count():
  """Returns the number of cores for this rank's computations.

  Ranks that are bound to cores of their own have all of those; ranks that
  share cores divide them.
  """
  mine = os.sched_getaffinity(0)
  key = (socket.gethostname(), sorted(mine))
  sharing = gather(key).count(key)
  return max(1, len(mine) // sharing)


# In a graph -----------------------------------------------------------------


def sum_over_ranks(tensor, name):
  """Returns the sum of all ranks' tensors of one shape.

  Args:
    tensor: dense tensor.
    name: tells the ranks which tensors belong together.
  """
  if size() == 1:
    return tensor
  return _hvd.allreduce(tensor, op=_hvd.Sum, name=name)


def exchange(allreduce_fp16=False):
  """Returns the `exchange` of optimization.build_update; None for one rank.

  Each gradient is sent as soon as the backward pass has made it, several of
  them in one message (HOROVOD_FUSION_THRESHOLD).

  Args:
    allreduce_fp16: bool, whether gradients travel as float16.
  """
  if size() == 1:
    return None
  compression = (_hvd.Compression.fp16 if allreduce_fp16
                 else _hvd.Compression.none)

  def summed(grads, scalars):
    return [_hvd.allreduce(grad, op=_hvd.Sum, name="gradient.%d" % number,
                           compression=compression)
            for number, grad in enumerate(grads)], sum_over_ranks(
                scalars, "scalars")
  return summed


def mean_over_ranks(values, weights, name):
  """Returns a streaming weighted mean over the batches of all ranks.

  Args:
    values: float32 tensor [n] of one batch.
    weights: float32 tensor [n].
    name: of the mean.

  Returns:
    (the mean, which all ranks have to compute together; the mean of this
    rank's batches after taking in one more): a pair of float32 scalars, as
    Estimator's metrics are.
  """
  def mean(sums):
    return tf.cast(tf.math.divide_no_nan(sums[0], sums[1]), tf.float32)


  with tf.variable_scope(name):
    sums = tf.get_variable(
        "sums", [2], tf.float64, tf.zeros_initializer(), trainable=False,
        collections=[tf.GraphKeys.LOCAL_VARIABLES])
  batch = tf.stack([tf.reduce_sum(tf.cast(values * weights, tf.float64)),
                    tf.reduce_sum(tf.cast(weights, tf.float64))])
  return (mean(sum_over_ranks(sums.read_value(), name)),
          mean(tf.convert_to_tensor(sums.assign_add(batch))))


class BroadcastHook(tf.train.SessionRunHook):
  """Gives every rank the values that rank 0 begins with.

  Rank 0 alone reads checkpoints, so that no folder has to be shared, and no
  rank can run on weights that it initialised itself. Comes before the hooks
  that read variables.
  """

  def begin(self):
    self._operation = (_hvd.broadcast_variables(tf.global_variables(), 0)
                       if size() > 1 else None)

  def after_create_session(self, session, coord):
    if self._operation is not None:
      with peers():
        session.run(self._operation)


# Folders --------------------------------------------------------------------


def own_folder(folder):
  """Returns where Estimator may look for checkpoints and leave files.

  Args:
    folder: the run's folder, which is rank 0's.

  Returns:
    `folder` on rank 0, else an empty one that ends with the process.
  """
  if is_chief():
    return folder
  own = tempfile.mkdtemp(prefix="bert_rank_")
  atexit.register(shutil.rmtree, own, ignore_errors=True)
  return own
