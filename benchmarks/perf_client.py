"""Measures a Triton server with its own perf_analyzer and real questions.

  python benchmarks/perf_client.py --output_dir DIR --predict_file SQUAD.json \
    --vocab_file vocab.txt [--server_hostname HOST] [--batch_size N] ...

scripts/trtis/run_perf_client.sh calls it. A running server is asked for the
model's shapes; windows over the questions become requests of batch_size
sentences, and one concurrency after the other is measured until the latency
is over the limit. DIR gets perf_analyzer.csv (its own rows), points.csv (ours,
with the server's own counts of sentences and executions) and perf_analyzer.log.
"""

import argparse
from concurrent import futures
import contextlib
import http.client
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent)]

# pylint: disable=wrong-import-position
import numpy as np
import tokenization
from benchmarks import perf_points
from utils import errors
from utils import files
from utils import logs
from utils import serving_model
from utils import signature
from utils import squad_data
from utils.errors import UserError

_LOGGER = logging.getLogger("bert")
# More would only make the file of requests longer.
MOST_WINDOWS = 1000
# Percentage that any three windows are within.
_ANY = "1000000000"
# Words of perf_analyzer where there is something to be done about it.
_EMPTY = "No valid requests recorded"
_UNSTABLE = "Failed to obtain stable measurement"
# Seconds that a request may take on a slow machine, at a high concurrency.
_LONGEST = 120


class Load(NamedTuple):
  """How to measure.

  Attributes:
    analyzer: str, the program perf_analyzer.
    protocol: "grpc" or "http".
    batch_size: int, sentences a request.
    max_client_threads: int, threads that send them.
    measurement_interval: int, milliseconds of a window.
    stability_percentage: float, by how much three windows may differ.
    max_trials: int, windows at most.
  """
  analyzer: str
  protocol: str
  batch_size: int
  max_client_threads: int
  measurement_interval: int
  stability_percentage: float
  max_trials: int


class Server(object):
  """A Triton server and the model on it, asked over HTTP.

  Attributes:
    model: str, its name.
    version: int.
    grpc, http: str, host:port.
  """

  def __init__(self, hostname, http_port, grpc_port, model, version):
    self.model, self.version = model, version
    self.http = "%s:%d" % (hostname, http_port)
    self.grpc = "%s:%d" % (hostname, grpc_port)

  def get(self, what="", body=None):
    """Returns the parsed JSON of the model's page `what`.

    Args:
      what: str.
      body: bytes to post, or None.

    Raises:
      UserError: if the server or the model is not there.
    """
    url = "http://%s/v2/models/%s/versions/%d%s" % (
        self.http, urllib.parse.quote(self.model, safe=""), self.version, what)
    try:
      # No proxy lies between a client and its server.
      opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
      with opener.open(url, body, timeout=_LONGEST) as stream:
        reply = json.loads(stream.read().decode("utf-8"))
        if not isinstance(reply, dict):
          raise ValueError(reply)
        return reply
    except urllib.error.HTTPError as error:
      raise UserError(
          "the server at %s does not serve version %d of the model %s (%s): "
          "export it there, or name another with --model_name and "
          "--model_version" % (self.http, self.version, self.model,
                               _words(error) or error))
    except (http.client.HTTPException, ValueError) as error:
      raise UserError(
          "what answers at %s is no Triton server over HTTP (%s): give its "
          "--server_hostname and --http_port" % (
              self.http, errors.one_line(repr(error))[:200]))
    except OSError as error:
      raise UserError(
          "no server answers at %s (%s): start one (scripts/trtis/"
          "launch_server.sh) or give --server_hostname and --http_port"
          % (self.http, getattr(error, "reason", error)))

  def ask(self, rows):
    """Has the server answer a request of some rows of `write_inputs`."""
    tensors = []
    for name in signature.INPUTS:
      values = [row[name] for row in rows]
      tensors.append({"name": name, "datatype": "INT32", "data": values,
                      "shape": [len(values), len(values[0])]})
    self.get("/infer", json.dumps({"inputs": tensors}).encode("utf-8"))

  def counts(self):
    """Returns (sentences, executions) that the model has answered so far."""
    found = self.get("/stats")["model_stats"][0]
    return int(found["inference_count"]), int(found["execution_count"])

  def describe(self):
    """Returns the serving_model.Model; UserError if it cannot be measured."""
    model = serving_model.model_of(self.get("/config"), self.model,
                                   self.version, self.http)
    length_of(model)
    return model

  def check_batch(self, batch_size):
    """Raises UserError if a request may not have so many sentences."""
    largest = self.describe().max_batch_size
    if batch_size > largest:
      raise UserError("--batch_size=%d: the model %s takes %d sentences a "
                      "request at most" % (batch_size, self.model, largest))


def _words(error):
  """Returns the beginning of what came with an HTTPError, "" if nothing."""
  with contextlib.suppress(OSError, http.client.HTTPException):
    return errors.one_line(error.read().decode("utf-8", "replace"))[:200]
  return ""


def length_of(model):
  """Returns the tokens of a serving_model.Model's sequences, a whole number.

  Raises:
    UserError: if they may have any length.
  """
  if not model.seq_length:
    raise UserError(
        "the model %s takes sequences of any length, but windows are made of "
        "one: write it into the dims of its config.pbtxt" % model.name)
  return model.seq_length


def vocabulary(model, candidates):
  """Returns (path, do_lower_case) of the vocabulary a model was made with.

  Args:
    model: serving_model.Model.
    candidates: list of paths; those that are no file do not count.

  Raises:
    UserError: if none of them is it.
  """
  for path in candidates:
    if (os.path.isfile(path) and model.vocab_sha256
        in (None, files.sha256_of_file(path))):
      lower = model.do_lower_case
      return path, (tokenization.infer_lower_case(path) if lower is None
                    else lower)
  raise UserError(
      "--vocab_file: the model %s was made with another vocabulary than %s: "
      "name its vocab.txt" % (model.name, " and ".join(candidates)))


# --- requests ----------------------------------------------------------------


def write_inputs(path, server, predict_file, vocab_files, doc_stride):
  """Writes the windows over a file's questions as perf_analyzer reads them.

  Args:
    path: str, JSON file to write.
    server: Server.
    predict_file: str, SQuAD file.
    vocab_files: list of str, one of which is the model's.
    doc_stride: int, tokens from window to window of one passage; None for
      half a window, 128 at most.

  Returns:
    int, how many windows there are, `MOST_WINDOWS` at most.
  """
  model = server.describe()
  length = model.seq_length
  vocab_file, lower = vocabulary(model, vocab_files)
  settings = squad_data.FeatureSettings(
      length, doc_stride or min(length // 2, 128),
      min(64, max(1, length // 4)), lower, "")
  tokenizer = tokenization.FullTokenizer(vocab_file, lower)
  examples = squad_data.read_examples(
      files.require_file(predict_file, "predict_file"), False, False)
  features = squad_data.featurize(examples[:MOST_WINDOWS], tokenizer, settings,
                                  False)
  rows = range(min(len(features), MOST_WINDOWS))
  columns = {"unique_ids": features.unique_ids[:, None],
             "input_ids": features.input_ids,
             "input_mask": features.input_mask(slice(None)),
             "segment_ids": features.segment_ids(slice(None))}
  with files.atomic_write(path) as stream:
    json.dump({"data": [{name: column[row].tolist()
                         for name, column in columns.items()}
                        for row in rows]}, stream)
  return len(rows)


# --- one concurrency ---------------------------------------------------------


def _command(server, load, inputs, concurrency, *more):
  address = server.grpc if load.protocol == "grpc" else server.http
  return [load.analyzer, "-m", server.model, "-x", str(server.version),
          "-u", address, "-i", load.protocol, "-b", str(load.batch_size),
          "--input-data", inputs, "--concurrency-range", str(concurrency),
          "--async", "--max-threads", str(load.max_client_threads)
          ] + [str(word) for word in more]


def _run(command, log, limit):
  """Runs perf_analyzer; returns (exit status, its words), also in `log`.

  It was seen to wait for ever, the server idle: it gets a second chance.

  Args:
    command: list of str.
    log: str, a file's path.
    limit: float, seconds.
  """
  # Where set-up puts the libraries that it is linked to.
  paths = [os.path.join(os.path.dirname(os.path.dirname(command[0])), "lib",
                        "perf_analyzer")]
  paths.extend(filter(None, [os.environ.get("LD_LIBRARY_PATH")]))
  environment = dict(os.environ, LD_LIBRARY_PATH=":".join(paths))
  for _ in range(2):
    try:
      done = subprocess.run(
          command, env=environment, stdin=subprocess.DEVNULL,
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit)
    except FileNotFoundError:
      raise UserError("there is no perf_analyzer at %s: run scripts/trtis/"
                      "setup.sh --only client" % command[0])
    except subprocess.TimeoutExpired:
      _LOGGER.warning("perf_analyzer did not end in %d seconds", limit)
      continue
    words = done.stdout.decode("utf-8", "replace")
    with open(log, "a", encoding="utf-8") as stream:
      stream.write("# %s\n%s\n" % (" ".join(command), words))
    return done.returncode, words
  raise UserError("perf_analyzer did not end in %d seconds, twice: does the "
                  "server still answer?" % limit)


def _failure(status, words, concurrency, log):
  lines = [line for line in words.splitlines() if line.strip()]
  return UserError(
      "perf_analyzer ended with status %d at concurrency %d: %s (all in %s)"
      % (status, concurrency, " ".join(lines[-2:])[:300], log))


def warm_up(server, inputs, batch_size, at_once):
  """Sends requests that do not count: a model's first ones take longer.

  Args:
    server: Server.
    inputs: str, file of `write_inputs`.
    batch_size: int, sentences a request.
    at_once: int, requests in flight; there are twice as many in all.

  Raises:
    UserError: if the server refuses one.
  """
  rows = files.read_json(inputs, "the requests")["data"]
  rows = [rows[number % len(rows)]
          for number in range(2 * at_once * batch_size)]
  requests = [rows[start:start + batch_size]
              for start in range(0, len(rows), batch_size)]
  with futures.ThreadPoolExecutor(at_once) as pool:
    list(pool.map(server.ask, requests))


def measure(server, load, inputs, concurrency, log):
  """Measures one concurrency.

  Where no request ends within a window, it is made longer; where the windows
  do not settle, they are taken as they are, and the point says so.

  Args:
    server, load: Server, Load.
    inputs: str, file of `write_inputs`.
    concurrency: int, requests in flight.
    log: str, file that gets perf_analyzer's words.

  Returns:
    (Point, perf_analyzer's CSV as str).

  Raises:
    UserError: if perf_analyzer fails; the message has its last words.
  """
  interval, stability, status = load.measurement_interval, None, None
  with tempfile.TemporaryDirectory() as folder:
    output = os.path.join(folder, "point.csv")
    while status != 0:
      before = server.counts()
      status, words = _run(_command(
          server, load, inputs, concurrency, "--measurement-interval", interval,
          "--stability-percentage",
          stability or "%g" % load.stability_percentage,
          "--max-trials", load.max_trials, "-f", output), log,
                           _LONGEST + 3 * load.max_trials * interval / 1000)
      if status and _EMPTY in words and interval < 1000 * _LONGEST:
        interval *= 2
      elif status and _UNSTABLE in words and not stability:
        stability = _ANY
      elif status or not os.path.isfile(output):
        raise _failure(status, words, concurrency, log)
    with open(output, encoding="utf-8") as stream:
      text = stream.read()
  sentences, executions = np.subtract(server.counts(), before).tolist()
  return perf_points.point(text, words, load.batch_size, sentences, executions,
                           not stability), text


def merged(texts):
  """Returns one CSV of several with the same head."""
  lines = texts[0].splitlines()[:1]
  for text in texts:
    lines.extend(text.splitlines()[1:])
  return "\n".join(lines) + "\n"


def rising(concurrencies, max_latency, take):
  """Returns the Points of rising concurrencies up to the latency limit.

  The first one over it still counts: it shows where the limit is.

  Args:
    concurrencies: list of int.
    max_latency: float, milliseconds.
    take: function of a concurrency that returns its Point.
  """
  points = []
  for concurrency in sorted(set(concurrencies)):
    points.append(take(concurrency))
    if points[-1].latency > max_latency:
      break
  return points


def doubling(largest):
  """Returns 1, 2, 4, ... and `largest`."""
  values = [1]
  while 2 * values[-1] < largest:
    values.append(2 * values[-1])
  return sorted(set(values + [largest]))


# --- the command line --------------------------------------------------------


def whole(text):
  """Returns a whole number above 0, for argparse."""
  value = int(text)
  if value < 1:
    raise ValueError
  return value


def whole_list(text):
  """Returns whole numbers above 0 with commas between."""
  return [whole(word) for word in text.split(",")]


def positive(text):
  """Returns a finite number above 0."""
  value = float(text)
  if not 0 < value < float("inf"):
    raise ValueError
  return value


def load_arguments(parser):
  """Adds what all that measure can be told."""
  parser.add_argument("--output_dir", required=True)
  parser.add_argument("--predict_file", required=True)
  parser.add_argument("--doc_stride", type=whole,
                      help="empty: half a window, 128 at most")
  parser.add_argument("--precision", default="fp16")
  parser.add_argument("--max_latency", type=positive, default=500.0,
                      help="milliseconds")
  parser.add_argument("--max_client_threads", type=whole, default=10)
  parser.add_argument("--measurement_interval", type=whole, default=5000,
                      help="milliseconds of a window")
  parser.add_argument("--stability_percentage", type=positive, default=10.0)
  parser.add_argument("--max_trials", type=whole, default=10)
  parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
  parser.add_argument("--vocab_file", action="append", required=True,
                      help="several: the one that the model was made with")
  parser.add_argument("--perf_analyzer", default=os.path.join(
      os.path.dirname(sys.executable), "perf_analyzer"))
  parser.add_argument("--log_file", help="also gets what is said")


def load_of(options, batch_size):
  """Returns the Load of parsed options."""
  if options.max_trials < 3:
    raise UserError("--max_trials=%d: three windows are compared, so that it "
                    "has to be 3 or more" % options.max_trials)
  return Load(options.perf_analyzer, options.protocol, batch_size,
              options.max_client_threads, options.measurement_interval,
              options.stability_percentage, options.max_trials)


def end_on_sigterm():
  """Has SIGTERM end the program by way of what ends its children."""
  signal.signal(signal.SIGTERM, lambda *unused: sys.exit(143))


def run(options):
  """Measures a running server and writes what it found."""
  folder = files.require_output_dir(options.output_dir, "output_dir")
  logs.set_up(options.log_file)
  server = Server(options.server_hostname, options.http_port,
                  options.grpc_port, options.model_name, options.model_version)
  server.check_batch(options.batch_size)
  load = load_of(options, options.batch_size)
  log = os.path.join(folder, "perf_analyzer.log")
  inputs = os.path.join(folder, "inputs.json")
  texts = []
  with files.FolderLock(folder):
    count = write_inputs(inputs, server, options.predict_file,
                         options.vocab_file, options.doc_stride)
    _LOGGER.info("%d windows of %s, %d sentences a request to %s", count,
                 options.predict_file, load.batch_size, server.http)

    warm_up(server, inputs, load.batch_size, 4)

    def take(concurrency):
      point, text = measure(server, load, inputs, concurrency, log)
      _LOGGER.info("concurrency %d: %.1f sentences/s, %.2f ms", concurrency,
                   point.throughput, point.latency)
      texts.append(text)
      return point

    points = rising(options.concurrencies or doubling(options.max_concurrency),
                    options.max_latency, take)
    with files.atomic_write(os.path.join(folder, "perf_analyzer.csv")) as out:
      out.write(merged(texts))
    said = {"model": server.model, "version": server.version,
            "precision": options.precision}
    perf_points.write(os.path.join(folder, "points.csv"), points,
                      [said] * len(points))
  print("\n".join(perf_points.table(points)))


def main(argv=None):
  """Runs the command line."""
  parser = argparse.ArgumentParser(
      description="Measures a Triton server with perf_analyzer.")
  load_arguments(parser)
  parser.add_argument("--model_name", default="bert")
  parser.add_argument("--model_version", type=whole, default=1)
  parser.add_argument("--batch_size", type=whole, default=1)
  parser.add_argument("--max_concurrency", type=whole, default=50)
  parser.add_argument("--concurrencies", type=whole_list,
                      help="instead of 1, 2, 4, ... max_concurrency")
  parser.add_argument("--server_hostname", default="localhost")
  parser.add_argument("--http_port", type=whole, default=8000)
  parser.add_argument("--grpc_port", type=whole, default=8001)
  options = parser.parse_args(argv)
  end_on_sigterm()
  errors.guard(run, options)


if __name__ == "__main__":
  main()
