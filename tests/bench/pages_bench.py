#!/usr/bin/env python3
"""Speed of encode and decode on this GPU, kept as JSON beside its machine and commit.

    tests/bench/pages_bench.py [--build build/release] [--output FILE] [--commit NAME]

Runs BUILD/bin/pages_bench, which also copies device memory, with the tables of the shipped codec
set.
"""

import argparse
import json
import pathlib
import subprocess

import attend_bench
from run import ROOT

TABLES = ROOT / "codec_sets/smollm2-135m-instruct.fqcs"


def print_table(results: list[dict]) -> None:
    """One line a figure."""
    for result in results:
        figures = ", ".join(f"{key} {value}" for key, value in result.items() if key != "name")
        print(f"{result['name']:32} {figures}")


def main() -> None:
    """Runs the program and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--output", type=pathlib.Path,
                        default=ROOT / "tests/bench/results/pages_bench.json")
    parser.add_argument("--commit", help="default: that of the working tree")
    arguments = parser.parse_args()
    program = arguments.build.absolute() / "bin/pages_bench"
    lines = subprocess.run([str(program), "--tables", str(TABLES)], check=True, text=True,
                           stdout=subprocess.PIPE).stdout.splitlines()
    results = [json.loads(line) for line in lines]
    print_table(results)
    machine = attend_bench.describe_machine(arguments.commit)
    machine["sm_clock"] = f"{attend_bench.sm_clock()} MHz"  # right behind the last kernel
    report = {"machine": machine, "results": results}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
