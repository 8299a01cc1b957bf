"""Mistakes that a user can mend, told in one line instead of a traceback.

Imports the standard library alone: the tokenizer and the scorer, which a
serving client takes along, need it. absl comes with `run_main`.
"""

import errno
import logging
import os
import sys
import time


class UserError(Exception):
  """Bad input: the message is one line that names the file, flag or value.

  The message also says what to do. The entry points print it and exit with
  status 1; anything else that escapes is a fault of ours and keeps its
  traceback.
  """


class PeerError(Exception):
  """Another rank, or a server, is gone; what became of it it tells itself."""


class Stopped(Exception):
  """Training was asked to stop, has saved and is to be gone on with later."""


# Exit statuses beside 0 and 1, as in sysexits.h.
PEER_LOST, SOFTWARE = 69, 70


def one_line(text):
  """Returns `text` with all runs of white space as one blank."""
  return " ".join(str(text).split())


def disk_full(error):
  """Says whether `error` (any exception) means that the disk is full."""
  if isinstance(error, OSError):
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
  return "No space left on device" in str(error)


def _parse(argv):
  from absl import flags  # pylint: disable=g-import-not-at-top
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    fail("%s (see %s --help)" % (error, argv[0]))


def _let_the_first_speak():
  """Waits, on all ranks but the first, before the end of a failed process.

  What is wrong for all of them is then told once: where a rank ends, the
  launcher ends the others. Read from the environment, since bad flags are
  found before the ranks have met.
  """
  if os.environ.get("HOROVOD_RANK", os.environ.get(
      "OMPI_COMM_WORLD_RANK", "0")) != "0":
    time.sleep(5)


def fail(message, status=1):
  """Prints `message` as one line on stderr and ends the process."""
  _let_the_first_speak()
  logger = logging.getLogger("bert")
  if logger.handlers:
    # The terminal gets the line below; a log file would lack it.
    logger.error("%s", one_line(message), extra={"file_only": True})
  sys.stdout.flush()
  sys.stderr.write("ERROR: %s\n" % one_line(message))
  sys.stderr.flush()
  sys.exit(status)


def guard(function, *args):
  """Calls `function(*args)`; what users can mend or wait for gets one line.

  Exit statuses: 0 also where training was asked to stop and has saved; 1 for
  bad input and a full disk; 69 where another rank or a server is gone and 70
  for a fault of ours, after which the same command may go on; 130 after Ctrl-C.
  """
  try:
    return function(*args)
  except Stopped as stop:
    logging.getLogger("bert").info("%s", stop)
    sys.exit(0)
  except UserError as error:
    fail(error)
  except PeerError as error:
    fail(error, PEER_LOST)
  except KeyboardInterrupt:
    fail("interrupted; the same command goes on where it stopped", 130)
  except Exception as error:  # pylint: disable=broad-except
    if disk_full(error):
      fail("the disk is full (%s): free some space and run the same command "
           "again; nothing finished is lost" % one_line(error)[:300])
    logger = logging.getLogger("bert")
    if logger.handlers:
      logger.exception("unexpected", extra={"file_only": True})
    sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    sys.exit(SOFTWARE)


def run_main(main):
  """Runs `main(argv)` under absl's flags.

  Args:
    main: function of the remaining command-line arguments.
  """
  from absl import app  # pylint: disable=g-import-not-at-top

  def guarded(argv):
    if len(argv) > 1:
      fail("unexpected argument %r: flags are written --name=value (see %s "
           "--help)" % (argv[1], argv[0]))
    guard(main, argv)
  app.run(guarded, flags_parser=_parse)
