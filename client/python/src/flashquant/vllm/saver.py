"""Saves: the model's thread copies chunks into the ring, one thread sends them to the node."""

import logging
import queue
import threading
from dataclasses import dataclass

from flashquant.keys import KEY_BYTES
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.jobs import SaveJob
from flashquant.vllm.page_access import PageAccess
from flashquant.vllm.placement import Placement
from flashquant.vllm.staging import Region, Staging

log = logging.getLogger("flashquant")

MAX_BLOCKS_PER_STORE = 32


@dataclass(frozen=True)
class Staged:
    """Blocks that wait in the ring for their Store."""

    staging: Staging
    region: Region
    placement: Placement
    job: SaveJob


class Saver:
    """stage() and forget() on the model's thread only; nothing here ever waits for the node."""

    def __init__(self, access: PageAccess) -> None:
        self._access, self._counters = access, access.counters
        self._queue: queue.SimpleQueue[Staged | None] = queue.SimpleQueue()
        self._gaps: set[str] = set()  # requests with a dropped save: later blocks are useless
        self._thread = threading.Thread(target=self._send_all, name="fq-save", daemon=True)
        self._thread.start()

    def stage(self, job: SaveJob) -> None:
        """Copies the job's chunks out, or drops the job when there is no node or no room."""
        staging = None if job.request_id in self._gaps else self._access.staging()
        if staging is None:
            self._drop(job, job.blocks)
            return
        whole = self._access.placement(job.first_block, job.blocks)
        chunk_ids = self._access.view.chunk_ids(job.block_ids)[self._skipped(whole):]
        limit = min(MAX_BLOCKS_PER_STORE, staging.save_blocks,
                    staging.link.info.max_blocks_per_call or MAX_BLOCKS_PER_STORE)
        for piece in whole.pieces(limit):
            region = staging.ring.take(self._access.region_bytes(piece))
            if region is None:
                self._drop(job, job.first_block + job.blocks - piece.first_block)
                return
            first = (piece.base_token - whole.base_token) // piece.chunk_tokens
            self._access.view.gather(chunk_ids[first:first + piece.chunks],
                                     staging.chunks(region, piece.chunks))
            self._queue.put(Staged(staging, region, piece, job))

    def _skipped(self, whole: Placement) -> int:
        """Chunks of the first engine block that lie before the row of chunks."""
        return whole.base_token % self._access.block_tokens // whole.chunk_tokens

    def forget(self, request_ids: set[str]) -> None:
        """These requests are finished."""
        self._gaps -= request_ids

    def close(self, timeout_s: float) -> None:
        """Sends what is staged, as far as the time allows."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _drop(self, job: SaveJob, blocks: int) -> None:
        self._gaps.add(job.request_id)
        self._counters.add("dropped_save_blocks", blocks)

    def _send_all(self) -> None:
        while (staged := self._queue.get()) is not None:
            try:
                self._send(staged)
            except Exception:
                log.exception("FlashQuant: a save failed")

    def _send(self, staged: Staged) -> None:
        if not self._access.lives(staged.staging):
            self._counters.add("dropped_save_blocks", staged.placement.blocks)
            return
        statuses = self._access.client.store(staged.staging.link, self._request(staged))
        if statuses is not None or self._access.lives(staged.staging):
            staged.staging.ring.give_back(staged.region)
        for status in statuses or ():
            name = pb.BlockStatus.Name(status).removeprefix("BLOCK_STATUS_").lower()
            self._counters.add(f"saved_{name}_blocks")

    def _request(self, staged: Staged) -> pb.StoreRequest:
        job, place = staged.job, staged.placement
        all_keys = job.preceding_keys + job.keys
        begin = len(job.preceding_keys) + (place.first_block - job.first_block) * KEY_BYTES
        return pb.StoreRequest(
            session_id=staged.staging.link.session_id, profile=job.profile,
            first_block_index=place.first_block,
            keys=all_keys[begin:begin + place.blocks * KEY_BYTES],
            preceding_keys=all_keys[max(0, begin - 2 * KEY_BYTES):begin],
            pages=self._access.pages(staged.staging, staged.region, place))
