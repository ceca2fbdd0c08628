"""Loads one job: lease, pieces from the node into staging, whole chunks into the engine's cache.

Runs on a worker thread; any number of threads may load at once, each its own jobs.
"""

import collections
import threading
import time
from dataclasses import dataclass

import grpc

from flashquant.client import Match
from flashquant.keys import BLOCK_TOKENS
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.jobs import LoadJob
from flashquant.vllm.page_access import PageAccess
from flashquant.vllm.placement import Placement
from flashquant.vllm.staging import Region, Staging
from flashquant.wire import Profile

PIECES_IN_FLIGHT = 2  # the node fills one while we copy the other out
TAIL_BLOCKS = 2       # DESIGN.md, tail rule


@dataclass(frozen=True)
class Piece:
    """A call under way."""

    placement: Placement
    buffer: Region
    future: grpc.Future | None


class Loader:
    """One job; make one per job."""

    def __init__(self, access: PageAccess, job: LoadJob, cancelled: threading.Event,
                 timeout_s: float) -> None:
        self._access, self._client, self._job = access, access.client, job
        self._cancelled = cancelled
        self._deadline_s = time.monotonic() + timeout_s
        self._chunk_ids = access.view.chunk_ids(job.block_ids)

    def run(self) -> int:
        """Loads; returns the token up to which the engine's blocks are good.

        When it returns, nobody writes to the engine's blocks or to staging any more.
        """
        job, staging = self._job, self._access.staging()
        pending = staging and self._client.lookup_later(job.keys, job.floor, lease=True,
                                                        link=staging.link)
        match = pending.result() if pending else None
        if match is None:
            return job.begin_token
        try:
            wanted = min(match.usable_blocks, job.end_token // BLOCK_TOKENS)
            reached = self._load_blocks(staging, match, wanted)
        finally:
            self._client.release(match.link, match.lease_id)
        if reached < wanted:
            reached = before_compact_tail(match.profiles, reached)
        step = self._access.block_tokens
        return max(job.begin_token, reached * BLOCK_TOKENS // step * step)

    def _load_blocks(self, staging: Staging, match: Match, end_block: int) -> int:
        """Loads up to `end_block`; returns the block after the last that arrived in order."""
        begin = self._job.begin_token // BLOCK_TOKENS
        if end_block <= begin:
            return begin
        limit = min(staging.load_blocks, match.link.info.max_blocks_per_call or end_block)
        todo = collections.deque(self._access.placement(begin, end_block - begin).pieces(limit))
        running: collections.deque[Piece] = collections.deque()
        reached, going = begin, True
        while running or (todo and going):
            while todo and going and len(running) < PIECES_IN_FLIGHT:
                piece = self._start(staging, match, todo[0], patient=not running)
                if piece is None:
                    going = bool(running)
                    break
                running.append(piece)
                todo.popleft()
            if running:
                piece = running.popleft()
                arrived = self._finish(staging, piece, wanted=going)
                reached += arrived
                going = (going and arrived == piece.placement.blocks
                         and not self._cancelled.is_set())
        return reached

    def _start(self, staging: Staging, match: Match, placement: Placement,
               patient: bool) -> Piece | None:
        """Asks for a piece; None when there is no buffer for it (patient: until the deadline)."""
        left_s = self._deadline_s - time.monotonic() if patient else 0.0
        buffer = staging.take_load_buffer(left_s)
        if buffer is None:
            return None
        request = pb.LoadRequest(
            session_id=match.link.session_id, lease_id=match.lease_id,
            first_block=placement.first_block, block_count=placement.blocks,
            min_profile=self._job.floor, pages=self._access.pages(staging, buffer, placement))
        timeout_s = max(self._deadline_s - time.monotonic(), 0.001)
        return Piece(placement, buffer,
                     self._client.call_later(match.link, "Load", request, timeout_s))

    def _finish(self, staging: Staging, piece: Piece, wanted: bool) -> int:
        """Waits for a piece and copies it to the engine; returns how many blocks arrived."""
        left_s = max(self._deadline_s - time.monotonic(), 0.0)
        reply = self._client.answer(staging.link, piece.future, left_s)
        arrived = 0
        if reply is not None and wanted and not self._cancelled.is_set():
            arrived = count_ok(reply.statuses, piece.placement.blocks)
            self._copy(staging, piece, arrived)
        if reply is not None or self._access.lives(staging):
            staging.give_back_load_buffer(piece.buffer)
        return arrived

    def _copy(self, staging: Staging, piece: Piece, blocks: int) -> None:
        """Copies the chunks that are whole within the first `blocks` blocks."""
        place, begin = piece.placement, self._job.begin_token
        size = place.chunk_tokens
        end = (place.first_block + blocks) * BLOCK_TOKENS // size * size
        first = max(begin, place.base_token)
        if end <= first:
            return
        rows = staging.chunks(piece.buffer, place.chunks)
        rows = rows[:, (first - place.base_token) // size:(end - place.base_token) // size]
        self._access.view.scatter(self._chunk_ids[(first - begin) // size:(end - begin) // size],
                                  rows)
        self._access.counters.add("loaded_tokens", end - first)


def count_ok(statuses: list[int], blocks: int) -> int:
    """Blocks before the first that did not arrive."""
    for i, status in enumerate(statuses[:blocks]):
        if status != pb.BLOCK_STATUS_OK:
            return i
    return min(len(statuses), blocks)


def before_compact_tail(profiles: tuple[int, ...], reached: int) -> int:
    """`reached`, or two blocks less where the last two before it hold a compact one."""
    tail = profiles[max(0, reached - TAIL_BLOCKS):reached]
    return max(0, reached - TAIL_BLOCKS) if Profile.COMPACT in tail else reached
