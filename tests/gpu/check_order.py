#!/usr/bin/env python3
"""Whether the node waits for the engine's stream: stores behind its writes, loads behind its reads.

    tests/gpu/check_order.py [--build build/release] [--repeats 100]

The engine's stream is kept busy, then writes (or reads) blocks that a Store reads (a Load writes)
in the same moment; nothing between waits for the GPU. No page may be wrong when the connector
waits, or the node by the event of the segment; when nobody waits, as a control, pages must be
wrong. Exit code 1 when it is not so.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from pages import serial_of
from paged_worker import PagedWorker, Waits, node_binary
from shapes import SHAPES, write_made_up

from flashquant.local_node import LocalNode
from flashquant.wire import Profile

BLOCKS = 8
BUSY_CYCLES = 60_000_000  # about thirty milliseconds: many times what a call takes


class Order:
    """Both orders with one worker."""

    def __init__(self, worker: PagedWorker, name: str) -> None:
        self._worker, self._name = worker, name
        self._source, self._target = worker.take_chunks(BLOCKS), worker.take_chunks(BLOCKS)
        self._number = 0

    def store_behind_a_write(self) -> int:
        """Wrong pages of a store whose blocks are still to be written when it is asked for."""
        chain, serials = self._next()
        self._worker.poison(self._source)
        pieces = self._worker.pieces(self._source, serials)
        torch.cuda.synchronize()
        torch.cuda._sleep(BUSY_CYCLES)
        self._worker.fill_pieces(pieces)
        self._save(chain)
        torch.cuda.synchronize()
        self._load(chain)
        return self._worker.wrong_pages(self._target, serials, Profile.EXACT)[0]

    def load_behind_a_read(self) -> int:
        """Wrong pages of a copy of blocks that a load overwrites when it may."""
        chain, serials = self._next()
        self._worker.fill(self._source, serials)
        self._save(chain)
        _, before = self._next()
        self._worker.fill(self._target, before)
        index = torch.tensor(self._target, device="cuda")
        torch.cuda.synchronize()
        torch.cuda._sleep(BUSY_CYCLES)
        copies = [tensor[index] for tensor in self._worker.tensors]
        self._load(chain)
        torch.cuda.synchronize()
        wrong = self._worker.wrong_pages(self._target, serials, Profile.EXACT)[0]
        for tensor, copy in zip(self._worker.tensors, copies):
            tensor[index] = copy
        return wrong + self._worker.wrong_pages(self._target, before, Profile.EXACT)[0]

    def _next(self) -> tuple[object, list[int]]:
        self._number += 1
        conversation = f"{self._name}-{self._number}"
        return (self._worker.chain(conversation, BLOCKS),
                [serial_of(conversation, block) for block in range(BLOCKS)])

    def _save(self, chain: object) -> None:
        self._worker.save("s", chain, 0, self._source, Profile.EXACT)
        self._worker.finish("s")
        self._worker.wait("s", loads=False)

    def _load(self, chain: object) -> None:
        self._worker.submit_load("l", chain, BLOCKS, self._target, Profile.EXACT)
        if self._worker.wait("l", loads=True):
            raise RuntimeError("blocks did not load")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build/release"))
    parser.add_argument("--repeats", type=int, default=100)
    arguments = parser.parse_args()
    good, shape = True, SHAPES["tiny"]
    with tempfile.TemporaryDirectory() as folder:
        path, codec_set = write_made_up(shape, Path(folder))
        with LocalNode(node_binary(arguments.build), [path], 1 << 30,
                       ("--device=0", "--device-bytes=1GiB")) as node:
            for waits in Waits:
                repeats = 10 if waits is Waits.NOBODY else arguments.repeats
                worker = PagedWorker(node.endpoint, shape, codec_set, "cuda", 2 * BLOCKS,
                                     waits=waits)
                order = Order(worker, waits.name)
                for check in (order.store_behind_a_write, order.load_behind_a_read):
                    wrong = [check() for _ in range(repeats)]
                    print(json.dumps({"check": check.__name__, "waits": waits.name.lower(),
                                      "repeats": repeats,
                                      "repeats_with_wrong_pages": sum(map(bool, wrong)),
                                      "transport": worker.core.access.transport().name}))
                    good &= any(wrong) == (waits is Waits.NOBODY)
                worker.close()
    print("order:", "as it should be" if good else "WRONG")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
