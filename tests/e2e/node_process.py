"""A real flashquantd in a process of its own, and fqctl. Used by every end-to-end test."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import grpc
import psutil
from flashquant.v1 import admin_pb2, admin_pb2_grpc

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(os.environ.get("FQ_BUILD", ROOT / "build/release"))
FLASHQUANTD = BUILD / "bin/flashquantd"
FQCTL = BUILD / "bin/fqctl"
# Of what must happen: a machine may be slow, or stand still for some seconds.
WAIT_SECONDS = 60
LEASE_MS = 600_000  # no lease ends while a test is held up


class Node:
    """Start it with flags; `stop` it, `kill` it, start it again on the same socket."""

    def __init__(self, program: pathlib.Path = FLASHQUANTD, **flags: object) -> None:
        """`host_bytes="4MiB"` becomes --host-bytes=4MiB. No metrics port unless asked for."""
        self.program = program
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="fq-"))  # short: sockets have 107 bytes
        self.socket = self.folder / "fq.sock"
        self.endpoint = f"unix://{self.socket}"
        self.flags = {"socket": self.socket, "metrics_listen": "", "tenant": "default",
                      "lease_ms": LEASE_MS} | flags
        self.process: subprocess.Popen | None = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> "Node":
        """Returns once it answers; AssertionError with its log when it does not."""
        self.process = spawn(self.flags, self.folder / "log", self.program)
        limit = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                self.status(timeout_s=1)
                return self
            except grpc.RpcError:
                time.sleep(0.02)
        raise AssertionError(f"flashquantd did not start ({self.process.poll()}):\n{self.log}")

    def channel(self) -> grpc.Channel:
        """A connection of its own. The caller closes it."""
        return grpc.insecure_channel(self.endpoint, [
            ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)])

    def status(self, timeout_s: float = WAIT_SECONDS) -> admin_pb2.StatusResponse:
        with self.channel() as channel:
            stub = admin_pb2_grpc.AdminStub(channel)
            return stub.Status(admin_pb2.StatusRequest(), timeout=timeout_s)

    def rss_bytes(self) -> int:
        return psutil.Process(self.pid).memory_info().rss

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP, in force on return; SIGCONT ends it."""
        self.signal(signal.SIGSTOP)
        process = psutil.Process(self.pid)
        eventually(lambda: process.status() == psutil.STATUS_STOPPED, "the node stops")

    def kill(self) -> None:
        """As a crash: nothing runs any more."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        self.process.terminate()
        return self.process.wait(WAIT_SECONDS)

    def remove(self) -> None:
        """Ends it, whatever its state, and its folder."""
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def arguments(flags: dict[str, object]) -> list[str]:
    """--name=value for each; a list gives the flag several times."""
    result = []
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            result.append(f"--{name.replace('_', '-')}={one}")
    return result


def spawn(flags: dict[str, object], log: pathlib.Path,
          program: pathlib.Path = FLASHQUANTD) -> subprocess.Popen:
    """flashquantd with these flags and nothing from this process's environment."""
    with log.open("ab") as out:
        return subprocess.Popen([program, *arguments(flags)], stdout=out, stderr=out,
                                stdin=subprocess.DEVNULL, env={"PATH": os.defpath})


def run_flashquantd(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """To its end, for starts that are refused and for --print-config."""
    return subprocess.run([FLASHQUANTD, *args], capture_output=True, text=True,
                          timeout=WAIT_SECONDS,
                          env={"PATH": os.defpath} | (env or {}))


def fqctl(*args: object, endpoint: str | None = None) -> subprocess.CompletedProcess:
    """fqctl to its end."""
    where = [f"--endpoint={endpoint}"] if endpoint else []
    return subprocess.run([FQCTL, *where, *map(str, args)], capture_output=True, text=True,
                          timeout=2 * WAIT_SECONDS,
                          env={"PATH": os.defpath, "FQCTL_DEADLINE_MS": f"{WAIT_SECONDS}000"})


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(condition, what: str) -> None:
    """Polls until `condition()`; AssertionError says what did not come true."""
    limit = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < limit, f"not within {WAIT_SECONDS} s: {what}"
        time.sleep(0.02)
