"""One logger for all: plain lines for a file, a bar for a person."""

import logging
import sys

import tqdm

from utils import errors

LOGGER = logging.getLogger("bert")

# `LOGGER.info(text, extra=FILE_ONLY)`: for the log file, when the terminal
# shows the same as a bar or as the last line of output.
FILE_ONLY = {"file_only": True}


class _AboveTheBar(logging.Handler):
  """Writes lines to stderr without tearing a progress bar apart."""

  def emit(self, record):
    if getattr(record, "file_only", False):
      return
    tqdm.tqdm.write(self.format(record), file=sys.stderr)
    sys.stderr.flush()


def set_up(log_file=None, rank=0):
  """Sends the suite's log lines to stderr and, if named, to `log_file`.

  Args:
    log_file: path, or None.
    rank: the process's number; all but rank 0 log errors alone, with their
      number, since the rest would only repeat what rank 0 says.

  Returns:
    The logger.

  Raises:
    UserError: if `log_file` cannot be written.
  """
  formatter = logging.Formatter(
      "%(asctime)s %(levelname).1s " + ("rank %d: " % rank if rank else "")
      + "%(message)s", datefmt="%Y-%m-%d %H:%M:%S")
  for handler in list(LOGGER.handlers):
    LOGGER.removeHandler(handler)
  handlers = [_AboveTheBar()]
  if log_file:
    try:
      handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    except OSError as error:
      raise errors.UserError("--log_file: cannot write %s (%s)"
                             % (log_file, error.strerror))
  for handler in handlers:
    handler.setFormatter(formatter)
    LOGGER.addHandler(handler)
  LOGGER.setLevel(logging.ERROR if rank else logging.INFO)
  LOGGER.propagate = False
  return LOGGER


def progress(total, unit, description, initial=0):
  """Returns a tqdm bar on a terminal, a disabled one elsewhere."""
  return tqdm.tqdm(total=total, initial=initial, unit=unit, desc=description,
                   disable=not sys.stderr.isatty(), dynamic_ncols=True,
                   file=sys.stderr, mininterval=0.5)
