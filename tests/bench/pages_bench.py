#!/usr/bin/env python3
"""Speed of encode and decode on this GPU, and whether they agree with the CPU, kept as JSON beside
the machine and commit.

    tests/bench/pages_bench.py [--build build/release] [--output FILE] [--commit NAME] [--pages N]

Runs BUILD/bin/pages_bench, which also copies device memory, with the tables of the shipped codec
set; then BUILD/bin/agreement_device_test on N pages of it, whose failure is one here.
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


def run(*command: str | pathlib.Path) -> list[dict]:
    """The JSON objects that a program prints, one a line."""
    lines = subprocess.run([str(word) for word in command], check=True, text=True,
                           stdout=subprocess.PIPE).stdout.splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    """Runs the programs and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--output", type=pathlib.Path,
                        default=ROOT / "tests/bench/results/pages_bench.json")
    parser.add_argument("--commit", help="default: that of the working tree")
    parser.add_argument("--pages", type=int, default=1000000, help="to agree on")
    arguments = parser.parse_args()
    programs = arguments.build.absolute() / "bin"
    results = run(programs / "pages_bench", "--tables", TABLES)
    machine = attend_bench.describe_machine(arguments.commit)
    machine["sm_clock"] = f"{attend_bench.sm_clock()} MHz"  # right behind the last kernel
    results += run(programs / "agreement_device_test", TABLES, "--pages", arguments.pages)
    print_table(results)
    report = {"machine": machine, "results": results}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
