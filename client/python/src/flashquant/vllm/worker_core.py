"""Worker half of the connector: runs the scheduler's jobs on its own threads. Needs torch.

Hooks of the engine come from the model's thread only. Every submitted load is reported exactly
once, whatever happens to it, and the engine's blocks are not touched after the report.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from flashquant.client import Client
from flashquant.peer_link import PeerOptions
from flashquant.vllm.geometry import Packing
from flashquant.vllm.jobs import LoadJob, StepJobs
from flashquant.vllm.loader import Loader
from flashquant.vllm.page_access import PageAccess
from flashquant.vllm.saver import Saver
from flashquant.vllm.staging import View
from flashquant.vllm.transport import mark_stream

log = logging.getLogger("flashquant")

LOADER_THREADS = 2
SHUTDOWN_S = 2.0
PREEMPTED_S = 2.0  # a node that is alive has long answered by then


@dataclass(frozen=True)
class Submitted:
    """A load that waits for a thread."""

    job: LoadJob
    cancelled: threading.Event
    submitted_s: float
    after: torch.cuda.Event | None  # the engine's work before it


class WorkerCore:
    """See the head of the file."""

    def __init__(self, client: Client, view: View, packing: Packing, block_tokens: int,
                 device: torch.device | None = None, peers: PeerOptions | None = None) -> None:
        """Starts the client and the threads. `block_tokens`: size of the engine's blocks;
        `device`: the GPU of the cache; `peers`: see PageAccess."""
        self._client, self._block_tokens, self._device = client, block_tokens, device
        self.access = PageAccess(client, view, packing, block_tokens, device, peers)
        self._saver = Saver(self.access)
        self._jobs: queue.SimpleQueue[Submitted | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the three below
        self._running: dict[str, threading.Event] = {}
        self._finished: set[str] = set()
        self._bad_blocks: set[int] = set()
        self._threads = [threading.Thread(target=self._load_all, name="fq-load", daemon=True)
                         for _ in range(LOADER_THREADS)]
        for thread in self._threads:
            thread.start()
        client.start()

    def submit_loads(self, jobs: StepJobs) -> None:
        """Starts the loads of a step, behind what the model's stream does by now."""
        after = mark_stream(self._device) if jobs.loads and self._device else None
        for job in jobs.loads:
            cancelled = threading.Event()
            with self._lock:
                self._running[job.request_id] = cancelled
            self._jobs.put(Submitted(job, cancelled, time.monotonic(), after))

    def stage_saves(self, jobs: StepJobs) -> None:
        """Takes what a step saves.

        Copied, if staged: the engine may change its blocks afterwards. Else not before
        wait_preempted() returned, or take_saved() named the request.
        """
        begin_s = time.perf_counter()
        for job in jobs.saves:
            self._saver.stage(job)
        if jobs.saves:
            self.access.counters.add("staging_seconds", time.perf_counter() - begin_s)

    def wait_preempted(self, jobs: StepJobs) -> None:
        """Before the engine overwrites blocks of preempted requests."""
        if jobs.preempted:
            self._saver.wait(jobs.preempted, PREEMPTED_S)

    def hold_saved(self, jobs: StepJobs) -> None:
        """Finished requests whose blocks the engine keeps for their saves."""
        self._saver.hold(jobs.held)

    def take_saved(self) -> set[str]:
        """Those of them whose saves have ended, each once."""
        return self._saver.take_ended()

    def requests_finished(self, request_ids: Iterable[str]) -> None:
        """Cancels their loads (they are reported all the same) and forgets them."""
        ids = set(request_ids)
        self._saver.forget(ids)
        with self._lock:
            for request_id in ids & self._running.keys():
                self._running[request_id].set()

    def take_results(self) -> set[str]:
        """Requests whose loads ended since the last call."""
        with self._lock:
            finished, self._finished = self._finished, set()
            return finished

    def take_bad_blocks(self) -> set[int]:
        """Engine blocks that did not load, of the requests of the last take_results() and
        before. Loads that end between the two calls may be in it as well: early is allowed."""
        with self._lock:
            bad, self._bad_blocks = self._bad_blocks, set()
            return bad

    def take_counters(self) -> dict[str, float]:
        """Counts since the last call."""
        return self.access.counters.take()

    def shutdown(self) -> None:
        """Ends all threads within about three seconds. Idempotent."""
        self.access.closing.set()
        with self._lock:
            for cancelled in self._running.values():
                cancelled.set()
        for _ in self._threads:
            self._jobs.put(None)
        self._saver.close(SHUTDOWN_S / 2)
        self.access.join(SHUTDOWN_S / 2)
        self._client.close()
        for thread in self._threads:
            thread.join(SHUTDOWN_S / 4)

    def _load_all(self) -> None:
        while (entry := self._jobs.get()) is not None:
            self._load(entry)

    def _load(self, entry: Submitted) -> None:
        job, cancelled, submitted_s = entry.job, entry.cancelled, entry.submitted_s
        good_end = job.begin_token
        try:
            waited_s = time.monotonic() - submitted_s
            timeout_s = self._client.deadlines.load_s - waited_s
            if timeout_s > 0 and not cancelled.is_set():
                good_end = Loader(self.access, job, cancelled, timeout_s, entry.after).run()
        except Exception:
            log.exception("FlashQuant: a load failed")
        bad = job.block_ids[(good_end - job.begin_token) // self._block_tokens:]
        counters = self.access.counters
        counters.add("load_seconds", time.monotonic() - submitted_s)
        counters.add("loads")
        counters.add("failed_load_blocks", len(bad))
        with self._lock:
            self._running.pop(job.request_id, None)
            if not cancelled.is_set():
                self._bad_blocks.update(bad)
            self._finished.add(job.request_id)
