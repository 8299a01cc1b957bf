"""A connection to a Triton server: one model, asked over gRPC or HTTP.

A connection is for one thread. Needs tritonclient and numpy, no TensorFlow.
"""

import os
import re
from typing import NamedTuple

import numpy as np

from utils import errors
from utils import signature
from utils.errors import UserError

PORTS = {"grpc": 8001, "http": 8000}
# HTTP statuses of what may pass; 499 is the client library's own time-out.
_PASSING_HTTP = {"408", "429", "499", "502", "503", "504"}
_PASSING_GRPC = {"StatusCode." + name for name in (
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED",
    "CANCELLED")}
_FAULTS = {"500", "StatusCode.INTERNAL", "StatusCode.UNKNOWN"}
_LARGEST_MESSAGE = 2 ** 31 - 1
_CHANNEL = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    # A new channel then is a new connection, without the pauses of an old one.
    ("grpc.use_local_subchannel_pool", 1),
    # As over HTTP: a server is asked directly.
    ("grpc.enable_http_proxy", 0),
]


class Passing(Exception):
  """Asking again may help: no connection, overload, a deadline."""


class ServerFault(Passing):
  """The server failed in this request; it may do better with another."""


class Refused(Exception):
  """Asking the same again would not help; the message is the server's."""


class BadReply(Exception):
  """A reply that cannot be an answer, such as one with NaN."""


class Target(NamedTuple):
  """What is asked: the server's host:port, "grpc" or "http", the model."""
  url: str
  protocol: str
  model_name: str
  model_version: int
  # Seconds that a request may take.
  request_timeout: float


def address(url, protocol):
  """Returns host:port of --trtis_server_url, the port being the protocol's.

  Raises:
    UserError: if it is none.
  """
  if not url:
    return "127.0.0.1:%d" % PORTS[protocol]
  host, port = re.match(r"(.*?)(?::([^:\]]*))?$", url, re.S).groups()
  if port is None:
    port = str(PORTS[protocol])
  if not (re.match(r"([^\s/:\[\]]+|\[[0-9a-fA-F:.]+\])\Z", host)
          and re.match(r"[0-9]{1,5}\Z", port) and 0 < int(port) < 2 ** 16):
    raise UserError("--trtis_server_url=%s: give host:port, such as "
                    "127.0.0.1:%d or [::1]:%d"
                    % (url, PORTS[protocol], PORTS[protocol]))
  return "%s:%s" % (host, port)


def _library(protocol):
  """Returns the client library of a protocol; UserError where it is none."""
  # Messages about connections come as exceptions too.
  os.environ.setdefault("GRPC_VERBOSITY", "NONE")
  try:
    # pylint: disable=g-import-not-at-top
    if protocol == "grpc":
      from tritonclient import grpc as library
    else:
      from tritonclient import http as library
  except ImportError as error:
    raise UserError(
        "the server's client library is not installed here (%s): run bash "
        "scripts/trtis/setup.sh --only client and use .venv/client/bin/python"
        % error)
  return library


def _raise(error, passing):
  """Raises what an error of the library is: Passing, ServerFault, Refused."""
  kind = Refused
  if error.status() in passing:
    kind = Passing
  elif error.status() in _FAULTS:
    kind = ServerFault
  raise kind(_words(error))


def _words(error):
  """Returns what a server's error says, without the id of its request."""
  words = re.sub(r"^\[request id: [^\]]*\] ", "",
                 errors.one_line(error.message() or error.status()))
  if "while decoding the response" in words:  # the library's, which wants JSON
    return ("status %s in a reply that is not Triton's own, such as that of a "
            "proxy" % error.status())
  if "maximum queue size" in words:
    return ("the server's queue is full (%s): give less --concurrency or more "
            "--max_retries" % words)
  return words


class _Grpc(object):
  """The calls of tritonclient over gRPC."""

  def __init__(self, target):
    self._library = _library("grpc")
    self._target = target
    self._timeout = target.request_timeout
    self._client = self._library.InferenceServerClient(
        target.url, channel_args=_CHANNEL)

  def call(self, function):
    """Returns `function()`, faults as `Passing` or `Refused`."""
    from tritonclient.utils import InferenceServerException
    try:
      return function()
    except InferenceServerException as error:
      _raise(error, _PASSING_GRPC)

  def config(self):
    return self._client.get_model_config(
        self._target.model_name, str(self._target.model_version), as_json=True,
        client_timeout=self._timeout)["config"]

  def models(self):
    return self._client.get_model_repository_index(
        as_json=True, client_timeout=self._timeout).get("models", [])

  def is_ready(self):
    return self._client.is_model_ready(
        self._target.model_name, str(self._target.model_version),
        client_timeout=self._timeout)

  def infer(self, inputs, request_id):
    tensors = []
    for name, array in inputs.items():
      tensors.append(self._library.InferInput(name, array.shape, "INT32"))
      tensors[-1].set_data_from_numpy(array)
    result = self._client.infer(
        self._target.model_name, tensors,
        model_version=str(self._target.model_version), request_id=request_id,
        outputs=[self._library.InferRequestedOutput(name)
                 for name in signature.OUTPUTS], client_timeout=self._timeout)
    response = result.get_response()
    return result, (response.id, response.model_name, response.model_version)

  def close(self):
    self._client.close()


class _Http(object):
  """The calls of tritonclient over HTTP."""

  def __init__(self, target):
    self._library = _library("http")
    self._target = target
    self._client = self._library.InferenceServerClient(
        target.url, connection_timeout=target.request_timeout,
        network_timeout=target.request_timeout)

  def call(self, function):
    """Returns `function()`, faults as `Passing` or `Refused`."""
    # pylint: disable=g-import-not-at-top
    import gevent
    from geventhttpclient import response
    from tritonclient.utils import InferenceServerException
    # The library's own time-outs are for each of the many reads of a reply.
    timer = gevent.Timeout(self._target.request_timeout)
    try:
      with timer:
        return function()
    except InferenceServerException as error:
      _raise(error, _PASSING_HTTP)
    except gevent.Timeout:
      raise Passing("Deadline Exceeded")
    except (OSError, EOFError, response.HTTPConnectionClosed,
            response.HTTPParseError) as error:
      raise Passing(errors.one_line(error) or type(error).__name__)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
      # The library takes what comes for a reply of Triton.
      raise BadReply("the reply cannot be read (%s)" % errors.one_line(error))

  def config(self):
    return self._client.get_model_config(
        self._target.model_name, str(self._target.model_version))

  def models(self):
    return self._client.get_model_repository_index()

  def is_ready(self):
    return self._client.is_model_ready(
        self._target.model_name, str(self._target.model_version))

  def infer(self, inputs, request_id):
    tensors = []
    for name, array in inputs.items():
      tensors.append(self._library.InferInput(
          name, list(array.shape), "INT32"))
      tensors[-1].set_data_from_numpy(array, binary_data=True)
    result = self._client.infer(
        self._target.model_name, tensors,
        model_version=str(self._target.model_version), request_id=request_id,
        outputs=[self._library.InferRequestedOutput(name, binary_data=True)
                 for name in signature.OUTPUTS])
    response = result.get_response()
    return result, tuple(response.get(name) for name in (
        "id", "model_name", "model_version"))

  def close(self):
    self._client.close()


class Connection(object):
  """Asks the model of a `Target`; made anew by itself after a fault.

  Its methods raise Passing, Refused or BadReply.
  """

  def __init__(self, target):
    self._target = target
    self._open = None

  def _call(self, method, *args):
    if self._open is None:
      self._open = (_Grpc if self._target.protocol == "grpc" else _Http)(
          self._target)
    try:
      return self._open.call(lambda: getattr(self._open, method)(*args))
    except (Passing, BadReply):
      self.close()
      raise

  def config(self):
    """Returns the model's configuration as a dict of JSON values.

    Over gRPC values of int64 are text, and those that are zero or empty are
    left out.
    """
    return self._call("config")

  def models(self):
    """Returns the server's models as text, such as "bert 1"."""
    return sorted("%s %s" % (model["name"], model.get("version", ""))
                  for model in self._call("models"))

  def is_ready(self):
    """Says whether the model can be asked."""
    return self._call("is_ready")

  def infer(self, inputs, request_id):
    """Asks for the logits of a batch.

    Args:
      inputs: {name: int32 array [batch, ...]} of `signature.INPUTS`.
      request_id: text, another one for each request.

    Returns:
      {name: float32 array [batch, seq], all finite} of `signature.OUTPUTS`.
    """
    result, origin = self._call("infer", inputs, request_id)
    expected = (request_id, self._target.model_name,
                str(self._target.model_version))
    if origin != expected:
      self.close()
      raise Passing("the reply belongs to request %s of model %s %s, not to "
                    "%s of %s %s" % (origin + expected))
    shape = inputs["input_ids"].shape
    return {name: _checked(result, name, shape) for name in signature.OUTPUTS}

  def close(self):
    """Closes the connection; the next call opens another."""
    if self._open is not None:
      self._open.close()
      self._open = None


def _checked(result, name, shape):
  """Returns output `name` of a reply; BadReply if it is no logits [shape]."""
  try:
    logits = result.as_numpy(name)
  except ValueError as error:  # fewer bytes than the shape needs
    raise BadReply("%s cannot be read (%s)" % (name, errors.one_line(error)))
  if logits is None:
    raise BadReply("the reply lacks %s" % name)
  if logits.dtype != np.float32 or logits.shape != shape:
    raise BadReply("%s is %s %s, expected float32 %s" % (
        name, logits.dtype, list(logits.shape), list(shape)))
  if not np.isfinite(logits).all():
    raise BadReply("%s is not finite" % name)
  return logits
