"""Cleans books, or any text files, into one document a line, on every core.

    python data/clean_text.py --input FOLDER --output_dir FOLDER --kind books
    python data/clean_text.py --input FOLDER --output_dir FOLDER --kind text

Writes FOLDER/NAME-00000.txt, ...: UTF-8, a document a line, its paragraphs two
blanks apart (see data/documents.py); hard line breaks are undone (see
data/paragraphs.py). Of books, only the running text is kept (see
data/book_text.py). A file is a document, or with --documents each line, or
what stands between blank lines. Folders are searched through, links to folders
in them are not followed. What a stage of this preparation wrote (it has a
record, .made.json, beside it) is no input.

Files go, in sorted order, into outputs of about --piece_bytes. One that cannot
be used (binary data, no known encoding, nothing in it, larger than
--max_document_mb) is left out with one warning and counted; --strict makes
that an error at the end. An output that is whole and newer than its files is
left as it is, so a run that was stopped, however it was, goes on when started
again; the result is the same, to the byte, for any number of workers and parts.
"""

import argparse
import fnmatch
import glob
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from data import book_text
from data import documents
from data import paragraphs
from data import text_files
from utils import errors
from utils import files
from utils import logs
from utils import stages
from utils.errors import UserError
from utils.logs import LOGGER

PIECE_BYTES = 32 << 20
MAX_DOCUMENT_MB = 64
# Another number here makes all outputs anew: change it with the rules.
RULES = 1
KINDS = ("books", "text")
DOCUMENTS = ("file", "line", "blank_line")
_ENCODINGS = ("utf-8", "utf-8-bom", "utf-8-damaged", "utf-16", "cp1252",
              "latin-1")
_SKIPPED = ("refused", "too_long", "empty")
_COUNTS = (("files", "documents") + _SKIPPED + (
    "licence_removed", "licence_not_recognised", "input_bytes", "text_bytes")
           + _ENCODINGS)


def _listed(spec, pattern):
  """Returns (sorted files, sorted names that lead nowhere)."""
  found = documents.input_files(
      spec, "input", lambda name: fnmatch.fnmatch(name, pattern), True)
  # What a preparation made, in a folder that is above its input, is no input.
  made = {folder for folder in set(map(os.path.dirname, found))
          if os.path.basename(folder).startswith(".")
          or glob.glob(os.path.join(glob.escape(folder), "*.shards.json"))}
  paths = [path for path in found
           if os.path.dirname(path) not in made
           and not os.path.exists(stages.record_path(path))]
  usable = [path for path in paths if os.path.isfile(path)]
  return usable, sorted(set(paths) - set(usable))


def _groups(paths, piece_bytes):
  """Returns lists of files, in order, each of about `piece_bytes`."""
  groups, room = [], 0
  for path in paths:
    size = os.path.getsize(path)
    if not groups or size > room:
      groups.append([])
      room = piece_bytes
    groups[-1].append(path)
    room -= size
  return groups


def pieces(spec, output_dir, name, kind="text", as_documents="file",
           pattern="*.txt", max_document_mb=MAX_DOCUMENT_MB,
           piece_bytes=PIECE_BYTES):
  """Lists the outputs of a folder of text, made or not, without making any.

  Args:
    spec: string, what --input says.
    output_dir: folder of the outputs.
    name: how the names of the outputs begin.
    kind: one of KINDS.
    as_documents: one of DOCUMENTS.
    pattern: glob of the names that are taken from folders.
    max_document_mb: size of the largest document that is taken.
    piece_bytes: size of the files that go into one output.

  Returns:
    List of stages.Piece.

  Raises:
    UserError: if there is no file.
  """
  documents.require_name(name)
  if piece_bytes < 1 or max_document_mb < 1:
    raise UserError("--piece_bytes is %d and --max_document_mb %d: take at "
                    "least 1" % (piece_bytes, max_document_mb))
  if kind == "books" and as_documents != "file":
    raise UserError("--documents %s does not go with --kind books, where a "
                    "file is a book: take --kind text" % as_documents)
  paths, _ = _listed(spec, pattern)
  if not paths:
    raise UserError("--input: no file named %s in %s: give its folder or "
                    "another --pattern" % (pattern, spec))
  settings = {"stage": "clean_text", "rules": RULES, "kind": kind,
              "documents": as_documents, "max_document_mb": max_document_mb}
  return [stages.Piece(group, documents.piece_path(output_dir, name, index),
                       settings)
          for index, group in enumerate(_groups(paths, piece_bytes))]


class _Output(object):
  """Writes documents, a part at a time, and counts them."""

  def __init__(self, stream, counts):
    self._stream = stream
    self._counts = counts

  def add(self, found):
    """Writes a document; says whether it had any text.

    Args:
      found: iterable of lists of flat paragraphs.
    """
    separator = ""
    for part in found:
      if not part:
        continue
      raw = (separator + documents.joined(part)).encode("utf-8")
      self._stream.write(raw)
      self._counts["text_bytes"] += len(raw)
      separator = documents.PARAGRAPH_BREAK
    if separator:
      self._stream.write(b"\n")
      self._counts["text_bytes"] += 1
      self._counts["documents"] += 1
    return bool(separator)


def parts(raw, encoding, is_book):
  """Yields lists of flat paragraphs of a document.

  Args:
    raw: bytes, normalised; of a book, its body.
    encoding: what to decode them with.
    is_book: whether to keep running text only.
  """
  one_a_line, number = None, 0
  for text in text_files.blocks(raw, encoding):
    text = paragraphs.stripped(text)
    if one_a_line is None:
      one_a_line = paragraphs.has_long_lines(text)
    if is_book:
      text = book_text.without_marks(text)
    found = paragraphs.raw_paragraphs(text, one_a_line)
    if is_book:
      kept = book_text.running_text(found, number)
    else:
      kept = map(paragraphs.flat, found)
    yield list(filter(None, kept))
    number += len(found)


def _add_file(path, settings, output, counts):
  """Adds a file that is one document; raises Refused."""
  raw, encoding, label = text_files.normalised(text_files.read_whole(
      path, settings["max_document_mb"] << 20))
  counts[label] += 1
  is_book = settings["kind"] == "books"
  if is_book:
    raw, named, found = book_text.body(raw)
    counts["licence_removed"] += found
    if named and not found:
      counts["licence_not_recognised"] += 1
      LOGGER.warning("%s names Project Gutenberg, but has no header or licence "
                     "that is recognised: look at it", path)
  if not output.add(parts(raw, encoding, is_book)):
    counts["empty"] += 1
    LOGGER.warning("%s has no text in it: left out", path)


def _add_documents(path, settings, output, counts):
  """Adds a file that holds many documents; raises Refused."""
  limit = settings["max_document_mb"]
  added = too_long = refused = 0
  labels = set()
  for raw in text_files.documents_of(path, settings["documents"] == "line",
                                     limit << 20):
    if raw is None:
      too_long += 1
      continue
    if not raw.strip():
      continue
    try:
      raw, encoding, label = text_files.normalised(raw)
    except text_files.Refused as reason:
      refused += 1
      why = reason
      continue
    labels.add(label)
    added += output.add(parts(raw, encoding, False))
  # ASCII counts as UTF-8 only where there is nothing else.
  for label in (labels - {"utf-8"} or labels):
    counts[label] += 1
  counts["too_long"] += too_long
  counts["refused"] += refused
  if refused:
    LOGGER.warning("%s: left out %d documents, of which the last %s", path,
                   refused, why)
  if too_long:
    LOGGER.warning("%s: left out %d documents of more than --max_document_mb "
                   "%d", path, too_long, limit)
  elif not added and not refused:
    counts["empty"] += 1
    LOGGER.warning("%s has no text in it: left out", path)


def make_piece(piece):
  """Writes one output; returns its counts (the function of run_pieces)."""
  counts = dict.fromkeys(_COUNTS, 0)
  add = (_add_file if piece.settings["documents"] == "file"
         else _add_documents)
  with files.atomic_write(piece.output, binary=True) as stream:
    output = _Output(stream, counts)
    for path in piece.inputs:
      counts["files"] += 1
      try:
        counts["input_bytes"] += os.path.getsize(path)
        add(path, piece.settings, output, counts)
      except text_files.Refused as reason:
        counts["refused"] += 1
        LOGGER.warning("%s %s; left out", path, reason)
      except (PermissionError, FileNotFoundError) as error:
        raise UserError("cannot read %s (%s): mend that, or take it away, and "
                        "run the same command again" % (path, error.strerror))
  LOGGER.info("%s: %d documents from %d files", os.path.basename(piece.output),
              counts["documents"], counts["files"])
  return counts


def _check_result(options, is_whole, totals, num_broken):
  """Raises UserError if nothing came out, or with --strict too little."""
  skipped = num_broken + sum(totals[name] for name in _SKIPPED)
  if is_whole and not totals["documents"]:
    raise UserError("%s: none of %d files has text that can be used"
                    % (options.input, totals["files"]))
  if skipped and options.strict:
    raise UserError("%d files or documents were left out, and --strict was "
                    "given: the warnings of the run that read them name them"
                    % skipped)


def clean(options):
  """Runs the stage.

  Args:
    options: the parsed command line.

  Returns:
    {name of a count: its sum over this part's outputs}.
  """
  found = pieces(options.input, options.output_dir, options.name, options.kind,
                 options.documents, options.pattern, options.max_document_mb,
                 options.piece_bytes)
  _, broken = _listed(options.input, options.pattern)
  for path in broken:
    LOGGER.warning("%s leads to no file; left out", path)
  made, is_whole = documents.make_pieces(make_piece, found, options)
  totals = {name: sum(counts[name] for counts in made) for name in _COUNTS}
  for name in _COUNTS:
    if totals[name] or name not in _ENCODINGS:
      LOGGER.info("%22s %d", name, totals[name])
  _check_result(options, is_whole, totals, len(broken))
  return totals


def main():
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--input", required=True, help="file, glob, folder, or "
                      "several with commas between")
  parser.add_argument("--output_dir", required=True,
                      help="folder of the outputs")
  parser.add_argument("--kind", choices=KINDS, default="text",
                      help="default: %(default)s")
  parser.add_argument("--name", default="text",
                      help="how the names of the outputs begin; "
                      "default: %(default)s")
  parser.add_argument("--documents", choices=DOCUMENTS, default="file",
                      help="what is a document; "
                      "default: %(default)s")
  parser.add_argument("--pattern", default="*.txt",
                      help="names of files to take from folders; "
                      "default: %(default)s")
  parser.add_argument("--max_document_mb", type=int, default=MAX_DOCUMENT_MB,
                      help="larger documents are left out; "
                      "default: %(default)s")
  parser.add_argument("--piece_bytes", type=int, default=PIECE_BYTES,
                      help="size of the files that go into one output; "
                      "default: %(default)s")
  parser.add_argument("--strict", action="store_true",
                      help="an error at the end if anything was left out")
  stages.add_arguments(parser)
  options = parser.parse_args()
  logs.set_up()
  errors.guard(clean, options)


if __name__ == "__main__":
  main()
