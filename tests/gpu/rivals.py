"""Pages from host memory: raw ones copied, as a worker does without a node, and the node's own.

The node's pool on the GPU is small, so what was stored first has moved to host memory by the time
it is loaded.
"""

import time
from pathlib import Path

import torch
from capacity import device_counters
from pages import serial_of
from paged_worker import PagedWorker
from shapes import Shape
from speed import summary

from flashquant.codec_set import CodecSet
from flashquant.local_node import LocalNode
from flashquant.wire import Profile

CHAINS = 8  # the first half has left the GPU when all are stored


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
    for number, chain in enumerate(chains):
        worker.save(f"save{number}", chain, 0, source, profile)
        worker.finish(f"save{number}")
        worker.wait(f"save{number}", loads=False)
    time.sleep(2.0)  # what has to move has moved
    before, seconds, wrong = device_counters(node), [], 0
    for number, chain in enumerate(chains[:CHAINS // 2]):
        worker.poison(target)
        if worker.device.type == "cuda":
            torch.cuda.synchronize()
        begin_s = time.perf_counter()
        worker.submit_load(f"load{number}", chain, blocks, target, profile.own_floor)
        missing = worker.wait(f"load{number}", loads=True)
        seconds.append(time.perf_counter() - begin_s)
        if missing:
            raise RuntimeError(f"{profile.label}: {len(missing)} blocks did not load")
        wrong += worker.wrong_pages(target, serials, profile)[0]
    after = device_counters(node)
    worker.free += source + target
    return {"name": "load from the host tier", "profile": profile.label, "blocks": blocks,
            **summary(seconds, blocks * worker.shape.block_bytes), "wrong_pages": wrong,
            "best_GBps": blocks * worker.shape.block_bytes / min(seconds) / 1e9,
            "node": {name: after[name] - before.get(name, 0.0) for name in after
                     if after[name] != before.get(name, 0.0)}}


def measure_rivals(binary: Path, shape: Shape, codec: tuple[Path, CodecSet], device: str,
                   node_arguments: tuple[str, ...], blocks: int) -> list[dict]:
    """Raw pages, and compact ones of the node's host tier."""
    path, codec_set = codec
    with LocalNode(binary, [path], 8 << 30, node_arguments) as node:
        worker = PagedWorker(node.endpoint, shape, codec_set, device, 2 * blocks)
        try:
            ids = worker.take_chunks(blocks)
            results = [copy_raw(worker, ids)]
            worker.free += ids
            results.append(load_from_host(node, worker, Profile.COMPACT, blocks))
            return results + [copy_raw(worker, ids)]
        finally:
            worker.close()
