#!/usr/bin/env python3
"""Runs the checks that need a GPU, or the benchmarks, each under a limit of its own.

    tests/gpu/suite.py [--build build/release] [--logs build/gpu/logs] [--gpus 0 1]
        [--only TEXT...] [--minutes N] [--commit NAME] checks|checks2|bench|bench2 ...
    tests/gpu/suite.py --programs

What a check prints goes to a file of LOGS; its end is shown when it fails. With several --gpus,
checks of `checks` run beside each other, one on each. Past --minutes no other check begins. The
last line is `N passed, N failed`; what was not run has failed.
"""

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = str(ROOT / "client/python/src")  # need not be installed
sys.path.append(CLIENT)

from checks import GROUPS, Check, Checks  # noqa: E402

TAIL_BYTES = 3000  # shown of the log of a check that failed
BESIDE_EACH_OTHER = "checks"


class Suite:
    """Runs checks and counts. `gpus`: the devices for checks that run beside each other."""

    def __init__(self, logs: Path, gpus: Sequence[str], minutes: float) -> None:
        self._logs, self._gpus = logs, gpus
        self._end_s = time.monotonic() + 60 * minutes
        paths = (CLIENT, os.environ.get("PYTHONPATH"))
        self._environment = os.environ | {"PYTHONPATH": ":".join(filter(None, paths))}
        self._lock = threading.Lock()
        self.passed: list[str] = []
        self.failed: list[str] = []

    def run_beside_each_other(self, checks: Sequence[Check]) -> None:
        """One thread for each GPU; each takes the next check."""
        waiting: queue.SimpleQueue[Check] = queue.SimpleQueue()
        for check in checks:
            waiting.put(check)
        threads = [threading.Thread(target=self._run_waiting, args=(waiting, gpu))
                   for gpu in self._gpus or [""]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run_waiting(self, waiting: "queue.SimpleQueue[Check]", gpu: str) -> None:
        while True:
            try:
                check = waiting.get_nowait()
            except queue.Empty:
                return
            self.run(check, {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})

    def run(self, check: Check, environment: dict[str, str]) -> None:
        """One check, if there is time for another."""
        begin_s = time.monotonic()
        if begin_s > self._end_s:
            return self._count(check, 0, "not run: no time left")
        log = self._logs / f"{check.name}.log"
        with log.open("wb") as out:
            why = self._wait(check, out, environment)
        tail = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if why else ""
        self._count(check, time.monotonic() - begin_s, why, tail)

    def _wait(self, check: Check, out: object, environment: dict[str, str]) -> str:
        """Why it failed; empty when it passed."""
        try:
            process = subprocess.Popen(
                check.command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                env=self._environment | environment | check.environment, start_new_session=True)
        except OSError as error:
            return str(error)
        try:
            code = process.wait(check.seconds)
            return f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"not done after {check.seconds:.0f} s"

    def _count(self, check: Check, seconds: float, why: str, tail: str = "") -> None:
        with self._lock:
            (self.failed if why else self.passed).append(check.name)
            print(f"{'FAILED' if why else 'passed'} {seconds:7.1f} s  {check.name}  {why}",
                  flush=True)
            if tail:
                print(f"{tail}\n", flush=True)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    parser.add_argument("--logs", type=Path, default=ROOT / "build/gpu/logs")
    parser.add_argument("--gpus", nargs="+", default=[], help="devices, such as 0 1")
    parser.add_argument("--only", nargs="+", default=[""], help="checks with this in their name")
    parser.add_argument("--minutes", type=float, default=240, help="no check begins later")
    parser.add_argument("--commit", help="of the build; default: that of the working tree")
    parser.add_argument("--programs", action="store_true",
                        help="print what must be in BUILD/bin, run nothing")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    table = Checks(arguments.build.absolute(), arguments.commit)
    if arguments.programs:
        print(*table.programs())
        return 0
    arguments.logs.mkdir(parents=True, exist_ok=True)
    (arguments.build / "attend_cache").mkdir(parents=True, exist_ok=True)
    suite = Suite(arguments.logs.absolute(), arguments.gpus, arguments.minutes)
    for group in arguments.groups:
        checks = [check for check in table.groups[group]()
                  if any(text in check.name for text in arguments.only)]
        if group == BESIDE_EACH_OTHER:
            suite.run_beside_each_other(checks)
            continue
        for check in checks:
            suite.run(check, {})
    print(f"\n{len(suite.passed)} passed, {len(suite.failed)} failed")
    return int(bool(suite.failed) or not suite.passed)


if __name__ == "__main__":
    sys.exit(main())
