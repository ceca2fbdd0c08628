"""A node of the wire in Python that can be silent, rude or absent. For client tests only."""

import concurrent.futures
import contextlib
import socket
import threading
import time
from pathlib import Path

import grpc

from flashquant import call_socket
from flashquant.client import Client, Deadlines
from flashquant.keys import Namespace
from flashquant.link import SessionSpec
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.v1 import kv_cache_pb2_grpc as pb_grpc

NAMESPACE = Namespace("test-model", layers=2, kv_heads=1, head_size=64, dtype=pb.DTYPE_BF16)
SPEC = SessionSpec("test", NAMESPACE, (0, 2), (0, 1))
# Of tests in which the node answers, however long the machine stands still meanwhile.
PATIENT = Deadlines(lookup_s=60.0, load_s=60.0, store_s=60.0, connect_s=60.0)
READY_S = 60.0


class Refused(Exception):
    """What gRPC's context raises when a servicer aborts."""


class PacketContext:
    """Of a call on the call socket."""

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call."""
        raise Refused(code, details)


class FakeNode(pb_grpc.KvCacheServicer):
    """Knows the keys in `stored`; while `answering` is clear, only sessions get answers."""

    def __init__(self, path: Path, calls: bool = False) -> None:
        """`calls`: takes them on a call socket too."""
        self.endpoint = f"unix://{path}"
        self.call_path = f"{path}.call" if calls else ""
        self.packets = 0     # calls that came over the call socket
        self.greets = True   # False: it accepts, and that is all
        self._listener: socket.socket | None = None
        self._peers: list[socket.socket] = []
        self.stored: set[bytes] = set()
        self.answering = threading.Event()
        self.answering.set()
        self.fail_with: grpc.StatusCode | None = None
        self.sessions = 0
        self.messages = 0
        self.fingerprint = NAMESPACE.fingerprint()
        self.calibrated_tokens = 0
        self.stalled = threading.Event()  # set: no session is answered
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Serves, from the beginning or after stop()."""
        pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)
        self._server = grpc.server(pool)
        pb_grpc.add_KvCacheServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.endpoint)
        self._server.start()
        if self.call_path:
            Path(self.call_path).unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._listener.bind(self.call_path)
            self._listener.listen()
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Ends all calls at once."""
        self.answering.set()
        self.stalled.clear()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self.hang_up()
        self._server.stop(grace=None).wait()

    def hang_up(self) -> None:
        """On all connections of the call socket."""
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                self._peers.append(peer)
                if self.greets:
                    peer.send(call_socket.GREETING.pack(call_socket.VERSION, 1 << 16))
                threading.Thread(target=self._answer_packets, args=(peer,), daemon=True).start()

    def _answer_packets(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while packet := peer.recv(1 << 17):
                self.packets += 1
                peer.send(self._answer(packet))

    def _answer(self, packet: bytes) -> bytes:
        number, _, _ = call_socket.REQUEST.unpack_from(packet)
        kind, method = {1: (pb.StoreRequest, self.Store), 2: (pb.LookupRequest, self.Lookup),
                        4: (pb.ReleaseRequest, self.Release)}[number]
        try:
            reply = method(kind.FromString(packet[call_socket.REQUEST.size:]), PacketContext())
        except Refused as refused:
            code, details = refused.args
            return call_socket.REPLY.pack(code.value[0], 0) + details.encode()
        return call_socket.REPLY.pack(0, 0) + reply.SerializeToString()

    def Session(self, request_iterator, context):
        """Answers each message."""
        while self.stalled.is_set() and context.is_active():
            time.sleep(0.01)
        self.sessions += 1
        number = self.sessions
        for _ in request_iterator:
            self.messages += 1
            yield pb.SessionResponse(session_id=number.to_bytes(16, "little"), tenant="t",
                                     namespace_fingerprint=self.fingerprint, lease_ms=1000,
                                     calibrated_tokens=self.calibrated_tokens,
                                     call_socket=self.call_path)

    def Lookup(self, request, context):
        """All usable, all compact."""
        self._misbehave(context)
        keys = [request.keys[i:i + 32] for i in range(0, len(request.keys), 32)]
        matched = next((i for i, key in enumerate(keys) if key not in self.stored), len(keys))
        return pb.LookupResponse(matched_blocks=matched, usable_blocks=matched,
                                 profiles=[pb.PROFILE_COMPACT] * matched,
                                 stored_bytes=[100] * matched)

    def Store(self, request, context):
        """Stores nothing but the keys."""
        self._misbehave(context)
        keys = [request.keys[i:i + 32] for i in range(0, len(request.keys), 32)]
        self.stored.update(keys)
        return pb.StoreResponse(statuses=[pb.BLOCK_STATUS_OK] * len(keys))

    def Release(self, request, context):
        """Knows no leases."""
        self._misbehave(context)
        return pb.ReleaseResponse(unknown=len(request.lease_ids))

    def _misbehave(self, context) -> None:
        self.answering.wait()
        if self.fail_with is not None:
            context.abort(self.fail_with, "as told")


@contextlib.contextmanager
def running(folder: Path, calls: bool = False):
    """A started FakeNode."""
    node = FakeNode(folder / "s", calls)
    node.start()
    try:
        yield node
    finally:
        node.stop()


@contextlib.contextmanager
def connected(node: FakeNode, deadlines: Deadlines):
    """A client with a session there."""
    client = Client(node.endpoint, SPEC, deadlines)
    client.start()
    try:
        assert client.wait_ready(READY_S)
        yield client
    finally:
        client.close()
