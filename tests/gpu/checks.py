"""What tests/gpu/suite.py runs: a table of commands by group."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flashquant import nccl

GROUPS = ("checks", "checks2", "bench", "bench2")
CODEC_SET = "codec_sets/smollm2-135m-instruct.fqcs"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# What compute-sanitizer, which is slow, runs: every kernel of encode and decode, on a few pages ...
SMALL_PAGES = ("*PageKernels*64x16*:*PageKernels*128x16*:*PageKernels*Universal96*:"
               "*PageKernels*Exact96*")
# ... whole slabs of every kind through a Device ...
SMALL_SLABS = ("*DeviceCoding*Whole*/d64t0:*DeviceCoding*QueuedBehind*/d64t0:"
               "*DeviceCoding*OtherKind*/d64t0")
# ... attention over all kinds of pages, head sizes 64 and 256, a block's smallest layout too.
SMALL_ATTENTION = "*Sink*/0:*Sink*/2:*QueryHeads*/0:*Refinements*/0:*BFloat16*/0:*Rope*/0"


# Programs that scripts start, and what one wants at hand there.
BY_SCRIPTS = {"flashquantd", "fqctl", "attend_bench", "device_bench", "pages_bench"}


@dataclass
class Check:
    """A command, run in the repository's root; exit code 0 when it passed."""

    name: str
    command: list[str]
    seconds: float = 600
    environment: dict[str, str] = field(default_factory=dict)


class Checks:
    """Of a build folder. `commit` names it in the files of benchmarks; without it git is asked."""

    def __init__(self, build: Path, commit: str | None = None) -> None:
        self._programs = build / "bin"
        self._build = ["--build", str(build)]
        self._commit = ["--commit", commit] if commit else []
        self._cache = str(build / "attend_cache")
        self._attend = [self._program("attend_device_test"), f"--cache-folder={self._cache}"]
        self.groups: dict[str, Callable[[], Iterator[Check]]] = dict(zip(GROUPS, (
            self._checks, self._checks_of_two, self._bench, self._bench_of_two), strict=True))

    def programs(self) -> list[str]:
        """Names of all programs of the build that the groups need."""
        words = [Path(word) for group in self.groups.values() for check in group()
                 for word in check.command]
        return sorted({word.name for word in words if word.parent == self._programs} | BY_SCRIPTS)

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _test(self, name: str, *arguments: str) -> Check:
        return Check(name, [self._program(name), *arguments])

    @staticmethod
    def _script(name: str, *arguments: str, label: str = "", seconds: float = 600,
                **environment: str) -> Check:
        return Check(name + label, [sys.executable, f"tests/gpu/{name}.py", *arguments], seconds,
                     environment)

    def _nccl_test(self, *arguments: str) -> Check:
        found = (path for path, _ in nccl.candidates() if Path(path).is_file())
        library = next(found, nccl.NAME)
        return self._test("nccl_device_test", f"--library={library}", *arguments)

    def _checks(self) -> Iterator[Check]:
        for name in ("codec", "memory", "tiers", "cuda"):
            yield self._test(f"{name}_device_test")
        yield self._test("device_node_test")
        yield self._test("agreement_device_test", CODEC_SET)
        yield self._nccl_test("--gtest_filter=OneGpu.*")
        yield Check("attend_device_test", self._attend, 1200)
        for tables in ("2", "1"):
            yield Check(f"attend_device_test.tables{tables}",
                        [*self._attend, "--quick", f"--replicated-tables={tables}"])
        yield self._script("check_nccl")
        yield self._script("check_device_memory")
        yield self._script("check_device_memory", label=".expandable",
                           PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
        for name in ("order", "full_gpu", "pinned"):
            yield self._script(f"check_{name}", *self._build)
        yield from self._sanitizers()

    def _sanitizers(self) -> Iterator[Check]:
        for tool in TOOLS:
            yield self._sanitized(tool, "pages", self._program("cuda_device_test"),
                                  f"--gtest_filter={SMALL_PAGES}")
            if tool != "initcheck":
                yield self._sanitized(tool, "slabs", self._program("device_node_test"),
                                      f"--gtest_filter={SMALL_SLABS}")
            for tables in ("3", "1"):
                yield self._sanitized(tool, f"attention.tables{tables}", *self._attend,
                                      f"--replicated-tables={tables}",
                                      f"--gtest_filter={SMALL_ATTENTION}")
        for tool, more in (("memcheck", ()), ("racecheck", ("--exclude", "MakeCoderLists"))):
            yield self._script("check_sanitized", *self._build, "--tool", tool, *more,
                               label=f".{tool}", seconds=1200)

    @staticmethod
    def _sanitized(tool: str, label: str, *command: str) -> Check:
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
        return Check(f"{tool}.{label}", [*sanitizer, *command, "--gtest_brief=1"], 900,
                     {"FQ_TEST_WITHOUT_LISTS": "1"})

    def _checks_of_two(self) -> Iterator[Check]:
        yield self._nccl_test()
        yield self._script("check_fetch", *self._build)

    def _bench(self) -> Iterator[Check]:
        for name in ("pages", "device", "attend"):
            more = ["--cache-folder", self._cache] if name == "attend" else []
            yield Check(f"{name}_bench", [sys.executable, f"tests/bench/{name}_bench.py",
                                          *self._build, *self._commit, *more], 1800)
        yield from self._scenarios("bench_node", "speed", "rivals", "capacity", "mixed")

    def _bench_of_two(self) -> Iterator[Check]:
        yield from self._scenarios("bench_nccl", "correctness", "bandwidth", "overlap", "kills")

    def _scenarios(self, script: str, *names: str) -> Iterator[Check]:
        for name in names:
            yield self._script(script, *self._build, *self._commit, "--scenario", name,
                               label=f".{name}", seconds=1800)
