"""Cleaning of books and other text: licences, furniture, encodings, input."""

import argparse
import codecs
import json
import os
import pathlib
import subprocess
import sys
import time

import peak_memory
import processes
import pytest

from data import book_text
from data import clean_text
from data import documents
from data import paragraphs
from data import text_files
from utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
BODY = "It was a dark night.\nThe rain fell.\n\nNobody came to see it."
CLEAN = "It was a dark night. The rain fell.  Nobody came to see it."


def clean(spec, out, **flags):
  """Runs the stage in this process; its workers are processes, as always."""
  options = dict(input=str(spec), output_dir=str(out), kind="text",
                 name="text", documents="file", pattern="*.txt",
                 max_document_mb=64, piece_bytes=32 << 20, strict=False,
                 num_workers=1, shard_index=0, num_shards=1,
                 wait_minutes=0)
  options.update(flags)
  return clean_text.clean(argparse.Namespace(**options))


def command(*arguments):
  return [sys.executable, "data/clean_text.py"] + list(map(str, arguments))


def environment():
  return {name: value for name, value in os.environ.items()
          if not name.startswith(("SLURM_", "OMPI_", "PMI_"))}


def run(*arguments):
  return subprocess.run(
      command(*arguments), cwd=str(ROOT), stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, universal_newlines=True, timeout=100,
      env=environment())


def lines_of(folder, name="text"):
  found = sorted(p for p in folder.iterdir() if p.suffix == ".txt"
                 and p.name.startswith(name + "-"))
  text = "".join(p.read_bytes().decode("utf-8") for p in found)
  assert text.splitlines() == text.split("\n")[:-1]
  return text.split("\n")[:-1]


def folder_of(tmp_path, contents):
  """Returns a folder with files {name: str or bytes}."""
  folder = tmp_path / "in"
  for name, content in contents.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes)
                     else content.encode("utf-8"))
  return folder


def book(text):
  """Returns the paragraphs of a book's text."""
  raw, encoding, _ = text_files.normalised(text.encode("utf-8"))
  raw, _, _ = book_text.body(raw)
  return [p for part in clean_text.parts(raw, encoding, True) for p in part]


# -- Project Gutenberg's header and licence


HEADERS = [
    "The Project Gutenberg EBook of X, by Y\n\nTitle: X\n\n"
    "*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\n\n"
    "Produced by A. B. and the Proofreading\nTeam at http://a.org\n\n",
    "Project Gutenberg's X\n\n***START OF THE PROJECT GUTENBERG EBOOK X***\n\n",
    "*** START OF THE PROJECT GUTENBERG EBOOK A VERY LONG\nTITLE OF X ***\n",
    "The Project Gutenberg Etext of X\n\n**START**THE SMALL PRINT!**FOR PUBLIC "
    "DOMAIN ETEXTS**START**\n\nLegal words.\n\n"
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n",
    "Project Gutenberg Etext X\n\n*END THE SMALL PRINT! FOR PUBLIC DOMAIN "
    "ETEXTS*Ver.10.04.01*END*\n\n\n",
    "E-text prepared by A. B.\n\n", "",
]
FOOTERS = [
    "\n\nEnd of the Project Gutenberg EBook of X, by Y\n\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK X ***\n\nLicence text.\n",
    "\n\nEnd of Project Gutenberg's X, by Y\n\nLicence text.\n",
    "\n\nEnd of The Project Gutenberg Etext of X\n",
    "\n\n***END OF THE PROJECT GUTENBERG EBOOK X***\n\n******* This file "
    "should be named 1.txt *******\n\n*** START: FULL LICENSE ***\nWords.\n",
    "\n\nTHE END\n\n", "\n",
]


@pytest.mark.parametrize("footer", FOOTERS)
@pytest.mark.parametrize("header", HEADERS)
def test_licence_goes_text_stays(header, footer):
  for end in ("\n", "\r\n"):
    text = (header + BODY + footer).replace("\n", end)
    assert documents.joined(book(text)) == CLEAN


def test_a_book_about_project_gutenberg_stays_whole():
  text = ("He read of Project Gutenberg.\nAt the end of Project Gutenberg he "
          "slept.\n\nEverything ends.")
  assert len(book(text)) == 2


# -- furniture of pages


@pytest.mark.parametrize("piece", [
    "12", "[12]", "- 12 -", "xii", "XII", "XII.", "[ 1 ]", "— I —", "* * * * *",
    "-------", "Page 12", "CHAPTER I. Down the Hole",
    "CHAPTER XII", "Chapter 3", "BOOK ONE: 1805", "Book the First--Recalled",
    "PART TWO", "THE WHITE WHALE", "AUTHOR’S PREFACE.", "A Scandal in Bohemia",
    "[Illustration: A ship [at sea]\n\nand more of it]", "[Illustration]",
    "[Footnote 1: See\npage 2.]", "[1] A note at the foot of a page.",
    "[Transcriber's Note: Errors were\nmended.]",
    "Transcriber’s Notes: Errors were mended, and more words about that.",
    "CONTENTS", "Contents", "Table of Contents.", "THE END", "Index.",
    "I.      I Am Born\nII.     I Observe\nIII.    I Have a Change",
    "CHAPTER I.  Of this\nCHAPTER II.  Of that\nCHAPTER III.  Of both",
    "Loomings . . . . 12\nThe Inn . . . . . 15\nThe Street ..... 20",
    "Whales, 12, 15-17\nWinds, 30;\nWizards, 331;", "Win at Play, to, 395",
    "CHAPTER I CHAPTER II CHAPTER III CHAPTER IV CHAPTER V CHAPTER VI CHAPTER "
    "VII\nCHAPTER VIII CHAPTER IX",
])
def test_furniture_goes(piece):
  assert book("One night it rained.\n\n%s\n\nTwo came in.\n" % piece) == [
      "One night it rained.", "Two came in."]


@pytest.mark.parametrize("piece", [
    "“STOP!”", "STOP THERE!", "Yes.", "“No,”", "I went home.", "He said:",
    "Part of it was lost.", "Book after book fell.", "In 1805, he left.",
    "It happened in the winter of the year,\nas all agreed, 1805.",
    "I. I said, I do not know what I would have done in that case, and did it.",
    "The act was over. Act one, I mean, not the act of which he spoke before.",
])
def test_text_stays(piece):
  assert book("One night.\n\n%s\n\nTwo came.\n" % piece)[1] == (
      piece.replace("\n", " "))


@pytest.mark.parametrize("text, clean_one", [
    ("It was _very_ dark and un_believ_able.",
     "It was very dark and unbelievable."),
    ("The =bold= word and ~spaced~ one.", "The bold word and spaced one."),
    ("Ladies[1] and men[A] came.[12]", "Ladies and men came."),
    ("He [A] said it [sic] so.", "He [A] said it [sic] so."),
    ("It was [Pg 12] late {13} there.", "It was late there."),
    ("A line of it\n123\ngoes on here.", "A line of it goes on here."),
    ("A line of it that is no label, since it is longer than any,\n\n[123]\n\n"
     "goes on here.", "A line of it that is no label, since it is longer than "
     "any, goes on here."),
    ("A line of it that is no label, since it is so much longer\nthan any"
     "\n\n- 123 -\n\ngoes on here.", "A line of it that is no label, since it "
     "is so much longer than any goes on here."),
    ("A dash--\nand more, two-\nfold.", "A dash--and more, two-fold."),
    ("Mr. ____ came.", "Mr. ____ came."),
    ("Words [Illustration: cut [off.", "Words cut [off."),
])
def test_marks_inside_paragraphs(text, clean_one):
  assert documents.joined(book(text)) == clean_one


@pytest.mark.parametrize("text", [
    "[Note " * 50000, "[" * 100000, "]" * 100000,
    "[Note [" * 40000 + "]" * 80000,
    "_" * 100000, "= " * 50000, "~ " * 50000, "\n1\n" * 50000, "a-\n" * 30000,
    "* " * 50000, "I. \n" * 30000, "a, 1\n" * 30000, ". . " * 50000,
    "Project Gutenberg " * 10000, "\nEND OF PROJECT" * 10000, "{1 " * 50000,
    "THE SMALL PRINT! " * 10000, "\n" * 300000, " " * 300000, "\f" * 300000,
], ids=lambda text: text[:9])
def test_hostile_books_take_linear_time(text):
  started = time.process_time()
  book("Text before. " + text + " Text after.")
  assert time.process_time() - started < 5


def test_paragraphs_that_end_are_not_joined_over_a_page_number():
  assert book("It ends here.\n\n12\n\nbut goes on.") == [
      "It ends here.", "but goes on."]


@pytest.mark.parametrize("text, joined", [
    ("some-\nthing. Something.", "something. Something."),
    ("some-\nthing.", "some-thing."),
    ("some-\nthing. Something, some-thing.",
     "some-thing. Something, some-thing."),
    ("Anglo-\nSaxon. Anglosaxon.", "Anglo-Saxon. Anglosaxon."),
    ("mother-in-\nlaw. inlaw", "mother-in-law. inlaw"),
    ("in 18-\n20 days", "in 18- 20 days"),
])
def test_hyphens_at_the_end_of_a_line(text, joined):
  assert [paragraphs.flat(p) for p in paragraphs.raw_paragraphs(text)] == [
      joined]


# -- files of text


def test_one_document_a_line_whatever_ends_lines(tmp_path):
  odd = "A\u2028b\u2029c\u0085d\x0be\x0cf\rg\tha\xa0i\x1cj\u3000k."
  folder = folder_of(tmp_path, {"a.txt": odd, "b/c.txt": BODY, "no.md": "No."})
  clean(folder, tmp_path / "out")
  assert lines_of(tmp_path / "out") == ["A b c d e f g ha ij k.", CLEAN]


def test_text_keeps_what_books_lose(tmp_path):
  text = "A Heading\n\nSome snake_case text [1].\n\n12\n"
  folder = folder_of(tmp_path, {"a.txt": text})
  clean(folder, tmp_path / "out")
  assert lines_of(tmp_path / "out") == [
      "A Heading  Some snake_case text [1].  12"]


def test_unbroken_lines_are_paragraphs(tmp_path):
  folder = folder_of(tmp_path, {"a.txt": "One. " * 90 + "\n" + "Two. " * 90})
  clean(folder, tmp_path / "out")
  assert lines_of(tmp_path / "out") == [
      ("One. " * 90).strip() + "  " + ("Two. " * 90).strip()]


@pytest.mark.parametrize("raw, label, text", [
    ("Zoë’s café.".encode("utf-8"), "utf-8", "Zoë’s café."),
    (b"Plain words.", "utf-8", "Plain words."),
    (codecs.BOM_UTF8 + "Zoë.".encode("utf-8"), "utf-8-bom", "Zoë."),
    ("Zoë’s.".encode("utf-16"), "utf-16", "Zoë’s."),
    (codecs.BOM_UTF16_BE + "Zoë.".encode("utf-16-be"), "utf-16", "Zoë."),
    ("Zoë’s café was open.".encode("cp1252"), "cp1252",
     "Zoë’s café was open."),
    ("Zoë in a café.".encode("latin-1"), "latin-1", "Zoë in a café."),
    ("Zoë’s cafés ".encode("utf-8") + b"b\xe9d.", "utf-8-damaged",
     "Zoë’s cafés bd."),
])
def test_encodings(tmp_path, raw, label, text):
  folder = folder_of(tmp_path, {"a.txt": raw})
  totals = clean(folder, tmp_path / "out")
  assert lines_of(tmp_path / "out") == [text]
  assert totals[label] == 1


@pytest.mark.parametrize("raw, words", [
    (b"\x7fELF\x00\x01" * 50, "is no text but binary data"),
    (bytes(range(1, 256)) * 50, "is no text but binary data"),
    ("Слово за словом.".encode("cp1251"), "is neither UTF-8 nor Latin-1"),
    (codecs.BOM_UTF16_LE + b"\x00\xd8" * 9, "is damaged UTF-16"),
    (b"", "has no text in it"), (b" \n\n \r\n", "has no text in it"),
])
def test_what_is_left_out(tmp_path, raw, words):
  folder = folder_of(tmp_path, {"bad.txt": raw, "good.txt": BODY})
  done = run("--input", folder, "--output_dir", tmp_path / "out",
             "--num_workers", 1)
  assert done.returncode == 0, done.stdout
  warnings = [line for line in done.stdout.split("\n") if " W " in line]
  assert len(warnings) == 1 and words in warnings[0]
  assert str(folder / "bad.txt") in warnings[0]
  assert lines_of(tmp_path / "out") == [CLEAN]
  with pytest.raises(UserError, match="1 files or documents were left out"):
    clean(folder, tmp_path / "out", strict=True)
  (folder / "good.txt").unlink()
  with pytest.raises(UserError, match="none of 1 files has text"):
    clean(folder, tmp_path / "out")


def test_broken_links_and_outputs_are_no_input(tmp_path):
  folder = folder_of(tmp_path, {"a.txt": BODY})
  (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
  (folder / "link.txt").symlink_to(folder / "a.txt")
  for _ in range(2):
    done = run("--input", folder, "--output_dir", folder)
    assert done.returncode == 0, done.stdout
    assert "gone.txt leads to no file; left out" in done.stdout
    assert lines_of(folder) == [CLEAN, CLEAN]


@pytest.mark.parametrize("flags, words", [
    (["--input", "{empty}"], "no file named *.txt in"),
    (["--input", "/nowhere"], "no file matches /nowhere"),
    (["--input", ""], "--input is required"),
    (["--input", "{full}", "--pattern", "*.md"], "no file named *.md in"),
    (["--input", "{full}", "--kind", "books", "--documents", "line"],
     "does not go with --kind books"),
    (["--input", "{full}", "--name", "../x"], "cannot begin the name"),
    (["--input", "{full}", "--max_document_mb", "0"], "take at least 1"),
])
def test_bad_flags(tmp_path, capfd, flags, words):
  full = folder_of(tmp_path, {"a.txt": BODY})
  empty = tmp_path / "empty"
  empty.mkdir()
  flags = [f.format(full=full, empty=empty) for f in flags]
  names = {flags[at][2:]: flags[at + 1] for at in range(0, len(flags), 2)}
  names["max_document_mb"] = int(names.get("max_document_mb", 64))
  with pytest.raises(UserError) as error:
    clean(names.pop("input"), tmp_path / "out", **names)
  assert words in str(error.value)
  del capfd


# -- files of many documents


def test_documents_by_line(tmp_path):
  folder = folder_of(tmp_path, {
      "a.txt": codecs.BOM_UTF8 + "One é.\n\n  Two.\r\nThree".encode("utf-8"),
      "b.txt": "Four é.\n".encode("latin-1")})
  totals = clean(folder, tmp_path / "out", documents="line")
  assert lines_of(tmp_path / "out") == ["One é.", "Two.", "Three", "Four é."]
  assert totals["documents"] == 4 and totals["latin-1"] == 1


def test_documents_by_blank_line(tmp_path):
  folder = folder_of(tmp_path, {"a.txt": "\n\nOne.\nMore.\n \n\nTwo.\n\n\n"})
  clean(folder, tmp_path / "out", documents="blank_line")
  assert lines_of(tmp_path / "out") == ["One. More.", "Two."]


@pytest.mark.parametrize("as_documents", ["file", "line", "blank_line"])
def test_huge_documents_are_not_read(tmp_path, as_documents):
  """One line of 200 MB, in a process that may not have as much."""
  folder = folder_of(tmp_path, {"a.txt": BODY})
  with open(str(folder / "huge.txt"), "wb") as stream:
    for _ in range(200):
      stream.write(b"word " * 200000)
  done = run("--input", folder, "--output_dir", tmp_path / "out",
             "--documents", as_documents, "--num_workers", 1,
             "--max_document_mb", 8)
  assert done.returncode == 0, done.stdout
  warnings = [line for line in done.stdout.split("\n") if " W " in line]
  assert len(warnings) == 1 and "--max_document_mb 8" in warnings[0]
  assert "huge.txt" in warnings[0]
  assert len(lines_of(tmp_path / "out")) == {
      "file": 1, "line": 3, "blank_line": 2}[as_documents]


@pytest.mark.parametrize("unit", ["word ", "wörd\u2019", "word\n",
                                  "Word.\n\n"])
def test_memory_of_large_documents(tmp_path, unit):
  """A document's bytes are held, twice for a moment, and little besides."""
  code = ("import sys; sys.path.insert(0, %r)\n"
          "from data import clean_text, text_files\n"
          "raw, e, _ = text_files.normalised(text_files.read_whole(\n"
          "    sys.argv[1], 1 << 30))\n"
          "for p in clean_text.parts(raw, e, True): pass\n"
          % str(ROOT) + peak_memory.PRINT)
  path = tmp_path / "a.txt"
  peaks = []
  for megabytes in (3, 9):
    unit_bytes = len(unit.encode("utf-8"))
    path.write_text(unit * ((megabytes << 20) // unit_bytes), encoding="utf-8")
    peaks.append(peak_memory.of_printed(subprocess.check_output(
        [sys.executable, "-c", code, str(path)], cwd=str(ROOT))))
  assert peaks[1] - peaks[0] < (2 * 6 + 8) << 10, peaks


def test_paragraphs_longer_than_a_block_keep_their_words():
  raw = ("wörd’s " * 400000).encode("utf-8")
  text = " ".join("".join(text_files.blocks(raw, "utf-8")).split())
  assert text == ("wörd’s " * 400000).strip()
  raw = ("é" * 1500001).encode("utf-8")
  assert "".join(text_files.blocks(raw, "utf-8")) == "é" * 1500001


# -- the program


def test_files_are_grouped_in_order(tmp_path):
  folder = folder_of(tmp_path, {"%d.txt" % n: "Text %d is here." % n
                                for n in range(10, 30)})
  found = clean_text.pieces(str(folder), str(tmp_path), "x", piece_bytes=40)
  assert [len(piece.inputs) for piece in found] == [2] * 10
  clean(folder, tmp_path / "out", piece_bytes=40)
  assert lines_of(tmp_path / "out") == ["Text %d is here." % n
                                        for n in range(10, 30)]


def test_same_bytes_however_it_is_done(tmp_path):
  folder = folder_of(tmp_path, {"%02d.txt" % n: "Text %d. " % n * n
                                for n in range(1, 40)})
  for workers in (1, 2):
    clean(folder, tmp_path / str(workers), num_workers=workers,
          piece_bytes=900)
  part = lambda index: clean(folder, tmp_path / "parts", piece_bytes=900,
                             shard_index=index, num_shards=3)
  for index in (1, 2):
    with pytest.raises(UserError, match="outputs are still missing"):
      part(index)
  part(0)
  names = sorted(os.listdir(str(tmp_path / "1")))
  assert len(names) > 10
  for other in ("2", "parts"):
    assert sorted(os.listdir(str(tmp_path / other))) == names
    for name in names:
      assert (tmp_path / other / name).read_bytes() == (
          tmp_path / "1" / name).read_bytes()


def test_a_document_that_is_no_text_among_others(tmp_path):
  """It is left out and counted; those behind it stay."""
  path = tmp_path / "a.txt"
  lines = [b"Good line %d." % n for n in range(5)]
  bad = "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440".encode("cp1251")
  path.write_bytes(b"\n".join(lines[:3] + [bad] + lines[3:]) + b"\n")
  totals = clean(path, tmp_path / "out", documents="line")
  assert lines_of(tmp_path / "out") == [l.decode() for l in lines]
  assert totals["documents"] == 5 and totals["refused"] == 1


def test_what_was_made_is_no_input(tmp_path):
  folder = folder_of(tmp_path, {"a.txt": BODY})
  for made in ("shards", ".hidden"):
    (folder / made).mkdir()
    (folder / made / "x_training_0000.txt").write_text(BODY)
  (folder / "shards" / "x.shards.json").write_text("{}")
  clean(folder, tmp_path / "out")
  assert lines_of(tmp_path / "out") == [CLEAN]


def test_kept_and_made_anew(tmp_path):
  folder = folder_of(tmp_path, {"a.txt": BODY, "b.txt": BODY})
  out = tmp_path / "out"
  clean(folder, out, piece_bytes=10)
  before = [os.stat(str(out / n)).st_ino for n in sorted(os.listdir(str(out)))]
  clean(folder, out, piece_bytes=10)
  assert before == [os.stat(str(out / n)).st_ino
                    for n in sorted(os.listdir(str(out)))]
  (folder / "b.txt").write_text("Another text.")
  clean(folder, out, piece_bytes=10)
  assert lines_of(out) == [CLEAN, "Another text."]
  (folder / "b.txt").unlink()
  clean(folder, out, piece_bytes=10)
  assert sorted(os.listdir(str(out))) == ["text-00000.txt",
                                          "text-00000.txt.made.json"]


def test_killed_at_any_moment(tmp_path):
  folder = folder_of(tmp_path, {"%02d.txt" % n: ("Text %d is.\n\n" % n) * 9000
                                for n in range(30)})
  flags = ["--input", folder, "--piece_bytes", 100000, "--num_workers", 2]
  whole, out = tmp_path / "whole", tmp_path / "out"
  started = time.time()
  assert run(*flags, "--output_dir", whole).returncode == 0
  lasts = time.time() - started
  for part in (0.5, 0.7, 0.9):
    process = subprocess.Popen(
        command(*flags, "--output_dir", out), cwd=str(ROOT),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment(), start_new_session=True)
    time.sleep(lasts * part)
    processes.kill(process)
  assert run(*flags, "--output_dir", out).returncode == 0
  assert sorted(os.listdir(str(out))) == sorted(os.listdir(str(whole)))
  for name in os.listdir(str(out)):
    assert (out / name).read_bytes() == (whole / name).read_bytes()


# -- real books


def test_real_books(shared_data, tmp_path):
  found, = clean_text.pieces(str(shared_data / "books"), str(tmp_path), "books",
                             kind="books")
  counts = clean_text.make_piece(found)
  assert counts["documents"] == counts["licence_removed"] == 16
  assert (counts["utf-8"], counts["utf-8-bom"]) == (4, 12)
  assert counts["licence_not_recognised"] == counts["empty"] == 0
  # Licences are 2 %, titles and lists of chapters little; the rest stays.
  assert 0.95 < counts["text_bytes"] / counts["input_bytes"] < 0.97
  lines = lines_of(tmp_path, "books")
  assert len(lines) == 16
  assert lines[0].startswith("Alice was beginning to get very tired of")
  assert lines[2].startswith("It is a truth universally acknowledged, that a")
  assert lines[2].endswith("been the means of uniting them.")
  for line in lines:
    # One book tells in its own notes that it was joined from two of theirs.
    assert line.count("Project Gutenberg") == ("Ishmael" in line)
    assert "[Illustration" not in line and "Produced by" not in line
    for paragraph in documents.paragraphs_of(line):
      assert paragraph == documents.flat(paragraph) != ""


def test_record_holds_the_counts(tmp_path):
  folder = folder_of(tmp_path, {"a.txt": BODY})
  clean(folder, tmp_path / "out")
  record = json.loads((tmp_path / "out" / "text-00000.txt.made.json")
                      .read_text("utf-8"))
  assert record["counts"]["documents"] == 1
