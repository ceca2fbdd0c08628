"""The ways between an engine's KV cache and a node: staged in host memory, or direct on a GPU.

One object per link, used by all threads. A *row* of chunks is that of a Placement: `chunk_ids` are
the engine's chunks of that row, in order.
"""

import logging
import math
import threading
import weakref
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
    partial: "Transport"  # for blocks of which only a part may be written

    def begin_load(self, placement: Placement, chunk_ids: np.ndarray,
                   timeout_s: float) -> Hold | None:
        """Room for a piece of a load; None when there is none within the timeout."""

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

    def payload(self, hold: Hold) -> bytes:
        """What a Store carries inline."""

    def settle(self, give_up: threading.Event) -> None:
        """Waits until the node no longer uses the engine's blocks for a call without a reply."""


def mark_stream(device: torch.device) -> torch.cuda.Event:
    """What the engine has launched by now; on the model's thread. Wait for it on another."""
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


class Staged:
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
        self.partial = self

    def begin_load(self, placement: Placement, chunk_ids: np.ndarray,
                   timeout_s: float) -> Hold | None:
        """See Transport."""
        buffer = self._staging.take_load_buffer(timeout_s)
        return None if buffer is None else Hold(placement, chunk_ids, buffer)

    def deliver(self, hold: Hold, reply: pb.LoadResponse, begin: int, end: int) -> None:
        """See Transport."""
        rows = self._staging.chunks(hold.region, hold.placement.chunks)
        self._view.scatter(hold.chunk_ids[begin:end], rows[:, begin:end])

    def end_load(self, hold: Hold) -> None:
        """See Transport."""
        self._staging.give_back_load_buffer(hold.region)

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

    def payload(self, hold: Hold) -> bytes:
        """Nothing: the node reads the segment."""
        return b""

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


class Direct:
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

    def payload(self, hold: Hold) -> bytes:
        """Nothing: the node reads the engine's memory."""
        return b""

    def settle(self, give_up: threading.Event) -> None:
        """See DeviceSegment.settle."""
        self.link.device_segment.settle(give_up)
