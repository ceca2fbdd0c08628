"""Workers under mixed load on one node, one killed at a time: no wrong page, no memory kept."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

from capacity import device_counters
from paged_worker import gpu_bytes_used

from flashquant.local_node import LocalNode

START_S = 120.0
GONE_S = 60.0


class Workers:
    """Processes of worker_driver.py; each has a log of its own, which outlives it."""

    def __init__(self, node: LocalNode, folder: Path, arguments: list[str]) -> None:
        self._node, self._folder, self._arguments = node, folder, arguments
        self._running: list[subprocess.Popen] = []
        self._started = 0
        self.logs: list[Path] = []
        self.failures: list[str] = []

    def start(self, seconds: float) -> None:
        """One more."""
        self._started += 1
        log = self._folder / f"worker{self._started}.jsonl"
        self.logs.append(log)
        script = Path(__file__).with_name("worker_driver.py")
        with log.with_suffix(".err").open("w", encoding="utf-8") as errors:
            self._running.append(subprocess.Popen(
                [sys.executable, str(script), "--endpoint", self._node.endpoint, "--log", str(log),
                 "--seconds", str(seconds), "--seed", str(self._started), *self._arguments],
                stderr=errors))

    def wait_busy(self, timeout_s: float = 300.0) -> None:
        """Until every worker has loaded something. RuntimeError: one did not start."""
        deadline_s = time.monotonic() + timeout_s
        while not all(self._last(log).get("requests") for log in self.logs):
            if time.monotonic() > deadline_s or any(p.poll() for p in self._running):
                raise RuntimeError("a worker does not start: " + self.errors())
            time.sleep(0.1)

    def kill_oldest(self) -> float:
        """SIGKILL; seconds until the node has one session less."""
        before = self._node.status(GONE_S).sessions
        victim = self._running.pop(0)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        begin_s = time.monotonic()
        while self._node.status(GONE_S).sessions >= before:
            if time.monotonic() > begin_s + GONE_S:
                raise RuntimeError(f"the node kept a dead worker's session for {GONE_S} s")
            time.sleep(0.01)
        return time.monotonic() - begin_s

    def wait_more(self, timeout_s: float) -> None:
        """Until all have loaded and checked more pages than by now."""
        before = self.totals()["checked_pages"]
        deadline_s = time.monotonic() + timeout_s
        while self.totals()["checked_pages"] == before:
            if time.monotonic() > deadline_s:
                raise RuntimeError("workers stand still: " + self.errors())
            time.sleep(0.1)

    def join(self, timeout_s: float) -> None:
        """Until all have ended by themselves."""
        for process in self._running:
            if process.wait(timeout_s):
                self.failures.append(f"exit code {process.returncode}: {self.errors()}")
        self._running.clear()

    def end(self) -> None:
        """At once."""
        for process in self._running:
            process.kill()
            process.wait()

    def errors(self) -> str:
        """What the workers said last."""
        texts = [log.with_suffix(".err").read_text("utf-8", "replace")[-1500:]
                 for log in self.logs]
        return "\n".join(text for text in texts if text)

    @staticmethod
    def _last(log: Path) -> dict:
        """The newest whole line."""
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        for line in reversed(lines):
            try:
                return json.loads(line)
            except ValueError:  # a line that was cut by a kill
                continue
        return {}

    def totals(self) -> dict[str, float]:
        """Sums over all workers, dead ones up to their last second; bytes are FP16."""
        reports = [self._last(log) for log in self.logs]
        names = ("requests", "loaded_blocks", "saved_blocks", "missed_blocks", "checked_pages",
                 "wrong_pages")
        totals = {name: sum(report.get(name, 0) for report in reports) for name in names}
        totals["worst_error"] = max(report.get("worst_error", 0.0) for report in reports)
        moved = totals["loaded_blocks"] + totals["saved_blocks"]
        totals["moved_bytes"] = moved * next((r["block_bytes"] for r in reports if r), 0)
        return totals


def measure_mixed(binary: Path, codec_path: Path, folder: Path, device: str, seconds: float,
                  node_arguments: tuple[str, ...], worker_arguments: list[str], count: int = 4,
                  kill_every_s: float = 20.0) -> list[dict]:
    """One entry. A worker comes and goes first: memory is compared with a node that has served."""
    with LocalNode(binary, [codec_path], 8 << 30, node_arguments) as node:
        arguments = ["--codec-set", str(codec_path), "--device", device, *worker_arguments]
        fresh = gpu_bytes_used(device)
        warm = Workers(node, folder / "warm", arguments)
        (folder / "warm").mkdir()
        try:
            warm.start(5.0)
            warm.join(START_S)
        finally:
            warm.end()
        time.sleep(2.0)
        before = gpu_bytes_used(device)
        workers = Workers(node, folder, arguments)
        try:
            gone_s, wall_s = run_and_kill(workers, seconds, count, kill_every_s)
        finally:
            workers.end()
        if workers.failures:
            raise RuntimeError("; ".join(workers.failures))
        return [{"name": "mixed load", "workers": count, "wall_seconds": wall_s,
                 "killed": len(gone_s),
                 "largest_seconds_until_session_gone": max(gone_s, default=0),
                 **workers.totals(), "gpu_bytes_fresh_node": fresh, "gpu_bytes_before": before,
                 "gpu_bytes_after": settled_bytes(device, before), "node": device_counters(node)}]


def run_and_kill(workers: Workers, seconds: float, count: int,
                 kill_every_s: float) -> tuple[list[float], float]:
    """(seconds until each dead worker's session was gone, seconds of the whole run)."""
    for _ in range(count):
        workers.start(seconds)
    workers.wait_busy()
    begin_s, gone_s = time.monotonic(), []
    for _ in range(math.ceil(seconds / kill_every_s) - 1):
        time.sleep(kill_every_s)
        workers.wait_busy()
        gone_s.append(workers.kill_oldest())
        workers.start(begin_s + seconds - time.monotonic())
    workers.join(seconds + START_S)
    return gone_s, time.monotonic() - begin_s


def settled_bytes(device: str, before: int) -> int:
    """Memory in use once it is back, or after two seconds."""
    deadline_s = time.monotonic() + 2.0
    while gpu_bytes_used(device) > before + (16 << 20) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return gpu_bytes_used(device)
