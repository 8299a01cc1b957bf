"""Books: a list of URLs of the user's, or Project Gutenberg's English texts."""

import hashlib
import html.parser
import os
import re
from urllib.parse import unquote
from urllib.parse import urljoin
from urllib.parse import urlsplit

from data.download import sources
from utils import files
from utils.errors import UserError

_PAGES = ".harvest.json"


def _file_name(url):
  """Returns the name of a URL's text file: safe, and ends with .txt."""
  last = unquote(urlsplit(url).path).rstrip("/").split("/")[-1]
  stem = re.sub(r"(?i)\.(txt|zip)$", "", last)
  stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).lstrip("._-")[:100]
  return (stem or "book") + ".txt"


def _item(url, folder, name, delay=0):
  packed = urlsplit(url).path.lower().endswith(".zip")
  return sources.Item("books", name, url, os.path.join(folder, name),
                      kind="text" if packed else "file", delay=delay)


def from_list(path, folder):
  """Returns the items of a list file: a URL a line, # comments.

  A name that an earlier URL of the list has gets a mark of its own URL, so
  adding lines at the end changes no name.

  Args:
    path: the list file.
    folder: where the texts go, under DATA_DIR.

  Raises:
    UserError: if it cannot be read, holds none, or a line is no URL.
  """
  items, names, urls = [], set(), set()
  for place, url in sources.numbered_lines(path, "book_list"):
    sources.check_url(url, place)
    if url in urls:
      continue
    name = _file_name(url)
    if name.lower() in names:
      mark = hashlib.sha256(url.encode("utf-8")).hexdigest()[:8]
      name = "%s-%s.txt" % (name[:-len(".txt")], mark)
    urls.add(url)
    names.add(name.lower())
    items.append(_item(url, folder, name))
  if not items:
    raise UserError("--book_list: %s holds no URL" % path)
  return items


class _Links(html.parser.HTMLParser):
  """Collects the addresses that a page links to, in order."""

  def __init__(self):
    super(_Links, self).__init__()
    self.found = []

  def handle_starttag(self, tag, attrs):
    if tag == "a" and dict(attrs).get("href"):
      self.found.append(dict(attrs)["href"])


def read_page(text, url):
  """Returns ([URLs of zip archives], URL of the next page or None)."""
  parser = _Links()
  parser.feed(text)
  links = [urljoin(url, link) for link in parser.found]
  archives = [link for link in links
              if urlsplit(link).path.lower().endswith(".zip")
              and urlsplit(link).scheme in ("http", "https")]
  following = [link for link in links
               if urlsplit(link).path == urlsplit(url).path
               and "offset=" in urlsplit(link).query]
  return archives, following[-1] if following else None


def choose(links):
  """Returns {name of the book: URL}, one URL a book, in order.

  A book may be there as UTF-8 (12-0.zip), plain (12.zip) and Latin-1
  (12-8.zip): the first of these that there is.
  """
  best = {}
  for link in links:
    stem = _file_name(link)[:-len(".txt")]
    found = re.match(r"(\d+)(-0|-8)?$", stem)
    book = found.group(1) if found else stem
    rank = ("-0", None, "-8").index(found.group(2)) if found else 1
    if book not in best or rank < best[book][0]:
      best[book] = rank, link
  return {book: link for book, (_, link) in best.items()}


def harvest(client, source, data_dir, limit):
  """Returns the items of the first `limit` books of Project Gutenberg.

  The pages that were read are kept beside the books, so that the next run
  asks for none of them again.

  Args:
    client: `fetch.Client`.
    source: the `sources.Source` of books.
    data_dir: folder.
    limit: number of books.

  Raises:
    Skipped: if a page cannot be had.
  """
  folder = source.settings["to"]
  delay = float(source.settings["delay"])
  kept = os.path.join(data_dir, folder, _PAGES)
  start = page_url(source)
  pages = {"start": start, "next": start, "read": [], "links": []}
  if os.path.exists(kept):
    earlier = files.read_json(kept, "list of books")
    if isinstance(earlier, dict) and earlier.get("start") == start:
      pages = earlier
  while len(choose(pages["links"])) < limit and pages["next"]:
    url = pages["next"]
    archives, following = read_page(client.text(url, delay), url)
    pages["links"] += archives
    pages["read"].append(url)
    pages["next"] = None if following in pages["read"] else following
    files.write_json(kept, pages)
  chosen = list(choose(pages["links"]).items())[:limit]
  return [_item(url, folder, book + ".txt", delay) for book, url in chosen]


def page_url(source):
  """Returns the URL of the first page that lists the books."""
  return source.base + source.settings["page"]
