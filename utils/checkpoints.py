"""Checkpoints: found by what users call them, checked before they are used."""

import glob
import logging
import os
import re
import shutil
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from utils import files
from utils.errors import UserError
from utils.errors import one_line

# What a run's own checkpoints are called, before "-<step>".
SAVED_NAME = "model.ckpt"

_LOGGER = logging.getLogger("bert")
# Truncated data is an IndexError on the tf2 stack.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, IndexError)
# What a run keeps beside its weights.
_NO_WEIGHT = re.compile(r"/adam_[mv]$|^(global_step|records_consumed|"
                        r"current_loss_scale|good_steps)$")


class Report(typing.NamedTuple):
  """What `init_from` found; lists of variable names.

  Attributes:
    loaded: in the model and in the checkpoint.
    missing: in the model only; they keep their initial values.
    extra: in the checkpoint only, without optimizer slots and step.
    fresh: those of `missing` that the caller said to expect.
    prefix: the checkpoint.
  """
  loaded: list
  missing: list
  extra: list
  fresh: list
  prefix: str


def _has_index(prefix):
  return tf.gfile.Exists(prefix + ".index")


def _open(prefix, what="checkpoint"):
  """Returns a reader; UserError if `prefix` names no readable checkpoint."""
  try:
    return tf.train.load_checkpoint(prefix)
  except _UNREADABLE as error:
    raise UserError("%s: %s is not a TensorFlow checkpoint that can be read "
                    "(%s)" % (what, prefix, one_line(error)[:200]))


def resolve(path, flag):
  """Returns the prefix of the checkpoint that `path` means.

  Args:
    path: a prefix ("…/model.ckpt-100"), a folder (its newest checkpoint), or
      "<folder>/model.ckpt" where no such prefix exists (the same).
    flag: name of the flag, for the message.

  Raises:
    UserError: if there is no checkpoint, or it cannot be opened.
  """
  if not path:
    raise UserError("--%s is required" % flag)
  what = "--%s" % flag
  if tf.gfile.IsDirectory(path):
    return _newest_of(path, what)
  if _has_index(path):
    _open(path, what)
    return path
  folder, name = os.path.split(path)
  if name == SAVED_NAME and tf.gfile.IsDirectory(folder or "."):
    return _newest_of(folder or ".", what)
  file_of = re.match(r"(.*)\.(index|meta|data-\d+-of-\d+)$", path)
  if file_of:
    raise UserError("%s: %s is one file of a checkpoint: give %s"
                    % (what, path, file_of.group(1)))
  if tf.gfile.Exists(path):
    raise UserError("%s: %s is not a TensorFlow checkpoint: give the prefix of "
                    "one, or a folder that holds one" % (what, path))
  raise UserError("%s: no checkpoint at %s: neither %s.index nor a folder of "
                  "that name exists" % (what, path, path))


def _newest_of(folder, what):
  prefix = latest(folder)
  if prefix is None:
    raise UserError("%s: folder %s holds no whole checkpoint" % (what, folder))
  return prefix


def _step_of(prefix):
  """Returns the number at the end of a prefix; -1 where there is none."""
  found = re.search(r"-(\d+)$", prefix)
  return int(found.group(1)) if found else -1


def all_in(folder):
  """Returns the prefixes of a folder's checkpoints, newest (step) first."""
  prefixes = [path[:-len(".index")]
              for path in tf.gfile.Glob(os.path.join(folder, "*.index"))]
  return sorted(prefixes, key=lambda prefix: (_step_of(prefix), prefix),
                reverse=True)


def saved_in(folder):
  """Returns those of `all_in` that a run saved, not what users put there."""
  return [prefix for prefix in all_in(folder) if os.path.basename(
      prefix).startswith(SAVED_NAME + "-") and _step_of(prefix) > -1]


def latest(folder):
  """Returns the prefix of the newest whole checkpoint of a folder, or None.

  A damaged one is passed over for the one before it, with a line in the log.
  All tensors of the newest are read for that.
  """
  for prefix in all_in(folder):
    try:
      verify(prefix)
      return prefix
    except UserError as error:
      _LOGGER.warning("%s; looking for the one before it", error)
  return None


def verify(prefix):
  """Reads all tensors of a checkpoint back, which checks their CRCs.

  Raises:
    UserError: if any of them cannot be read, or holds NaN or an infinity.
  """
  reader = _open(prefix)
  for name in sorted(reader.get_variable_to_shape_map()):
    try:
      value = reader.get_tensor(name)
    except _UNREADABLE as error:
      raise UserError("checkpoint %s is damaged: cannot read %s (%s)"
                      % (prefix, name, one_line(error)[:200]))
    if (np.issubdtype(value.dtype, np.floating)
        and not np.isfinite(value).all()):
      raise UserError("checkpoint %s holds numbers in %s that are not finite"
                      % (prefix, name))


def set_newest(folder, prefix, keep=None):
  """Makes `prefix` what TensorFlow restores from a run's folder.

  TensorFlow goes by the file "checkpoint", be what it names damaged or gone.
  The names in it are relative, so that the folder can be moved.

  Args:
    folder: the run's folder.
    prefix: a checkpoint in it; None for none, so that nothing is restored.
    keep: of the run's checkpoints up to this one so many stay; None for all.
  """
  if prefix is None:
    if tf.train.get_checkpoint_state(folder):
      os.remove(os.path.join(folder, "checkpoint"))
    return
  earlier = [path for path in saved_in(folder)
             if _step_of(path) < _step_of(prefix)]
  kept = earlier if keep is None else earlier[:keep - 1]
  names = [os.path.basename(path) for path in [prefix] + kept]
  tf.train.update_checkpoint_state(
      os.path.abspath(folder), names[0],
      all_model_checkpoint_paths=names[::-1])
  for path in earlier[len(kept):]:
    remove(path)


def copy(prefix, folder):
  """Copies a checkpoint into another folder, whole or not at all.

  Returns:
    The prefix of the copy, which is now the only checkpoint of `folder`.
  """
  os.makedirs(folder, exist_ok=True)
  target = os.path.join(folder, os.path.basename(prefix))
  others = [path for path in all_in(folder) if path != target]
  # The index comes last: it is what makes files a checkpoint.
  for path in sorted(glob.glob(glob.escape(prefix) + ".*"),
                     key=lambda path: path.endswith(".index")):
    with open(path, "rb") as stream, files.atomic_write(
        target + path[len(prefix):], binary=True) as copied:
      shutil.copyfileobj(stream, copied)
  verify(target)
  set_newest(folder, target)
  for path in others:
    remove(path)
  return target


def remove(prefix):
  """Removes a checkpoint's files, first the one that makes it count as one."""
  for path in sorted(glob.glob(glob.escape(prefix) + ".*"),
                     key=lambda path: not path.endswith(".index")):
    os.remove(path)


def read_variable(prefix, name, default=None):
  """Returns a variable's value as numpy array; `default` if it is not there."""
  reader = _open(prefix)
  if not reader.has_tensor(name):
    return default
  return reader.get_tensor(name)


def init_from(prefix, tvars, optional_scopes=()):
  """Makes a checkpoint the initial value of the variables that it holds.

  Names and shapes are checked here, before the graph runs.

  Args:
    prefix: the checkpoint.
    tvars: list of variables.
    optional_scopes: beginnings of variable names that the checkpoint need not
      hold, such as "cls/squad".

  Returns:
    `Report`.

  Raises:
    UserError: if a shape differs, or if no variable is found.
  """
  stored = _open(prefix).get_variable_to_shape_map()
  loaded, missing = [], []
  for var in tvars:
    name = re.sub(r":\d+$", "", var.name)
    if name not in stored:
      missing.append(name)
      continue
    if list(stored[name]) != var.shape.as_list():
      raise UserError(
          "checkpoint %s: %s has shape %s, the model's has %s: use the "
          "bert_config.json that belongs to the checkpoint"
          % (prefix, name, list(stored[name]), var.shape.as_list()))
    loaded.append(name)
  if not loaded:
    raise UserError(
        "checkpoint %s holds none of the model's %d variables (it has %s …)"
        % (prefix, len(missing), ", ".join(sorted(stored)[:3])))
  tf.train.init_from_checkpoint(prefix, {name: name for name in loaded})
  return Report(loaded, missing, _extra(stored, loaded),
                [name for name in missing
                 if name.startswith(tuple(optional_scopes))], prefix)


def _extra(stored, loaded):
  """Returns the names of `stored` that are weights and were not loaded."""
  return sorted(name for name in set(stored) - set(loaded)
                if not _NO_WEIGHT.search(name))


def log_report(report, logger):
  """Tells the log what was loaded, and by name what is missing or extra."""
  logger.info("%d variables start from %s", len(report.loaded), report.prefix)
  if report.fresh:
    logger.info("new, not in the checkpoint: %s", ", ".join(report.fresh))
  unexpected = [n for n in report.missing if n not in set(report.fresh)]
  if unexpected:
    logger.warning("MISSING in the checkpoint, they start at random: %s",
                   ", ".join(unexpected))
  if report.extra:
    logger.info("in the checkpoint, not in the model: %s",
                ", ".join(report.extra))
