"""Times the cleaning of books and the extraction of Wikipedia, on one core.

    python benchmarks/bench_cleaning.py --books FOLDER --dump DUMP.bz2

Prints MB/s by CPU seconds, medians over the rounds and the best one, which a
busy machine slows least; for extraction beside mwparserfromhell alone (its
`parse(page).strip_code()`, which leaves lists and the text of notes in). Then
the largest memory of one process for the given sizes of input, made by
repeating books with altered words and by repeating the dump's streams.
"""

import argparse
import bz2
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
import mwparserfromhell

from data import book_text
from data import clean_text
from data import documents
from data import extract_wikipedia
from data import text_files
from data import wiki_dump
from data import wiki_markup
from utils.logs import LOGGER

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MEASURED = ("import resource, subprocess, sys; "
             "subprocess.check_call(sys.argv[1:], stderr=subprocess.DEVNULL); "
             "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")


def seconds_of(function):
  """Returns the CPU seconds of a call."""
  start = time.process_time()
  function()
  return time.process_time() - start


def times_of(function, rounds):
  """Returns (median, least) CPU seconds of calls."""
  seconds = [seconds_of(function) for _ in range(rounds)]
  return statistics.median(seconds), min(seconds)


def cleaned(raw):
  """Cleans the bytes of a book as the program does, without writing it."""
  raw, encoding, _ = text_files.normalised(raw)
  raw, _, _ = book_text.body(raw)
  for part in clean_text.parts(raw, encoding, True):
    documents.joined(part).encode("utf-8")


def books_speed(folder, rounds):
  """Prints the speed of cleaning, from files to a file and in memory."""
  with tempfile.TemporaryDirectory() as out:
    found = clean_text.pieces(folder, out, "books", kind="books")
    whole = times_of(
        lambda: [clean_text.make_piece(piece) for piece in found], rounds)
    books = [text_files.read_whole(p, 1 << 30) for f in found for p in f.inputs]
  megabytes = sum(map(len, books)) / 1e6
  text = times_of(lambda: [cleaned(raw) for raw in books], rounds)
  print("books: %.1f MB" % megabytes)
  for label, (median, least) in (("from files to file", whole),
                                 ("text alone", text)):
    print("  %-24s %5.1f MB/s (best round %.1f)"
          % (label, megabytes / median, megabytes / least))


def wikipedia_speed(dump, rounds):
  """Prints the speed of extraction and of the parser alone."""
  size = os.path.getsize(dump)
  pages = [p.text for p in wiki_dump.pages(dump, 0, size)
           if not p.is_redirect and p.namespace == 0]
  megabytes = sum(len(text.encode("utf-8")) for text in pages) / 1e6
  with tempfile.TemporaryDirectory() as out:
    found = extract_wikipedia.pieces(dump, out)
    whole = times_of(
        lambda: [extract_wikipedia.make_piece(p) for p in found], rounds)
  text = times_of(
      lambda: [wiki_markup.paragraphs(t, set()) for t in pages], rounds)
  parser = times_of(
      lambda: [mwparserfromhell.parse(t).strip_code() for t in pages], 1)
  print("wikipedia: %.1f MB of wikitext, %.1f MB packed" % (
      megabytes, size / 1e6))
  for label, (median, least) in (
      ("from dump to file", whole), ("text alone", text),
      ("mwparserfromhell alone", parser)):
    print("  %-24s %5.2f MB/s of wikitext (best round %.2f), %.1f x the "
          "parser alone" % (label, megabytes / median, megabytes / least,
                            parser[0] / median))


def repeated_books(folder, megabytes, out):
  """Writes copies of the books, their words altered, of so many megabytes."""
  names = sorted(n for n in os.listdir(folder) if n.endswith(".txt"))
  written, number = 0, 0
  while written < megabytes * 1e6:
    with open(os.path.join(folder, names[number % len(names)]), "rb") as book:
      raw = re.sub(rb"\b(the|and)\b", b"\\g<1>%d" % number, book.read())
    with open(os.path.join(out, "%06d.txt" % number), "wb") as copy:
      copy.write(raw)
    written, number = written + len(raw), number + 1


def repeated_dump(dump, megabytes, path):
  """Writes a multistream dump of so many megabytes from one of one stream."""
  with bz2.open(dump) as stream:
    xml = stream.read()
  first, last = xml.index(b"<page>"), xml.rindex(b"</page>") + 7
  pages = bz2.compress(xml[first:last])
  with open(path, "wb") as out:
    out.write(bz2.compress(xml[:first]))
    while out.tell() < megabytes * 1e6:
      out.write(pages)
    out.write(bz2.compress(xml[last:]))


def peak(program, *arguments):
  """Returns (largest memory of one process in MB, seconds) of a program."""
  start = time.time()
  kilobytes = subprocess.check_output(
      [sys.executable, "-c", _MEASURED, sys.executable,
       os.path.join(_ROOT, "data", program)] + list(arguments))
  return int(kilobytes) / 1024, time.time() - start


def memory(options):
  """Prints the largest memory of one process for each size of input."""
  for megabytes in options.sizes:
    with tempfile.TemporaryDirectory() as folder:
      out = os.path.join(folder, "out")
      repeated_books(options.books, megabytes, folder)
      print("books, %4d MB: %4.0f MB of memory, %.1f s" % ((megabytes,) + peak(
          "clean_text.py", "--kind", "books", "--input", folder,
          "--output_dir", out)))
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, "dump.xml.bz2")
      repeated_dump(options.dump, megabytes / 10, path)
      print("dump, %5.1f MB packed: %4.0f MB of memory, %.1f s" % (
          (megabytes / 10,) + peak(
              "extract_wikipedia.py", "--input", path, "--output_dir",
              os.path.join(folder, "out"), "--piece_bytes", "4000000")))


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--books", required=True, help="folder of books")
  parser.add_argument("--dump", required=True, help="dump (.bz2)")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--sizes", type=int, nargs="*", default=[10, 100],
                      metavar="MB", help="of books, for the memory; of dumps a "
                      "tenth, packed")
  options = parser.parse_args()
  LOGGER.setLevel("WARNING")
  books_speed(options.books, options.rounds)
  wikipedia_speed(options.dump, options.rounds)
  memory(options)


if __name__ == "__main__":
  main()
