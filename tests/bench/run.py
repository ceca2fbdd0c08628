#!/usr/bin/env python3
"""Runs the benchmarks of BUILD/bin and keeps their figures as tests/bench/results/NAME.json.

    tests/bench/run.py [--build build/bench] [NAME...]

Median of five repetitions, alternating, one file a program: machine, load, commit, figures. The
rivals of a figure (memcpy, q4_0) run in the same program.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = ROOT / "tests/bench/results"
REPETITIONS = 5


def commit() -> str:
    """Of the working tree; `+` behind it where tracked files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def cpu_model() -> str:
    """As the kernel names it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def run(program: pathlib.Path) -> dict:
    """Runs one program, its table shown; the report with what makes it believable."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run([
            program, f"--benchmark_out={report.name}", "--benchmark_out_format=json",
            f"--benchmark_repetitions={REPETITIONS}", "--benchmark_report_aggregates_only=true",
            "--benchmark_enable_random_interleaving=true", "--benchmark_min_time=0.2",
        ], check=True, cwd=ROOT)
        result = json.load(report)
    context = result["context"]
    context.pop("host_name", None)
    context.update(commit=commit(), cpu=cpu_model(), executable=program.name,
                   command="make bench", repetitions=REPETITIONS)
    return result


def main() -> int:
    """The exit code: 1 when there is nothing to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/bench")
    parser.add_argument("names", nargs="*", help="programs, default all of BUILD/bin/*_bench")
    arguments = parser.parse_args()
    folder = arguments.build.absolute() / "bin"
    programs = [folder / name for name in arguments.names] or sorted(folder.glob("*_bench"))
    if not programs:
        print(f"{folder} holds no benchmark", file=sys.stderr)
        return 1
    if os.getloadavg()[0] > 1:
        print(f"warning: load {os.getloadavg()[0]:.1f} before the start; figures will be low",
              file=sys.stderr)
    RESULTS.mkdir(exist_ok=True)
    for program in programs:
        print(f"== {program.name}", flush=True)
        text = json.dumps(run(program), indent=1) + "\n"
        (RESULTS / f"{program.name}.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
