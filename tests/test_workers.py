"""utils/workers, stages and shares: who does what, and what is done once."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from utils import files
from utils import shares
from utils import stages
from utils import workers
from utils.errors import UserError


class TestWorkers(object):

  @pytest.mark.parametrize("num_workers", [1, 2, 3, 9])
  def test_results_in_order(self, num_workers):
    jobs = list(range(7))
    results = list(workers.run_all(
        lambda job: (job * job, os.getpid()), jobs, num_workers))
    assert [square for square, _ in results] == [j * j for j in jobs]
    processes = {process for _, process in results}
    assert len(processes) <= num_workers
    assert (os.getpid() in processes) == (num_workers == 1)

  def test_nothing_to_do(self):
    assert list(workers.run_all(None, [], 4)) == []

  @pytest.mark.parametrize("num_workers", [0, -1])
  def test_no_workers(self, num_workers):
    with pytest.raises(UserError, match="--num_workers=%d: give 1 or more"
                       % num_workers):
      list(workers.run_all(lambda job: job, [1], num_workers))

  @pytest.mark.parametrize("num_workers", [1, 2])
  def test_bad_input_is_told_as_such(self, num_workers):
    def fail(job):
      raise UserError("file %d is bad" % job)

    with pytest.raises(UserError, match="file [12] is bad"):
      list(workers.run_all(fail, [1, 2], num_workers))

  def test_a_full_disk_stays_one(self):
    def fail(job):
      raise OSError(28, "No space left on device", "x")

    with pytest.raises(OSError) as caught:
      list(workers.run_all(fail, [1, 2], 2))
    assert caught.value.errno == 28 and caught.value.filename == "x"

  def test_a_fault_keeps_its_traceback(self):
    def fail(job):
      return [][job]

    with pytest.raises(RuntimeError) as caught:
      list(workers.run_all(fail, [1, 2], 2))
    assert "return [][job]" in str(caught.value)
    assert "IndexError" in str(caught.value)

  def test_killed(self):
    def die(job):
      if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
      return job

    with pytest.raises(UserError) as caught:
      list(workers.run_all(die, [1, 2, 3], 2))
    assert "was killed by signal 9" in str(caught.value)

  def test_no_process_is_left(self, root):
    """Whether all goes well or not, and on Ctrl-C."""
    code = textwrap.dedent("""
        import multiprocessing, os, signal, sys, time
        from utils import workers
        assert sum(workers.run_all(lambda job: job, [1, 2, 3], 2)) == 6
        assert not multiprocessing.active_children()
        parent = os.getpid()
        def interrupt(job):
          if job == 1:
            os.kill(parent, signal.SIGINT)
          time.sleep(1000)
        try:
          list(workers.run_all(interrupt, [1, 2, 3], 2))
        except KeyboardInterrupt:
          print(multiprocessing.active_children())
        """)
    out = subprocess.check_output([sys.executable, "-c", code], cwd=str(root),
                                  timeout=60)
    assert out.decode().strip() == "[]"


class TestStages(object):

  @pytest.fixture
  def pieces(self, tmp_path):
    """Three pieces whose outputs repeat their inputs."""
    made = []
    for name in "abc":
      path = tmp_path / name
      path.write_text(name * 5)
      made.append(stages.Piece([str(path)], str(path) + ".out",
                               {"times": 2, "pair": (1, 2)}, name))
    return made

  @staticmethod
  def repeat(piece):
    """Makes a piece, and leaves a line about it."""
    with open(piece.inputs[0]) as stream:
      text = stream.read() * piece.settings["times"]
    with files.atomic_write(piece.output) as stream:
      stream.write(text)
    with open(os.path.dirname(piece.output) + "/log", "a") as stream:
      stream.write(piece.work)
    return {"size": len(text)}

  def run(self, pieces, **kwargs):
    """Returns (counts, names of the pieces that were made)."""
    log = os.path.dirname(pieces[0].output) + "/log"
    if os.path.exists(log):
      os.remove(log)
    counts = [c["size"] for _, c in stages.run_pieces(
        self.repeat, pieces, kwargs.pop("num_workers", 1), **kwargs)]
    made = ""
    if os.path.exists(log):
      with open(log) as stream:
        made = "".join(sorted(stream.read()))
    return counts, made

  @pytest.mark.parametrize("num_workers", [1, 2])
  def test_once(self, pieces, num_workers):
    assert self.run(pieces, num_workers=num_workers) == ([10, 10, 10], "abc")
    assert self.run(pieces, num_workers=num_workers) == ([10, 10, 10], "")

  def test_what_is_made_again(self, pieces, tmp_path):
    self.run(pieces)
    os.truncate(pieces[0].output, 3)
    os.remove(pieces[1].output)
    assert self.run(pieces) == ([10, 10, 10], "ab")
    os.remove(stages.record_path(pieces[2].output))
    assert self.run(pieces) == ([10, 10, 10], "c")
    (tmp_path / "a").write_text("another length")
    assert self.run(pieces) == ([28, 10, 10], "a")
    now = os.stat(pieces[1].output).st_mtime
    os.utime(str(tmp_path / "b"), (now + 5, now + 5))  # newer, as large
    with open(stages.record_path(pieces[2].output), "w") as stream:
      stream.write("{")
    assert self.run(pieces) == ([28, 10, 10], "bc")
    others = [p._replace(settings={"times": 3, "pair": (1, 2)})
              for p in pieces]
    assert self.run(others)[1] == "abc"

  def test_failed_is_not_done(self, pieces):
    self.run(pieces)
    (lambda path: os.truncate(path, 1))(pieces[0].inputs[0])

    def fail(piece):
      raise UserError("no")

    with pytest.raises(UserError):
      stages.run_pieces(fail, pieces, 1)
    assert stages.counts_of(pieces[0]) is None
    assert not os.path.exists(stages.record_path(pieces[0].output))

  def test_an_input_that_changes_meanwhile(self, pieces):
    def change(piece):
      with open(piece.inputs[0], "a") as stream:
        stream.write("more")
      return self.repeat(piece)

    with pytest.raises(UserError) as caught:
      stages.run_pieces(change, pieces[:1], 1)
    assert "%s changed while it was read" % pieces[0].inputs[0] in str(
        caught.value)
    assert stages.counts_of(pieces[0]) is None

  def test_an_input_from_the_future(self, pieces):
    """Of a machine whose clock is ahead: made once, not again and again."""
    later = time.time() + 86400
    os.utime(pieces[0].inputs[0], (later, later))
    assert self.run(pieces) == ([10, 10, 10], "abc")
    assert self.run(pieces) == ([10, 10, 10], "")

  def test_parts_and_waiting(self, pieces, monkeypatch):
    first, second = (shares.Share(i, 2, "test") for i in (0, 1))
    assert self.run(pieces, share=first) == ([10, 10], "ac")
    with pytest.raises(UserError) as caught:
      stages.wait_for(pieces, 0, "pieces")
    assert "1 of 3 pieces are still missing" in str(caught.value)
    assert pieces[1].output in str(caught.value)
    assert stages.wait_for(pieces, 1, "pieces", lambda: True) is None
    # Another part makes the last one while this one waits.
    naps = []

    def nap(seconds):
      naps.append(seconds)
      if len(naps) == 3:
        assert self.run(pieces, share=second) == ([10], "b")

    monkeypatch.setattr(stages.time, "sleep", nap)
    assert stages.wait_for(pieces, 1, "pieces") == [{"size": 10}] * 3
    assert len(naps) == 3


class TestShares(object):

  def test_alone(self):
    share = shares.share_of(environ={})
    assert share == shares.WHOLE
    assert share.mine([1, 2, 3]) == [1, 2, 3]

  def test_parts_are_disjoint_and_whole(self):
    items = list(range(11))
    parts = [shares.Share(i, 4, "").mine(items) for i in range(4)]
    assert sorted(sum(parts, [])) == items
    assert max(map(len, parts)) - min(map(len, parts)) == 1

  @pytest.mark.parametrize("environ,index,count,source", [
      ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, 2, 3,
       "OMPI_COMM_WORLD_RANK"),
      ({"PMI_RANK": "0", "PMI_SIZE": "2"}, 0, 2, "PMI_RANK"),
      ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, 1, 4,
       "SLURM_PROCID"),
      # A batch script outside of any step: it is alone, whatever it asked for.
      ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 0, 1, "alone"),
      ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3",
        "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "7"}, 2, 3,
       "SLURM_ARRAY_TASK_ID"),
      ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "1",
        "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "5"}, 0, 1,
       "alone"),
      ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1",
        "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}, 5, 6,
       "SLURM_ARRAY_TASK_ID and SLURM_PROCID"),
  ])
  def test_environment(self, environ, index, count, source):
    assert shares.share_of(environ=environ) == (index, count, source)
    given = shares.share_of(1, 2, environ)
    assert given == (1, 2, "--shard_index")

  @pytest.mark.parametrize("index,count,environ,message", [
      (1, None, {}, "go together"),
      (None, 3, {}, "go together"),
      (3, 3, {}, "does not exist"),
      (-1, 3, {}, "does not exist"),
      (0, 0, {}, "does not exist"),
      (None, None, {"PMI_RANK": "x", "PMI_SIZE": "2"}, "PMI_RANK is 'x'"),
      (None, None, {
          "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "3",
          "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "9"}, None),
      (None, None, {
          "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3",
          "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "9"},
       "not evenly spaced"),
  ])
  def test_bad(self, index, count, environ, message):
    if message is None:
      assert shares.share_of(index, count, environ).index == 1
      return
    with pytest.raises(UserError) as caught:
      shares.share_of(index, count, environ)
    assert message in str(caught.value)


def test_leftovers(tmp_path):
  """Those of the dead go, also of zombies; those of the living stay."""
  zombie = subprocess.Popen(["true"])
  os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
  path = str(tmp_path / "x[1].txt")
  place = lambda host, process: tmp_path / (
      ".x[1].txt.%s.%d.tmp" % (host, process))
  for process in (os.getpid(), zombie.pid, 2 ** 22 + 1):
    place(files._HOST, process).write_text("half")
    place("elsewhere", process).write_text("of another machine")
  long_ago = time.time() - 2 * 86400
  os.utime(str(place("elsewhere", zombie.pid)), (long_ago, long_ago))
  (tmp_path / ".x1.txt.4194305.tmp").write_text("of another file")
  files.remove_leftovers(path)
  assert set(tmp_path.iterdir()) == {
      tmp_path / ".x1.txt.4194305.tmp", place(files._HOST, os.getpid()),
      place("elsewhere", os.getpid()), place("elsewhere", 2 ** 22 + 1)}
  zombie.wait()
