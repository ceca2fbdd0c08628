#!/usr/bin/env python3
"""Blocks from one node to another, GPU to GPU: two nodes on two GPUs.

    tests/gpu/check_fetch.py [--build build/release] [--device cuda|cpu]

Prints one line; exit code 1 when a block is wrong, or did not go over the link. On a CPU the same,
over sockets with `host_node`.
"""

import argparse
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/e2e"))
from node_process import Node  # noqa: E402
from peers import node_with_peers  # noqa: E402
from raw_client import OK, Session, chain  # noqa: E402

BLOCKS, BLOCKS_A_STORE = 512, 64


def flags(gpu: int, given: tuple[str, ...]) -> dict[str, object]:
    """Of a node on that GPU, as Node wants them."""
    words = (word.removeprefix("--").split("=", 1) for word in given)
    result = {name.replace("-", "_"): value for name, value in words} | {"fetch_link_bytes": 1}
    if "device" in result:
        result |= {"device": gpu, "device_bytes": "4GiB"}
    return result | {"host_bytes": "256MiB"}


def fetch(build: pathlib.Path, device: str) -> dict:
    """What became of a chain that one node holds and another one fetches."""
    program, given = node_with_peers(build, device)
    there = Node(program, **flags(0, given))
    here = Node(program, **flags(1, given), fetch_from=there.endpoint)
    keys = chain("gpu to gpu", BLOCKS)
    try:
        there.start()
        here.start()
        with there.channel() as channel, Session(channel) as session:
            for i in range(0, BLOCKS, BLOCKS_A_STORE):
                session.store(keys[i:i + BLOCKS_A_STORE], first_block_index=i)
        with here.channel() as channel, Session(channel) as session:
            begin_s = time.perf_counter()
            reply = session.fetch_from(there.endpoint, keys)
            seconds = time.perf_counter() - begin_s
            there.kill()
            right = session.fetch(keys)  # AssertionError on any wrong byte
        counters = here.status().counters
    finally:
        there.remove()
        here.remove()
    return {"blocks": BLOCKS, "fetched": list(reply.statuses).count(OK), "right": right,
            "stopped": reply.stopped, "seconds": seconds,
            "nccl_bytes": counters['fq_fetched_bytes_total{transport="nccl"}'],
            "grpc_bytes": counters['fq_fetched_bytes_total{transport="grpc"}']}


def passed(result: dict) -> bool:
    return result["fetched"] == result["right"] == BLOCKS and result["grpc_bytes"] == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    result = fetch(options.build, options.device)
    print(json.dumps(result))
    return 0 if passed(result) else 1


if __name__ == "__main__":
    sys.exit(main())
