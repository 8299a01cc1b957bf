"""A run's folder: lock, log, header, config.json, leftovers of a kill."""

import contextlib
import glob
import os
import sys

from utils import checkpoints
from utils import files
from utils import logs
from utils import replica
from utils import stack
from utils.errors import UserError


def _clean(folder):
  """Removes the temporary files of a run that was killed while writing."""
  for pattern in ("*.tempstate*", ".*.tmp", "checkpoint.tmp*"):
    for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
      if os.path.isfile(path):
        os.remove(path)
  # A checkpoint's index is written last and removed first.
  for path in glob.glob(os.path.join(
      glob.escape(folder), checkpoints.SAVED_NAME + "-*.data-*")):
    if not os.path.exists(path.rsplit(".data-", 1)[0] + ".index"):
      os.remove(path)


def _read_description(path):
  """Returns what config.json says of the folder's last start; {} if none."""
  if not os.path.exists(path):
    return {}
  old = files.read_json(path, "config.json")
  if not isinstance(old, dict) or not all(
      isinstance(old.get(part, {}), dict)
      for part in ("settings", "model", "versions")):
    raise UserError("%s does not describe a run: remove it, or use another "
                    "output folder" % path)
  return old


def _changes(old, description):
  """Yields a line for each setting that differs from the last start's."""
  for part in ("settings", "versions", "threads", "ranks"):
    before, now = old.get(part), description[part]
    if before is None:
      continue
    if not isinstance(now, dict):
      before, now = {part: before}, {part: now}
    for name in sorted(now):
      if before.get(name) != now[name]:
        yield "%s was %s when this folder was last used, is %s now" % (
            name, before.get(name), now[name])


def _check_model(old, model, folder):
  """Raises UserError if a folder's checkpoints are of another model.

  Restoring finds other shapes, but not another activation or number of heads.
  """
  before = old.get("model")
  if before in (None, model) or not checkpoints.all_in(folder):
    return
  changed = ["%s was %s, is %s now" % (name, before.get(name), model.get(name))
             for name in sorted(set(before) | set(model))
             if before.get(name) != model.get(name)]
  raise UserError(
      "--bert_config_file is not that of the checkpoints in %s (%s): use that "
      "one, or another --output_dir" % (folder, ", ".join(changed)))


def _check_ranks(description):
  """Raises UserError if the ranks were not started alike."""
  settings = dict(description["settings"])
  # Rank 0 alone has made the path of a checkpoint a prefix.
  settings.pop("init_checkpoint", None)
  replica.check_agreement({
      "settings": settings, "model": description["model"],
      "versions": dict(description["versions"], horovod=replica.version())})


@contextlib.contextmanager
def opened(output_dir, runner, config, model, log_file=None):
  """Holds `output_dir` for one run and describes the run in it.

  Rank 0 does; the other ranks touch nothing there.

  Args:
    output_dir: folder of the run; created where missing.
    runner: name of the program, for the header.
    config: the runner's NamedTuple of settings.
    model: the model config as a dict.
    log_file: file that gets every log line, or None.

  Yields:
    The logger.

  Raises:
    UserError: if the folder cannot be written, another run holds it, or its
      checkpoints are of another model; if the ranks differ, or are more than
      there are GPUs.
  """
  description = {
      "runner": runner,
      "settings": dict(config._asdict()),
      "model": model,
      "versions": stack.versions(),
      "device": stack.device_name(),
      "threads": replica.thread_count(),
      "ranks": replica.size(),
      "command": sys.argv,
  }
  replica.check_devices()
  _check_ranks(description)
  if not replica.is_chief():
    yield logs.set_up(rank=replica.rank())
    return
  files.require_output_dir(output_dir, "output_dir")
  with files.FolderLock(output_dir):
    logger = logs.set_up(log_file)
    _clean(output_dir)
    _describe(logger, output_dir, description)
    yield logger


def _describe(logger, output_dir, description):
  """Logs what is to be run, and what differs from the folder's last run."""
  path = os.path.join(output_dir, "config.json")
  logger.info("%s on %s, %d threads, %s", description["runner"],
              ("%d ranks, each on " % description["ranks"]
               if description["ranks"] > 1 else "") + description["device"],
              description["threads"], ", ".join(
                  "%s %s" % item
                  for item in sorted(description["versions"].items())))
  logger.info("settings: %s", ", ".join(
      "%s=%s" % item for item in sorted(description["settings"].items())))
  old = _read_description(path)
  _check_model(old, description["model"], output_dir)
  for line in _changes(old, description):
    logger.warning("%s", line)
  files.write_json(path, description)
