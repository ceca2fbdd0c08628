"""Gigabytes a second of Store and Load on device segments, beside what a worker would do otherwise.

GB/s count the FP16 bytes of the rows, as does the copy beside them; times are wall clock from the
rows in the cache to the reply, and back, making the request included. All medians; `spread` is
(third - first quartile) / median.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pages import serial_of
from paged_worker import PagedWorker
from shapes import Shape

from flashquant.codec_set import CodecSet
from flashquant.keys import KEY_BYTES
from flashquant.local_node import LocalNode
from flashquant.v1 import admin_pb2, admin_pb2_grpc
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.placement import Placement
from flashquant.wire import Profile

import grpc

COUNTS = (1, 16, 256)        # blocks per call
STORED_BYTES = 12e9          # at most, of one measurement
BITS = {Profile.COMPACT: 2.2, Profile.NEAR_LOSSLESS: 4.2, Profile.UNIVERSAL: 4.4,
        Profile.EXACT: 16.1}


def summary(seconds: list[float], size: int) -> dict[str, float]:
    """Of equal calls that moved `size` bytes each."""
    median = statistics.median(seconds)
    first, _, third = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    return {"seconds": median, "GBps": size / median / 1e9, "spread": (third - first) / median,
            "calls": len(seconds)}


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    begin_s = time.perf_counter()
    call()
    return time.perf_counter() - begin_s


def request_seconds(node: LocalNode) -> dict[str, float]:
    """Sums and counts of the node's own clock, by metric."""
    counters = node.status(timeout_s=60).counters
    return {name: value for name, value in counters.items() if "request_duration" in name}


def mean_seconds(before: dict[str, float], after: dict[str, float], method: str) -> float:
    """Of the calls between, from the whole request to the whole reply."""
    total, calls = (after[name] - before[name] for name in (
        f'fq_request_duration_seconds_{part}{{method="{method}"}}' for part in ("sum", "count")))
    return total / calls


class CallBench:
    """Calls of one worker on its own cache: half of it is stored, half loaded into."""

    def __init__(self, node: LocalNode, worker: PagedWorker) -> None:
        self._node, self._worker = node, worker
        self._transport = worker.core.access.transport()
        self._link = self._transport.link
        half = len(worker.free) // 2 // worker.chunks_per_block
        self.source, self.target = worker.take_chunks(half), worker.take_chunks(half)
        self.serials = [serial_of("speed", i) for i in range(half)]
        worker.fill(self.source, self.serials)
        self._chains = 0

    def measure(self, profile: Profile, counts: tuple[int, ...] = COUNTS) -> list[dict]:
        """Store and Load of one profile, one entry a count of blocks."""
        results = []
        for count in counts:
            size = count * self._worker.shape.block_bytes
            stored = size * BITS[profile] / 16
            stores = int(max(3, min(30, STORED_BYTES / stored)))
            common = {"shape": self._worker.shape.name, "profile": profile.label, "blocks": count,
                      "chunk_tokens": self._worker.chunk_tokens, "transport": self._transport.name}
            before = request_seconds(self._node)
            seconds = [self._store(count, profile) for _ in range(stores + 1)][1:]
            middle = request_seconds(self._node)
            results.append({"name": "store", **common, **summary(seconds, size),
                            "node_seconds": mean_seconds(before, middle, "Store")})
            seconds, wrong = self._loads(count, profile, 30 if count < 100 else 15)
            results.append({"name": "load", **common, **summary(seconds, size),
                            "node_seconds": mean_seconds(middle, request_seconds(self._node),
                                                         "Load"), "wrong_pages": wrong})
            self.purge()
        return results

    def _row(self, ids: list[int], count: int) -> tuple[Placement, np.ndarray]:
        chunks = np.asarray(ids[:count * self._worker.chunks_per_block], dtype=np.int64)
        return Placement(0, count, self._worker.chunk_tokens), chunks

    def _store(self, count: int, profile: Profile) -> float:
        self._chains += 1
        self._chain = self._worker.chain(f"speed-{self._chains}", count)
        self._settle()
        begin_s = time.perf_counter()
        hold = self._transport.begin_save(*self._row(self.source, count))
        if hold.ready is not None:
            hold.ready.synchronize()
        statuses = self._worker.client.store(self._link, pb.StoreRequest(
            session_id=self._link.session_id, profile=profile, keys=self._chain.keys(0, count),
            pages=self._transport.pages(hold)))
        seconds = time.perf_counter() - begin_s
        self._transport.end_save(hold)
        if statuses != [pb.BLOCK_STATUS_OK] * count:
            raise RuntimeError(f"store of {count} blocks: {statuses}")
        return seconds

    def _settle(self) -> None:
        if self._worker.device.type == "cuda":
            torch.cuda.synchronize()

    def _loads(self, count: int, profile: Profile, calls: int) -> tuple[list[float], int]:
        """Seconds of loads of the last chain; wrong pages of the last one."""
        match = self._worker.client.lookup(self._chain.keys(0, count), profile.own_floor, True)
        if match is None or match.matched_blocks != count:
            raise RuntimeError(f"lookup of {count} blocks: {match}")
        ids = self.target[:count * self._worker.chunks_per_block]
        self._worker.poison(ids)
        seconds = [self._load(count, profile, match.lease_id) for _ in range(calls + 1)]
        self._worker.client.release(self._link, match.lease_id)
        return seconds[1:], self._worker.wrong_pages(ids, self.serials[:count], profile)[0]

    def _load(self, count: int, profile: Profile, lease_id: bytes) -> float:
        place, chunks = self._row(self.target, count)
        self._settle()
        begin_s = time.perf_counter()
        hold = self._transport.begin_load(place, chunks, 60.0)
        reply = self._worker.client.load(self._link, pb.LoadRequest(
            session_id=self._link.session_id, lease_id=lease_id, block_count=count,
            min_profile=profile.own_floor, pages=self._transport.pages(hold)))
        if reply is None or list(reply.statuses) != [pb.BLOCK_STATUS_OK] * count:
            raise RuntimeError(f"load of {count} blocks: {reply}")
        self._transport.deliver(hold, reply, 0, len(chunks))
        seconds = time.perf_counter() - begin_s
        self._transport.end_load(hold)
        return seconds

    def empty_calls(self, calls: int = 200) -> list[dict]:
        """Lookups of one block that is not there, each way: what a call alone takes from Python."""
        request = pb.LookupRequest(session_id=self._link.session_id, keys=bytes(KEY_BYTES),
                                   no_lease=True)
        ways = {"grpc": lambda: self._link.stub.Lookup(request, timeout=60),
                "call socket": lambda: self._link.calls.start("Lookup", request, 60).result()}
        results = []
        for way, call in ways.items():
            before = request_seconds(self._node)
            seconds = [timed(call) for _ in range(calls)]
            results.append({"name": "empty call", "way": way, **summary(seconds, 0),
                            "node_seconds": mean_seconds(before, request_seconds(self._node),
                                                         "Lookup")})
        return results

    def purge(self) -> None:
        """The node forgets all."""
        with grpc.insecure_channel(self._node.endpoint) as channel:
            admin_pb2_grpc.AdminStub(channel).Purge(admin_pb2.PurgeRequest(
                namespace_name=self._worker.namespace_name), timeout=60)


def copies(device: str, size: int = 2 << 30, calls: int = 9) -> list[dict]:
    """Device to device, and pinned host to device and back: GB/s of the bytes copied once."""
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    pairs = {"copy device to device": (target, source), "copy pinned host to device":
             (target, host), "copy device to pinned host": (host, source)}

    def copy(to: torch.Tensor, of: torch.Tensor) -> None:
        to.copy_(of, non_blocking=True)
        torch.cuda.synchronize()

    for pair in pairs.values():
        copy(*pair)
    seconds = {name: [] for name in pairs}
    for _ in range(calls):
        for name, pair in pairs.items():
            seconds[name].append(timed(lambda pair=pair: copy(*pair)))
    del source, target, pairs, pair
    torch.cuda.empty_cache()
    return [{"name": name, **summary(values, size)} for name, values in seconds.items()]


def measure_speed(binary: Path, shape: Shape, codec: tuple[Path, CodecSet], device: str,
                  node_arguments: tuple[str, ...], profiles: tuple[Profile, ...],
                  counts: tuple[int, ...] = COUNTS) -> list[dict]:
    """All figures of one shape from one node."""
    path, codec_set = codec
    with LocalNode(binary, [path], 2 << 30, node_arguments) as node:
        worker = PagedWorker(node.endpoint, shape, codec_set, device, 2 * max(counts))
        try:
            bench = CallBench(node, worker)
            results = bench.empty_calls()
            for profile in profiles:
                results += bench.measure(profile, counts)
            return results
        finally:
            worker.close()
