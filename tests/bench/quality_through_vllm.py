#!/usr/bin/env python3
"""Measures the loss of loads through vLLM (`flashquant eval-vllm`) and keeps the figures.

    tests/bench/quality_through_vllm.py [--dtype float32] [--prefixes 1024 2048 4096]

Puts them into tests/bench/results/quality_through_vllm.json, with machine, load and commit, in the
place of older runs of the same dtype with no other prefixes. Needs the release build, the model and
the texts (`make quality-vllm`).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

from run import RESULTS, ROOT, commit, cpu_model

MODEL = "build/models/smollm2"
CODEC_SET = "codec_sets/smollm2-135m-instruct.fqcs"
TEXTS = "build/text/test"
TARGET = RESULTS / "quality_through_vllm.json"


def keep(report: dict) -> None:
    """Adds a run in the place of those it repeats."""
    runs = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else []
    runs = [run for run in runs if run["dtype"] != report["dtype"]
            or not set(run["prefixes"]) <= set(report["prefixes"])]
    runs.append(report)
    runs.sort(key=lambda run: (run["dtype"], run["prefixes"]))
    TARGET.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print(f"written: {TARGET.relative_to(ROOT)}")


def main() -> int:
    """The exit code is that of `flashquant`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prefixes", nargs="+", default=["1024", "2048", "4096"])
    parser.add_argument("--greedy-tokens", default="64")
    parser.add_argument("--codec-set", default=CODEC_SET)
    parser.add_argument("--node", default="build/release/bin/flashquantd")
    parser.add_argument("--text", nargs="+", help=f"default: all of {TEXTS}")
    arguments = parser.parse_args()
    texts = arguments.text or sorted(str(file.relative_to(ROOT))
                                     for file in (ROOT / TEXTS).glob("*.txt"))
    options = ["--model", MODEL, "--codec-set", arguments.codec_set, "--dtype", arguments.dtype,
               "--prefixes", *arguments.prefixes, "--greedy-tokens", arguments.greedy_tokens,
               "--text", *texts]
    context = {"commit": commit(), "cpu": cpu_model(), "load_at_start": os.getloadavg()[0],
               "command": " ".join(["flashquant eval-vllm", *options])}
    done = subprocess.run([sys.executable, "-m", "flashquant", "eval-vllm", *options, "--json",
                           "--node", arguments.node], stdout=subprocess.PIPE, cwd=ROOT, text=True,
                          check=False)
    if done.returncode == 0:
        keep({**context, **json.loads(done.stdout)})
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
