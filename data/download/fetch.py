"""One URL into one file: resumed, retried, never taken for whole too early.

What has come lies in the partial file; beside it a small JSON file says of
which URL and version it is. Both outlive a crash, and the next run goes on.
"""

import contextlib
import os
import re
import shutil
import time
from urllib.parse import urlsplit

import requests
import requests.adapters
from urllib3.util import retry

from data.download import outcome
from utils import files
from utils import logs
from utils.errors import UserError

_CHUNK = 1 << 14
_AGENT = "bert-data-download (%s)" % requests.utils.default_user_agent()
# More than a person waits for; servers may ask for hours.
_LONGEST_WAIT = 120
_ANSWERS_TO_RETRY = (408, 429, 500, 502, 503, 504)
_HOLES = "the server's answer does not continue what is here"


class _Retry(retry.Retry):
  """urllib3's, but it waits before the first retry too, and never for hours."""

  def get_backoff_time(self):
    tries = len(self.history)
    return min(_LONGEST_WAIT, self.backoff_factor * 2 ** max(0, tries - 1))

  def get_retry_after(self, response):
    asked = super(_Retry, self).get_retry_after(response)
    return None if asked is None else min(asked, _LONGEST_WAIT)


def reason_of(error):
  """Returns why a request failed, in a few words."""
  text = str(error)
  found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
  if found:
    return found.group(1)
  if isinstance(error, requests.Timeout) or "timed out" in text:
    return "no answer in time"
  if isinstance(error, requests.exceptions.SSLError):
    return "its certificate or encryption is refused"
  if isinstance(error, requests.TooManyRedirects):
    return "redirected in a circle"
  return "the connection breaks off"


class Client(object):
  """A connection pool with its retries and its manners."""

  def __init__(self, tries=5, backoff=2.0, timeout=60.0, sleep=time.sleep):
    """Opens nothing yet.

    Args:
      tries: times that a request, or a transfer that gets nowhere, is made.
      backoff: seconds before the second try; they double from try to try.
      timeout: seconds without a byte after which a connection is given up.
      sleep: function of seconds.
    """
    self.tries = tries
    self._backoff = backoff
    self.sleep = sleep
    self._timeout = timeout
    self._waiting = False
    self._session = requests.Session()
    # Sizes and ranges are those of the file itself.
    self._session.headers.update(
        {"User-Agent": _AGENT, "Accept-Encoding": "identity"})
    for scheme in ("http://", "https://"):
      self._session.mount(scheme, self._adapter(tries - 1))

  def _adapter(self, retries):
    return requests.adapters.HTTPAdapter(max_retries=_Retry(
        total=retries, backoff_factor=self._backoff, raise_on_status=False,
        status_forcelist=_ANSWERS_TO_RETRY))

  def get(self, url, headers=None, delay=0):
    """Returns the streaming response of a GET, redirects followed.

    Args:
      url: string.
      headers: {name: value} beside the usual ones.
      delay: seconds to wait if the request before had a delay as well.

    Raises:
      Skipped: if no server answers.
    """
    if delay and self._waiting:
      self.sleep(delay)
    self._waiting = bool(delay)
    try:
      return self._session.get(url, headers=headers, stream=True,
                               timeout=self._timeout)
    except (requests.RequestException, UnicodeError) as error:
      place = urlsplit(url)
      if isinstance(error, requests.ConnectionError):
        # Its other files get one try each instead of minutes of waiting.
        self._session.mount("%s://%s/" % (place.scheme, place.netloc),
                            self._adapter(0))
      raise outcome.Skipped("%s: %s" % (place.netloc, reason_of(error)))

  def text(self, url, delay=0):
    """Returns a small text file of the web.

    Raises:
      Skipped: if it cannot be had.
    """
    for number in range(self.tries):
      if number:
        self.sleep(self.wait_before(number))
      with contextlib.closing(self.get(url, delay=delay)) as response:
        _refuse_errors(response)
        length = _number(response.headers.get("Content-Length"))
        if "Content-Encoding" in response.headers:
          length = None  # it counts other bytes
        with contextlib.suppress(requests.RequestException):
          if length in (None, len(response.content)):
            return response.content.decode("utf-8", "replace")
    raise outcome.Skipped("the connection breaks off")

  def wait_before(self, retries):
    """Returns the seconds to wait before so many-th a retry."""
    return min(_LONGEST_WAIT, self._backoff * 2 ** (retries - 1))

  def fetch(self, url, partial, size=None, delay=0):
    """Brings all of `url` to file `partial`.

    Args:
      url: string.
      partial: path of the file; what is there of the same URL is kept.
      size: bytes that it has to have, or None.
      delay: see `get`.

    Returns:
      Whether some of the file came in an earlier run or try.

    Raises:
      Skipped: if the server does not give it.
      Failed: if it could not be had whole.
    """
    return _Transfer(self, url, partial, size, delay).run()


def discard(partial):
  """Removes a partial file and what is known of it."""
  for path in (partial, partial + ".json"):
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)


def _refuse_errors(response):
  if response.status_code >= 400 or response.status_code == 204:
    raise outcome.Skipped("the server answers %d %s" % (
        response.status_code, response.reason or ""))


def _number(text):
  return int(text) if text and re.match(r"\d+$", text) else None


class _Transfer(object):
  """State of one transfer: what is there, of how much, of which version."""

  def __init__(self, client, url, partial, size, delay):
    self._client = client
    self._url = url
    self._partial = partial
    self._name = os.path.splitext(os.path.basename(partial))[0]
    self._size = size
    self._delay = delay
    self._seen = self._read_seen()
    self._offset = os.path.getsize(partial) if self._seen else 0
    self._resumed = self._offset > 0

  def _read_seen(self):
    """Returns {"url", "validator", "total"} of the partial file, or {}."""
    path = self._partial + ".json"
    if os.path.exists(path) and os.path.exists(self._partial):
      with contextlib.suppress(UserError):
        seen = files.read_json(path, "partial file")
        if isinstance(seen, dict) and seen.get("url") == self._url:
          return seen
    return {}

  def run(self):
    """See `Client.fetch`."""
    idle, best = 0, self._offset
    while not self._whole():
      broken = self._attempt()
      if not broken:
        break
      idle = 1 if self._offset > best else idle + 1
      best = max(best, self._offset)
      state = "%s at %d of %s bytes" % (
          broken, self._offset, self._seen.get("total") or "unknown")
      if idle >= self._client.tries:
        raise outcome.Failed("%s, %d times; what came is kept for the next "
                             "run" % (state, idle))
      logs.LOGGER.info("%s: %s, trying again", self._name, state)
      self._client.sleep(self._client.wait_before(idle))
      self._resumed = self._resumed or self._offset > 0
    return self._resumed

  def _whole(self):
    total = self._seen.get("total")
    return total is not None and self._offset == total

  def _forget(self):
    discard(self._partial)
    self._seen, self._offset = {}, 0

  def _headers(self):
    if not self._offset:
      return {}
    headers = {"Range": "bytes=%d-" % self._offset}
    if self._seen.get("validator"):
      headers["If-Range"] = self._seen["validator"]
    return headers

  def _attempt(self):
    """Makes one request; returns why the file is not whole yet, or ""."""
    response = self._client.get(self._url, self._headers(), self._delay)
    with contextlib.closing(response):
      if response.status_code == 416:
        return self._beyond_the_end(response)
      _refuse_errors(response)
      self._refuse_pages(response)
      if response.status_code == 206:
        if not self._continues(response):
          self._forget()
          return _HOLES
      else:
        self._begin(response)
      self._need_room()
      broken = self._receive(response)
    if broken or self._whole() or self._seen.get("total") is None:
      return broken
    return "the connection ended early"

  def _beyond_the_end(self, response):
    """All of the file is here already, or it is another one by now."""
    length = response.headers.get("Content-Range", "").rpartition("/")[2]
    if _number(length) == self._offset:
      self._remember(dict(self._seen, total=self._offset))
      return ""
    self._forget()
    return _HOLES

  def _refuse_pages(self, response):
    """A page of HTML is what a site sends in place of a file that is gone."""
    kind = response.headers.get("Content-Type", "").split(";")[0].strip()
    if kind.lower() in ("text/html", "application/xhtml+xml"):
      raise outcome.Skipped("the server sends a web page instead of the file")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("", "identity"):
      raise outcome.Failed("the server insists on %s encoding" % encoding)

  def _continues(self, response):
    """Says whether a 206 begins where the partial file ends, and notes it."""
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)$",
                     response.headers.get("Content-Range", ""))
    validator = self._seen.get("validator")
    if not found or int(found.group(1)) != self._offset:
      return False
    if validator and _validator(response) not in ("", validator):
      return False
    total = _number(found.group(2))
    known = self._seen.get("total")
    if total is not None and known not in (None, total):
      return False
    self._check_size(total)
    if total != known:
      self._remember(dict(self._seen, total=total or known))
    return True

  def _begin(self, response):
    """Begins the file anew with what this response says of it."""
    total = _number(response.headers.get("Content-Length"))
    self._check_size(total)
    self._forget()
    with open(self._partial, "wb"):
      pass
    self._remember({"url": self._url, "validator": _validator(response),
                    "total": total})

  def _remember(self, seen):
    self._seen = seen
    files.write_json(self._partial + ".json", seen)

  def _check_size(self, total):
    if None not in (total, self._size) and total != self._size:
      self._forget()
      raise outcome.Failed("wrong size: the server has %d bytes, published "
                           "are %d" % (total, self._size))

  def _need_room(self):
    total = self._seen.get("total")
    free = shutil.disk_usage(os.path.dirname(self._partial)).free
    if total is not None and total - self._offset > free:
      raise outcome.NoSpace("too little room: %s to come, %s free" % (
          outcome.size_text(total - self._offset), outcome.size_text(free)))

  def _receive(self, response):
    """Appends the body; returns what broke it off, or ""."""
    bar = logs.progress(self._seen.get("total"), "B", self._name, self._offset)
    bar.unit_scale = True
    with contextlib.closing(bar), open(self._partial, "ab") as stream:
      try:
        for chunk in response.iter_content(_CHUNK):
          stream.write(chunk)
          self._offset += len(chunk)
          bar.update(len(chunk))
      except requests.RequestException as error:
        return reason_of(error)
    return ""


def _validator(response):
  """Returns what names this version of the file for If-Range, or ""."""
  tag = response.headers.get("ETag", "")
  if tag.startswith('"'):  # a weak one (W/) may stand for other bytes
    return tag
  return response.headers.get("Last-Modified", "")
