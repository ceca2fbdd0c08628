"""The wire without a client library: one session, exact pages whose bytes follow from their key.

Whatever the node gives back can so be compared byte by byte, by whoever reads it.
"""

import fcntl
import hashlib
import mmap
import os
import queue
import socket
import struct
from dataclasses import dataclass, field

import grpc
import numpy as np
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.v1 import kv_cache_pb2_grpc as pb_grpc
from node_process import WAIT_SECONDS

LAYERS, HEADS, HEAD_SIZE, ELEMENT_BYTES = 2, 2, 64, 2
ROWS_BYTES = 64 * HEAD_SIZE * ELEMENT_BYTES  # K or V of one page
BLOCK_BYTES = LAYERS * HEADS * 2 * ROWS_BYTES
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
OK = pb.BLOCK_STATUS_OK
EXISTS = pb.BLOCK_STATUS_EXISTS
MISS = pb.BLOCK_STATUS_MISS
FULL = pb.BLOCK_STATUS_FULL


def descriptor(**changes: object) -> pb.NamespaceDescriptor:
    """Of the small model that the tests pretend to run."""
    fields = {"model": "test/tiny", "layers": LAYERS, "kv_heads": HEADS, "head_size": HEAD_SIZE,
              "dtype": pb.DTYPE_F16, "rope": "theta=10000"}
    return pb.NamespaceDescriptor(**fields | changes)


def whole_range() -> pb.SlabRange:
    return pb.SlabRange(layer_end=LAYERS, head_end=HEADS)


def open_request(**changes: object) -> pb.SessionRequest:
    fields = {"namespace_name": "tests/tiny", "namespace_descriptor": descriptor(),
              "range": whole_range(),
              "client_name": "raw_client"}
    return pb.SessionRequest(**fields | changes)


def layout() -> pb.PageLayout:
    """Blocks one after the other, each [layer][head][K|V][token][channel]."""
    row = HEAD_SIZE * ELEMENT_BYTES
    return pb.PageLayout(tokens_per_chunk=64, layer_stride=HEADS * 2 * ROWS_BYTES,
                         head_stride=2 * ROWS_BYTES, k_offset=0, k_token_stride=row,
                         k_channel_stride=ELEMENT_BYTES, v_offset=ROWS_BYTES, v_token_stride=row,
                         v_channel_stride=ELEMENT_BYTES)


def pages(blocks: int, segment_id: int = 0, first: int = 0) -> pb.Pages:
    """Places of `blocks` blocks from block `first` of a segment (or payload) on."""
    places = [pb.BlockPlace(chunk_offsets=[(first + i) * BLOCK_BYTES]) for i in range(blocks)]
    return pb.Pages(layout=layout(), places=places, segment_id=segment_id)


def chain(name: str, blocks: int) -> list[bytes]:
    """Keys of a chain of that name."""
    return [hashlib.sha256(f"{name}/{i}".encode()).digest() for i in range(blocks)]


def content(key: bytes) -> bytes:
    """The only bytes that may ever be delivered under `key`: FP16, all finite."""
    random = np.random.default_rng(int.from_bytes(key[:8], "little"))
    return random.standard_normal(BLOCK_BYTES // 2, dtype=np.float32).astype(np.float16).tobytes()


class Segment:
    """A sealed memfd, mapped here; `register` hands it to the node."""

    def __init__(self, size: int, seals: int = SEALS) -> None:
        self.size = size
        self.fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        self.memory = mmap.mmap(self.fd, size) if size else b""
        if seals:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def register(self, path: str, session_id: bytes) -> tuple[int, int, str]:
        """(status, segment id, error text)."""
        request = struct.pack("<16sIIQ", session_id, 1, 0, self.size)
        return segment_call(path, request, [self.fd])


def segment_call(path: str, packet: bytes, fds: list[int]) -> tuple[int, int, str]:
    """One packet to the segment socket and its answer; an empty answer is status -1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(WAIT_SECONDS)
        peer.connect(path)
        socket.send_fds(peer, [packet], fds)
        reply = peer.recv(4096)
    if len(reply) < 8:
        return -1, 0, ""
    return *struct.unpack_from("<II", reply), reply[8:].decode()


@dataclass
class Loaded:
    """What a load delivered: a block's bytes, or None where its status is not OK."""
    statuses: list[int]
    blocks: list[bytes | None] = field(default_factory=list)


class Session:
    """Opens on construction (grpc.RpcError when refused); closes with the `with` block."""

    def __init__(self, channel: grpc.Channel, request: pb.SessionRequest | None = None) -> None:
        self.stub = pb_grpc.KvCacheStub(channel)
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._outbox.put(request or open_request())
        self._stream = self.stub.Session(iter(self._outbox.get, None))
        self.opened = next(self._stream)
        self.id = self.opened.session_id

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._outbox.put(None)
        self._stream.cancel()

    def store(self, keys: list[bytes], timeout_s: float = WAIT_SECONDS,
              **changes: object) -> list[int]:
        """Inline, profile exact; statuses."""
        fields = {"session_id": self.id, "profile": pb.PROFILE_EXACT, "keys": b"".join(keys),
                  "pages": pages(len(keys)), "payload": b"".join(map(content, keys))}
        request = pb.StoreRequest(**fields | changes)
        return list(self.stub.Store(request, timeout=timeout_s).statuses)

    def lookup(self, keys: list[bytes], timeout_s: float = WAIT_SECONDS,
               **changes: object) -> pb.LookupResponse:
        fields = {"session_id": self.id, "keys": b"".join(keys)}
        return self.stub.Lookup(pb.LookupRequest(**fields | changes), timeout=timeout_s)

    def load(self, lease: bytes, count: int, first: int = 0,
             timeout_s: float = WAIT_SECONDS) -> Loaded:
        """Inline."""
        request = pb.LoadRequest(session_id=self.id, lease_id=lease, first_block=first,
                                 block_count=count)
        reply = self.stub.Load(request, timeout=timeout_s)
        loaded, at = Loaded(list(reply.statuses)), 0
        for size in reply.sizes:
            loaded.blocks.append(reply.payload[at:at + size] or None)
            at += size
        assert at == len(reply.payload)
        return loaded

    def release(self, *leases: bytes) -> pb.ReleaseResponse:
        return self.stub.Release(pb.ReleaseRequest(session_id=self.id, lease_ids=leases),
                                 timeout=WAIT_SECONDS)

    def fetch_from(self, node: str, keys: list[bytes],
                   timeout_s: float = WAIT_SECONDS) -> pb.FetchResponse:
        """Has the node fetch a chain from another one."""
        request = pb.FetchRequest(session_id=self.id, node=node, keys=b"".join(keys))
        return self.stub.Fetch(request, timeout=timeout_s)

    def fetch(self, keys: list[bytes], timeout_s: float = WAIT_SECONDS) -> int:
        """Looks up, loads and compares: blocks delivered. AssertionError on any wrong byte."""
        found = self.lookup(keys, timeout_s)
        if not found.matched_blocks:
            return 0
        loaded = self.load(found.lease_id, found.matched_blocks, timeout_s=timeout_s)
        self.release(found.lease_id)
        return count_right(keys, loaded)


def count_right(keys: list[bytes], loaded: Loaded) -> int:
    """Blocks delivered; AssertionError when one is not what was stored under its key."""
    delivered = 0
    for key, status, block in zip(keys, loaded.statuses, loaded.blocks, strict=False):
        assert (status == OK) == (block is not None), (key.hex(), status)
        if block is not None:
            assert block == content(key), f"wrong page under {key.hex()}"
            delivered += 1
    return delivered
