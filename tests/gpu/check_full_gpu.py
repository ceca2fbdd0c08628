#!/usr/bin/env python3
"""A GPU without free memory: a node that starts says so and ends, one that serves goes on.

    tests/gpu/check_full_gpu.py [--build build/release]

Exit code 1 when a node aborts, says nothing, or a Store answers anything but OK, EXISTS or FULL.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from pages import serial_of
from paged_worker import PagedWorker, node_binary
from shapes import SHAPES, write_made_up

from flashquant.local_node import LocalNode
from flashquant.wire import Profile

LEFT_BYTES = 100 << 20
STEP_BYTES = 32 << 20
BLOCKS = 32
START_S = 60


def fill_gpu() -> list[torch.Tensor]:
    """Takes all memory of the GPU but 100 MiB."""
    held = []
    for step in (1 << 30, STEP_BYTES):
        while torch.cuda.mem_get_info()[0] - step >= LEFT_BYTES:
            held.append(torch.empty(step, dtype=torch.uint8, device="cuda"))
    return held


def start_without_room(binary: Path, folder: Path) -> dict:
    """A node that is started on a full GPU."""
    run = subprocess.run([str(binary), f"--socket={folder}/full.sock", "--metrics-listen=",
                          "--device=0", "--device-bytes=1GiB"], capture_output=True, text=True,
                         timeout=START_S, check=False)
    said = (run.stdout + run.stderr).strip()[-600:]
    return {"check": "start on a full GPU", "exit_code": run.returncode, "said": said,
            "good": run.returncode == 1 and "device" in said}


def store(worker: PagedWorker, name: str) -> dict:
    """Saves and loads a chain; what the node answered."""
    ids, target = worker.take_chunks(BLOCKS), worker.take_chunks(BLOCKS)
    serials = [serial_of(name, block) for block in range(BLOCKS)]
    worker.fill(ids, serials)
    before = dict(worker.counters)
    worker.save(name, worker.chain(name, BLOCKS), 0, ids, Profile.COMPACT)
    worker.finish(name)
    worker.wait(name, loads=False)
    worker.step()
    worker.submit_load(name, worker.chain(name, BLOCKS), BLOCKS, target, Profile.COMPACT)
    missing = len(worker.wait(name, loads=True)) // worker.chunks_per_block
    loaded = (BLOCKS - missing) * worker.chunks_per_block
    wrong = worker.wrong_pages(target[:loaded], serials[:BLOCKS - missing], Profile.COMPACT)[0]
    worker.free += ids + target
    saved = {key: count - before.get(key, 0) for key, count in worker.counters.items()
             if key.startswith("saved_") and count != before.get(key, 0)}
    answered = sum(saved.values()) == BLOCKS and set(saved) <= {"saved_ok_blocks",
                                                                "saved_full_blocks"}
    return {"check": name, "saved": saved, "blocks_not_loaded": missing, "wrong_pages": wrong,
            "good": answered and wrong == 0}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build/release"))
    binary = node_binary(parser.parse_args().build.absolute())
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path, codec_set = write_made_up(SHAPES["tiny"], Path(folder))
        with LocalNode(binary, [path], 256 << 20, ("--device=0", "--device-bytes=256MiB")) as node:
            worker = PagedWorker(node.endpoint, SHAPES["tiny"], codec_set, "cuda", 4 * BLOCKS)
            results.append(store(worker, "store before"))
            held = fill_gpu()
            results.append(start_without_room(binary, Path(folder)))
            results.append(store(worker, "store on a full GPU"))
            held.clear()
            torch.cuda.empty_cache()
            results.append(store(worker, "store after"))
            results.append({"check": "the node still serves", "good": node.process.poll() is None})
            worker.close()
    for result in results:
        print(json.dumps(result))
    return int(not all(result["good"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
