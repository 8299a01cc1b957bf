"""One document a line: the form in which extraction hands text on.

A document is its paragraphs with PARAGRAPH_BREAK between them, on one line of
UTF-8. The break is two blanks, which never stand inside a paragraph: whoever
splits sentences splits there first, so that a heading or a caption without a
full stop does not run into the sentence behind it. To anyone else a document
is plain text.
"""

import contextlib
import glob
import os
import re

from utils import files
from utils import shares
from utils import stages
from utils.errors import UserError
from utils.logs import LOGGER

PARAGRAPH_BREAK = "  "

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def flat(text):
  """Returns `text` with each run of white space as one blank.

  That takes every character that ends a line to some reader: U+2028, U+0085,
  form feed and the like.
  """
  return " ".join(text.split())


def joined(paragraphs):
  """Returns the document made of flat, not empty paragraphs."""
  return PARAGRAPH_BREAK.join(paragraphs)


def paragraphs_of(line):
  """Returns the paragraphs of a document, one line with or without its end."""
  return line.rstrip("\n").split(PARAGRAPH_BREAK)


def require_name(name, flag="name"):
  """Returns `name`; raises UserError if no file can be named so."""
  if not _NAME.fullmatch(name):
    raise UserError("--%s: %r cannot begin the name of a file: take letters, "
                    "digits, '-', '_' and '.'" % (flag, name))
  return name


def piece_path(output_dir, name, index):
  """Returns the path of the output with the given number."""
  return os.path.join(output_dir, "%s-%05d.txt" % (name, index))


def input_files(spec, flag, wanted, broken_links=False):
  """Returns the sorted files that a file, glob, folder or comma list means.

  Args:
    spec: string; in a folder, and in those below it, files are looked for.
    flag: name of the flag, for messages.
    wanted: function of a file's name: whether to take it from a folder.
    broken_links: take links in a folder that lead nowhere, too.

  Raises:
    UserError: if something named there is not there.
  """
  found = set()
  for part in (p.strip() for p in (spec or "").split(",")):
    if not part:
      continue
    if os.path.isdir(part):
      for folder, _, names in os.walk(part):
        paths = [os.path.join(folder, n) for n in names if wanted(n)]
        found.update(path for path in paths
                     if broken_links or os.path.exists(path))
    else:
      found.update(files.expand_globs(part, flag))
  if not (spec or "").strip(" ,"):
    raise UserError("--%s is required" % flag)
  return sorted(found)


def make_pieces(function, found, options):
  """Makes this part's outputs; all are there when it returns.

  Args:
    function: as for `stages.run_pieces`.
    found: list of Piece, of all parts.
    options: the parsed command line, with `output_dir`, `name` and what
      `stages.add_arguments` adds.

  Returns:
    (counts of each of this part's outputs, whether that is the whole).
  """
  share = shares.share_of(options.shard_index, options.num_shards)
  files.require_output_dir(options.output_dir, "output_dir")
  remove_stale(options.output_dir, options.name, found)
  LOGGER.info("%d outputs to make or have, %s", len(found), share)
  made = stages.run_pieces(function, found, options.num_workers, share)
  if share.count > 1:  # the next stage lists what is there
    stages.wait_for(found, options.wait_minutes, "outputs")
  return [counts for _, counts in made], share.count == 1


def remove_stale(output_dir, name, pieces):
  """Removes outputs of an earlier division that no piece makes any more.

  Only files with the name of a piece and the record of one are touched.
  """
  kept = {os.path.abspath(piece.output) for piece in pieces}
  pattern = os.path.join(glob.escape(os.path.abspath(output_dir)),
                         glob.escape(name) + "-[0-9]*.txt")
  number = re.compile(re.escape(name) + r"-\d{5,}\.txt")
  stale = [path for path in glob.glob(pattern)
           if path not in kept and number.fullmatch(os.path.basename(path))
           and os.path.isfile(stages.record_path(path))]
  for path in stale:
    for gone in (stages.record_path(path), path):
      with contextlib.suppress(FileNotFoundError):
        os.remove(gone)
  if stale:
    LOGGER.info("removed %d files of an earlier division, the first was %s",
                len(stale), min(stale))
