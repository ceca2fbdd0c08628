"""Calls of a session over the node's call socket (proto/call_socket.md): one packet each way.

A call has a connection to itself until its reply is there; a few are kept for the next ones.
"""

import collections
import select
import socket
import struct
import threading
import time
import weakref

import grpc
from google.protobuf.message import DecodeError, Message

from flashquant.v1 import kv_cache_pb2 as pb

GREETING = struct.Struct("<II")
REQUEST = struct.Struct("<IIQ")
REPLY = struct.Struct("<II")
VERSION = 1
METHODS = {"Store": (1, pb.StoreResponse), "Lookup": (2, pb.LookupResponse),
           "Load": (3, pb.LoadResponse), "Release": (4, pb.ReleaseResponse)}
STATUS_OF = {code.value[0]: code for code in grpc.StatusCode}
LATE_S = 0.005      # beyond its deadline: the node's own word that it has passed may come so late
MAX_KEPT = 8        # connections
MOST_BYTES = 1 << 20  # of a packet, whatever the node says


class CallError(Exception):
    """A call without a reply message: `code` and `details` as of gRPC."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details = code, details


class Connection:
    """One thread at a time, but for shutdown()."""

    def __init__(self, path: str, timeout_s: float) -> None:
        """Connects. OSError: nobody there, no room, or another protocol."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self.socket.settimeout(timeout_s)
            self.socket.connect(path)
            greeting = self.socket.recv(GREETING.size + 1)
            if len(greeting) != GREETING.size:
                raise ConnectionError(f"greeting of {len(greeting)} bytes")
            version, longest = GREETING.unpack(greeting)
            self.max_bytes = min(longest, MOST_BYTES)
            if version != VERSION:
                raise ConnectionError(f"version {version}, ours is {VERSION}")
        except BaseException:
            self.socket.close()
            raise
        self._buffer = bytearray(self.max_bytes)
        self.unread = 0  # replies that nobody waits for

    def send(self, packet: bytes) -> None:
        """OSError when the node has gone."""
        self.socket.send(packet)

    def receive(self, give_up_s: float) -> memoryview:
        """The next reply that somebody waits for; of this connection until the next one comes.

        TimeoutError at `give_up_s` of the monotonic clock; other OSErrors when the node has gone.
        """
        while True:
            self.socket.settimeout(max(give_up_s - time.monotonic(), 1e-6))
            size = self.socket.recv_into(self._buffer)
            if size < REPLY.size:
                raise ConnectionError("the node has gone")
            if not self.unread:
                return memoryview(self._buffer)[:size]
            self.unread -= 1

    def shutdown(self) -> None:
        """Wakes whoever waits in receive(). Any thread."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the node was first


class SocketCall:
    """A call under way. One thread at a time; what a gRPC future has, as far as it is used here."""

    def __init__(self, owner: "CallSocket", connection: Connection | None,
                 response: type[Message], give_up_s: float) -> None:
        """`connection`: None when the time was over before there was one."""
        self._owner, self._connection, self._response = owner, connection, response
        self._give_up_s = give_up_s

    def done(self) -> bool:
        """Whether result() answers at once."""
        if self._connection is None or time.monotonic() >= self._give_up_s:
            return True
        polled = select.poll()
        polled.register(self._connection.socket, select.POLLIN)
        return not self._connection.unread and bool(polled.poll(0))

    def result(self, timeout: float | None = None) -> Message:
        """The reply; waits for it until the deadline, or `timeout` if that is sooner. Call it once.

        CallError: the node's status, DEADLINE_EXCEEDED without an answer, UNAVAILABLE without a
        node, CANCELLED behind close().
        """
        give_up_s = self._give_up_s
        if timeout is not None:
            give_up_s = min(give_up_s, time.monotonic() + timeout)
        connection, self._connection = self._connection, None
        try:
            if connection is None:
                raise TimeoutError
            reply = connection.receive(give_up_s)
        except TimeoutError:
            self._owner.drop(connection)
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED,
                            "the node did not answer in time") from None
        except OSError as error:
            self._owner.drop(connection)
            code = grpc.StatusCode.CANCELLED if self._owner.closed else grpc.StatusCode.UNAVAILABLE
            raise CallError(code, str(error)) from error
        status, _ = REPLY.unpack_from(reply)
        body = bytes(reply[REPLY.size:])
        self._owner.give_back(connection)
        if status:
            raise CallError(STATUS_OF.get(status, grpc.StatusCode.UNKNOWN),
                            body.decode("utf-8", "replace"))
        try:
            return self._response.FromString(body)
        except DecodeError as error:
            raise CallError(grpc.StatusCode.INTERNAL, str(error)) from error

    def cancel(self) -> None:
        """Ends the call; the node sees it. Harmless after result()."""
        connection, self._connection = self._connection, None
        self._owner.drop(connection)

    def forget(self) -> None:
        """Nobody will ask for the reply."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.unread += 1
            self._owner.give_back(connection)


class CallSocket:
    """The connections of one session. Thread-safe."""

    def __init__(self, path: str, timeout_s: float) -> None:
        """Opens one. OSError: the socket does not take calls."""
        self._path = path
        self._lock = threading.Lock()  # guards the next three
        self.closed = False
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._idle: collections.deque[Connection] = collections.deque()
        first = Connection(path, timeout_s)
        self._max_bytes = first.max_bytes
        self._all.add(first)
        self._idle.append(first)

    def start(self, method: str, request: Message, timeout_s: float) -> SocketCall | None:
        """Sends a call. None: it is too long, or the socket takes no more: ask gRPC."""
        give_up_s = time.monotonic() + timeout_s + LATE_S
        number, response = METHODS[method]
        packet = REQUEST.pack(number, 0, max(1, int(timeout_s * 1e6))) + request.SerializeToString()
        if len(packet) > self._max_bytes:
            return None
        connection = None
        try:
            connection = self._take(timeout_s)
            connection.send(packet)
        except TimeoutError:
            self.drop(connection)
            return SocketCall(self, None, response, give_up_s)
        except OSError:  # nothing was sent
            self.drop(connection)
            return None
        return SocketCall(self, connection, response, give_up_s)

    def _take(self, timeout_s: float) -> Connection:
        """OSError: as of Connection; or this is closed."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = Connection(self._path, timeout_s)
        with self._lock:
            if not self.closed:
                self._all.add(connection)
                return connection
        connection.socket.close()
        raise ConnectionError("closed")

    def give_back(self, connection: Connection) -> None:
        """For the next call."""
        with self._lock:
            kept = not self.closed and len(self._idle) < MAX_KEPT
            if kept:
                self._idle.append(connection)
        if not kept:
            self.drop(connection)

    def drop(self, connection: Connection | None) -> None:
        """Hangs up, if there is one."""
        if connection is None:
            return
        with self._lock:
            self._all.discard(connection)
        connection.socket.close()

    def close(self) -> None:
        """Hangs up on all; whoever waits gets CANCELLED. Idempotent."""
        with self._lock:
            self.closed = True
            connections = list(self._all)
            self._idle.clear()
        for connection in connections:
            connection.shutdown()
