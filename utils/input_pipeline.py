"""From Python generators of batches to tf.data, errors kept readable."""

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
  """

  def __init__(self, make):
    self._make = make
    self.failure = None

  def __call__(self):
    try:
      for batch in self._make():
        yield batch
    except Exception as error:  # pylint: disable=broad-except
      self.failure = error
      raise


@contextlib.contextmanager
def surfaced(source):
  """Raises the source's own exception in place of the graph's."""
  try:
    yield
  except Exception:
    if source.failure is not None:
      raise source.failure from None
    raise
