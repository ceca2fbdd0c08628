"""One session with a node: its channel, its stream, the memory it shares.

A link is opened once and breaks once; it is never repaired. Calls on it are thread-safe.
"""

import concurrent.futures
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from flashquant.call_socket import CallSocket
from flashquant.device_segment import DeviceMemory, DeviceSegment
from flashquant.keys import Namespace
from flashquant.segment import Segment, SegmentError
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.v1 import kv_cache_pb2_grpc as pb_grpc
from flashquant.wire import descriptor_of

log = logging.getLogger("flashquant")

MAX_MESSAGE_BYTES = 256 << 20
CLOSE_S = 2.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class LinkError(Exception):
    """A session could not be opened; the text says why."""


@dataclass(frozen=True)
class SessionSpec:
    """What a session is opened with. `layers` and `heads`: the range it stores and loads."""

    namespace_name: str
    namespace: Namespace
    layers: tuple[int, int]  # begin, end (exclusive)
    heads: tuple[int, int]
    client_name: str = "python"
    segment_bytes: int = 0   # 0: no segment of host memory
    context_tokens: int = 0  # longest context of lossy pages that will be asked for; 0: unknown
    device: DeviceMemory | None = None  # the engine's cache, where the node takes it
    bytes_beside_device: int = 0        # of the segment that is registered beside `device`

    def first_message(self) -> pb.SessionRequest:
        """Opens the session."""
        slab_range = pb.SlabRange(layer_begin=self.layers[0], layer_end=self.layers[1],
                                  head_begin=self.heads[0], head_end=self.heads[1])
        return pb.SessionRequest(
            namespace_name=self.namespace_name, namespace_descriptor=descriptor_of(self.namespace),
            range=slab_range, client_name=self.client_name)


class Link:
    """See the head of the file."""

    def __init__(self, endpoint: str, spec: SessionSpec, timeout_s: float,
                 on_end: Callable[["Link", str], None]) -> None:
        """Opens session and segment within about 2 * timeout_s, or raises LinkError.

        `on_end(link, reason)` is called on a thread of the link when its stream ends by itself.
        """
        self._on_end = on_end
        self.ended = ""  # why the stream ended by itself, once it has
        self._outbox: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        self._opened: concurrent.futures.Future = concurrent.futures.Future()
        self._channel = grpc.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        self.stub = pb_grpc.KvCacheStub(self._channel)
        self.calls: CallSocket | None = None  # None: calls go through `stub`
        self.segment: Segment | None = None
        self.device_segment: DeviceSegment | None = None
        self._outbox.put(spec.first_message())
        self._call = self.stub.Session(self._requests())
        threading.Thread(target=self._read, name="fq-session", daemon=True).start()
        try:
            self._finish_opening(endpoint, spec, timeout_s)
        except BaseException:
            self.close()
            raise

    def _finish_opening(self, endpoint: str, spec: SessionSpec, timeout_s: float) -> None:
        try:
            self.info: pb.SessionResponse = self._opened.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise LinkError(f"{endpoint}: no session within {timeout_s} s") from None
        expected = spec.namespace.fingerprint()
        if self.info.namespace_fingerprint != expected:
            raise LinkError(f"namespace fingerprint: ours {expected.hex()[:16]}, the node's "
                            f"{self.info.namespace_fingerprint.hex()[:16]}")
        if self.info.call_socket:
            self.calls = self._open_calls(timeout_s)
        if not self.info.segment_socket:
            return
        if spec.device is not None:
            self.device_segment = self._register_device(spec.device, timeout_s)
        size = spec.bytes_beside_device if self.device_segment else spec.segment_bytes
        if size:
            self._register_segment(size, timeout_s)

    def _open_calls(self, timeout_s: float) -> CallSocket | None:
        try:
            return CallSocket(self.info.call_socket, timeout_s)
        except OSError as error:
            log.warning("FlashQuant: call socket %s: %s: calls go over gRPC",
                        self.info.call_socket, error)
            return None

    def _register_device(self, memory: DeviceMemory, timeout_s: float) -> DeviceSegment | None:
        """None when the node is not on the engine's GPU, or refuses (logged)."""
        if self.info.device.uuid != memory.uuid:
            return None
        try:
            return DeviceSegment(memory, self.info.segment_socket, self.info.session_id, timeout_s)
        except SegmentError as error:
            log.warning("FlashQuant: %s: pages travel through host memory", error)
            return None

    def _register_segment(self, size: int, timeout_s: float) -> None:
        segment = Segment(size)
        try:
            segment.register(self.info.segment_socket, self.info.session_id, timeout_s)
        except SegmentError as error:
            raise LinkError(str(error)) from error
        self.segment = segment

    def open_peer_link(self, device_uuid: bytes, window_bytes: int, timeout_ms: int,
                       answer_s: float) -> pb.OpenPeerLinkResponse:
        """Asks for a window on the node's GPU. LinkError says why there is none."""
        request = pb.OpenPeerLinkRequest(session_id=self.session_id, device_uuid=device_uuid,
                                         window_bytes=window_bytes, timeout_ms=timeout_ms)
        try:
            return self.stub.OpenPeerLink(request, timeout=answer_s)
        except ValueError:  # the channel was closed meanwhile
            raise LinkError("the session is over") from None
        except grpc.RpcError as error:
            raise LinkError(f"{error.code().name}: {error.details()}") from None

    def close_peer_link(self, segment_id: int) -> None:
        """The node gives the link's memory back; does not wait."""
        request = pb.ClosePeerLinkRequest(session_id=self.session_id, segment_id=segment_id)
        with contextlib.suppress(ValueError):  # the channel is closed, and with it the session
            future = self.stub.ClosePeerLink.future(request, timeout=CLOSE_S)
            future.add_done_callback(lambda _: None)  # gRPC cancels a call that nobody holds

    @property
    def session_id(self) -> bytes:
        """The capability of the session; never logged."""
        return self.info.session_id

    def keep_alive(self) -> None:
        """Tells the node that this client lives. Never blocks."""
        self._outbox.put(pb.SessionRequest())

    def close(self) -> None:
        """Ends the session; running calls end with CANCELLED. Idempotent."""
        if self.calls is not None:
            self.calls.close()
        self._outbox.put(None)
        self._call.cancel()
        self._channel.close()

    def _requests(self) -> Iterator[pb.SessionRequest]:
        while (message := self._outbox.get()) is not None:
            yield message

    def _read(self) -> None:
        """Waits for the first reply, then for the end of the stream."""
        reason = "the node ended the session"
        try:
            for response in self._call:
                if not self._opened.done():
                    self._opened.set_result(response)
        except grpc.RpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            error.__traceback__ = None  # it is self._call: a cycle, in which the segment would live
        if not self._opened.done():
            self._opened.set_exception(LinkError(reason))
            return
        self.ended = reason
        self._on_end(self, reason)
