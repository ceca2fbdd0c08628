"""A worker's end of a peer link: pages between its GPU and the node's (proto: "Peer links").

A link is opened once and breaks once. Whoever breaks it, and for whatever reason, both its
communicators are aborted at once; calls on it then raise PeerError. Thread-safe.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from flashquant.link import Link
from flashquant.peer_comm import Operation, PeerComm, PeerError, Span, merged
from flashquant.row_sums import LaterSums

log = logging.getLogger("flashquant")

ALIGNMENT = 256  # of regions in a window
POLL_S = 20e-6
HELLO = Span(0, 256)  # operation 0, both ways

# (id of the communicator, window, most SMs, seconds) -> the worker's end of it; PeerError.
Connect = Callable[[bytes, torch.Tensor, int, float], PeerComm]


@dataclass(frozen=True)
class PeerOptions:
    """How links are opened. `device_uuid`: of the worker's GPU, 16 bytes; `connect`: makes
    communicators; `window_bytes`: of GPU memory here and at the node; `timeout_s`: of opening
    and of each operation."""

    device_uuid: bytes
    connect: Connect
    window_bytes: int
    timeout_s: float = 5.0


@dataclass
class Transfer:
    """An operation of one communicator, by its number there."""

    sequence: int
    spans: Sequence[Span]
    operation: Operation | None = None  # None: its turn has not come
    posted: threading.Event = field(default_factory=threading.Event)
    sums: LaterSums | None = None       # of what arrives, on a GPU


class PeerLink:
    """See the head of the file."""

    def __init__(self, segment_id: int, window: torch.Tensor, down: PeerComm, up: PeerComm,
                 timeout_s: float) -> None:
        """`window`: uint8; `down`: what the node sends, `up`: what it receives."""
        self.id, self.window, self.timeout_s = segment_id, window, timeout_s
        self.broken = ""  # why it is, once it is
        self._down, self._up = down, up
        self._state = threading.Lock()  # guards `broken` and the two below
        self._when_broken: list[Callable[[], None]] = []
        self._ending: list[threading.Thread] = []
        self._down_lock = threading.Lock()  # guards the three below
        self._expected: dict[int, Transfer] = {}
        self._next = 1
        self._due: dict[int, float] = {}  # of receives: when they must have ended
        self._up_lock = threading.Lock()  # guards the two below
        self._announced = self._sent = 0

    def greet(self) -> None:
        """The first operation each way, which makes the connections. PeerError."""
        with self._breaking():
            hellos = [Transfer(0, [HELLO], self._down.receive([HELLO])),
                      Transfer(0, [HELLO], self._up.send([HELLO]))]
        for hello in hellos:
            self.wait(hello)

    def expect(self, sequence: int, spans: Sequence[Span],
               sums: LaterSums | None = None) -> Transfer:
        """Receives operation `sequence` into these spans, once all before it are expected.
        `sums` are computed behind it.

        As often as it is called: until forget(), the same transfer. PeerError: broken.
        """
        with self._down_lock, self._breaking():
            self._check()
            transfer = self._expected.get(sequence) or Transfer(sequence, spans, sums=sums)
            if sequence >= self._next:
                self._expected[sequence] = transfer
            while (turn := self._expected.get(self._next)) is not None:
                turn.operation = self._down.receive(turn.spans)
                if turn.sums is not None and turn.operation.event is not None:
                    turn.sums.launch(turn.operation.event)
                turn.posted.set()
                self._due[self._next] = time.monotonic() + self.timeout_s
                self._next += 1
            return transfer

    def expected(self, sequence: int) -> Transfer | None:
        """What expect() of this number has returned, until forget()."""
        return self._expected.get(sequence)

    def forget(self, transfer: Transfer) -> None:
        """Its spans are no longer of interest; only after wait()."""
        with self._down_lock:
            self._expected.pop(transfer.sequence, None)
            self._due.pop(transfer.sequence, None)

    def overdue(self) -> bool:
        """Whether a receive has not ended in time, and nobody has said so: who waits for it may
        be held up by the driver. Never waits itself."""
        return min(list(self._due.values()), default=math.inf) < time.monotonic()

    def announce(self) -> int:
        """Number of the next operation to send."""
        with self._up_lock:
            self._announced += 1
            return self._announced

    def send(self, sequence: int, spans: Sequence[Span],
             after: torch.cuda.Event | None = None) -> Transfer:
        """Sends the spans, joined, as the operation of that number, the next that was announced:
        behind `after`, on a GPU.

        Only when the node knows of it: until it receives, the send holds up whoever loads a kernel
        on this GPU. PeerError.
        """
        with self._up_lock, self._breaking():
            self._check()
            if sequence != self._sent + 1:
                raise PeerError(f"operation {sequence} after {self._sent}")
            if after is not None:
                self._up.stream.wait_event(after)
            joined = merged(spans)
            transfer = Transfer(sequence, joined, self._up.send(joined))
            transfer.posted.set()
            self._sent = sequence
            return transfer

    def wait(self, transfer: Transfer, timeout_s: float | None = None) -> None:
        """Until all its bytes have come, or gone. PeerError: they will not, or not within the
        timeout (default and at most the link's); the link is broken then."""
        limit_s = min(self.timeout_s, self.timeout_s if timeout_s is None else timeout_s)
        deadline_s = time.monotonic() + limit_s
        with self._breaking():
            self._check()
            while not (transfer.operation is not None and transfer.operation.done()):
                self._check()
                if time.monotonic() > deadline_s:
                    raise PeerError(f"operation {transfer.sequence} not done within {limit_s:g} s")
                if transfer.operation is None:
                    transfer.posted.wait(0.01)
                else:
                    time.sleep(POLL_S)
            self._check()  # an aborted operation looks done, too

    def _breaking(self) -> "Breaking":
        return Breaking(self)

    def _check(self) -> None:
        if self.broken:
            raise PeerError(f"peer link broken: {self.broken}")

    def break_link(self, reason: str) -> None:
        """Aborts both communicators, on threads of their own. Idempotent; returns at once."""
        with self._state:
            if self.broken:
                return
            self.broken = reason
            self._ending = [threading.Thread(target=self._end, args=(comm,), daemon=True)
                            for comm in (self._down, self._up)]
            told = list(self._when_broken)
            for thread in self._ending:  # an abort takes NCCL half a second
                thread.start()
        for tell in told:
            tell()

    def when_broken(self, tell: Callable[[], None]) -> None:
        """Calls it, on any thread, when the link breaks; at once when it has."""
        with self._state:
            self._when_broken.append(tell)
            broken = self.broken
        if broken:
            tell()

    def close(self, timeout_s: float) -> bool:
        """Breaks it; whether nothing touches the window any more within the timeout."""
        self.break_link("closed")
        for thread in self._ending:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._ending)

    def _end(self, comm: PeerComm) -> None:
        try:
            comm.abort()
        except PeerError as error:
            log.warning("FlashQuant: peer link %d: %s", self.id, error)


class Breaking:
    """A context in which a PeerError breaks the link."""

    def __init__(self, peer: PeerLink) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PeerError):
            self._peer.break_link(str(error))


def offered(link: Link, options: PeerOptions) -> bool:
    """Whether the node has NCCL and a GPU, which is another than the worker's."""
    info = link.info
    return (info.HasField("peer_transport")
            and info.peer_transport.device_uuid != options.device_uuid)


def open_peer_link(link: Link, options: PeerOptions, device: torch.device) -> PeerLink:
    """Opens a link in a session. PeerError, and all given back, when one of the two cannot."""
    offer = link.info.peer_transport
    size = min(options.window_bytes, offer.max_window_bytes) // ALIGNMENT * ALIGNMENT
    limit_ms = min(int(1e3 * options.timeout_s), offer.max_timeout_ms)
    reply = link.open_peer_link(options.device_uuid, size, limit_ms, options.timeout_s)
    comms: list[PeerComm] = []
    try:
        window = torch.empty(size, dtype=torch.uint8, device=device)
        for comm_id in (reply.down_id, reply.up_id):
            comms.append(options.connect(comm_id, window, reply.max_ctas, reply.timeout_ms / 1e3))
        peer = PeerLink(reply.segment_id, window, *comms, reply.timeout_ms / 1e3)
        peer.greet()
        return peer
    except (PeerError, torch.OutOfMemoryError) as error:
        for comm in comms:
            comm.abort()
        link.close_peer_link(reply.segment_id)
        raise PeerError(str(error)) from error
