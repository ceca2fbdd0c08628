"""Segments that are traps, packets to their socket that are no requests: refused; all goes on."""

import fcntl
import os
import random
import socket
import struct
import time

import grpc
import pytest
from hostile import KEYS, SEED
from node_process import WAIT_SECONDS
from raw_client import (BLOCK_BYTES, SEALS, Segment, Session, chain, content, pages, pb,
                        segment_call)

pytestmark = pytest.mark.usefixtures("survives")


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
            session.stub.Load(request, timeout=WAIT_SECONDS)
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
        request = pb.LoadRequest(session_id=session.id, lease_id=lease, block_count=2,
                                 pages=pages(2, segment_id=number, first=1))
        session.stub.Load(request, timeout=WAIT_SECONDS)
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
                pages=pages(8, segment_id=number)), timeout=WAIT_SECONDS)
            time.sleep(random.Random(SEED).uniform(0, 0.002))
            session.__exit__()
