"""The launchers of data/: from text to checked records, stopped anywhere."""

import bz2
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import processes
import pytest

from utils import records

# The stages have tests of their own, on both stacks.
pytestmark = pytest.mark.once

TITLES = ["Rain", "Bread", "Clay", "Salt", "Iron", "Wool", "Glass", "Ink"]


def sentences(seed, count):
  """Returns running text about nothing, in sentences."""
  chance = random.Random(seed)
  words = ["w%d" % i for i in range(60)]
  return " ".join(
      " ".join([chance.choice(words).capitalize()]
               + [chance.choice(words) for _ in range(chance.randint(4, 12))])
      + "." for _ in range(count))


def book(seed):
  """Returns a book as Project Gutenberg has it, in hard lines."""
  words = sentences(seed, 120).split()
  lines = [" ".join(words[i:i + 11]) for i in range(0, len(words), 11)]
  return ("The Project Gutenberg eBook of Nothing\n\n"
          "*** START OF THE PROJECT GUTENBERG EBOOK NOTHING ***\n\n"
          + "\n".join(lines[:40]) + "\n\n" + "\n".join(lines[40:])
          + "\n\n*** END OF THE PROJECT GUTENBERG EBOOK NOTHING ***\n"
          "Licence.\n")


def dump(path):
  """Writes a multistream dump of eight articles and a redirect."""
  page = ("<page><title>%s</title><ns>0</ns><id>%d</id><revision><id>1</id>"
          "<text xml:space=\"preserve\">%s</text></revision></page>\n")
  parts = ["<mediawiki xmlns=\"http://www.mediawiki.org/xml/export-0.10/\" "
           "version=\"0.10\" xml:lang=\"en\">\n<siteinfo></siteinfo>\n"]
  for number, title in enumerate(TITLES):
    text = "'''%s''' is [[thing|nothing]].{{cite|x}} %s\n\n== End ==\n* list" % (
        title, sentences(number, 40))
    parts.append(page % (title, number, text))
  parts.append(page % ("Rains", 99, "#REDIRECT [[Rain]]"))
  parts.append("</mediawiki>\n")
  with open(path, "wb") as stream:
    stream.write(b"".join(bz2.compress(p.encode("utf-8")) for p in parts))
  return path


@pytest.fixture
def site(tmp_path):
  """A DATA_DIR with books, a dump and a vocabulary."""
  books = tmp_path / "bookcorpus" / "download"
  books.mkdir(parents=True)
  for number in range(9):
    (books / ("%d.txt" % number)).write_text(book(number), encoding="utf-8")
  wiki = tmp_path / "wikipedia_corpus" / "download"
  wiki.mkdir(parents=True)
  dump(str(wiki / "enwiki-20200101-pages-articles-multistream.xml.bz2"))
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "is", "nothing"]
  pieces += [title.lower() for title in TITLES]
  pieces += ["w%d" % i for i in range(60)]
  (tmp_path / "vocab.txt").write_text("\n".join(pieces))
  return tmp_path


def environment(site):
  return dict(os.environ, DATA_DIR=str(site), BERT_PYTHON=sys.executable)


def command(root, site, corpus, *words):
  """Returns the command line of a corpus's run_preprocessing.sh."""
  script = root / "data" / corpus / "run_preprocessing.sh"
  return ["bash", str(script), "--vocab_file", str(site / "vocab.txt"),
          "--num_training_shards", "3", "--num_test_shards", "1",
          "--test_fraction", "0.1", "--lengths", "32:5",
          "--dupe_factor", "2", "--num_workers", "2"] + list(words)


def run(words, site, status=0):
  """Runs a command to its end; returns all that it printed."""
  process = subprocess.Popen(
      words, env=environment(site), stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT)
  output = process.communicate(timeout=300)[0].decode()
  assert process.returncode == status, output
  return output


def outputs(folder):
  """Returns {path: content} of all files below a corpus's folder."""
  found = {}
  for place, _, names in os.walk(str(folder)):
    for name in names:
      path = os.path.join(place, name)
      with open(path, "rb") as stream:
        found[os.path.relpath(path, str(folder))] = stream.read()
  # What the checker says of seconds and folders.
  return {name: content for name, content in found.items()
          if not name.endswith(("check_records.json", "check_records.png"))}


def times(folder):
  return {name: os.stat(os.path.join(str(folder), name)).st_mtime_ns
          for name in outputs(folder)}


@pytest.mark.parametrize("corpus,name,lengths", [
    ("bookcorpus", "bookscorpus", "32:5"),
    ("wikipedia_corpus", "wikicorpus_en", "32:5,64:10")])
def test_from_download_to_records(root, site, corpus, name, lengths):
  output = run(command(root, site, corpus, "--lengths", lengths), site)
  assert "Traceback" not in output
  folder = site / corpus
  single = folder / "final_text_file_single" / (name + ".segmented.nltk.txt")
  text = single.read_text(encoding="utf-8")
  documents = text.strip().split("\n\n")
  assert len(documents) == (9 if corpus == "bookcorpus" else 8)
  for mark in ("Gutenberg", "Licence", "[[", "{{", "==", "'''", "list"):
    assert mark not in text
  shards = sorted(os.listdir(str(folder / "final_text_files_sharded")))
  texts = [s for s in shards if s.endswith(".txt")]
  assert texts == ["%s_test_0000.txt" % name] + [
      "%s_training_%04d.txt" % (name, i) for i in range(3)]
  for length in lengths.split(","):
    made = (folder / "final_tfrecords_sharded"
            / ("seq_%s_pred_%s" % tuple(length.split(":"))))
    for side, count in (("training", 3), ("test", 1)):
      files = sorted(str(p) for p in (made / side).glob("*.tfrecord"))
      assert len(files) == count
      assert all(records.count_records(path) > 10 for path in files)
      assert (made / side / "check_records.png").exists()
  assert "damaged: 0" in output


def test_again_nothing_is_made(root, site):
  words = command(root, site, "bookcorpus", "--steps",
                  "extract,segment,shard,records")
  run(words, site)
  before = times(site / "bookcorpus")
  run(words, site)
  assert times(site / "bookcorpus") == before
  # A newer input, and what follows from it.
  (site / "bookcorpus" / "download" / "3.txt").write_text(book(33))
  run(words, site)
  after = times(site / "bookcorpus")
  assert set(after) == set(before)
  anew = {name for name in after if after[name] > before[name]}
  assert "extracted/bookscorpus-00000.txt" in anew
  assert "final_text_file_single/bookscorpus.segmented.nltk.txt" in anew
  assert any(name.endswith(".tfrecord") for name in anew)


def test_another_division_leaves_nothing_of_the_first(root, site):
  """Records without a text would be trained on, too, or scored on."""
  words = lambda shards, fraction: command(
      root, site, "bookcorpus", "--num_training_shards", shards,
      "--test_fraction", fraction, "--num_test_shards", "")
  run(words("5", "0.2"), site)
  made = site / "bookcorpus" / "final_tfrecords_sharded" / "seq_32_pred_5"
  assert len(list(made.glob("*/*.tfrecord"))) == 6
  output = run(words("2", "0"), site)
  assert "removed 3 record files of an earlier division" in output
  assert sorted(p.name for p in made.glob("*/*.tfrecord*")) == [
      "bookscorpus_training_000%d.tfrecord%s" % (i, suffix)
      for i in range(2) for suffix in ("", ".settings.json")]
  assert not list((made / "test").iterdir())


def test_three_ranks_make_the_same_bytes(root, site, tmp_path_factory):
  """Under mpirun; each rank does its part and waits for the others'."""
  if not shutil.which("mpirun"):
    pytest.skip("no mpirun: Open MPI is not installed")
  alone = tmp_path_factory.mktemp("alone")
  shutil.copytree(str(site), str(alone / "data"))
  run(command(root, alone / "data", "wikipedia_corpus"), alone / "data")
  output = run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "3"]
               + command(root, site, "wikipedia_corpus"), site)
  assert "part 3 of 3" in output
  assert outputs(site / "wikipedia_corpus") == outputs(
      alone / "data" / "wikipedia_corpus")


def test_parts_one_after_the_other(root, site, tmp_path_factory):
  """A job array without room for all at once: each part says what it lacks."""
  alone = tmp_path_factory.mktemp("alone")
  shutil.copytree(str(site), str(alone / "data"))
  run(command(root, alone / "data", "bookcorpus"), alone / "data")
  part = lambda index, *words: command(
      root, site, "bookcorpus", "--num_shards", "2", "--shard_index",
      str(index), *words)
  first = subprocess.Popen(part(0), env=environment(site),
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  run(part(1), site)
  output = first.communicate(timeout=300)[0].decode()
  assert first.returncode == 0, output
  assert outputs(site / "bookcorpus") == outputs(
      alone / "data" / "bookcorpus")


def test_any_folder_of_text(root, site):
  texts = site / "texts"
  (texts / "deep").mkdir(parents=True)
  for number in range(4):
    (texts / "deep" / ("%d.txt" % number)).write_text(
        sentences(number, 30) + "\n\n" + sentences(number + 10, 30))
  words = ["bash", str(root / "data" / "run_preprocessing.sh"), str(texts),
           "mine", "--documents", "blank_line", "--lengths", "32:5",
           "--vocab_file", str(site / "vocab.txt"), "--dupe_factor", "1",
           "--num_training_shards", "2", "--test_fraction", "0"]
  run(words, site)
  made = site / "mine" / "final_tfrecords_sharded" / "seq_32_pred_5"
  assert len(list((made / "training").glob("*.tfrecord"))) == 2
  assert not (made / "test").exists()
  text = (site / "mine" / "final_text_file_single" /
          "mine.segmented.nltk.txt").read_text()
  assert len(text.strip().split("\n\n")) == 8


@pytest.mark.parametrize("words,message", [
    (["--steps", "extract,shards"], "'shards' is none of"),
    (["--lengths", "128"], "'128' has to be like 128:20"),
    (["--fresh"], "--fresh: delete what is to be made anew"),
    (["--test_fraction", "2"], "a number from 0 to 1"),
])
def test_wrong_arguments(root, site, words, message):
  output = run(command(root, site, "bookcorpus", *words), site, 2)
  assert message in output and output.count("\n") == 1


@pytest.mark.parametrize("words,message", [
    (["--num_training_shards", "200"], "--num_training_shards"),
    (["--steps", "records,check"], "run the step shard"),
    (["--input", "/no/such/folder"], "no books at /no/such/folder"),
    (["--vocab_file", "/no/vocab.txt"], "no vocabulary at /no/vocab.txt"),
])
def test_bad_input(root, site, words, message):
  output = run(command(root, site, "bookcorpus", *words), site, 1)
  assert message in output.splitlines()[-1] and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("corpus,pattern,seed", [
    ("bookcorpus", "books", 0), ("bookcorpus", "books", 1),
    ("wikipedia_corpus", "wiki/*shortened.bz2", 2)])
def test_kill_9_at_any_moment(root, site, shared_data, tmp_path_factory, corpus,
                              pattern, seed):
  """Ten kills, of all or of any one process: the bytes of an undisturbed run.

  On real text and the real vocabulary, long enough to be hit in each stage.
  """
  source, = shared_data.glob(pattern)
  chance = random.Random(seed)
  vocab = str(shared_data / "vocab" / "uncased_vocab.txt")
  words = [
      "bash", str(root / "data" / corpus / "run_preprocessing.sh"),
      "--input", str(source), "--vocab_file", vocab,
      "--num_training_shards", "7", "--test_fraction", "0.1", "--lengths",
      "128:20", "--dupe_factor", "1", "--num_workers", "2", "--punkt", "corpus"]
  alone = tmp_path_factory.mktemp("alone")
  start = time.time()
  run(words, alone)
  whole = time.time() - start
  expected = outputs(alone / corpus)
  shutil.rmtree(str(site / corpus))
  kills = 0
  while kills < 10:
    process = subprocess.Popen(
        words, env=environment(site), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(chance.uniform(0.2, whole / 4))
    living = processes.alive(process.pid)
    if process.poll() is None and living:
      victims = living if chance.random() < 0.5 else [chance.choice(living)]
      for victim in victims:
        try:
          os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
          continue
      kills += 1
    # Whoever is left ends by itself, and soon: nothing waits for the dead.
    process.wait(timeout=300)
    processes.wait_for_end(process.pid)
    if process.returncode == 0 and kills < 10:
      assert outputs(site / corpus) == expected
      shutil.rmtree(str(site / corpus))
  run(words, site)
  assert outputs(site / corpus) == expected
