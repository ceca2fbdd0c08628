#!/usr/bin/env python3
"""Pages between two GPUs by NCCL, node on GPU 0, workers on GPU 1; tests/bench/results/nccl.json.

    tests/gpu/bench_nccl.py [--build build/release] [--device cuda:1|cpu] [--output FILE]
        [--scenario correctness bandwidth overlap kills] [--quick] [--commit NAME]

Writes the file after every scenario, beside those of others that are in it; exit code 1 when one
found a mismatch or failed. Keep NCCL_NVLS_ENABLE=0 set where GPUs are shared. With --device cpu
all but the figures' worth is the same, over sockets with `host_node`.
"""

import argparse
import sys
from pathlib import Path

import torch
from bench_node import options, run_scenarios
from peer_checks import measure_correctness, measure_kills
from peer_speed import measure_bandwidth, measure_overlap, plain_loops
from peers import node_with_peers
from shapes import SHAPES, write_made_up

SCENARIOS = ("correctness", "bandwidth", "overlap", "kills")


class Bench:
    """Scenarios with their arguments for one device."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._device, self._folder, self._quick = arguments.device, folder, arguments.quick
        self._node = node_with_peers(arguments.build.absolute(), arguments.device)
        self.gpu = torch.device(arguments.device).type == "cuda"

    def _at(self, name: str) -> tuple:
        name = name if self.gpu else "tiny"
        return (*self._node, SHAPES[name], write_made_up(SHAPES[name], self._folder), self._device)

    def correctness(self) -> list[dict]:
        """Decoded and encoded, from 1 MiB to 1 GiB, and 10,000 slabs."""
        small = self._quick or not self.gpu
        counts = (1, 3, 20) if small else (1, 16, 256, 1024)
        return measure_correctness(*self._at("1m"), counts, 100 if small else 10_000)

    def bandwidth(self) -> list[dict]:
        """Loads and saves beside a plain loop, in turns."""
        if not self.gpu:
            return measure_bandwidth(*self._at("tiny"), (1, 8), 3)
        rounds, loops = 3 if self._quick else 5, plain_loops()
        try:
            return (measure_bandwidth(*self._at("1m"), (1, 16, 64, 256, 1024), rounds, loops)
                    + measure_bandwidth(*self._at("70b"), (12, 48, 192), rounds, loops))
        finally:
            loops.close()

    def overlap(self) -> list[dict]:
        """What the worker's own kernels lose meanwhile."""
        return measure_overlap(*self._at("70b"), 48) if self.gpu else []

    def kills(self) -> list[dict]:
        """A worker killed, one frozen, the node killed."""
        return measure_kills(*self._at("1m"), self._folder)


def main() -> int:
    """Runs the scenarios."""
    return run_scenarios(Bench, options(__doc__, "cuda:1", "nccl.json", SCENARIOS).parse_args())


if __name__ == "__main__":
    sys.exit(main())
