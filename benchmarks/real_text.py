"""Makes pre-training text from books and a Wikipedia dump, for trials.

    pip install mwparserfromhell==0.7.2 nltk==3.8.1
    NLTK_DATA=... python benchmarks/real_text.py OUTPUT_FOLDER FILE...

FILE is a MediaWiki dump (.bz2) or a book in UTF-8 (.txt), with or without
Project Gutenberg's header and footer. Each gives one file in OUTPUT_FOLDER: a
sentence a line (NLTK's Punkt model, found through NLTK_DATA), a blank line
after each page or book. Good enough to train on, in memory, on one core; not
the preparation of a whole corpus.
"""

import argparse
import bz2
import os
import re
import sys
from xml.etree import ElementTree

import mwparserfromhell
import nltk

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from utils import errors
from utils import files
from utils.errors import UserError

_GUTENBERG = re.compile(
    r"\*\*\* ?START OF.*?\*\*\*(.*?)\*\*\* ?END OF", re.DOTALL)
# Headings, list items and table rows are no running text.
_NOT_TEXT = re.compile(r"^\s*([=*#:;|!{]|\[\[(File|Image|Category):)")
_SHORTEST = 40  # characters; shorter paragraphs are captions and leftovers


def pages(path):
  """Yields the text of each article of a dump, redirects left out."""
  with bz2.open(path) as stream:
    for _, element in ElementTree.iterparse(stream):
      name = element.tag.rpartition("}")[2]
      if name == "text" and element.text:
        if not element.text.lstrip().upper().startswith("#REDIRECT"):
          yield plain(element.text)
      if name == "page":
        element.clear()


def plain(markup):
  """Returns the running text of a page: paragraphs, a line each."""
  code = mwparserfromhell.parse(markup)
  for tag in code.filter_tags(matches=lambda n: str(n.tag) in (
      "ref", "table", "gallery", "math"), recursive=False):
    try:
      code.remove(tag)
    except ValueError:
      continue  # it went with the one around it
  lines = [line for line in str(code).split("\n")
           if not _NOT_TEXT.match(line)]
  text = mwparserfromhell.parse("\n".join(lines)).strip_code(
      normalize=True, collapse=True)
  return "\n".join(line.strip() for line in text.split("\n")
                   if len(line.strip()) >= _SHORTEST)


def book(path):
  """Yields the text of a book, its paragraphs a line each."""
  with open(path, encoding="utf-8-sig") as stream:
    text = stream.read()
  found = _GUTENBERG.search(text)
  paragraphs = re.split(r"\n\s*\n", found.group(1) if found else text)
  yield "\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def convert(paths, folder):
  """Writes one text file for each of `paths` into `folder`."""
  try:
    split = nltk.data.load("tokenizers/punkt/english.pickle").tokenize
  except LookupError:
    raise UserError("NLTK's Punkt model is not found: set NLTK_DATA to the "
                    "folder that holds tokenizers/punkt")
  os.makedirs(folder, exist_ok=True)
  for path in paths:
    files.require_file(path, "FILE")
    documents = sentences = 0
    name = re.sub(r"[^A-Za-z0-9]+", "_", os.path.basename(path)) + ".txt"
    with files.atomic_write(os.path.join(folder, name)) as out:
      for text in (pages if path.endswith(".bz2") else book)(path):
        lines = [s for line in text.split("\n") for s in split(line)]
        if lines:
          out.write("\n".join(lines) + "\n\n")
          documents, sentences = documents + 1, sentences + len(lines)
    print("%5d documents, %6d sentences  %s" % (documents, sentences, name))


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("output")
  parser.add_argument("files", nargs="+")
  options = parser.parse_args()
  errors.guard(convert, options.files, options.output)


if __name__ == "__main__":
  main()
