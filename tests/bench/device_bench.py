#!/usr/bin/env python3
"""Speed of whole slabs on this GPU, kept as JSON beside its machine and commit.

    tests/bench/device_bench.py [--build build/release] [--output FILE] [--commit NAME]

Runs BUILD/bin/device_bench: Encode and Decode of 1, 16 and 256 blocks of a 70B and an 8B shape, in
engine blocks of 64 and of 16 tokens, on a bare queue and through the node's scheduler, in turns
with a copy on the device of as many bytes, with the tables of the shipped codec set.
"""

import argparse
import json
import pathlib
import subprocess

import attend_bench
from pages_bench import TABLES
from run import ROOT


def print_table(results: list[dict]) -> None:
    """One line a figure."""
    for one in results:
        print(f"{one['name']:6} {one['way']:9} {one['profile']:14} {one['layers']:3} layers "
              f"{one['chunk_tokens']:3} tokens {one['blocks']:4} blocks: {one['us']:9.1f} us, "
              f"{one['gb_per_s']:5} GB/s, "
              f"{one['of_copy_percent']:5.1f} % of the copy ({one['copy_gb_per_s']} GB/s)")


def main() -> None:
    """Runs the program and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--output", type=pathlib.Path,
                        default=ROOT / "tests/bench/results/device_bench.json")
    parser.add_argument("--commit", help="default: that of the working tree")
    arguments = parser.parse_args()
    program = arguments.build.absolute() / "bin/device_bench"
    lines = subprocess.run([str(program), "--tables", str(TABLES)], check=True, text=True,
                           stdout=subprocess.PIPE).stdout.splitlines()
    results = [json.loads(line) for line in lines]
    print_table(results)
    machine = attend_bench.describe_machine(arguments.commit)
    report = {"machine": machine, "results": results}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
