"""Several ranks: their command line, their output, how they end.

Real launchers, a real mpirun and horovodrun, and programs of a few lines of
bash in place of Python. Hosts have their tests in test_launch_hosts.py, CPUs
theirs in test_launch_cpus.py.
"""

import os
import shlex
import signal
import subprocess

import pytest

from launcher_sandbox import flags_of
from launcher_sandbox import gpu_site  # pylint: disable=unused-import
from launcher_sandbox import one_line
from launcher_sandbox import ROOT
from launcher_sandbox import site  # pylint: disable=unused-import
from launcher_sandbox import squad_golden
from launcher_sandbox import without_output
from launcher_sandbox import write_program
from rank_sandbox import finish
from rank_sandbox import kill
from rank_sandbox import needs_horovodrun
from rank_sandbox import needs_mpirun
from rank_sandbox import own_lines
from rank_sandbox import parent
from rank_sandbox import RankSite
from rank_sandbox import SAVES_BY_FILE
from rank_sandbox import SAVES_BY_SIGNAL


@pytest.fixture
def ranks(tmp_path):
  return RankSite(tmp_path, "mpirun")


@pytest.fixture(params=[
    pytest.param("mpirun", marks=needs_mpirun),
    pytest.param("horovodrun", marks=needs_horovodrun)])
def both(request, tmp_path):
  """Ranks by either starter; horovodrun takes seconds to start."""
  return RankSite(tmp_path, request.param)


# --- command lines -----------------------------------------------------------


def stand_in(site, name, text="echo 'mpirun (Open MPI) 4.1.4'"):
  write_program(site.home.parent / "bin" / name, "#!/bin/sh\n" + text + "\n")
  site.env["PATH"] = "{}:{}".format(site.home.parent / "bin", site.env["PATH"])


def starter(done):
  """The words before the program, as --dry_run prints them."""
  line = done.stdout.splitlines()[-2]
  assert line.startswith("# ") and " ranks by: " in line, done.stdout
  return shlex.split(line.split(" ranks by: ")[1])


def test_mpirun_command_line(gpu_site):
  site = gpu_site
  stand_in(site, "mpirun")
  words = ["run_squad.sh", "--run_dir=r"]
  done = site.run(*(words + ["--dry_run", "--num_gpus=2"]))
  assert done.returncode == 0 and done.stderr == ""
  root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
  assert starter(done) == ["mpirun"] + root + (
      "-np 2 --host localhost:2 --map-by slot --bind-to none --mca pml ob1 "
      "--mca btl ^openib --mca odls_base_sigkill_timeout 10 "
      "--mca odls_base_signal_direct_children_only true "
      "--mca plm ^slurm,tm,lsf,alps "
      "--mca ras ^slurm,tm,gridengine,lsf,loadleveler,alps bash").split() + [
          str(ROOT / "scripts/lib/rank.sh"), str(site.home / "r"), "true"]
  flags = flags_of(shlex.split(done.stdout.splitlines()[-1])[2:])
  assert flags.pop("horovod") == "true"
  assert flags == site.command(*(words + ["--num_gpus=1"]))
  # All three GPUs without a word; what the environment sets is left to it.
  done = site.run(*(words + ["--dry_run", "--bind_cpus=false"]),
                  env={"OMPI_MCA_btl": "tcp,self"})
  assert "-np 3" in done.stdout and "--mca btl" not in done.stdout
  assert starter(done)[-1] == "false"


def test_horovodrun_command_line(gpu_site):
  site = gpu_site
  stand_in(site, "horovodrun")
  words = ["run_squad_inference.sh", "--init_checkpoint=my results/tuned",
           "--dry_run", "--num_gpus=2"]
  assert "horovod" not in site.command(*words[:-1])
  for mpirun in ("exit 1", "echo HYDRA build details:"):
    stand_in(site, "mpirun", mpirun)   # none, and one of another MPI
    done = site.run(*words)
    assert done.stderr == ""
    assert starter(done)[1:-4] == (
        "--gloo -np 2 -H localhost:2 --start-timeout 120").split()
    assert starter(done)[0] == str(site.home.parent / "bin" / "horovodrun")
  stand_in(site, "mpirun")
  done = site.run(*(words + ["--rank_launcher=horovodrun"]))
  assert starter(done)[1] == "--gloo"


def test_horovod_without_mpi(gpu_site):
  site = gpu_site
  stand_in(site, "mpirun")
  stand_in(site, "horovodrun")
  folder = (site.home.parent
            / "lib/python3.11/site-packages/horovod/tensorflow")
  folder.mkdir(parents=True)
  library = folder / "mpi_lib.cpython-311-x86_64-linux-gnu.so"
  for content, expected in ((b"\0libgloo\0", "--gloo"),
                            (b"\0libmpi.so.40\0", "--host")):
    library.write_bytes(content)
    done = site.run("run_squad.sh", "--dry_run", "--num_gpus=2")
    assert expected in starter(done)


def test_nothing_that_starts_ranks(gpu_site):
  site = gpu_site
  stand_in(site, "mpirun", "exit 1")
  line = one_line(site.run("run_squad.sh", "--num_gpus=2"), 1)
  assert "2 processes need Open MPI's mpirun or" in line
  assert "scripts/setup.sh" in line and "--num_gpus 1" in line
  line = one_line(site.run("run_squad.sh", "--num_gpus=2",
                           "--rank_launcher=mpirun"), 1)
  assert "rank_launcher is mpirun, but there is no mpirun of Open MPI" in line
  assert not site.runs()


def test_one_rank_needs_no_starter(site):
  stand_in(site, "mpirun", "exit 1")
  assert site.run("run_squad.sh", "--num_gpus=1").returncode == 0
  assert "horovod" not in site.stub_flags()


# --- output ------------------------------------------------------------------


def test_output_of_ranks(both):
  both.program("""
    printf '%s\\0' "$@" >"$run/words.$rank"
    [[ ! -t 0 ]] && read -r -t 1 && echo 'got input'
    echo "out $rank"; echo; echo "err $rank" >&2
    wait_for "$run/words.$((1 - rank))"
    ((rank)) && sleep 0.5 || echo '{"f1": 90}'
  """)
  done = both.two(stdin=subprocess.PIPE)
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'out 0\n\n{"f1": 90}\n'
  lines = done.stderr.splitlines()[2:]
  assert sorted(lines) == ["err 0", "rank 1: ", "rank 1: err 1",
                           "rank 1: out 1"]
  words = [(both.run_dir / ("words.%d" % rank)).read_text().split("\0")[1:-1]
           for rank in range(2)]
  assert words[0] == words[1]
  flags = flags_of(words[0])
  assert flags.pop("horovod") == "true"
  assert without_output(flags) == squad_golden(
      both, use_fp16="false", use_xla="false")
  log = both.log().splitlines()
  assert log[1].startswith("# 2 ranks by: ") and both.starter in log[1]
  assert flags_of(shlex.split(log[2])[2:]) == flags_of(words[0])
  assert sorted(log[3:]) == sorted(lines + done.stdout.splitlines())
  assert (both.run_dir / "launch.done").exists() and not both.left()


@needs_mpirun
def test_one_stream_and_no_log(ranks):
  ranks.program("((rank)) || { echo one; echo two >&2; echo three; }")
  done = ranks.two("--create_logfile=false", stderr=subprocess.STDOUT)
  lines = done.stdout.splitlines()[2:]
  assert sorted(lines) == ["one", "three", "two"]
  assert sorted(path.name for path in ranks.run_dir.iterdir()) == [
      "launch.done", "launch.hash"]


@needs_mpirun
def test_messages_of_mpirun_are_kept(ranks):
  ranks.env["OMPI_MCA_rmaps"] = "nonsense"
  done = ranks.two()
  assert done.returncode not in (0, 130)
  assert "Component: nonsense" in done.stderr and "-----" not in done.stderr
  assert own_lines(done.stderr) == ["mpirun ended with status %d; the same "
                                    "command goes on" % done.returncode]


# --- ends --------------------------------------------------------------------


def test_killed_rank_is_named_and_all_are_gone(both):
  both.program("begun; wait_long")
  process, pids = both.two_started()
  kill(pids[1])
  status, out, err = finish(process)
  line = "rank 1 (host %s) ended by signal 9" % os.uname().nodename
  assert (status, out) == (137, "")
  assert own_lines(err) == [line + "; the same command goes on"]
  rest = [text for text in err.splitlines() if "begun!" not in text]
  assert rest[2:] == ["run_squad.sh: " + own_lines(err)[0]]
  assert both.log().splitlines()[-1] == "# " + own_lines(err)[0]
  assert not both.left() and not (both.run_dir / "launch.done").exists()


@needs_mpirun
@pytest.mark.parametrize("code, rank, shown", [
    (70, 1, "rank 1 (host {}) ended with status 70; the same command goes on"),
    (1, 1, "rank 1 (host {}) ended with status 1"),
    (1, 0, None)])
def test_status_of_a_rank(ranks, code, rank, shown):
  ranks.program("begun; wait_for \"$run/pid.$((1 - rank))\"\n"
                "((rank == %d)) || wait_long; exit %d" % (rank, code))
  done = ranks.two("--max_restarts=%d" % (code == 1))
  assert done.returncode == code
  expected = [shown.format(os.uname().nodename)] if shown else []
  assert own_lines(done.stderr) == expected
  assert len(done.stderr.splitlines()) == 4 + len(expected)  # two begun!, two
  assert "ended with status %d" % code in ranks.log().splitlines()[-1]
  assert not ranks.left()


@pytest.mark.parametrize("has_folder", [True, False])
def test_mpirun_hears_only_of_ends_that_the_launcher_cannot_read(
    tmp_path, has_folder):
  """After a status that is not 0 mpirun takes 20 seconds to end."""
  if has_folder:
    (tmp_path / "launch.hash").write_text("x")
  done = subprocess.run(
      ["bash", str(ROOT / "scripts/lib/rank.sh"), str(tmp_path), "false",
       "bash", "-c", "exit 3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      universal_newlines=True)
  line = "rank 0 (host %s) ended with status 3\n" % os.uname().nodename
  failed = tmp_path / "launch.failed"
  if has_folder:
    assert (done.returncode, done.stderr) == (0, "")
    assert failed.read_text() == line
  else:
    assert (done.returncode, done.stderr) == (3, line)
    assert not failed.exists()


@needs_mpirun
def test_a_lost_machine_is_a_crash_though_no_rank_ends_badly(ranks):
  ranks.program("echo 'host beta does not answer any more' "
                ">\"$run/launch.failed\"; exit 0")
  done = ranks.two()
  assert done.returncode == 70
  line, = own_lines(done.stderr)
  assert line == ("host beta does not answer any more; the same command goes "
                  "on")


@needs_mpirun
def test_mistake_that_all_ranks_find(ranks):
  ranks.program("echo 'ERROR: no such file' >&2; exit 1")
  done = ranks.two("--max_restarts=1")
  assert done.returncode == 1 and own_lines(done.stderr) == []
  assert [line for line in done.stderr.splitlines() if "run_" not in line] in (
      [["ERROR: no such file"], ["rank 1: ERROR: no such file"]])


@needs_mpirun
def test_rank_that_cannot_go_on_is_not_blamed(ranks):
  """Of a dead peer a rank hears at once, and ends with a status of its own."""
  ranks.program("""
    begun
    ((rank)) || { wait_for "$run/pid.1"
      while kill -0 "$(<"$run/pid.1")"; do :; done 2>/dev/null; exit 70; }
    wait_long
  """)
  process, pids = ranks.two_started()
  kill(pids[1])
  status, _, err = finish(process)
  assert status == 137 and own_lines(err)[0].startswith("rank 1 (host ")


@needs_mpirun
def test_restarts(ranks):
  """The first two times a rank dies; the third time both end well."""
  write_program(ranks.home.parent / "bin" / "sleep",
                "#!/bin/sh\nexec /bin/sleep 0.1\n")  # of whatever length
  ranks.env["PATH"] = "%s:%s" % (ranks.home.parent / "bin", ranks.env["PATH"])
  ranks.program("""
    ((rank)) || { wait_for "$run/fine"; exit; }
    echo x >>"$run/times"
    (($(wc -l <"$run/times") == 3)) || kill -9 "$$"
    echo >"$run/fine"
  """)
  done = ranks.two("--max_restarts=2")
  died = "rank 1 (host %s) ended by signal 9; the same command goes on" % (
      os.uname().nodename)
  assert done.returncode == 0, done.stderr
  assert own_lines(done.stderr) == [
      died, "restart 1 of 2 in 5 seconds", died, "restart 2 of 2 in 10 seconds"]
  assert (ranks.run_dir / "launch.done").exists()
  assert not (ranks.run_dir / "launch.failed").exists()
  assert "# restart 2 of 2" in ranks.log()


def test_stop_that_saves(both):
  both.program(
      SAVES_BY_FILE if both.starter == "horovodrun" else SAVES_BY_SIGNAL)
  process, _ = both.two_started("--stopped_status=85", "--max_restarts=3")
  process.terminate()
  status, _, err = finish(process)
  assert status == 85
  assert own_lines(err) == [
      "stopped at step 7, checkpoint saved; the same command goes on"]
  assert "stopped at step 7" in both.log().splitlines()[-1]
  assert not (both.run_dir / "launch.done").exists() and not both.left()
  # What is left of that stop does not stop the next start.
  both.program("[[ ! -e $run/launch.stop && ! -e $run/launch.stopped ]]")
  assert both.two().returncode == 0
  assert (both.run_dir / "launch.done").exists()


@pytest.fixture
def patient(ranks):
  """Ranks that mpirun gives more time from SIGTERM to SIGKILL."""
  ranks.env["OMPI_MCA_odls_base_sigkill_timeout"] = "3"
  return ranks


@needs_mpirun
def test_terminal_hangs_up_or_mpirun_is_told_itself(patient):
  """SIGTERM reaches all processes at once where a machine is shut down."""
  patient.program(SAVES_BY_SIGNAL)
  process, _ = patient.two_started(start_new_session=True)
  process.send_signal(signal.SIGHUP)
  assert finish(process)[0] == 0
  (patient.run_dir / "squad_large_v1.1.log").unlink()
  process, _ = patient.two_started(start_new_session=True)
  os.killpg(process.pid, signal.SIGTERM)
  status, _, err = finish(process)
  assert status == 0 and "stopped at step 7" in own_lines(err)[-1]
  assert not patient.left()


@needs_mpirun
def test_stop_outside_of_training(ranks):
  ranks.program("begun; wait_long")   # SIGTERM ends it
  process, _ = ranks.two_started("--max_restarts=3")
  process.terminate()
  status, _, err = finish(process)
  assert status == 143 and not ranks.left()
  assert own_lines(err) == ["ended by signal 15; the same command goes on"]


@needs_mpirun
def test_stop_by_force(ranks):
  """A second SIGTERM, or none in the time to save, ends what does not save."""
  ranks.program("trap '' TERM; begun; wait_long")
  process, _ = ranks.two_started("--stop_seconds=1")
  process.terminate()
  status, _, err = finish(process)
  assert status == 143 and not ranks.left()
  assert own_lines(err) == ["ended by signal 15; the same command goes on"]


@needs_mpirun
def test_interrupt_at_a_terminal(patient):
  patient.program(SAVES_BY_SIGNAL)
  process, _ = patient.two_started(start_new_session=True)
  os.killpg(process.pid, signal.SIGINT)
  status, _, err = finish(process)
  assert status == 130 and not patient.left()
  assert own_lines(err) == [
      "stopped at step 7, checkpoint saved; the same command goes on"]


@needs_mpirun
def test_mpirun_is_killed(ranks):
  ranks.program("begun; wait_long")
  process, pids = ranks.two_started()
  kill(parent(parent(pids[0])))   # program, rank.sh, mpirun
  status, _, err = finish(process)
  assert status == 137 and not ranks.left()
  assert own_lines(err) == [
      "mpirun ended with status 137; the same command goes on"]


@needs_mpirun
def test_number_of_ranks_is_no_setting(ranks):
  ranks.program("exit 70")
  ranks.run("run_squad.sh", "--num_gpus=1", "--rank_launcher=mpirun")
  (folder,) = ranks.runs()
  done = ranks.run("run_squad.sh", "--num_gpus=2", "--max_restarts=0",
                   "--stop_seconds=9", "--bind_cpus=false", "--dry_run")
  assert "going on with" in done.stderr and str(folder) in done.stdout


# --- one rank ----------------------------------------------------------------


def test_restarts_of_one_rank(site):
  write_program(site.home.parent / "bin" / "sleep", "#!/bin/sh\n")
  site.env["PATH"] = "%s:%s" % (site.home.parent / "bin", site.env["PATH"])
  path = site.home.parent / "bin" / "stub"
  for end, status, said in (
      ("kill -9 $$", 137, "ended by signal 9; the same command goes on"),
      ("exit 70", 70, None)):
    write_program(path, "#!/bin/bash\n" + end + "\n")
    done = site.run("run_squad.sh", "--max_restarts=1", "--run_dir=r")
    assert done.returncode == status
    assert own_lines(done.stderr) == [line for line in (
        said, "restart 1 of 1 in 5 seconds", said) if line]
  for code in (1, 2, 130):  # starting again would not mend these
    write_program(path, "#!/bin/bash\nexit %d\n" % code)
    done = site.run("run_squad.sh", "--max_restarts=1", "--run_dir=r")
    assert done.returncode == code and own_lines(done.stderr) == []


def test_one_rank_saves(tmp_path):
  one = RankSite(tmp_path, "")
  one.program(SAVES_BY_SIGNAL)
  process, _ = one.one_started("--max_restarts=2")
  process.terminate()
  status, _, err = finish(process)
  assert status == 0 and own_lines(err) == [
      "stopped at step 7, checkpoint saved; the same command goes on"]
  assert not (one.run_dir / "launch.done").exists()


def test_one_rank_that_does_not_save_in_time(tmp_path):
  one = RankSite(tmp_path, "")
  one.program("""
    trap 'echo told; ((++n < 2)) || exit 143' TERM
    begun; wait_long""")
  process, _ = one.one_started("--stop_seconds=1")
  process.terminate()
  status, out, err = finish(process)
  assert status == 143 and out == "told\ntold\n"
  assert own_lines(err) == ["ended by signal 15; the same command goes on"]
