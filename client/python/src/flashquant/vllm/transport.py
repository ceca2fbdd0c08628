"""The ways between an engine's KV cache and a node: staged in host memory, or direct on a GPU.

Others: inline.py (within messages), peer_way.py (from GPU to GPU). One object per link, used by all
threads. A *row* of chunks is that of a Placement: `chunk_ids` are the engine's chunks of that row,
in order.
"""

import logging
import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from flashquant.link import Link
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.geometry import Packing
from flashquant.vllm.placement import Placement
from flashquant.vllm.rows_view import RowsView
from flashquant.vllm.staging import Region, Staging, View
from flashquant.wire import pages_at

log = logging.getLogger("flashquant")

DIRECT_BLOCKS = 256  # of one call on GPU memory
STAGED_STORE_BLOCKS = 32
PORTABLE = 1         # cudaHostRegisterPortable


@dataclass(frozen=True)
class Hold:
    """What a call under way holds: the engine's chunks, and the staging between, if there is."""

    placement: Placement
    chunk_ids: np.ndarray
    region: Region | None = None
    ready: torch.cuda.Event | None = None  # a save waits for it before its Store


class Transport(Protocol):
    """`load_blocks`, `save_blocks`: most of one call; `name` goes into logs and metrics."""

    name: str
    link: Link
    load_blocks: int
    save_blocks: int
    store_limit_s: float  # a Store may take no longer, whatever the deadline
    partial: "Transport | None"  # for blocks of which only a part may be written; None: itself
    eager: bool  # replied() is wanted at once; several Stores go at a time
    loads_in_flight: int   # pieces of a load: some travel while one is copied to the engine
    saves_in_flight: int   # Stores at a time

    def begin_load(self, placement: Placement, chunk_ids: np.ndarray,
                   timeout_s: float) -> Hold | None:
        """Room for a piece of a load; None when there is none within the timeout."""

    def replied(self, hold: Hold, reply: pb.LoadResponse) -> None:
        """The node's answer, on any thread, as soon as it is there; at most once."""

    def arrived(self, hold: Hold, reply: pb.LoadResponse, timeout_s: float) -> int:
        """How many blocks, from the first on, are here whole; called before end_load()."""

    def deliver(self, hold: Hold, reply: pb.LoadResponse, begin: int, end: int) -> None:
        """Brings chunks [begin, end) of the row to the engine; they are there on return."""

    def end_load(self, hold: Hold) -> None:
        """Gives the room back; only when the node no longer uses it."""

    def begin_save(self, placement: Placement, chunk_ids: np.ndarray) -> Hold | None:
        """Takes a piece of a save, on the model's thread; None when there is no room."""

    def end_save(self, hold: Hold) -> None:
        """As end_load."""

    def pages(self, hold: Hold) -> pb.Pages | None:
        """Where the piece's blocks are, for the node."""

    def prepare(self, hold: Hold, request: pb.StoreRequest) -> Hold | None:
        """The engine's work before the save is done: says in the request where the pages are.
        What to go on with; None: the save cannot go."""

    def dispatch(self, hold: Hold, request: pb.StoreRequest) -> None:
        """The prepared request is on its way."""

    def failed(self, why: str) -> None:
        """A prepared Store ended without a reply, or the node no longer takes this way."""

    def settle(self, give_up: threading.Event) -> None:
        """Waits until the node no longer uses the engine's blocks for a call without a reply."""


def mark_stream(device: torch.device) -> torch.cuda.Event:
    """What the engine has launched by now; on the model's thread. Wait for it on another."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


class Plain:
    """What most ways have in common: when the node replies, all is done."""

    partial = None  # not self: a cycle would keep the link's memory
    eager = False
    loads_in_flight = 2
    saves_in_flight = 1

    def replied(self, hold: Hold, reply: pb.LoadResponse) -> None:
        """Nothing to begin."""

    def arrived(self, hold: Hold, reply: pb.LoadResponse, timeout_s: float) -> int:
        """What the node says."""
        return count_ok(reply.statuses, hold.placement.blocks)

    def prepare(self, hold: Hold, request: pb.StoreRequest) -> Hold:
        """They are where pages() says."""
        request.pages.CopyFrom(self.pages(hold))
        return hold

    def dispatch(self, hold: Hold, request: pb.StoreRequest) -> None:
        """Nothing else goes."""

    def failed(self, why: str) -> None:
        """Nothing depends on it."""


def count_ok(statuses: Sequence[int], blocks: int) -> int:
    """Blocks before the first that did not arrive."""
    for i, status in enumerate(statuses[:blocks]):
        if status != pb.BLOCK_STATUS_OK:
            return i
    return min(len(statuses), blocks)


class Staged(Plain):
    """Copies through a segment of host memory; pinned for an engine on a GPU."""

    store_limit_s = math.inf

    def __init__(self, link: Link, view: View, packing: Packing,
                 device: torch.device | None) -> None:
        self.link, self._view, self._packing = link, view, packing
        self._staging = Staging(link.segment.view, view)
        pinned = device is not None and pin(self, device, link.segment.view, self._staging)
        self.name = "pinned" if pinned else "shared-memory"
        self.load_blocks = self._staging.load_blocks
        self.save_blocks = min(STAGED_STORE_BLOCKS, self._staging.save_blocks)

    def begin_load(self, placement: Placement, chunk_ids: np.ndarray,
                   timeout_s: float) -> Hold | None:
        """See Transport."""
        buffer = self._staging.load_buffers.take(timeout_s)
        return None if buffer is None else Hold(placement, chunk_ids, buffer)

    def deliver(self, hold: Hold, reply: pb.LoadResponse, begin: int, end: int) -> None:
        """See Transport."""
        rows = self._staging.chunks(hold.region, hold.placement.chunks)
        self._view.scatter(hold.chunk_ids[begin:end], rows[:, begin:end])

    def end_load(self, hold: Hold) -> None:
        """See Transport."""
        self._staging.load_buffers.give_back(hold.region)

    def begin_save(self, placement: Placement, chunk_ids: np.ndarray) -> Hold | None:
        """See Transport. The engine may change its blocks afterwards (in stream order)."""
        view = self._view
        size = placement.chunks * view.layers * view.shape.chunk_bytes
        region = self._staging.ring.take(size)
        if region is None:
            return None
        ready = view.gather(chunk_ids, self._staging.chunks(region, placement.chunks))
        return Hold(placement, chunk_ids, region, ready)

    def end_save(self, hold: Hold) -> None:
        """See Transport."""
        self._staging.ring.give_back(hold.region)

    def pages(self, hold: Hold) -> pb.Pages:
        """The blocks as they lie in staging: [layers][chunks][bytes of a chunk]."""
        place, chunk_bytes = hold.placement, self._view.shape.chunk_bytes
        layout = self._view.shape.page_layout(self._packing, place.chunks * chunk_bytes)
        offsets = hold.region.offset + place.indices() * chunk_bytes
        return pages_at(layout, offsets, place.first_tokens(), self.link.segment.id)

    def settle(self, give_up: threading.Event) -> None:
        """Nothing to wait for: the node only knows the staging, and that is given up."""


def pin(owner: object, device: torch.device, memory: memoryview, staging: Staging) -> bool:
    """Page-locks staging for as long as `owner` lives. False (logged) when CUDA refuses."""
    pointer = staging.words.data_ptr()
    with torch.cuda.device(device):
        code = int(torch.cuda.cudart().cudaHostRegister(pointer, memory.nbytes, PORTABLE))
    if code:
        log.warning("FlashQuant: %d bytes of staging cannot be page-locked (CUDA error %d): "
                    "copies will be slow", memory.nbytes, code)
        return False
    weakref.finalize(owner, unpin, pointer, memory)
    return True


def unpin(pointer: int, memory: memoryview) -> None:
    """Ends pin(). `memory` is held so long, so that it is unmapped no sooner."""
    torch.cuda.cudart().cudaHostUnregister(pointer)


class Direct(Plain):
    """The node's kernels read and write the engine's own pages on the GPU."""

    name = "device"
    store_limit_s = 2.0  # the engine's blocks are held so long

    def __init__(self, link: Link, view: RowsView, partial: Transport,
                 device: torch.device | None) -> None:
        """`device`: of the stream to wait for. ValueError: the node cannot address such pages."""
        self.link, self._view, self.partial, self._device = link, view, partial, device
        self._layout = view.device_layout()
        self.load_blocks = self.save_blocks = DIRECT_BLOCKS

    def begin_load(self, placement: Placement, chunk_ids: np.ndarray, timeout_s: float) -> Hold:
        """See Transport."""
        return Hold(placement, chunk_ids)

    def deliver(self, hold: Hold, reply: pb.LoadResponse, begin: int, end: int) -> None:
        """The node has done it: it replies when the rows are there."""

    def end_load(self, hold: Hold) -> None:
        """Nothing is held."""

    def begin_save(self, placement: Placement, chunk_ids: np.ndarray) -> Hold:
        """See Transport. The engine must keep its blocks until end_save()."""
        return Hold(placement, chunk_ids, ready=mark_stream(self._device) if self._device else None)

    def end_save(self, hold: Hold) -> None:
        """Nothing is held."""

    def pages(self, hold: Hold) -> pb.Pages:
        """The blocks as they lie in the engine's cache."""
        offsets = hold.chunk_ids[hold.placement.indices()] * self._view.chunk_stride
        return pages_at(self._layout, offsets, hold.placement.first_tokens(),
                        self.link.device_segment.id)

    def settle(self, give_up: threading.Event) -> None:
        """See DeviceSegment.settle."""
        self.link.device_segment.settle(give_up)
