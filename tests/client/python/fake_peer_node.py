"""A node on a pretended GPU with peer links: exact rows go through a window of its own. For tests.

Communicators are those of socket_comm.py. What it does wrong it does on demand.
"""

import itertools
import threading
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import torch

from fake_device_node import UUID, FakeDeviceNode, Segment
from flashquant.peer_comm import Span, merged
from flashquant.row_sums import row_sums, unsigned
from flashquant.v1 import kv_cache_pb2 as pb
from socket_comm import Listener, SocketComm

HELLO = Span(0, 256)
LAYERS = 2


@dataclass
class NodeLink:
    """The node's end of one link."""

    window: torch.Tensor
    down: SocketComm
    up: SocketComm
    sent: int = 0
    received: int = 0
    turn: threading.Condition = field(default_factory=threading.Condition)
    broken: str = ""


class FakePeerNode(FakeDeviceNode):
    """See the head of the file. Its GPU is another than any worker's."""

    def __init__(self, socket_path: Path, element_bytes: int, heads: int, head_size: int) -> None:
        super().__init__(socket_path, element_bytes, heads, head_size)
        self.links: dict[int, NodeLink] = {}
        self.opened = threading.Semaphore(0)
        self.refuse_links = False
        self.damage: int | None = None     # byte of the window that changes on its way down
        self.hold_replies = lambda sequence: None  # runs before a Load's reply goes out
        self.hold_sends = lambda: None     # runs before a Load's bytes go out
        self._token_bytes = heads * head_size * element_bytes
        self._numbers = itertools.count(100)  # of links; smaller ones are segments
        self._folder, self._down_lock = socket_path.parent, threading.Lock()

    def Session(self, request_iterator, context):
        """As a node with NCCL."""
        for response in super().Session(request_iterator, context):
            response.peer_transport.CopyFrom(pb.PeerTransport(
                nccl_version="2.18.0", device_uuid=UUID, max_window_bytes=1 << 30,
                max_timeout_ms=60_000))
            yield response

    def OpenPeerLink(self, request, context):
        """Makes the node's end, in the background."""
        if self.refuse_links:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "--max-peer-links: as told")
        number = next(self._numbers)
        ends = [Listener(f"{self._folder}/{way}{number}") for way in ("down", "up")]
        threading.Thread(target=self._meet, args=(number, request.window_bytes, ends),
                         daemon=True).start()
        return pb.OpenPeerLinkResponse(segment_id=number, down_id=ends[0].id, up_id=ends[1].id,
                                       timeout_ms=request.timeout_ms, max_ctas=16)

    def _meet(self, number: int, size: int, ends: list[Listener]) -> None:
        window = torch.zeros(size, dtype=torch.uint8)
        try:
            link = NodeLink(window, *[end.accept(window) for end in ends])
        except TimeoutError:
            return
        link.down.send([HELLO])
        link.up.receive([HELLO])
        rows = window.numpy()
        step = 128 * self._token_bytes
        self.segments[number] = Segment(True, [rows[layer * step:] for layer in range(LAYERS)])
        self.links[number] = link
        self.opened.release()

    def ClosePeerLink(self, request, context):
        """Ends one."""
        if request.segment_id in self.links:
            self.links[request.segment_id].broken = "closed"
        return pb.ClosePeerLinkResponse()

    def break_links(self) -> None:
        """As a node does whose watcher has seen a timeout."""
        for link in self.links.values():
            link.broken = link.broken or "timeout"
            link.down.abort()
            link.up.abort()

    def Store(self, request, context):
        """Receives what the worker sends, then as a device node."""
        link = self.links.get(request.pages.segment_id)
        if link is None:
            return super().Store(request, context)
        self._misbehave(context)
        if link.broken:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"peer link broken: {link.broken}")
        spans = self._spans(request.pages)
        with link.turn:
            link.turn.wait_for(lambda: link.received == request.peer_sequence - 1, 60)
            operation = link.up.receive(merged(spans))
            link.received += 1
            link.turn.notify_all()
        if not operation.ended.wait(60) or operation.error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION,
                          f"peer link broken: {operation.error or 'timeout'}")
        reply = super().Store(request, context)
        for i, (span, there) in enumerate(zip(spans, request.peer_sums, strict=True)):
            if self._sum(link, span) != there:
                reply.statuses[i] = pb.BLOCK_STATUS_MISS
                self.stored.discard(request.keys[32 * i:32 * i + 32])
        return reply

    def Load(self, request, context):
        """As a device node into the window, then sends it."""
        link = self.links.get(request.pages.segment_id)
        if link is not None and link.broken:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"peer link broken: {link.broken}")
        reply = super().Load(request, context)
        if link is None:
            return reply
        spans = self._spans(request.pages)
        reply.peer_sums.extend(self._sum(link, span) for span in spans)
        if any(span.offset <= (self.damage or -1) < span.end for span in spans):
            link.window[self.damage] ^= 1
        self.hold_sends()
        with self._down_lock:
            link.down.send(merged(spans))
            link.sent += 1
            reply.peer_sequence = link.sent
        self.hold_replies(reply.peer_sequence)
        return reply

    def _spans(self, pages) -> list[Span]:
        size = LAYERS * 128 * self._token_bytes
        assert pages.layout.v_offset == 64 * self._token_bytes and not pages.layout.layer_stride
        assert all(len(place.chunk_offsets) == 1 for place in pages.places)
        return [Span(place.chunk_offsets[0], size) for place in pages.places]

    @staticmethod
    def _sum(link: NodeLink, span: Span) -> int:
        return unsigned(row_sums(link.window[None, span.offset:span.end]))[0]
