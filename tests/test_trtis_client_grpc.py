"""The client's faults over gRPC; test_trtis_client.py has those over HTTP."""

import collections
import contextlib
import subprocess

import pytest

from test_trtis_client import check_answers
from test_trtis_client import client
from test_trtis_client import error
from test_trtis_client import expected  # pylint: disable=unused-import
from test_trtis_client import place  # pylint: disable=unused-import
from test_trtis_client import row
from test_trtis_client import SEQ_LENGTH
from trtis_server import environment
from trtis_server import ROOT

pytestmark = pytest.mark.once


@contextlib.contextmanager
def grpc_server(*faults):
  """A server over gRPC with `faults`, such as "INTERNAL:3"; yields its url."""
  process = subprocess.Popen(
      [str(environment("client") / "bin" / "python"),
       str(ROOT / "tests/trtis_grpc_stand_in.py"), str(SEQ_LENGTH)]
      + list(faults), stdout=subprocess.PIPE, universal_newlines=True)
  try:
    yield collections.namedtuple("Server", "url")(
        "127.0.0.1:%d" % int(process.stdout.readline()))
  finally:
    process.kill()
    process.wait()


def test_faults_that_pass(  # pylint: disable=redefined-outer-name
    place, tmp_path, expected):
  codes = ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED",
           "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "HANG"]
  with grpc_server(*("%s:%d" % (code, i + 2)
                     for i, code in enumerate(codes))) as server:
    done = client(place, server, tmp_path, protocol="grpc", request_timeout=5,
                  max_retries=len(codes))
  assert done.returncode == 0, done.stderr
  check_answers(tmp_path, expected)
  assert row(tmp_path)["retries"] >= len(codes)


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND",
                                  "PERMISSION_DENIED"])
def test_refusals(  # pylint: disable=redefined-outer-name
    place, tmp_path, code):
  with grpc_server(code + ":1") as server:
    line = error(client(place, server, tmp_path, protocol="grpc",
                        concurrency=1), 69)
  assert "9 of 11" in line
  assert "the server refuses: as told: %s" % code in line
