"""The call socket's client: what goes over it, what over gRPC; no call outlives its time."""

import dataclasses
import threading
import time

import grpc
import pytest

import fake_node
from fake_node import PATIENT, READY_S
from flashquant.call_socket import CallError, CallSocket
from flashquant.client import Client
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.wire import Profile

KEY = b"k" * 32
LONG_S = 60.0


@pytest.fixture(name="node")
def node_fixture(tmp_path):
    with fake_node.running(tmp_path, calls=True) as node:
        yield node


@pytest.fixture(name="client")
def client_fixture(node):
    with fake_node.connected(node, PATIENT) as client:
        yield client


def matched(client, keys=KEY):
    match = client.lookup(keys, Profile.COMPACT)
    return None if match is None else match.matched_blocks


def test_calls_go_over_the_socket(node, client):
    node.stored.add(KEY)
    assert matched(client) == 1
    assert client.store(client.link, pb.StoreRequest(keys=b"o" * 32)) == [pb.BLOCK_STATUS_OK]
    client.release(client.link, bytes(16))
    assert matched(client, b"o" * 32) == 1  # behind the reply to the release, which nobody took
    assert node.packets == 4


def test_long_message_goes_over_grpc(node, client):
    node.stored.add(KEY)
    keys = KEY * 3000  # 96 KB, the fake node takes 64
    assert matched(client, keys) == 3000
    assert node.packets == 0


def test_inline_load_goes_over_grpc(node, client):
    assert client.load(client.link, pb.LoadRequest(block_count=1)) is None  # the fake knows no Load
    assert node.packets == 0


def test_idle_connection_hung_up_goes_over_grpc(node, client):
    node.stored.add(KEY)
    node.hang_up()
    assert matched(client) == 1
    assert node.packets == 0
    assert client.link is not None


def test_no_greeting_calls_go_over_grpc(node):
    node.greets = False
    node.stored.add(KEY)
    client = Client(node.endpoint, fake_node.SPEC, dataclasses.replace(PATIENT, connect_s=0.5))
    client.start()
    assert client.wait_ready(READY_S)
    assert client.link.calls is None
    assert matched(client) == 1
    client.close()


def test_connect_without_greeting_ends_with_the_deadline(node):
    calls = CallSocket(node.call_path, LONG_S)
    held = calls.start("Lookup", pb.LookupRequest(keys=KEY), LONG_S)  # has the only connection
    node.greets = False
    begin_s = time.monotonic()
    with pytest.raises(CallError) as error:
        calls.start("Lookup", pb.LookupRequest(keys=KEY), 0.1).result()
    assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.1 <= time.monotonic() - begin_s < LONG_S / 2
    assert held.result().matched_blocks == 0
    calls.close()


def test_late_reply_is_not_taken_for_the_next_call(node):
    calls = CallSocket(node.call_path, LONG_S)
    node.answering.clear()
    with pytest.raises(CallError) as error:
        calls.start("Store", pb.StoreRequest(keys=KEY), 0.05).result()
    assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    node.answering.set()
    reply = calls.start("Lookup", pb.LookupRequest(keys=b"o" * 32), LONG_S).result()
    assert reply.matched_blocks == 0
    calls.close()


def test_close_ends_a_running_call(node):
    calls = CallSocket(node.call_path, LONG_S)
    node.answering.clear()
    call = calls.start("Lookup", pb.LookupRequest(keys=KEY), LONG_S)
    threading.Timer(0.05, calls.close).start()
    with pytest.raises(CallError) as error:
        call.result()
    assert error.value.code is grpc.StatusCode.CANCELLED
    assert calls.start("Lookup", pb.LookupRequest(keys=KEY), LONG_S) is None


def test_done_says_whether_the_reply_is_there(node):
    calls = CallSocket(node.call_path, LONG_S)
    node.answering.clear()
    call = calls.start("Lookup", pb.LookupRequest(keys=KEY), LONG_S)
    assert not call.done()
    node.answering.set()
    deadline_s = time.monotonic() + LONG_S / 2
    while not call.done() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert call.done() and call.result().matched_blocks == 0
    calls.close()
