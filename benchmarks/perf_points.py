"""What perf_analyzer measured: its CSV and words read, our tidy CSV written.

A point is one concurrency of one load. The parts of its average latency follow
one another in a request's life:

  client send, network, server queue, server compute, client receive

"Network" is what perf_analyzer calls Network+Server Send/Recv: its own average
less all the other parts. Server compute is input + infer + output.
"""

import csv
import io
import re
from typing import NamedTuple

from utils import files
from utils.errors import UserError

# Part of the latency -> columns of perf_analyzer's CSV, microseconds.
PARTS = {
    "client_send": ["Client Send"],
    "network": ["Network+Server Send/Recv"],
    "server_queue": ["Server Queue"],
    "server_compute": ["Server Compute Input", "Server Compute Infer",
                       "Server Compute Output"],
    "client_receive": ["Client Recv"],
}
PERCENTILES = (50, 90, 95, 99)
_AVERAGE = re.compile(r"^\s*Avg latency: (\d+) usec", re.MULTILINE)


class Point(NamedTuple):
  """One measured concurrency; a row of the tidy CSV.

  Attributes:
    concurrency: int, requests in flight.
    batch_size: int, sentences a request.
    throughput: float, sentences a second.
    latency: float, milliseconds of a request on average.
    client_send, network, server_queue, server_compute, client_receive: float,
      milliseconds of it; their sum is the latency but for rounding.
    p50, p90, p95, p99: float, milliseconds that so many per cent of the
      requests do not exceed.
    sentences: int, that the server answered meanwhile, by its own statistics.
    executions: int, of the model for them.
    executed_batch: float, sentences an execution: above `batch_size` where
      the server put requests together.
    stable: bool, whether perf_analyzer found its last three windows alike.
  """
  concurrency: int
  batch_size: int
  throughput: float
  latency: float
  client_send: float
  network: float
  server_queue: float
  server_compute: float
  client_receive: float
  p50: float
  p90: float
  p95: float
  p99: float
  sentences: int
  executions: int
  executed_batch: float
  stable: bool


def raw_rows(text, what):
  """Returns the dicts of the rows of perf_analyzer's CSV.

  Raises:
    UserError: if it is none, or has no row.
  """
  rows = list(csv.DictReader(io.StringIO(text)))
  needed = ["Concurrency", "Inferences/Second"] + [
      name for names in PARTS.values() for name in names] + [
          "p%d latency" % percent for percent in PERCENTILES]
  try:
    bad = not rows or not all(
        float(row[name]) >= 0 for row in rows for name in needed)
  except (KeyError, TypeError, ValueError):
    bad = True
  if bad:
    raise UserError("%s is not what perf_analyzer 2.51.0 writes: expected the "
                    "columns %s and a row" % (what, ", ".join(needed)))
  return rows


def point(text, words, batch_size, sentences, executions, stable):
  """Returns the Point of a CSV with one row.

  Args:
    text: str, perf_analyzer's CSV.
    words: str, what it printed, which alone has the average latency.
    batch_size: int, sentences a request.
    sentences, executions: int, how far the server's own counts went up.
    stable: bool.

  Raises:
    UserError: if perf_analyzer does not write so.
  """
  row = raw_rows(text, "the CSV of perf_analyzer")[0]
  averages = _AVERAGE.findall(words)
  if not averages:
    raise UserError("perf_analyzer printed no average latency: is it 2.51.0?")
  parts = {part: sum(float(row[name]) for name in names) / 1000
           for part, names in PARTS.items()}
  percentiles = {"p%d" % percent: float(row["p%d latency" % percent]) / 1000
                 for percent in PERCENTILES}
  return Point(
      concurrency=int(row["Concurrency"]), batch_size=batch_size,
      throughput=float(row["Inferences/Second"]),
      latency=int(averages[-1]) / 1000.0, sentences=sentences,
      executions=executions, stable=stable,
      executed_batch=round(sentences / float(max(executions, 1)), 3),
      **{name: round(value, 3)
         for name, value in dict(parts, **percentiles).items()})


# --- our own CSV -------------------------------------------------------------


def write(path, points, settings=None):
  """Writes points as CSV, whole or not at all.

  Args:
    path: str.
    points: list of Point.
    settings: None, or a list of dicts with the same keys as one another, the
      first columns of each point's row.
  """
  settings = settings or [{}] * len(points)
  first = list(settings[0]) if settings else []
  with files.atomic_write(path) as stream:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(first + list(Point._fields))
    for setting, row in zip(settings, points):
      writer.writerow([setting[name] for name in first] + list(row))


def _value(kind, text):
  if kind is bool:
    return {"True": True, "False": False}[text]
  return kind(text)


def read(path):
  """Returns [(settings, Point)] of a file that `write` wrote.

  The settings are a dict of str, the columns that are none of a Point.

  Raises:
    UserError: if it is no such file.
  """
  kinds = Point.__annotations__
  result = []
  try:
    with open(path, encoding="utf-8", newline="") as stream:
      for row in csv.DictReader(stream):
        values = {name: _value(kinds[name], row.pop(name)) for name in kinds}
        result.append((dict(row), Point(**values)))
  except OSError as error:
    raise UserError("cannot read %s (%s)" % (path, error.strerror))
  except (KeyError, TypeError, ValueError):
    raise UserError("%s is not a table of points: delete it, and the same "
                    "command makes it anew" % path)
  return result


# --- tables ------------------------------------------------------------------


def table(points):
  """Returns the lines of a table for people: milliseconds, sentences/s."""
  head = ["concurrency", "sentences/s", "latency", "send", "network", "queue",
          "compute", "receive", "p50", "p90", "p95", "p99", "executed batch"]
  rows = [head] + [
      ["%d%s" % (p.concurrency, "" if p.stable else "*"),
       "%.1f" % p.throughput]
      + ["%.2f" % value for value in (
          p.latency, p.client_send, p.network, p.server_queue,
          p.server_compute, p.client_receive, p.p50, p.p90, p.p95, p.p99,
          p.executed_batch)] for p in points]
  widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
  lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths))
           for row in rows]
  if not all(p.stable for p in points):
    lines.append("* did not settle: --measurement_interval makes it longer")
  return lines
