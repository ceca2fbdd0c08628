#!/usr/bin/env python3
"""Attention over encoded pages against FP16 attention on the same GPU, as JSON.

    tests/bench/attend_bench.py [--build build/release] [--output FILE] [--commit NAME]

For each shape BUILD/bin/attend_bench and the rivals take turns, one replay each of a CUDA graph of
one call for each of several caches of more than 400 MB in all: ours over encoded and over FP16
pages, a kernel that only reads, cuDNN through torch (contiguous caches), and FlashInfer where it
can be imported (pages of 64 tokens in random order). Prints a table of medians; the file says GPU,
driver, clock, versions, commit.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys
from dataclasses import dataclass, field

import run
from run import ROOT

PAGE = 64  # tokens
COLD_BYTES = 400e6
ROUNDS, WARM_UP = 21, 3
WHOLE = "q+pages+merge"


@dataclass
class Heads:
    """Of a layer."""
    query: int = 64
    kv: int = 8
    size: int = 128


@dataclass
class Scene:
    """What takes turns: our kinds of pages at these shapes, and the rivals."""
    shapes: list[str]
    pages: list[str]
    heads: Heads = field(default_factory=Heads)
    replicated_tables: int = 3  # fewer: as on a GPU with less shared memory
    rivals: tuple[str, ...] = ("cudnn",)


EQUAL_SHAPES = ["1x32768", "1x131072", "8x32768", "32x8192", "64x32768"]
SCENES = [
    Scene([*EQUAL_SHAPES, "ragged", "lognormal"],
          ["one", "mixed", "one-refined", "exact", "read-one", "read-exact"]),
    Scene(["8x32768", "64x32768"], ["one", "one-refined"], replicated_tables=2),
    Scene(["8x32768", "64x32768"], ["one", "one-refined"], replicated_tables=1),
    Scene(["8x32768", "64x8192"], ["one", "one-refined"], Heads(query=32, size=256)),
    Scene(["8x32768", "64x32768"], ["one", "one-refined"], Heads(size=64)),
    # Last, because it compiles when it is first called.
    Scene(EQUAL_SHAPES, ["one"], rivals=("cudnn", "flashinfer")),
]


class Rival:
    """A graph of attention calls, one for each cache, and the times of its replays."""

    def __init__(self, name: str, calls: list) -> None:
        import torch
        self.name, self.count, self.times = name, len(calls), []
        self.calls = calls  # they hold the memory that the graph uses
        self.stream = torch.cuda.Stream()
        with torch.cuda.stream(self.stream):
            for call in calls[:2]:
                call()
            self.stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                for call in calls:
                    call()
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay(self) -> None:
        """Once, timed."""
        import torch
        with torch.cuda.stream(self.stream):
            self.begin.record()
            self.graph.replay()
            self.end.record()
        self.end.synchronize()
        self.times.append(self.begin.elapsed_time(self.end) * 1000 / self.count)

    def result(self, shape: str) -> dict:
        """Microseconds a call: median, p10, p90, as attend_bench prints them."""
        times = sorted(self.times[WARM_UP:])
        at = {"us": 0.5, "p10": 0.1, "p90": 0.9}
        return {"kernel": self.name, "shape": shape,
                **{key: round(times[int(share * len(times))], 2) for key, share in at.items()}}


def cache_count(elements: int) -> int:
    """Caches of K and V, `elements` FP16 in each, so that none is found in L2."""
    return max(2, math.ceil(COLD_BYTES / (4 * elements)))


def cudnn(sequences: int, tokens: int, heads: Heads) -> Rival:
    """Over K and V [sequences][kv heads][tokens][head size]."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    size = (sequences, heads.kv, tokens, heads.size)
    kind = {"device": "cuda", "dtype": torch.float16}
    caches = [(torch.randn(size, **kind), torch.randn(size, **kind))
              for _ in range(cache_count(math.prod(size)))]
    q = torch.randn(sequences, heads.query, 1, heads.size, **kind)

    def call(k: "torch.Tensor", v: "torch.Tensor"):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return Rival("cudnn fp16", [lambda k=k, v=v: call(k, v) for k, v in caches])


def flashinfer(sequences: int, tokens: int, heads: Heads) -> Rival:
    """Over K and V [pages][2][64][kv heads][head size], pages in random order."""
    import flashinfer as library
    import torch
    pages = sequences * tokens // PAGE
    kind = {"device": "cuda", "dtype": torch.float16}
    caches = [torch.randn(pages, 2, PAGE, heads.kv, heads.size, **kind)
              for _ in range(cache_count(pages * PAGE * heads.kv * heads.size))]
    integers = {"device": "cuda", "dtype": torch.int32}
    order = torch.randperm(pages, **integers)
    begins = torch.arange(0, sequences + 1, **integers) * (tokens // PAGE)
    last = torch.full((sequences,), PAGE, **integers)
    q = torch.randn(sequences, heads.query, heads.size, **kind)
    out = torch.empty_like(q)
    workspace = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    wrapper.plan(begins, order, last, heads.query, heads.kv, heads.size, PAGE,
                 q_data_type=torch.float16, kv_data_type=torch.float16)
    return Rival("flashinfer fp16",
                 [lambda cache=cache: wrapper.run(q, cache, out=out) for cache in caches])


MAKERS = {"cudnn": cudnn, "flashinfer": flashinfer}


def importable(module: str) -> bool:
    """Whether it is there; says why not."""
    try:
        __import__(module)
        return True
    except Exception as error:  # libraries fail at import in many ways
        print(f"without {module}: {error!r}"[:300], file=sys.stderr)
        return False


def rivals_of(shape: str, scene: Scene, there: list[str]) -> list[Rival]:
    """Those that can read sequences of equal lengths; a rival that fails says so."""
    made = []
    for name in scene.rivals if "x" in shape else ():
        if name not in there:
            continue
        try:
            made.append(MAKERS[name](*map(int, shape.split("x")), scene.heads))
        except Exception as error:  # out of memory, no such kernel: the others still run
            print(f"{name} at {shape}: {error!r}"[:600], file=sys.stderr)
    return made


def sm_clock() -> int:
    """In MHz, now."""
    line = subprocess.run(["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"],
                          check=True, capture_output=True, text=True).stdout.split()[0]
    return int(line)


def take_turns(ours: subprocess.Popen, rivals: list[Rival]) -> int:
    """All rounds of a shape, at whose start `ours` waits; SM clock amid them."""
    clock = 0
    for round_number in range(ROUNDS + WARM_UP):
        if ours.stdout.readline() != "\n":
            raise RuntimeError("attend_bench ended early")
        for rival in rivals:
            rival.replay()
        if round_number == ROUNDS // 2:
            clock = sm_clock()
        print(file=ours.stdin, flush=True)
    ours.stdout.readline()
    print(file=ours.stdin, flush=True)
    return clock


def run_scene(program: list[str], scene: Scene, there: list[str]) -> list[dict]:
    """Results of ours and of the rivals that are there."""
    heads = scene.heads
    command = [*program, "--in-step", "--rounds", str(ROUNDS), "--pages", *scene.pages,
               "--shapes", *scene.shapes, "--query-heads", str(heads.query),
               "--kv-heads", str(heads.kv), "--head-size", str(heads.size),
               "--replicated-tables", str(scene.replicated_tables)]
    results = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as ours:
        for shape in scene.shapes:
            rivals = rivals_of(shape, scene, there)
            clock = take_turns(ours, rivals)
            of_shape = [rival.result(shape) for rival in rivals]
            while (line := ours.stdout.readline()) != "\n":
                of_shape.append(json.loads(line))
            for result in of_shape:
                result.update(sm_clock_mhz=clock, heads=f"{heads.query}/{heads.kv}/{heads.size}")
            print_table(of_shape)
            results += of_shape
            del rivals
            free_memory(there)
    return results


def free_memory(there: list[str]) -> None:
    """What rivals held, for the next shape."""
    if there:
        import torch
        torch.cuda.empty_cache()


def describe_machine(commit: str | None) -> dict:
    """GPU, driver, memory clock, versions of libraries, and the commit."""
    line = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,clocks.mem",
                           "--format=csv,noheader"],
                          check=True, capture_output=True, text=True).stdout.splitlines()[0]
    name, driver, memory_clock = (part.strip() for part in line.split(","))
    machine = {"gpu": name, "driver": driver, "memory_clock": memory_clock,
               "commit": commit or run.commit(), "command": "make bench-gpu"}
    for package in ("torch", "nvidia-cudnn-cu13", "flashinfer-python"):
        try:
            machine[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return machine


def print_table(results: list[dict]) -> None:
    """One line for each result of a shape, with the speedup over the fastest FP16 attention."""
    fp16 = [r["us"] for r in results
            if r["kernel"].endswith("fp16") or r.get("pages") == "exact" and r["steps"] == WHOLE]
    for r in results:
        what = f"{r['pages']}, {r['steps']}" if "pages" in r else r["kernel"]
        ratio = f"{min(fp16) / r['us']:.2f}x" if fp16 else ""
        spread = f"[{r['p10']:.2f} {r['p90']:.2f}]"
        tables = r.get("replicated_tables", 3)
        print(f"{what:32} {r['heads']} {r['shape']:>10} {r['us']:9.2f} us {spread:20} {ratio:6}"
              f"{'' if tables == 3 else f'{tables} replicated tables'}", flush=True)


def main() -> None:
    """Runs everything and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--output", type=pathlib.Path,
                        default=ROOT / "tests/bench/results/attend_bench.json")
    parser.add_argument("--commit", help="default: that of the working tree")
    parser.add_argument("--cache-folder", default="", help="of compiled kernels")
    arguments = parser.parse_args()
    there = []
    if importable("torch"):
        there = ["cudnn"] + ["flashinfer"] * importable("flashinfer")
    program = [str(arguments.build.absolute() / "bin/attend_bench")]
    if arguments.cache_folder:
        program += ["--cache-folder", arguments.cache_folder]
    report = {"machine": describe_machine(arguments.commit), "results": []}
    for number, scene in enumerate(SCENES):
        for result in run_scene(program, scene, there):
            report["results"].append({"scene": number, **result})
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
