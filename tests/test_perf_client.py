"""perf_analyzer's output and the programs around it: stand-ins, no server.

A real server is measured in test_serving_sweep.py.
"""

import hashlib
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

# pylint: disable=wrong-import-position
from benchmarks import perf_client
from benchmarks import perf_points
from launcher_sandbox import clients  # pylint: disable=unused-import
from launcher_sandbox import one_line
from launcher_sandbox import site  # pylint: disable=unused-import
from launcher_sandbox import write_program
from utils import signature
from utils.errors import UserError

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"

# As perf_analyzer 2.51.0 writes them.
HEAD = ("Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,"
        "Server Queue,Server Compute Input,Server Compute Infer,"
        "Server Compute Output,Client Recv,p50 latency,p90 latency,"
        "p95 latency,p99 latency\n")
ROW = "5,305.072,9,706,14148,84,17068,498,3,32829,33716,35403,47534\n"
WORDS = """Request concurrency: 5
  Client:
    Request count: 385
    Throughput: 305.072 infer/sec
    Avg latency: 32520 usec (standard deviation 3531 usec)
    Avg gRPC time: 32508 usec ((un)marshal 12 usec + response wait 32496 usec)
  Server:
    Avg request latency: 31810 usec (overhead 10 usec + queue 14148 usec)
"""


# --- its output --------------------------------------------------------------


def test_parts_make_up_the_average_latency():
  point = perf_points.point(HEAD + ROW, WORDS, 2, 770, 152, True)
  assert point.latency == 32.520
  parts = [getattr(point, part) for part in perf_points.PARTS]
  assert parts == [0.009, 0.706, 14.148, 17.650, 0.003]
  # Each of the seven columns is cut to a whole microsecond.
  assert abs(sum(parts) - point.latency) <= 0.007


def test_a_point_says_what_was_measured():
  point = perf_points.point(HEAD + ROW, WORDS, 2, 770, 152, False)
  assert (point.concurrency, point.batch_size) == (5, 2)
  assert point.throughput == 305.072
  assert (point.p50, point.p90, point.p95, point.p99) == (
      32.829, 33.716, 35.403, 47.534)
  assert point.executed_batch == pytest.approx(770 / 152.0, abs=1e-3)
  assert point.stable is False


@pytest.mark.parametrize("text", [
    "", HEAD, HEAD.replace("Server Queue", "Queue") + ROW,
    HEAD + ROW.replace("14148", "x"), HEAD + ROW.replace("14148", "nan")])
def test_another_csv_is_refused(text):
  with pytest.raises(UserError, match="not what perf_analyzer"):
    perf_points.point(text, WORDS, 1, 1, 1, True)


def test_words_without_an_average_are_refused():
  with pytest.raises(UserError, match="no average latency"):
    perf_points.point(HEAD + ROW, "p95 latency: 1 usec", 1, 1, 1, True)


def test_our_csv_is_read_as_it_was_written(tmp_path):
  points = [perf_points.point(HEAD + ROW, WORDS, 2, 770, 152, stable)
            for stable in (True, False)]
  path = str(tmp_path / "points.csv")
  perf_points.write(path, points, [{"a": "x"}, {"a": "y"}])
  assert perf_points.read(path) == [({"a": "x"}, points[0]),
                                    ({"a": "y"}, points[1])]
  (tmp_path / "points.csv").write_text("concurrency\n1\n")
  with pytest.raises(UserError, match="not a table of points"):
    perf_points.read(path)


def test_table_marks_what_did_not_settle():
  points = [perf_points.point(HEAD + ROW, WORDS, 2, 770, 152, stable)
            for stable in (True, False)]
  lines = perf_points.table(points)
  assert "305.1" in lines[1] and "17.65" in lines[1] and "5.07" in lines[1]
  assert " 5*" in lines[2] and "did not settle" in lines[3]
  assert len(perf_points.table(points[:1])) == 2


def test_concurrencies():
  assert perf_client.doubling(50) == [1, 2, 4, 8, 16, 32, 50]
  assert perf_client.doubling(8) == [1, 2, 4, 8]
  assert perf_client.doubling(1) == [1]

  def take(concurrency):
    point = perf_points.point(HEAD + ROW, WORDS, 2, 770, 152, True)
    return point._replace(concurrency=concurrency, latency=10.0 * concurrency)

  # The first one over the limit is kept, and ends it.
  taken = perf_client.rising([8, 1, 2, 4, 2], 20.0, take)
  assert [p.concurrency for p in taken] == [1, 2, 4]


# --- a stand-in for the server -----------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers as Triton does about one model; statistics grow by 8 and 2."""

  def do_GET(self):  # pylint: disable=invalid-name
    server = self.server
    place = "/v2/models/bert/versions/1"
    server.paths.append(self.path)
    server.asked += self.path.endswith("/stats")
    answers = {
        place + "/config": server.config,
        place + "/stats": {"model_stats": [{
            "inference_count": 8 * server.asked,
            "execution_count": 2 * server.asked}]}}
    answer = answers.get(self.path)
    self.send_response(200 if answer else 400)
    self.end_headers()
    self.wfile.write(json.dumps(
        answer or {"error": "Request for unknown model"}).encode())

  def do_POST(self):  # pylint: disable=invalid-name
    body = self.rfile.read(int(self.headers["Content-Length"]))
    self.server.posted.append(json.loads(body.decode("utf-8")))
    self.send_response(200)
    self.end_headers()
    self.wfile.write(b"{}")

  def log_message(self, *unused):  # pylint: disable=arguments-differ
    pass


def config_of(seq_length, **parameters):
  """The config of a model that takes eight sentences a request."""
  dims = dict.fromkeys(signature.INPUTS, [seq_length])
  dims["unique_ids"] = [1]
  return {
      "max_batch_size": 8,
      "input": [{"name": name, "data_type": "TYPE_INT32", "dims": size}
                for name, size in dims.items()],
      "output": [{"name": name, "data_type": "TYPE_FP32", "dims": [seq_length]}
                 for name in signature.OUTPUTS],
      "parameters": {name: {"string_value": value}
                     for name, value in parameters.items()}}


@pytest.fixture
def triton():
  """A stand-in for the server, with its port as `.server_port`."""
  with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
    server.asked, server.config = 0, config_of(48)
    server.posted, server.paths = [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def server_of(triton, **changes):
  place = dict(hostname="127.0.0.1", http_port=triton.server_port,
               grpc_port=1, model="bert", version=1)
  place.update(changes)
  return perf_client.Server(**place)


def analyzer(folder, text):
  """A stand-in for perf_analyzer: bash, which has its arguments."""
  path = folder / "perf_analyzer"
  write_program(path, """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$(dirname "$0")/calls"
while (($#)); do
  case $1 in
    -f) file=$2 ;; --stability-percentage) stability=$2 ;;
    --measurement-interval) interval=$2 ;;
  esac
  shift
done
""" + text)
  return str(path)


GOOD = "cat <<'END'\n%sEND\ncat > \"$file\" <<'END'\n%sEND\n" % (
    WORDS, HEAD + ROW)


def load_of(program):
  return perf_client.Load(program, "grpc", 2, 7, 400, 25.0, 5)


def test_measure(tmp_path, triton):
  program = analyzer(tmp_path, GOOD)
  log = tmp_path / "log"
  point, text = perf_client.measure(
      server_of(triton), load_of(program), "in.json", 5, str(log))
  assert text == HEAD + ROW
  # The counts went up by one question about them.
  assert (point.sentences, point.executions) == (8, 2)
  assert point.executed_batch == 4.0 and point.stable
  (call,) = (tmp_path / "calls").read_text().splitlines()
  for words in ("-m bert -x 1 -u 127.0.0.1:1 -i grpc -b 2",
                "--input-data in.json", "--concurrency-range 5",
                "--max-threads 7", "--measurement-interval 400",
                "--stability-percentage 25", "--max-trials 5"):
    assert words in call
  assert "Avg latency: 32520" in log.read_text()


def test_what_does_not_settle_is_taken_as_it_is(tmp_path, triton):
  program = analyzer(
      tmp_path, "if [[ $stability == 25 ]]; then\n"
      "  echo 'Failed to obtain stable measurement.'; exit 2\nfi\n" + GOOD)
  point, _ = perf_client.measure(
      server_of(triton), load_of(program), "in.json", 5, str(tmp_path / "log"))
  assert not point.stable and point.latency == 32.52
  # Of the second attempt alone.
  assert (point.sentences, point.executions) == (8, 2)


def test_a_window_without_a_reply_is_made_longer(tmp_path, triton):
  program = analyzer(
      tmp_path, "if ((interval < 1600)); then\n"
      "  echo 'No valid requests recorded within time interval.'; exit 3\nfi\n"
      + GOOD)
  point, _ = perf_client.measure(
      server_of(triton), load_of(program), "in.json", 5, str(tmp_path / "log"))
  assert point.stable and point.latency == 32.52
  calls = (tmp_path / "calls").read_text()
  assert [word for word in ("400", "800", "1600", "3200")
          if "--measurement-interval %s " % word in calls] == [
              "400", "800", "1600"]


def test_warm_up(tmp_path, triton):
  rows = [{"unique_ids": [n], "input_ids": [n, 7], "input_mask": [1, 1],
           "segment_ids": [0, 1]} for n in range(5)]
  (tmp_path / "in.json").write_text(json.dumps({"data": rows}))
  perf_client.warm_up(server_of(triton), str(tmp_path / "in.json"), 2, 3)
  assert len(triton.posted) == 6
  sent = sorted(tuple(body["inputs"][1]["data"][n][0] for n in range(2))
                for body in triton.posted)
  # Six requests of two sentences each, from five.
  assert sent == [(0, 1), (0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
  assert triton.posted[0]["inputs"][1]["shape"] == [2, 2]
  assert {t["name"] for t in triton.posted[0]["inputs"]} == set(rows[0])


def test_perf_analyzer_that_waits_for_ever(tmp_path):
  log = str(tmp_path / "log")
  program = analyzer(
      tmp_path, "dir=$(dirname \"$0\")\nif [[ ! -e $dir/told ]]; then\n"
      "  touch \"$dir/told\"; exec sleep 60\nfi\necho words; exit 7\n")
  assert perf_client._run([program], log, 2) == (7, "words\n")
  program = analyzer(tmp_path, "exec sleep 60\n")
  with pytest.raises(UserError, match="did not end in 1 seconds, twice"):
    perf_client._run([program], log, 1)


def test_perf_analyzer_fails(tmp_path, triton):
  log = str(tmp_path / "log")
  program = analyzer(tmp_path, "echo; echo 'error: no luck' >&2; exit 99")
  with pytest.raises(UserError, match="status 99 at concurrency 5: error: no "
                                      "luck .all in .*log"):
    perf_client.measure(server_of(triton), load_of(program), "i", 5, log)
  with pytest.raises(UserError, match="no perf_analyzer at /none: run"):
    perf_client.measure(server_of(triton), load_of("/none"), "i", 5, log)


def test_server_or_model_is_not_there(triton):
  with pytest.raises(UserError, match="does not serve version 7 of the model "
                                      "bert .*unknown model"):
    server_of(triton, version=7).describe()
  with pytest.raises(UserError, match="--batch_size=9: .* takes 8 sentences"):
    server_of(triton).check_batch(9)
  server_of(triton).check_batch(8)
  triton.config = {"input": [{"name": "image", "dims": [3]}]}
  with pytest.raises(UserError, match="has the inputs image, but a model"):
    server_of(triton).describe()
  triton.shutdown()
  triton.server_close()
  with pytest.raises(UserError, match="no server answers at 127.0.0.1:.*start"):
    server_of(triton).counts()


def test_a_model_of_any_length_is_refused(triton):
  assert server_of(triton).describe().seq_length == 48
  triton.config = config_of(-1)
  with pytest.raises(UserError, match="bert takes sequences of any length"):
    server_of(triton).describe()


def test_a_name_that_belongs_into_no_address_is_quoted(triton):
  with pytest.raises(UserError, match="of the model a b/c.*unknown model"):
    server_of(triton, model="a b/c").describe()
  assert triton.paths == ["/v2/models/a%20b%2Fc/versions/1/config"]


@pytest.mark.parametrize("reply", [
    b"\0\0\x18\4\0\0\0\0\0\0\4\0@\0\0\0\5\0@\0\0\0\3\0\0\1\0",  # as of gRPC
    b"", b"HTTP/1.0 200 OK\r\n\r\n[]", b"HTTP/1.0 200 OK\r\n\r\n<html>",
    b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{}"])
def test_what_answers_is_no_server(reply):
  with socket.socket() as door:
    door.bind(("127.0.0.1", 0))
    door.listen(1)

    def answer():
      line, _ = door.accept()
      with line:
        line.recv(1 << 16)
        line.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    server = perf_client.Server("127.0.0.1", door.getsockname()[1], 1, "m", 1)
    with pytest.raises(UserError) as caught:
      server.counts()
    thread.join()
  said = str(caught.value)
  assert server.http in said and "\n" not in said
  assert "no Triton server over HTTP" in said or not reply


def test_sigterm_ends_perf_analyzer_too(tmp_path, triton):
  vocab = SAMPLE / "vocab.txt"
  program = analyzer(
      tmp_path, "echo $$ >\"$(dirname \"$0\")/made\"\n"
      "mv \"$(dirname \"$0\")\"/{made,pid}\nexec sleep 300\n")
  process = subprocess.Popen(
      [sys.executable, str(ROOT / "benchmarks" / "perf_client.py"),
       "--output_dir=%s" % (tmp_path / "out"), "--perf_analyzer=" + program,
       "--predict_file=%s" % (SAMPLE / "dev-v1.1.json"),
       "--vocab_file=%s" % vocab, "--server_hostname=127.0.0.1",
       "--http_port=%d" % triton.server_port])
  try:
    deadline = time.time() + 120
    while not (tmp_path / "pid").exists():
      assert process.poll() is None and time.time() < deadline
      time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
  finally:
    process.kill()
    process.wait()
  # Gone and waited for: the number is nobody's.
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / "pid").read_text()), 0)


# --- real inputs -------------------------------------------------------------


def test_inputs_are_the_windows_of_the_questions(tmp_path, triton):
  other = tmp_path / "other.txt"
  other.write_text("[PAD]\n")
  vocab = SAMPLE / "vocab.txt"
  triton.config = config_of(
      48, do_lower_case="true",
      vocab_sha256=hashlib.sha256(vocab.read_bytes()).hexdigest())
  path = tmp_path / "inputs.json"
  count = perf_client.write_inputs(
      str(path), server_of(triton), str(SAMPLE / "dev-v1.1.json"),
      [str(tmp_path / "none"), str(other), str(vocab)], 16)
  rows = json.loads(path.read_text())["data"]
  assert len(rows) == count > 50
  tokens = vocab.read_text(encoding="utf-8").splitlines()
  for row in rows:
    assert {name: len(value) for name, value in row.items()} == {
        "unique_ids": 1, "input_ids": 48, "input_mask": 48, "segment_ids": 48}
    words = [tokens[number] for number in row["input_ids"]]
    length = sum(row["input_mask"])
    assert words[0] == "[CLS]" and words[length - 1] == "[SEP]"
    assert set(words[length:]) <= {"[PAD]"}
    assert sum(row["segment_ids"]) == length - words.index("[SEP]") - 1
  assert len({row["unique_ids"][0] for row in rows}) == count
  with pytest.raises(UserError, match="--vocab_file: .*another vocabulary"):
    perf_client.write_inputs(
        str(path), server_of(triton), str(SAMPLE / "dev-v1.1.json"),
        [str(other)], 16)


def test_one_csv_of_several():
  assert perf_client.merged([HEAD + ROW, HEAD + "6" + ROW[1:]]) == (
      HEAD + ROW + "6" + ROW[1:])


# --- launcher ----------------------------------------------------------------


def test_launcher_by_position(clients):
  flags = clients.command(
      "trtis/run_perf_client.sh", "mine", "2", "fp32", "4", "250.5", "3", "20",
      "far.away", "--http_port=81", "--predict_file", "my data/squad/v1.1/"
      "dev-v1.1.json", "--vocab_file=v.txt", "--concurrencies=4,1")
  flags.pop("output_dir")
  assert flags == dict(
      model_name="mine", model_version="2", precision="fp32", batch_size="4",
      max_latency="250.5", max_client_threads="3", max_concurrency="20",
      server_hostname="far.away", http_port="81", grpc_port="8001",
      predict_file=str(clients.data / "squad/v1.1/dev-v1.1.json"),
      vocab_file=str(clients.home / "v.txt"), concurrencies="4,1",
      protocol="grpc", measurement_interval="5000", stability_percentage="10",
      max_trials="10")


def test_launcher_defaults(clients):
  flags = clients.command("trtis/run_perf_client.sh")
  assert "/trtis_perf_bert_" in flags["output_dir"]
  assert flags["model_name"] == "bert" and flags["batch_size"] == "1"
  assert flags["max_latency"] == "500" and flags["max_concurrency"] == "50"
  assert flags["predict_file"] == str(SAMPLE / "dev-v1.1.json")


@pytest.mark.parametrize("words, said", [
    (["--max_trials=2"], "--max_trials is '2', but has to be 3 or more"),
    (["--concurrencies=1,x"], "has to be a whole number above 0"),
    (["", "", "", "", "0"], "max_latency, is '0'")])
def test_launcher_refuses(clients, words, said):
  assert said in one_line(clients.run("trtis/run_perf_client.sh", *words), 2)


def test_launcher_without_clients(site):  # pylint: disable=redefined-outer-name
  site.env["BERT_VENV_DIR"] = str(site.home / "none")
  line = one_line(site.run("trtis/run_perf_client.sh"), 1)
  assert "no Python environment for clients yet: run bash" in line
