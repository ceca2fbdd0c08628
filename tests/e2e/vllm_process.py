"""A vLLM engine as a child process that takes commands on stdin, one JSON object a line.

Run as a script it is the child; Engine is the parent's side.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from flashquant import local_engine

HERE = Path(__file__).resolve().parent
RESULT = "RESULT "
START_S = 400
ANSWER_S = 120
ENVIRONMENT = {**local_engine.ENVIRONMENT, "VLLM_LOGGING_LEVEL": "WARNING", "PYTHONPATH": str(HERE)}
# vLLM is three processes by default, each of which imports all of it again.
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class Engine:
    """Starts the child; a context manager. `transfer`: kv_transfer_config, or None."""

    def __init__(self, model: Path, transfer: dict[str, Any] | None, log: Path,
                 **settings: str) -> None:
        """`settings`: environment variables."""
        environment = {**os.environ, **ENVIRONMENT, **settings}
        command = [sys.executable, str(HERE / "vllm_process.py"), str(model),
                   json.dumps(transfer)]
        self._log, self._closed = log, False
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True,
                env=environment, start_new_session=True, errors="replace")
        self._answer(START_S)

    def generate(self, prompt: list[int], fresh: bool = False) -> dict[str, Any]:
        """Tokens, cached tokens and seconds in the queue (lookup and load included) of one
        request; `fresh`: forget local blocks first."""
        self._process.stdin.write(json.dumps({"prompt": prompt, "fresh": fresh}) + "\n")
        self._process.stdin.flush()
        return self._answer(ANSWER_S)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        """The next result; an engine that gives none within the limit is killed."""
        watchdog = threading.Timer(limit_s, self.close)
        watchdog.start()
        try:
            for line in self._process.stdout:
                if line.startswith(RESULT):
                    return json.loads(line[len(RESULT):])
        finally:
            watchdog.cancel()
        tail = self._log.read_text("utf-8", "replace")[-4000:]
        raise AssertionError(f"the engine is gone ({self._process.wait()}):\n{tail}")

    def close(self) -> None:
        """Ends the child and all it started. Idempotent."""
        if not self._closed:
            self._closed = True
            os.killpg(self._process.pid, signal.SIGKILL)  # the group outlives its first process
        self._process.wait()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reply(answer: dict[str, Any]) -> None:
    """One line for the parent."""
    print(RESULT + json.dumps(answer), flush=True)


def serve(model: str, transfer: dict[str, Any] | None) -> None:
    """The child."""
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    more = {"kv_transfer_config": KVTransferConfig(**transfer)} if transfer else {}
    llm = LLM(model=model, dtype="bfloat16", block_size=64, max_model_len=2048,
              max_num_batched_tokens=512, enforce_eager=True, enable_prefix_caching=True,
              disable_log_stats=False, **more)
    parameters = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    reply({"started": True})
    for line in sys.stdin:
        command = json.loads(line)
        if command["fresh"]:
            llm.reset_prefix_cache()
        output, = llm.generate([{"prompt_token_ids": command["prompt"]}], parameters,
                               use_tqdm=False)
        reply({"tokens": list(output.outputs[0].token_ids), "cached": output.num_cached_tokens,
               "reason": output.outputs[0].finish_reason,
               "waited_s": output.metrics.scheduled_ts - output.metrics.queued_ts})


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
