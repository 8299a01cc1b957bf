"""run_client.sh: command line, one question, a prompt, how they are answered.

The server is a stand-in that speaks HTTP.
"""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess

import pytest

from launcher_sandbox import one_line
from launcher_sandbox import site  # pylint: disable=unused-import
from test_run_squad import VOCAB
from trtis_server import environment
from trtis_server import ROOT
from trtis_stand_in import config
from trtis_stand_in import stand_in

pytestmark = pytest.mark.once
SCRIPT, RUN = "trtis/run_client.sh", "trtis/run_trtis.sh"
SEQ_LENGTH = 32
PASSAGE = "Anna lives in Rome . Bela lives in Oslo ."
ASK = ["--question", "where lives anna ?", "--context", PASSAGE]


@pytest.fixture
def server():
  with stand_in(config(SEQ_LENGTH)) as started:
    yield started


def words(server, folder, *more):
  """(command line, variables) of the script, folder being RESULTS_DIR."""
  (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
  return ["bash", str(ROOT / "scripts" / SCRIPT), "--protocol", "http",
          "--bert_model", str(folder), "--trtis_server_url", server.url,
          "--seq_length", str(SEQ_LENGTH), "--doc_stride", "8"] + list(more), (
              dict(os.environ, RESULTS_DIR=str(folder / "results"),
                   BERT_VENV_DIR=str(environment("client").parent)))


def ask(server, folder, *more, typed=b"", **variables):
  """Runs the script to its end; returns (status, bytes of stdout, stderr)."""
  command, env = words(server, folder, *more)
  done = subprocess.run(
      command, input=typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      timeout=120, env=dict(env, **variables))
  return done.returncode, done.stdout, done.stderr.decode("utf-8")


# --- command lines -----------------------------------------------------------


def test_by_position(site):  # pylint: disable=redefined-outer-name
  found = site.command(SCRIPT, "4", "128", "64", "3", "mine",
                       "base", "2.0", "--trtis_server_url", "host:5")
  model = site.data / "pretrained_models_google/uncased_L-12_H-768_A-12"
  assert "/trtis_client_base_v2.0_" in found.pop("output_dir")
  assert found == dict(
      batch_size="4", max_seq_length="128", doc_stride="64",
      trtis_model_version="3", trtis_model_name="mine",
      vocab_file=str(model / "vocab.txt"), version_2_with_negative="true",
      predict_file=str(site.data / "squad/v2.0/dev-v2.0.json"),
      cache_dir=str(site.results / "cache"), trtis_server_url="host:5",
      protocol="grpc", concurrency="8", max_retries="8", request_timeout="60",
      timeout="0")


# --- one question ------------------------------------------------------------


def test_one_question(server, tmp_path):
  status, out, err = ask(server, tmp_path, *ASK)
  assert status == 0, err
  found = json.loads(out.decode("utf-8").splitlines()[-1])
  assert found["answer"] in PASSAGE and 0 < found["probability"] <= 1
  assert not (tmp_path / "results").exists()
  # Of 32 tokens half are the question's, not 64.
  assert "max_query_length is 16: 32 tokens have no room for 64" in err


def test_one_question_in_a_named_folder(server, tmp_path):
  status, out, err = ask(server, tmp_path, *ASK, "--run_dir",
                         str(tmp_path / "mine"), "--squad_version=2.0")
  assert status == 0, err
  found = json.loads(out.decode("utf-8").splitlines()[-1])
  assert json.loads((tmp_path / "mine" / "predictions.json").read_text()) == {
      "typed": found["answer"]}
  [log] = (tmp_path / "mine").glob("*.log")
  assert "asking model bert 1" in log.read_text()
  status, _, err = ask(server, tmp_path, *ASK, "--run_dir",
                       str(tmp_path / "mine"), "--fresh")
  assert status == 1 and "is not empty" in err.splitlines()[-1]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bytes_of_another_encoding(server, tmp_path, encoding):
  status, out, err = ask(
      server, tmp_path, b"--question=wh\xe9re ?", b"--context=R\xf4m\xc3\xa9",
      "--run_dir", str(tmp_path / "mine"),
      PYTHONIOENCODING=encoding + ":strict")
  assert status == 0, err
  answer = json.loads(out.decode(encoding).splitlines()[-1])["answer"]
  assert answer == "R\ufffdm\u00e9"
  assert "Traceback" not in err


def test_no_server_is_one_line(server, tmp_path):
  status, out, err = ask(server, tmp_path, *ASK, "--trtis_server_url",
                         "127.0.0.1:1")
  assert (status, out) == (1, b"")
  assert err.splitlines()[-1].startswith("ERROR: --trtis_server_url=127.0.0.1")


@pytest.mark.parametrize("words, expected", [
    (["--question", "who ?"], "--question needs --context"),
    (["--question=", "--context=a"], "--question is empty"),
    (["--question= ", "--context=a"], "--question is empty"),
    (["--question=a", "--context=\n"], "--context is empty"),
    (["--context=a"], "--context goes with --question or --interactive"),
    (["--interactive", "--question=a", "--context=b"], "give one of"),
    (["--interactive", "--predict_file=x"], "give one of"),
    (["--question=a", "--context=b", "--predict_file=x"], "give one of"),
    (["--interactive", "8"], "--interactive is '8'")])
@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_what_cannot_be_asked(site, words, expected, dry):
  assert expected in one_line(site.run(SCRIPT, *(words + dry)), 2)


def test_a_dry_run_shows_what_is_asked(site):
  flags = site.command(SCRIPT, *ASK)
  assert flags["question"] == "where lives anna ?"
  assert flags["context"] == PASSAGE
  assert not {"predict_file", "output_dir", "interactive"} & set(flags)
  flags = site.command(SCRIPT, "--interactive", "--run_dir", "mine")
  assert flags["interactive"] == "true"
  assert flags["output_dir"] == str(site.home / "mine")
  assert not (site.home / "mine").exists()
  # A switch that is off is none.
  flags = site.command(SCRIPT, "--interactive", "false")
  assert flags["predict_file"].endswith("dev-v1.1.json")


# --- a prompt ----------------------------------------------------------------


def test_a_prompt_reads_what_a_program_writes(server, tmp_path):
  status, out, err = ask(
      server, tmp_path, "--interactive",
      typed=b"Anna lives in Rome .\nwhere lives anna ?\n\n"
            b"Bela lives in Oslo .\nwhere ?\n")
  assert status == 0, err
  lines = out.decode("utf-8").splitlines()
  assert len(lines) == 2 and all(line.endswith(" %)") for line in lines)
  assert lines[1].rsplit("  (", 1)[0] in "Bela lives in Oslo ."


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_prompt_outlives_bytes_of_another_encoding(
    server, tmp_path, encoding):
  status, out, err = ask(
      server, tmp_path, "--interactive", "--context", PASSAGE,
      PYTHONIOENCODING=encoding + ":strict",
      typed=b"wh\xe9re ?\nwhere lives bela ?\n\nR\xf4me\nwhat ?\n")
  assert status == 0, err
  assert len(out.splitlines()) == 3 and b"R" in out.splitlines()[2]


@contextlib.contextmanager
def terminal(server, folder):
  """Yields (process, expect, send) of a prompt at a terminal of its own."""
  command, env = words(server, folder, "--interactive")
  process, master = pty.fork()
  if process == 0:
    os.execvpe(command[0], command, env)
  seen = bytearray()

  def expect(text):
    while text not in seen:
      assert select.select([master], [], [], 60)[0], bytes(seen)
      seen.extend(os.read(master, 1000))  # an error at its end
    del seen[:seen.index(text) + len(text)]

  try:
    yield process, expect, lambda text: os.write(master, text)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.kill(process, signal.SIGKILL)
    os.close(master)


@pytest.mark.parametrize("end, status", [(b"\x04", 0), (b"\x03", 130)])
def test_a_prompt_at_a_terminal(server, tmp_path, end, status):
  with terminal(server, tmp_path) as (process, expect, send):
    expect(b"passage (one line)> ")
    send(b"Anna lives in Rome .\n")
    expect(b"question> ")
    send(b"where lives anna ?\n")
    expect(b" %)")
    expect(b"question> ")
    send(end)
    found = os.waitpid(process, 0)[1]
    assert os.WIFEXITED(found) and os.WEXITSTATUS(found) == status


# --- how questions are cut and answered --------------------------------------


@pytest.mark.parametrize("seq_length, words, expected", [
    ("384", [], None), ("68", [], None), ("67", [], "33"), ("48", [], "24"),
    ("7", [], "3"), ("48", ["--max_query_length=44"], "44"),
    ("48", ["--max_query_length="], "24"),
    ("384", ["--max_query_length=64"], "64"),
    ("48", ["--", "--max_query_length=9"], "9")])
def test_room_for_a_question(site, seq_length, words, expected):
  flags = site.command(SCRIPT, "--seq_length", seq_length, *words)
  assert flags.get("max_query_length") == expected


@pytest.mark.parametrize("script", [SCRIPT, RUN])
@pytest.mark.parametrize("words", [
    ["--seq_length=48", "--max_query_length=45"], ["--seq_length=6"],
    ["--max_query_length=381"]])
def test_no_room_for_a_passage(site, script, words):
  line = one_line(site.run(script, "--dry_run", *words), 2)
  assert "leaves no room for the passage" in line
  assert "max_query_length" in line


def test_run_trtis_hands_on_what_is_the_client_s(site):
  (site.results / "model.ckpt-3.index").write_bytes(b"")
  given = dict(
      max_query_length="20", max_answer_length="7", n_best_size="4",
      null_score_diff_threshold="-2.5", concurrency="3", max_retries="0",
      request_timeout="1.5")
  flags = site.command(
      RUN, "--seq_length", "48", *["--%s=%s" % item for item in given.items()])
  assert {name: flags[name] for name in given} == given
  flags = site.command(RUN, "--seq_length", "48")
  assert flags["max_query_length"] == "24"
  assert not {"max_answer_length", "n_best_size"} & set(flags)


@pytest.mark.parametrize("words", [
    ["--null_score_diff_threshold=x"], ["--max_answer_length=0"],
    ["--n_best_size=-1"], ["--max_query_length=0"], ["--concurrency=0"],
    ["--max_retries=-1"], ["--request_timeout=0"]])
def test_wrong_values(site, words):
  for script in (SCRIPT, RUN):
    assert words[0].split("=")[0] in one_line(site.run(script, *words), 2)
