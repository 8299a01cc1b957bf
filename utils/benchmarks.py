"""What benchmarks share: machine, latencies, tables, fits. No TensorFlow."""

import datetime
import math
import platform

import numpy as np

_CPUINFO = "/proc/cpuinfo"
# What tables of latencies show, in percent.
PERCENTILES = (50, 90, 95, 99, 100)


def _first_in_cpuinfo(key):
  """Returns the first value of a key of /proc/cpuinfo, "" where none is."""
  try:
    with open(_CPUINFO, encoding="utf-8") as stream:
      for line in stream:
        name, _, value = line.partition(":")
        if name.strip() == key:
          return value.strip()
  except OSError:
    pass
  return ""


def cpu_has_bfloat16():
  """Says whether this CPU multiplies bfloat16 matrices in hardware."""
  return bool({"avx512_bf16", "amx_bf16"} &
              set(_first_in_cpuinfo("flags").split()))


def machine():
  """Returns {name: text} of what a table is to be read with."""
  return {"cpu": _first_in_cpuinfo("model name") or platform.machine(),
          "bfloat16": "yes" if cpu_has_bfloat16() else "no",
          "date": datetime.date.today().isoformat()}


def percentile(values, percent):
  """Returns the least of the values that `percent` % of them do not exceed.

  The nearest rank: always one of the values; that of 100 is the greatest.
  """
  ranked = sorted(values)
  # Whole numbers: 0.95 * 20 as floats is above 19.
  return ranked[max(1, -(-len(ranked) * percent // 100)) - 1]


def latencies(seconds):
  """Returns {"average", "50%", ..., "100%": milliseconds} of steps.

  Args:
    seconds: list of float, not empty.
  """
  found = {"average": 1e3 * math.fsum(seconds) / len(seconds)}
  for percent in PERCENTILES:
    found["%d%%" % percent] = 1e3 * percentile(seconds, percent)
  return found


def markdown_table(columns, rows):
  """Returns a Markdown table as text, its columns aligned.

  Args:
    columns: list of str.
    rows: list of lists of str, as many each.
  """
  lines = [columns] + rows
  widths = [max(3, max(len(line[i]) for line in lines))
            for i in range(len(columns))]

  def laid_out(cells):
    return "| %s |" % " | ".join(
        cell.ljust(width) for cell, width in zip(cells, widths))

  return "\n".join([laid_out(columns),
                    "|%s|" % "|".join("-" * (width + 2) for width in widths)]
                   + [laid_out(row) for row in rows])


def least_squares(terms, values):
  """Fits values = terms * coefficients.

  Args:
    terms: float [n, k], a column a term.
    values: float [n].

  Returns:
    (coefficients float64 [k], R squared: 1 - residual over total sum of
    squares).
  """
  terms = np.asarray(terms, np.float64)
  values = np.asarray(values, np.float64)
  # Tokens and squares of lengths differ by orders of magnitude.
  scale = np.abs(terms).max(axis=0)
  coefficients = np.linalg.lstsq(terms / scale, values, rcond=-1)[0] / scale
  residual = values - terms.dot(coefficients)
  spread = values - values.mean()
  return coefficients, 1.0 - residual.dot(residual) / spread.dot(spread)
