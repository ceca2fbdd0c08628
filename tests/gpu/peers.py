"""Nodes and workers on two GPUs, and the plain NCCL loop beside them.

On a CPU the same, over sockets: the node is then `host_node`, of the tests' programs.
"""

import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from flashquant import nccl
from flashquant.device_memory import device_uuid
from flashquant.nccl import NcclComm
from flashquant.peer_comm import PeerComm, Span
from flashquant.peer_link import PeerOptions

ROOT = Path(__file__).parents[2]
NODE_GPU, WORKER_GPU = "cuda:0", "cuda:1"
CPU_UUID = bytes(range(100, 116))
TIMEOUT_S = 20.0
POLL_S = 20e-6
PATIENT_MS = 60_000  # where nothing should be given up, on a machine that may be held up


def peers_for(device: str, window_bytes: int) -> PeerOptions | None:
    """How a worker on `device` opens links; None: window_bytes is 0."""
    if not window_bytes:
        return None
    if torch.device(device).type == "cpu":
        sys.path.append(str(ROOT / "tests/client/python"))
        from socket_comm import connect

        return PeerOptions(CPU_UUID, connect, window_bytes, PATIENT_MS / 1e3)
    pointer = torch.zeros(1, device=device).data_ptr()
    return PeerOptions(device_uuid(pointer), nccl.connect, window_bytes)


def node_with_peers(build: Path, device: str,
                    timeout_ms: int = 3000) -> tuple[Path, tuple[str, ...]]:
    """(program, arguments) of a node for workers on `device`, that gives up an operation then."""
    limits = ("--max-blocks-per-call=4096", "--max-segment-bytes=16GiB",
              f"--peer-timeout-ms={timeout_ms}", "--max-inline-bytes=64MiB",
              "--peer-window-bytes=16GiB")
    if torch.device(device).type == "cpu":
        return build / "bin" / "host_node", limits
    path = next((path for path, _ in nccl.candidates() if Path(path).is_file()), nccl.NAME)
    return (build / "bin" / "flashquantd",
            (*limits, "--device=0", "--device-bytes=30GiB", f"--nccl={path}"))


def wait(operation: object, timeout_s: float = TIMEOUT_S) -> None:
    """For an operation of a communicator. TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not operation.done():
        if time.monotonic() > deadline_s:
            raise TimeoutError("a plain operation does not end")
        time.sleep(POLL_S)


def pieces(size: int, limit: int) -> list[Span]:
    """[0, size) in operations of at most `limit` bytes, all over the same bytes."""
    return [Span(0, min(limit, size - begin)) for begin in range(0, size, limit)]


def run_loop(comm: PeerComm, sends: bool, size: int, limit: int) -> float:
    """Seconds of a loop of ncclSend (ncclRecv) of `size` bytes; the other end does the reverse."""
    post = comm.send if sends else comm.receive
    wait(post([Span(0, 256)]))  # both ends are there
    begin_s = time.perf_counter()
    for span in pieces(size, limit):
        last = post([span])
    wait(last)
    return time.perf_counter() - begin_s


def serve_loops(pipe: Connection, comm_ids: list[bytes], ctas: list[int], size: int) -> None:
    """The other process: does as it is told until it is told nothing more."""
    torch.cuda.set_device(NODE_GPU)
    window = torch.zeros(size, dtype=torch.uint8, device=NODE_GPU)
    comms = [NcclComm(comm_id, 0, window, most, TIMEOUT_S)
             for comm_id, most in zip(comm_ids, ctas)]
    while (order := pipe.recv()) is not None:
        which, *loop = order
        run_loop(comms[which], *loop)


class PlainLoops:
    """Two processes, two GPUs, communicators and nothing else: what NCCL can do."""

    def __init__(self, window_bytes: int, ctas: dict[str, int]) -> None:
        """`ctas`: the most of each communicator, by its name; UNDEFINED leaves it to NCCL."""
        self.names = list(ctas)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        comm_ids, most = [nccl.unique_id() for _ in ctas], list(ctas.values())
        self._process = spawn.Process(target=serve_loops, daemon=True,
                                      args=(theirs, comm_ids, most, window_bytes))
        self._process.start()
        window = torch.zeros(window_bytes, dtype=torch.uint8, device=WORKER_GPU)
        self._comms = [NcclComm(comm_id, 1, window, number, TIMEOUT_S)
                       for comm_id, number in zip(comm_ids, most)]

    def seconds(self, name: str, size: int, limit: int, to_worker: bool) -> float:
        """Of one loop of `size` bytes in operations of `limit`."""
        which = self.names.index(name)
        self._pipe.send((which, to_worker, size, limit))
        return run_loop(self._comms[which], not to_worker, size, limit)

    def close(self) -> None:
        """Ends both."""
        self._pipe.send(None)
        self._process.join(TIMEOUT_S)
        for comm in self._comms:
            comm.abort()


def spread(values: list[float]) -> dict[str, float]:
    """Median, first and third quartile."""
    first, median, third = (statistics.quantiles(values, n=4) if len(values) > 1
                            else values * 3)
    return {"median": median, "first_quartile": first, "third_quartile": third,
            "runs": len(values)}
