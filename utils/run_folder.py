"""A run's folder: lock, log, header, config.json, leftovers of a kill."""

import contextlib
import glob
import os
import sys

from utils import files
from utils import logs
from utils import session
from utils import stack


def _clean(folder):
  """Removes the temporary files of a run that was killed while writing."""
  for pattern in ("*.tempstate*", ".*.tmp"):
    for path in glob.glob(os.path.join(glob.escape(folder), pattern)):
      if os.path.isfile(path):
        os.remove(path)


def _changes(path, description):
  """Yields a line for each setting that differs from the last start's."""
  if not os.path.exists(path):
    return
  old = files.read_json(path, "config.json")
  for part in ("settings", "versions", "threads"):
    before, now = old.get(part), description[part]
    if not isinstance(now, dict):
      before, now = {part: before}, {part: now}
    for name in sorted(now):
      if before.get(name) != now[name]:
        yield "%s was %s when this folder was last used, is %s now" % (
            name, before.get(name), now[name])


@contextlib.contextmanager
def opened(output_dir, runner, config, model, log_file=None):
  """Holds `output_dir` for one run and describes the run in it.

  Args:
    output_dir: folder of the run; created where missing.
    runner: name of the program, for the header.
    config: the runner's NamedTuple of settings.
    model: the model config as a dict.
    log_file: file that gets every log line, or None.

  Yields:
    The logger.

  Raises:
    UserError: if the folder cannot be written or another run holds it.
  """
  files.require_output_dir(output_dir, "output_dir")
  with files.FolderLock(output_dir):
    logger = logs.set_up(log_file)
    _clean(output_dir)
    description = {
        "runner": runner,
        "settings": dict(config._asdict()),
        "model": model,
        "versions": stack.versions(),
        "device": stack.device_name(),
        "threads": session.thread_count(),
        "command": sys.argv,
    }
    path = os.path.join(output_dir, "config.json")
    logger.info("%s on %s, %d threads, %s", runner, description["device"],
                description["threads"], ", ".join(
                    "%s %s" % item
                    for item in sorted(description["versions"].items())))
    logger.info("settings: %s", ", ".join(
        "%s=%s" % item for item in sorted(description["settings"].items())))
    for line in _changes(path, description):
      logger.warning("%s", line)
    files.write_json(path, description)
    yield logger
