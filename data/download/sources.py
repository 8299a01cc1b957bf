"""What there is to fetch: sources.conf, mirrors and the user's own words."""

import configparser
import os
import re
from typing import Any
from typing import Mapping
from typing import NamedTuple
from urllib.parse import urljoin
from urllib.parse import urlsplit

from utils.errors import UserError

CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                      "sources.conf")
_KINDS = ("md5", "sha1", "sha256")


class Item(NamedTuple):
  """One thing to fetch.

  Attributes:
    what: its source, such as "squad".
    name: its file name, as a mirror serves it.
    url: where it is.
    path: where it goes under DATA_DIR.
    kind: "file"; "folder", a zip archive that becomes the folder `path`; or
      "text", a zip archive with one text that becomes the file `path`.
    size: bytes that it must have, or None.
    about: bytes to show, or None.
    digest: published hash, "kind:digits", or "".
    members: {name: published hash} of files in the archive.
    sums: (kind, URL) of a list of hashes, or None.
    hint: "; " and what to do where it is gone, or "".
    delay: seconds between this request and the one before.
  """
  what: str
  name: str
  url: str
  path: str
  kind: str = "file"
  size: Any = None
  about: Any = None
  digest: str = ""
  members: Mapping[str, str] = {}
  sums: Any = None
  hint: str = ""
  delay: float = 0


class Source(NamedTuple):
  """Section [what]: its settings; `mirror` says that `base` is one."""
  what: str
  base: str
  mirror: bool
  settings: Mapping[str, str]


def check_url(url, place):
  """Returns `url`; UserError names `place` unless it is one of the web's."""
  try:
    parts = urlsplit(url)
    good = parts.scheme in ("http", "https") and parts.hostname
  except ValueError:
    good = False
  if not good:
    raise UserError("%s: %r is not a URL that begins with http:// or https://"
                    % (place, url))
  return url


def read_mirrors(path, names):
  """Returns {source: base URL} of the environment and a file; the file wins.

  Args:
    path: file of lines source=URL, # comments; or None.
    names: the sources there are.

  Raises:
    UserError: if the file cannot be read or a line is wrong.
  """
  mirrors = {}
  for name in names:
    variable = "BERT_MIRROR_" + name.upper()
    if os.environ.get(variable):
      mirrors[name] = check_url(os.environ[variable], variable)
  for place, line in numbered_lines(path, "mirrors") if path else ():
    name, equals, url = (part.strip() for part in line.partition("="))
    if not equals or name not in names:
      raise UserError("%s: expected source=URL with a source of %s, found %r"
                      % (place, ", ".join(names), line))
    mirrors[name] = check_url(url, place)
  return mirrors


def numbered_lines(path, flag):
  """Returns [(place, line)] of a file without blank lines and comments.

  Raises:
    UserError: if the file cannot be read.
  """
  try:
    with open(path, encoding="utf-8-sig") as stream:
      lines = stream.read().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError("--%s: cannot read %s (%s)" % (flag, path, getattr(
        error, "strerror", None) or "not UTF-8"))
  return [("%s line %d" % (path, number), line.strip())
          for number, line in enumerate(lines, 1)
          if line.strip() and not line.strip().startswith("#")]


def _read(path):
  config = configparser.ConfigParser(
      interpolation=None, delimiters=("=",), comment_prefixes=("#",))
  config.optionxform = str  # the names of files keep their case
  try:
    with open(path, encoding="utf-8") as stream:
      config.read_file(stream)
  except (OSError, UnicodeDecodeError, configparser.Error) as error:
    raise UserError("%s cannot be read: %s" % (path, error))
  return config


def _place(url, source, name):
  """Returns the URL of a file: the mirror's by its name, else as stated."""
  return urljoin(source.base, name if source.mirror else url)


def _item(source, name, section):
  values = {key: value.replace("{date}", source.settings.get("date", ""))
            for key, value in section.items()}
  name = name.replace("{date}", source.settings.get("date", ""))
  hashes = [(key.partition(" "), value) for key, value in values.items()
            if key.partition(" ")[0] in _KINDS]
  members = {file: "%s:%s" % (kind, value)
             for (kind, _, file), value in hashes if file}
  sums = None
  if "sums" in values:
    kind, url = values["sums"].split()
    sums = kind, _place(url, source, url.split("/")[-1])
  number = lambda key: int(values[key]) if key in values else None
  return Item(
      source.what, name, _place(values.get("url", name), source, name),
      values.get("unpack") or os.path.join(values["to"], name),
      kind="folder" if "unpack" in values else "file",
      size=number("size"), about=number("about"),
      digest="".join("%s:%s" % (kind, value)
                     for (kind, _, file), value in hashes if not file),
      members=members, sums=sums,
      hint="; " + values["gone"] if "gone" in values else "")


class Catalogue(object):
  """All sources and their files, as the user's words have changed them."""

  def __init__(self, mirrors_file=None, wiki_date=None, path=CONFIG):
    """Reads the config.

    Args:
      mirrors_file: see `read_mirrors`.
      wiki_date: yyyymmdd in place of the config's, or None.
      path: the config.

    Raises:
      UserError: if one of these is wrong.
    """
    self._config = _read(path)
    self.names = [name for name in self._config.sections() if "/" not in name]
    mirrors = read_mirrors(mirrors_file, self.names)
    self.sources = {}
    for name in self.names:
      settings = dict(self._config[name])
      if wiki_date and "date" in settings:
        settings["date"] = wiki_date
      if not re.match(r"\d{8}$", settings.get("date", "20260101")):
        raise UserError("the date of %s is %r, but has to be yyyymmdd"
                        % (name, settings["date"]))
      base = mirrors.get(name, settings["base"]).rstrip("/") + "/"
      self.sources[name] = Source(name, base, name in mirrors, settings)

  def items(self, what):
    """Returns the list of `Item` of one source that the config names."""
    return [_item(self.sources[what], section.split("/", 1)[1],
                  self._config[section])
            for section in self._config.sections()
            if section.startswith(what + "/")]
