"""Session hooks: progress, metrics, the finite guard and guarded saving."""

import math
import os
import shutil
import time

import tensorflow.compat.v1 as tf

from utils import checkpoints
from utils import errors
from utils.errors import UserError
from utils.logs import FILE_ONLY
from utils.logs import LOGGER
from utils.logs import progress
from utils.metrics import MetricsWriter


def _human(values):
  shown = []
  for tag, value in values.items():
    pattern = "%s %.3g" if tag == "learning_rate" else "%s %.4f"
    shown.append(pattern % (tag.replace("_", " "), value))
  return "  ".join(shown)


# Updates in a row that may be skipped: more would be a run that learns nothing.
MOST_SKIPPED = 100


class FiniteGuardHook(tf.train.SessionRunHook):
  """Tells of updates that the graph has not applied, or ends the run.

  Comes before all hooks that write. All ranks see the same values.

  Args:
    nan_policy: "stop" or "skip": what follows a loss or gradient that is not
      finite. An overflow that a smaller loss scale mends is always skipped.

  Raises:
    UserError: where the run is not to go on.
  """

  def __init__(self, nan_policy):
    self._scalars = None
    self._policy = nan_policy
    self._in_a_row = 0
    self.skipped = 0

  def watch(self, scalars):
    """Takes {tag: scalar tensor} of the graph that is trained next.

    It has `step`, `is_finite`, `loss`, `grad_norm` and, where there is a loss
    scale, `loss_scale`.
    """
    self._scalars = {tag: scalars[tag] for tag in (
        "step", "is_finite", "loss", "grad_norm", "loss_scale")
                     if tag in scalars}

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._scalars)

  def after_run(self, run_context, run_values):
    values = run_values.results
    if values["is_finite"]:
      self._in_a_row = 0
      return
    scale = float(values.get("loss_scale", 1.0))
    what = "the update after step %d" % values["step"]
    found = "loss %g, gradient norm %g" % (values["loss"], values["grad_norm"])
    if scale > 1.0 and math.isfinite(values["loss"]):
      LOGGER.warning(
          "skipped %s on all ranks: a gradient overflowed at loss scale %g, "
          "which is %g now", what, scale, scale / 2)
    elif self._policy == "skip":
      LOGGER.warning("skipped %s on all ranks: not finite (%s)", what, found)
    else:
      raise UserError(
          "%s is not finite (%s): nothing of it was applied or saved; lower "
          "the learning rate, look at the records of that batch, or give "
          "--nan_policy=skip" % (what.replace("update", "loss or gradient"),
                                 found))
    self.skipped += 1
    self._in_a_row += 1
    if self._in_a_row >= MOST_SKIPPED:
      raise UserError(
          "%d updates in a row were not finite, the last one after step %d "
          "(%s): nothing of them was applied or saved; lower the learning rate "
          "and go on from an earlier checkpoint"
          % (self._in_a_row, values["step"], found))


class MetricsHook(tf.train.SessionRunHook):
  """Reads the scalars of each step; writes a row, a line and summaries.

  Args:
    scalars: {tag: scalar tensor} with `step` (after the update), `loss`,
      `is_finite` and what else is to be reported.
    folder: where metrics.jsonl and TensorBoard's events go.
    total_steps: last step of the run.
    every_steps: steps between rows; the first and last step get one too.
    stopwatch: `Stopwatch` of the whole training.
    log_losses: whether rows also become lines of the log.
  """

  def __init__(self, scalars, folder, total_steps, every_steps, stopwatch,
               log_losses=True):
    self._scalars = scalars
    self._folder = folder
    self._total = total_steps
    self._every = every_steps
    self._log_losses = log_losses
    self.stopwatch = stopwatch

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
    self._mark = (time.time(), self.stopwatch.sentences)
    self._first = True

  def before_run(self, run_context):
    return tf.train.SessionRunArgs(self._scalars)

  def after_run(self, run_context, run_values):
    values = dict(run_values.results)
    step = int(values.pop("step"))
    is_finite = values.pop("is_finite")
    self.stopwatch.step()
    if not is_finite:
      return
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
    self._writer.close()


def close_training(folder, step, stopwatch, skipped):
  """Writes a finished training's closing lines and its row of metrics.

  Args:
    folder: the run's folder.
    step: the last step.
    stopwatch: `Stopwatch` of the training.
    skipped: number of updates that were not finite.
  """
  stopwatch.log("Training")
  writer = MetricsWriter(folder, step)
  writer.write(
      "summary", step=step, seconds=round(stopwatch.total, 3),
      seconds_without_startup=round(stopwatch.without_startup, 3),
      sentences=stopwatch.sentences,
      sentences_per_sec=round(stopwatch.rate, 3), skipped_updates=skipped)
  writer.close()


def check_space(folder, keep, variables):
  """Raises UserError if the disk cannot take two checkpoints.

  A line of warning if it cannot take as many as are to be kept, with those
  that are there already.

  Args:
    folder: the run's folder.
    keep: int, checkpoints to keep.
    variables: list of variables that a checkpoint holds.
  """
  size = sum(v.dtype.size * v.shape.num_elements() for v in variables)
  free = shutil.disk_usage(folder).free
  there = len(checkpoints.saved_in(folder))
  text = "%.2f GB are free for %s, and a checkpoint takes %.2f GB" % (
      free / 1e9, folder, size / 1e9)
  if free < 2 * size:
    raise UserError("%s: free some space, since a run needs two at least"
                    % text)
  # The one before the oldest is removed once the newest has been read back.
  if free < (keep + 1 - min(there, keep)) * size:
    LOGGER.warning("%s: too little for --keep_checkpoint_max=%d", text, keep)


class CheckpointHook(tf.train.SessionRunHook):
  """Saves every `every_steps` steps and at the end, and reads it back.

  Runs after `FiniteGuardHook`, which has raised by then where a step that
  was not finite ends the run; a skipped one has changed nothing to save.

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
    check_space(self._folder, self._keep, tf.global_variables())
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
