"""Every field of every request empty, long, zero, overflowing, unknown; ids that are nobody's.

Each case gets its status with the field and both values; afterwards the node holds what it held.
"""

import math
import struct
import time

import grpc
import pytest
from node_process import WAIT_SECONDS, Node
from raw_client import (BLOCK_BYTES, Session, chain, content, descriptor, layout, open_request,
                        pages, pb)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNKNOWN_SESSION = grpc.StatusCode.UNAUTHENTICATED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
MAX = {32: 2**32 - 1, 64: 2**64 - 1}
BLOCKS_MAX = 64  # --max-blocks-per-call below
RSS_GROWTH_MAX = 96 << 20
NAMESPACES_MAX = 8
KEYS = chain("bad input", 4)


@pytest.fixture(scope="module")
def server():
    node = Node(host_bytes="16MiB", max_blocks_per_call=BLOCKS_MAX, max_inline_bytes="8MiB",
                max_sessions=8, max_leases_per_session=16, max_namespaces=NAMESPACES_MAX).start()
    yield node
    node.remove()


@pytest.fixture(scope="module")
def session(server):
    with server.channel() as channel, Session(channel) as session:
        session.store(KEYS)
        session.fetch(KEYS)
        yield session


def held(node: Node) -> dict:
    """What a refused call must not change."""
    status = node.status()
    fields = {name: getattr(status, name)
              for name in ("blocks", "sessions", "leases", "host_used_bytes", "state")}
    names = ("fq_blocks_stored_total", "fq_blocks_loaded_total", "fq_blocks_missed_total",
             "fq_evicted", "fq_segments", "fq_namespaces", "fq_store_reserved")
    return fields | {k: v for k, v in status.counters.items() if k.startswith(names)}


def settled(server, wanted: dict) -> dict:
    """What the node holds, as soon as it is `wanted` or after WAIT_SECONDS: a session ends some
    time after its client has left."""
    end = time.monotonic() + WAIT_SECONDS
    while (found := held(server)) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture
def unchanged(server, session):
    """The node holds afterwards what it held before, answers, and has not grown."""
    before, rss = held(server), server.rss_bytes()
    yield
    assert server.process.poll() is None, server.log
    assert settled(server, before) == before
    assert session.fetch(KEYS) == len(KEYS)
    assert server.rss_bytes() < rss + RSS_GROWTH_MAX


def expect(call, code: grpc.StatusCode, parts: list[str]) -> None:
    """`call` is refused with this status, and its text names these."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == code, error.value.details()
    for part in parts:
        assert part in error.value.details(), error.value.details()


def with_layout(**changes: object) -> pb.Pages:
    """Good places, a layout with one field changed."""
    result = pages(1)
    for name, value in changes.items():
        setattr(result.layout, name, value)
    return result


def with_place(**changes: object) -> pb.Pages:
    """A good layout, one place."""
    return pb.Pages(layout=layout(), places=[pb.BlockPlace(**changes)])


DESCRIPTOR_CASES = [
    ({"model": ""}, ["namespace_descriptor.model", "0", "1..256"]),
    ({"model": "m" * 257}, ["namespace_descriptor.model", "257", "256"]),
    ({"weights_digest": "d" * 129}, ["weights_digest", "129", "128"]),
    ({"layers": 0}, ["namespace_descriptor.layers", "0", "1024"]),
    ({"layers": 1025}, ["namespace_descriptor.layers", "1025", "1024"]),
    ({"layers": MAX[32]}, ["namespace_descriptor.layers", str(MAX[32])]),
    ({"kv_heads": 0}, ["namespace_descriptor.kv_heads", "0"]),
    ({"kv_heads": MAX[32]}, ["namespace_descriptor.kv_heads", str(MAX[32])]),
    ({"head_size": 0}, ["namespace_descriptor.head_size", "0", "64"]),
    ({"head_size": 80}, ["namespace_descriptor.head_size", "80", "64"]),
    ({"head_size": MAX[32]}, ["namespace_descriptor.head_size", str(MAX[32])]),
    ({"dtype": 0}, ["namespace_descriptor.dtype", "0"]),
    ({"dtype": 99}, ["namespace_descriptor.dtype", "99"]),
    ({"dtype": -1}, ["namespace_descriptor.dtype", "-1"]),
    ({"rope": "r" * 1025}, ["namespace_descriptor.rope", "1025", "1024"]),
    ({"codec_set_id": b"x"}, ["codec_set_id", "1", "32"]),
    ({"codec_set_id": b"x" * 33}, ["codec_set_id", "33", "32"]),
    ({"extra": {str(i): "" for i in range(33)}}, ["extra", "33", "32"]),
    ({"extra": {"k" * 257: ""}}, ["extra", "257", "256"]),
    ({"extra": {"k": "v" * 257}}, ["extra", "257", "256"]),
]
SESSION_CASES = [({"namespace_descriptor": descriptor(**changes)}, parts)
                 for changes, parts in DESCRIPTOR_CASES] + [
    ({"namespace_name": ""}, ["namespace_name", "0", "1..128"]),
    ({"namespace_name": "n" * 129}, ["namespace_name", "129", "128"]),
    ({"namespace_name": "a b"}, ["namespace_name", "a b"]),
    ({"namespace_name": "a\0b"}, ["namespace_name", "only"]),
    ({"namespace_name": "n\u00e4he"}, ["namespace_name", "only"]),
    ({"namespace_descriptor": None}, ["namespace_descriptor", "required"]),
    ({"range": None}, ["range", "required"]),
    ({"range": pb.SlabRange()}, ["range.layer_end", "0"]),
    ({"range": pb.SlabRange(layer_end=3, head_end=2)}, ["range.layer_end", "3", "2"]),
    ({"range": pb.SlabRange(layer_end=MAX[32], head_end=2)}, ["range.layer_end", str(MAX[32])]),
    ({"range": pb.SlabRange(layer_begin=2, layer_end=2, head_end=2)}, ["range.layer_begin", "2"]),
    ({"range": pb.SlabRange(layer_end=2, head_begin=9, head_end=2)}, ["range.head_begin", "9"]),
    ({"range": pb.SlabRange(layer_end=2, head_end=5)}, ["range.head_end", "5", "2"]),
    ({"client_name": "c" * 129}, ["client_name", "129", "128"]),
]


@pytest.mark.parametrize("changes, parts", SESSION_CASES, ids=str)
def test_session(changes, parts, server, unchanged):
    with server.channel() as channel:
        expect(lambda: Session(channel, open_request(**changes)), INVALID, parts)


def store_cases() -> list[tuple]:
    """(changes to a good one-block request, status, what the text names)."""
    strides = ("layer_stride", "head_stride", "k_token_stride", "k_channel_stride",
               "v_token_stride", "v_channel_stride")
    offsets = ("k_offset", "v_offset")
    cases = [({"pages": with_layout(**{f: value})}, INVALID, [part])
             for f in (*strides, *offsets)
             for value, part in ((1, f), (MAX[64], f), (MAX[64] - 1, ""), (2**63, ""))]
    cases += [({"pages": with_layout(**{f: 0})}, INVALID, [f, "0"]) for f in strides]
    cases += [({"pages": with_layout(tokens_per_chunk=n)}, INVALID, ["tokens_per_chunk", str(n)])
              for n in (0, 1, 7, 63, 512, MAX[32])]
    cases += [({"profile": n}, INVALID, ["profile", str(n)]) for n in (0, 5, 99, -1)]
    cases += [({"keys": key}, INVALID, ["keys", str(len(key)), "32"])
              for key in (b"", b"k", b"k" * 31, b"k" * 33, b"k" * 65536 + b"k")]
    return cases + [
        ({"keys": b"k" * 32 * (BLOCKS_MAX + 1)}, EXHAUSTED, ["65", "max-blocks-per-call", "64"]),
        ({"keys": b"k" * 64}, INVALID, ["places", "1", "2"]),
        ({"profile": pb.PROFILE_COMPACT}, PRECONDITION, ["codec set"]),
        ({"profile": pb.PROFILE_NEAR_LOSSLESS}, PRECONDITION, ["codec set"]),
        ({"first_block_index": MAX[32]}, INVALID, ["first_block_index", str(MAX[32])]),
        ({"preceding_keys": b"p" * 31}, INVALID, ["preceding_keys", "31"]),
        ({"preceding_keys": b"p" * 96, "first_block_index": 9}, INVALID, ["preceding_keys", "96"]),
        ({"preceding_keys": b"p" * 64, "first_block_index": 1}, INVALID, ["preceding_keys", "2"]),
        ({"pages": None}, INVALID, ["pages", "required"]),
        ({"pages": pb.Pages(places=[pb.BlockPlace(chunk_offsets=[0])])}, INVALID, ["pages.layout"]),
        ({"pages": pages(0)}, INVALID, ["places", "0", "1"]),
        ({"pages": pages(2)}, INVALID, ["places", "2", "1"]),
        ({"pages": with_place()}, INVALID, ["chunk_offsets", "0", "1"]),
        ({"pages": with_place(chunk_offsets=[0, 0])}, INVALID, ["chunk_offsets", "2", "1"]),
        ({"pages": with_place(chunk_offsets=[1])}, INVALID, ["chunk_offsets[0]", "1"]),
        ({"pages": with_place(chunk_offsets=[2])}, INVALID, ["chunk_offsets[0]", str(BLOCK_BYTES)]),
        ({"pages": with_place(chunk_offsets=[MAX[64] - 1])}, INVALID, ["chunk_offsets[0]"]),
        ({"pages": with_place(chunk_offsets=[0], first_token=1)}, INVALID, ["first_token", "1"]),
        ({"pages": with_place(chunk_offsets=[0], first_token=64)}, INVALID, ["first_token", "64"]),
        ({"pages": pages(1, segment_id=7)}, INVALID, ["segment_id"]),
        ({"pages": pages(1, segment_id=7), "payload": b""}, INVALID, ["segment_id", "7"]),
        ({"payload": b""}, INVALID, ["0"]),
        ({"payload": b"x" * (BLOCK_BYTES - 1)}, INVALID, [str(BLOCK_BYTES - 1), str(BLOCK_BYTES)]),
        ({"payload": b"x" * ((8 << 20) + 1)}, EXHAUSTED, [str((8 << 20) + 1), str(8 << 20)]),
        ({"payload": b"x" * (13 << 20)}, EXHAUSTED, []),
        ({"session_id": b""}, INVALID, ["session_id", "0", "16"]),
        ({"session_id": b"s" * 17}, INVALID, ["session_id", "17", "16"]),
        ({"session_id": b"s" * 16}, UNKNOWN_SESSION, []),
    ]


@pytest.mark.parametrize("changes, code, parts", store_cases(), ids=lambda v: str(v)[:60])
def test_store(changes, code, parts, session, unchanged):
    key = chain("never stored", 1)
    fields = {"session_id": session.id, "profile": pb.PROFILE_EXACT, "keys": key[0],
              "pages": pages(1), "payload": content(key[0])}
    request = pb.StoreRequest(**fields | changes)
    expect(lambda: session.stub.Store(request, timeout=WAIT_SECONDS), code, parts)
    assert session.lookup(key).matched_blocks == 0


@pytest.mark.parametrize("changes, code, parts", [
    ({"keys": b""}, INVALID, ["keys", "0", "32"]),
    ({"keys": b"k" * 33}, INVALID, ["keys", "33", "32"]),
    ({"keys": b"k" * 32 * (BLOCKS_MAX + 1)}, EXHAUSTED, ["65", "64"]),
    ({"min_profile": 4}, INVALID, ["min_profile", "4"]),
    ({"min_profile": 99}, INVALID, ["min_profile", "99"]),
    ({"min_profile": -1}, INVALID, ["min_profile", "-1"]),
    ({"session_id": b""}, INVALID, ["session_id", "0", "16"]),
    ({"session_id": b"s" * 16}, UNKNOWN_SESSION, []),
], ids=lambda v: str(v)[:60])
def test_lookup(changes, code, parts, session, unchanged):
    fields = {"session_id": session.id, "keys": KEYS[0]}
    request = pb.LookupRequest(**fields | changes)
    expect(lambda: session.stub.Lookup(request, timeout=WAIT_SECONDS), code, parts)


@pytest.fixture(scope="module")
def lease(session) -> bytes:
    """Of four blocks."""
    return session.lookup(KEYS).lease_id


@pytest.mark.parametrize("changes, code, parts", [
    ({"lease_id": b""}, INVALID, ["lease_id", "0", "16"]),
    ({"lease_id": b"l" * 17}, INVALID, ["lease_id", "17", "16"]),
    ({"lease_id": b"l" * 16}, NOT_FOUND, ["lease"]),
    ({"block_count": 0}, INVALID, ["block_count", "0"]),
    ({"block_count": 5}, INVALID, ["block_count", "5", "4"]),
    ({"block_count": MAX[32]}, EXHAUSTED, ["block_count", str(MAX[32]), "64"]),
    ({"first_block": 1, "block_count": 4}, INVALID, ["first_block", "1", "4"]),
    ({"first_block": MAX[32]}, INVALID, ["first_block", str(MAX[32])]),
    ({"min_profile": 4}, INVALID, ["min_profile", "4"]),
    ({"min_profile": 99}, INVALID, ["min_profile", "99"]),
    ({"pages": pages(1)}, INVALID, ["segment_id", "0"]),
    ({"pages": pages(1, segment_id=7)}, INVALID, ["segment_id", "7"]),
    ({"pages": pages(1, segment_id=7), "encoded": True}, INVALID, ["encoded"]),
    ({"session_id": b"s" * 16}, UNKNOWN_SESSION, []),
], ids=lambda v: str(v)[:60])
def test_load(changes, code, parts, session, lease, unchanged):
    fields = {"session_id": session.id, "lease_id": lease, "block_count": 1}
    request = pb.LoadRequest(**fields | changes)
    expect(lambda: session.stub.Load(request, timeout=WAIT_SECONDS), code, parts)


Q_BYTES = 2 * 3 * 64 * 4  # heads x query heads x head size x FP32


@pytest.mark.parametrize("changes, code, parts", [
    ({"lease_id": b"l" * 16}, NOT_FOUND, ["lease"]),
    ({"layer": 2}, INVALID, ["layer", "2"]),
    ({"layer": MAX[32]}, INVALID, ["layer", str(MAX[32])]),
    ({"block_count": 0}, INVALID, ["block_count", "0"]),
    ({"block_count": 5}, INVALID, ["block_count", "5", "4"]),
    ({"block_count": MAX[32]}, EXHAUSTED, ["block_count", str(MAX[32])]),
    ({"q_heads_per_kv_head": 0}, INVALID, ["q_heads_per_kv_head", "0"]),
    ({"q_heads_per_kv_head": 17}, INVALID, ["q_heads_per_kv_head", "17", "16"]),
    ({"q_heads_per_kv_head": MAX[32]}, INVALID, ["q_heads_per_kv_head", str(MAX[32])]),
    ({"scale": 0.0}, INVALID, ["scale", "0"]),
    ({"scale": -1.0}, INVALID, ["scale", "-1"]),
    ({"scale": math.nan}, INVALID, ["scale", "nan"]),
    ({"scale": math.inf}, INVALID, ["scale", "inf"]),
    ({"q": b""}, INVALID, ["q has", "0", str(Q_BYTES)]),
    ({"q": b"q" * (Q_BYTES - 1)}, INVALID, ["q has", str(Q_BYTES - 1), str(Q_BYTES)]),
    ({"q": b"q" * (Q_BYTES + 4)}, INVALID, ["q has", str(Q_BYTES + 4), str(Q_BYTES)]),
    ({"session_id": b"s" * 16}, UNKNOWN_SESSION, []),
], ids=lambda v: str(v)[:60])
def test_attend(changes, code, parts, session, lease, unchanged):
    fields = {"session_id": session.id, "lease_id": lease, "layer": 0, "block_count": 4,
              "q_heads_per_kv_head": 3, "scale": 0.125, "q": bytes(Q_BYTES)}
    assert session.stub.Attend(pb.AttendRequest(**fields), timeout=WAIT_SECONDS).out
    request = pb.AttendRequest(**fields | changes)
    expect(lambda: session.stub.Attend(request, timeout=WAIT_SECONDS), code, parts)


def test_attend_to_values_that_are_not_numbers(session, lease, unchanged):
    for value in (math.nan, math.inf, -math.inf, 3e38):
        q = struct.pack("<f", value) * (Q_BYTES // 4)
        request = pb.AttendRequest(session_id=session.id, lease_id=lease, block_count=4,
                                   q_heads_per_kv_head=3, scale=0.125, q=q)
        assert len(session.stub.Attend(request, timeout=WAIT_SECONDS).out) == Q_BYTES


@pytest.mark.parametrize("changes, code, parts", [
    ({"lease_ids": [b""]}, INVALID, ["lease_ids[0]", "0", "16"]),
    ({"lease_ids": [b"l" * 16, b"l" * 15]}, INVALID, ["lease_ids[1]", "15", "16"]),
    ({"lease_ids": [b"l" * 16] * 17}, EXHAUSTED, ["lease_ids", "17", "16"]),
    ({"session_id": b"s" * 16}, UNKNOWN_SESSION, []),
], ids=lambda v: str(v)[:60])
def test_release(changes, code, parts, session, unchanged):
    fields = {"session_id": session.id, "lease_ids": [b"l" * 16]}
    request = pb.ReleaseRequest(**fields | changes)
    expect(lambda: session.stub.Release(request, timeout=WAIT_SECONDS), code, parts)


def test_release_twice_counts_the_second_as_unknown(session, unchanged):
    lease = session.lookup(KEYS).lease_id
    assert session.release(lease).released == 1
    again = session.release(lease, b"n" * 16)
    assert (again.released, again.unknown) == (0, 2)


def test_lease_of_a_closed_session_is_nobodys(server, session, unchanged):
    with server.channel() as channel, Session(channel) as other:
        lease = other.lookup(KEYS).lease_id
    expect(lambda: session.load(lease, 1), NOT_FOUND, [])


def test_leases_and_sessions_past_their_limit(server, session, unchanged):
    leases = []
    with pytest.raises(grpc.RpcError) as error:
        for _ in range(20):
            leases.append(session.lookup(KEYS).lease_id)
    assert error.value.code() == EXHAUSTED and "16" in error.value.details()
    session.release(*leases)
    with server.channel() as channel:
        opened = [Session(channel) for _ in range(7)]
        expect(lambda: Session(channel), EXHAUSTED, ["8"])
        for one in opened:
            one.__exit__()


def test_pages_too_small_for_the_shape_are_refused_for_every_profile(server):
    """A session of another shape sends what fits the small model."""
    shape = descriptor(head_size=256, dtype=pb.DTYPE_F32, layers=1, kv_heads=1)
    request = open_request(namespace_name="tests/tiny2", namespace_descriptor=shape,
                           range=pb.SlabRange(layer_end=1, head_end=1))
    with server.channel() as channel, Session(channel, request) as other:
        for profile in range(8):
            with pytest.raises(grpc.RpcError) as error:
                other.store(chain("x", 1), profile=profile)
            assert error.value.code() in (INVALID, PRECONDITION)


def test_namespaces_past_their_limit(server, session):
    """Unused ones are forgotten for new ones; those in use never are."""
    with server.channel() as channel:
        for i in range(20):
            Session(channel, open_request(namespace_name=f"many/{i}")).__exit__()
    assert session.fetch(KEYS) == len(KEYS)
    assert server.status().counters["fq_namespaces"] <= NAMESPACES_MAX


def test_namespaces_in_use_past_their_limit(start_node):
    node = start_node(max_namespaces=4)
    with node.channel() as channel:
        opened = [Session(channel, open_request(namespace_name=f"used/{i}")) for i in range(4)]
        expect(lambda: Session(channel, open_request(namespace_name="one/more")), EXHAUSTED, ["4"])
        for one in opened:
            one.__exit__()
