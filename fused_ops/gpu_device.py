"""Memory and calls on a GPU through ctypes, for gpu_check.py."""

import ctypes

import numpy as np

TYPES = ("float32", "float16", "bfloat16")
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4,
          "float64": 8}
_PATTERN = 1 << 20  # values, or bytes, that are repeated
_BLOCK = 1 << 29  # bytes of the copy that others are measured by
_GUARD = 256  # bytes behind each array, that nothing may write


class GpuError(Exception):
  """A call of CUDA or of a kernel that failed."""


class Dropout(ctypes.Structure):
  """BertDropout of gpu_kernels.h."""
  _fields_ = [("key", ctypes.c_uint64), ("counter", ctypes.c_uint64),
              ("zeroes", ctypes.c_uint32)]


class Parameter(ctypes.Structure):
  """BertParameter."""
  _fields_ = [(name, ctypes.c_void_p) for name in ("w", "m", "v", "g")] + [
      ("count", ctypes.c_int64), ("decay", ctypes.c_float),
      ("adapt", ctypes.c_int32)]


class Step(ctypes.Structure):
  """BertStep."""
  _fields_ = [(name, ctypes.c_float)
              for name in ("beta_1", "beta_2", "epsilon")] + [
                  (name, ctypes.c_void_p) for name in (
                      "rate", "gradient_scale", "correction_1",
                      "correction_2")]


class Tensor(ctypes.Structure):
  """BertTensor."""
  _fields_ = [("values", ctypes.c_void_p), ("count", ctypes.c_int64)]


def encode(values, kind):
  """Returns an array's bytes in a type, rounded to the nearest."""
  if kind == "int32":
    return np.ascontiguousarray(values, np.int32).tobytes()
  values = np.ascontiguousarray(values, np.float32)
  if kind == "bfloat16":
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7fff) + (bits >> np.uint32(16) & np.uint32(1))
              ) >> np.uint32(16)
    return rounded.astype(np.uint16).tobytes()
  return values.astype(kind).tobytes()


def decode(raw, kind, shape):
  """Returns bytes as float64 of a shape."""
  if kind == "bfloat16":
    bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << np.uint32(16)
    values = bits.view(np.float32)
  else:
    values = np.frombuffer(raw, kind)
  return values.astype(np.float64).reshape(shape)


def rounded(values, kind):
  """Returns values as a type has them, float64."""
  return decode(encode(values, kind), kind, np.shape(values))


class Array(object):
  """A row-major array on the device."""

  def __init__(self, pointer, kind, shape):
    self.pointer = pointer
    self.kind = kind
    self.shape = tuple(shape)
    self.count = int(np.prod(self.shape, dtype=np.int64))
    self.bytes = self.count * _SIZES[kind]


class Gpu(object):
  """The first GPU, and the kernels' library.

  Attributes:
    shift: int, by how many values arrays begin after a multiple of 256 bytes.
    device: str, its name.
    types: int, how many of `TYPES` the compiler had.
  """

  def __init__(self, library):
    self._library = ctypes.CDLL(library)
    self._library.harness_error.restype = ctypes.c_char_p
    for name in ("bert_gpu_scratch", "bert_gpu_lamb_scratch",
                 "bert_gpu_global_norm_scratch"):
      getattr(self._library, name).restype = ctypes.c_int64
    self.types = self._library.harness_types()
    self._allocated = []
    self._patterns = {}
    self._blocks = None
    self.shift = 0
    text = ctypes.create_string_buffer(256)
    self.call("harness_describe", text, 256)
    self.device = text.value.decode().split("|")[0]

  def call(self, name, *arguments):
    """Calls a function of the library.

    Args:
      name: of the function.
      *arguments: ints, arrays (their pointers), None or ctypes values.

    Raises:
      GpuError: if it does not return 0.
    """
    code = self.ask(name, *arguments)
    if code:
      raise GpuError("%s: %s" % (
          name, self._library.harness_error(code).decode()))

  def ask(self, name, *arguments):
    """Calls a function and returns its int."""
    return getattr(self._library, name)(*[
        ctypes.c_void_p(one.pointer) if isinstance(one, Array) else
        ctypes.c_int64(one) if isinstance(one, (int, np.integer)) else one
        for one in arguments])

  def empty(self, shape, kind):
    """Returns an array filled with NaN, and a guard behind it too."""
    array = Array(None, kind, shape)
    shift = self.shift * _SIZES[kind]
    pointer = ctypes.c_void_p()
    size = array.bytes + shift + _GUARD
    self.call("harness_allocate", size, ctypes.byref(pointer))
    self._allocated.append(pointer.value)
    array.pointer = pointer.value + shift
    self.poison(array)
    return array

  def poison(self, array):
    """All bits of NaN are one, in all types."""
    self.call("harness_fill", array, 255, array.bytes + _GUARD)

  def array(self, values, kind):
    """Returns an array of these values."""
    array = self.empty(np.shape(values), kind)
    self.call("harness_copy", array, encode(values, kind), array.bytes)
    self.wait()
    return array

  def raw(self, array):
    """Returns an array's bytes.

    Raises:
      GpuError: if something was written behind it.
    """
    host = ctypes.create_string_buffer(array.bytes + _GUARD)
    self.call("harness_copy", host, array, array.bytes + _GUARD)
    self.wait()
    if host.raw[array.bytes:] != b"\xff" * _GUARD:
      raise GpuError("it wrote behind an output")
    return host.raw[:array.bytes]

  def wait(self):
    """Waits for all work.

    Raises:
      GpuError: if a kernel failed.
    """
    self.call("harness_wait")

  def release(self):
    """Frees all arrays."""
    for pointer in self._allocated:
      self.call("harness_free", ctypes.c_void_p(pointer))
    self._allocated = []

  def pattern(self, shape, kind):
    """Returns an array of random values in [0.1, 1], again and again."""
    array = self.empty(shape, kind)
    if kind not in self._patterns:
      values = np.random.RandomState(0).uniform(0.1, 1, _PATTERN)
      self._patterns[kind] = encode(values, kind)
    self._repeat(self._patterns[kind], array.pointer, array.bytes)
    return array

  def _repeat(self, source, pointer, size):
    """Fills memory with bytes, again and again."""
    start = ctypes.c_void_p(pointer)
    done = min(size, len(source))
    self.call("harness_copy", start, source, done)
    while done < size:
      part = min(done, size - done)
      self.call("harness_copy", ctypes.c_void_p(pointer + done), start, part)
      done += part
    self.wait()

  def copy_block(self):
    """Copies a large block on the device."""
    if self._blocks is None:
      self._blocks = []
      for _ in range(2):
        pointer = ctypes.c_void_p()
        self.call("harness_allocate", _BLOCK, ctypes.byref(pointer))
        self._repeat(np.random.RandomState(0).bytes(_PATTERN), pointer.value,
                     _BLOCK)
        self._blocks.append(pointer)
    self.call("harness_copy", *(self._blocks + [_BLOCK]))

  def copy_bandwidth(self, rounds):
    """Returns what a copy on the device reads and writes, bytes a second."""
    return 2 * _BLOCK / self.median_seconds(self.copy_block, self.copy_block,
                                            rounds, 2)

  def median_seconds(self, work, lead, rounds, repeats):
    """Returns the median duration of `work`, of `rounds` times `repeats`.

    Args:
      work: function that launches kernels.
      lead: function that launches what takes longer than launching does, so
        that the device never waits for the host.
      rounds: int.
      repeats: int.
    """
    events = [ctypes.c_void_p(), ctypes.c_void_p()]
    for event in events:
      self.call("harness_event", ctypes.byref(event))
    work()
    self.wait()
    seconds = []
    for _ in range(rounds):
      lead()
      self.call("harness_record", events[0])
      for _ in range(repeats):
        work()
      self.call("harness_record", events[1])
      self.wait()
      elapsed = ctypes.c_float()
      self.call("harness_elapsed", events[0], events[1], ctypes.byref(elapsed))
      seconds.append(elapsed.value / 1e3 / repeats)
    return sorted(seconds)[len(seconds) // 2]
