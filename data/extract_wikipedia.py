"""Extracts the running text of a Wikipedia dump, on every core.

    python data/extract_wikipedia.py --input DUMP.xml.bz2 --output_dir FOLDER

Reads MediaWiki XML, plain or packed with bzip2, and writes
FOLDER/NAME-00000.txt, NAME-00001.txt, ...: UTF-8, an article a line, its
paragraphs two blanks apart (see data/documents.py). Taken are articles alone:
no redirects, no other namespaces; and of them running text alone: no headings,
lists, tables, templates, notes, files and categories. A template that stands
for words, such as a quantity, is replaced by them.

Each output comes from a range of --piece_bytes of the dump, in bounded memory.
An output that is whole and newer than the dump is left as it is, so a run that
was stopped, however it was, goes on when started again; the result is the same,
to the byte, for any number of workers and parts. A packed dump of one single
bzip2 stream can only be read from its beginning, on one core: take Wikipedia's
"multistream" dumps.

Beside each output lies a record (.made.json) with its counts and the titles of
articles that have no running text, such as bare lists.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from data import documents
from data import wiki_dump
from data import wiki_markup
from utils import errors
from utils import files
from utils import logs
from utils import stages
from utils.errors import UserError
from utils.logs import LOGGER

PIECE_BYTES = 32 << 20
# Another number here makes all outputs anew: change it with the rules.
RULES = 1
_ARTICLES, _FILES, _CATEGORIES = 0, 6, 14
_COUNTS = ("pages", "redirects", "other_namespaces", "articles", "empty",
           "fallback", "wikitext_bytes", "text_bytes")


def _is_dump_name(name):
  """Says whether to take a file from a folder: not the index of a dump."""
  return name.endswith(".xml") or ".xml" in name and name.endswith(".bz2")


def pieces(spec, output_dir, name="wikipedia", piece_bytes=PIECE_BYTES):
  """Lists the outputs of a dump, made or not, without making any.

  Args:
    spec: string, what --input says.
    output_dir: folder of the outputs.
    name: how the names of the outputs begin.
    piece_bytes: how much of a dump goes into one output.

  Returns:
    List of stages.Piece.

  Raises:
    UserError: if there is no dump, or one is damaged at its ends.
  """
  documents.require_name(name)
  if piece_bytes < 1:
    raise UserError("--piece_bytes is %d: take at least 1" % piece_bytes)
  paths = documents.input_files(spec, "input", _is_dump_name)
  if not paths:
    raise UserError("--input: no dump (.xml or .xml.bz2) in %s" % spec)
  found = []
  for path in paths:
    files.require_file(path, "input")
    wiki_dump.check(path)
    for first, end in wiki_dump.ranges(path, piece_bytes):
      found.append(stages.Piece(
          [path], documents.piece_path(output_dir, name, len(found)),
          {"stage": "extract_wikipedia", "rules": RULES,
           "range": [first, end]}))
  return found


def _add_page(page, dropped, out, counts):
  """Counts a page and, if it is an article with text, writes it."""
  counts["pages"] += 1
  if page.namespace != _ARTICLES:
    counts["other_namespaces"] += 1
    return
  if page.is_redirect:
    counts["redirects"] += 1
    return
  paragraphs, fallbacks = wiki_markup.paragraphs(page.text, dropped)
  counts["wikitext_bytes"] += len(page.text.encode("utf-8"))
  counts["fallback"] += fallbacks
  if not paragraphs:
    counts["empty"] += 1
    counts["empty_titles"].append(page.title)
    return
  line = documents.joined(paragraphs).encode("utf-8")
  out.write(line + b"\n")
  counts["articles"] += 1
  counts["text_bytes"] += len(line) + 1


def make_piece(piece):
  """Writes one output; returns its counts (the function of run_pieces)."""
  path, = piece.inputs
  names = wiki_dump.namespace_names(path)
  dropped = {names[number].lower() for number in (_FILES, _CATEGORIES)
             if number in names}
  counts = dict.fromkeys(_COUNTS, 0)
  counts["empty_titles"] = []
  with files.atomic_write(piece.output, binary=True) as out:
    for page in wiki_dump.pages(path, *piece.settings["range"]):
      _add_page(page, dropped, out, counts)
  LOGGER.info("%s: %d articles from %d pages", os.path.basename(piece.output),
              counts["articles"], counts["pages"])
  if counts["empty"]:
    titles = counts["empty_titles"]
    LOGGER.info("%s: no running text in %d articles: %s%s",
                os.path.basename(piece.output), len(titles),
                ", ".join(titles[:5]),
                "" if len(titles) <= 5 else ", ... (all: see %s)"
                % os.path.basename(stages.record_path(piece.output)))
  return counts


def _tell_about_single_streams(found, piece_bytes):
  for piece in found:
    first, end = piece.settings["range"]
    path, = piece.inputs
    if end - first > piece_bytes:
      LOGGER.info("%s is one single bzip2 stream: it is read on one core; a "
                  "multistream dump is read on all", path)


def extract(options):
  """Runs the stage.

  Args:
    options: the parsed command line.

  Returns:
    {name of a count: its sum over this part's outputs}.
  """
  found = pieces(options.input, options.output_dir, options.name,
                 options.piece_bytes)
  _tell_about_single_streams(found, options.piece_bytes)
  made, is_whole = documents.make_pieces(make_piece, found, options)
  totals = {name: sum(counts[name] for counts in made) for name in _COUNTS}
  for name in _COUNTS:
    LOGGER.info("%17s %d", name, totals[name])
  if found and is_whole and not totals["articles"]:
    raise UserError("%s: no article with running text in %d pages: is it a "
                    "dump of articles?" % (options.input, totals["pages"]))
  return totals


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--input", required=True, help="dump (.xml, .xml.bz2), "
                      "glob, folder, or several with commas between")
  parser.add_argument("--output_dir", required=True,
                      help="folder of the outputs")
  parser.add_argument("--name", default="wikipedia",
                      help="how the names of the outputs begin; "
                      "default: %(default)s")
  parser.add_argument("--piece_bytes", type=int, default=PIECE_BYTES,
                      help="how much of a dump goes into one output; "
                      "default: %(default)s")
  stages.add_arguments(parser)
  options = parser.parse_args()
  logs.set_up()
  errors.guard(extract, options)


if __name__ == "__main__":
  main()
