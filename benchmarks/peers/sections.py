"""What is measured in each section, and what its rows of the table say."""

import contextlib
import statistics
import sys

import numpy as np

from benchmarks.peers import contenders
from benchmarks.peers import processes
from benchmarks.peers import work
from utils import benchmarks

COLUMNS = ["Work", "Version", "Measured", "Against", "Measured", "Ratio",
           "Target", ""]
_TITLES = {"step": "SQuAD fine-tuning, batch %d x %d",
           "predict": "SQuAD prediction, batch %d x %d",
           "pretrain": "pre-training, batch %d x %d, full",
           "memory": "peak memory, fine-tuning, batch %d x %d"}


def _say(text, *arguments):
  sys.stderr.write(text % arguments + "\n")
  sys.stderr.flush()


class Bench(object):
  """One section's measurements.

  Attributes:
    faults: {contender: why there is nothing of it}.

  Args:
    section: str.
    options: of the command line.
    sizes: `work.Sizes`.
    record: function that keeps one raw row, given as keywords.
    logs: folder of what the contenders say.
  """

  def __init__(self, section, options, sizes, record, logs):
    self.section = section
    self.faults = {}
    self._options = options
    self._sizes = sizes
    self._record = record
    self._logs = logs
    self._answers = {}

  def of(self, name, what):
    """Returns the answers of a contender to one kind of request."""
    return self._answers.get((name, what), [])

  def groups(self):
    """Yields lists of contenders that are to be measured in turn."""
    for group in contenders.GROUPS[self.section]:
      yield [name for name in group if self._options.contenders is None
             or name in self._options.contenders]

  @contextlib.contextmanager
  def started(self, names):
    """Yields {name: worker} of those that can run here."""
    with contextlib.ExitStack() as stack:
      workers = {}
      for name in names:
        if (contenders.CONTENDERS[name].bf16
            and not benchmarks.cpu_has_bfloat16()):
          self.drop(name, "this CPU has neither AVX512_BF16 nor AMX")
          continue
        try:
          worker = stack.enter_context(processes.Worker(
              name, self.section, self._sizes, self._options, self._logs))
          worker.wait_ready()
          workers[name] = worker
        except processes.Fault as fault:
          self.drop(name, str(fault))
      yield workers

  def drop(self, name, why):
    self.faults[name] = why
    _say("%s: %s: not measured: %s", self.section, name, why)

  def ask_all(self, workers, turn, what, **request):
    """Asks the workers in turn; those that fail are dropped.

    Args:
      workers: {name: worker}, changed.
      turn: int, the round; what round 0 says only warms up.
      what: str, the request.
      **request: its arguments.
    """
    for name, worker in list(workers.items()):
      try:
        answer = worker.ask(what, **request)
      except processes.Fault as fault:
        self.drop(name, str(fault))
        del workers[name]
        continue
      row = dict(answer, section=self.section, contender=name, what=what,
                 round=turn)
      if turn:
        self._answers.setdefault((name, what), []).append(answer)
        self._record(**row)
      _say("%s", "  ".join("%s %s" % pair for pair in _shown(row)))


def _shown(row):
  for key, value in row.items():
    if isinstance(value, float):
      value = "%.4g" % value
    elif isinstance(value, list):
      value = ", ".join("%.4g" % one for one in value if one is not None)
    yield key, value


def _is_own(name):
  return contenders.CONTENDERS[name].code == "own"


def _is_default(name):
  """Says whether a contender is this suite as it comes."""
  return "--fused_ops=on" in contenders.CONTENDERS[name].flags


def _ask_some(bench, workers, chosen, what, **request):
  bench.ask_all({name: worker for name, worker in workers.items()
                 if chosen(name)}, 1, what, **request)


def _measure_steps(bench, options):
  """Rounds of steps, then what is asked once."""
  steps = (options.predict_steps if bench.section == "predict"
           else options.steps)
  for names in bench.groups():
    with bench.started(names) as workers:
      for number in range(options.rounds + 1):
        bench.ask_all(workers, number, "steps", number=number, steps=steps)
        if bench.section == "pretrain":
          own = {name: worker for name, worker in workers.items()
                 if _is_own(name)}
          bench.ask_all(own, number, "products")
      if bench.section == "step":
        _ask_some(bench, workers, _is_default, "input")
      if options.profile:
        _ask_some(bench, workers, lambda name: contenders.CONTENDERS[
            name].code != "torch", "profile")


def _measure_memory(bench, options):
  for name in [name for names in bench.groups() for name in names]:
    with bench.started([name]) as workers:
      bench.ask_all(workers, 1, "memory", steps=options.memory_steps)


def _grid(options):
  """Yields (batch, length) of the fit, the largest first."""
  sizes = [(batch, length) for batch in (1, 2, 4, 8, 16, 32, 64)
           for length in (32, 64, 128, 256, 384, 512)
           if batch * length <= options.most_tokens]
  return sorted(sizes, key=lambda size: -size[0] * size[1])


def _measure_fit(bench, options):
  for names in bench.groups():
    with bench.started(names) as workers:
      for number in range(1, options.rounds + 1):
        for batch, length in _grid(options):
          bench.ask_all(workers, number, "full", number=number, batch=batch,
                        length=length)


MEASURES = {"step": _measure_steps, "predict": _measure_steps,
            "pretrain": _measure_steps, "memory": _measure_memory,
            "fit": _measure_fit}


def _label(name):
  return contenders.CONTENDERS[name].label


def _median_rate(answers):
  """Returns the median over rounds of sentences a second."""
  return statistics.median(
      answer["sentences"] / sum(answer["seconds"]) for answer in answers)


def _total_rate(answers):
  """Returns the sentences a second of all rounds together."""
  return (sum(answer["sentences"] for answer in answers)
          / sum(sum(answer["seconds"]) for answer in answers))


def _rate(target):
  """Returns the rate that compares a pair.

  Rounds of batches grouped by length differ in what there is to do, so that
  their median is that of the work as well.
  """
  grouped = any(contenders.CONTENDERS[name].grouped
                for name in (target.ours, target.theirs))
  return _total_rate if grouped else _median_rate


def _judged(ratio, target, at_most=False):
  """Returns the cells of ratio, target and whether it was reached."""
  if target is None:
    return ["%.2f" % ratio, "", ""]
  met = ratio <= target if at_most else ratio >= target
  return ["%.2f" % ratio, "%s %g" % ("<=" if at_most else ">=", target),
          "met" if met else "missed"]


def _fault_cells(bench, names):
  return ["", "", "not measured: " + "; ".join(sorted(
      {bench.faults[name].split(" (see")[0] for name in names
       if name in bench.faults}) or ["left out"])]


def _title(bench, sizes):
  return _TITLES[bench.section] % (sizes.batch, sizes.length)


def _compared(bench, sizes, what, figure_of, unit, at_most=False, suffix=""):
  """Yields the table's rows of a section's targets.

  Args:
    figure_of: function of a target that returns a function of answers.
  """
  for target in contenders.TARGETS[bench.section]:
    row = [_title(bench, sizes) + suffix]
    figure, figures = figure_of(target), []
    for name in (target.ours, target.theirs):
      answers = bench.of(name, what)
      figures.append(figure(answers) if answers else None)
      row += [_label(name), unit % figures[-1] if answers else ""]
    if None not in figures:
      row += _judged(figures[0] / figures[1], target.ratio, at_most)
    elif target.ratio is None or figures == [None, None] and not any(
        name in bench.faults for name in (target.ours, target.theirs)):
      continue
    else:
      row += _fault_cells(bench, (target.ours, target.theirs))
    yield row


def _input_rows(bench, sizes):
  """Yields the rows of the input beside the step."""
  for name in contenders.CONTENDERS:
    if bench.of(name, "input") and bench.of(name, "steps"):
      alone = bench.of(name, "input")[0]["seconds"]
      step = sizes.batch / _median_rate(bench.of(name, "steps"))
      yield ["input of a step, batch %d x %d" % (sizes.batch, sizes.length),
             _label(name), "%.2f ms" % (1e3 * alone), "the step itself",
             "%.0f ms" % (1e3 * step), "%.4f" % (alone / step), "", ""]


def _share_rows(bench, sizes):
  """Yields the rows of the share of the matrix products' own rate."""
  flops = work.flops_of(work.products_of_pretraining(sizes))
  for name, target in contenders.SHARES.items():
    if not bench.of(name, "products"):
      continue
    step = sizes.batch / _median_rate(bench.of(name, "steps"))
    alone = statistics.median(
        answer["seconds"] for answer in bench.of(name, "products"))
    yield [_title(bench, sizes) + ": products' rate", _label(name),
           "%.0f GFLOP/s" % (flops / step / 1e9), "the products alone",
           "%.0f GFLOP/s" % (flops / alone / 1e9)
          ] + _judged(alone / step, target)


def _memory_rows(bench, sizes):
  yield from _compared(
      bench, sizes, "memory", lambda _: lambda answers: answers[0]["peak"],
      "%.0f MB", at_most=True, suffix=": of the process")
  yield from _compared(
      bench, sizes, "memory",
      lambda _: lambda answers: answers[0]["peak"] - answers[0]["built"],
      "%.0f MB", at_most=True, suffix=": what steps add")


def _fit_rows(bench):
  """Yields the row of each contender's a + b tokens + c sum of squares."""
  for name in contenders.CONTENDERS:
    points = {}
    for answer in bench.of(name, "full"):
      points.setdefault((answer["tokens"], answer["squares"]), []).append(
          sum(answer["seconds"]))
    if len(points) < 4:
      continue
    terms = np.array([[1, tokens, squares] for tokens, squares in points])
    seconds = [statistics.median(times) for times in points.values()]
    (a, b, c), quality = benchmarks.least_squares(terms, seconds)
    yield ["step over work, %d to %d tokens" % (
        terms[:, 1].min(), terms[:, 1].max()), _label(name),
           "a = %.4f s, b = %.4f ms, c = %.4f us" % (a, 1e3 * b, 1e6 * c),
           "a + b tokens + c sum of length^2",
           "R^2 = %.4f" % quality] + _judged(quality, contenders.R_SQUARED)


def rows_of(bench, sizes):
  """Returns the table's rows of a measured section."""
  if bench.section == "fit":
    return list(_fit_rows(bench))
  if bench.section == "memory":
    return list(_memory_rows(bench, sizes))
  rows = list(_compared(bench, sizes, "steps", _rate,
                        "%.2f sentences/s"))
  if bench.section == "step":
    rows += _input_rows(bench, sizes)
  if bench.section == "pretrain":
    rows += _share_rows(bench, sizes)
  return rows


def profile_rows(bench, kinds):
  """Yields a row of shares of operations' time for each contender."""
  for name in contenders.CONTENDERS:
    for shares in bench.of(name, "profile"):
      yield [bench.section, _label(name)] + [
          "%.0f %%" % (100 * shares.get(kind, 0)) for kind in kinds]
