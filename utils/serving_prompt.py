"""A prompt at which somebody types questions about a passage."""

import sys

from utils import serving_answers
from utils import squad_data
from utils.errors import PeerError
from utils.errors import UserError


def _typed(prompt):
  """Returns a line that was typed, None at the end of the input."""
  # A prompt is for a person; a program that reads gets answers alone.
  if sys.stdin.isatty():
    print(prompt, end="", flush=True)
  line = sys.stdin.readline()
  return line.rstrip("\n") if line else None


def _reply(session, question, context):
  """Returns what is said to a question."""
  try:
    found = serving_answers.described(serving_answers.answer_typed(
        session, question, context, tell=False))
  except (UserError, PeerError) as error:
    return "ERROR: %s" % error
  return "%s  (%.1f %%)" % (found["answer"] or "no answer",
                            100 * found["probability"])


def converse(session):
  """Answers line by line, to the end of the input.

  A first line is the passage unless --context is one; an empty line asks for
  another passage.
  """
  # What is pasted may be of another encoding; that is no reason to end.
  for stream in (sys.stdin, sys.stdout):
    stream.reconfigure(errors="replace")
  context = session.config.context
  while True:
    line = _typed(
        "passage (one line)> " if context is None else "question> ")
    if line is None:
      return
    if context is None:
      try:
        squad_data.check_context(line)
        context = line
      except UserError:
        continue
    elif not line.strip():
      context = None
    else:
      print(_reply(session, line, context), flush=True)
