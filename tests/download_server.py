"""A web server on this machine that behaves well or badly, as it is told.

And what the tests of downloads share beside it.
"""

import hashlib
import http.server
import io
import os
import pathlib
import re
import stat
import subprocess
import sys
import threading
import urllib.parse
import zipfile

import pytest

from data.download import fetch
from data.download import get
from data.download import sources

ROOT = pathlib.Path(__file__).resolve().parent.parent
BODY = bytes(bytearray((7 * i + i // 251) % 256 for i in range(200000)))


class Behaviour(object):
  """How one request is answered; the attributes are what is out of order."""

  def __init__(self, status=None, headers=None, send=None, ranges=True,
               validators=True, shift=0, length=True, stall=False):
    """Nothing given: as a good server does.

    Args:
      status: answer with it and no body.
      headers: more headers, {name: value}.
      send: break the connection after so many bytes of the body.
      ranges: whether Range is understood.
      validators: whether there is an ETag (and If-Range is understood).
      shift: a 206 begins so many bytes from where it was asked to.
      length: whether there is a Content-Length.
      stall: after `send` bytes wait for `Server.released` before breaking.
    """
    self.status = status
    self.headers = headers or {}
    self.send = send
    self.ranges = ranges
    self.validators = validators
    self.shift = shift
    self.length = length
    self.stall = stall


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *unused):
    pass

  def do_GET(self):  # pylint: disable=invalid-name
    site = self.server.site
    whole = urllib.parse.unquote(self.path)
    path = whole.split("?")[0]
    with site.lock:
      site.requests.append((whole, dict(self.headers)))
      waiting = site.behaviours.get(whole) or site.behaviours.get(path)
      told = Behaviour()
      if waiting:
        told = waiting.pop(0) if len(waiting) > 1 else waiting[0]
      body = site.files.get(whole, site.files.get(path))
    if told.status:
      self._answer(told.status, told.headers, b"")
    elif body is None:
      self._answer(404, {}, b"")
    else:
      self._give(told, body)

  def _give(self, told, body):
    headers = {"Content-Type": "application/octet-stream"}
    tag = '"%s"' % hashlib.md5(body).hexdigest()
    if told.validators:
      headers["ETag"] = tag
    headers.update(told.headers)
    status, part = 200, body
    asked = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
    changed = told.validators and self.headers.get("If-Range", tag) != tag
    if asked and told.ranges and not changed:
      start = int(asked.group(1)) + told.shift
      if start >= len(body):
        self._answer(416, {"Content-Range": "bytes */%d" % len(body)}, b"")
        return
      status, part = 206, body[start:]
      headers["Content-Range"] = "bytes %d-%d/%d" % (
          start, len(body) - 1, len(body))
    self._answer(status, headers, part, told)

  def _answer(self, status, headers, part, told=Behaviour()):
    self.close_connection = True
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    if told.length:
      self.send_header("Content-Length", str(len(part)))
    self.send_header("Connection", "close")
    self.end_headers()
    self.wfile.write(part if told.send is None else part[:told.send])
    if told.stall:
      self.wfile.flush()
      self.server.site.stalled.set()
      self.server.site.released.wait(120)


class Server(object):
  """The site: `files` {path: bytes}, `behaviours` {path: [Behaviour, ...]}.

  Behaviours are used up one a request; the last one stays. Paths stand with
  or without their query. `requests` lists (path, headers) as they came.
  """

  def __init__(self):
    self.files = {}
    self.behaviours = {}
    self.requests = []
    self.lock = threading.Lock()
    self.stalled = threading.Event()
    self.released = threading.Event()
    self._server = http.server.HTTPServer(("127.0.0.1", 0), _Handler)
    self._server.site = self
    self._thread = threading.Thread(
        target=self._server.serve_forever, args=(0.01,))
    self._thread.daemon = True
    self._thread.start()

  @property
  def url(self):
    return "http://127.0.0.1:%d" % self._server.server_address[1]

  def paths(self):
    """Returns the paths that were asked for, and forgets them."""
    with self.lock:
      found = [path for path, _ in self.requests]
      del self.requests[:]
    return found

  def ranges(self):
    """Returns the Range headers of the requests, None where there was none."""
    return [headers.get("Range") for _, headers in self.requests]

  def stop(self):
    self.released.set()
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()


# --- what the tests share


def sha1(content):
  return "sha1:" + hashlib.sha1(content).hexdigest()


@pytest.fixture
def server(monkeypatch):
  for name in list(os.environ):
    if name.lower().endswith("_proxy") or name.startswith("BERT_MIRROR_"):
      monkeypatch.delenv(name)
  site = Server()
  site.files["/a.bin"] = BODY
  yield site
  site.stop()


class Sleep(list):
  """Stands in for time.sleep: keeps how long, and does not wait."""

  def __call__(self, seconds):
    self.append(seconds)


def client(tries=3, sleep=None):
  return fetch.Client(tries=tries, backoff=0, timeout=120,
                      sleep=Sleep() if sleep is None else sleep)


def item(server, name="a.bin", **more):
  values = dict(what="test", name=name, url=server.url + "/" + name,
                path="place/" + name)
  values.update(more)
  return sources.Item(**values)


def run(wanted, folder, **more):
  return get.get(wanted, str(folder), client(**more))


def names(folder):
  """Returns the files below a folder but records and locks."""
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                if path.is_file() and
                path.name not in (".download.json", ".lock"))


def zipped(content, links=(), **kwargs):
  """Returns the bytes of a zip archive of {name: content}."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", **kwargs) as archive:
    for name, text in content.items():
      info = zipfile.ZipInfo(name)
      kind = stat.S_IFLNK if name in links else stat.S_IFREG
      info.external_attr = (kind | 0o644) << 16
      archive.writestr(info, text)
  return stream.getvalue()


def launch(*words, **more):
  """Starts the launcher with this Python; returns the process."""
  env = {name: value for name, value in os.environ.items()
         if not name.startswith("BERT_MIRROR_")}
  env.update(BERT_PYTHON=sys.executable, NO_PROXY="127.0.0.1",
             no_proxy="127.0.0.1", PYTHONDONTWRITEBYTECODE="1")
  env.update(more.pop("env", {}))
  return subprocess.Popen(
      ["bash", str(ROOT / "scripts/data_download.sh")] + list(words), env=env,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      **more)


def finished(*words, **more):
  process = launch(*words, **more)
  out, err = process.communicate(timeout=180)
  return subprocess.CompletedProcess(words, process.returncode, out, err)
