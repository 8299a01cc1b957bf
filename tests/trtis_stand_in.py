"""A server that speaks enough of Triton's HTTP protocol to misbehave.

Its logits are a function of a feature's tokens alone, so that a reply which
went astray shows in the answers.
"""

import contextlib
import http.server
import json
import socket
import socketserver
import struct
import threading

import numpy as np

_LENGTH = "Inference-Header-Content-Length"


def logits_of(input_ids):
  """Returns {name: float32 [batch, seq]}, row by row the same in any batch."""
  ids = np.asarray(input_ids, np.float64)
  places = np.arange(ids.shape[1])
  whole = ids.sum(axis=1, keepdims=True)
  return {
      "start_logits": np.sin(ids * 1.7 + places * .9 + whole).astype("f4"),
      "end_logits": np.sin(ids * 2.3 + places * .7 - whole).astype("f4")}


def config(seq_length, fingerprint="one", **parameters):
  """Returns a model's config as the server tells it over HTTP."""
  def tensor(name, kind, dims):
    return {"name": name, "data_type": kind, "dims": dims}

  if fingerprint:
    parameters["export_fingerprint"] = fingerprint
  ids = dict(tensor("unique_ids", "TYPE_INT32", [1]), reshape={"shape": []})
  return {
      "name": "bert", "max_batch_size": 8,
      "input": [ids] + [
          tensor(name, "TYPE_INT32", [seq_length])
          for name in ("input_ids", "input_mask", "segment_ids")],
      "output": [tensor(name, "TYPE_FP32", [seq_length])
                 for name in ("start_logits", "end_logits")],
      "parameters": {name: {"string_value": value}
                     for name, value in parameters.items()}}


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers one client's requests."""
  protocol_version = "HTTP/1.1"
  # Head and body leave in two writes.
  disable_nagle_algorithm = True

  def log_message(self, *unused):
    pass

  def _send(self, status, body=b"", **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), str(value))
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def say(self, value, status=200):
    self._send(status, json.dumps(value).encode("utf-8"))

  def do_GET(self):
    if self.path.endswith("/config"):
      self.say(self.server.owner.config)
    elif self.path.endswith("/ready"):
      self._send(200)
    else:
      self.say({"error": "what?"}, 404)

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    if self.path.endswith("/repository/index"):
      self.say([{"name": "bert", "version": "1", "state": "READY"}])
      return
    size = int(self.headers[_LENGTH])
    request, rest = json.loads(body[:size].decode("utf-8")), body[size:]
    arrays = {}
    for tensor in request["inputs"]:
      count = tensor["parameters"]["binary_data_size"]
      arrays[tensor["name"]] = np.frombuffer(
          rest[:count], np.int32).reshape(tensor["shape"])
      rest = rest[count:]
    self.server.owner.answer(self, request, arrays)

  def reply(self, request, outputs, **changes):
    """Sends outputs {name: array}; `changes` are of the reply's head."""
    head = {"id": request["id"], "model_name": "bert", "model_version": "1",
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": list(array.shape),
                 "parameters": {"binary_data_size": array.nbytes}}
                for name, array in outputs.items()]}
    head.update(changes)
    head = json.dumps(head).encode("utf-8")
    self._send(200, head + b"".join(a.tobytes() for a in outputs.values()),
               Inference_Header_Content_Length=len(head))

  def hang_up(self):
    """Ends the connection with a reset, in place of any reply."""
    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                               struct.pack("ii", 1, 0))
    self.connection.close()
    self.close_connection = True


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
  daemon_threads = True
  request_queue_size = 64

  def handle_error(self, *unused):
    pass  # a client that has gone


class StandIn:
  """A server under way.

  Attributes:
    config: what it says of its model; may be changed.
    behave: function of (handler, request, {name: array}, number of the
      request, from 0) that answers, or returns True for the usual answer.
    requests: the arrays of all requests so far.
    most: requests at a time, so far.
  """

  def __init__(self, model_config):
    self.config = model_config
    self.behave = lambda *unused: True
    self.requests = []
    self.most = self._now = 0
    self.ended = threading.Event()
    self._lock = threading.Lock()
    self._server = _Server(("127.0.0.1", 0), _Handler)
    self._server.owner = self
    self.url = "127.0.0.1:%d" % self._server.server_address[1]
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def answer(self, handler, request, arrays):
    with self._lock:
      number = len(self.requests)
      self.requests.append(arrays)
      self._now += 1
      self.most = max(self.most, self._now)
    try:
      if self.behave(handler, request, arrays, number):
        handler.reply(request, logits_of(arrays["input_ids"]))
    finally:
      with self._lock:
        self._now -= 1

  def asked(self):
    """Numbers of the features that were asked for, sorted."""
    return sorted(int(i) for arrays in self.requests
                  for i in arrays["unique_ids"].ravel())

  def end(self):
    """Closes its door; whoever waits for an answer is let go."""
    self.ended.set()
    self._server.shutdown()
    self._server.server_close()


@contextlib.contextmanager
def stand_in(model_config):
  """Yields a `StandIn`."""
  server = StandIn(model_config)
  try:
    yield server
  finally:
    server.end()
