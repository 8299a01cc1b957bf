"""Cuts documents into sentences: one a line, a blank line after a document.

    python data/segment.py --input extracted/ --output \
        wikipedia_corpus/final_text_file_single/wikipedia.segmented.nltk.txt

The input is text files with one document a line (UTF-8), two blanks between
paragraphs, as extraction and cleaning write them. The sentences of a paragraph
are those of NLTK's Punkt tokenizer, with its published English model where
that is installed, else with parameters learned from the corpus itself.

All cores work, and all processes that a launcher starts: the input is taken
in pieces, whose sentences wait in `<output>.parts/` until part 0 joins them.
A run that was stopped goes on when it is started again; the bytes of the
output do not depend on that, nor on how many worked on it.
"""

import argparse
import functools
import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from data import documents
from data import plain_text
from data import punkt_model
from data.punkt_segmenter import Segmenter
from utils import errors
from utils import files
from utils import logs
from utils import shares
from utils import stages
from utils.errors import UserError
from utils.logs import LOGGER

# Bytes read at once; longer documents are segmented in such steps.
_BLOCK = 1 << 20
_LOOKED_AT = _BLOCK // 2  # characters
_COPIED_AT_ONCE = 8 << 20
# Pieces that a corpus is sampled at; pieces between two lines of progress.
_SAMPLES = 80
# Characters; no sentence that is one comes near.
LONGEST_LINE = 1 << 20
_TOLD_EVERY = 50
# White space that some reader would take for the end of a line, as a blank.
_BLANKS = bytes.maketrans(b"\r\x0b\x0c\x1c\x1d\x1e", b" " * 6)
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_NOTHING = {"documents": 0, "sentences": 0, "empty": 0, "bytes": 0}


def parse_arguments(argv=None):
  """Returns the command line as a namespace."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument(
      "--input", required=True,
      help="files with a document a line: a folder (all files below it, in "
      "the\norder of their names), or globs with commas between them")
  parser.add_argument("--output", required=True,
                      help="the file with a sentence a line")
  parser.add_argument(
      "--punkt", choices=("auto", "published", "corpus"), default="auto",
      help="auto: the published English model where it is installed, else "
      "one\nlearned from the corpus; all parts need to find the same")
  parser.add_argument("--nltk_data", metavar="FOLDER",
                      help="searched for the model before NLTK_DATA")
  parser.add_argument("--max_document_mb", type=float, default=64,
                      help="a longer document is an error; default: 64")
  parser.add_argument("--piece_bytes", type=int, default=16 << 20,
                      help="input taken at a time; default: 16 MiB")
  stages.add_arguments(parser)
  options = parser.parse_args(argv)
  for name in ("max_document_mb", "piece_bytes"):
    if getattr(options, name) <= 0:
      raise UserError("--%s has to be more than 0" % name)
  return options


# ------------------------------------------------------- reading documents


def input_files(options):
  """Returns the files that --input names, sorted.

  Of a folder all below it but hidden files and records of earlier stages.
  """
  paths = documents.input_files(
      options.input, "input", lambda name: not (
          name.startswith(".") or name.endswith(stages.RECORD_SUFFIX)))
  own = os.path.abspath(options.output)
  for path in paths:
    if os.path.abspath(path) in (own, os.path.join(
        _folder(options), os.path.basename(path))):
      raise UserError("--output: %s is, or is made of, a file of the input: "
                      "name another place" % options.output)
  if not any(os.path.getsize(path) for path in paths):
    raise UserError("--input: nothing to segment: there is no file with "
                    "anything in it in %s" % options.input)
  return paths


def _blocks(path, begin, end):
  """Yields the lines that start in [begin, end), in blocks.

  Yields:
    (offset of the block, bytes without the line's end, whether it ends here).
  """
  with open(path, "rb") as stream:
    offset = max(begin - 1, 0)  # a line may end just before `begin`
    stream.seek(offset)
    ended = begin == 0
    while not ended and offset < end:
      block = stream.readline(_BLOCK)
      offset += len(block)
      ended = not block or block.endswith(b"\n")
    if not ended:
      return  # it lies within one long line
    while not ended or offset < end:
      block = stream.readline(_BLOCK)
      ended = not block or block.endswith(b"\n")
      yield offset, block.rstrip(b"\n"), ended
      offset += len(block)
      if not block:
        return


def _texts(path, begin, end, most_bytes):
  """Yields the text of the lines that start in [begin, end), in blocks.

  Yields:
    (text, number of bytes, whether the document ends here).

  Raises:
    UserError: for a document that is no text, or longer than `most_bytes`.
  """
  decoder = plain_text.Decoder(path)
  size = 0
  for offset, block, ended in _blocks(path, begin, end):
    size += len(block)
    if size > most_bytes:
      raise UserError(
          "%s, line %d: this document has more than %.0f MB (a line is a "
          "document): divide it, or raise --max_document_mb, for which the "
          "stages after this one need memory"
          % (path, plain_text.line_at(path, offset), most_bytes / 1e6))
    text = decoder.text(block.translate(_BLANKS), offset, ended)
    if offset == 0:
      text = text.lstrip("\ufeff")
    yield _LINE_ENDS.sub(" ", text), len(block), ended
    if ended:
      size = 0


def sentences_of(segmenter, texts):
  """Yields the sentences of documents in steps, in bounded memory.

  Args:
    segmenter: Segmenter.
    texts: iterable of (text, number of bytes, whether its document ends).

  Yields:
    (list of sentences, number of bytes, whether the document ends here).
  """
  waiting, length, enough = [], 0, _LOOKED_AT
  for text, size, ended in texts:
    waiting.append(text)
    length += len(text)
    sentences = []
    if ended or length >= enough:
      paragraphs = documents.paragraphs_of("".join(waiting))
      rest = "" if ended else paragraphs.pop()
      for paragraph in paragraphs:
        sentences.extend(segmenter.sentences(paragraph.strip()))
      if len(rest) >= _LOOKED_AT:
        more, rest = segmenter.split(rest.lstrip())
        sentences.extend(more)
      # What has no end of a sentence is looked at again at twice the length.
      waiting, length = [rest], len(rest)
      enough = max(_LOOKED_AT, 2 * length)
    yield sentences, size, ended


# ------------------------------------------------------------------- pieces


def _settings(source):
  """Returns what decides, with the input, the bytes of the output."""
  return {"stage": "segment", "punkt": source}


def cut_into_pieces(paths, settings, options):
  """Returns the pieces of all inputs, in their order.

  Args:
    paths: the input files.
    settings: of all pieces.
    options: namespace with `output` and `piece_bytes`.
  """
  pieces = []
  for path in paths:
    size = os.path.getsize(path)
    for begin in range(0, size, options.piece_bytes):
      end = min(begin + options.piece_bytes, size)
      pieces.append(stages.Piece(
          [path], os.path.join(_folder(options), "%05d.txt" % len(pieces)),
          dict(settings, range=[begin, end]), (len(pieces), begin, end)))
  return pieces


def _folder(options):
  return options.output + ".parts"


def _make_piece(segmenter, most_bytes, num_pieces, piece):
  """Segments one piece into its file and returns its counts."""
  number, begin, end = piece.work
  if number and number % _TOLD_EVERY == 0:
    LOGGER.info("piece %d of %d", number, num_pieces)
  counts = dict(_NOTHING)
  texts = _texts(piece.inputs[0], begin, end, most_bytes)
  with files.atomic_write(piece.output, binary=True) as out:
    found = 0
    for sentences, size, ended in sentences_of(segmenter, texts):
      found += len(sentences)
      counts["bytes"] += size
      if sentences:
        sentences = [part for s in sentences for part in _in_lines(s)]
        out.write(("\n".join(sentences) + "\n").encode("utf-8"))
      if ended:
        counts["documents" if found else "empty"] += 1
        counts["sentences"] += found
        if found:
          out.write(b"\n")
        found = 0
  return counts


def _in_lines(sentence):
  """Returns a sentence in parts of LONGEST_LINE characters at most.

  What has no end for so long is no sentence, and the maker of records holds
  a line in memory, as words.
  """
  parts = []
  while len(sentence) > LONGEST_LINE:
    end = sentence.rfind(" ", 0, LONGEST_LINE)
    end = end if end > 0 else LONGEST_LINE
    parts.append(sentence[:end])
    sentence = sentence[end:].lstrip(" ")
  return parts + [sentence]


def _join(pieces, counts, whole):
  """Writes the output out of its pieces and returns the sum of counts."""
  with files.atomic_write(whole.output, binary=True) as out:
    for piece in pieces:
      with open(piece.output, "rb") as stream:
        shutil.copyfileobj(stream, out, _COPIED_AT_ONCE)
  return {name: sum(c[name] for c in counts) for name in _NOTHING}


# -------------------------------------------------------------------- Punkt


def _sample(pieces, most_bytes):
  """Yields texts from evenly spaced pieces, SAMPLE_BYTES in all at most."""
  number = min(len(pieces), _SAMPLES)
  for i in range(number):
    piece = pieces[i * len(pieces) // number]
    left = punkt_model.SAMPLE_BYTES // number
    for text, size, _ in _texts(piece.inputs[0], piece.work[1],
                                piece.work[2], most_bytes):
      yield text
      left -= size
      if left <= 0:
        break


def _train(pieces, most_bytes, piece):
  """Writes the parameters that the corpus teaches; returns their hash."""
  model, enough = punkt_model.trained(_sample(pieces, most_bytes))
  if not enough:
    LOGGER.warning("the corpus is too small to learn abbreviations from: each "
                   "period will end a sentence")
  files.write_json(piece.output, model)
  return {"hash": files.stable_hash(model)}


def _learned(whole, options, share):
  """Returns the model of the corpus, which part 0 learns and all others get.

  None where it came and went: part 0 has joined the output, for which it
  needed nothing more of this part.
  """
  paths = whole.inputs
  most_bytes = 1e6 * options.max_document_mb
  settings = {"stage": "punkt", "piece_bytes": options.piece_bytes,
              "bytes": punkt_model.SAMPLE_BYTES, "samples": _SAMPLES}
  piece = stages.Piece(
      paths, os.path.join(_folder(options), "punkt.json"), settings)
  pieces = cut_into_pieces(paths, {}, options)
  if share.index == 0:
    LOGGER.info("learning Punkt's parameters from the corpus")
  stages.run_pieces(functools.partial(_train, pieces, most_bytes), [piece], 1,
                    share)
  done = lambda: stages.counts_of(whole) is not None
  if stages.wait_for([piece], options.wait_minutes, "parameters of Punkt",
                     done) is None:
    return None
  try:
    return files.read_json(piece.output, "Punkt's parameters")
  except UserError:
    if done():
      return None
    raise


def choose_model(options):
  """Returns (published model or None, what stands for it in settings).

  Raises:
    UserError: if it has to be the published one, which is not installed.
  """
  if options.punkt != "corpus":
    model, place = punkt_model.published(options.nltk_data)
    if model:
      LOGGER.info("sentences by the published English Punkt model, %s", place)
      return model, "published " + files.stable_hash(model)
    if options.punkt == "published":
      raise UserError(
          "NLTK's English Punkt model is not installed: `bash "
          "scripts/data_download.sh punkt` fetches it, NLTK_DATA or "
          "--nltk_data names the folder that holds tokenizers/punkt; or give "
          "--punkt corpus")
  LOGGER.info("sentences by Punkt parameters learned from the corpus itself%s",
              "" if options.punkt == "corpus"
              else ", since the published model is not installed")
  return None, "corpus, in pieces of %d bytes" % options.piece_bytes


# --------------------------------------------------------------------- main


def _report(counts, output):
  if not counts["documents"]:
    raise UserError("--input: nothing to segment: %d lines, all of them blank"
                    % counts["empty"])
  LOGGER.info("%d documents, %d sentences from %.1f MB, %d blank lines left "
              "out: %s", counts["documents"], counts["sentences"],
              counts["bytes"] / 1e6, counts["empty"], output)


def _segment(whole, model, options, share):
  """Makes this part's pieces; part 0 joins them all."""
  os.makedirs(_folder(options), exist_ok=True)
  if share.index:
    _make_pieces(whole, model, options, share)
    return
  with files.FolderLock(_folder(options)):
    pieces = _make_pieces(whole, model, options, share)
    counts = stages.wait_for(pieces, options.wait_minutes, "pieces")
    stages.run_pieces(functools.partial(_join, pieces, counts), [whole], 1)


def _make_pieces(whole, model, options, share):
  """Makes this part's pieces and returns those of all."""
  start = time.time()
  if model is None:
    model = _learned(whole, options, share)
    if model is None:
      return []
  segmenter = Segmenter(punkt_model.parameters_of(model))
  pieces = cut_into_pieces(
      whole.inputs, _settings(files.stable_hash(model)), options)
  LOGGER.info("%d pieces, %d workers, %s", len(pieces), options.num_workers,
              share)
  function = functools.partial(_make_piece, segmenter,
                               1e6 * options.max_document_mb, len(pieces))
  mine = stages.run_pieces(function, pieces, options.num_workers, share)
  LOGGER.info("%.1f MB in %.1f s", sum(c["bytes"] for _, c in mine) / 1e6,
              time.time() - start)
  return pieces


def run(options):
  """Segments what the options name, as far as it is this part's."""
  share = shares.share_of(options.shard_index, options.num_shards)
  paths = input_files(options)
  model, source = choose_model(options)
  whole = stages.Piece(paths, options.output, _settings(source))
  files.require_output_dir(os.path.dirname(os.path.abspath(options.output)),
                           "output")
  if stages.counts_of(whole) is None:
    _segment(whole, model, options, share)
  else:
    LOGGER.info("nothing to do: the output is whole and newer than its input")
  counts, = stages.wait_for([whole], options.wait_minutes, "joined outputs")
  # Here and not at the end of the join: a run may be killed between the two,
  # and a part that was started again late may have made its pieces anew.
  shutil.rmtree(_folder(options), ignore_errors=True)
  _report(counts, options.output)


def main():
  """Command line."""
  logs.set_up()
  errors.guard(lambda: run(parse_arguments()))


if __name__ == "__main__":
  main()
