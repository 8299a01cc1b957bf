"""Mistakes that a user can mend, told in one line instead of a traceback.

Imports the standard library alone: the tokenizer and the scorer, which a
serving client takes along, need it. absl comes with `run_main`.
"""

import errno
import logging
import sys


class UserError(Exception):
  """Bad input: the message is one line that names the file, flag or value.

  The message also says what to do. The entry points print it and exit with
  status 1; anything else that escapes is a fault of ours and keeps its
  traceback.
  """


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


def fail(message, status=1):
  """Prints `message` as one line on stderr and ends the process."""
  logger = logging.getLogger("bert")
  if logger.handlers:
    # The terminal gets the line below; a log file would lack it.
    logger.error("%s", one_line(message), extra={"file_only": True})
  sys.stdout.flush()
  sys.stderr.write("ERROR: %s\n" % one_line(message))
  sys.stderr.flush()
  sys.exit(status)


def guard(function, *args):
  """Calls `function(*args)`; bad input, a full disk and Ctrl-C get one line.

  Exits with status 1 (130 after Ctrl-C) where one of these ended the call.
  """
  try:
    return function(*args)
  except UserError as error:
    fail(error)
  except KeyboardInterrupt:
    fail("interrupted; the same command goes on where it stopped", 130)
  except Exception as error:  # pylint: disable=broad-except
    if not disk_full(error):
      logger = logging.getLogger("bert")
      if logger.handlers:
        logger.exception("unexpected", extra={"file_only": True})
      raise
    fail("the disk is full (%s): free some space and run the same command "
         "again; nothing finished is lost" % one_line(error)[:300])


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
