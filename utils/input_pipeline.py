"""From Python generators of batches to tf.data, errors kept readable."""

import collections
import contextlib

import tensorflow.compat.v1 as tf

# Batches that wait ready for the accelerator.
PREFETCH = 4


class Source(object):
  """Batches for one input_fn; keeps the exception that ended them.

  tf.data turns an exception in a generator into an error of the graph with
  a traceback for a message. `surfaced` raises the original instead.

  Args:
    make: function without arguments that returns an iterator of batches.
    inspect: function of a batch that raises the UserError that tells why the
      graph cannot take it. Called only where the graph has refused one, so it
      may be slow.
    batches_a_step: number of batches that one step of training takes.
  """

  def __init__(self, make, inspect=None, batches_a_step=1):
    self._make = make
    self._inspect = inspect
    # By the time the graph's refusal is heard, more batches have been read.
    self._latest = collections.deque(
        maxlen=4 * PREFETCH + 4 * (batches_a_step - 1) if inspect else 0)
    self.failure = None

  def __call__(self):
    try:
      for batch in self._make():
        self._latest.append(batch)
        yield batch
    except Exception as error:  # pylint: disable=broad-except
      self.failure = error
      raise

  def explain(self):
    """Raises what is wrong with one of the latest batches, if anything is."""
    for batch in list(self._latest):
      self._inspect(batch)


def in_steps(dataset, batches_a_step):
  """Returns a dataset of batches as one of steps, some of them ready ahead.

  Args:
    dataset: tf.data.Dataset of dicts of tensors [batch, ...].
    batches_a_step: int k; above 1 the tensors become [k, batch, ...].
  """
  dataset = dataset.prefetch(PREFETCH)
  if batches_a_step == 1:
    return dataset
  return dataset.batch(batches_a_step, drop_remainder=True).prefetch(1)


@contextlib.contextmanager
def surfaced(source):
  """Raises the source's own exception or explanation instead of the graph's."""
  try:
    yield
  except Exception as error:
    if source.failure is not None:
      raise source.failure from None
    if isinstance(error, tf.errors.InvalidArgumentError):
      source.explain()
    raise


def is_example(payload):
  """Says whether TensorFlow can find its way through a tf.train.Example.

  TensorFlow 1.15 quotes a record that it cannot read in its complaint, and
  dies of a segmentation fault where that is not UTF-8. Here the lengths of the
  outer messages are followed, which takes some microseconds; for what is wrong
  inside the complaint names the feature alone.

  Args:
    payload: the serialized record.
  """
  size = len(payload)

  def field(tag, at):
    """Returns where a field's content begins and ends; -1, -1 if not `tag`."""
    if payload[at] != tag:
      return -1, -1
    length, shift = 0, 0
    while True:
      at += 1
      length |= (payload[at] & 0x7f) << shift
      if payload[at] < 0x80:
        return at + 1, at + 1 + length
      shift += 7

  try:
    at, end = field(0x0a, 0)  # Example.features
    if end != size:
      return False
    while at < size:
      name, end = field(0x0a, at)  # Features.feature, an entry of a map
      _, name_end = field(0x0a, name)
      _, at = field(0x12, name_end)
      if not 0 < at == end:
        return False
  except IndexError:
    return False
  return at == size
