"""A long context that fits the node only compressed: stored, loaded, every page checked.

Also samples of blocks beside other decoders: the node's CPU decoder, by loads through a message,
and, of some pages, the reference decoder of the client on encoded bytes whose checksums it checks.
"""

import random
import subprocess
import time
from pathlib import Path

import torch
from pages import serial_of
from paged_worker import PagedWorker
from shapes import Shape

from flashquant.client import Match
from flashquant.codec import Page, PageKind, decode_extent, decode_fq, page_bytes, row_codecs
from flashquant.codec_set import CodecSet
from flashquant.keys import BLOCK_TOKENS
from flashquant.local_node import LocalNode
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.wire import Profile

TIER_METRICS = ("device", "moted", "demotions", "evicted", "missed", "transport")
PIECE_BLOCKS = 256     # of the worker's cache; the context is moved through it
DECODED_TOLERANCE = 2.0 ** -7  # FORMAT.md: inverse transform, FP16 rows of size about 1
CPU_BLOCKS = 48        # decoded on the node's CPU too
REFERENCE_HEADS = 24   # of a sampled block: the reference decoder takes 0.1 s for each


class Capacity:
    """One conversation of `blocks` blocks through a worker whose cache holds a piece of it."""

    def __init__(self, worker: PagedWorker, codec_set: CodecSet, blocks: int) -> None:
        self._worker, self._codec_set, self._blocks = worker, codec_set, blocks
        self._chain = worker.chain("long", blocks)
        self._keys = self._chain.keys(0, blocks)
        self._ids = worker.take_chunks(min(blocks, PIECE_BLOCKS))
        self._piece = min(blocks, PIECE_BLOCKS)

    def _pieces(self) -> list[tuple[int, int]]:
        cuts = [*range(0, self._blocks, self._piece), self._blocks]
        return list(zip(cuts, cuts[1:]))

    def _part(self, begin: int, end: int) -> tuple[list[int], list[int]]:
        ids = self._ids[:(end - begin) * self._worker.chunks_per_block]
        return ids, [serial_of("long", block) for block in range(begin, end)]

    def store(self) -> float:
        """Seconds in saves; all blocks are published on return."""
        seconds = 0.0
        for begin, end in self._pieces():
            ids, serials = self._part(begin, end)
            self._worker.fill(ids, serials)
            begin_s = time.perf_counter()
            self._worker.save(f"save{begin}", self._chain, begin, ids, Profile.COMPACT)
            self._worker.finish(f"save{begin}")
            self._worker.wait(f"save{begin}", loads=False)
            seconds += time.perf_counter() - begin_s
        return seconds

    def match(self) -> Match:
        """A leased lookup of all; RuntimeError when a block is missing."""
        match = self._worker.client.lookup(self._keys, Profile.COMPACT, lease=True)
        if match is None or match.usable_blocks != self._blocks:
            raise RuntimeError(f"stored {self._blocks} blocks, a lookup found {match}")
        return match

    def load(self) -> dict:
        """Loads every block and checks every page where it lies."""
        seconds, wrong, worst, bad = 0.0, 0, 0.0, 0
        for begin, end in self._pieces():
            ids, serials = self._part(begin, end)
            self._worker.poison(ids)
            begin_s = time.perf_counter()
            self._worker.load_range(f"load{begin}", self._keys, begin, end, ids)
            bad += len(self._worker.wait(f"load{begin}", loads=True))
            seconds += time.perf_counter() - begin_s
            found, error = self._worker.wrong_pages(ids, serials, Profile.COMPACT)
            wrong, worst = wrong + found, max(worst, error)
        shape = self._worker.shape
        return {"load_seconds": seconds, "load_GBps": self.raw_bytes / seconds / 1e9,
                "blocks_not_loaded": bad,
                "checked_pages": self._blocks * shape.layers * shape.heads * 2,
                "wrong_pages": wrong, "largest_page_error": worst}

    @property
    def raw_bytes(self) -> int:
        """FP16 bytes of the context."""
        return self._blocks * self._worker.shape.block_bytes

    def _sample(self, count: int) -> list[int]:
        return sorted(random.Random(3).sample(range(self._blocks), min(count, self._blocks)))

    def _load_block(self, block: int) -> list[int]:
        """Engine blocks that hold it now; RuntimeError when it did not load."""
        ids = self._ids[:self._worker.chunks_per_block]
        self._worker.load_range("sample", self._keys, block, block + 1, ids)
        if self._worker.wait("sample", loads=True):
            raise RuntimeError(f"block {block} did not load")
        return ids

    def check_beside_cpu(self) -> dict:
        """Sampled blocks, all pages: what the node put into the worker's cache beside what its CPU
        decodes of the same slabs."""
        worker, shape, worst = self._worker, self._worker.shape, 0.0
        chosen, match = self._sample(CPU_BLOCKS), self.match()
        for block in chosen:
            ids = self._load_block(block)
            reply = worker.client.load(match.link, pb.LoadRequest(
                session_id=match.link.session_id, lease_id=match.lease_id, first_block=block,
                block_count=1, min_profile=Profile.COMPACT))
            if reply is None or list(reply.statuses) != [pb.BLOCK_STATUS_OK]:
                raise RuntimeError(f"block {block}: no rows: {reply}")
            rows = torch.frombuffer(bytearray(reply.payload), dtype=torch.float16).to(worker.device)
            sides = rows.view(shape.layers, shape.heads, 2, BLOCK_TOKENS, shape.head_size)
            for tensor, expected in zip(worker.tensors, sides.transpose(2, 3).flatten(3)):
                found = tensor[ids].transpose(0, 1).flatten(1, 2)
                worst = max(worst, float((found.float() - expected.float()).abs().max()))
        worker.client.release(match.link, match.lease_id)
        return {"decoded_beside_cpu_pages": 2 * shape.layers * shape.heads * len(chosen),
                "largest_difference_to_cpu": worst}

    def check_encoded(self, samples: int) -> dict:
        """Sampled blocks: extents with good checksums, and some of their pages beside what the node
        put into the worker's cache. Each under a lease of its own: decoding takes longer than a
        lease lives."""
        chosen = self._sample(samples)
        worst, pages = 0.0, 0
        for block in chosen:
            error, count = self._check_block(self.match(), block)
            worst, pages = max(worst, error), pages + count
        return {"decoded_beside_reference_pages": pages, "largest_difference": worst,
                "tolerance": DECODED_TOLERANCE}

    def _check_block(self, match: Match, block: int) -> tuple[float, int]:
        worker, shape = self._worker, self._worker.shape
        ids = self._load_block(block)
        reply = worker.client.load(match.link, pb.LoadRequest(
            session_id=match.link.session_id, lease_id=match.lease_id, first_block=block,
            block_count=1, min_profile=Profile.COMPACT, encoded=True))
        worker.client.release(match.link, match.lease_id)
        if reply is None or list(reply.statuses) != [pb.BLOCK_STATUS_OK]:
            raise RuntimeError(f"block {block}: no encoded bytes: {reply}")
        primary = reply.payload[:reply.sizes[0]]
        refinement = reply.payload[reply.sizes[0]:]
        sink, worst = block == 0, 0.0
        heads = [(layer, head) for layer in range(shape.layers) for head in range(shape.heads)]
        codecs = {place: row_codecs(self._codec_set, *place) for place in heads}
        sizes = [page_bytes(PageKind.BASE, shape.head_size, codecs=codecs[place], sink=sink)
                 for place in heads]
        bases = decode_extent(bytes(primary), sizes)[1]
        rest = [None] * len(heads)
        if refinement:
            rest = decode_extent(bytes(refinement), [
                page_bytes(PageKind.REFINEMENT, shape.head_size, codecs=codecs[place])
                for place in heads])[1]
        pages = list(zip(heads, bases, rest))
        checked = random.Random(block).sample(pages, min(REFERENCE_HEADS, len(pages)))
        for place, base, fine in checked:
            page = Page(*(torch.frombuffer(bytearray(x), dtype=torch.uint8) if x else None
                          for x in (base, fine)))
            expected = torch.cat(decode_fq(codecs[place], page, BLOCK_TOKENS, sink,
                                           torch.float32), dim=1)
            layer, head = place
            found = worker.tensors[layer][ids][:, head].flatten(0, 1).float().cpu()
            worst = max(worst, float((found - expected).abs().max()))
        return worst, 2 * len(checked)


def measure_capacity(binary: Path, shape: Shape, codec: tuple[Path, CodecSet], device: str,
                     blocks: int, node_arguments: tuple[str, ...], samples: int) -> list[dict]:
    """One entry, or an exception where a promise does not hold."""
    path, codec_set = codec
    with LocalNode(binary, [path], 1 << 30, node_arguments) as node:
        worker = PagedWorker(node.endpoint, shape, codec_set, device, min(blocks, PIECE_BLOCKS))
        try:
            run = Capacity(worker, codec_set, blocks)
            store_seconds = run.store()
            match = run.match()
            worker.client.release(match.link, match.lease_id)
            result = {"name": "capacity", "shape": shape.name, "tokens": blocks * BLOCK_TOKENS,
                      "raw_bytes": run.raw_bytes, "stored_bytes": sum(match.stored_bytes),
                      "store_GBps": run.raw_bytes / store_seconds / 1e9, **run.load(),
                      **run.check_beside_cpu(), **run.check_encoded(samples),
                      "node": device_counters(node)}
            result["verify"] = verify(binary, node)
            return [result]
        finally:
            worker.close()


def verify(binary: Path, node: LocalNode) -> str:
    """What `fqctl verify` says of every block that the node holds."""
    run = subprocess.run([binary.with_name("fqctl"), "verify", "--endpoint", node.endpoint],
                         capture_output=True, text=True, timeout=300, check=False)
    return (run.stdout + run.stderr).strip()


def device_counters(node: LocalNode) -> dict[str, float]:
    """The node's metrics of its tiers, and of blocks that were missed."""
    status = node.status(timeout_s=10)
    return {name: value for name, value in sorted(status.counters.items())
            if any(part in name for part in TIER_METRICS)} if status else {}
