"""What all tests share: the root on the path, slow tests, real data."""

import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true",
                   help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
  slow = pytest.mark.skip(reason="takes minutes; run with --slow")
  earlier = os.environ.get("BERT_TESTED")  # of scripts/test.sh
  again = pytest.mark.skip(
      reason="of bash alone, and passed beside the tests of %s" % earlier)
  for item in items:
    if item.get_closest_marker("slow") and not config.getoption("--slow"):
      item.add_marker(slow)
    if item.get_closest_marker("bash_alone") and earlier:
      item.add_marker(again)


@pytest.fixture(scope="session")
def root():
  """Folder of the checkout."""
  return ROOT


@pytest.fixture(scope="session")
def shared_data():
  """Folder with real data beside the checkout; skips where there is none."""
  path = ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip("no real data beside the checkout (../shared/data)")
  return path
