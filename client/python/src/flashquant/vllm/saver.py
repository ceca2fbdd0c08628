"""Saves: the model's thread hands chunks to the transport, one thread sends them to the node.

A direct transport reads the engine's own blocks, so a request's blocks must not be freed or
overwritten before its saves have ended: `take_ended` and `wait` are for that.
"""

import collections
import logging
import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

import grpc

from flashquant.keys import KEY_BYTES
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.jobs import SaveJob
from flashquant.vllm.page_access import PageAccess
from flashquant.vllm.placement import Placement
from flashquant.vllm.transport import Hold, Transport

log = logging.getLogger("flashquant")

NO_REPLY = "a Store ended without a reply"


@dataclass(frozen=True)
class Staged:
    """Blocks that wait for their Store."""

    transport: Transport
    hold: Hold
    job: SaveJob


@dataclass(frozen=True)
class Sent:
    """A Store under way. `future` None: it is called when it is waited for."""

    staged: Staged
    request: pb.StoreRequest
    limit_s: float
    future: grpc.Future | None


class Saver:
    """Hooks on the model's thread only; nothing here but wait() ever waits for the node."""

    def __init__(self, access: PageAccess) -> None:
        self._access, self._counters = access, access.counters
        self._queue: queue.SimpleQueue[Staged | None] = queue.SimpleQueue()
        self._gaps: set[str] = set()  # requests with a dropped save: later blocks are useless
        self._state = threading.Condition()  # guards the next two
        self._running: collections.Counter[str] = collections.Counter()  # saves by request, if any
        self._held: set[str] = set()  # finished requests whose blocks are kept for us
        self._thread = threading.Thread(target=self._send_all, name="fq-save", daemon=True)
        self._thread.start()

    def stage(self, job: SaveJob) -> None:
        """Takes the job's chunks, or drops the job when there is no node or no room."""
        transport = None if job.request_id in self._gaps else self._access.transport()
        if transport is None:
            self._drop(job, job.blocks)
            return
        whole = self._access.placement(job.first_block, job.blocks)
        chunk_ids = self._access.view.chunk_ids(job.block_ids)[self._skipped(whole):]
        limit = min(transport.save_blocks,
                    transport.link.info.max_blocks_per_call or transport.save_blocks)
        for piece in whole.pieces(limit):
            first = (piece.base_token - whole.base_token) // piece.chunk_tokens
            hold = transport.begin_save(piece, chunk_ids[first:first + piece.chunks])
            if hold is None:
                self._drop(job, job.first_block + job.blocks - piece.first_block)
                return
            with self._state:
                self._running[job.request_id] += 1
            self._queue.put(Staged(transport, hold, job))

    def _skipped(self, whole: Placement) -> int:
        """Chunks of the first engine block that lie before the row of chunks."""
        return whole.base_token % self._access.block_tokens // whole.chunk_tokens

    def forget(self, request_ids: set[str]) -> None:
        """These requests are finished."""
        self._gaps -= request_ids

    def hold(self, request_ids: Iterable[str]) -> None:
        """The engine keeps these finished requests' blocks until take_ended() names them."""
        with self._state:
            self._held.update(request_ids)

    def take_ended(self) -> set[str]:
        """Held requests without a running save, each once."""
        with self._state:
            ended = {request_id for request_id in self._held if not self._running[request_id]}
            self._held -= ended
            return ended

    def wait(self, request_ids: Iterable[str], timeout_s: float) -> None:
        """Waits for these requests' saves: the engine is about to overwrite their blocks."""
        ids = list(request_ids)
        with self._state:
            ended = self._state.wait_for(lambda: not any(self._running[i] for i in ids), timeout_s)
        if not ended:
            log.error("FlashQuant: saves of preempted requests still run after %.1f s", timeout_s)

    def close(self, timeout_s: float) -> None:
        """Sends what is staged, as far as the time allows."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _drop(self, job: SaveJob, blocks: int) -> None:
        self._gaps.add(job.request_id)
        self._counters.add("dropped_save_blocks", blocks)

    def _send_all(self) -> None:
        running: collections.deque[Sent] = collections.deque()
        going = True
        while going or running:
            if running and (not going or self._queue.empty()):
                self._finish(running.popleft())
            else:
                going = self._take(running)

    def _take(self, running: collections.deque[Sent]) -> bool:
        """Begins the next save; False: there will be none. No name of it outlives this: its link's
        memory must go with the link, however long the next one takes to come."""
        staged = self._queue.get()
        if staged is None:
            return False
        running.extend(self._begin(staged))
        if len(running) >= staged.transport.saves_in_flight:
            self._finish(running.popleft())
        return True

    def _begin(self, staged: Staged) -> list[Sent]:
        """Makes the Store, and sends it where several go at a time; [] when it is dropped."""
        try:
            sent = self._sent(staged)
        except Exception:
            log.exception("FlashQuant: a save failed")
            sent = []
        if not sent:
            self._ended(staged.job.request_id)
        return sent

    def _sent(self, staged: Staged) -> list[Sent]:
        transport, hold, client = staged.transport, staged.hold, self._access.client
        if hold.ready is not None:
            hold.ready.synchronize()
        request, lives = self._request(staged), self._access.lives(transport)
        hold = transport.prepare(hold, request) if lives else None
        if hold is None:
            self._counters.add("dropped_save_blocks", staged.hold.placement.blocks)
            return []
        limit_s, later = min(client.deadlines.store_s, transport.store_limit_s), None
        if transport.eager:
            later = client.call_with_callback(transport.link, "Store", request, limit_s)
            if later is not None:
                later.add_done_callback(lambda future: tell(transport, future))
                transport.dispatch(hold, request)
        return [Sent(replace(staged, hold=hold), request, limit_s, later)]

    def _finish(self, sent: Sent) -> None:
        try:
            self._wait(sent)
        except Exception:
            log.exception("FlashQuant: a save failed")
        finally:
            self._ended(sent.staged.job.request_id)

    def _wait(self, sent: Sent) -> None:
        transport, hold, client = sent.staged.transport, sent.staged.hold, self._access.client
        if not transport.eager:
            statuses = client.store(transport.link, sent.request, sent.limit_s)
        else:
            reply = client.answer(transport.link, sent.future, sent.limit_s)
            statuses = None if reply is None else list(reply.statuses)
        if statuses is None:
            transport.failed(NO_REPLY)
        if statuses is not None or self._access.lives(transport):
            transport.end_save(hold)
        else:
            transport.settle(self._access.closing)
        for status in statuses or ():
            name = pb.BlockStatus.Name(status).removeprefix("BLOCK_STATUS_").lower()
            self._counters.add(f"saved_{name}_blocks")

    def _ended(self, request_id: str) -> None:
        with self._state:
            self._running[request_id] -= 1
            if not self._running[request_id]:  # a counter keeps zeros
                del self._running[request_id]
            self._state.notify_all()

    def _request(self, staged: Staged) -> pb.StoreRequest:
        job, place, transport = staged.job, staged.hold.placement, staged.transport
        all_keys = job.preceding_keys + job.keys
        begin = len(job.preceding_keys) + (place.first_block - job.first_block) * KEY_BYTES
        return pb.StoreRequest(
            session_id=transport.link.session_id, profile=job.profile,
            first_block_index=place.first_block,
            keys=all_keys[begin:begin + place.blocks * KEY_BYTES],
            preceding_keys=all_keys[max(0, begin - 2 * KEY_BYTES):begin])


def tell(transport: Transport, future: grpc.Future) -> None:
    """A Store has ended: at once, for this object's thread may be held up."""
    if future.cancelled() or future.exception() is not None:
        transport.failed(NO_REPLY)
