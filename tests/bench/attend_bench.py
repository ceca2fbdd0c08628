#!/usr/bin/env python3
"""Attention over encoded pages against FP16 attention on the same GPU, as JSON.

    tests/bench/attend_bench.py [--build build/release] [--output FILE] [--commit NAME]

Runs BUILD/bin/attend_bench and, with torch, cuDNN's FP16 attention over contiguous caches in the
same way: a CUDA graph of one call for each of several caches of more than 400 MB in all, median of
21 replays. Prints a table; the file says GPU, driver, clock, commit.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import run
from run import ROOT

SHAPES = {"1x32768": (1, 32768), "1x131072": (1, 131072), "8x32768": (8, 32768),
          "32x8192": (32, 8192), "64x32768": (64, 32768)}
QUERY_HEADS, KV_HEADS, HEAD_SIZE = 64, 8, 128
COLD_BYTES = 400e6
REPLAYS = 21


def median_of_graph(calls: list) -> dict:
    """Microseconds a call of a CUDA graph of all `calls`: median, p10, p90."""
    import torch
    stream = torch.cuda.Stream()
    times = []
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        for _ in range(REPLAYS + 3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1000 / len(calls))
    times = sorted(times[3:])
    return {"us": round(times[REPLAYS // 2], 2), "p10": round(times[REPLAYS // 10], 2),
            "p90": round(times[REPLAYS * 9 // 10], 2)}


def fp16_rival(shape: str) -> dict:
    """cuDNN's attention over FP16 K and V [sequences][kv heads][tokens][128]."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    sequences, tokens = SHAPES[shape]
    size = (sequences, KV_HEADS, tokens, HEAD_SIZE)
    count = max(2, math.ceil(COLD_BYTES / (math.prod(size) * 4)))
    kind = {"device": "cuda", "dtype": torch.float16}
    caches = [(torch.randn(size, **kind), torch.randn(size, **kind)) for _ in range(count)]
    q = torch.randn(sequences, QUERY_HEADS, 1, HEAD_SIZE, **kind)

    def call(k: "torch.Tensor", v: "torch.Tensor"):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    times = median_of_graph([lambda k=k, v=v: call(k, v) for k, v in caches])
    return {"kernel": "cudnn fp16", "shape": shape, **times}


def run_rivals() -> list[dict]:
    """FP16 attention for every shape, or nothing and a line where torch is missing."""
    try:
        import torch
    except ImportError:
        print("no torch here: no FP16 rival in this run", file=sys.stderr)
        return []
    results = []
    for shape in SHAPES:
        results.append(fp16_rival(shape))
        torch.cuda.empty_cache()
    return results


def run_ours(program: pathlib.Path, options: list[str]) -> list[dict]:
    """The program's lines."""
    done = subprocess.run([program, *options], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def describe_machine(commit: str | None) -> dict:
    """GPU, driver, its clock just after the runs, and the commit."""
    query = "name,driver_version,clocks.sm,clocks.mem"
    line = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
                          check=True, capture_output=True, text=True).stdout.splitlines()[0]
    name, driver, clock, memory_clock = (part.strip() for part in line.split(","))
    if commit is None:
        commit = run.commit()
    return {"gpu": name, "driver": driver, "sm_clock": clock, "memory_clock": memory_clock,
            "commit": commit, "command": "make bench-gpu"}


def print_table(results: list[dict]) -> None:
    """One line a kernel and shape, with the speedup over FP16 in this run."""
    rival = {r["shape"]: r["us"] for r in results if r["kernel"] == "cudnn fp16"}
    for r in results:
        what = r["kernel"] if r["shape"] in rival and "steps" not in r else (
            f"{r['profiles']}{' refined' if r['refined'] else ''}, {r['steps']}")
        ratio = f"{rival[r['shape']] / r['us']:.2f}x" if r["shape"] in rival else ""
        spread = f"[{r['p10']:.2f} {r['p90']:.2f}]"
        print(f"{what:32} {r['shape']:>10} {r['us']:9.2f} us {spread} {ratio}")


def main() -> None:
    """Runs everything and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--output", type=pathlib.Path,
                        default=ROOT / "tests/bench/results/attend_bench.json")
    parser.add_argument("--commit", help="default: that of the working tree")
    parser.add_argument("--cache-folder", default="", help="of compiled kernels")
    arguments = parser.parse_args()
    program = arguments.build.absolute() / "bin/attend_bench"
    cache = ["--cache-folder", arguments.cache_folder] if arguments.cache_folder else []
    shapes = [*SHAPES, "ragged", "lognormal"]
    results = run_ours(program, [*cache, "--shapes", *shapes])
    results += run_rivals()
    results += run_ours(program, [*cache, "--profiles", "one", "--refined", "--shapes", *SHAPES])
    print_table(results)
    report = {"machine": describe_machine(arguments.commit), "results": results}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
