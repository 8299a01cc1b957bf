"""The process of one contender: measures when told to.

    python -m benchmarks.peers.worker TASK     (bench_peers.py starts it)

TASK is the JSON object of `processes.Worker`. Each line of standard input is a
request, a JSON object {"do": what, ...}, and gets one line of JSON back; what
else is printed goes to standard error. One step is timed at a time, and one
goes before that is not.
"""

import ctypes
import gc
import json
import os
import sys
import time
import traceback

from benchmarks.peers import contenders
from benchmarks.peers import work
from utils.errors import UserError


def _build(task, contender, sizes):
  """Returns what takes steps; see `tf_graph.Graph` and `torch_bert`."""
  # pylint: disable=import-outside-toplevel
  if contender.code == "torch":
    from benchmarks.peers import torch_bert
    return torch_bert.build(task["section"], contender, sizes,
                            task["threads"])
  if contender.code == "google":
    from benchmarks.peers import google_bert
    return google_bert.build(task["section"], sizes, task["threads"])
  from benchmarks.peers import own_bert
  return own_bert.build(task["section"], contender, sizes, task["threads"],
                        task["folder"])


def _memory(key):
  """Returns a figure of this process from the kernel, in MB."""
  with open("/proc/self/status") as stream:
    for line in stream:
      if line.startswith(key + ":"):
        return int(line.split()[1]) / 1e3
  raise UserError("/proc/self/status has no %s: memory needs Linux" % key)


def _release():
  """Hands what the last step freed back to the kernel, for the others."""
  gc.collect()
  libc = ctypes.CDLL(None)
  if hasattr(libc, "malloc_trim"):
    libc.malloc_trim(0)


class Bench(object):
  """Answers requests about one contender."""

  def __init__(self, task):
    self._task = task
    self._section = task["section"]
    self._contender = contenders.CONTENDERS[task["contender"]]
    self._sizes = work.Sizes(**task["sizes"])
    parts, _ = work.load_features(task["features"])
    self._features = parts["dev" if self._section == "predict" else "train"]
    self._model = _build(task, self._contender, self._sizes)

  def _batches(self, number, steps):
    if self._section == "pretrain":
      return [work.pretraining_batch(self._sizes, number + i)
              for i in range(steps)]
    order = ("sorted" if self._section == "predict" else
             "grouped" if self._contender.grouped else "random")
    return work.squad_batches(self._features, order, steps, self._sizes.batch,
                              number)

  def _timed(self, batches):
    """Returns what steps over batches took; the first is taken twice."""
    self._model.step(batches[0])
    seconds, losses = [], []
    for batch in batches:
      begin = time.perf_counter()
      loss = self._model.step(batch)
      seconds.append(time.perf_counter() - begin)
      losses.append(loss)
    return dict(
        seconds=seconds, losses=losses,
        sentences=sum(len(batch["input_ids"]) for batch in batches),
        tokens=int(sum(batch["input_mask"].sum() for batch in batches)))

  def steps(self, number, steps):
    """Times `steps` steps of round `number`."""
    return self._timed(self._batches(number, steps))

  def full(self, number, batch, length):
    """Times a step on full sequences."""
    made = work.full_batch(batch, length, self._sizes.vocab, number)
    return dict(self._timed([made]), squares=batch * length ** 2)

  def memory(self, steps):
    """Returns MB before and at the peak of steps."""
    before = _memory("VmRSS")
    for batch in self._batches(0, steps):
      self._model.step(batch)
    return dict(built=before, peak=_memory("VmHWM"))

  def products(self):
    """Times the matrix products of a pre-training step by themselves."""
    return self._model.products_seconds(
        work.products_of_pretraining(self._sizes), self._contender.bf16)

  def profile(self):
    """Returns shares of a step's operations; see `tf_graph.Graph.profile`."""
    batch = self._batches(0, 1)[0]
    self._model.step(batch)
    return self._model.profile(batch)

  def input(self):
    """Returns seconds that the runner's own input takes for a batch."""
    return dict(seconds=self._model.input_seconds(self._features, self._sizes))


def _answer(bench, request):
  function = getattr(bench, request.pop("do"))
  answer = function(**request)
  _release()
  return answer


def main():
  """Answers requests until the input ends."""
  channel = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def say(**answer):
    channel.write(json.dumps(answer) + "\n")
    channel.flush()

  task = json.loads(sys.argv[1])
  if task["cpus"]:
    os.sched_setaffinity(0, task["cpus"])
  try:
    bench = Bench(task)
    _release()
    say(ready=True)
    for line in sys.stdin:
      say(answer=_answer(bench, json.loads(line)))
  except UserError as error:
    say(fault=str(error))
  except Exception as error:  # pylint: disable=broad-except
    traceback.print_exc()
    say(fault="%s: %s" % (type(error).__name__, str(error).split("\n")[0]))


if __name__ == "__main__":
  main()
