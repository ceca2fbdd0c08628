"""Point-to-point NCCL between two processes: ctypes over libnccl.so.2, on streams of torch.

The library is that of torch (2.18 or newer). Communicators do not block: nothing here waits longer
than its deadline, whatever the other process does, and abort() ends what hangs. NCCL's sockets
are neither authenticated nor encrypted: for trusted networks only. Needs a GPU.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from flashquant.peer_comm import PeerError, Span

NAME = "libnccl.so.2"
ID_BYTES = 128
OLDEST = 21800       # with ncclCommInitRankConfig, maxCTAs and non-blocking groups
SUCCESS, IN_PROGRESS, UINT8 = 0, 7, 1
UNDEFINED = -(1 << 31)
MAGIC = 0xCAFEBEEF
SPIN_S, POLL_S = 200e-6, 20e-6  # a launch takes 50 us; who sleeps, sleeps for as long
WORKER_RANK = 1      # the node is 0

UniqueId = ctypes.c_char * ID_BYTES


class Config(ctypes.Structure):
    """ncclConfig_t as of 2.18; newer libraries go by `size`."""

    _fields_ = [("size", ctypes.c_size_t), ("magic", ctypes.c_uint), ("version", ctypes.c_uint),
                ("blocking", ctypes.c_int), ("cga_cluster_size", ctypes.c_int),
                ("min_ctas", ctypes.c_int), ("max_ctas", ctypes.c_int),
                ("net_name", ctypes.c_char_p), ("split_share", ctypes.c_int)]


class UniqueIdByValue(ctypes.Structure):
    """ncclUniqueId, which NCCL takes by value."""

    _fields_ = [("internal", UniqueId)]


SIGNATURES = {
    "ncclGetVersion": (ctypes.POINTER(ctypes.c_int),),
    "ncclGetUniqueId": (ctypes.POINTER(UniqueIdByValue),),
    "ncclCommInitRankConfig": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, UniqueIdByValue,
                               ctypes.c_int, ctypes.POINTER(Config)),
    "ncclCommGetAsyncError": (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)),
    "ncclCommAbort": (ctypes.c_void_p,),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
    "ncclSend": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
                 ctypes.c_void_p),
    "ncclRecv": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
                 ctypes.c_void_p),
}


def candidates() -> list[tuple[str, int]]:
    """(path, flags of dlopen), best first: what is loaded, torch's wheel, the system's."""
    found = [(NAME, os.RTLD_NOW | os.RTLD_NOLOAD)]
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("nvidia.nccl")
        folders = spec.submodule_search_locations if spec else ()
        found += [(str(Path(folder) / "lib" / NAME), os.RTLD_NOW) for folder in folders or ()]
    return [*found, (NAME, os.RTLD_NOW)]


@functools.cache
def library() -> ctypes.CDLL:
    """NCCL, loaded. PeerError: there is none, or one older than 2.18."""
    error = OSError(f"{NAME} is not installed")
    for path, flags in candidates():
        try:
            nccl = ctypes.CDLL(path, mode=flags)
            break
        except OSError as failed:
            error = failed
    else:
        raise PeerError(f"no NCCL: {error}")
    for name, arguments in SIGNATURES.items():
        getattr(nccl, name).argtypes = arguments
        getattr(nccl, name).restype = ctypes.c_int
    nccl.ncclGetErrorString.argtypes, nccl.ncclGetErrorString.restype = (
        (ctypes.c_int,), ctypes.c_char_p)
    number = version_code(nccl)
    if number < OLDEST:
        raise PeerError(f"NCCL {version_text(number)} is older than {version_text(OLDEST)}")
    return nccl


def version_code(nccl: ctypes.CDLL) -> int:
    """As ncclGetVersion counts: 22907 is 2.29.7."""
    number = ctypes.c_int()
    nccl.ncclGetVersion(ctypes.byref(number))
    return number.value


def version_text(code: int) -> str:
    """2.29.7 of 22907."""
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}"


def call(name: str, *arguments: object) -> int:
    """Calls a function of NCCL; SUCCESS or IN_PROGRESS. PeerError names it and what NCCL says."""
    nccl = library()
    code = getattr(nccl, name)(*arguments)
    if code not in (SUCCESS, IN_PROGRESS):
        raise PeerError(f"{name}: {nccl.ncclGetErrorString(code).decode()} ({code})")
    return code


def unique_id() -> bytes:
    """What both ends of a new communicator are made with; listens on a port of this process."""
    made = UniqueIdByValue()
    call("ncclGetUniqueId", ctypes.byref(made))
    return bytes(made)


class NcclComm:
    """One end of a communicator of two, and its stream; see PeerComm. Thread-safe."""

    def __init__(self, comm_id: bytes, rank: int, window: torch.Tensor, max_ctas: int,
                 timeout_s: float, ranks: int = 2) -> None:
        """Meets the other end (`rank` 0 or 1). `window`: bytes on this GPU that spans are of;
        `max_ctas`: SMs that a transfer may take, the same at both ends. `ranks` 1: with itself.

        PeerError when it has not come within the timeout.
        """
        if len(comm_id) != ID_BYTES:
            raise PeerError(f"a communicator id has {ID_BYTES} bytes, got {len(comm_id)}")
        self._window, self._peer = window, (1 - rank if ranks == 2 else rank)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # of NCCL's calls on the communicator, but for abort
        self._aborted = threading.Event()
        self._comm = ctypes.c_void_p()
        self.stream = torch.cuda.Stream(window.device)
        config = Config(ctypes.sizeof(Config), MAGIC, OLDEST, 0, UNDEFINED, UNDEFINED, max_ctas,
                        None, UNDEFINED)
        by_value = UniqueIdByValue.from_buffer_copy(comm_id)
        with torch.cuda.device(window.device):
            call("ncclCommInitRankConfig", ctypes.byref(self._comm), ranks, by_value, rank,
                 ctypes.byref(config))
        try:
            self._settle(time.monotonic() + timeout_s, "the other end has not come")
        except PeerError:
            self.abort()
            raise

    def send(self, spans: Sequence[Span]) -> "NcclOperation":
        """See PeerComm."""
        return self._post("ncclSend", spans)

    def receive(self, spans: Sequence[Span]) -> "NcclOperation":
        """See PeerComm."""
        return self._post("ncclRecv", spans)

    def exchange(self, sent: Sequence[Span], received: Sequence[Span]) -> "NcclOperation":
        """Both as one operation: what a rank sends to itself."""
        return self._post("ncclSend", sent, "ncclRecv", received)

    def _post(self, *calls: object) -> "NcclOperation":
        with torch.cuda.device(self._window.device):
            with self._lock:
                self._check_alive()
                call("ncclGroupStart")
                try:
                    for name, spans in zip(calls[::2], calls[1::2]):
                        for span in spans:
                            call(name, self._window.data_ptr() + span.offset, span.size, UINT8,
                                 self._peer, self._comm, self.stream.cuda_stream)
                finally:
                    call("ncclGroupEnd")
                self._settle(time.monotonic() + self._timeout_s, "the operation was not launched")
            event = torch.cuda.Event()  # may wait for the driver, so not under the lock: see abort
            event.record(self.stream)
        return NcclOperation(self, event)

    def check(self) -> None:
        """PeerError when NCCL has noticed that the other end is gone, or abort() was called."""
        with self._lock:
            self._check_alive()
            self._state()

    def _state(self) -> int:
        state = ctypes.c_int()
        call("ncclCommGetAsyncError", self._comm, ctypes.byref(state))
        if state.value not in (SUCCESS, IN_PROGRESS):
            text = library().ncclGetErrorString(state.value).decode()
            raise PeerError(f"NCCL: {text} ({state.value})")
        return state.value

    def _settle(self, deadline_s: float, late: str) -> None:
        """Waits until NCCL has done what it was asked to; it works on threads of its own."""
        spin_s = time.monotonic() + SPIN_S
        while self._state() == IN_PROGRESS:
            self._check_alive()
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise PeerError(f"NCCL: {late} within {self._timeout_s:g} s")
            if now_s > spin_s:
                time.sleep(POLL_S)

    def _check_alive(self) -> None:
        if self._aborted.is_set():
            raise PeerError("the communicator is aborted")

    def abort(self) -> None:
        """See PeerComm. Kernels that hang on the GPU end; the window may be freed afterwards."""
        if self._aborted.is_set():
            return
        self._aborted.set()
        # No call of CUDA before NCCL's: whoever loads a kernel now waits for those that hang.
        with self._lock:  # _settle sees _aborted
            if self._comm:
                call("ncclCommAbort", self._comm)
            self._comm = ctypes.c_void_p()
        with torch.cuda.device(self._window.device):
            self.stream.synchronize()


def connect(comm_id: bytes, window: torch.Tensor, max_ctas: int, timeout_s: float) -> NcclComm:
    """A worker's end, as PeerOptions.connect."""
    return NcclComm(comm_id, WORKER_RANK, window, max_ctas or UNDEFINED, timeout_s)


class NcclOperation:
    """See Operation."""

    def __init__(self, comm: NcclComm, event: torch.cuda.Event) -> None:
        self._comm, self.event = comm, event

    def done(self) -> bool:
        """See Operation."""
        if self.event.query():
            return True
        self._comm.check()
        return False
