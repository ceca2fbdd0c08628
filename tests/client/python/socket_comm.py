"""Communicators over Unix sockets, in NCCL's place where there are no GPUs. For tests.

The id is the path of a socket, padded with zeros; the node listens, the worker connects. One
operation, little-endian: u32 count, then for each region u64 length and its bytes; the receiver,
once it has all of them, answers a byte 1. Other lengths than those posted: the receiver closes.
"""

import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence

import torch

from flashquant.peer_comm import PeerError, Span

ID_BYTES = 128
COUNT, LENGTH = struct.Struct("<I"), struct.Struct("<Q")
TAKEN = b"\1"


class SocketOperation:
    """See Operation."""

    event = None

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error = ""

    def done(self) -> bool:
        """See Operation."""
        if self.ended.is_set() and self.error:
            raise PeerError(self.error)
        return self.ended.is_set()


class SocketComm:
    """One end; see PeerComm. Its thread does one operation after the other."""

    stream = None

    def __init__(self, peer: socket.socket, window: torch.Tensor) -> None:
        self.sent: list[int] = []  # bytes of each operation
        self._peer, self._window = peer, memoryview(window.numpy())
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._aborted = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, spans: Sequence[Span]) -> SocketOperation:
        """See PeerComm."""
        return self._post(lambda: self._send(spans))

    def receive(self, spans: Sequence[Span]) -> SocketOperation:
        """See PeerComm."""
        return self._post(lambda: self._receive(spans))

    def abort(self) -> None:
        """See PeerComm."""
        self._aborted = True
        self._work.put(None)
        try:
            self._peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._peer.close()

    def _post(self, work: Callable[[], None]) -> SocketOperation:
        if self._aborted:
            raise PeerError("the communicator is aborted")
        operation = SocketOperation()

        def run() -> None:
            try:
                work()
            except (OSError, PeerError) as error:
                operation.error = f"socket: {error}"
                self._peer.shutdown(socket.SHUT_RDWR)
            operation.ended.set()
        self._work.put(run)
        return operation

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._aborted:
            work()

    def _send(self, spans: Sequence[Span]) -> None:
        self._peer.sendall(COUNT.pack(len(spans)))
        for span in spans:
            self._peer.sendall(LENGTH.pack(span.size))
            self._peer.sendall(self._window[span.offset:span.end])
        if self._read(1) != TAKEN:
            raise PeerError("not taken")
        self.sent.append(sum(span.size for span in spans))

    def _receive(self, spans: Sequence[Span]) -> None:
        count, = COUNT.unpack(self._read(COUNT.size))
        if count != len(spans):
            raise PeerError(f"{count} regions came, {len(spans)} were awaited")
        for span in spans:
            size, = LENGTH.unpack(self._read(LENGTH.size))
            if size != span.size:
                raise PeerError(f"{size} bytes came, {span.size} were awaited")
            self._window[span.offset:span.end] = self._read(size)
        self._peer.sendall(TAKEN)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._peer.recv(min(size - len(data), 1 << 20))
            if not part:
                raise PeerError("the other end is gone")
            data += part
        return bytes(data)


def connect(comm_id: bytes, window: torch.Tensor, max_ctas: int, timeout_s: float) -> SocketComm:
    """The worker's end, as PeerOptions.connect."""
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(timeout_s)
    try:
        peer.connect(comm_id.rstrip(b"\0"))
    except OSError as error:
        raise PeerError(f"socket: {error}") from error
    peer.settimeout(None)
    return SocketComm(peer, window)


class Listener:
    """The node's end of one communicator, before the worker has come."""

    def __init__(self, path: str) -> None:
        self.id = path.encode().ljust(ID_BYTES, b"\0")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen(1)

    def accept(self, window: torch.Tensor) -> SocketComm:
        """Waits for the worker, a minute at most."""
        self._socket.settimeout(60.0)
        with self._socket:
            peer, _ = self._socket.accept()
        peer.settimeout(None)
        return SocketComm(peer, window)
