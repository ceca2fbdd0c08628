"""A node on a pretended GPU: "device memory" is a memfd, kernels are copies in Python. For tests.

Speaks the segment socket (operations 1, 2, 3) and stores and loads exact rows by the layout of the
request, so that the client's side of device segments runs on a machine without a GPU.
"""

import contextlib
import mmap
import os
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import torch

from fake_node import FakeNode
from flashquant import device_segment
from flashquant.device_memory import Allocation, Sharing
from flashquant.v1 import kv_cache_pb2 as pb

UUID = bytes(range(16))
TOKENS = 64


class MemfdGpu:
    """Allocations that pretend to be a GPU's; patch() puts it in the driver's place."""

    def __init__(self) -> None:
        self._allocations: list[tuple[int, int, int]] = []  # base, size, descriptor

    def alloc(self, size: int) -> torch.Tensor:
        """Zeroed bytes in an allocation of their own."""
        fd = os.memfd_create("gpu")
        os.ftruncate(fd, size)
        tensor = torch.frombuffer(mmap.mmap(fd, size), dtype=torch.uint8)
        self._allocations.append((tensor.data_ptr(), size, fd))
        return tensor

    def patch(self, monkeypatch) -> None:
        """For the length of a test."""
        monkeypatch.setattr(device_segment, "device_uuid", lambda pointer: UUID)
        monkeypatch.setattr(device_segment, "allocation_of", self._allocation_of)
        monkeypatch.setattr(device_segment, "descriptor", self._descriptor)

    def _allocation_of(self, pointer: int) -> Allocation:
        base, size, _ = next(a for a in self._allocations if a[0] <= pointer < a[0] + a[1])
        return Allocation(base, size, Sharing.DESCRIPTOR)

    def _descriptor(self, allocation: Allocation) -> int:
        return os.dup(next(fd for base, _, fd in self._allocations if base == allocation.base))


class Segment:
    """What a client registered: byte arrays and where each layer begins. `device`: operation 3."""

    def __init__(self, device: bool, layers: list[np.ndarray]) -> None:
        self.device, self.layers = device, layers
        self.free = threading.Condition()
        self.running = 0


class FakeDeviceNode(FakeNode):
    """Keeps exact rows [layers][heads][K|V][64][head size] of each key, as bytes."""

    def __init__(self, socket_path: Path, element_bytes: int, heads: int, head_size: int) -> None:
        super().__init__(socket_path)
        self.rows: dict[bytes, np.ndarray] = {}
        self.segments: dict[int, Segment] = {}
        self.packets: list[bytes] = []
        self.refuse = ""                # text with which device memory is refused
        self.before_load = lambda: None  # runs when a Load has begun
        self.after_load = lambda: None   # runs when it has written all
        self._shape = (heads, head_size, element_bytes)
        self._path = str(socket_path) + ".segment"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self._path)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def Session(self, request_iterator, context):
        """As a node with a GPU."""
        for response in super().Session(request_iterator, context):
            response.segment_socket = self._path
            response.device.uuid = UUID
            response.max_inline_bytes = 16 << 20
            yield response

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer:
            packet, fds, _, _ = socket.recv_fds(peer, 1 << 16, 128)
            self.packets.append(packet)
            operation, segment_id = struct.unpack_from("<II", packet, 16)
            text = ""
            if operation == 2:
                text = self._unregister(segment_id)
            elif operation == 3 and self.refuse:
                text = self.refuse
            else:
                segment_id = len(self.segments) + 1
                self.segments[segment_id] = self._map(operation == 3, packet, fds)
            for fd in fds:
                os.close(fd)
            peer.send(struct.pack("<II", 3 if text else 0, 0 if text else segment_id)
                      + text.encode())

    def _unregister(self, segment_id: int) -> str:
        segment = self.segments.pop(segment_id, None)
        if segment is None:
            return "no such segment"
        with segment.free:
            segment.free.wait_for(lambda: not segment.running)
        return ""

    @staticmethod
    def _map(device: bool, packet: bytes, fds: list[int]) -> Segment:
        maps = [np.frombuffer(mmap.mmap(fd, 0), np.uint8) for fd in fds]
        if not device:
            return Segment(device, maps)
        uuid, sharing, allocations, layers, flags = struct.unpack_from("<16sIIII", packet, 32)
        assert (uuid, sharing, allocations) == (UUID, Sharing.DESCRIPTOR, len(fds)) and flags == 0
        assert len(packet) == 128 + 72 * allocations + 16 * layers
        places = []
        for i in range(layers):
            index, zero, offset = struct.unpack_from("<IIQ", packet,
                                                     128 + 72 * allocations + 16 * i)
            assert zero == 0 and offset % 16 == 0
            places.append(maps[index][offset:])
        return Segment(device, places)

    def Store(self, request, context):
        """Exact rows."""
        with self._using(request.pages) as segment:
            for i, place in enumerate(request.pages.places):
                key = request.keys[32 * i:32 * i + 32]
                self.rows[key] = np.stack([
                    np.stack([self._rows(segment, request, place, layer, part)
                              for part in (0, 1)], axis=1)
                    for layer in range(2)]).copy()
                self.stored.add(key)
        return pb.StoreResponse(statuses=[pb.BLOCK_STATUS_OK] * len(request.pages.places))

    def Lookup(self, request, context):
        """Remembers the keys as the lease."""
        self.leased = [request.keys[i:i + 32] for i in range(0, len(request.keys), 32)]
        return super().Lookup(request, context)

    def Load(self, request, context):
        """Writes the rows of the last lookup's keys."""
        with self._using(request.pages) as segment:
            self.before_load()
            for i, place in enumerate(request.pages.places):
                rows = self.rows[self.leased[request.first_block + i]]
                for layer in range(2):
                    for part in (0, 1):
                        self._rows(segment, request, place, layer, part, rows[layer, :, part])
        self.after_load()
        return pb.LoadResponse(statuses=[pb.BLOCK_STATUS_OK] * request.block_count)

    @contextlib.contextmanager
    def _using(self, pages):
        segment = self.segments[pages.segment_id]
        with segment.free:
            segment.running += 1
        try:
            yield segment
        finally:
            with segment.free:
                segment.running -= 1
                segment.free.notify_all()

    def _rows(self, segment, request, place, layer, part, values=None):
        """Reads, or writes `values` to, [heads][64][head size * element] of a block."""
        layout, (heads, size, element) = request.pages.layout, self._shape
        offset, token_stride, channel = (
            (layout.v_offset, layout.v_token_stride, layout.v_channel_stride) if part else
            (layout.k_offset, layout.k_token_stride, layout.k_channel_stride))
        assert not segment.device or (layout.layer_stride == 0 and channel == element)
        memory = segment.layers[layer if segment.device else 0]
        first = layer * layout.layer_stride + offset
        per_chunk = layout.tokens_per_chunk
        token = np.arange(TOKENS) + place.first_token
        chunk = np.asarray(place.chunk_offsets, np.int64)[token // per_chunk]
        assert not segment.device or not (np.asarray(place.chunk_offsets) % 256).any()
        at = (first + chunk[None, :, None, None] + (token % per_chunk * token_stride)[:, None, None]
              + np.arange(heads)[:, None, None, None] * layout.head_stride
              + np.arange(size)[:, None] * channel + np.arange(element)).reshape(heads, TOKENS, -1)
        if values is None:
            return memory[at]
        memory[at] = values
        return None
