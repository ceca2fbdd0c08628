#!/usr/bin/env python3
"""Pages by NCCL on one GPU: rows gathered, sent by a rank to itself, summed, scattered.

    tests/gpu/check_nccl.py [--shape 8b] [--blocks 64]

Prints one line; exit code 1 when a row, a sum or an abort is wrong. Two GPUs: bench_nccl.py.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from pages import make_rows
from shapes import SHAPES, Shape

from flashquant import nccl
from flashquant.keys import BLOCK_TOKENS
from flashquant.nccl import NcclComm
from flashquant.peer_comm import PeerError, Span
from flashquant.peer_link import PeerLink
from flashquant.row_sums import row_sums, unsigned
from flashquant.vllm.peer_rows import PeerRows, block_spans
from flashquant.vllm.placement import Placement
from flashquant.vllm.rows_view import RowsView
from peers import wait

DEVICE = "cuda"
CHUNK_TOKENS = 16
TIMEOUT_S = 20.0


def caches(shape: Shape, blocks: int) -> list[torch.Tensor]:
    """Of all layers, with rows that pages.make_rows makes."""
    serials = torch.arange(blocks, dtype=torch.int32, device=DEVICE)
    per_block = BLOCK_TOKENS // CHUNK_TOKENS
    return [make_rows(serials, layer, shape.heads, shape.head_size)
            .unflatten(2, (per_block, CHUNK_TOKENS)).transpose(1, 2).flatten(0, 1).contiguous()
            for layer in range(shape.layers)]


def round_trip(shape: Shape, blocks: int) -> dict:
    """Mismatches of what goes from a cache through a window's two halves into other chunks."""
    tensors = caches(shape, blocks)
    chunks = len(tensors[0])
    rows = PeerRows(RowsView(tensors, chunks, shape.heads, shape.head_size))
    place, size = Placement(0, blocks, CHUNK_TOKENS), blocks * rows.block_bytes
    window = torch.zeros(2 * size, dtype=torch.uint8, device=DEVICE)
    sent, received = window.view(2, blocks, rows.block_bytes)
    comm = NcclComm(nccl.unique_id(), 0, window, 16, TIMEOUT_S, ranks=1)
    source, target = (np.random.permutation(chunks) for _ in range(2))
    before = [tensor[torch.from_numpy(source)].clone() for tensor in tensors]
    rows.gather(place, source, sent)
    comm.stream.wait_stream(torch.cuda.current_stream())
    wait(comm.exchange(block_spans(0, rows.block_bytes, blocks),
                       block_spans(size, rows.block_bytes, blocks)))
    sums = [unsigned(row_sums(half)) for half in (sent, received)]
    rows.scatter(place, target, 0, place.chunks, received)
    wrong = sum(int((tensor[torch.from_numpy(target)] != rows_before).sum())
                for tensor, rows_before in zip(tensors, before))
    received[blocks // 2, 12345] ^= 1
    seen = [i for i, sum_now in enumerate(unsigned(row_sums(received))) if sum_now != sums[1][i]]
    begin_s = time.perf_counter()
    comm.abort()
    return {"bytes": size, "wrong_values": wrong, "equal_sums": sums[0] == sums[1],
            "damage_seen_in": seen, "abort_seconds": time.perf_counter() - begin_s}


def other_end_never_comes() -> str:
    """What a link's opening says when the other rank is nowhere."""
    try:
        NcclComm(nccl.unique_id(), 0, torch.zeros(256, device=DEVICE), 16, 0.5)
    except PeerError as error:
        return str(error)
    return ""


def reply_that_never_comes() -> str:
    """Why a link breaks when a number is left out; its communicators end."""
    window = torch.zeros(1 << 20, dtype=torch.uint8, device=DEVICE)
    ends = [NcclComm(nccl.unique_id(), 0, window, 16, TIMEOUT_S, ranks=1) for _ in range(2)]
    link = PeerLink(1, window, *ends, 0.5)
    try:
        link.wait(link.expect(2, [Span(0, 256)]))  # operation 1 never comes
    except PeerError:
        pass
    if not link.close(TIMEOUT_S):
        return ""
    torch.cuda.synchronize()
    return link.broken


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--blocks", type=int, default=64)
    arguments = parser.parse_args()
    result = round_trip(SHAPES[arguments.shape], arguments.blocks)
    result["nccl"] = nccl.version_text(nccl.version_code(nccl.library()))
    result["never_comes"] = other_end_never_comes()
    result["left_out"] = reply_that_never_comes()
    print(json.dumps(result))
    good = (result["wrong_values"] == 0 and result["equal_sums"]
            and result["damage_seen_in"] == [arguments.blocks // 2]
            and "has not come within 0.5 s" in result["never_comes"]
            and "not done within 0.5 s" in result["left_out"])
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
