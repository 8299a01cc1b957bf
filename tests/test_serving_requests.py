"""Many requests at a time, and addresses, without a server."""

import time

import pytest

from utils import serving_client
from utils import serving_requests
from utils.errors import UserError

pytestmark = pytest.mark.once


class Fake:
  """A connection whose replies are the requests."""

  def infer(self, inputs, request_id):
    return inputs

  def close(self):
    pass


def test_no_more_is_made_than_is_asked_for():
  """Inputs wait to be made until there is room for them."""
  made, taken, most = [0], [0], [0]

  def jobs():
    for i in range(500):
      made[0] += 1
      most[0] = max(most[0], made[0] - taken[0])
      yield {"number": i}
  found = {}

  def take(number, outputs):
    found[number] = outputs["number"]
    taken[0] += 1
  outcome = serving_requests.Requests(
      Fake, serving_requests.RequestSettings(4, 0, 0), take).run(jobs())
  assert found == {i: i for i in range(500)}
  assert len(outcome.seconds) == 500 and outcome.stopped is None
  assert most[0] <= 3 * 4 + 1  # in the queue, in flight, in hand


class Slow(Fake):

  def infer(self, inputs, request_id):
    time.sleep(.005)
    return inputs


def test_all_together_end_in_time_at_a_server_that_keeps_up():
  outcome = serving_requests.Requests(
      Slow, serving_requests.RequestSettings(2, 0, .5),
      lambda *unused: None).run({} for _ in range(20000))
  assert outcome.stopped == "--timeout=0.5 seconds are over"
  assert len(outcome.seconds) < 20000


def test_what_is_done_by_the_way_is_done_at_a_server_that_keeps_up():
  ticks = []

  def jobs():
    for _ in range(20000):
      if len(ticks) == 3:
        return
      yield {}
    raise AssertionError("%d ticks in all that time" % len(ticks))
  serving_requests.Requests(
      Slow, serving_requests.RequestSettings(2, 0, 0), lambda *unused: None,
      lambda: ticks.append(1)).run(jobs())


class Fickle(Fake):

  def infer(self, inputs, request_id):
    if inputs["fails"]:
      raise serving_client.ServerFault("no")
    return inputs


@pytest.mark.parametrize("fails, stopped", [
    ([True, True, False] * 5, None),
    ([False, True, True, True, False], "no (asked 1 times)")])
def test_only_faults_in_a_row_end_it_all(fails, stopped):
  taken = []
  outcome = serving_requests.Requests(
      Fickle, serving_requests.RequestSettings(1, 0, 0),
      lambda number, outputs: taken.append(number)).run(
          {"fails": one} for one in fails)
  assert outcome.stopped == stopped
  assert sorted(outcome.failed) == [i for i, one in enumerate(fails) if one]
  assert taken == [i for i, one in enumerate(fails)
                   if not one and (stopped is None or i < 3)]


def test_pauses_double_and_differ():
  for attempt in range(1, 12):
    longest = min(serving_requests.FIRST_PAUSE * 2 ** (attempt - 1),
                  serving_requests.LONGEST_PAUSE)
    found = {serving_requests._pause(attempt) for _ in range(50)}
    assert len(found) > 10
    assert longest / 2 <= min(found) and max(found) <= longest


def test_a_fault_of_ours_is_not_hidden():
  def take(number, outputs):
    raise ZeroDivisionError
  with pytest.raises(ZeroDivisionError):
    serving_requests.Requests(
        Fake, serving_requests.RequestSettings(2, 0, 0), take).run(
            {} for _ in range(100))


@pytest.mark.parametrize("url,expected", [
    (None, "127.0.0.1:8001"), ("here", "here:8001"), ("here:1", "here:1"),
    ("[::1]", "[::1]:8001"), ("[::1]:9", "[::1]:9")])
def test_addresses(url, expected):
  assert serving_client.address(url, "grpc") == expected


@pytest.mark.parametrize("url", [
    "here:", ":1", "here:0", "here:65536", "here:99999", "here:\u00b2", "::1",
    "[::1", "a b:1", "http://here", "here:1\n", "here:1:2", "[here]:1"])
def test_no_addresses(url):
  with pytest.raises(UserError, match="(?s)--trtis_server_url=.*host:port,"):
    serving_client.address(url, "grpc")
