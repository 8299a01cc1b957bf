"""metrics.jsonl: one JSON row a reading, cut back when a run resumes."""

import json
import os
import time

from utils import files
from utils.logs import LOGGER


class MetricsWriter(object):
  """Appends rows to `<folder>/metrics.jsonl`.

  Args:
    folder: the run's folder.
    restored_step: rows of later steps are dropped, since the run repeats
      those steps. None keeps every row.
  """

  def __init__(self, folder, restored_step=None):
    self._path = os.path.join(folder, "metrics.jsonl")
    if os.path.exists(self._path):
      # Without a step too, so that a torn last line goes.
      self._cut(float("inf") if restored_step is None else restored_step)
    self._stream = open(self._path, "a", encoding="utf-8")

  def _cut(self, step):
    rows = read_metrics(self._path)
    usable = [row for row in rows if isinstance(row, dict)
              and isinstance(row.get("step", 0), (int, float))]
    if len(usable) < len(rows):
      LOGGER.warning("%s: removed %d lines that are no rows of metrics",
                     self._path, len(rows) - len(usable))
    with files.atomic_write(self._path) as stream:
      for row in usable:
        if row.get("step", 0) <= step:
          stream.write(json.dumps(row) + "\n")

  def write(self, kind, **values):
    """Writes one row at once, stamped with the time (seconds since 1970)."""
    row = {"kind": kind}
    row.update(values)
    row["time"] = round(time.time(), 3)
    self._stream.write(json.dumps(row) + "\n")
    self._stream.flush()

  def close(self):
    self._stream.close()


def read_metrics(path):
  """Returns the rows of a metrics.jsonl; a torn last line is left out."""
  rows = []
  with open(path, encoding="utf-8") as stream:
    for line in stream:
      try:
        rows.append(json.loads(line))
      except ValueError:
        continue
  return rows
