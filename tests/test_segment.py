"""data/segment.py: NLTK's sentences, whatever happens on the way."""

import hashlib
import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time

from nltk.tokenize import punkt
import peak_memory
import processes
import pytest

from data import punkt_model
from data import segment
from data.punkt_segmenter import Segmenter
from utils import stages
from utils.errors import UserError

ATOMS = (
    "a b p m Mr Mrs The the U S e.g i.e don't St Smith vs he He I no No Dr J "
    "etc 1 3 1.5 1,000 ... .. -- - , ; : * @ & # ` _ $ / \" ' ( ) [ ] { } "
    "\u201c \u201d \u2019 \xe9 \xc9 \xdf \u0130 \u4e2d \u3002 \U0001f600 "
    "\u0301").split(" ")
ATOMS += [".", "?", "!"] * 4 + [" "] * 12 + [
    "  ", ". . .", "\n", "\n\n", "\t", "\r", "\xa0", "\u3000", "\x0b", "\x85",
    "\x1c"]


def tiny_parameters():
  parameters = punkt.PunktParameters()
  parameters.abbrev_types.update(["mr", "mrs", "dr", "st", "e.g", "p", "vs"])
  parameters.collocations.update([("j", "smith"), ("##number##", "he"),
                                  (".", "the")])
  parameters.sent_starters.update(["the", "he"])
  parameters.ortho_context.update(
      {"the": 2 | 32, "he": 2 | 16 | 32, "smith": 2 | 4, "no": 8 | 64})
  return parameters


@pytest.fixture
def nltk_data(tmp_path, monkeypatch):
  """A folder with a small model in the form of NLTK's own."""
  place = tmp_path / "nltk_data" / "tokenizers" / "punkt" / "PY3"
  place.mkdir(parents=True)
  with open(str(place / "english.pickle"), "wb") as stream:
    pickle.dump(punkt.PunktSentenceTokenizer(tiny_parameters()), stream, 3)
  monkeypatch.setattr("nltk.data.path", [])
  monkeypatch.setattr(stages, "POLL_SECONDS", 0.02)
  return str(tmp_path / "nltk_data")


def random_text(chance, length):
  return "".join(chance.choice(ATOMS) for _ in range(length))


def corpus(seed, num_documents=40, sentences=12):
  """Returns documents, some of them with several paragraphs."""
  chance = random.Random(seed)
  words = "Mr. the The he He cat dog Smith Dr. 3. J. e.g. went ate sat".split()
  return ["".join(
      " ".join(chance.choice(words) for _ in range(3 + int(
          8 * chance.random()))) + chance.choice([". ", "? ", "! ", ".  "])
      for _ in range(sentences)).strip() for _ in range(num_documents)]


def expected(lines, parameters=None):
  """Returns the output by way of NLTK, as bytes."""
  tokenize = punkt.PunktSentenceTokenizer(
      parameters or tiny_parameters()).tokenize
  documents = [[s for paragraph in line.split("  ")
                for s in tokenize(paragraph.strip())] for line in lines]
  return "".join("\n".join(d) + "\n\n" for d in documents if d).encode("utf-8")


def options(tmp_path, source, **values):
  arguments = ["--input", str(source), "--output",
               str(tmp_path / "out" / "x.segmented.nltk.txt")]
  values.setdefault("piece_bytes", 1500)
  values.setdefault("num_workers", 1)
  values.setdefault("wait_minutes", 0.3)
  for name, value in values.items():
    arguments += ["--" + name, str(value)]
  return segment.parse_arguments(arguments)


def write(path, lines):
  path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))
  return path


def output(tmp_path):
  return (tmp_path / "out" / "x.segmented.nltk.txt").read_bytes()


# ------------------------------------------------------- exactly NLTK's


@pytest.mark.parametrize("text, sentences", [
    ("Mr. Smith sat. He ate!", ["Mr. Smith sat.", "He ate!"]),
    ('"Really?" he said. (No.) Yes', ['"Really?"', "he said.", "(No.)",
                                      "Yes"]),
    ("p. 3. He went", ["p. 3. He went"]),
    ("Ended...  The cat", ["Ended...", "The cat"]),
    ("", []), (" . ", [" ."]), ("one", ["one"])])
def test_known_sentences(text, sentences):
  assert Segmenter(tiny_parameters()).sentences(text) == sentences
  assert punkt.PunktSentenceTokenizer(
      tiny_parameters()).tokenize(text) == sentences


def agree(ours, theirs, chance, texts):
  """Checks texts as a whole and in pieces of random length."""
  for text in texts:
    wanted = theirs.tokenize(text)
    assert ours.sentences(text) == wanted, text
    found, rest, place = [], "", 0
    while place < len(text):
      step = chance.choice((1, 5, 20))
      sentences, rest = ours.split(rest + text[place:place + step])
      found += sentences
      place += step
    assert found + ours.sentences(rest) == wanted, text


def test_random_texts():
  chance = random.Random(1)
  agree(Segmenter(tiny_parameters()),
        punkt.PunktSentenceTokenizer(tiny_parameters()), chance,
        (random_text(chance, chance.choice((3, 8, 20, 60)))
         for _ in range(4000)))


def test_what_is_kept_is_bounded(monkeypatch):
  monkeypatch.setattr("data.punkt_segmenter._MOST_KEPT", 8)
  chance = random.Random(2)
  ours = Segmenter(tiny_parameters())
  agree(ours, punkt.PunktSentenceTokenizer(tiny_parameters()), chance,
        (random_text(chance, 40) for _ in range(300)))
  # pylint: disable=protected-access
  assert max(len(ours._sure), len(ours._answers)) <= 8
  ours.sentences("x" * 1000 + ". " + "e.g. " + "y" * 1000)
  assert max(map(len, list(ours._sure) + list(ours._answers))) < 100


def published(shared_data):
  model, _ = punkt_model.published(str(shared_data / "nltk_data"))
  return punkt_model.parameters_of(model)


def test_real_books(shared_data):
  """Each book as one text, and a third of them paragraph by paragraph."""
  parameters = published(shared_data)
  ours = Segmenter(parameters)
  theirs = punkt.PunktSentenceTokenizer(parameters)
  books = sorted((shared_data / "books").glob("*.txt"))
  assert books
  for number, path in enumerate(books):
    text = path.read_text(encoding="utf-8-sig")
    if number % 3 == 0:
      for paragraph in text.split("\n\n"):
        assert ours.sentences(paragraph) == theirs.tokenize(paragraph)
    else:
      text = " ".join(text.split())
      assert ours.sentences(text) == theirs.tokenize(text), path


def test_random_texts_by_the_published_model(shared_data):
  parameters = published(shared_data)
  chance = random.Random(3)
  agree(Segmenter(parameters), punkt.PunktSentenceTokenizer(parameters),
        chance, (random_text(chance, 30) for _ in range(1500)))


# ------------------------------------------------------------- the model


def test_published_model_is_read_as_nltk_does(nltk_data):
  model, place = punkt_model.published(nltk_data)
  assert place.startswith(nltk_data)
  found = punkt_model.parameters_of(json.loads(json.dumps(model)))
  for name in ("abbrev_types", "collocations", "sent_starters",
               "ortho_context"):
    assert getattr(found, name) == getattr(tiny_parameters(), name)


class Dangerous(object):

  def __reduce__(self):
    return os.system, ("touch /nowhere/at/all",)


@pytest.mark.parametrize("content", [
    pickle.dumps(Dangerous()), b"", b"junk", pickle.dumps(3),
    pickle.dumps(random.Random(1))])
def test_other_pickles_are_refused(nltk_data, content, monkeypatch):
  monkeypatch.setattr(os, "system", lambda command: pytest.fail(command))
  place = os.path.join(nltk_data, punkt_model.PUBLISHED)
  with open(place, "wb") as stream:
    stream.write(content)
  with pytest.raises(UserError, match="is not NLTK's English Punkt model"):
    punkt_model.published(nltk_data)


def test_which_model(tmp_path, nltk_data, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("bert"), "propagate", True)
  caplog.set_level(logging.INFO, "bert")
  source = write(tmp_path / "in.txt", corpus(1))
  for punkt_flag, extra, line in (
      ("auto", {"nltk_data": nltk_data}, "published English"),
      ("auto", {}, "learned from the corpus itself, since"),
      ("corpus", {"nltk_data": nltk_data}, "learned from the corpus itself")):
    caplog.clear()
    segment.run(options(tmp_path, source, punkt=punkt_flag, **extra))
    assert line in caplog.text
  with pytest.raises(UserError, match="is not installed"):
    segment.run(options(tmp_path, source, punkt="published"))


def test_learned_parameters_do_not_depend_on_hashes(tmp_path, root):
  source = write(tmp_path / "in.txt", corpus(1, 300))
  found = set()
  for seed in "1", "2":
    code = ("import sys; from data import punkt_model as p; import json;"
            "print(json.dumps(p.trained(open(%r))))" % str(source))
    found.add(subprocess.check_output(
        [sys.executable, "-c", code], cwd=str(root),
        env=dict(os.environ, PYTHONHASHSEED=seed)))
  assert len(found) == 1
  model, enough = json.loads(found.pop().decode())
  assert enough and model["abbreviations"]


def test_a_corpus_too_small_to_learn_from(tmp_path, nltk_data):
  source = write(tmp_path / "in.txt", ["Yes."])
  segment.run(options(tmp_path, source, punkt="corpus"))
  assert output(tmp_path) == b"Yes.\n\n"


# ------------------------------------------------------- the whole program


@pytest.mark.parametrize("values", [
    {}, {"num_workers": 3}, {"piece_bytes": 100}, {"piece_bytes": 10 ** 9},
    {"piece_bytes": 20, "num_workers": 2}])
def test_same_bytes(tmp_path, nltk_data, values):
  lines = corpus(1, 20, 3) + ["", "  ", "One sentence only"]
  (tmp_path / "in").mkdir()
  write(tmp_path / "in" / "a.txt", lines[:9])
  write(tmp_path / "in" / "b.txt", lines[9:])
  write(tmp_path / "in" / ".hidden", ["Never. Read."])
  segment.run(options(tmp_path, tmp_path / "in", nltk_data=nltk_data,
                      **values))
  assert output(tmp_path) == expected(lines)
  assert sorted(os.listdir(str(tmp_path / "out"))) == [
      "x.segmented.nltk.txt", "x.segmented.nltk.txt.made.json"]
  record = json.loads(
      (tmp_path / "out" / "x.segmented.nltk.txt.made.json").read_text())
  assert record["counts"] == {
      "documents": 21, "empty": 2,
      "sentences": len(expected(lines).replace(b"\n\n", b"\n").splitlines()),
      "bytes": sum(len(line) for line in lines)}


def test_odd_white_space(tmp_path, nltk_data):
  source = tmp_path / "in.txt"
  source.write_bytes("\ufeffHe sat.\x0bThe cat\r\n\r\nA\u2028b\x85c. He\r"
                     "went. \t He ate".encode("utf-8"))
  segment.run(options(tmp_path, source, nltk_data=nltk_data))
  assert output(tmp_path).decode("utf-8") == (
      "He sat.\nThe cat\n\nA b c.\nHe went.\nHe ate\n\n")


@pytest.mark.parametrize("piece_bytes", [20, 1500])
def test_long_documents_in_steps(tmp_path, nltk_data, monkeypatch,
                                 piece_bytes):
  monkeypatch.setattr(segment, "_BLOCK", 7)
  monkeypatch.setattr(segment, "_LOOKED_AT", 5)
  lines = corpus(5, 6, 30) + ["word " * 100, "\u4e2d\u3002" * 60,
                              "a.  b.   c", random_text(
                                  random.Random(1), 300).replace("\n", " ")
                              .replace("\x1c", "").replace("\x85", "")
                              .replace("\r", "").replace("\x0b", "")]
  source = write(tmp_path / "in.txt", lines)
  segment.run(options(tmp_path, source, nltk_data=nltk_data,
                      piece_bytes=piece_bytes))
  assert output(tmp_path) == expected([line.strip() for line in lines])


def test_nothing_is_done_twice(tmp_path, nltk_data, monkeypatch):
  source = write(tmp_path / "in.txt", corpus(1))
  values = options(tmp_path, source, nltk_data=nltk_data)
  segment.run(values)
  first = output(tmp_path)
  monkeypatch.setattr(segment, "_segment", lambda *_: pytest.fail("again"))
  segment.run(values)
  # As left by a run that was killed between the join and the end, and as
  # found by another part that starts late.
  os.mkdir(values.output + ".parts")
  values.shard_index, values.num_shards = 2, 3
  segment.run(values)
  assert not os.path.exists(values.output + ".parts")
  monkeypatch.undo()
  write(source, corpus(2))
  monkeypatch.setattr("nltk.data.path", [])
  segment.run(options(tmp_path, source, nltk_data=nltk_data))
  assert output(tmp_path) != first
  assert output(tmp_path) == expected(corpus(2))


@pytest.mark.parametrize("flag", ["published", "corpus"])
def test_three_parts(tmp_path, nltk_data, flag):
  source = write(tmp_path / "in.txt", corpus(1))
  values = dict(nltk_data=nltk_data, punkt=flag)
  segment.run(options(tmp_path, source, **values))
  alone = output(tmp_path)
  os.remove(str(tmp_path / "out" / "x.segmented.nltk.txt"))
  parts = []
  for index in (2, 1, 0):
    part = options(tmp_path, source, shard_index=index, num_shards=3, **values)
    parts.append(processes.in_child(lambda p=part: segment.run(p)))
    time.sleep(0.1)
  assert [os.waitpid(part, 0)[1] for part in parts] == [0, 0, 0]
  assert output(tmp_path) == alone
  assert not os.path.exists(str(tmp_path / "out") + "/x.segmented.nltk.txt"
                            ".parts")


def test_parameters_that_came_and_went(tmp_path, nltk_data, monkeypatch):
  """Part 0 needs nothing of part 1 and is done before that one looks."""
  source = write(tmp_path / "in.txt", corpus(1))
  part = lambda index: options(tmp_path, source, nltk_data=nltk_data,
                               punkt="corpus", shard_index=index, num_shards=2,
                               piece_bytes=1 << 20)
  naps = []

  def nap(seconds):
    naps.append(seconds)
    segment.run(part(0))

  monkeypatch.setattr(segment.stages.time, "sleep", nap)
  segment.run(part(1))
  assert len(naps) == 1 and output(tmp_path)


def test_an_endless_sentence_is_divided(tmp_path, nltk_data, monkeypatch):
  monkeypatch.setattr(segment, "LONGEST_LINE", 50)
  words = ["word%d" % i for i in range(40)] + ["x" * 120]
  source = write(tmp_path / "in.txt", [" ".join(words) + ". One more."])
  segment.run(options(tmp_path, source, nltk_data=nltk_data))
  lines = output(tmp_path).decode("utf-8").split("\n")
  assert max(map(len, lines)) <= 50
  assert lines[-3:] == ["One more.", "", ""]
  assert "".join(lines[:-3]).replace(" ", "") == "".join(words) + "."


def test_a_part_that_never_comes(tmp_path, nltk_data):
  source = write(tmp_path / "in.txt", corpus(1))
  with pytest.raises(UserError, match="other parts have not made them"):
    segment.run(options(tmp_path, source, nltk_data=nltk_data, shard_index=0,
                        num_shards=2, wait_minutes=0.002))


def killed_at(monkeypatch, place):
  """Makes this process kill itself in its `place`-th os.replace."""
  left = [place]
  real = os.replace

  def replace(*arguments):
    left[0] -= 1
    if left[0] == 0:
      os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments)
  monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("flag", ["published", "corpus"])
def test_killed_anywhere(tmp_path, nltk_data, monkeypatch, flag):
  """kill -9 before each rename, then to the end: the bytes of one go."""
  source = write(tmp_path / "in.txt", corpus(1, 20))
  values = options(tmp_path, source, nltk_data=nltk_data, punkt=flag)
  segment.run(values)
  undisturbed = output(tmp_path)
  os.remove(values.output)
  kills = 0
  for place in (1, 2, 2, 3, 2, 1, 4, 2, 2, 100):
    def run(place=place):
      killed_at(monkeypatch, place)
      segment.run(values)
    _, status = os.waitpid(processes.in_child(run), 0)
    kills += os.WIFSIGNALED(status)
    if not status:
      break
  assert kills >= 5 and not status
  assert output(tmp_path) == undisturbed
  assert sorted(os.listdir(str(tmp_path / "out"))) == [
      "x.segmented.nltk.txt", "x.segmented.nltk.txt.made.json"]


def test_a_killed_worker(tmp_path, nltk_data, monkeypatch):
  source = write(tmp_path / "in.txt", corpus(1))
  with monkeypatch.context() as patched:
    killed_at(patched, 3)
    with pytest.raises(UserError, match="killed by signal 9"):
      segment.run(options(tmp_path, source, nltk_data=nltk_data,
                          num_workers=2))
  segment.run(options(tmp_path, source, nltk_data=nltk_data, num_workers=2))
  assert output(tmp_path) == expected(corpus(1))


def test_as_a_program_under_a_launcher(tmp_path, nltk_data, root):
  source = write(tmp_path / "in.txt", corpus(1, 60))
  command = [sys.executable, str(root / "data" / "segment.py"), "--input",
             str(source), "--output", str(tmp_path / "out" /
                                          "x.segmented.nltk.txt"),
             "--nltk_data", nltk_data, "--piece_bytes", "2000"]
  parts = [subprocess.Popen(
      command, cwd=str(tmp_path), stderr=subprocess.PIPE, env=dict(
          os.environ, OMPI_COMM_WORLD_RANK=str(rank),
          OMPI_COMM_WORLD_SIZE="2")) for rank in range(2)]
  for part in parts:
    lines = part.communicate()[1].decode()
    assert part.returncode == 0, lines
    assert "60 documents" in lines
  assert output(tmp_path) == expected(corpus(1, 60))


# --------------------------------------------------------------- bad input


@pytest.mark.parametrize("content, message", [
    (b"Good.\n" * 500 + b"Bad \xff here.\n", "line 501: is not UTF-8"),
    (b"Good.\n" * 3 + b"Cut \xe2\x82", "line 4: is not UTF-8"),
    (b"Cut \xe2\x82\nGood.\n", "line 1: is not UTF-8"),
    (b"Good.\n" * 400 + b"PK\x00\x01\n", "line 401: holds a zero byte"),
    (b"Good.\n" * 2 + b"word " * 3000 + b"\n", "line 3: this document has"),
    (b"", "nothing to segment"),
    (b"\n \n\r\n", "nothing to segment: 3 lines, all of them blank")],
                         ids="latin cut cut_inside zero long empty "
                         "blank".split())
def test_bad_input(tmp_path, nltk_data, content, message):
  source = tmp_path / "in.txt"
  source.write_bytes(content)
  values = options(tmp_path, source, nltk_data=nltk_data,
                   max_document_mb=0.01)
  with pytest.raises(UserError, match=message) as caught:
    segment.run(values)
  assert "is not" not in message or str(source) in str(caught.value)
  if "nothing" not in message:
    assert not os.path.exists(values.output)


def test_bad_arguments(tmp_path, nltk_data):
  source = write(tmp_path / "in.txt", ["A."])
  with pytest.raises(UserError, match="no file matches"):
    segment.run(options(tmp_path, tmp_path / "none*.txt"))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="nothing to segment"):
    segment.run(options(tmp_path, tmp_path / "empty"))
  values = options(tmp_path, source)
  values.output = str(source)
  with pytest.raises(UserError, match="name another place"):
    segment.run(values)
  with pytest.raises(UserError, match="--piece_bytes has to be more than 0"):
    options(tmp_path, source, piece_bytes=0)
  with pytest.raises(UserError, match="--num_workers=0: give 1 or more"):
    segment.run(options(tmp_path, source, nltk_data=nltk_data, num_workers=0))
  with pytest.raises(UserError, match="does not exist"):
    segment.run(options(tmp_path, source, nltk_data=nltk_data, shard_index=3,
                        num_shards=3))


def test_memory_of_one_long_line(tmp_path, nltk_data, root):
  """A document of 30 MB, of which Python's strings would have 120 MB."""
  source = tmp_path / "in.txt"
  line = "word " * 60 + " ".join(corpus(1, 1)) + " \U0001f600. "
  source.write_bytes(line.encode("utf-8") * (30000000 // len(line)))
  code = ("import sys; from data import segment;"
          "segment.run(segment.parse_arguments(sys.argv[1:]));"
          + peak_memory.PRINT)
  kilobytes = subprocess.check_output(
      [sys.executable, "-c", code, "--input", str(source), "--output",
       str(tmp_path / "x.txt"), "--nltk_data", nltk_data, "--num_workers",
       "1"], cwd=str(root))
  assert peak_memory.of_printed(kilobytes) < 130 << 10


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["published", "corpus"])
def test_killed_at_random_moments(tmp_path, nltk_data, root, flag):
  """kill -9 of the program and of a worker in turn, ten times."""
  source = write(tmp_path / "in.txt", corpus(1, 4000))
  command = [sys.executable, str(root / "data" / "segment.py"), "--input",
             str(source), "--output",
             str(tmp_path / "out" / "x.segmented.nltk.txt"), "--nltk_data",
             nltk_data, "--piece_bytes", "2000", "--num_workers", "2",
             "--punkt", flag]
  subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
  undisturbed = output(tmp_path)
  os.remove(str(tmp_path / "out" / "x.segmented.nltk.txt"))
  folder = tmp_path / "out" / "x.segmented.nltk.txt.parts"

  def done():
    return len(list(folder.glob("*.made.json")))
  chance = random.Random(1)
  for number in range(10):
    enough = done() + int(20 * chance.random())
    program = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not folder.exists() or done() < enough:
      assert program.poll() is None, "it ended before it was killed"
      time.sleep(0.001)
    time.sleep(0.02 * chance.random())
    workers = subprocess.run(["pgrep", "-P", str(program.pid)],
                             stdout=subprocess.PIPE).stdout.split()
    of_worker = number % 2 and workers
    os.kill(int(workers[0]) if of_worker else program.pid, signal.SIGKILL)
    assert program.wait(60) == (1 if of_worker else -signal.SIGKILL)
  subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
  assert output(tmp_path) == undisturbed


@pytest.fixture
def small_disk(tmp_path):
  folder = tmp_path / "disk"
  folder.mkdir()
  done = subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
      stderr=subprocess.PIPE)
  if done.returncode:
    pytest.skip("cannot mount a tmpfs here: %s" % done.stderr.decode())
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(tmp_path, nltk_data, small_disk, root):
  source = write(tmp_path / "in.txt", corpus(1, 400))
  command = [sys.executable, str(root / "data" / "segment.py"), "--input",
             str(source), "--output", str(small_disk / "x.txt"),
             "--nltk_data", nltk_data, "--piece_bytes", "4000"]
  done = subprocess.run(command, stderr=subprocess.PIPE)
  assert done.returncode == 1
  assert "free some space" in done.stderr.decode().splitlines()[-1]
  assert not (small_disk / "x.txt").exists()
  kept = list((small_disk / "x.txt.parts").glob("*.made.json"))
  assert kept, "nothing that was finished was kept"
  subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)],
                 check=True)
  subprocess.run(command, check=True, stderr=subprocess.PIPE)
  assert hashlib.sha256((small_disk / "x.txt").read_bytes()).hexdigest() == (
      hashlib.sha256(expected(corpus(1, 400))).hexdigest())


