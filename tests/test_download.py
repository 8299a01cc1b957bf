"""data/download against a real server on this machine that misbehaves."""

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import time
import zipfile

import pytest

from data.download import __main__ as program
from data.download import fetch
from data.download import get
from data.download import outcome
from data.download import state
from data.download import unpack
from download_server import Behaviour
from download_server import BODY
from download_server import client
from download_server import finished
from download_server import item
from download_server import launch
from download_server import names
from download_server import run
from download_server import server  # pylint: disable=unused-import
from download_server import sha1
from download_server import Sleep
from download_server import zipped
from utils import files as files_module

HALF = 100000


# --- one file ----------------------------------------------------------------


def test_a_file_comes_and_is_known_the_next_time(server, tmp_path):
  wanted = item(server, digest=sha1(BODY), size=len(BODY))
  result = run(wanted, tmp_path)
  assert result == outcome.Result("test", "a.bin", "got", len(BODY), True)
  assert (tmp_path / "place/a.bin").read_bytes() == BODY
  assert names(tmp_path) == ["place/a.bin"]
  assert len(server.requests) == 1
  assert run(wanted, tmp_path) == result._replace(status="had")
  assert len(server.requests) == 1


def test_without_a_hash_it_is_not_verified(server, tmp_path):
  assert not run(item(server), tmp_path).verified
  result = run(item(server), tmp_path)
  assert (result.status, result.verified) == ("had", False)
  assert len(server.requests) == 1


@pytest.mark.parametrize("validators", [True, False])
def test_a_dropped_connection_is_taken_up_where_it_stopped(
    server, tmp_path, validators):
  server.behaviours["/a.bin"] = [
      Behaviour(send=HALF, validators=validators),
      Behaviour(validators=validators)]
  assert run(item(server, digest=sha1(BODY)), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin").read_bytes() == BODY
  first, second = server.ranges()
  assert first is None
  start = int(re.match(r"bytes=(\d+)-$", second).group(1))
  assert HALF - (1 << 14) < start <= HALF
  assert ("If-Range" in server.requests[1][1]) == validators


def test_a_connection_that_gets_on_is_never_given_up(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(send=20000)]
  sleep = Sleep()
  result = get.get(item(server, digest=sha1(BODY)), str(tmp_path),
                   client(tries=2, sleep=sleep))
  assert result.status == "got" and len(server.requests) > 5
  assert (tmp_path / "place/a.bin").read_bytes() == BODY


def test_the_next_run_goes_on(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(send=HALF), Behaviour()]
  wanted = item(server)
  result = run(wanted, tmp_path, tries=1)
  assert result.status == "failed" and "kept for the next run" in result.note
  assert names(tmp_path) == ["place/a.bin.part", "place/a.bin.part.json"]
  assert run(wanted, tmp_path).status == "got"
  assert server.ranges()[1] is not None
  assert (tmp_path / "place/a.bin").read_bytes() == BODY
  assert names(tmp_path) == ["place/a.bin"]


def test_a_server_without_ranges_sends_it_from_the_start(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(send=HALF),
                                 Behaviour(ranges=False)]
  assert run(item(server, digest=sha1(BODY)), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin").read_bytes() == BODY
  assert server.ranges()[1] is not None


def test_a_file_that_changed_meanwhile_is_never_mixed(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(send=HALF), Behaviour()]
  assert run(item(server), tmp_path, tries=1).status == "failed"
  server.files["/a.bin"] = BODY[::-1]
  assert run(item(server), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin").read_bytes() == BODY[::-1]


def test_another_size_without_validators_is_noticed(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(send=HALF, validators=False),
                                 Behaviour(validators=False)]
  assert run(item(server), tmp_path, tries=1).status == "failed"
  server.files["/a.bin"] = BODY[::-1] + b"more"
  assert run(item(server), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin").read_bytes() == BODY[::-1] + b"more"


def test_an_answer_from_another_place_is_not_appended(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(send=HALF), Behaviour(shift=5),
                                 Behaviour()]
  assert run(item(server), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin").read_bytes() == BODY


def partial_of(server, folder, content, total=None):
  """Leaves what an earlier run of /a.bin would have left."""
  place = folder / "place"
  place.mkdir()
  (place / "a.bin.part").write_bytes(content)
  (place / "a.bin.part.json").write_text(json.dumps(
      {"url": server.url + "/a.bin", "validator": "", "total": total}))


def test_416_of_a_whole_file(server, tmp_path):
  partial_of(server, tmp_path, BODY)
  assert run(item(server, digest=sha1(BODY)), tmp_path).status == "got"
  assert server.ranges() == ["bytes=%d-" % len(BODY)]
  assert (tmp_path / "place/a.bin").read_bytes() == BODY


def test_416_of_a_file_that_is_too_long(server, tmp_path):
  partial_of(server, tmp_path, BODY + b"more")
  assert run(item(server), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin").read_bytes() == BODY
  assert len(server.requests) == 2


def test_a_whole_partial_file_needs_no_request(server, tmp_path):
  partial_of(server, tmp_path, BODY, len(BODY))
  assert run(item(server), tmp_path).status == "got"
  assert not server.requests


def test_a_partial_file_with_a_hole_is_fetched_again(server, tmp_path):
  """A crash of the machine can leave zeros where the disk never wrote."""
  partial_of(server, tmp_path, b"\0" * HALF, len(BODY))
  assert run(item(server, digest=sha1(BODY)), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin").read_bytes() == BODY
  assert server.ranges() == ["bytes=%d-" % HALF, None]


def test_a_partial_file_of_unknown_origin_is_not_used(server, tmp_path):
  (tmp_path / "place").mkdir()
  (tmp_path / "place/a.bin.part").write_bytes(b"x" * HALF)
  assert run(item(server), tmp_path).status == "got"
  assert server.ranges() == [None]
  assert (tmp_path / "place/a.bin").read_bytes() == BODY


@pytest.mark.parametrize("ranges", [True, False])
def test_a_truncated_file_fails(server, tmp_path, ranges):
  """The server says how long it is and never sends the end."""
  if ranges:
    server.behaviours["/a.bin"] = [Behaviour(send=HALF), Behaviour(send=0)]
  else:
    server.behaviours["/a.bin"] = [Behaviour(send=HALF, ranges=False)]
  result = run(item(server), tmp_path)
  assert result.status == "failed" and "of 200000 bytes" in result.note
  assert "place/a.bin" not in names(tmp_path)
  assert len(server.requests) <= 4


def test_a_shorter_file_fails_by_its_size_and_by_its_hash(server, tmp_path):
  server.files["/a.bin"] = BODY[:HALF]
  result = run(item(server, size=len(BODY)), tmp_path)
  assert result.status == "failed" and "published are 200000" in result.note
  result = run(item(server, digest=sha1(BODY)), tmp_path)
  assert result.status == "failed" and "wrong hash" in result.note
  assert names(tmp_path) == []


def test_a_wrong_hash_fails_without_a_trace(server, tmp_path):
  server.files["/a.bin"] = BODY[:-1] + b"!"
  result = run(item(server, digest=sha1(BODY)), tmp_path)
  assert result.status == "failed" and "wrong hash" in result.note
  assert names(tmp_path) == [] and len(server.requests) == 1


def test_a_wrong_hash_after_a_drop_ends_as_well(server, tmp_path):
  server.files["/a.bin"] = BODY[:-1] + b"!"
  server.behaviours["/a.bin"] = [Behaviour(send=HALF), Behaviour()] * 5
  result = run(item(server, digest=sha1(BODY)), tmp_path)
  assert result.status == "failed" and "wrong hash" in result.note
  assert names(tmp_path) == [] and len(server.requests) == 4


def test_no_length_and_no_end_is_whole(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(length=False)]
  assert run(item(server, digest=sha1(BODY)), tmp_path).status == "got"


def test_an_empty_file(server, tmp_path):
  server.files["/a.bin"] = b""
  assert run(item(server), tmp_path).status == "got"
  assert run(item(server), tmp_path).status == "had"


# --- answers of the server ---------------------------------------------------


def test_404_is_skipped(server, tmp_path, caplog):
  result = run(item(server, "gone"), tmp_path)
  assert (result.status, result.note) == (
      "skipped", "the server answers 404 Not Found")
  assert len(server.requests) == 1 and names(tmp_path) == []


def test_503_then_200(server, tmp_path):
  server.behaviours["/a.bin"] = [
      Behaviour(status=503),
      Behaviour(status=503, headers={"Retry-After": "0"}), Behaviour()]
  assert run(item(server), tmp_path).status == "got"
  assert len(server.requests) == 3


def test_503_for_ever(server, tmp_path):
  server.behaviours["/a.bin"] = [Behaviour(status=503)]
  result = run(item(server), tmp_path)
  assert result.status == "skipped" and "503" in result.note
  assert len(server.requests) == 3


def test_waits_double_and_end():
  """Of urllib3's own counting, which differs from release to release."""
  waits, state_ = [], fetch._Retry(total=20, backoff_factor=2.0)
  for _ in range(9):
    state_ = state_.increment("GET", "/", error=OSError())
    waits.append(state_.get_backoff_time())
  assert waits == [2, 4, 8, 16, 32, 64, 120, 120, 120]


def test_a_server_cannot_ask_for_hours(server):
  server.behaviours["/a.bin"] = [
      Behaviour(status=503, headers={"Retry-After": "86400"})]
  import urllib3  # pylint: disable=g-import-not-at-top
  answer = urllib3.PoolManager().request("GET", server.url + "/a.bin",
                                         retries=False)
  assert fetch._Retry(total=1).get_retry_after(answer) == 120


def test_redirects(server, tmp_path):
  for name, place in (("/b.bin", "c.bin"), ("/c.bin", server.url + "/a.bin"),
                      ("/d.bin", "/d.bin")):
    server.behaviours[name] = [
        Behaviour(status=302, headers={"Location": place})]
  assert run(item(server, "b.bin"), tmp_path).status == "got"
  assert (tmp_path / "place/b.bin").read_bytes() == BODY
  result = run(item(server, "d.bin"), tmp_path)
  assert (result.status, "circle" in result.note) == ("skipped", True)


def test_a_redirected_transfer_is_resumed(server, tmp_path):
  server.behaviours["/b.bin"] = [
      Behaviour(status=302, headers={"Location": "/a.bin"})]
  server.behaviours["/a.bin"] = [Behaviour(send=HALF), Behaviour()]
  assert run(item(server, "b.bin", digest=sha1(BODY)), tmp_path).status == "got"
  assert server.ranges()[-1] is not None


def test_a_refused_connection_is_skipped(server, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    url = "http://127.0.0.1:%d/a.bin" % free.getsockname()[1]
  result = run(item(server, url=url), tmp_path)
  assert result.status == "skipped" and "Connection refused" in result.note


def test_an_unknown_host_is_skipped_and_then_tried_once(
    server, tmp_path, monkeypatch):
  asked = []

  def unknown(host, *unused, **unused_too):
    asked.append(host)
    raise socket.gaierror(-2, "Name or service not known")
  monkeypatch.setattr(socket, "getaddrinfo", unknown)
  same = client(tries=3)
  for expected in (3, 4):
    result = get.get(item(server, url="http://nowhere.invalid/a"),
                     str(tmp_path), same)
    assert result.status == "skipped"
    assert result.note == "nowhere.invalid: Name or service not known"
    assert len(asked) == expected


def test_a_web_page_in_place_of_a_file_is_skipped(server, tmp_path):
  server.behaviours["/a.bin"] = [
      Behaviour(headers={"Content-Type": "text/html; charset=utf-8"})]
  result = run(item(server), tmp_path)
  assert result.status == "skipped" and "web page" in result.note
  assert names(tmp_path) == []


def test_an_encoded_file_fails(server, tmp_path):
  server.behaviours["/a.bin"] = [
      Behaviour(headers={"Content-Encoding": "gzip"})]
  assert "gzip" in run(item(server), tmp_path).note
  assert server.requests[0][1]["Accept-Encoding"] == "identity"


# --- what is there already ---------------------------------------------------


def test_a_file_put_there_by_hand_is_known_by_its_hash(server, tmp_path):
  (tmp_path / "place").mkdir()
  (tmp_path / "place/a.bin").write_bytes(BODY)
  result = run(item(server, digest=sha1(BODY)), tmp_path)
  assert (result.status, result.verified) == ("had", True)
  assert not server.requests


def test_a_damaged_file_is_fetched_and_the_old_one_kept(server, tmp_path):
  wanted = item(server, digest=sha1(BODY))
  run(wanted, tmp_path)
  path = tmp_path / "place/a.bin"
  for number, damage in enumerate((BODY[:-9], BODY[:-1] + b"!")):
    path.write_bytes(damage)
    os.utime(str(path), ns=(number, number))
    assert run(wanted, tmp_path).status == "got"
    assert path.read_bytes() == BODY
  assert names(tmp_path) == ["place/a.bin", "place/a.bin.old",
                             "place/a.bin.old2"]


def test_another_time_of_the_same_file_is_no_matter(server, tmp_path):
  wanted = item(server, digest=sha1(BODY))
  run(wanted, tmp_path)
  os.utime(str(tmp_path / "place/a.bin"), ns=(1, 1))
  assert run(wanted, tmp_path).status == "had"


def test_a_file_of_another_program_is_not_taken_for_ours(server, tmp_path):
  """Without hash or record nobody knows whether it is whole."""
  (tmp_path / "place").mkdir()
  (tmp_path / "place/a.bin").write_bytes(BODY[:HALF])
  assert run(item(server), tmp_path).status == "got"
  assert (tmp_path / "place/a.bin.old").read_bytes() == BODY[:HALF]


def test_a_broken_record_is_no_record(server, tmp_path):
  run(item(server), tmp_path)
  (tmp_path / "place/.download.json").write_text("{")
  assert run(item(server), tmp_path).status == "got"
  assert run(item(server), tmp_path).status == "had"


def test_one_writer_a_folder(server, tmp_path):
  (tmp_path / "place").mkdir()
  with files_module.FolderLock(str(tmp_path / "place")):
    result = run(item(server), tmp_path)
  assert result.status == "failed" and "another run" in result.note


def test_a_record_says_what_came(server, tmp_path):
  run(item(server, digest=sha1(BODY)), tmp_path)
  record = state.read(str(tmp_path / "place"))
  assert record["a.bin"]["bytes"] == len(BODY)
  assert record["a.bin"]["digest"] == sha1(BODY)


# --- disk and signals --------------------------------------------------------


def test_too_little_room_is_told_before(server, tmp_path, monkeypatch):
  usage = shutil.disk_usage(str(tmp_path))
  monkeypatch.setattr(shutil, "disk_usage",
                      lambda path: usage._replace(free=1000))
  result = run(item(server), tmp_path)
  assert result.status == "failed"
  assert result.note == "too little room: 200.0 kB to come, 1.0 kB free"
  monkeypatch.undo()
  assert run(item(server), tmp_path).status == "got"


def test_a_full_disk_is_one_line_and_keeps_what_came(
    server, tmp_path, monkeypatch, capsys):
  server.files["/CoLA.zip"] = zipped({"CoLA/train.tsv": BODY})
  monkeypatch.setenv("BERT_MIRROR_GLUE", server.url)
  words = ["glue", "--data_dir", str(tmp_path), "--tries=1", "--backoff=0"]

  class Full(object):
    """A file that has room for 50,000 bytes."""

    def __init__(self, path, mode):
      self._stream = open(path, mode)

    def __enter__(self):
      return self

    def __exit__(self, *unused):
      self._stream.close()

    def write(self, chunk):
      if self._stream.tell() > 50000:
        raise OSError(errno.ENOSPC, "No space left on device")
      self._stream.write(chunk)
  monkeypatch.setattr(fetch, "open", Full, raising=False)
  with pytest.raises(SystemExit) as caught:
    program.main(words)
  assert caught.value.code == 1
  errors = [line for line in capsys.readouterr().err.splitlines()
            if line.startswith("ERROR")]
  assert len(errors) == 1 and "the disk is full" in errors[0]
  kept = (tmp_path / "glue/CoLA.zip.part").stat().st_size
  assert kept > 50000
  monkeypatch.undo()
  monkeypatch.setenv("BERT_MIRROR_GLUE", server.url)
  server.paths()
  with pytest.raises(SystemExit) as caught:
    program.main(words)
  assert server.requests[0][1]["Range"] == "bytes=%d-" % kept
  assert (tmp_path / "glue/CoLA/train.tsv").read_bytes() == BODY


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130),
                                          (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_and_taken_up(server, tmp_path, sent, status):
  server.files["/mrpc_dev_ids.tsv"] = BODY
  server.behaviours["/mrpc_dev_ids.tsv"] = [
      Behaviour(send=HALF, stall=True), Behaviour()]
  words = ["glue", "--backoff=0", "--tries=1"]
  env = {"DATA_DIR": str(tmp_path), "BERT_MIRROR_GLUE": server.url}
  process = launch(*words, env=env)
  assert server.stalled.wait(120)
  part = tmp_path / "glue/MRPC/mrpc_dev_ids.tsv.part"
  # The last chunk that is full has been written, but for Python's own buffer.
  for _ in range(10000):
    if part.exists() and part.stat().st_size >= HALF - 3 * (1 << 14):
      break
    time.sleep(0.01)
  process.send_signal(sent)
  out, err = process.communicate(timeout=120)
  server.released.set()
  assert process.returncode == status
  if sent == signal.SIGINT:
    last = err.splitlines()[-1]
    assert "interrupted; the same command goes on" in last
    assert "Traceback" not in err and "12 skipped" not in out
  server.paths()
  finished(*words, env=env)
  assert (tmp_path / "glue/MRPC/mrpc_dev_ids.tsv").read_bytes() == BODY


# --- archives ----------------------------------------------------------------


def archive(server, content, **more):
  server.files["/x.zip"] = content
  return item(server, "x.zip", path="place/x", kind="folder", **more)


GOOD = {"x/a.txt": b"text", "x/deep/b.txt": BODY}


def test_an_archive_becomes_a_folder(server, tmp_path):
  wanted = archive(server, zipped(GOOD),
                   members={"a.txt": sha1(b"text"), "deep/b.txt": sha1(BODY)})
  result = run(wanted, tmp_path)
  assert result == outcome.Result("test", "x.zip", "got", 4 + len(BODY), True)
  assert names(tmp_path) == ["place/x/a.txt", "place/x/deep/b.txt"]
  assert run(wanted, tmp_path).status == "had"
  (tmp_path / "place/x/a.txt").unlink()
  assert run(wanted, tmp_path).status == "got"
  assert names(tmp_path / "place/x.old") == ["deep/b.txt"]


def test_an_archive_without_hashes_is_known_by_its_record(server, tmp_path):
  wanted = archive(server, zipped({"a.txt": b"text", "c/b.txt": b""}))
  assert run(wanted, tmp_path).verified is False
  assert names(tmp_path) == ["place/x/a.txt", "place/x/c/b.txt"]
  assert run(wanted, tmp_path).status == "had"
  (tmp_path / "place/x/a.txt").write_text("longer")
  assert run(wanted, tmp_path).status == "got"


def test_a_mac_s_leftovers_stay_out(server, tmp_path):
  wanted = archive(server, zipped({"x/a.txt": b"", "__MACOSX/x/._a.txt": b"",
                                   "x/.DS_Store": b""}))
  assert run(wanted, tmp_path).status == "got"
  assert names(tmp_path) == ["place/x/a.txt"]


@pytest.mark.parametrize("bad", [
    "../evil", "x/../../evil", "/evil", "x/..", "..\\evil", "C:/evil", "C:evil",
    "x//evil", "./evil"])
def test_a_name_that_leaves_its_folder(server, tmp_path, bad):
  content = dict(GOOD)
  content[bad] = b"evil"
  result = run(archive(server, zipped(content)), tmp_path)
  assert result.status == "failed" and "unsafe archive" in result.note
  assert names(tmp_path) == []


@pytest.mark.parametrize("target", ["../..", "/etc/passwd", "a.txt"])
def test_a_link_in_an_archive(server, tmp_path, target):
  content = dict(GOOD)
  content["x/link"] = target
  result = run(archive(server, zipped(content, links=["x/link"])), tmp_path)
  assert result.status == "failed" and "link or a device" in result.note
  assert names(tmp_path) == []


def test_a_name_that_is_a_file_and_a_folder(server, tmp_path):
  result = run(archive(server, zipped({"a": b"", "a/b": b""})), tmp_path)
  assert "a file and a folder" in result.note and names(tmp_path) == []
  with pytest.warns(UserWarning):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as twice:
      twice.writestr("a", "1")
      twice.writestr("a", "2")
  result = run(archive(server, stream.getvalue()), tmp_path)
  assert "twice" in result.note and names(tmp_path) == []


def damaged():
  content = bytearray(zipped(GOOD))
  content[2000] ^= 1
  return bytes(content)


@pytest.mark.parametrize("content", [
    b"no archive", b"", zipped(GOOD)[:-30], zipped(GOOD)[:HALF], damaged(),
    zipped({}), zipped({"x/": b""})])
def test_what_is_no_whole_archive(server, tmp_path, content):
  result = run(archive(server, content), tmp_path)
  assert result.status == "failed" and "archive" in result.note
  assert names(tmp_path) == [] and not (tmp_path / "place/x").exists()


def test_hashes_of_the_files_in_it(server, tmp_path):
  for members, expected in (
      ({"a.txt": sha1(b"other")}, "wrong hash of a.txt"),
      ({"a.txt": sha1(b"text"), "c.txt": sha1(b"")}, "lacks c.txt")):
    result = run(archive(server, zipped(GOOD), members=members), tmp_path)
    assert result.status == "failed" and expected in result.note
    assert names(tmp_path) == []


def test_no_room_to_unpack_keeps_the_archive(server, tmp_path, monkeypatch):
  usage = shutil.disk_usage(str(tmp_path))
  wanted = archive(server, zipped(GOOD, compression=zipfile.ZIP_DEFLATED))
  monkeypatch.setattr(unpack.shutil, "disk_usage", lambda path: usage._replace(
      free=10 ** 9 if path.endswith("place") else 3))
  result = run(wanted, tmp_path)
  assert "too little room to unpack" in result.note
  assert "place/x.zip.part" in names(tmp_path)
  monkeypatch.undo()
  server.paths()
  assert run(wanted, tmp_path).status == "got" and not server.paths()


def test_what_a_killed_unpacking_left_goes(server, tmp_path):
  left = tmp_path / "place/.x.abc.tmp"
  left.mkdir(parents=True)
  (left / "half").write_text("")
  assert run(archive(server, zipped(GOOD)), tmp_path).status == "got"
  assert not left.exists()
