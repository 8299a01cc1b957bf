"""What the models of every framework share behind Triton's Python backend.

`Backend` is the half of a `TritonPythonModel` that talks to the server: it
puts the requests of a batch together, has them computed once, and gives each
request its own part of the result. A framework adds

  load(folder)   reads the model from <repository>/<version>
  run(arrays)    {name: array [rows, ...]} -> {name: array [rows, ...]}

It imports nothing but numpy and what the server's Python backend brings. What
is wrong with one request is answered to that request alone: values that the
model has no weights for are found before the computation, and where the
computation itself fails, each request of the batch is computed alone.
"""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils


def model_folder(args):
  """Folder of the version that is to be loaded: <repository>/<version>."""
  # The server knows the repository by a link.
  return os.path.realpath(
      os.path.join(args["model_repository"], args["model_version"]))


def parameters(config):
  """{name: text} of the model configuration's parameters."""
  return {name: value["string_value"]
          for name, value in config.get("parameters", {}).items()}


def threads_of_an_instance(config):
  """Threads for one of the model's instances: its share of the cores."""
  instances = sum(int(group.get("count", 1))
                  for group in config.get("instance_group", []))
  return max(1, len(os.sched_getaffinity(0)) // max(1, instances))


def first_line(error):
  """The message of an exception, its first line alone."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


class Limits:
  """What the values of a request's inputs have to lie in.

  From the parameters `vocab_size` and `type_vocab_size` of the model; a limit
  that is not stated there is left to the model itself. On a CPU frameworks
  differ in what they do about a wrong index: TensorFlow fails, ONNX Runtime
  counts negative ones from the end, a one-hot product gives zeros.
  """

  def __init__(self, stated):
    self._below = {"input_ids": self._number(stated, "vocab_size"),
                   "segment_ids": self._number(stated, "type_vocab_size"),
                   "input_mask": 2}

  @staticmethod
  def _number(stated, name):
    try:
      return int(stated.get(name, 0))
    except ValueError:
      raise ValueError("its parameter %s is '%s', not a number"
                       % (name, stated[name]))

  def fault(self, arrays):
    """One line on what is wrong with a request's arrays, or None."""
    for name in sorted(self._below):
      limit, array = self._below[name], arrays.get(name)
      if not limit or array is None or not array.size:
        continue
      low, high = int(array.min()), int(array.max())
      if low < 0 or high >= limit:
        return ("%s holds %d; this model takes 0 to %d"
                % (name, low if low < 0 else high, limit - 1))
    return None


def not_finite(outputs):
  """Name of the first output with a NaN or an infinity, or None."""
  for name in sorted(outputs):
    if not np.all(np.isfinite(outputs[name])):
      return name
  return None


class Backend:
  """The server's side of a model; see the module's text."""

  def initialize(self, args):
    """Called once by the server: loads the model, or says why it cannot.

    A first computation is slow, since frameworks prepare the graph in it: it is
    done here, so that a server that is ready is one that answers.
    """
    self.config = json.loads(args["model_config"])
    self.name = "%s version %s" % (args["model_name"], args["model_version"])
    self.inputs = [i["name"] for i in self.config["input"]]
    self.outputs = [o["name"] for o in self.config["output"]]
    self.threads = threads_of_an_instance(self.config)
    try:
      self.parameters = parameters(self.config)
      self._limits = Limits(self.parameters)
      self.load(model_folder(args))
      self.run(self._example())
    except Exception as error:
      message = "%s not loaded: %s" % (self.name, first_line(error))
      pb_utils.Logger.log_error(message)
      raise pb_utils.TritonModelException(message)
    pb_utils.Logger.log_info("%s loaded, %d threads"
                             % (self.name, self.threads))

  def _example(self):
    """Inputs of a batch of one sequence, all of whose places are taken."""
    arrays = {}
    for tensor in self.config["input"]:
      dims = tensor.get("reshape", {}).get("shape", tensor["dims"])
      arrays[tensor["name"]] = np.full(
          [1] + [int(size) for size in dims],
          1 if tensor["name"] == "input_mask" else 0, np.int32)
    return arrays

  def load(self, folder):
    """Reads the model of a version's folder."""
    raise NotImplementedError

  def run(self, arrays):
    """Computes {output: array [rows, ...]} for {input: array [rows, ...]}."""
    raise NotImplementedError

  def execute(self, requests):
    """Answers a batch of requests; returns their responses in that order."""
    responses = [None] * len(requests)
    batch = []
    for place, request in enumerate(requests):
      try:
        arrays = self._arrays(request)
        fault = self._limits.fault(arrays)
      except Exception as error:  # what one request holds fails that one
        fault = first_line(error)
      if fault:
        responses[place] = self._refusal(fault, "INVALID_ARG")
      else:
        batch.append((place, arrays))
    for place, response in self._answers(batch):
      responses[place] = response
    return responses

  def _arrays(self, request):
    """{input: array [rows, ...]} of a request."""
    return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self.inputs}

  def _refusal(self, message, code="INTERNAL"):
    error = pb_utils.TritonError(
        "%s: %s" % (self.name, message),
        # The module has its class only once a model is being loaded.
        getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(output_tensors=[], error=error)

  def _answers(self, batch):
    """Yields (place, response) for [(place, arrays)], computed in one go."""
    if not batch:
      return
    try:
      joined = {name: np.concatenate([arrays[name] for _, arrays in batch])
                for name in self.inputs}
      outputs = self.run(joined)
    except Exception as error:  # any failure is an answer, never a crash
      if len(batch) == 1:
        pb_utils.Logger.log_error("%s: %s" % (self.name, first_line(error)))
        yield batch[0][0], self._refusal(first_line(error))
        return
      for one in batch:
        for answer in self._answers([one]):
          yield answer
      return
    start = 0
    for place, arrays in batch:
      end = start + len(arrays[self.inputs[0]])
      yield place, self._response(
          {name: outputs[name][start:end] for name in self.outputs})
      start = end

  def _response(self, outputs):
    name = not_finite(outputs)
    if name:
      pb_utils.Logger.log_error("%s: %s is not finite" % (self.name, name))
      return self._refusal("%s is not finite" % name)
    return pb_utils.InferenceResponse(output_tensors=[
        pb_utils.Tensor(name, np.ascontiguousarray(outputs[name]))
        for name in self.outputs])
