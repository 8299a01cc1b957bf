"""Session hooks: progress, metrics, the finite guard and guarded saving."""

import os
import time

import tensorflow.compat.v1 as tf

from utils import checkpoints
from utils import errors
from utils.errors import UserError
from utils.logs import FILE_ONLY
from utils.logs import LOGGER
from utils.logs import progress
from utils.metrics import MetricsWriter


class Stopwatch(object):
  """Time and sentences of a run, with and without its start-up.

  The first step holds graph optimisation and memory allocation, so rates
  leave it out wherever there is a second one.
  """

  def __init__(self, batch_size):
    self._batch_size = batch_size
    self._start = time.time()
    self._first_end = None
    self._last_end = None
    self._first_sentences = 0
    self.sentences = 0

  def step(self, sentences=None):
    """Counts one finished step of `sentences` (default: a batch)."""
    self.sentences += self._batch_size if sentences is None else sentences
    self._last_end = time.time()
    if self._first_end is None:
      self._first_end = self._last_end
      self._first_sentences = self.sentences

  @property
  def total(self):
    """Seconds from the start to the last step."""
    return (self._last_end or time.time()) - self._start

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


def _human(values):
  shown = []
  for tag, value in values.items():
    pattern = "%s %.3g" if tag == "learning_rate" else "%s %.4f"
    shown.append(pattern % (tag.replace("_", " "), value))
  return "  ".join(shown)


class MetricsHook(tf.train.SessionRunHook):
  """Reads the scalars of each step; writes a row, a line and summaries.

  Args:
    scalars: {tag: scalar tensor} with `step` (after the update), `loss`,
      `is_finite` and what else is to be reported.
    folder: where metrics.jsonl and TensorBoard's events go.
    total_steps: last step of the run.
    every_steps: steps between rows; the first and last step get one too.
    batch_size: sentences a step.
    log_losses: whether rows also become lines of the log.

  Raises:
    UserError: after a step whose loss or gradient was not finite. The
      graph has not applied it.
  """

  def __init__(self, scalars, folder, total_steps, every_steps, batch_size,
               log_losses=True):
    self._scalars = scalars
    self._folder = folder
    self._total = total_steps
    self._every = every_steps
    self._batch_size = batch_size
    self._log_losses = log_losses
    self.stopwatch = None

  def begin(self):
    self._events = tf.summary.FileWriter(self._folder)

  def after_create_session(self, session, coord):
    step = int(session.run(tf.train.get_global_step()))
    self._writer = MetricsWriter(self._folder, step)
    if step:
      # Readers drop what an earlier, killed run wrote beyond this step.
      self._events.add_session_log(
          tf.SessionLog(status=tf.SessionLog.START), step)
    self._bar = progress(self._total, "step", "training", initial=step)
    self.stopwatch = Stopwatch(self._batch_size)
    self._mark = (time.time(), 0)
    self._first = True

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._scalars)

  def after_run(self, run_context, run_values):
    values = dict(run_values.results)
    step = int(values.pop("step"))
    if not values.pop("is_finite"):
      raise UserError(
          "the loss or gradient after step %d is not finite (loss %g, "
          "gradient norm %g): nothing of it was applied or saved; lower the "
          "learning rate or look at the records of that batch"
          % (step, values["loss"], values.get("grad_norm", float("nan"))))
    self.stopwatch.step()
    self._bar.update(1)
    if self._first or step % self._every == 0 or step >= self._total:
      self._report(step, {k: float(v) for k, v in values.items()})
    self._first = False

  def _report(self, step, values):
    now, sentences = time.time(), self.stopwatch.sentences
    rate = (sentences - self._mark[1]) / max(now - self._mark[0], 1e-9)
    self._mark = (now, sentences)
    values["sentences_per_sec"] = round(rate, 3)
    self._writer.write("train", step=step, **values)
    self._events.add_summary(tf.Summary(value=[
        tf.Summary.Value(tag=tag, simple_value=value)
        for tag, value in values.items()]), step)
    if self._log_losses:
      LOGGER.info("step %d/%d  %s", step, self._total, _human(values),
                  extra=None if self._bar.disable else FILE_ONLY)
    if not self._bar.disable:
      self._bar.set_postfix_str(
          "loss %.4f, %.1f sentences/s" % (values["loss"], rate))

  def end(self, session):
    self._bar.close()
    self._events.close()
    watch = self.stopwatch
    watch.log("Training")
    self._writer.write(
        "summary", step=int(session.run(tf.train.get_global_step())),
        seconds=round(watch.total, 3),
        seconds_without_startup=round(watch.without_startup, 3),
        sentences=watch.sentences, sentences_per_sec=round(watch.rate, 3))
    self._writer.close()


class CheckpointHook(tf.train.SessionRunHook):
  """Saves every `every_steps` steps and at the end, and reads it back.

  Runs after `MetricsHook`, which has raised by then if the step was not
  finite, so no such step is ever saved.

  Args:
    step: scalar int64 tensor, the step after the update.
    folder: folder of the run.
    every_steps: steps between checkpoints.
    keep: how many checkpoints stay; at least two, since the one before the
      newest must outlive the reading back.
  """

  def __init__(self, step, folder, every_steps, keep):
    self._step = step
    self._folder = folder
    self._every = every_steps
    self._keep = max(keep, 2)
    self._saved = None

  def begin(self):
    # `set_newest` names and rotates them, once the newest is known to be good.
    self._saver = tf.train.Saver()

  def after_create_session(self, session, coord):
    self._saved = int(session.run(tf.train.get_global_step()))

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._step)

  def after_run(self, run_context, run_values):
    step = int(run_values.results)
    if step % self._every == 0:
      self._save(run_context.session, step)

  def end(self, session):
    self._save(session, int(session.run(tf.train.get_global_step())))

  def _save(self, session, step):
    if step == self._saved:
      return
    prefix = os.path.join(self._folder, checkpoints.SAVED_NAME)
    try:
      path = self._saver.save(session, prefix, global_step=step,
                              write_meta_graph=False, write_state=False)
    except (tf.errors.OpError, ValueError, OSError) as error:
      checkpoints.remove("%s-%d" % (prefix, step))
      raise UserError(
          "cannot save a checkpoint at step %d in %s (%s): the checkpoints "
          "before it are whole; %s and run the same command again"
          % (step, self._folder, errors.one_line(error)[:200],
             "free some space" if errors.disk_full(error)
             else "mend the cause"))
    self._check(path)
    checkpoints.set_newest(self._folder, path, self._keep)
    self._saved = step
    LOGGER.info("saved %s", path)

  def _check(self, path):
    """Reads a checkpoint back; removes it if it cannot be gone on from."""
    try:
      checkpoints.verify(path)
    except UserError as error:
      checkpoints.remove(path)
      raise UserError(
          "%s: it was removed and those before it stay; lower "
          "--learning_rate if numbers grew too large, else look at the disk"
          % error)
