"""One rank of several calls of a runner, one after the other.

Starting TensorFlow takes longer than what these tests train, so the ranks of
`mpirun` or `horovodrun` stay for all calls of a test. Its argument is a JSON
file, a list of {"runner", "flags", "rank_1", "patch"}, all with the same
runner: flags of rank 1 come after those of all; a patch is "rank:function", of
the functions below. A call's exit status and what it said are written beside
that file, as <file>.<call>.<rank> and <file>.<call>.<rank>.err.
"""

import importlib
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from absl import flags
from absl.testing import flagsaver
import numpy as np
import tensorflow.compat.v1 as tf

from utils import errors
from utils import hooks

RANK = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("HOROVOD_RANK"))


def _in_fourth_update(value, other):
  # Not by the step, which a skipped update leaves as it is.
  consumed = tf.get_variable("records_consumed", [], tf.int64)
  return tf.where(tf.equal(consumed, 3 * 8), other, value)


def overflow(runner):
  """The gradient of the fourth update overflows, the loss does not."""
  inner = runner.weighted_sum

  def patched(outputs):
    value = inner(outputs)
    # Worth nothing, but for its gradient.
    nothing = value - tf.stop_gradient(value)
    return value + nothing * _in_fourth_update(0.0, 3e38)
  runner.weighted_sum = patched


def not_a_number(runner):
  """The loss of the fourth update is not a number."""
  inner = runner.weighted_sum
  runner.weighted_sum = lambda outputs: (
      inner(outputs) * _in_fourth_update(1.0, float("nan")))


class _Dump(tf.train.SessionRunHook):
  """Leaves this rank's variables at the end of training."""

  def __init__(self, folder):
    self._path = "%s.rank%s.npz" % (folder, RANK)

  def begin(self):
    self._variables = {v.op.name: v for v in tf.global_variables()}

  def end(self, session):
    np.savez(self._path, **session.run(self._variables))


def dumping(make_guard, folder):
  """Makes each `FiniteGuardHook` leave the rank's variables as well."""
  def make(*args):
    guard, dump = make_guard(*args), _Dump(folder)
    guard.begin, guard.end = dump.begin, dump.end
    return guard
  return make


def run(call, runner):
  """Runs one call; returns its exit status."""
  before, make_guard = dict(vars(runner)), hooks.FiniteGuardHook
  if call["patch"]:
    rank, name = call["patch"].split(":")
    if rank == RANK:
      globals()[name](runner)
  with flagsaver.flagsaver():
    flags.FLAGS([call["runner"]] + call["flags"]
                + (call["rank_1"] if RANK == "1" else []))
    hooks.FiniteGuardHook = dumping(make_guard, flags.FLAGS.output_dir)
    tf.reset_default_graph()
    try:
      errors.guard(runner.main, [])
    except SystemExit as end:
      return end.code or 0
    finally:
      vars(runner).update(before)
      hooks.FiniteGuardHook = make_guard
  return 0


def main():
  """Runs all calls and leaves what they said."""
  path = sys.argv[1]
  with open(path) as stream:
    calls = json.load(stream)
  # One runner, since two declare the same flags.
  runner = importlib.import_module(calls[0]["runner"])
  runner.define_flags()
  for number, call in enumerate(calls):
    name = "%s.%d.%s" % (path, number, RANK)
    stream = os.open(name + ".err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 2)
    os.close(stream)
    status = run(call, runner)
    with open(name, "w") as stream:
      stream.write(str(status))


if __name__ == "__main__":
  main()
