"""Client against a node that is silent, rude, dead or back: misses in time, and recovery."""

import dataclasses
import os
import time

import grpc
import pytest

import fake_node
from fake_node import PATIENT, READY_S
from flashquant.breaker import CircuitBreaker
from flashquant.client import Client
from flashquant.segment import Segment, SegmentError
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.wire import Profile

LOOKUP_S = 0.1
HASTY = dataclasses.replace(PATIENT, lookup_s=LOOKUP_S, store_s=0.2)
KEY = b"k" * 32
# P5 allows deadline + 10 ms; the rest is for a test machine with more threads than processors.
SLACK_S = 0.010 + 0.040


@pytest.fixture(name="node", params=["grpc", "call socket"])
def node_fixture(tmp_path, request):
    with fake_node.running(tmp_path, request.param == "call socket") as node:
        yield node


@pytest.fixture(name="client")
def client_fixture(node):
    with fake_node.connected(node, PATIENT) as client:
        yield client


@pytest.fixture(name="hasty")
def hasty_fixture(node):
    """A client that does not wait long. Only for a node that will not answer."""
    with fake_node.connected(node, HASTY) as client:
        yield client


def lookup(client):
    return client.lookup(KEY, Profile.COMPACT)


def misses_within(client, limit_s):
    """Whether a lookup misses so soon: a machine that stands still now and then may hold up any
    one of them, but not all."""
    deadline_s = time.monotonic() + 60
    while (begin_s := time.monotonic()) < deadline_s:
        assert lookup(client) is None
        if time.monotonic() - begin_s <= limit_s:
            return True
        client.lookup_answered()  # a third time-out in a row would break the link
    return False


def wait_until(condition, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert condition()


def test_lookup_stored_key_matches(node, client):
    node.stored.add(KEY)
    match = lookup(client)
    assert (match.matched_blocks, match.usable_blocks, match.stored_bytes) == (1, 1, (100,))


@pytest.mark.parametrize("context_tokens,warnings", [(0, 0), (8191, 0), (8192, 1)])
def test_context_twice_the_calibrated_length_warns_once(node, caplog, context_tokens, warnings):
    node.calibrated_tokens = 4096
    spec = dataclasses.replace(fake_node.SPEC, context_tokens=context_tokens)
    client = Client(node.endpoint, spec, PATIENT)
    client.start()
    assert client.wait_ready(READY_S)
    client.break_link(client.link, "a second session")
    assert client.wait_ready(READY_S)
    client.close()
    found = [text for text in caplog.messages if "calibrated at 4096 tokens" in text]
    assert len(found) == warnings
    assert not found or "contexts of up to 8192 tokens" in found[0]


def test_store_ok_statuses_returned(client):
    request = pb.StoreRequest(session_id=client.link.session_id, keys=KEY)
    assert client.store(client.link, request) == [pb.BLOCK_STATUS_OK]


def test_make_client_node_absent_starts_nothing_and_misses_at_once(tmp_path):
    client = Client(f"unix://{tmp_path}/none", fake_node.SPEC, PATIENT)
    assert lookup(client) is None
    client.start()
    assert misses_within(client, SLACK_S)
    assert not client.wait_ready(0.3)
    client.close()


def test_lookup_silent_node_misses_within_deadline(node, hasty):
    node.stored.add(KEY)
    node.answering.clear()
    link = hasty.link
    assert misses_within(hasty, LOOKUP_S + SLACK_S)
    hasty.lookup_answered()
    assert [lookup(hasty) for _ in range(2)] == [None, None]
    assert hasty.link is link  # two time-outs are not a dead node


def test_lookup_three_timeouts_break_the_link_then_misses_are_instant(node, hasty):
    node.answering.clear()
    node.stalled.set()
    for _ in range(3):
        lookup(hasty)
    assert hasty.link is None
    assert misses_within(hasty, 0.01)


def test_store_timeout_breaks_the_link_at_once(node, hasty):
    link = hasty.link
    node.answering.clear()
    assert hasty.store(link, pb.StoreRequest(session_id=link.session_id, keys=KEY)) is None
    assert hasty.link is not link


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED,
                                  grpc.StatusCode.FAILED_PRECONDITION])
def test_call_refused_is_a_miss_and_keeps_the_link(node, client, code):
    node.fail_with = code
    link = client.link
    assert lookup(client) is None
    assert client.store(link, pb.StoreRequest(session_id=link.session_id, keys=KEY)) is None
    assert client.link is link


def test_node_restarted_client_reconnects_with_a_new_session(node, client):
    before = client.link.session_id
    node.stop()
    wait_until(lambda: client.link is None)
    assert lookup(client) is None
    node.stored.add(KEY)
    node.start()
    assert client.wait_ready(READY_S)
    assert client.link.session_id != before
    assert lookup(client).matched_blocks == 1


def test_other_fingerprint_no_session(node):
    node.fingerprint = bytes(32)
    client = Client(node.endpoint, fake_node.SPEC, PATIENT)
    client.start()
    wait_until(lambda: node.sessions == 2)  # it tries again, so the first has been refused
    assert client.link is None
    client.close()


def test_session_not_answered_close_is_bounded(node):
    node.stalled.set()
    client = Client(node.endpoint, fake_node.SPEC, PATIENT)
    client.start()
    assert not client.wait_ready(0.7)
    begin_s = time.monotonic()
    client.close()
    assert time.monotonic() - begin_s < PATIENT.connect_s / 2


def test_breaker_failures_double_the_wait_up_to_the_limit():
    now = [100.0]
    breaker = CircuitBreaker(lambda: now[0])
    assert breaker.closed and breaker.probe_wait_s() == 0
    waits = []
    for _ in range(8):
        breaker.failure()
        waits.append(round(breaker.probe_wait_s(), 3))
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0] and not breaker.closed
    now[0] += 5.0
    assert breaker.probe_wait_s() == 0 and not breaker.closed
    breaker.success()
    assert breaker.closed


def test_segment_no_socket_error_names_it_and_leaks_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SegmentError, match="none.sock"):
        Segment(1 << 20).register(str(tmp_path / "none.sock"), bytes(16), 0.2)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the map keeps one of its own


@pytest.mark.parametrize("label,profile", [("exact", Profile.EXACT),
                                           ("near-lossless", Profile.NEAR_LOSSLESS)])
def test_profile_label_parses(label, profile):
    assert Profile.parse(label) is profile and profile.label == label


def test_profile_unknown_label_names_choices():
    with pytest.raises(ValueError, match="exact, near-lossless, compact, universal"):
        Profile.parse("tiny")
