"""Pages from host memory: raw ones copied, as a worker does without a node, and the node's own.

The node's pool on the GPU is small, so what was stored first has moved to host memory by the time
it is loaded. That is stored portion by portion; afterwards as much is stored as fast as it goes, to
see whether what is cold moves or is lost.
"""

import time
from pathlib import Path

import torch
from capacity import device_counters
from pages import serial_of
from paged_worker import PagedWorker
from shapes import Shape
from speed import mean_seconds, request_seconds, summary

from flashquant.codec_set import CodecSet
from flashquant.keys import KeyChain
from flashquant.local_node import LocalNode
from flashquant.wire import Profile

CHAINS, LOADED = 8, 4  # the first ones have left the GPU when all are stored
PORTION_BLOCKS = 64  # of a save
PAUSE_S = 0.1        # after each, for what has to move
SETTLE_S = 0.5


def copy_raw(worker: PagedWorker, ids: list[int], calls: int = 8) -> dict:
    """Blocks' raw pages from pinned memory into the cache: one copy, then a scatter by layer."""
    index = torch.tensor(ids, device=worker.device)
    host = torch.empty(len(worker.tensors), len(ids), *worker.tensors[0].shape[1:],
                       dtype=torch.float16, pin_memory=worker.device.type == "cuda")
    seconds = []
    for _ in range(calls + 1):
        begin_s = time.perf_counter()
        for tensor, rows in zip(worker.tensors, host):
            tensor[index] = rows.to(worker.device, non_blocking=True)
        if worker.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin_s)
    return {"name": "raw pages from pinned host memory", **summary(seconds[1:], host.nbytes)}


def load_from_host(node: LocalNode, worker: PagedWorker, profile: Profile, blocks: int) -> dict:
    """Stores chains until the first have left the GPU, then loads those, each once."""
    source, target = worker.take_chunks(blocks), worker.take_chunks(blocks)
    serials = [serial_of("rivals", block) for block in range(blocks)]
    worker.fill(source, serials)
    chains = [worker.chain(f"rivals-{profile.label}-{i}", blocks) for i in range(CHAINS)]
    for chain in chains:
        store(worker, chain, source, profile, PAUSE_S)
    before, seconds, wrong, missing = device_counters(node), [], 0, 0
    clock = request_seconds(node)
    for number, chain in enumerate(chains[:LOADED]):
        worker.poison(target)
        time.sleep(SETTLE_S)
        begin_s = time.perf_counter()
        worker.submit_load(f"load{number}", chain, blocks, target, profile.own_floor)
        bad = worker.wait(f"load{number}", loads=True)
        seconds.append(time.perf_counter() - begin_s)
        missing += len(bad) // worker.chunks_per_block
        wrong += 0 if bad else worker.wrong_pages(target, serials, profile)[0]
    changes = counter_changes(before, node)
    worker.free += source + target
    size = blocks * worker.shape.block_bytes
    return {"name": "load from the host tier", "profile": profile.label, "blocks": blocks,
            **summary(seconds, size), "wrong_pages": wrong, "blocks_not_loaded": missing,
            "best_GBps": size / min(seconds) / 1e9, "each_seconds": seconds,
            "node_seconds": mean_seconds(clock, request_seconds(node), "Load"),
            "node_before": before, "node_changes": changes}


def store_fast(node: LocalNode, worker: PagedWorker, profile: Profile, blocks: int) -> dict:
    """As many chains again, without a pause; what became of those that had to make room."""
    source = worker.take_chunks(blocks)
    worker.fill(source, [serial_of("rivals", block) for block in range(blocks)])
    before, begin_s = device_counters(node), time.perf_counter()
    for i in range(CHAINS):
        store(worker, worker.chain(f"fast-{profile.label}-{i}", blocks), source, profile, 0.0)
    seconds = time.perf_counter() - begin_s
    worker.free += source
    return {"name": "stores faster than slabs move to the host", "profile": profile.label,
            "blocks": CHAINS * blocks, "seconds": seconds,
            "GBps": CHAINS * blocks * worker.shape.block_bytes / seconds / 1e9,
            "node_changes": counter_changes(before, node)}


def counter_changes(before: dict[str, float], node: LocalNode) -> dict[str, float]:
    """What has changed of the node's counters of its tiers."""
    after = device_counters(node)
    return {name: after[name] - before.get(name, 0.0) for name in after
            if after[name] != before.get(name, 0.0)}


def store(worker: PagedWorker, chain: KeyChain, ids: list[int], profile: Profile,
          pause_s: float) -> None:
    """Portion by portion."""
    step = PORTION_BLOCKS * worker.chunks_per_block
    for begin in range(0, len(ids), step):
        name = f"save{begin}"
        worker.save(name, chain, begin // worker.chunks_per_block, ids[begin:begin + step], profile)
        worker.finish(name)
        worker.wait(name, loads=False)
        time.sleep(pause_s)


def measure_rivals(binary: Path, shape: Shape, codec: tuple[Path, CodecSet], device: str,
                   node_arguments: tuple[str, ...], blocks: int) -> list[dict]:
    """Raw pages, and compact ones of the node's host tier."""
    path, codec_set = codec
    with LocalNode(binary, [path], 8 << 30, node_arguments) as node:
        worker = PagedWorker(node.endpoint, shape, codec_set, device, 2 * blocks)
        try:
            loaded = load_from_host(node, worker, Profile.COMPACT, blocks)
            stored = store_fast(node, worker, Profile.COMPACT, blocks)
            return [loaded, stored, copy_raw(worker, worker.take_chunks(blocks))]
        finally:
            worker.close()
