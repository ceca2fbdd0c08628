"""Bytes that are no gRPC and streams that are reset: refused; all goes on."""

import random
import socket

import grpc
import pytest
from hostile import KEYS, SEED
from http2 import HELLO, NO_SETTINGS, OPEN_SESSION, PREFACE, frame, literal
from node_process import WAIT_SECONDS
from raw_client import BLOCK_BYTES, Session, count_right, pb

pytestmark = pytest.mark.usefixtures("survives")


def connect(server) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(WAIT_SECONDS)
    peer.connect(str(server.socket))
    return peer


def send_all(server, data: bytes) -> None:
    """Sends as much as the node takes and waits for it to hang up, or a second."""
    with connect(server) as peer:
        try:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(1)
            while peer.recv(65536):
                pass
        except OSError:
            pass


NO_GRPC = {
    "nothing": b"",
    "http 1.1": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "tls hello": bytes.fromhex("16030100c8010000c40303") + b"\x11" * 193,
    "random": random.Random(SEED).randbytes(1 << 20),
    "preface, then random": PREFACE + random.Random(SEED).randbytes(1 << 20),
    "huge frame": HELLO + b"\xff\xff\xff\x01\x04\0\0\0\1" + b"h" * (1 << 20),
    "bad hpack": HELLO + frame(1, 4, 1, b"\xff" * 64),
    "large headers": HELLO + frame(1, 4, 1, OPEN_SESSION + 400 * (
        b"\x00" + literal(b"x" * 20) + literal(b"y" * 100)))[:16384],
    "data without headers": HELLO + frame(0, 1, 1, b"\0\0\0\0\1x"),
    "window overflow": HELLO + 3 * frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    "settings flood": PREFACE + NO_SETTINGS * 20_000,
    "ping flood": HELLO + frame(6, 0, 0, b"12345678") * 20_000,
    "message longer than its frame": HELLO + frame(1, 4, 1, OPEN_SESSION) + frame(
        0, 1, 1, b"\0\xff\xff\xff\xff" + b"x" * 100),
    "message that is no protobuf": HELLO + frame(1, 4, 1, OPEN_SESSION) + frame(
        0, 1, 1, b"\0\0\0\0\x20" + b"\xff" * 32),
    "compressed flag": HELLO + frame(1, 4, 1, OPEN_SESSION) + frame(
        0, 1, 1, b"\1\0\0\0\x20" + b"\xff" * 32),
}


@pytest.mark.parametrize("name", NO_GRPC)
def test_bytes_that_are_no_grpc(name, server):
    for _ in range(3):
        send_all(server, NO_GRPC[name])


def test_random_bytes_of_every_length(server):
    source = random.Random(SEED)
    for _ in range(200):
        send_all(server, HELLO + frame(1, 4, 1, OPEN_SESSION) + frame(
            source.randrange(10), source.randrange(256), source.randrange(4),
            source.randbytes(source.randrange(200))))


def test_thousand_streams_opened_and_reset(server):
    data = HELLO
    for i in range(1000):
        data += frame(1, 4, 2 * i + 1, OPEN_SESSION) + frame(3, 0, 2 * i + 1, b"\0\0\0\x08")
    for _ in range(3):
        send_all(server, data)


def test_many_connections_that_say_nothing(server):
    peers = [connect(server) for _ in range(200)]
    with server.channel() as channel, Session(channel) as session:
        assert session.fetch(KEYS) == len(KEYS)
    for peer in peers:
        peer.close()


def test_calls_given_up_at_once(server):
    with server.channel() as channel, Session(channel) as session:
        for i in range(200):
            request = pb.LookupRequest(session_id=session.id, keys=KEYS[0], no_lease=True)
            future = session.stub.Lookup.future(request, timeout=WAIT_SECONDS)
            future.cancel()
        with pytest.raises(grpc.RpcError) as error:
            session.lookup(KEYS, timeout_s=-1)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_large_metadata_is_refused(server):
    with server.channel() as channel, Session(channel) as session:
        with pytest.raises(grpc.RpcError) as error:
            session.stub.Lookup(pb.LookupRequest(session_id=session.id, keys=KEYS[0]),
                                metadata=[("x", "y" * (64 << 10))], timeout=WAIT_SECONDS)
        assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                      grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


def test_unknown_method_is_unimplemented(server):
    with server.channel() as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/flashquant.v1.KvCache/Format")(b"", timeout=WAIT_SECONDS)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_slow_reader_does_not_hold_up_others(server):
    with server.channel() as channel, Session(channel) as slow:
        leases = [slow.lookup(KEYS).lease_id for _ in range(4)]
        futures = [slow.stub.Load.future(
            pb.LoadRequest(session_id=slow.id, lease_id=lease, block_count=8),
            timeout=WAIT_SECONDS) for lease in leases]
        with server.channel() as other, Session(other) as session:
            assert session.fetch(KEYS) == len(KEYS)
        for future in futures:
            reply = future.result()
            assert len(reply.payload) == 8 * BLOCK_BYTES
        assert count_right(KEYS, slow.load(leases[0], 8)) == 8
