#!/usr/bin/env python3
"""A worker on a GPU beside a node without one: pages of every profile through pinned staging.

    tests/gpu/check_pinned.py [--build build/release] [--shape 8b] [--device cuda] [--blocks 64]

Prints one line a profile; exit code 1 when a page is wrong or another transport was taken.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from pages import serial_of
from paged_worker import PagedWorker, node_binary
from shapes import SHAPES, write_made_up

from flashquant.local_node import LocalNode
from flashquant.wire import Profile


def round_trip(worker: PagedWorker, profile: Profile, blocks: int) -> dict:
    """Saves a chain and loads it into other blocks."""
    source, target = worker.take_chunks(blocks), worker.take_chunks(blocks)
    serials = [serial_of(profile.label, block) for block in range(blocks)]
    worker.fill(source, serials)
    chain = worker.chain(profile.label, blocks)
    begin_s = time.perf_counter()
    worker.save("save", chain, 0, source, profile)
    worker.finish("save")
    worker.wait("save", loads=False)
    saved_s = time.perf_counter()
    worker.poison(source)
    worker.poison(target)
    worker.submit_load("load", chain, blocks, target, profile.own_floor)
    missing = worker.wait("load", loads=True)
    loaded_s = time.perf_counter()
    wrong, worst = worker.wrong_pages(target, serials, profile)
    worker.free += source + target
    return {"profile": profile.label, "save_seconds": saved_s - begin_s,
            "load_seconds": loaded_s - saved_s, "not_loaded": len(missing), "wrong_pages": wrong,
            "largest_error": worst, "bytes": blocks * worker.shape.block_bytes}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build/release"))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=64)
    arguments = parser.parse_args()
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        path, codec_set = write_made_up(SHAPES[arguments.shape], Path(folder))
        with LocalNode(node_binary(arguments.build), [path], 4 << 30) as node:
            worker = PagedWorker(node.endpoint, SHAPES[arguments.shape], codec_set,
                                 arguments.device, 2 * arguments.blocks, shared=False)
            for profile in Profile:
                result = round_trip(worker, profile, arguments.blocks)
                bad |= bool(result["wrong_pages"] or result["not_loaded"])
                print(json.dumps(result), flush=True)
            counters = {k: v for k, v in worker.counters.items() if k.startswith("transport")}
            worker.close()
    print(json.dumps(counters))
    expected = "transport_shared_memory" if arguments.device == "cpu" else "transport_pinned"
    return int(bad or counters != {expected: 1})


if __name__ == "__main__":
    sys.exit(main())
