#!/usr/bin/env python3
"""The GPU-resident node as workers see it; keeps its figures as tests/bench/results/node_gpu.json.

    tests/gpu/bench_node.py [--build build/release] [--device cuda|cpu] [--output FILE]
        [--scenario speed rivals capacity mixed] [--seconds 90] [--quick] [--commit NAME]

Writes the file after every scenario, beside those of other scenarios that are in it; one that fails
loses no other, and the exit code is 1 then. With --device cpu everything but the figures' worth is
the same: small shapes, through shared memory.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from capacity import measure_capacity
from mixed_load import measure_mixed
from paged_worker import node_binary
from rivals import measure_rivals
from shapes import SHAPES, write_made_up
from speed import copies, measure_speed

from flashquant.codec_set import CodecSet
from flashquant.wire import Profile

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/bench"))

SCENARIOS = ("speed", "rivals", "capacity", "mixed")
LONG_BLOCKS = 2048  # 128K tokens


class Bench:
    """Scenarios with their arguments for one device."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._binary = node_binary(arguments.build.absolute())
        self._device, self._seconds, self._folder = arguments.device, arguments.seconds, folder
        self._quick = arguments.quick
        self.gpu = torch.device(arguments.device).type == "cuda"
        self._codecs: dict[str, tuple[Path, CodecSet]] = {}

    def _codec(self, name: str) -> tuple[Path, CodecSet]:
        if name not in self._codecs:
            self._codecs[name] = write_made_up(SHAPES[name], self._folder)
        return self._codecs[name]

    def _node(self, device_bytes: str) -> tuple[str, ...]:
        limits = ("--max-blocks-per-call=4096", "--max-segment-bytes=16GiB",
                  "--max-inline-bytes=64MiB")
        return limits + ((f"--device={torch.cuda.current_device()}",
                          f"--device-bytes={device_bytes}") if self.gpu else ())

    def speed(self) -> list[dict]:
        """(a) of the issue."""
        results = copies(self._device) if self.gpu else []
        most = (Profile.COMPACT, Profile.NEAR_LOSSLESS, Profile.EXACT)
        plan = [("70b", most), ("8b", most[:1])] if self.gpu else [("tiny", tuple(Profile))]
        if self._quick:
            plan = [(plan[0][0], (Profile.COMPACT,))]
        for name, profiles in plan:
            results += measure_speed(self._binary, SHAPES[name], self._codec(name), self._device,
                                     self._node("30GiB"), profiles,
                                     (1, 16, 256) if self.gpu else (1, 16))
        return results + (copies(self._device) if self.gpu else [])

    def rivals(self) -> list[dict]:
        """(b): pages from host memory, raw and compact."""
        name = "70b" if self.gpu else "tiny"
        return measure_rivals(self._binary, SHAPES[name], self._codec(name), self._device,
                              self._node("4GiB"), 256 if self.gpu else 16)

    def capacity(self) -> list[dict]:
        """(c)."""
        name, blocks, samples = ("70b", LONG_BLOCKS, 3) if self.gpu else ("tiny", 300, 10)
        if self._quick:
            blocks, samples = blocks // 4, 1
        return measure_capacity(self._binary, SHAPES[name], self._codec(name), self._device, blocks,
                                self._node("8GiB"), samples)

    def mixed(self) -> list[dict]:
        """(d)."""
        name, blocks = ("8b", 512) if self.gpu else ("tiny", 96)
        return measure_mixed(self._binary, self._codec(name)[0], self._folder, self._device,
                             self._seconds, self._node("8GiB"),
                             ["--shape", name, "--blocks", str(blocks)],
                             kill_every_s=min(20.0, self._seconds / 3))


def machine(gpu: bool, commit: str | None) -> dict:
    """What makes the figures believable."""
    if not gpu:
        return {"device": "cpu", "commit": commit}
    import attend_bench

    return {**attend_bench.describe_machine(commit),
            "command": f"tests/gpu/{Path(sys.argv[0]).name}",
            "sm_clock": f"{attend_bench.sm_clock()} MHz"}


def main() -> int:
    """Runs the scenarios."""
    parser = options(__doc__, "cuda", "node_gpu.json", SCENARIOS)
    parser.add_argument("--seconds", type=float, default=90, help="of the mixed load")
    return run_scenarios(Bench, parser.parse_args())


def options(text: str, device: str, output: str,
            scenarios: tuple[str, ...]) -> argparse.ArgumentParser:
    """Of every benchmark of scenarios; `output` lies among the results."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    parser.add_argument("--device", default=device)
    parser.add_argument("--output", type=Path, default=ROOT / "tests/bench/results" / output)
    parser.add_argument("--scenario", nargs="+", choices=scenarios, default=scenarios)
    parser.add_argument("--quick", action="store_true", help="less of all, to see that it works")
    parser.add_argument("--commit", help="default: that of the working tree")
    return parser


def run_scenarios(make: Callable[[argparse.Namespace, Path], object],
                  arguments: argparse.Namespace) -> int:
    """The exit code. `make`: an object with `gpu` and a method for each scenario."""
    with tempfile.TemporaryDirectory() as folder:
        bench = make(arguments, Path(folder))
        good = [run_scenario(bench, name, arguments) for name in arguments.scenario]
    return int(not all(good))


def run_scenario(bench: object, name: str, arguments: argparse.Namespace) -> bool:
    """Runs one and keeps its figures; whether it got them."""
    begin_s, good = time.monotonic(), True
    try:
        results = getattr(bench, name)()
    except Exception as error:  # the others still run
        traceback.print_exc()
        good, results = False, [{"name": name, "error": f"{type(error).__name__}: {error}"}]
    for result in results:
        print(f"{name}: {json.dumps(result)}", flush=True)
    print(f"{name}: {time.monotonic() - begin_s:.1f} s", flush=True)
    report = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    report[name] = {"machine": machine(bench.gpu, arguments.commit), "results": results}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    gc.collect()
    if bench.gpu:
        torch.cuda.empty_cache()
    return good


if __name__ == "__main__":
    sys.exit(main())
