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
  """Function that sets what this machine has."""
  def set_up(gpu=False, fault=None):
    kernels.settle.cache_clear()
    monkeypatch.setattr(stack, "gpu_available", lambda: gpu)
    monkeypatch.setattr(library, "fault", lambda: fault)
  # A runner that another test has called in this process switches it off.
  monkeypatch.setattr(LOGGER, "propagate", True)
  yield set_up
  kernels.settle.cache_clear()


CASES = [
    (dict(), False, None),
    (dict(), True, "XLA makes kernels of its own"),
    (dict(gpu=True), False, "they are for CPUs"),
    (dict(gpu=True), True, "XLA makes kernels of its own"),
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
