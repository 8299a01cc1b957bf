"""The quickstart: its stages with stand-ins for the programs, and for real."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from runners import ROOT

STACK = "tf1" if sys.version_info < (3, 8) else "tf2"

# Stands for Python: keeps its arguments and writes what the next stage wants.
FAKE_PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >> "$CALLS"
case $1 in
  */squad_score.py)
    echo '{"exact_match": 81.25, "f1": 90.5}' ;;
  *"${FAIL_AT:-none}"*) echo "ERROR: no" >&2; exit 7 ;;
esac
for word in "$@"; do
  if [[ $1 == */run_pretraining.py && $word == --output_dir=* ]]; then
    : > "${word#*=}/model.ckpt-300.index"
  fi
done
[[ $1 != *"${SLEEP_AT:-none}"* ]] || { echo sleeping; exec sleep 60; }
"""


@pytest.fixture
def sandbox(tmp_path):
  """A checkout with stand-ins for set-up and Python; returns (path, env)."""
  checkout = tmp_path / "checkout"
  shutil.copytree(str(ROOT / "scripts"), str(checkout / "scripts"))
  (checkout / "data").mkdir()
  shutil.copytree(str(ROOT / "data" / "sample"),
                  str(checkout / "data" / "sample"))
  (checkout / "scripts" / "setup.sh").write_text("echo set-up \"$@\"\n")
  stack = checkout / ".venv" / "tf2"
  (stack / "bin").mkdir(parents=True)
  (stack / "setup-stamp").write_text("")
  python = stack / "bin" / "python"
  python.write_text(FAKE_PYTHON)
  python.chmod(0o755)
  environment = dict(os.environ, RESULTS_DIR=str(tmp_path / "results"),
                     CALLS=str(tmp_path / "calls"), BERT_STACK="tf2")
  for name in ("BERT_VENV_DIR", "BERT_PYTHON"):
    environment.pop(name, None)
  return checkout, environment


def start(checkout, environment, *arguments, **options):
  return subprocess.Popen(
      ["bash", str(checkout / "scripts" / "quickstart.sh")] + list(arguments),
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      universal_newlines=True, **options)


def finish(process):
  """Returns (exit status, output)."""
  output, _ = process.communicate(timeout=120)
  return process.returncode, output


def programs(environment):
  """Returns the names of the programs that the fake Python was given."""
  with open(environment["CALLS"]) as stream:
    return [re.search(r"(\w+)\.py", line).group(1) for line in stream]


STAGES = ["create_pretraining_data", "run_pretraining", "run_squad",
          "baselines"]


def test_stages_run_in_order_and_scores_stand_side_by_side(sandbox):
  checkout, environment = sandbox
  status, output = finish(start(checkout, environment))
  assert status == 0, output
  assert programs(environment) == STAGES + ["squad_score"] * 3
  assert output.startswith("set-up")
  assert len(re.findall(r"\n== ", output)) == len(STAGES) + 2
  for row in ("the model", "most frequent position", "first entity"):
    assert re.search(row + r" +81\.2 +90\.5", output), output
  assert output.splitlines()[-1] == '{"exact_match": 81.25, "f1": 90.5}'


def test_a_stage_that_fails_ends_it_with_its_status(sandbox):
  checkout, environment = sandbox
  environment["FAIL_AT"] = "run_pretraining"
  status, output = finish(start(checkout, environment))
  assert status == 7, output
  assert programs(environment) == STAGES[:2]


def test_a_changed_sample_begins_anew_and_an_equal_one_goes_on(sandbox):
  checkout, environment = sandbox
  folder = os.path.join(environment["RESULTS_DIR"], "quickstart_tf2")
  kept = os.path.join(folder, "kept")
  assert finish(start(checkout, environment))[0] == 0
  open(kept, "w").close()
  finish(start(checkout, environment))
  assert os.path.exists(kept)
  with open(str(checkout / "data" / "sample" / "corpus.txt"), "a") as stream:
    stream.write("\nOne more.\n")
  _, output = finish(start(checkout, environment))
  assert not os.path.exists(kept) and "beginning anew" in output


def test_a_foreign_folder_is_left_alone(sandbox, tmp_path):
  checkout, environment = sandbox
  foreign = tmp_path / "foreign"
  foreign.mkdir()
  (foreign / "thesis.txt").write_text("years of work")
  status, output = finish(
      start(checkout, environment, "--fresh", "--run_dir", str(foreign)))
  assert status == 1 and "is not empty" in output
  assert (foreign / "thesis.txt").exists()


@pytest.mark.parametrize("arguments", [
    ["--stack"], ["--stack=tf3"], ["everything"], ["--quick"]])
def test_bad_arguments_end_in_one_line(sandbox, arguments):
  checkout, environment = sandbox
  status, output = finish(start(checkout, environment, *arguments))
  assert status == 2 and len(output.splitlines()) == 1, output
  assert not os.path.exists(environment["CALLS"])


def test_termination_ends_the_program_too(sandbox):
  checkout, environment = sandbox
  environment["SLEEP_AT"] = "create_pretraining_data"
  process = start(checkout, environment, start_new_session=True)
  for line in process.stdout:
    if line.startswith("sleeping"):
      break
  os.kill(process.pid, signal.SIGTERM)
  assert finish(process)[0] == 143
  with pytest.raises(ProcessLookupError):  # nobody of its group is left
    for _ in range(100):
      os.killpg(process.pid, 0)
      time.sleep(0.1)


def test_dry_run_names_every_program(sandbox):
  checkout, environment = sandbox
  status, output = finish(start(checkout, environment, "--dry_run"))
  assert status == 0 and not os.path.exists(environment["CALLS"])
  for name in ("setup.sh", "create_pretraining_data.py", "run_pretraining.sh",
               "run_squad.sh", "baselines.py"):
    assert name in output


@pytest.mark.slow
def test_the_whole_job_reaches_its_score(tmp_path):
  """Ctrl-C in pre-training, the same command again, and once more."""
  environment = dict(os.environ, RESULTS_DIR=str(tmp_path))
  arguments = ["--stack", STACK]
  process = start(ROOT, environment, *arguments, start_new_session=True)
  for line in process.stdout:
    if " step 150/" in line:
      break
  os.killpg(process.pid, signal.SIGINT)
  status, output = process.wait(), process.stdout.read()
  assert status == 130 and "Traceback" not in output, output
  output = subprocess.check_output(
      ["bash", str(ROOT / "scripts" / "quickstart.sh")] + arguments,
      env=environment, stderr=subprocess.STDOUT, universal_newlines=True)
  assert "going on from" in output
  assert json.loads(output.splitlines()[-1])["f1"] >= 80
  for name in ("always the most frequent position", "always the first entity"):
    assert float(re.search(name + r" +[\d.]+ +([\d.]+)", output).group(1)) < 30
  losses = re.findall(r"step (\d+)/300  mlm loss ([\d.]+)", output)
  assert float(losses[-1][1]) < 0.85 * 5.9
  again = subprocess.check_output(
      ["bash", str(ROOT / "scripts" / "quickstart.sh")] + arguments,
      env=environment, stderr=subprocess.STDOUT, universal_newlines=True)
  assert again.count("nothing left to train") == 2
  assert again.splitlines()[-1] == output.splitlines()[-1]
