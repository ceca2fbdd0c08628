#!/usr/bin/env python3
"""A worker that stands still in the middle of a Load and a Store by NCCL, until it is killed.

    tests/gpu/stalled_worker.py --endpoint E --shape 8b --codec-set FILE --device cuda:1

Opens a link beside its own, asks for pages by it and never receives, announces pages and never
sends; then prints `stalled`. Exit code 1 when it could not.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from paged_worker import PagedWorker
from pages import serial_of
from peers import peers_for
from shapes import SHAPES

from flashquant.codec_set import read_codec_set
from flashquant.peer_link import open_peer_link
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.peer_rows import PeerRows
from flashquant.wire import Profile, pages_at

BLOCKS = 8
STORED, NEVER = "stalled-stored", "stalled-never"
CALL_S = 600.0


def stall(worker: PagedWorker, device: str, window_bytes: int) -> list:
    """The calls under way; hold them."""
    worker.wait_transport("nccl")
    ids = worker.take_chunks(BLOCKS)
    worker.fill(ids, [serial_of(STORED, i) for i in range(BLOCKS)])
    stored, never = worker.chain(STORED, BLOCKS), worker.chain(NEVER, BLOCKS)
    worker.save("save", stored, 0, ids, Profile.EXACT)
    worker.finish("save")
    worker.wait("save", loads=False)
    client, link = worker.client, worker.client.link
    match = client.lookup(stored.keys(0, BLOCKS), Profile.EXACT, lease=True)
    peer = open_peer_link(link, peers_for(device, window_bytes), torch.device(device))
    rows = PeerRows(worker.view)
    offsets = torch.arange(2 * BLOCKS).view(2, BLOCKS, 1).numpy() * rows.block_bytes
    load, store = (pages_at(rows.layout, part, [0] * BLOCKS, peer.id) for part in offsets)
    calls = [client.call_with_callback(link, "Load", pb.LoadRequest(
        session_id=link.session_id, lease_id=match.lease_id, block_count=BLOCKS,
        min_profile=Profile.EXACT, pages=load), CALL_S)]
    if not calls[0].result(timeout=60).peer_sequence:
        raise RuntimeError("the node sends nothing")
    calls.append(client.call_with_callback(link, "Store", pb.StoreRequest(
        session_id=link.session_id, profile=Profile.EXACT, keys=never.keys(0, BLOCKS),
        pages=store, peer_sequence=1, peer_sums=[0] * BLOCKS), CALL_S))
    return [peer, calls]


def main() -> int:
    """Never returns when all goes well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--codec-set", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--window-bytes", type=int, required=True)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    worker = PagedWorker(arguments.endpoint, shape, read_codec_set(arguments.codec_set),
                         arguments.device, 2 * BLOCKS,
                         peers=peers_for(arguments.device, arguments.window_bytes))
    held = stall(worker, arguments.device, arguments.window_bytes)
    print("stalled", flush=True)
    while held:
        time.sleep(1.0)
    return 1


if __name__ == "__main__":
    sys.exit(main())
