"""Fetches data and weights; scripts/data_download.sh describes all of it.

    python data/download [squad weights punkt glue ngc wiki books all ...]
"""

import argparse
import os
import re
import sys

if __name__ == "__main__":
  # Started as a folder, Python looks for modules in it, not in the root.
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(
      os.path.abspath(__file__))))

# pylint: disable=wrong-import-position
from utils import errors

try:
  from data.download import books
  from data.download import fetch
  from data.download import get
  from data.download import glue
  from data.download import outcome
  from data.download import plan
  from data.download import sources
  from utils import files
  from utils import logs
except ImportError as missing:
  if missing.name not in ("requests", "urllib3", "tqdm"):
    raise
  errors.fail("the Python package %s is not installed: run bash "
              "scripts/setup.sh, or pip install requests tqdm" % missing.name)

_SKIPPED_STATUS = 3


class _Parser(argparse.ArgumentParser):

  def error(self, message):
    errors.fail("%s; --help lists all" % message, 2)


def _above(kind, least):
  def check(text):
    value = kind(text)
    if not least <= value < float("inf"):
      raise ValueError(text)
    return value
  check.__name__ = "number (at least %g)" % least  # argparse names it so
  return check


def _date(text):
  if not re.match(r"\d{8}$", text):
    raise ValueError(text)
  return text


_date.__name__ = "date (yyyymmdd)"


def _parse(argv):
  parser = _Parser(prog="data_download", allow_abbrev=False)
  add = parser.add_argument
  add("what", nargs="*", help="sources; none or `all`: every one of them")
  add("--data_dir", default=os.environ.get("DATA_DIR") or "data",
      help="where all of it goes [DATA_DIR, else data]")
  add("--dry_run", action="store_true",
      help="print what would be fetched; no network is used")
  add("--mirrors", metavar="FILE", help="lines source=URL")
  add("--wiki_date", type=_date, help="date of the dump, yyyymmdd")
  add("--book_list", metavar="FILE", help="URLs of texts, one a line")
  add("--max_books", type=_above(int, 1),
      help="books of Project Gutenberg, without --book_list")
  add("--tries", type=_above(int, 1), default=5,
      help="times that a request is made [5]")
  add("--backoff", type=_above(float, 0), default=2.0,
      help="seconds before the second try; they double [2]")
  add("--timeout", type=_above(float, 0.01), default=60.0,
      help="seconds without a byte after which a try ends [60]")
  # Words may stand between options; argparse itself can do that from 3.7 on.
  options, words = parser.parse_known_args(argv)
  unknown = [word for word in words if word.startswith("-")]
  if unknown:
    parser.error("%s: no such argument" % unknown[0])
  options.what += words
  return options


def _chosen(words, names):
  """Returns the sources that the words name, in the order of the config."""
  for word in words:
    if word not in names + ["all"]:
      errors.fail("there is no source %r: choose of %s or all"
                  % (word, ", ".join(names)), 2)
  everything = not words or "all" in words
  return [name for name in names if everything or name in words]


def _items(what, catalogue, options, client):
  """Returns the items of a source; Skipped if their list cannot be had."""
  source = catalogue.sources[what]
  if what != "books":
    return catalogue.items(what)
  if options.book_list:
    return books.from_list(options.book_list, source.settings["to"])
  limit = options.max_books or int(source.settings["max_books"])
  return books.harvest(client, source, options.data_dir, limit)


def _client(source, options):
  """Returns the client of a source; a second try keeps its pace, too."""
  pace = 0 if source.mirror else float(source.settings.get("delay", 0))
  return fetch.Client(options.tries, max(options.backoff, pace),
                      options.timeout)


def _fetch_source(what, catalogue, options, client, results):
  """Fetches all of a source and appends to `results`."""
  try:
    items = _items(what, catalogue, options, client)
  except outcome.Skipped as error:
    url = books.page_url(catalogue.sources[what])
    note = errors.one_line(error)
    logs.LOGGER.warning("%s: skipped: %s (%s)", what, note, url)
    results.append(outcome.Result(what, "list of books", outcome.SKIPPED,
                                  note=note))
    return
  mine = []
  for item in items:
    mine.append(get.get(item, options.data_dir, client))
    results.append(mine[-1])
  if what == "glue":
    results.extend(_paraphrases(mine, options.data_dir))


def _paraphrases(results, data_dir):
  """Makes MRPC's files where its parts are there; returns their results."""
  parts = [r for r in results if r.name in glue.PARTS]
  folder = os.path.join(data_dir, "glue", "MRPC")
  name = "MRPC " + ", ".join(glue.MADE)
  paths = [os.path.join(folder, name) for name in glue.MADE]
  if any(r.status in (outcome.SKIPPED, outcome.FAILED) for r in parts):
    return []
  status = outcome.HAD
  if (any(r.status == outcome.GOT for r in parts) or
      not all(os.path.isfile(path) for path in paths)):
    try:
      glue.split_mrpc(folder)
      status = outcome.GOT
    except outcome.Failed as error:
      logs.LOGGER.warning("glue MRPC: failed: %s", error)
      return [outcome.Result("glue", name, outcome.FAILED, note=str(error))]
  size = sum(os.path.getsize(path) for path in paths)
  return [outcome.Result("glue", name, status, size)]


def _status(results):
  statuses = {result.status for result in results}
  if outcome.FAILED in statuses:
    return 1
  return _SKIPPED_STATUS if outcome.SKIPPED in statuses else 0


def _run(options):
  logs.set_up()
  catalogue = sources.Catalogue(options.mirrors, options.wiki_date)
  chosen = _chosen(options.what, catalogue.names)
  if options.book_list and "books" in chosen:
    # A mistake in it is told now, not after hours of downloads.
    books.from_list(options.book_list, "")
  if options.dry_run:
    plan.show(catalogue, chosen, options)
    return 0
  files.require_output_dir(options.data_dir, "data_dir")
  results = []
  try:
    for what in chosen:
      client = _client(catalogue.sources[what], options)
      _fetch_source(what, catalogue, options, client, results)
  except KeyboardInterrupt:
    plan.show_results(results)
    errors.fail("interrupted; the same command goes on where it stopped", 130)
  except OSError:
    plan.show_results(results)
    raise
  plan.show_results(results)
  return _status(results)


def main(argv=None):
  """Command line; see scripts/data_download.sh."""
  options = _parse(argv)
  options.data_dir = os.path.abspath(options.data_dir)
  sys.exit(errors.guard(_run, options))


if __name__ == "__main__":
  main()
