"""data/shard.py: every document once, in equal shards, whatever happens."""

import collections
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import processes
import pytest

from data import shard
from utils import stages
from utils.errors import UserError


def corpus(seed, num_documents=200):
  """Returns documents of one to sixty sentences."""
  chance = random.Random(seed)
  return ["\n".join("Sentence %d of %d, caf\xe9." % (i, chance.random() * 1e9)
                    for i in range(1 + int(60 * chance.random() ** 3)))
          for _ in range(num_documents)]


def write(path, documents, between="\n\n"):
  path.write_bytes((between.join(documents) + between).encode("utf-8"))
  return str(path)


def options(tmp_path, source, **values):
  arguments = ["--input", source, "--output_dir", str(tmp_path / "out")]
  values.setdefault("num_training_shards", 8)
  values.setdefault("wait_minutes", 0.3)
  for name, value in values.items():
    arguments += ["--" + name, str(value)]
  return shard.parse_arguments(arguments)


def shards(tmp_path):
  """Returns {name: content} of all shards."""
  return {path.name: path.read_bytes()
          for path in sorted((tmp_path / "out").glob("*.txt"))}


def documents_in(content):
  text = content.decode("utf-8")
  assert text.endswith("\n\n")
  return text[:-2].split("\n\n")


def sides(tmp_path):
  """Returns the documents of the training and of the test shards."""
  found = {"training": [], "test": []}
  for name, content in shards(tmp_path).items():
    found[name.split("_")[-2]].extend(documents_in(content))
  return found["training"], found["test"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(stages, "POLL_SECONDS", 0.02)


# --------------------------------------------------------- documents


def all_of(path):
  found, parts = [], []
  for chunk, ended in shard.chunks(str(path), check=True):
    parts.append(chunk)
    if ended:
      found.append(b"".join(parts).decode("utf-8"))
      parts = []
  assert not parts
  return found


@pytest.mark.parametrize("text, found", [
    ("a\nb\n\nc\n\n", ["a\nb", "c"]),
    ("\n\n\na\r\nb\r\n\r\nc", ["a\r\nb", "c"]),
    ("\ufeffa \n \t\n\n \n\nb ", ["a", "b"]),
    ("one", ["one"]), ("one\n", ["one"]), ("", []), (" \n\n \n", []),
    ("a\n\u4e2d\n\n\u4e2d\u4e2d\n\n", ["a\n\u4e2d", "\u4e2d\u4e2d"]),
    ("a \n b\n\n\n\nc", ["a \n b", "c"])])
def test_documents(tmp_path, monkeypatch, text, found):
  (tmp_path / "x.txt").write_bytes(text.encode("utf-8"))
  for block in 3, 4, 5, 7, 1 << 18:
    monkeypatch.setattr(shard, "_BLOCK", block)
    assert all_of(tmp_path / "x.txt") == found, block


def test_much_white_space(tmp_path, monkeypatch):
  monkeypatch.setattr(shard, "_BLOCK", 8)
  path = tmp_path / "x.txt"
  path.write_bytes(b"a" + b" " * 100 + b"b" + b"\n" * 100 + b"c"
                   + b" " * 50 + b"\n" + b" " * 50 + b"d\n")
  first, second = all_of(path)
  assert first.split() == ["a", "b"] and second.split() == ["c", "d"]
  assert second.count("\n") == 1


# ----------------------------------------------------------- dealing


def test_all_documents_once_and_in_order(tmp_path):
  first, second = corpus(1), corpus(2)
  sources = ",".join([write(tmp_path / "a.txt", first),
                      write(tmp_path / "b.txt", second, "\r\n \n\n")])
  shard.run(options(tmp_path, sources, name="both", test_fraction=0.1))
  training, test = sides(tmp_path)
  assert collections.Counter(training + test) == collections.Counter(
      first + second)
  place = {text: i for i, text in enumerate(first + second)}
  for content in shards(tmp_path).values():
    places = [place[text] for text in documents_in(content)]
    assert places == sorted(places)
  assert sorted(shards(tmp_path)) == ["both_test_0000.txt"] + [
      "both_training_%04d.txt" % i for i in range(8)]


def test_equal_sizes(tmp_path):
  shard.run(options(tmp_path, write(tmp_path / "a.txt", corpus(1, 2000)),
                    num_training_shards=16))
  sizes = [len(content) for content in shards(tmp_path).values()]
  assert max(sizes) - min(sizes) < 60
  listing = shard.shards_in(str(tmp_path / "out" / "a.shards.json"))
  assert [s["num_bytes"] for s in listing["training"]] == sizes
  assert listing["test"] == []
  assert sum(s["documents"] for s in listing["training"]) == 2000


def test_the_largest_goes_first_to_the_emptiest():
  owner = shard.deal(np.array([5, 9, 5, 1, 8]),
                     np.array([7, 0, 3, 0, 0], np.uint64), 2)
  # 9 -> 0, 8 -> 1, the 5 with the smaller hash -> 1, 5 -> 0, 1 -> 1
  assert owner.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_held_out_never_mixes_with_training(tmp_path, fraction):
  texts = corpus(1, 150) * 2 + corpus(2, 100)
  shard.run(options(tmp_path, write(tmp_path / "a.txt", texts),
                    test_fraction=fraction, num_test_shards=2))
  training, test = sides(tmp_path)
  assert test and not set(training) & set(test)
  share = sum(map(len, test)) / sum(map(len, texts))
  largest = 2 * max(map(len, texts)) / sum(map(len, texts))
  assert fraction - 0.01 <= share <= fraction + largest


def test_seed(tmp_path):
  source = write(tmp_path / "a.txt", corpus(1))
  found = []
  for folder, seed in ("1", 1), ("2", 1), ("3", 2):
    (tmp_path / folder).mkdir()
    shard.run(options(tmp_path / folder, source, seed=seed,
                      test_fraction=0.1))
    found.append(shards(tmp_path / folder))
  assert found[0] == found[1]
  assert found[0] != found[2]
  assert set(sides(tmp_path / "1")[1]) != set(sides(tmp_path / "3")[1])


def test_more_shards_than_open_files(tmp_path, monkeypatch):
  monkeypatch.setattr(shard, "_WAITING", 1000)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
  try:
    shard.run(options(tmp_path, write(tmp_path / "a.txt", corpus(1, 300)),
                      num_training_shards=200))
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  assert len(shards(tmp_path)) == 200
  assert collections.Counter(sides(tmp_path)[0]) == collections.Counter(
      corpus(1, 300))


# ------------------------------------------------ again, killed, in parts


def test_nothing_is_done_twice(tmp_path, monkeypatch):
  source = write(tmp_path / "a.txt", corpus(1))
  shard.run(options(tmp_path, source))
  whole = shards(tmp_path)
  with monkeypatch.context() as patched:
    patched.setattr(shard, "make_shards", lambda *_: pytest.fail("again"))
    shard.run(options(tmp_path, source))
    shard.run(options(tmp_path, source, shard_index=1, num_shards=3))
  for harm in (os.remove, lambda path: open(path, "w").close()):
    harm(str(tmp_path / "out" / "a_training_0003.txt"))
    shard.run(options(tmp_path, source))
    assert shards(tmp_path) == whole


def test_shards_of_an_earlier_division_go(tmp_path):
  (tmp_path / "out").mkdir()
  others = ["b_training_0000.txt", "a_training_0000.txt.txt", "notes.txt",
            "a_b_training_0000.txt", "a_training_x.txt"]
  for name in others:
    (tmp_path / "out" / name).write_text("mine")
  source = write(tmp_path / "a.txt", corpus(1))
  shard.run(options(tmp_path, source, num_training_shards=12,
                    test_fraction=0.2))
  shard.run(options(tmp_path, source, num_training_shards=3))
  assert sorted(shards(tmp_path)) == sorted(
      others + ["a_training_%04d.txt" % i for i in range(3)])
  assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def killed_at(monkeypatch, place):
  """Makes this process kill itself in its `place`-th write or rename."""
  left = [place]

  def counted(real):
    def call(*arguments):
      left[0] -= 1
      if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
      return real(*arguments)
    return call
  # pylint: disable=protected-access
  monkeypatch.setattr(os, "replace", counted(os.replace))
  monkeypatch.setattr(shard._Shards, "_write", counted(shard._Shards._write))


@pytest.mark.parametrize("place", [1, 5, 20, 27, 30, 34, 35, 36])
def test_killed_anywhere(tmp_path, monkeypatch, place):
  """kill -9 in writing, in renaming and before the list and its record."""
  monkeypatch.setattr(shard, "_WAITING", 8 * 1000)
  source = write(tmp_path / "a.txt", corpus(1, 70))
  shard.run(options(tmp_path, source))
  undisturbed = shards(tmp_path)
  shard.run(options(tmp_path, source, num_training_shards=5))
  earlier = shards(tmp_path)

  def run():
    killed_at(monkeypatch, place)
    shard.run(options(tmp_path, source))
  _, status = os.waitpid(processes.in_child(run), 0)
  assert os.WIFSIGNALED(status)
  # Under a final name is a whole shard, of this division or the earlier one.
  for name, content in shards(tmp_path).items():
    assert content in (undisturbed.get(name), earlier.get(name))
  shard.run(options(tmp_path, source))
  assert shards(tmp_path) == undisturbed
  assert sorted(os.listdir(str(tmp_path / "out"))) == sorted(
      list(undisturbed) + ["a.shards.json", "a.shards.json.made.json"])


def test_a_list_that_comes_just_when_a_part_looks(tmp_path, monkeypatch):
  """A part that has not seen it yet must not take its record away."""
  source = write(tmp_path / "a.txt", corpus(1))
  part = lambda index: options(tmp_path, source, shard_index=index,
                               num_shards=2, wait_minutes=0)
  looks = []

  def look(piece, counts_of=stages.counts_of):
    found = counts_of(piece)
    if not looks:
      looks.append(piece)
      shard.run(part(0))
    return found

  monkeypatch.setattr(stages, "counts_of", look)
  shard.run(part(1))
  assert "a_training_0000.txt" in shards(tmp_path)
  assert os.path.exists(stages.record_path(str(tmp_path / "out"
                                               / "a.shards.json")))


def test_three_parts(tmp_path):
  source = write(tmp_path / "a.txt", corpus(1))
  parts = []
  for index in (2, 1, 0):
    part = options(tmp_path, source, shard_index=index, num_shards=3)
    parts.append(processes.in_child(lambda p=part: shard.run(p)))
    time.sleep(0.1)
  assert [os.waitpid(part, 0)[1] for part in parts] == [0, 0, 0]
  together = shards(tmp_path)
  (tmp_path / "alone").mkdir()
  shard.run(options(tmp_path / "alone", source))
  assert together == shards(tmp_path / "alone")


# ---------------------------------------------------------- bad input


@pytest.mark.parametrize("content, values, message", [
    (b"a\n\nb\n\nc\n", {"num_training_shards": 4},
     "only 3 documents for it, which are not divided: give 3 at most"),
    (b"a\n\nb\n\nc\n", {"num_training_shards": 1, "test_fraction": 0.3,
                        "num_test_shards": 2}, "give 1 at most"),
    (b"a\n", {"num_training_shards": 1, "test_fraction": 0.1},
     "leaves no document for training"),
    (b"\n \n", {}, "no document in"), (b"", {}, "no document in"),
    (b"a\n" * 40 + b"\xff\n", {}, "a.txt, line 41: is not UTF-8"),
    (b"a\n\n" * 4 + b"b\xe2", {}, "a.txt, line 9: is not UTF-8"),
    (b"a\n\n" * 4 + b"\0\n", {}, "a.txt, line 9: holds a zero byte")],
                         ids="many many_test alone blank empty latin cut "
                         "zero".split())
def test_bad_input(tmp_path, monkeypatch, content, values, message):
  monkeypatch.setattr(shard, "_BLOCK", 5)
  (tmp_path / "a.txt").write_bytes(content)
  with pytest.raises(UserError, match=message):
    shard.run(options(tmp_path, str(tmp_path / "a.txt"), **values))
  assert not os.listdir(str(tmp_path / "out"))


@pytest.mark.parametrize("values, message", [
    ({"test_fraction": 1}, "--test_fraction"),
    ({"test_fraction": -0.1}, "--test_fraction"),
    ({"num_training_shards": 0}, "--num_training_shards"),
    ({"num_test_shards": 2}, "needs a --test_fraction"),
    ({"num_test_shards": 0, "test_fraction": 0.1}, "--num_test_shards"),
    ({"name": "../x"}, "--name"), ({}, "--name: is needed")])
def test_bad_arguments(tmp_path, values, message):
  sources = ",".join([write(tmp_path / "a.txt", ["a"]),
                      write(tmp_path / "b.txt", ["a"])])
  with pytest.raises(UserError, match=message):
    shard.run(options(tmp_path, sources, **values))


def test_an_unfinished_segmentation(tmp_path):
  (tmp_path / "in" / "a.txt.parts").mkdir(parents=True)
  write(tmp_path / "in" / "a.txt.parts" / "00000.txt", ["a"])
  with pytest.raises(UserError, match="not finished"):
    shard.run(options(tmp_path, str(tmp_path / "in")))


def test_documents_of_one_sentence(tmp_path):
  shard.run(options(tmp_path, write(tmp_path / "a.txt", ["One.", "Two."]),
                    num_training_shards=2))
  assert list(shards(tmp_path).values()) == [b"One.\n\n", b"Two.\n\n"]


def test_warnings(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger("bert"), "propagate", True)
  monkeypatch.setattr(shard, "_COMFORT", 1000)
  source = write(tmp_path / "a.txt", ["a", "b" * 2000, "c"])
  shard.run(options(tmp_path, source, num_training_shards=2))
  assert "document 2 has 0 MB without a blank line" in caplog.text
  assert "too few or too large" in caplog.text


def test_input_that_changes(tmp_path, monkeypatch):
  source = write(tmp_path / "a.txt", corpus(1, 20))
  real = shard.plan

  def plan(*arguments):
    write(tmp_path / "a.txt", corpus(2, 20))
    return real(*arguments)
  monkeypatch.setattr(shard, "plan", plan)
  with pytest.raises(UserError, match="was changed while it was read"):
    shard.run(options(tmp_path, source))
  assert not os.listdir(str(tmp_path / "out"))


@pytest.fixture
def small_disk(tmp_path):
  folder = tmp_path / "out"
  folder.mkdir()
  done = subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
      stderr=subprocess.PIPE)
  if done.returncode:
    pytest.skip("cannot mount a tmpfs here: %s" % done.stderr.decode())
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_and_the_program(tmp_path, small_disk, root):
  source = write(tmp_path / "a.txt", corpus(1, 300))
  command = [sys.executable, str(root / "data" / "shard.py"), "--input",
             source, "--output_dir", str(small_disk), "--num_training_shards",
             "4"]
  done = subprocess.run(command, stderr=subprocess.PIPE, cwd=str(tmp_path))
  assert done.returncode == 1
  assert "free some space" in done.stderr.decode().splitlines()[-1]
  assert not os.listdir(str(small_disk))
  subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)],
                 check=True)
  subprocess.run(command, check=True, stderr=subprocess.PIPE)
  assert collections.Counter(sides(tmp_path)[0]) == collections.Counter(
      corpus(1, 300))
  with open(str(small_disk / "a.shards.json.made.json")) as stream:
    assert json.load(stream)["counts"]["documents"] == 300
