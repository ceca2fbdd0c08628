"""Bytes that are no gRPC, streams that are reset, segments that are traps: refused; all goes on."""

import fcntl
import os
import random
import socket
import struct
import time

import grpc
import psutil
import pytest
from node_process import Node, eventually
from raw_client import (BLOCK_BYTES, SEALS, Segment, Session, chain, content, count_right, pages,
                        pb,
                        segment_call)

RSS_GROWTH_MAX = 320 << 20  # gRPC 1.51 spends about 7 KB on each ping of a flood until it hangs up
SEED = 20261124
KEYS = chain("hostile", 8)


@pytest.fixture(scope="module")
def server():
    node = Node(host_bytes="16MiB", max_segments=4, max_segment_bytes="8MiB").start()
    yield node
    node.remove()


@pytest.fixture(autouse=True)
def survives(server):
    """The node serves as before, with no session, segment or descriptor left over."""
    process = psutil.Process(server.pid)
    with server.channel() as channel, Session(channel) as session:
        session.store(KEYS)
        assert session.fetch(KEYS) == len(KEYS)
    eventually(lambda: server.status().sessions == 0, 2, "sessions end")
    before, rss = process.num_fds(), server.rss_bytes()
    yield
    eventually(lambda: server.status().sessions == 0, 3, "sessions end")
    assert server.process.poll() is None, server.log
    with server.channel() as channel, Session(channel) as session:
        assert session.fetch(KEYS) == len(KEYS)
    eventually(lambda: process.num_fds() <= before + 2, 5, "descriptors are closed")
    assert server.status().counters["fq_segments"] == 0
    assert server.rss_bytes() < rss + RSS_GROWTH_MAX


def connect(server) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(5)
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


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I",
        stream) + body


SETTINGS = frame(4, 0, 0)


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


HEADERS = (b"\x83\x86" + b"\x04" + text(b"/flashquant.v1.KvCache/Session") + b"\x01" + text(b"node")
           + b"\x0f\x10" + text(b"application/grpc") + b"\x00" + text(b"te") + text(b"trailers"))

NO_GRPC = {
    "nothing": b"",
    "http 1.1": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "tls hello": bytes.fromhex("16030100c8010000c40303") + b"\x11" * 193,
    "random": random.Random(SEED).randbytes(1 << 20),
    "preface, then random": PREFACE + random.Random(SEED).randbytes(1 << 20),
    "huge frame": PREFACE + SETTINGS + b"\xff\xff\xff\x01\x04\0\0\0\1" + b"h" * (1 << 20),
    "bad hpack": PREFACE + SETTINGS + frame(1, 4, 1, b"\xff" * 64),
    "large headers": PREFACE + SETTINGS + frame(1, 4, 1, HEADERS + 400 * (
        b"\x00" + text(b"x" * 20) + text(b"y" * 100)))[:16384],
    "data without headers": PREFACE + SETTINGS + frame(0, 1, 1, b"\0\0\0\0\1x"),
    "window overflow": PREFACE + SETTINGS + 3 * frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    "settings flood": PREFACE + SETTINGS * 20_000,
    "ping flood": PREFACE + SETTINGS + frame(6, 0, 0, b"12345678") * 20_000,
    "message longer than its frame": PREFACE + SETTINGS + frame(1, 4, 1, HEADERS) + frame(
        0, 1, 1, b"\0\xff\xff\xff\xff" + b"x" * 100),
    "message that is no protobuf": PREFACE + SETTINGS + frame(1, 4, 1, HEADERS) + frame(
        0, 1, 1, b"\0\0\0\0\x20" + b"\xff" * 32),
    "compressed flag": PREFACE + SETTINGS + frame(1, 4, 1, HEADERS) + frame(
        0, 1, 1, b"\1\0\0\0\x20" + b"\xff" * 32),
}


@pytest.mark.parametrize("name", NO_GRPC)
def test_bytes_that_are_no_grpc(name, server):
    for _ in range(3):
        send_all(server, NO_GRPC[name])


def test_random_bytes_of_every_length(server):
    source = random.Random(SEED)
    for _ in range(200):
        send_all(server, PREFACE + SETTINGS + frame(1, 4, 1, HEADERS) + frame(
            source.randrange(10), source.randrange(256), source.randrange(4),
            source.randbytes(source.randrange(200))))


def test_thousand_streams_opened_and_reset(server):
    data = PREFACE + SETTINGS
    for i in range(1000):
        data += frame(1, 4, 2 * i + 1, HEADERS) + frame(3, 0, 2 * i + 1, b"\0\0\0\x08")
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
            future = session.stub.Lookup.future(
                pb.LookupRequest(session_id=session.id, keys=KEYS[0], no_lease=True), timeout=5)
            future.cancel()
        with pytest.raises(grpc.RpcError) as error:
            session.lookup(KEYS, timeout_s=-1)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_large_metadata_is_refused(server):
    with server.channel() as channel, Session(channel) as session:
        with pytest.raises(grpc.RpcError) as error:
            session.stub.Lookup(pb.LookupRequest(session_id=session.id, keys=KEYS[0]),
                                metadata=[("x", "y" * (64 << 10))], timeout=5)
        assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                      grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


def test_unknown_method_is_unimplemented(server):
    with server.channel() as channel:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/flashquant.v1.KvCache/Format")(b"", timeout=5)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def socketpair_fd() -> int:
    return socket.socketpair()[0].detach()


def regular_file_fd() -> int:
    fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(fd, 1 << 20)
    return fd


def memfd(size: int, seals: int) -> int:
    return os.dup(Segment(size, seals).fd)


INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED.value[0]
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
SIZE = 1 << 20
# name -> (operation, segment id, size told, descriptors, status, what the text names)
PACKETS = {
    "not sealed": (1, 0, SIZE, lambda: [memfd(SIZE, 0)], INVALID, "seal"),
    "not sealed against shrinking": (1, 0, SIZE, lambda: [memfd(SIZE, fcntl.F_SEAL_GROW)], INVALID,
                                     "seal"),
    "sealed against writing": (1, 0, SIZE, lambda: [sealed_against_writing()], INVALID, ""),
    "size told wrong": (1, 0, SIZE * 2, lambda: [memfd(SIZE, SEALS)], INVALID, str(SIZE)),
    "size 0": (1, 0, 0, lambda: [memfd(0, SEALS)], INVALID, ""),
    "size over the limit": (1, 0, 9 << 20, lambda: [memfd(9 << 20, SEALS)], EXHAUSTED,
                            str(9 << 20)),
    "size overflows": (1, 0, 2**64 - 1, lambda: [memfd(SIZE, SEALS)], None, ""),
    "a file": (1, 0, SIZE, lambda: [regular_file_fd()], INVALID, ""),
    "a socket": (1, 0, SIZE, lambda: [socketpair_fd()], INVALID, ""),
    "no descriptor": (1, 0, SIZE, list, INVALID, "descriptor"),
    "two descriptors": (1, 0, SIZE, lambda: [memfd(SIZE, SEALS), memfd(SIZE, SEALS)], INVALID,
                        "descriptor"),
    "many descriptors": (1, 0, SIZE, lambda: [memfd(SIZE, SEALS) for _ in range(100)], INVALID, ""),
    "unknown operation": (9, 0, SIZE, lambda: [memfd(SIZE, SEALS)], INVALID, "9"),
    "unregister of nothing": (2, 77, 0, list, NOT_FOUND, "77"),
    "unregister with a descriptor": (2, 1, 0, lambda: [memfd(SIZE, SEALS)], INVALID, ""),
}


def sealed_against_writing() -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_WRITE)
    return fd


@pytest.mark.parametrize("name", PACKETS)
def test_segment_packet_is_refused(name, server):
    operation, segment_id, size, make, code, part = PACKETS[name]
    descriptors = make()
    with server.channel() as channel, Session(channel) as session:
        packet = struct.pack("<16sIIQ", session.id, operation, segment_id, size)
        status, given, reason = segment_call(session.opened.segment_socket, packet, descriptors)
        assert given == 0 and status > 0, (status, given, reason)
        assert code is None or status == code, (status, reason)
        assert part in reason, reason
    for fd in descriptors:
        os.close(fd)


@pytest.mark.parametrize("packet", [b"", b"x", b"x" * 31, b"x" * 33, b"x" * 4096], ids=len)
def test_segment_packet_of_wrong_size(packet, server):
    path = str(server.socket) + ".seg"
    try:
        status, given, _ = segment_call(path, packet, [])
        assert given == 0 and status != 0
    except (ConnectionError, TimeoutError):
        pass  # hung up


def test_segment_of_nobodys_session(server):
    segment = Segment(SIZE)
    status, given, _ = segment.register(str(server.socket) + ".seg", b"n" * 16)
    assert (status, given) == (UNAUTHENTICATED, 0)


def test_segments_past_their_limit(server):
    with server.channel() as channel, Session(channel) as session:
        path = session.opened.segment_socket
        results = [Segment(SIZE).register(path, session.id)[0] for _ in range(5)]
        assert results == [0, 0, 0, 0, EXHAUSTED]


def test_pages_outside_their_segment_and_a_foreign_segment(server):
    segment = Segment(2 * BLOCK_BYTES)
    with server.channel() as channel, Session(channel) as session, Session(channel) as other:
        status, number, reason = segment.register(session.opened.segment_socket, session.id)
        assert status == 0, reason
        good = pages(2, segment_id=number)
        for block, key in enumerate(KEYS[:2]):
            segment.memory[block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES] = content(key)
        fresh = chain("from a segment", 2)
        for where in (pages(2, segment_id=number, first=1), pages(2, number, first=2**40)):
            with pytest.raises(grpc.RpcError) as error:
                session.store(fresh, pages=where, payload=b"")
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert str(2 * BLOCK_BYTES) in error.value.details()
        with pytest.raises(grpc.RpcError) as error:
            other.store(fresh, pages=good, payload=b"")
        assert "segment" in error.value.details()
        lease = session.lookup(KEYS).lease_id
        request = pb.LoadRequest(session_id=session.id, lease_id=lease, block_count=2,
                                 pages=pages(2, segment_id=number, first=1))
        with pytest.raises(grpc.RpcError) as error:
            session.stub.Load(request, timeout=5)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert segment.memory[:BLOCK_BYTES] == content(KEYS[0])  # nothing was written


def test_load_writes_inside_its_places_only(server):
    guard = b"\xa5" * BLOCK_BYTES
    segment = Segment(4 * BLOCK_BYTES)
    segment.memory[:] = guard * 4
    with server.channel() as channel, Session(channel) as session:
        status, number, reason = segment.register(session.opened.segment_socket, session.id)
        assert status == 0, reason
        lease = session.lookup(KEYS).lease_id
        session.stub.Load(pb.LoadRequest(session_id=session.id, lease_id=lease, block_count=2,
                                         pages=pages(2, segment_id=number, first=1)), timeout=5)
    assert segment.memory[:BLOCK_BYTES] == guard and segment.memory[3 * BLOCK_BYTES:] == guard
    assert segment.memory[BLOCK_BYTES:3 * BLOCK_BYTES] == content(KEYS[0]) + content(KEYS[1])


def test_client_gone_in_the_middle_of_a_load_into_its_segment(server):
    for _ in range(20):
        segment = Segment(8 * BLOCK_BYTES)
        with server.channel() as channel:
            session = Session(channel)
            status, number, reason = segment.register(session.opened.segment_socket, session.id)
            assert status == 0, reason
            lease = session.lookup(KEYS).lease_id
            session.stub.Load.future(pb.LoadRequest(
                session_id=session.id, lease_id=lease, block_count=8,
                pages=pages(8, segment_id=number)), timeout=5)
            time.sleep(random.Random(SEED).uniform(0, 0.002))
            session.__exit__()


def test_slow_reader_does_not_hold_up_others(server):
    with server.channel() as channel, Session(channel) as slow:
        leases = [slow.lookup(KEYS).lease_id for _ in range(4)]
        futures = [slow.stub.Load.future(pb.LoadRequest(
            session_id=slow.id, lease_id=lease, block_count=8), timeout=10) for lease in leases]
        with server.channel() as other, Session(other) as session:
            begin = time.monotonic()
            assert session.fetch(KEYS) == len(KEYS)
            assert time.monotonic() - begin < 2
        for future in futures:
            reply = future.result()
            assert len(reply.payload) == 8 * BLOCK_BYTES
        assert count_right(KEYS, slow.load(leases[0], 8)) == 8
