"""From GPU to GPU by NCCL: the way to a node whose GPU is another than the engine's.

Rows are gathered into (scattered from) dense regions of the link's window on streams of the
link's own; NCCL moves regions between the two windows. A save begins behind what the engine had
launched when it was staged; a load is in the engine's blocks when deliver() returns.
"""

import contextlib
import logging
import math
from collections.abc import Iterator

import numpy as np
import torch

from flashquant.link import Link
from flashquant.peer_comm import PeerError, Span, merged
from flashquant.peer_link import PeerLink, Transfer
from flashquant.row_sums import LaterSums
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.counters import Counters
from flashquant.vllm.peer_rows import PeerRows, block_spans
from flashquant.vllm.placement import Placement
from flashquant.vllm.staging import Buffers
from flashquant.vllm.transport import Hold, count_ok, mark_stream
from flashquant.wire import pages_at

log = logging.getLogger("flashquant")

LOADS, SAVES = 3, 2  # pieces that the window has room for: loads first, then saves


class Nccl:
    """See Transport."""

    name = "nccl"
    store_limit_s = math.inf  # of the Store: the engine's blocks have been read before
    eager = True
    partial = None
    loads_in_flight, saves_in_flight = LOADS, SAVES

    def __init__(self, link: Link, peer: PeerLink, rows: PeerRows, device: torch.device | None,
                 counters: Counters) -> None:
        """`device`: of the stream to wait for; None on a CPU. ValueError: the window has no room
        for so many pieces."""
        self.link, self.peer = link, peer
        self._rows, self._device, self._counters = rows, device, counters
        least = rows.blocks_per_chunk
        room = peer.window.numel() // rows.block_bytes
        if room < (LOADS + SAVES) * least:
            raise ValueError(f"a window must have {(LOADS + SAVES) * least * rows.block_bytes} "
                             f"bytes for this model, it has {peer.window.numel()}")
        blocks = room // (LOADS + SAVES) // least * least
        self.load_blocks = self.save_blocks = blocks
        size = blocks * rows.block_bytes
        self._loads, self._saves = Buffers(0, LOADS, size), Buffers(LOADS * size, SAVES, size)
        # Sums wait for what arrives next, so nothing else may stand behind them.
        self._summing, self._scattering, self._gathering = (
            torch.cuda.Stream(device) if device else None for _ in range(3))
        self._load_kernels()
        for buffers in (self._loads, self._saves):
            peer.when_broken(buffers.close)

    def _load_kernels(self) -> None:
        """A first launch of a kernel may wait for all that the GPU does (CUDA loads it then), and
        so for a transfer whose other end does not come: none must be left for later."""
        region = self.peer.window[:self._rows.block_bytes].view(1, -1)
        sums = LaterSums(region, self._gathering)
        with on_stream(self._gathering):
            self._rows.load_kernels(region)
            sums.launch(None)
        sums.values()

    def begin_load(self, placement: Placement, chunk_ids: np.ndarray,
                   timeout_s: float) -> Hold | None:
        """See Transport."""
        region = None if self.peer.broken else self._loads.take(timeout_s)
        return None if region is None else Hold(placement, chunk_ids, region)

    def replied(self, hold: Hold, reply: pb.LoadResponse) -> None:
        """Receives what the node sends, in the node's order."""
        if reply.peer_sequence:
            with contextlib.suppress(PeerError):  # arrived() meets it again
                self._expect(hold, reply)

    def _expect(self, hold: Hold, reply: pb.LoadResponse) -> Transfer:
        statuses, place = list(reply.statuses), hold.placement
        if statuses.count(pb.BLOCK_STATUS_OK) == place.blocks:  # a span for each takes its time
            spans, good = [self._whole(hold)], place.blocks
        else:
            each = block_spans(hold.region.offset, self._rows.block_bytes, place.blocks)
            spans = merged([span for span, status in zip(each, statuses)
                            if status == pb.BLOCK_STATUS_OK])
            good = count_ok(statuses, place.blocks)
        sums = LaterSums(self._regions(hold)[:good], self._summing)
        return self.peer.expect(reply.peer_sequence, spans, sums)

    def arrived(self, hold: Hold, reply: pb.LoadResponse, timeout_s: float) -> int:
        """Waits for it and compares the sums."""
        if not reply.peer_sequence:
            return 0
        try:
            transfer = (self.peer.expected(reply.peer_sequence) or self._expect(hold, reply))
            self.peer.wait(transfer, timeout_s)
            self.peer.forget(transfer)
        except PeerError:
            return 0
        here, there = transfer.sums.values(), list(reply.peer_sums)
        if here == there:
            return len(here)
        return self._first_damaged(here, there)

    def _first_damaged(self, here: list[int], there: list[int]) -> int:
        """The block, among those that are here; `there` has sums of later ones, too."""
        for block, (sum_here, sum_there) in enumerate(zip(here, there)):
            if sum_here != sum_there:
                self._counters.add("damaged_blocks")
                log.warning("FlashQuant: a block came over NCCL with another sum: recomputed")
                return block
        return min(len(here), len(there))

    def deliver(self, hold: Hold, reply: pb.LoadResponse, begin: int, end: int) -> None:
        """See Transport."""
        with on_stream(self._scattering) as stream:
            self._rows.scatter(hold.placement, hold.chunk_ids, begin, end, self._regions(hold))
            if stream is not None:
                stream.synchronize()

    def end_load(self, hold: Hold) -> None:
        """See Transport."""
        self._loads.give_back(hold.region)

    def begin_save(self, placement: Placement, chunk_ids: np.ndarray) -> Hold:
        """See Transport. The engine must keep its blocks until end_save()."""
        return Hold(placement, chunk_ids, ready=mark_stream(self._device) if self._device else None)

    def prepare(self, hold: Hold, request: pb.StoreRequest) -> Hold | None:
        """Gathers the rows."""
        region = None if self.peer.broken else self._saves.take(self.peer.timeout_s)
        if region is None:
            return None
        hold = Hold(hold.placement, hold.chunk_ids, region)
        regions = self._regions(hold)
        sums = LaterSums(regions, self._gathering)
        with on_stream(self._gathering) as stream:
            self._rows.gather(hold.placement, hold.chunk_ids, regions)
            gathered = stream.record_event() if stream is not None else None
            sums.launch(None)
        request.peer_sums.extend(sums.values())
        request.pages.CopyFrom(self.pages(hold))
        request.peer_sequence = self.peer.announce()
        return Hold(hold.placement, hold.chunk_ids, region, gathered)

    def dispatch(self, hold: Hold, request: pb.StoreRequest) -> None:
        """Sends them: the node receives when it has the request."""
        with contextlib.suppress(PeerError):  # the Store ends with an error, too
            self.peer.send(request.peer_sequence, [self._whole(hold)], hold.ready)

    def failed(self, why: str) -> None:
        """The node has given the link up, or will not receive what was sent."""
        self.peer.break_link(why)

    def end_save(self, hold: Hold) -> None:
        """See Transport."""
        self._saves.give_back(hold.region)

    def pages(self, hold: Hold) -> pb.Pages:
        """Regions in the window."""
        blocks = np.arange(hold.placement.blocks)[:, None]
        offsets = hold.region.offset + blocks * self._rows.block_bytes
        return pages_at(self._rows.layout, offsets, [0] * len(blocks), self.peer.id)

    def _whole(self, hold: Hold) -> Span:
        """All its blocks' regions."""
        return Span(hold.region.offset, hold.placement.blocks * self._rows.block_bytes)

    def _regions(self, hold: Hold) -> torch.Tensor:
        """Uint8 [blocks][bytes of a block]."""
        size, offset = self._rows.block_bytes, hold.region.offset
        return self.peer.window[offset:offset + hold.placement.blocks * size].view(-1, size)

    def settle(self, give_up: object) -> None:
        """Nothing to wait for: the node knows the window only, and that is given up."""


@contextlib.contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[torch.cuda.Stream | None]:
    """Makes it the current one; None (on a CPU) changes nothing."""
    if stream is None:
        yield None
        return
    with torch.cuda.stream(stream):
        yield stream
