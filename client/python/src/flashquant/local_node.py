"""A node as a child process, for the demo, tests and evaluations on one machine."""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import grpc

from flashquant.v1 import admin_pb2, admin_pb2_grpc

START_S = 20.0


class LocalNode:
    """Starts flashquantd on a socket in a new temporary folder; a context manager.

    Its log is the file `log` in that folder, which stays when something fails.
    """

    def __init__(self, binary: Path | str, codec_sets: list[Path] | None = None,
                 host_bytes: int = 1 << 30, extra_args: tuple[str, ...] = ()) -> None:
        """Waits until the node serves; RuntimeError with the end of its log if it does not."""
        self._folder = tempfile.TemporaryDirectory(prefix="fq-")
        self.socket = Path(self._folder.name) / "fq.sock"
        self.endpoint = f"unix://{self.socket}"
        self.log = Path(self._folder.name) / "log"
        self._arguments = [str(binary), f"--socket={self.socket}", "--metrics-listen=127.0.0.1:0",
                           f"--host-bytes={host_bytes}", *extra_args]
        self._arguments += [f"--codec-set={path}" for path in codec_sets or ()]
        self.start()

    def start(self) -> None:
        """Starts the process again after kill()."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._arguments, stdout=log, stderr=log)
        deadline_s = time.monotonic() + START_S
        while self.status(timeout_s=1.0) is None:
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                tail = self.log.read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"{self._arguments[0]} does not serve:\n{tail}")
            time.sleep(0.02)

    def status(self, timeout_s: float = 2.0) -> admin_pb2.StatusResponse | None:
        """What the node says about itself; None when it does not answer."""
        with grpc.insecure_channel(self.endpoint) as channel:
            try:
                return admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(),
                                                                timeout=timeout_s)
            except grpc.RpcError:
                return None

    def freeze(self) -> None:
        """As SIGSTOP does: sockets stay open, nothing answers. Returns when it stands still.

        On a busy machine that takes a while: until the thread that got the signal runs, all
        others go on.
        """
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        """Ends freeze()."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, without a chance to say goodbye. Idempotent."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "LocalNode":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()
