"""The tables: what would be fetched, and what became of it."""

import os

from data.download import books
from data.download import get
from data.download import outcome
from data.download.outcome import size_text

_STATUSES = (outcome.GOT, outcome.HAD, outcome.SKIPPED, outcome.FAILED)


def _print(rows):
  """Prints rows of text in columns; the last column is not padded."""
  widths = [max(len(row[column]) for row in rows)
            for column in range(len(rows[0]))]
  for row in rows:
    padded = [cell.ljust(width) for cell, width in zip(row, widths)]
    print("  ".join(padded[:-1] + [row[-1]]).rstrip())


def _check_text(item):
  """Returns what an item will be checked against."""
  kinds = {digest.split(":")[0]
           for digest in list(item.members.values()) + [item.digest] if digest}
  kinds |= {item.sums[0]} if item.sums else set()
  return ", ".join(sorted(kinds)) or "not verified"


def show(catalogue, chosen, options):
  """Prints what would be fetched from where, how large, and where it goes.

  Args:
    catalogue: `sources.Catalogue`.
    chosen: names of sources.
    options: the command line.
  """
  rows = [("source", "file", "size", "check", "here", "from", "to")]
  for what in chosen:
    source = catalogue.sources[what]
    items = catalogue.items(what)
    if what == "books" and options.book_list:
      items = books.from_list(options.book_list, source.settings["to"])
    elif what == "books":
      limit = options.max_books or int(source.settings["max_books"])
      rows.append((what, "up to %d books" % limit, "unknown", "not verified",
                   "-", books.page_url(source),
                   os.path.join(options.data_dir, source.settings["to"], "")))
    for item in items:
      size = size_text(item.size)
      if item.size is None and item.about:
        size = "about " + size_text(item.about)
      here = get.there_already(item, options.data_dir, keep=False)
      rows.append((what, item.name, size, _check_text(item),
                   "yes" if here else "no", item.url,
                   os.path.join(options.data_dir, item.path) +
                   ("/" if item.kind == "folder" else "")))
  _print(rows)


def _many(results):
  """Returns rows for the texts of a source, too many for a row each."""
  rows = []
  for status in _STATUSES:
    some = [r for r in results if r.status == status]
    if some:
      rows.append(some[0]._replace(
          name="%d texts" % len(some), bytes=sum(r.bytes for r in some),
          note="each has a line above" if some[0].note else ""))
  return rows


def show_results(results):
  """Prints a table of what was got, had, skipped and failed.

  Args:
    results: list of `outcome.Result`.
  """
  texts = [r for r in results if r.what == "books" and r.name.endswith(".txt")]
  shown = [r for r in results if r not in texts] + _many(texts)
  rows = [("source", "file", "result", "size", "check", "")]
  for result in shown:
    there = result.status in (outcome.GOT, outcome.HAD)
    verified = "verified" if result.verified else "not verified"
    rows.append((result.what, result.name, result.status,
                 size_text(result.bytes) if there else "-",
                 verified if there else "-", result.note))
  _print(rows)
  counts = ["%d %s" % (sum(r.status == status for r in results), status)
            for status in _STATUSES]
  there = [r for r in results if r.status in (outcome.GOT, outcome.HAD)]
  print("%s; %s, %d verified, %d not verified" % (
      ", ".join(counts), size_text(sum(r.bytes for r in there)),
      sum(r.verified for r in there), sum(not r.verified for r in there)))
