"""Client of one node: a session that is kept, and calls that never outlive their deadline.

With the node dead, frozen, full or of another mind, every call answers "miss" (None) within its
deadline + 10 ms (DESIGN.md P5); while the circuit breaker is open it answers at once. All methods
are thread-safe and none raises for what the node does. Making a Client starts nothing.
"""

import logging
import math
import threading
import time
from dataclasses import dataclass

import grpc

from flashquant.breaker import CircuitBreaker
from flashquant.call_socket import CallError, SocketCall
from flashquant.link import Link, LinkError, SessionSpec
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.wire import Profile

log = logging.getLogger("flashquant")

KEEP_ALIVE_S = 2.0
CLOSE_S = 0.5
TIMER_SLACK_S = 0.005           # what a call may take beyond its deadline before we stop waiting
TIMEOUTS_THAT_BREAK = 3         # lookups in a row
FAILURES = (grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError, CallError)
HARMLESS = frozenset({          # the node is well and has finished with our memory
    grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
})


@dataclass(frozen=True)
class Deadlines:
    """Seconds a call may take."""

    lookup_s: float = 0.1
    load_s: float = 2.0
    store_s: float = 10.0
    connect_s: float = 1.0


@dataclass(frozen=True)
class Match:
    """What a lookup found; see LookupResponse."""

    link: Link
    matched_blocks: int
    usable_blocks: int
    lease_id: bytes
    profiles: tuple[int, ...]
    stored_bytes: tuple[int, ...]


class PendingLookup:
    """A lookup under way. One thread at a time."""

    def __init__(self, client: "Client", link: Link, future: grpc.Future | SocketCall,
                 timeout_s: float) -> None:
        self._client, self._link, self._future = client, link, future
        self._give_up_s = time.monotonic() + timeout_s + TIMER_SLACK_S

    def done(self) -> bool:
        """Whether result() answers at once."""
        return self._future.done() or time.monotonic() >= self._give_up_s

    def result(self) -> Match | None:
        """Waits for the answer, at most until the deadline. None = miss. Call it once."""
        try:
            wait_s = max(0.0, self._give_up_s - time.monotonic())
            reply = self._future.result(timeout=wait_s)
        except FAILURES as error:
            self._future.cancel()
            self._client.lookup_failed(self._link, error)
            return None
        self._client.lookup_answered()
        return Match(self._link, reply.matched_blocks, reply.usable_blocks, reply.lease_id,
                     tuple(reply.profiles), tuple(reply.stored_bytes))


class Client:
    """See the head of the file. `start()` connects in the background and keeps reconnecting."""

    def __init__(self, endpoint: str, spec: SessionSpec, deadlines: Deadlines) -> None:
        self.spec = spec
        self.deadlines = deadlines
        self._endpoint = endpoint
        self._breaker = CircuitBreaker()
        self._state = threading.Condition()  # guards the four below
        self._link: Link | None = None
        self._dead_links: list[Link] = []
        self._closing = False
        self._timeouts = 0
        self._keeper: threading.Thread | None = None
        self._last_trouble = ""
        self._warned_of_length = False

    def start(self) -> None:
        """Starts the thread that opens and keeps the session; returns at once. Idempotent."""
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="fq-keeper", daemon=True)
            self._keeper.start()

    def close(self) -> None:
        """Ends the session; waits at most half a second for it. Idempotent."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        if self._keeper is not None:
            self._keeper.join(CLOSE_S)

    @property
    def link(self) -> Link | None:
        """The session that works now; None = every call is a miss."""
        return self._link

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits for a session; for tools and tests, never for an engine's hooks."""
        with self._state:
            return self._state.wait_for(lambda: self._link is not None, timeout_s)

    # Calls.

    def lookup_later(self, keys: bytes, floor: Profile, lease: bool = False,
                     link: Link | None = None) -> PendingLookup | None:
        """Starts a lookup of a chain's keys. None = miss, at once."""
        link = link or self._link
        if link is None:
            return None
        request = pb.LookupRequest(session_id=link.session_id, keys=keys, min_profile=floor,
                                   no_lease=not lease)
        timeout_s = self.deadlines.lookup_s
        future = self.call_later(link, "Lookup", request, timeout_s)
        return None if future is None else PendingLookup(self, link, future, timeout_s)

    def lookup(self, keys: bytes, floor: Profile, lease: bool = False) -> Match | None:
        """Longest usable prefix of a chain; None = miss. With a lease: release() it later."""
        pending = self.lookup_later(keys, floor, lease)
        return pending.result() if pending else None

    def store(self, link: Link, request: pb.StoreRequest,
              limit_s: float = math.inf) -> list[int] | None:
        """Statuses per block. None: given up, and the link's segment must not be used again.

        Takes no longer than the deadline, nor than `limit_s`.
        """
        reply = self._call(link, "Store", request, min(self.deadlines.store_s, limit_s))
        return None if reply is None else list(reply.statuses)

    def load(self, link: Link, request: pb.LoadRequest,
             limit_s: float = math.inf) -> pb.LoadResponse | None:
        """Delivers leased blocks. None, and the time, as for store()."""
        return self._call(link, "Load", request, min(self.deadlines.load_s, limit_s))

    def _call(self, link: Link, method: str, request: object, timeout_s: float) -> object | None:
        """A Load or Store on this thread: sooner back than a future, which has its own."""
        try:
            on_socket = start_on_socket(link, method, request, timeout_s)
            if on_socket is not None:
                return on_socket.result()
            return getattr(link.stub, method)(request, timeout=timeout_s)
        except ValueError:  # the channel was closed meanwhile
            return None
        except (grpc.RpcError, CallError) as error:
            self._failed(link, error)
            return None

    def call_later(self, link: Link, method: str, request: object,
                   timeout_s: float) -> grpc.Future | SocketCall | None:
        """Starts a call; pass the result of a Load or Store to answer()."""
        on_socket = start_on_socket(link, method, request, timeout_s)
        return on_socket or self.call_with_callback(link, method, request, timeout_s)

    def call_with_callback(self, link: Link, method: str, request: object,
                           timeout_s: float) -> grpc.Future | None:
        """As call_later, over gRPC: add_done_callback() tells of the end on a thread of gRPC's."""
        try:
            return getattr(link.stub, method).future(request, timeout=timeout_s)
        except ValueError:  # the channel was closed meanwhile
            return None

    def answer(self, link: Link, future: grpc.Future | SocketCall | None,
               timeout_s: float) -> object | None:
        """Reply of a call on the link's segment, or None.

        A call that ended without a reply of the node breaks the link: the node might still
        touch the segment, so that one is given up with it.
        """
        if future is None:
            return None
        try:
            return future.result(timeout=timeout_s + TIMER_SLACK_S)
        except FAILURES as error:
            future.cancel()
            self._failed(link, error)
            return None

    def _failed(self, link: Link, error: Exception) -> None:
        """A Load or Store without a reply."""
        if code_of(error) not in HARMLESS:
            self.break_link(link, describe(error))
        else:
            self._note_trouble(describe(error))

    def release(self, link: Link, lease_id: bytes) -> None:
        """Gives a lease back; does not wait. Leases end by themselves as well."""
        if not lease_id:
            return
        request = pb.ReleaseRequest(session_id=link.session_id, lease_ids=[lease_id])
        future = self.call_later(link, "Release", request, self.deadlines.lookup_s)
        if isinstance(future, SocketCall):
            future.forget()
        elif future is not None:
            future.add_done_callback(lambda _: None)  # gRPC cancels a call that nobody holds

    # State of the link.

    def lookup_answered(self) -> None:
        """Ends a row of time-outs."""
        self._timeouts = 0

    def lookup_failed(self, link: Link, error: Exception) -> None:
        """Counts a time-out; breaks the link on the third in a row or on anything worse."""
        code = code_of(error)
        if code in HARMLESS:
            self._note_trouble(describe(error))
            return
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._timeouts += 1
            if self._timeouts < TIMEOUTS_THAT_BREAK:
                return
        self.break_link(link, describe(error))

    def break_link(self, link: Link, reason: str) -> None:
        """Gives a link up and opens the breaker; the keeper probes for a new one."""
        with self._state:
            if self._link is not link:
                return
            self._link = None
            self._timeouts = 0
            self._dead_links.append(link)
            self._state.notify_all()
        self._breaker.failure()
        if not self._closing:
            log.warning("FlashQuant node lost (%s): recomputing until it is back", reason)

    def _keep(self) -> None:
        while True:
            with self._state:
                dead, self._dead_links = self._dead_links, []
                link, closing = self._link, self._closing
            while dead:  # and no name that keeps one, and its segment, until the next breaks
                dead.pop().close()
            if closing:
                break
            if link is not None:
                link.keep_alive()
                self._pause(KEEP_ALIVE_S, link)
            elif (wait_s := self._breaker.probe_wait_s()) > 0:
                self._pause(wait_s, None)
            else:
                self._open()
        if link is not None:
            link.close()

    def _pause(self, seconds: float, link: Link | None) -> None:
        """Sleeps until the time is over, the client closes or the link is another."""
        with self._state:
            self._state.wait_for(
                lambda: self._closing or self._link is not link or self._dead_links, seconds)

    def _open(self) -> None:
        """The half-open probe: one session, or a longer wait."""
        try:
            link = Link(self._endpoint, self.spec, self.deadlines.connect_s, self.break_link)
        except LinkError as error:
            self._breaker.failure()
            self._note_trouble(str(error))
            return
        self._breaker.success()
        log.info("FlashQuant node %s: session open", self._endpoint)
        self._last_trouble = ""
        self._check_length(link.info.calibrated_tokens)
        with self._state:
            self._link = link
            self._state.notify_all()
        if link.ended:  # before anybody could know of it
            self.break_link(link, link.ended)

    def _check_length(self, calibrated_tokens: int) -> None:
        """Warns, once, of contexts twice as long as the codec set was calibrated at, or longer."""
        tokens = self.spec.context_tokens
        if 0 < 2 * calibrated_tokens <= tokens and not self._warned_of_length:
            self._warned_of_length = True
            log.warning("FlashQuant: contexts of up to %d tokens, but the codec set of namespace "
                        "%s was calibrated at %d tokens: pages far behind that lose more than it "
                        "states; calibrate at the served length, or ask for near-lossless",
                        tokens, self.spec.namespace_name, calibrated_tokens)

    def _note_trouble(self, text: str) -> None:
        """Logs once per kind of trouble in a row."""
        if text != self._last_trouble:
            self._last_trouble = text
            log.warning("FlashQuant node %s: %s", self._endpoint, text)


def start_on_socket(link: Link, method: str, request: object,
                    timeout_s: float) -> SocketCall | None:
    """A call on the node's call socket. None: over gRPC instead."""
    if link.calls is None or (method == "Load" and not request.HasField("pages")):
        return None
    return link.calls.start(method, request, timeout_s)


def code_of(error: Exception) -> grpc.StatusCode:
    """Status of a failed call; a future that we stopped waiting for counts as its deadline."""
    if isinstance(error, CallError):
        return error.code
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return error.code()
    if isinstance(error, grpc.FutureTimeoutError):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def describe(error: Exception) -> str:
    """One line for the log."""
    details = error.details() if isinstance(error, grpc.Call) else getattr(error, "details", "")
    return f"{code_of(error).name}: {details}" if details else code_of(error).name
