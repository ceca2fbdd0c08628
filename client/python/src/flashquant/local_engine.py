"""Programs that run vLLM on this machine's CPU, as child processes that leave nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

PROGRESS = "progress: "  # begins the lines of standard error that the parent gets to see
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore",
}
ERROR_LINES = 5


def report_progress(text: str) -> None:
    """Called in the child: a line for the parent's `progress`."""
    print(f"{PROGRESS}{text}", file=sys.stderr, flush=True)


class EngineRun:
    """`python PROGRAM...` under settings for one core; a context manager, at whose end everything
    that the program started and left behind is killed."""

    def __init__(self, program: list[str], log: Path, progress: Callable[[str], None]) -> None:
        """Starts it. All that it prints goes to the file `log`."""
        settings = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        self._log, self._progress = log, progress
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                ["env", *settings, sys.executable, *program], stdout=sink, text=True,
                stderr=subprocess.PIPE, errors="replace", start_new_session=True)
        self._reader = threading.Thread(target=self._copy, daemon=True)
        self._reader.start()

    def wait(self, limit_s: float) -> None:
        """Waits for its end. ChildProcessError, with the log from the first error on (vLLM's last
        lines hide it), unless it exits with 0 within the limit."""
        try:
            status = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = f"not done in {limit_s:.0f} s"
        if status != 0:
            self.close()
            lines = self._log.read_text("utf-8", "replace").splitlines()
            first = next((i for i, line in enumerate(lines) if "Error" in line), -ERROR_LINES)
            raise ChildProcessError("\n".join([f"the vLLM process failed ({status}):",
                                               *lines[first:][:ERROR_LINES]]))

    def close(self) -> None:
        """Kills it and all it started. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group outlives its first process
        self._process.wait()
        self._reader.join(5)

    def __enter__(self) -> "EngineRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy(self) -> None:
        """All lines go to the log, progress lines also to the caller."""
        with self._log.open("a", encoding="utf-8") as sink:
            for line in self._process.stderr:
                sink.write(line)
                sink.flush()
                if line.startswith(PROGRESS):
                    self._progress(line.removeprefix(PROGRESS).rstrip("\n"))
