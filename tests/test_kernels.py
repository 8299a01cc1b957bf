"""utils/kernels: which runs take the kernels of fused_ops, and what is said."""

import logging

import pytest

from fused_ops import library
from utils import kernels
from utils import stack
from utils.errors import UserError
from utils.logs import LOGGER


@pytest.fixture(name="machine")
def _machine(monkeypatch):
  """Function that sets what this machine has; `gpu` is its fault, or None."""
  def set_up(fault=None, **gpu):
    kernels.settle.cache_clear()
    monkeypatch.setattr(stack, "gpu_available", lambda: bool(gpu))
    monkeypatch.setattr(stack, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(library, "fault", lambda: fault)
    monkeypatch.setattr(library, "gpu_fault", lambda capability: {
        (9, 0): gpu.get("gpu")}[capability])
  # A runner that another test has called in this process switches it off.
  monkeypatch.setattr(LOGGER, "propagate", True)
  yield set_up
  kernels.settle.cache_clear()


CASES = [
    (dict(), False, None),
    (dict(), True, "XLA makes kernels of its own"),
    (dict(gpu=None), False, None),
    (dict(gpu="not checked here"), False, "not checked here"),
    (dict(gpu=None), True, "XLA makes kernels of its own"),
    (dict(fault="not built here"), False, "not built here")]


@pytest.mark.parametrize("has, use_xla, fault", CASES)
def test_auto_takes_them_where_it_can_and_says_why_not(
    machine, caplog, has, use_xla, fault):
  machine(**has)
  with caplog.at_level(logging.INFO, "bert"):
    assert kernels.settle("auto", use_xla) == (fault is None)
    kernels.settle("auto", use_xla)
  lines = [record.getMessage() for record in caplog.records]
  assert lines == ([] if fault is None else [
      "fused_ops: not taken, %s: the framework's own operations do the same"
      % fault])


@pytest.mark.parametrize("has, use_xla, fault", CASES)
def test_on_takes_them_or_is_an_error(machine, has, use_xla, fault):
  machine(**has)
  if fault is None:
    assert kernels.settle("on", use_xla)
  else:
    with pytest.raises(UserError, match="--fused_ops=on: " + fault):
      kernels.settle("on", use_xla)


@pytest.mark.parametrize("has, use_xla, fault", CASES)
def test_off_is_off_and_says_nothing(machine, caplog, has, use_xla, fault):
  machine(**has)
  with caplog.at_level(logging.INFO, "bert"):
    assert not kernels.settle("off", use_xla)
  assert not caplog.records


def test_library_that_cannot_be_loaded_is_told(monkeypatch, tmp_path):
  for content, words in ((None, "not built here"),
                         (b"no library", "cannot be loaded")):
    path = tmp_path / "libbert.so"
    if content:
      path.write_bytes(content)
    monkeypatch.setattr(library, "path", lambda path=path: path)
    for cached in (library.fault, library.load):
      cached.cache_clear()
    assert words in library.fault()
    assert "\n" not in library.fault()
  monkeypatch.undo()
  for cached in (library.fault, library.load):
    cached.cache_clear()


def test_gpu_takes_what_was_built_for_it_and_found_right(monkeypatch, tmp_path):
  monkeypatch.setattr(library, "path", lambda gpu=None: (
      tmp_path / ("libbert_gpu.so" if gpu else "libbert.so")))
  monkeypatch.setattr(library, "fault", lambda: None)
  assert "built for CPUs alone" in library.gpu_fault((9, 0))
  (tmp_path / "libbert_gpu.so").write_bytes(b"")
  assert "not checked on this GPU" in library.gpu_fault((9, 0))
  library.record_path().write_text("half of a rec")
  assert "not checked on this GPU" in library.gpu_fault((9, 0))
  library.record("sm_90", False)
  assert "found wrong on this GPU" in library.gpu_fault((9, 0))
  library.record("sm_90", True)
  assert library.gpu_fault((9, 0)) is None
  for other in ((8, 0), None):
    assert "not checked on this GPU" in library.gpu_fault(other)
