"""Every page right that comes over a peer link, decoded or encoded, and while processes die."""

import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from mixed_load import Workers
from paged_worker import PagedWorker, gpu_bytes_used
from peer_speed import HOST_BYTES, Mover, linked_worker
from peers import NODE_GPU, peers_for
from shapes import Shape
from stalled_worker import BLOCKS, NEVER

from flashquant.client import Match
from flashquant.codec_set import CodecSet
from flashquant.local_node import LocalNode
from flashquant.peer_comm import Span
from flashquant.peer_link import PeerLink, open_peer_link
from flashquant.row_sums import row_sums, unsigned
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.wire import Profile

PROFILES = (Profile.EXACT, Profile.COMPACT)
INLINE_BLOCKS = 32
EXTENT_ALIGNMENT, REGION_ALIGNMENT = 64, 256
GONE_S = 120.0
LINKS = "fq_peer_links"


def up(number: int, step: int) -> int:
    """The next multiple."""
    return -(-number // step) * step


def measure_correctness(binary: Path, arguments: tuple[str, ...], shape: Shape,
                        codec: tuple[Path, CodecSet], device: str, counts: tuple[int, ...],
                        slabs: int) -> list[dict]:
    """Decoded by count and profile, encoded the same, and `slabs` blocks in random chains.

    RuntimeError when anything differs.
    """
    results, most = [], max(counts)
    with linked_worker(binary, arguments, shape, codec, device, most) as (worker, mover, way):
        for profile in PROFILES:
            for count in counts:
                mover.save(count, profile)
                mover.poison()
                mover.load(count, profile)
                wrong = mover.wrong_pages(count, profile)
                encoded = compare_encoded(worker, device, mover.chain.keys(0, count), profile)
                results.append({"name": "size", "profile": profile.label, "blocks": count,
                                "bytes": count * shape.block_bytes, "wrong_pages": wrong,
                                **encoded})
        results.append(many_slabs(worker, mover, most, slabs))
        worker.step()
        counters = {name: worker.counters.get(name, 0)
                    for name in ("transport_nccl", "damaged_blocks", "dropped_save_blocks")}
        results.append({"name": "counters", **counters, "broken": way.peer.broken})
    bad = [r for r in results if r.get("wrong_pages") or r.get("wrong_extents") or r.get("broken")]
    if bad:
        raise RuntimeError(f"mismatches: {bad}")
    return results


def many_slabs(worker: PagedWorker, mover: Mover, most: int, slabs: int) -> dict:
    """Chains of random length, each saved and loaded, every page checked."""
    seed = random.randrange(1 << 32)
    rng, done, wrong, chains = random.Random(seed), 0, 0, 0
    while done < slabs:
        profile = rng.choice(PROFILES)
        blocks = min(rng.randint(1, most), slabs - done)
        mover.save(blocks, profile)
        mover.poison()
        mover.load(blocks, profile)
        wrong += mover.wrong_pages(blocks, profile)
        done, chains = done + blocks, chains + 1
    shape = worker.shape
    return {"name": "many slabs", "seed": seed, "slabs": done, "chains": chains,
            "checked_pages": done * shape.layers * shape.heads * 2, "wrong_pages": wrong}


def compare_encoded(worker: PagedWorker, device: str, keys: bytes, profile: Profile) -> dict:
    """Extents over a link of their own against the same inline: sums and bytes."""
    client = worker.client
    match = client.lookup(keys, profile.own_floor, lease=True)
    blocks = match.matched_blocks
    sizes = [up(size + 2 * EXTENT_ALIGNMENT, REGION_ALIGNMENT) for size in match.stored_bytes]
    peer = open_peer_link(client.link, peers_for(device, max(sum(sizes), 1 << 20)),
                          torch.device(device))
    try:
        begin_s = time.perf_counter()
        reply, spans = load_encoded(client, peer, match, profile, sizes)
        seconds = time.perf_counter() - begin_s
        wrong = sum(unsigned(row_sums(peer.window[None, span.offset:span.end]))[0] != there
                    for span, there in zip(spans, reply.peer_sums, strict=True))
        wrong += differing(client, peer, match, profile, spans)
    finally:
        peer.close(5.0)
        client.link.close_peer_link(peer.id)
        client.release(match.link, match.lease_id)
    return {"encoded_blocks": blocks, "extents": len(spans), "wrong_extents": wrong,
            "encoded_bytes": sum(span.size for span in spans), "encoded_seconds": seconds}


def load_encoded(client: object, peer: PeerLink, match: Match, profile: Profile,
                 sizes: list[int]) -> tuple[pb.LoadResponse, list[Span]]:
    """The reply, and where its extents are in the window."""
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    pages = pb.Pages(segment_id=peer.id, places=[pb.BlockPlace(chunk_offsets=[offset])
                                                 for offset in offsets])
    reply = client.load(match.link, pb.LoadRequest(
        session_id=match.link.session_id, lease_id=match.lease_id, encoded=True, pages=pages,
        block_count=len(sizes), min_profile=profile.own_floor))
    if reply is None or set(reply.statuses) != {pb.BLOCK_STATUS_OK}:
        raise RuntimeError(f"encoded load: {reply and reply.statuses}")
    spans = []
    for offset, size, refinement in zip(offsets, reply.sizes, reply.refinement_sizes):
        spans.append(Span(offset, size))
        if refinement:
            spans.append(Span(up(offset + size, EXTENT_ALIGNMENT), refinement))
    transfer = peer.expect(reply.peer_sequence, spans)
    peer.wait(transfer)
    peer.forget(transfer)
    return reply, spans


def differing(client: object, peer: PeerLink, match: Match, profile: Profile,
              spans: list[Span]) -> int:
    """Extents whose bytes are not those that come inline."""
    wrong, left = 0, iter(spans)
    for first in range(0, match.matched_blocks, INLINE_BLOCKS):
        count = min(INLINE_BLOCKS, match.matched_blocks - first)
        reply = client.load(match.link, pb.LoadRequest(
            session_id=match.link.session_id, lease_id=match.lease_id, encoded=True,
            first_block=first, block_count=count, min_profile=profile.own_floor))
        at = 0
        for size, refinement in zip(reply.sizes, reply.refinement_sizes, strict=True):
            for extent in (size, refinement):
                if extent:
                    span = next(left)
                    there = peer.window[span.offset:span.end].cpu().numpy().tobytes()
                    wrong += there != reply.payload[at:at + extent]
                    at += extent
    return wrong + sum(1 for _ in left)


def metric(node: LocalNode, name: str) -> float:
    """A counter or gauge of the node; 0 when it does not answer."""
    status = node.status()
    return status.counters.get(name, 0) if status else 0


def until_links(node: LocalNode, count: int, timeout_s: float = GONE_S) -> float:
    """Seconds until the node has so many links. RuntimeError: not within the timeout."""
    begin_s = time.monotonic()
    while metric(node, LINKS) != count:
        if time.monotonic() > begin_s + timeout_s:
            raise RuntimeError(f"{metric(node, LINKS):g} peer links after {timeout_s:g} s, not "
                               f"{count}")
        time.sleep(0.005)
    return time.monotonic() - begin_s


class Stalled:
    """A process of stalled_worker.py, in the middle of a Load and a Store."""

    def __init__(self, node: LocalNode, options: list[str]) -> None:
        """Waits until it is. RuntimeError: it has ended before."""
        script = Path(__file__).with_name("stalled_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--endpoint", node.endpoint, *options],
            stdout=subprocess.PIPE, text=True)
        if self._process.stdout.readline() != "stalled\n":
            self.kill()
            raise RuntimeError("a worker that should stall has ended")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def measure_kills(binary: Path, arguments: tuple[str, ...], shape: Shape,
                  codec: tuple[Path, CodecSet], device: str, folder: Path) -> list[dict]:
    """One entry: a worker goes on, all pages checked, while others and the node stall and die."""
    path, codec_set = codec
    gpus = [NODE_GPU, device] if torch.device(device).type == "cuda" else []
    options = ["--codec-set", str(path), "--device", device, "--shape", shape.name,
               "--window-bytes", str(512 << 20 if gpus else 32 << 20)]
    with LocalNode(binary, [path], HOST_BYTES, arguments) as node:
        survivor = Workers(node, folder, [*options, "--blocks", "192"])
        checker = PagedWorker(node.endpoint, shape, codec_set, device, 2)
        try:
            return [kill_one_by_one(node, survivor, checker, options, gpus)]
        except RuntimeError as error:
            raise RuntimeError(f"{error}; {survivor.errors()}") from error
        finally:
            survivor.end()
            checker.close()


def settled_bytes(gpus: list[str]) -> list[int]:
    """Memory in use, when what was killed has had a second to go."""
    time.sleep(1.0 if gpus else 0.0)
    return [gpu_bytes_used(gpu) for gpu in gpus]


def kill_one_by_one(node: LocalNode, survivor: Workers, checker: PagedWorker,
                    options: list[str], gpus: list[str]) -> dict:
    """See measure_kills. A stalled worker has two links: its own, and the one it stalls."""
    survivor.start(600.0)
    survivor.wait_busy()
    until_links(node, 1)
    stalled = Stalled(node, options)
    until_links(node, 3)
    stalled.kill()
    result = {"name": "kills", "killed_links_gone_seconds": until_links(node, 1)}
    survivor.wait_more(GONE_S)
    result["gpu_bytes_after_first"] = settled_bytes(gpus)
    stalled = Stalled(node, options)
    until_links(node, 3)
    survivor.wait_more(GONE_S)
    result["stalled_link_gone_seconds"] = until_links(node, 2)
    stalled.kill()
    until_links(node, 1)
    result["gpu_bytes_after_second"] = settled_bytes(gpus)
    never = checker.client.lookup(checker.chain(NEVER, BLOCKS).keys(0, BLOCKS), Profile.COMPACT)
    result["published_by_stalled_stores"] = never.matched_blocks
    begin_s = time.monotonic()
    node.kill()
    node.start()
    result["link_after_node_restart_seconds"] = until_links(node, 1)
    survivor.wait_more(GONE_S)
    result["survivor"] = survivor.totals()
    if result["survivor"]["wrong_pages"] or never.matched_blocks:
        raise RuntimeError(f"{result}")
    return result
