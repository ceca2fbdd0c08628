"""Pages inside gRPC messages: for nodes on other hosts, within `max_inline_bytes` of a call."""

import math
import threading

import numpy as np
import torch

from flashquant.keys import BLOCK_TOKENS
from flashquant.link import Link
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.geometry import Packing
from flashquant.vllm.staging import View, unit_bytes
from flashquant.vllm.cache_view import WORD
from flashquant.vllm.placement import Placement
from flashquant.vllm.transport import STAGED_STORE_BLOCKS, Hold, Plain
from flashquant.wire import pages_at

ELEMENTS = {2: torch.int16, 4: torch.int32}  # bits are copied, not numbers


class Inline(Plain):
    """See Transport. Copies through private memory of this process."""

    name = "inline"
    store_limit_s = math.inf

    def __init__(self, link: Link, view: View, packing: Packing) -> None:
        """ValueError: not even one block of this model fits into a message."""
        self.link, self._view, self._packing = link, view, packing
        units = link.info.max_inline_bytes // unit_bytes(view)
        if units == 0:
            raise ValueError(f"a block of this model has {unit_bytes(view)} bytes, the node takes "
                             f"{link.info.max_inline_bytes} in a message")
        self.load_blocks = units * max(1, view.shape.tokens // BLOCK_TOKENS)
        self.save_blocks = min(STAGED_STORE_BLOCKS, self.load_blocks)
        self._room = threading.BoundedSemaphore(4)  # pieces of saves in memory at a time

    def begin_load(self, placement: Placement, chunk_ids: np.ndarray, timeout_s: float) -> Hold:
        """See Transport."""
        return Hold(placement, chunk_ids)

    def deliver(self, hold: Hold, reply: pb.LoadResponse, begin: int, end: int) -> None:
        """See Transport."""
        chunks = self._chunks_of(hold.placement, reply.payload, count_delivered(reply))
        self._view.scatter(hold.chunk_ids[begin:end], chunks[:, begin:end])

    def _chunks_of(self, place: Placement, payload: bytes, blocks: int) -> torch.Tensor:
        """Dense rows of the first blocks as chunks [layers][chunks][words]."""
        shape, layers = self._view.shape, self._view.layers
        words = torch.zeros(layers, place.chunks, self._view.words, dtype=WORD)
        elements = words.view(ELEMENTS[shape.element_bytes])
        rows = torch.frombuffer(bytearray(payload), dtype=elements.dtype).view(
            blocks, layers, shape.heads, 2, BLOCK_TOKENS, shape.head_size)
        rows = rows.permute(1, 3, 0, 4, 2, 5).flatten(2, 3)  # layer, part, token, head, channel
        padded = rows.new_zeros(layers, 2, place.chunks * shape.tokens, *rows.shape[3:])
        first = place.first_tokens()[0]
        padded[:, :, first:first + rows.shape[2]] = rows
        for part, target in enumerate(self._rows(elements, place.chunks)):
            target.copy_(padded[:, part].unflatten(1, (place.chunks, shape.tokens)))
        return words

    def _rows(self, elements: torch.Tensor, chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V in packed chunks, [layers][chunks][tokens][heads][head size]."""
        shape, packing = self._view.shape, self._packing
        size = (self._view.layers, chunks, shape.tokens, shape.heads, shape.head_size)
        chunk = shape.heads * shape.head_elements
        k, v = ((packing.k_offset, packing.k_token_stride, packing.k_channel_stride),
                (packing.v_offset, packing.v_token_stride, packing.v_channel_stride))
        return tuple(elements.as_strided(size, (chunks * chunk, chunk, token, shape.head_elements,
                                                channel), offset)
                     for offset, token, channel in (k, v))

    def end_load(self, hold: Hold) -> None:
        """Nothing is held."""

    def begin_save(self, placement: Placement, chunk_ids: np.ndarray) -> Hold | None:
        """See Transport."""
        if not self._room.acquire(blocking=False):
            return None
        staged = torch.empty(self._view.layers, placement.chunks, self._view.words, dtype=WORD)
        return Hold(placement, chunk_ids, staged, self._view.gather(chunk_ids, staged))

    def end_save(self, hold: Hold) -> None:
        """See Transport."""
        self._room.release()

    def pages(self, hold: Hold) -> pb.Pages | None:
        """Of a save, as they lie in the payload; a load has none: its rows come dense."""
        if hold.region is None:
            return None
        place, chunk_bytes = hold.placement, self._view.shape.chunk_bytes
        layout = self._view.shape.page_layout(self._packing, place.chunks * chunk_bytes)
        return pages_at(layout, place.indices() * chunk_bytes, place.first_tokens(), segment_id=0)

    def prepare(self, hold: Hold, request: pb.StoreRequest) -> Hold:
        """And the staged chunks are in it."""
        request.payload = hold.region.numpy().tobytes()
        return super().prepare(hold, request)

    def settle(self, give_up: threading.Event) -> None:
        """Nothing to wait for: the node knows no memory of this process."""


def count_delivered(reply: pb.LoadResponse) -> int:
    """Blocks whose rows are in the payload."""
    return sum(status == pb.BLOCK_STATUS_OK for status in reply.statuses)
