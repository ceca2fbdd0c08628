"""Loads one job: lease, pieces from the node, whole chunks into the engine's cache.

Runs on a worker thread; any number of threads may load at once, each its own jobs.
"""

import collections
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import torch

from flashquant.client import Match, code_of, describe
from flashquant.keys import BLOCK_TOKENS
from flashquant.link import Link
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.jobs import LoadJob
from flashquant.vllm.page_access import PageAccess
from flashquant.vllm.placement import Placement
from flashquant.vllm.transport import Hold, Transport
from flashquant.wire import Profile

TAIL_BLOCKS = 2  # DESIGN.md, tail rule
ABSENT = -1      # id of a chunk of the first block that is not ours to write


@dataclass(frozen=True)
class Piece:
    """A call under way."""

    transport: Transport
    hold: Hold
    request: pb.LoadRequest
    future: grpc.Future | None  # None: called when it is waited for

    @property
    def placement(self) -> Placement:
        """Its blocks."""
        return self.hold.placement


class Loader:
    """One job; make one per job."""

    def __init__(self, access: PageAccess, job: LoadJob, cancelled: threading.Event,
                 timeout_s: float, after: torch.cuda.Event | None = None) -> None:
        """`after`: what the engine may still do with the blocks, on a GPU."""
        self._after = after
        self._access, self._client, self._job = access, access.client, job
        self._cancelled = cancelled
        self._deadline_s = time.monotonic() + timeout_s
        ids = access.view.chunk_ids(job.block_ids)
        before = job.begin_token % BLOCK_TOKENS // access.view.shape.tokens
        self._chunk_ids = np.concatenate([np.full(before, ABSENT), ids])  # from a block's begin

    def run(self) -> int:
        """Loads; returns the token up to which the engine's blocks are good.

        When it returns, nobody writes to the engine's blocks or to staging any more.
        """
        job, transport = self._job, self._access.transport()
        pending = transport and self._client.lookup_later(job.keys, job.floor, lease=True,
                                                          link=transport.link)
        if self._after is not None:
            self._after.synchronize()
        match = pending.result() if pending else None
        if match is None:
            return job.begin_token
        try:
            wanted = min(match.usable_blocks, job.end_token // BLOCK_TOKENS)
            reached = self._load_blocks(transport, match, wanted)
        finally:
            self._client.release(match.link, match.lease_id)
        if reached < wanted:
            reached = before_compact_tail(match.profiles, reached)
        step = self._access.block_tokens
        return max(job.begin_token, reached * BLOCK_TOKENS // step * step)

    def _load_blocks(self, transport: Transport, match: Match, end_block: int) -> int:
        """Loads up to `end_block`; returns the block after the last that arrived in order."""
        begin = self._job.begin_token // BLOCK_TOKENS
        if end_block <= begin:
            return begin
        todo = collections.deque(self._pieces(transport, match.link, begin, end_block))
        running: collections.deque[Piece] = collections.deque()
        reached, going = begin, True
        while running or (todo and going):
            while todo and going and len(running) < transport.loads_in_flight:
                piece = self._start(transport, match, todo[0], patient=not running,
                                    alone=not running and len(todo) == 1)
                if piece is None:
                    going = bool(running)
                    break
                running.append(piece)
                todo.popleft()
            if running:
                piece = running.popleft()
                arrived = self._finish(piece, wanted=going)
                reached += arrived
                going = (going and arrived == piece.placement.blocks
                         and not self._cancelled.is_set())
        return reached

    def _pieces(self, transport: Transport, link: Link, begin: int,
                end: int) -> Iterator[Placement]:
        """Runs of blocks; a first block that is not wholly ours stands alone."""
        limit = min(transport.load_blocks, link.info.max_blocks_per_call or end)
        if self._job.begin_token % BLOCK_TOKENS:
            yield self._access.placement(begin, 1)
            begin += 1
        if begin < end:
            yield from self._access.placement(begin, end - begin).pieces(limit)

    def _start(self, transport: Transport, match: Match, placement: Placement,
               patient: bool, alone: bool) -> Piece | None:
        """Asks for a piece; None when there is no buffer for it (patient: until the deadline).

        One that is alone is asked for by _finish, on this thread.
        """
        left_s = self._deadline_s - time.monotonic() if patient else 0.0
        base = self._job.begin_token // BLOCK_TOKENS * BLOCK_TOKENS
        first = (placement.base_token - base) // placement.chunk_tokens
        chunk_ids = self._chunk_ids[first:first + placement.chunks]
        way = (ABSENT in chunk_ids and transport.partial) or transport
        hold = way.begin_load(placement, chunk_ids, left_s)
        if hold is None:
            return None
        request = pb.LoadRequest(
            session_id=match.link.session_id, lease_id=match.lease_id,
            first_block=placement.first_block, block_count=placement.blocks,
            min_profile=self._job.floor, pages=way.pages(hold))
        timeout_s = max(self._deadline_s - time.monotonic(), 0.001)
        later = None
        if way.eager:
            later = self._client.call_with_callback(match.link, "Load", request, timeout_s)
            if later is not None:
                later.add_done_callback(lambda future: tell(way, hold, future))
        elif not alone:
            later = self._client.call_later(match.link, "Load", request, timeout_s)
        return Piece(way, hold, request, later)

    def _finish(self, piece: Piece, wanted: bool) -> int:
        """Waits for a piece and brings it to the engine; returns how many blocks arrived."""
        transport = piece.transport
        left_s = max(self._deadline_s - time.monotonic(), 0.001)
        if piece.future is None:
            reply = self._client.load(transport.link, piece.request, left_s)
        else:
            reply = self._client.answer(transport.link, piece.future, left_s)
        arrived = 0
        if reply is not None:
            arrived = transport.arrived(piece.hold, reply,
                                        max(self._deadline_s - time.monotonic(), 0.001))
            if not wanted or self._cancelled.is_set():
                arrived = 0
            self._deliver(piece, reply, arrived)
        if reply is not None or self._access.lives(transport):
            transport.end_load(piece.hold)
        else:
            transport.settle(self._access.closing)
        return arrived

    def _deliver(self, piece: Piece, reply: pb.LoadResponse, blocks: int) -> None:
        """Delivers the chunks that are ours and whole within the first `blocks` blocks."""
        place, size = piece.placement, piece.placement.chunk_tokens
        end = (place.first_block + blocks) * BLOCK_TOKENS // size * size
        first = max(self._job.begin_token, place.base_token)
        if end <= first:
            return
        piece.transport.deliver(piece.hold, reply, (first - place.base_token) // size,
                                (end - place.base_token) // size)
        self._access.counters.add("loaded_tokens", end - first)


def tell(transport: Transport, hold: Hold, future: grpc.Future) -> None:
    """What a call that has ended says to the transport."""
    if future.cancelled():
        return
    error = future.exception()
    if error is None:
        transport.replied(hold, future.result())
    elif code_of(error) is grpc.StatusCode.FAILED_PRECONDITION:
        transport.failed(describe(error))


def before_compact_tail(profiles: tuple[int, ...], reached: int) -> int:
    """`reached`, or two blocks less where the last two before it hold a compact one."""
    tail = profiles[max(0, reached - TAIL_BLOCKS):reached]
    return max(0, reached - TAIL_BLOCKS) if Profile.COMPACT in tail else reached
