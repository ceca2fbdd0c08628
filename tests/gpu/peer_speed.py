"""Gigabytes a second of loads and saves by NCCL beside a plain loop, and what they cost others.

GB/s count FP16 bytes, from the call to the rows in their place: a load from the job to its
report, a save from the job to the node's reply. The plain loop moves as many bytes in operations
of the same size between the same GPUs, in turns with them.
"""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pages import serial_of
from paged_worker import PagedWorker
from peers import PlainLoops, peers_for, spread
from shapes import Shape

from flashquant import nccl
from flashquant.codec_set import CodecSet
from flashquant.local_node import LocalNode
from flashquant.v1 import admin_pb2, admin_pb2_grpc
from flashquant.vllm.peer_way import Nccl
from flashquant.wire import Profile

import grpc

WINDOW_BYTES = 2 << 30
HOST_BYTES = 2 << 30
JOBS = 4       # at a time, where the longest is measured so
WAIT_S = 60.0
MATMUL = 8192
MATMULS = 60
OVERLAP_ROUNDS = 5


class Mover:
    """Loads and saves of one worker, whole chains at a time."""

    def __init__(self, node: LocalNode, worker: PagedWorker, blocks: int) -> None:
        self._node, self._worker, self._jobs = node, worker, 0
        self._ids, self._target = worker.take_chunks(blocks), worker.take_chunks(blocks)
        self._serials = [serial_of("move", i) for i in range(blocks)]
        worker.fill(self._ids, self._serials)

    def save(self, blocks: int, profile: Profile, jobs: int = 1) -> float:
        """Seconds of so many at a time; the chain of the last is the next loads'."""
        worker, names = self._worker, self._names(jobs)
        chains = [worker.chain(name, blocks) for name in names]
        settle(worker)
        begin_s = time.perf_counter()
        for name, chain in zip(names, chains):
            worker.save(name, chain, 0, self._part(self._ids, blocks), profile)
            worker.finish(name)
        self._wait(names, loads=False)
        self.chain = chains[-1]
        return time.perf_counter() - begin_s

    def save_and_forget(self, blocks: int, profile: Profile) -> float:
        """Seconds of the save alone."""
        seconds = self.save(blocks, profile)
        self.purge()
        return seconds

    def load(self, blocks: int, profile: Profile, jobs: int = 1) -> float:
        """Seconds of so many at a time; RuntimeError when blocks are missing."""
        names = self._names(jobs)
        begin_s = time.perf_counter()
        for name in names:
            self._worker.submit_load(name, self.chain, blocks, self._part(self._target, blocks),
                                     profile.own_floor)
        if missing := self._wait(names, loads=True):
            raise RuntimeError(f"{len(missing)} chunks of {blocks} blocks did not load")
        return time.perf_counter() - begin_s

    def _names(self, jobs: int) -> list[str]:
        self._jobs += jobs
        return [f"move-{self._jobs - i}" for i in range(jobs)]

    def _wait(self, names: list[str], loads: bool) -> set[int]:
        """Until all are reported; blocks that did not load."""
        left, missing = set(names), set()
        deadline_s = time.monotonic() + WAIT_S
        while left:
            results = self._worker.step()
            left -= results[loads]
            missing |= results[2]
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{left}: no report within {WAIT_S:.0f} s")
            time.sleep(0.0001)
        return missing

    def purge(self) -> None:
        """The node forgets all."""
        with grpc.insecure_channel(self._node.endpoint) as channel:
            admin_pb2_grpc.AdminStub(channel).Purge(admin_pb2.PurgeRequest(
                namespace_name=self._worker.namespace_name), timeout=60)

    def poison(self) -> None:
        """Before a load that is checked."""
        self._worker.poison(self._target)

    def wrong_pages(self, blocks: int, profile: Profile) -> int:
        """In what was loaded last."""
        return self._worker.wrong_pages(self._part(self._target, blocks), self._serials[:blocks],
                                        profile)[0]

    def _part(self, ids: list[int], blocks: int) -> list[int]:
        return ids[:blocks * self._worker.chunks_per_block]


def settle(worker: PagedWorker) -> None:
    """Waits for what its GPU still does."""
    if worker.device.type == "cuda":
        torch.cuda.synchronize(worker.device)


def plain_loops() -> PlainLoops:
    """As NCCL likes it, and with at most 16 multiprocessors."""
    return PlainLoops(WINDOW_BYTES // 2, {"plain": nccl.UNDEFINED, "plain_16_ctas": 16})


@contextlib.contextmanager
def linked_worker(binary: Path, arguments: tuple[str, ...], shape: Shape,
                  codec: tuple[Path, CodecSet], device: str,
                  blocks: int) -> Iterator[tuple[PagedWorker, Mover, Nccl]]:
    """A worker whose pages go by a peer link to a node of its own, and what moves `blocks` of
    them."""
    path, codec_set = codec
    with LocalNode(binary, [path], HOST_BYTES, arguments) as node:
        worker = PagedWorker(node.endpoint, shape, codec_set, device, 2 * blocks,
                             peers=peers_for(device, WINDOW_BYTES))
        try:
            way = worker.wait_transport("nccl")
            yield worker, Mover(node, worker, blocks), way
        finally:
            worker.close()


def measure_bandwidth(binary: Path, arguments: tuple[str, ...], shape: Shape,
                      codec: tuple[Path, CodecSet], device: str, counts: tuple[int, ...],
                      rounds: int, loops: PlainLoops | None = None) -> list[dict]:
    """One entry for each count of blocks, profile and direction."""
    most = max(counts)
    plan = [(Profile.EXACT, count, 1) for count in counts]
    plan += [(Profile.EXACT, most, JOBS), (Profile.COMPACT, most, 1)]
    with linked_worker(binary, arguments, shape, codec, device, most) as (_, mover, way):
        return [result for profile, count, jobs in plan
                for result in in_turns(mover, loops, shape, profile, count, way.load_blocks,
                                       rounds, jobs)]


def in_turns(mover: Mover, loops: PlainLoops | None, shape: Shape, profile: Profile,
             blocks: int, piece_blocks: int, rounds: int, jobs: int) -> list[dict]:
    """Saves and loads, with the plain loops of each direction between them."""
    size, limit = jobs * blocks * shape.block_bytes, piece_blocks * shape.block_bytes
    seconds: dict[str, dict[str, list[float]]] = {"save": {}, "load": {}}

    def note(direction: str, name: str, taken_s: float) -> None:
        seconds[direction].setdefault(name, []).append(taken_s)

    mover.save(blocks, profile)  # the first of its size
    mover.poison()
    mover.load(blocks, profile)
    wrong = mover.wrong_pages(blocks, profile)
    for _ in range(rounds):
        mover.purge()
        for direction, move in (("save", mover.save), ("load", mover.load)):
            for name in loops.names if loops else ():
                note(direction, name, loops.seconds(name, size, limit, direction == "load"))
            note(direction, "link", move(blocks, profile, jobs))
    return [{"jobs": jobs, **entry(direction, shape, profile, size, limit, taken, wrong)}
            for direction, taken in seconds.items()]


def entry(direction: str, shape: Shape, profile: Profile, size: int, limit: int,
          taken: dict[str, list[float]], wrong: int) -> dict:
    """Figures of one direction."""
    rates = {name: spread([size / second / 1e9 for second in values])
             for name, values in taken.items()}
    result = {"name": direction, "shape": shape.name, "profile": profile.label, "bytes": size,
              "operation_bytes": min(size, limit), "window_bytes": WINDOW_BYTES,
              "wrong_pages": wrong,
              **{f"{name}_GBps": rate for name, rate in rates.items()}}
    if "plain" in rates:
        result["of_plain"] = rates["link"]["median"] / rates["plain"]["median"]
    return result


def measure_overlap(binary: Path, arguments: tuple[str, ...], shape: Shape,
                    codec: tuple[Path, CodecSet], device: str, blocks: int) -> list[dict]:
    """Milliseconds of a matmul on the worker's GPU, alone and while pages come or go."""
    results = []
    with linked_worker(binary, arguments, shape, codec, device, blocks) as (_, mover, _):
        for profile in (Profile.EXACT, Profile.COMPACT):
            mover.save(blocks, profile)
            for name, move in (("load", mover.load), ("save", mover.save_and_forget)):
                results.append({"name": name, "profile": profile.label, "shape": shape.name,
                                **beside(lambda move=move, profile=profile:
                                         move(blocks, profile), device,
                                         blocks * shape.block_bytes)})
    return results


def beside(move: Callable[[], float], device: str, size: int) -> dict:
    """Matmuls alone and beside moves, in turns."""
    work = Matmul(device)
    alone, busy, rates = [], [], []
    for _ in range(OVERLAP_ROUNDS):
        alone.append(work.milliseconds())
        stop = threading.Event()
        taken: list[float] = []

        def keep_moving() -> None:
            while not stop.is_set():
                taken.append(move())
        mover = threading.Thread(target=keep_moving)
        mover.start()
        time.sleep(0.02)
        busy.append(work.milliseconds())
        stop.set()
        mover.join()
        rates += [size / second / 1e9 for second in taken]
    return {"matmul": f"{MATMUL} x {MATMUL} x {MATMUL} BF16", "alone_ms": spread(alone),
            "beside_ms": spread(busy), "moved_GBps": spread(rates),
            "slower_by": statistics.median(busy) / statistics.median(alone) - 1}


class Matmul:
    """A loop on a stream of its own."""

    def __init__(self, device: str) -> None:
        self._stream = torch.cuda.Stream(device)
        self._a, self._b, self._c = (torch.randn(MATMUL, MATMUL, device=device,
                                                 dtype=torch.bfloat16) for _ in range(3))
        self.milliseconds()

    def milliseconds(self) -> float:
        """Mean of a loop."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            begin.record()
            for _ in range(MATMULS):
                torch.matmul(self._a, self._b, out=self._c)
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / MATMULS
