"""How long a run took and how many sentences it did a second.

No TensorFlow: a serving client reports the same lines.
"""

import time

from utils.logs import LOGGER


class Stopwatch(object):
  """Time and sentences of a run, with and without its start-up.

  The first step holds graph optimisation and memory allocation, so rates
  leave it out wherever there is a second one.

  Args:
    batch_size: sentences of a step.
    has_startup: whether the first step is such a one; else there is none.
  """

  def __init__(self, batch_size, has_startup=True):
    self._batch_size = batch_size
    self._has_startup = has_startup
    self._start = time.monotonic()
    self._first_end = None
    self._last_end = None
    self._first_sentences = 0
    self.sentences = 0

  def step(self, sentences=None):
    """Counts one finished step of `sentences` (default: a batch)."""
    self.sentences += self._batch_size if sentences is None else sentences
    self._last_end = time.monotonic()
    if self._has_startup and self._first_end is None:
      self._first_end = self._last_end
      self._first_sentences = self.sentences

  def add_ranks(self, sentences):
    """Counts the sentences of all ranks, of which this one did its share.

    Args:
      sentences: list of what each rank counted.
    """
    if self.sentences:
      self._first_sentences *= sum(sentences) / self.sentences
    self.sentences = sum(sentences)

  @property
  def total(self):
    """Seconds from the start to the last step."""
    return (self._last_end or time.monotonic()) - self._start

  @property
  def without_startup(self):
    """Seconds after the first step, or `total` if there was only one."""
    if self._first_end is None or self._last_end <= self._first_end:
      return self.total
    return self._last_end - self._first_end

  @property
  def rate(self):
    """Sentences a second without the start-up."""
    counted = self.sentences
    if self.without_startup != self.total:
      counted -= self._first_sentences
    return counted / max(self.without_startup, 1e-9)

  def log(self, kind, rank=0):
    """Logs the closing lines that launchers and users look for."""
    LOGGER.info(
        "%d Total %s Time = %0.2f %s Time W/O start up overhead = %0.2f "
        "Sentences processed = %d", rank, kind, self.total, kind,
        self.without_startup, self.sentences)
    LOGGER.info("%d %s Performance = %0.4f sentences/sec", rank, kind,
                self.rate)
