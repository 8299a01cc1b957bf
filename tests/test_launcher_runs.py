"""Runs of the launchers: logs, resume, locks, signals, terminal.

Real bash processes with a stand-in for Python.
"""

import fcntl
import os
import pathlib
import pty
import shlex
import signal
import subprocess
import time

import pytest

from launcher_sandbox import checkout  # pylint: disable=unused-import
from launcher_sandbox import flags_of
from launcher_sandbox import one_line
from launcher_sandbox import set_up
from launcher_sandbox import site  # pylint: disable=unused-import
from launcher_sandbox import squad_golden
from launcher_sandbox import STUB
from launcher_sandbox import write_program

pytestmark = pytest.mark.once


def test_run_and_log(site):
  done = site.run("run_squad.sh")
  assert done.returncode == 0
  assert done.stdout == "stub: words on stdout\nstub: score\n"
  assert done.stderr.endswith("stub: words on stderr\n")
  (folder,) = site.runs()
  assert site.stub_flags() == squad_golden(
      site, use_fp16="false", use_xla="false", output_dir=str(folder))
  lines = (folder / "squad_large_v1.1.log").read_text().splitlines()
  assert lines[0].startswith("# 20")
  assert flags_of(shlex.split(lines[1])[2:]) == site.stub_flags()
  assert sorted(lines[2:]) == [
      "stub: score", "stub: words on stderr", "stub: words on stdout"]
  assert (folder / "launch.done").exists()


def test_one_stream_keeps_its_order(site):
  done = site.run("run_squad.sh", stderr=subprocess.STDOUT)
  tail = ["stub: words on stdout", "stub: words on stderr", "stub: score"]
  assert done.stdout.splitlines()[-3:] == tail
  (folder,) = site.runs()
  assert (folder / "squad_large_v1.1.log").read_text().splitlines()[2:] == tail


def test_printed_command_is_the_command(site):
  words = ["--run_dir=r", "--bert_model=mine"]
  printed = site.command("run_squad.sh", *words)
  assert not (site.home / "r").exists()
  site.run("run_squad.sh", *words)
  assert site.stub_flags() == printed


def test_status_and_resume(site):
  done = site.run("run_squad.sh", env={"STUB_STATUS": "3"})
  assert done.returncode == 3
  (first,) = site.runs()
  other = site.run("run_squad.sh", "--seed=1")
  assert other.returncode == 0 and len(site.runs()) == 2

  again = site.run("run_squad.sh", "--dry_run")
  assert str(first) in again.stdout and "going on with" in again.stderr
  again = site.run("run_squad.sh")
  assert again.returncode == 0 and "going on with" in again.stderr
  assert site.stub_flags()["output_dir"] == str(first)
  log = (first / "squad_large_v1.1.log").read_text()
  assert log.count("stub: words on stdout") == 2

  finished = site.run("run_squad.sh")
  assert "going on with" not in finished.stderr
  assert len(site.runs()) == 3


def test_newest_unfinished_run_or_a_fresh_one(site):
  fail = {"STUB_STATUS": "1"}
  site.run("run_squad.sh", env=fail)
  (first,) = site.runs()
  site.run("run_squad.sh", "--fresh", env=fail)
  (second,) = set(site.runs()) - {first}
  site.run("run_squad.sh", env=fail)
  assert site.stub_flags()["output_dir"] == str(second)
  (first / "launch.hash").replace(second / "launch.hash")
  site.run("run_squad.sh")
  assert site.stub_flags()["output_dir"] == str(second)


def test_named_folder(site):
  assert site.run("run_squad.sh", "--run_dir=a b").returncode == 0
  folder = site.home / "a b"
  assert site.stub_flags()["output_dir"] == str(folder)
  assert (folder / "launch.done").exists() and not site.runs()
  done = site.run("run_squad.sh", "--run_dir=a b", "--epochs=3",
                  env={"STUB_STATUS": "1"})
  assert "settings differ" in done.stderr
  assert not (folder / "launch.done").exists()
  done = site.run("run_squad.sh", "--run_dir=a b", "--fresh")
  assert "is not empty" in one_line(done, 1)


def test_equal_settings_however_paths_are_written(site):
  (site.home / "t").mkdir()
  (site.home / "t" / "a.json").write_text("{}")
  link = site.home.parent / "linked"
  link.symlink_to(str(site.home))
  site.run("run_squad.sh", "--train_file=t/a.json", env={"STUB_STATUS": "1"})
  (folder,) = site.runs()
  for spelling in ("t/../t/a.json", str(link / "t/a.json")):
    for results in (site.env["RESULTS_DIR"], "my results", "t/../my results",
                    str(link / "my results")):
      done = site.run("run_squad.sh", "--dry_run", "--train_file", spelling,
                      env={"RESULTS_DIR": results})
      assert "going on with" in done.stderr and str(folder) in done.stdout


def test_linked_checkout_is_the_same_checkout(site, checkout):
  set_up(checkout, "tf1")
  link = site.home / "link to it"
  link.symlink_to(str(checkout))
  env = {"RESULTS_DIR": "", "STUB_STATUS": "1"}
  (checkout / "results").mkdir()
  config = "--bert_config={}/scripts/configs/bert_base.json"
  for place in (link, checkout):
    done = site.run(str(place / "scripts/run_pretraining.sh"),
                    config.format(place), env=env)
  assert "going on with" in done.stderr


def held_contents(folder):
  return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("words", [[], ["--run_dir={}"],
                                   ["--run_dir={}", "--epochs=3"]])
def test_folder_of_a_living_run_is_left_alone(site, words):
  site.run("run_squad.sh", env={"STUB_STATUS": "1"})
  (folder,) = site.runs()
  words = [word.format(folder) for word in words]
  with open(str(folder / ".lock"), "a+") as lock:
    lock.write("77\n")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = held_contents(folder)
    line = one_line(site.run("run_squad.sh", *words), 1)
    assert "another run (process 77)" in line and str(folder) in line
    assert held_contents(folder) == before
  assert site.run("run_squad.sh", *words).returncode == 0


def test_one_that_is_about_to_be_gone_is_waited_for(site):
  """After a kill -9 the kernel takes a moment to let go of a lock."""
  site.run("run_squad.sh", env={"STUB_STATUS": "1"})
  (folder,) = site.runs()
  with subprocess.Popen(["flock", str(folder / ".lock"), "sh", "-c",
                         "echo held; exec sleep 0.7"],
                        stdout=subprocess.PIPE) as holder:
    assert holder.stdout.readline() == b"held\n"
    assert site.run("run_squad.sh").returncode == 0


def test_second_start_before_the_program_has_its_lock(site):
  process = started(site)
  (folder,) = site.runs()
  log = folder / "squad_large_v1.1.log"
  while "stub: score" not in log.read_text():
    time.sleep(0.02)
  before = held_contents(folder)
  line = one_line(site.run("run_squad.sh"), 1)
  assert "another run" in line and str(folder) in line
  assert held_contents(folder) == before
  os.kill(int((site.home / "ready").read_text()), signal.SIGKILL)
  process.communicate(timeout=30)
  assert "going on with" in site.run("run_squad.sh").stderr


def test_no_log_file(site):
  done = site.run("run_pretraining.sh", "--create_logfile=false")
  assert done.returncode == 0 and "log none" in done.stderr
  (folder,) = site.runs("pretraining")
  assert sorted(path.name for path in folder.iterdir()) == [
      "launch.done", "launch.hash"]


def started(site, *words, **kwargs):
  """A launcher whose stub waits to be told to end."""
  ready = site.home / "ready"
  process = site.popen("run_squad.sh", *words, env={"STUB_WAIT": str(ready)},
                       **kwargs)
  limit = time.time() + 20
  while not ready.exists():
    assert time.time() < limit and process.poll() is None
    time.sleep(0.02)
  return process


def test_signal_reaches_the_program(site):
  process = started(site)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 143
  assert "stub: told to end" in out and "the same command goes on" in err
  (folder,) = site.runs()
  log = (folder / "squad_large_v1.1.log").read_text()
  assert "stub: told to end" in log and "ended by signal 15" in log
  assert not (folder / "launch.done").exists()


def test_killed_program_is_one_line_and_gone_on_with(site):
  process = started(site)
  os.kill(int((site.home / "ready").read_text()), signal.SIGKILL)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 137
  assert err.splitlines()[-2:] == [
      "stub: words on stderr",
      "run_squad.sh: ended by signal 9; the same command goes on"]
  assert "going on with" in site.run("run_squad.sh").stderr


@pytest.mark.parametrize("whole_group", [False, True])
def test_terminal_that_hangs_up_ends_the_program(site, whole_group):
  process = started(site, start_new_session=True)
  (os.killpg if whole_group else os.kill)(process.pid, signal.SIGHUP)
  out, _ = process.communicate(timeout=30)
  # The group's program hears of it from the terminal and from the launcher.
  assert process.returncode in ((129, 143) if whole_group else (143,))
  (folder,) = site.runs()
  log = (folder / "squad_large_v1.1.log").read_text()
  assert "# ended by signal" in log
  assert whole_group or "stub: told to end" in out and "told to end" in log
  assert not (folder / "launch.done").exists()


def test_nohup_is_heeded(site):
  process = started(
      site, start_new_session=True,
      preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
  os.killpg(process.pid, signal.SIGHUP)
  time.sleep(0.3)
  assert process.poll() is None
  process.terminate()
  out, _ = process.communicate(timeout=30)
  assert process.returncode == 143 and "stub: told to end" in out


def test_interrupt_of_the_whole_group(site):
  process = started(site, start_new_session=True)
  os.killpg(process.pid, signal.SIGINT)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 130, err
  assert "stub: interrupted" in out
  (folder,) = site.runs()
  assert "stub: interrupted" in (folder / "squad_large_v1.1.log").read_text()


def test_interrupt_of_a_program_that_cannot_hear_it(site):
  stub = site.env["BERT_PYTHON"]
  write_program(pathlib.Path(stub), STUB.replace("trap 'echo \"stub: int",
                                                 "trap '' INT; : 'echo \"int"))
  process = started(site, start_new_session=True)
  os.killpg(process.pid, signal.SIGINT)
  process.communicate(timeout=30)
  assert process.returncode == 143


def test_at_a_terminal(site):
  main, terminal = pty.openpty()
  process = site.popen("run_squad.sh", env={"STUB_STATUS": "4"},
                       stdout=terminal, stderr=terminal)
  os.close(terminal)
  shown = b""
  while True:
    try:
      piece = os.read(main, 4096)
    except OSError:  # Linux: the other end is closed
      break
    if not piece:
      break
    shown += piece
  os.close(main)
  assert process.wait(timeout=30) == 4
  assert b"stub: terminal" in shown
  (folder,) = site.runs()
  log = folder / "squad_large_v1.1.log"
  assert site.stub_flags()["log_file"] == str(log)
  assert log.read_text().splitlines()[2:] == [  # the program writes the rest
      "# ended with status 4"]
  assert site.run("run_squad.sh").returncode == 0  # log_file is no setting
  assert site.runs() == [folder]
