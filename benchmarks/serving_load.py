"""Many clients at a Triton server for a while: is anything lost or mixed up?

  .venv/client/bin/python benchmarks/serving_load.py --vocab_file FILE \
    --predict_file FILE [--clients 64] [--seconds 120] [--server_pid PROCESS]

First asks for some windows one by one. Then all clients ask for them, each the
next one as soon as it has a reply, and every reply is compared with the first
one to the same window. Windows whose logits are alike are left out, so that a
reply to another request shows. With --server_pid, the process that the "ready:"
line of launch_server.sh names, its memory and that of its children is looked
at, each second or more often in a short time, as the mean of the second quarter
of the time (the first one is warming up) and of the last.

The last line tells what was found; status 1 if a request was lost, a reply was
wrong, or memory has grown by more than --memory_growth percent; 69 if the
server does not answer the first windows.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import time
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from benchmarks import perf_client
from utils import benchmarks
from utils import errors
from utils import files
from utils import logs
from utils import serving_answers
from utils import serving_client
from utils import serving_model
from utils import serving_requests
from utils import squad_data
from utils import squad_task
from utils.errors import PeerError
from utils.errors import UserError

TOLERANCE = 1e-4


class Window(NamedTuple):
  """A batch that is asked for, and the reply that is expected."""
  inputs: dict
  outputs: dict


def several(text):
  """Returns a whole number above 1, for argparse."""
  value = int(text)
  if value < 2:
    raise ValueError
  return value


def parse(argv=None):
  """Returns the options of a command line."""
  whole, positive = perf_client.whole, perf_client.positive
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--trtis_server_url")
  parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
  parser.add_argument("--trtis_model_name", default="bert")
  parser.add_argument("--trtis_model_version", type=whole, default=1)
  parser.add_argument("--vocab_file", required=True)
  parser.add_argument("--predict_file", required=True, help="SQuAD JSON")
  parser.add_argument("--doc_stride", type=whole, default=128)
  parser.add_argument("--max_query_length", type=whole, default=64)
  parser.add_argument("--windows", type=several, default=64)
  parser.add_argument("--clients", type=whole, default=64)
  parser.add_argument("--seconds", type=positive, default=120)
  parser.add_argument("--request_timeout", type=positive, default=60)
  parser.add_argument("--server_pid", type=whole)
  parser.add_argument("--memory_growth", type=positive, default=5)
  return parser.parse_args(argv)


def _features(options, model):
  """Returns the Features of the questions, as the model takes them."""
  files.require_file(options.predict_file, "predict_file")
  vocab_file, lower_case = perf_client.vocabulary(
      model, [files.require_file(options.vocab_file, "vocab_file")])
  settings = squad_data.FeatureSettings(
      perf_client.length_of(model), options.doc_stride,
      options.max_query_length, lower_case, files.sha256_of_file(vocab_file))
  squad_task.check_room(model.seq_length, options.max_query_length)
  tokenizer = squad_task.load_tokenizer(vocab_file, lower_case)
  return squad_data.featurize(
      squad_data.read_examples(options.predict_file, False, False), tokenizer,
      settings, False)


def _distance(one, other):
  """Returns the largest difference of two replies' logits."""
  return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def _first_reply(connection, inputs, number):
  """Returns the reply to one window; PeerError if there is none."""
  try:
    return connection.infer(inputs, "first-%d" % number)
  except (serving_client.Passing, serving_client.Refused,
          serving_client.BadReply) as error:
    raise PeerError("the server has no answer to window %d, before any load: "
                    "%s" % (number, error))


def windows_of(connection, model, features, count):
  """Returns up to `count` Windows whose logits differ, asked one by one.

  Raises:
    PeerError: if the server does not answer.
    UserError: if all its answers are alike.
  """
  found = []
  for row in range(len(features)):
    inputs = serving_answers.inputs_of(model, features, np.array([row]))
    outputs = _first_reply(connection, inputs, row)
    if all(_distance(outputs, window.outputs) > 10 * TOLERANCE
           for window in found):
      found.append(Window(inputs, outputs))
    if len(found) == count:
      break
  if len(found) < 2:
    raise UserError("the model says the same to all questions: nothing could "
                    "be mixed up")
  logs.LOGGER.info("%d windows that differ, of %d asked", len(found), row + 1)
  return found


def memory_of(process):
  """Returns the resident bytes of a process and all below it, 0 for none."""
  page = os.sysconf("SC_PAGE_SIZE")
  parents, resident = {}, {}
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError, IndexError):
      fields = (folder / "stat").read_text().rpartition(")")[2].split()
      parents[int(folder.name)] = int(fields[1])
      resident[int(folder.name)] = int(fields[21]) * page
  found, todo = 0, [process]
  while todo:
    one = todo.pop()
    found += resident.get(one, 0)
    todo += [child for child, parent in parents.items() if parent == one]
  return found


class Load(object):
  """What is asked, found and measured."""

  def __init__(self, options, windows):
    self._options = options
    self._windows = windows
    self.asked = self.replies = self.wrong = 0
    self.memory = []
    self._sampled = 0

  def jobs(self):
    """Yields inputs, until the time is over."""
    end = time.monotonic() + self._options.seconds
    while time.monotonic() < end:
      self.asked += 1
      yield self._windows[(self.asked - 1) % len(self._windows)].inputs

  def take(self, number, outputs):
    self.replies += 1
    expected = self._windows[number % len(self._windows)].outputs
    if _distance(outputs, expected) > TOLERANCE:
      self.wrong += 1

  def look(self):
    """Looks at the server's memory, if it is time to."""
    now = time.monotonic()
    pause = min(1, self._options.seconds / 40)
    if self._options.server_pid and now - self._sampled >= pause:
      self._sampled = now
      # Nothing of a server that has ended: its requests are lost.
      self.memory += filter(None, [memory_of(self._options.server_pid)])

  def growth(self):
    """Returns (bytes of the second quarter, of the last), None if unknown."""
    quarter = len(self.memory) // 4
    if not quarter:
      return None
    return tuple(float(np.mean(part)) for part in (
        self.memory[quarter:2 * quarter], self.memory[-quarter:]))


def tell(options, load, outcome, seconds):
  """Prints the closing line; returns the exit status."""
  lost = load.asked - load.replies
  latencies = benchmarks.latencies(outcome.seconds or [0.0])
  line = ("%d clients over %s, %.0f s: %d requests, %.1f a second, latency %s "
          "ms; %d lost, %d wrong" % (
              options.clients, options.protocol, seconds, load.asked,
              load.replies / seconds, ", ".join(
                  "%s %.1f" % item for item in latencies.items()),
              lost, load.wrong))
  growth, grown = load.growth(), False
  if growth:
    percent = 100 * (growth[1] / growth[0] - 1)
    grown = percent > options.memory_growth
    line += "; memory %.1f to %.1f MB (%+.2f %%)" % (
        growth[0] / 1e6, growth[1] / 1e6, percent)
  elif options.server_pid:
    line += "; memory not known, the time was too short"
  if outcome.failed:
    line += "; the first loss: %s" % outcome.failed[min(outcome.failed)]
  print(line, flush=True)
  return int(bool(lost or load.wrong or grown or outcome.stopped))


def main():
  """Runs the command line."""
  options = parse()
  logs.set_up()
  if options.server_pid and not memory_of(options.server_pid):
    raise UserError(
        "--server_pid=%d: there is no such process on this machine: give the "
        "one that the \"ready:\" line of launch_server.sh names"
        % options.server_pid)
  target = serving_client.Target(
      serving_client.address(options.trtis_server_url, options.protocol),
      options.protocol, options.trtis_model_name, options.trtis_model_version,
      options.request_timeout)
  connection = serving_client.Connection(target)
  model = serving_model.describe(connection, target)
  windows = windows_of(connection, model, _features(options, model),
                       options.windows)
  connection.close()
  load = Load(options, windows)
  begin = time.monotonic()
  # A request that has to be sent again is a lost one here.
  outcome = serving_requests.Requests(
      lambda: serving_client.Connection(target),
      serving_requests.RequestSettings(options.clients, 0, 0),
      load.take, load.look).run(load.jobs())
  sys.exit(tell(options, load, outcome, time.monotonic() - begin))


if __name__ == "__main__":
  errors.guard(main)
