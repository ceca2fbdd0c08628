"""Where the numbers lie in an engine's KV blocks, found by writing known values (VLLM.md 6.3 b).

A *chunk* is one kernel block of one layer: H heads, each 2 * N * D elements, of which the packing
says where K and V of (token, channel) are. Strides here count elements. No vllm, no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from flashquant.keys import BLOCK_TOKENS
from flashquant.v1 import kv_cache_pb2 as pb

DIGIT = 256  # integers below this are exact in FP16, BF16 and FP32
ROWS = "rows"  # packing name of namespaces whose pages hold true K and V rows


@dataclass(frozen=True)
class Packing:
    """Strides, in elements from the start of a head's area."""

    k_offset: int
    k_token_stride: int
    k_channel_stride: int
    v_offset: int
    v_token_stride: int
    v_channel_stride: int
    opaque: str = ""  # not empty: the strides are only a way to number bytes; exact profile only
    # Not empty: the strides are those of staged chunks; element i of a head there is the engine's
    # element order[i], and copies between the two reorder (cache_view.OrderedView). [2 N D]
    order: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Goes into the namespace: engines share pages only under the same name."""
        return self.opaque or ROWS


def rows_packing(head_size: int) -> Packing:
    """K and V side by side, token by token."""
    return Packing(0, 2 * head_size, 1, head_size, 2 * head_size, 1)


@dataclass(frozen=True)
class ChunkShape:
    """Shape of one chunk of one layer, contiguous in memory."""

    tokens: int
    heads: int
    head_size: int
    element_bytes: int

    @property
    def row_bytes(self) -> int:
        """K or V of one token and head."""
        return self.head_size * self.element_bytes

    @property
    def head_elements(self) -> int:
        """K and V of one head."""
        return 2 * self.tokens * self.head_size

    @property
    def chunk_bytes(self) -> int:
        """Of one layer."""
        return self.heads * self.head_elements * self.element_bytes

    def page_layout(self, packing: Packing, layer_stride_bytes: int) -> pb.PageLayout:
        """The wire's description of chunks whose layers are `layer_stride_bytes` apart."""
        size = self.element_bytes
        return pb.PageLayout(
            tokens_per_chunk=self.tokens, layer_stride=layer_stride_bytes,
            head_stride=self.head_elements * size, k_offset=packing.k_offset * size,
            k_token_stride=packing.k_token_stride * size,
            k_channel_stride=packing.k_channel_stride * size, v_offset=packing.v_offset * size,
            v_token_stride=packing.v_token_stride * size,
            v_channel_stride=packing.v_channel_stride * size)


# Writes K and V, FP32 [N][H][D] with whole numbers below 256, into a scratch chunk as the engine
# would; returns the chunk's elements as FP32 [H][2 N D].
ChunkWriter = Callable[[np.ndarray, np.ndarray], np.ndarray]


def probe_positions(shape: ChunkShape, write: ChunkWriter) -> np.ndarray | None:
    """Number of the element that lies at each place: int64 [2 N D]; K first, then V, by rows.

    None when heads differ from each other, or a place holds a value nobody wrote.
    """
    tokens, heads, size = shape.tokens, shape.heads, shape.head_size
    numbers = np.arange(2 * tokens * size).reshape(2, tokens, 1, size)
    numbers = np.broadcast_to(numbers, (2, tokens, heads, size))
    low, high = (write(*digit.astype(np.float32)) for digit in (numbers % DIGIT, numbers // DIGIT))
    head = np.broadcast_to(np.arange(heads).reshape(1, 1, heads, 1) + 1, numbers.shape)
    owner = write(*head.astype(np.float32))
    if not (owner == np.arange(1, heads + 1).reshape(heads, 1)).all():
        return None
    found = (low + DIGIT * high).astype(np.int64)
    if not (found == found[0]).all() or len(np.unique(found[0])) != found.shape[1]:
        return None
    return found[0]


def strided_packing(positions: np.ndarray, shape: ChunkShape) -> Packing | None:
    """The strides that explain `positions`, or None when no strides do."""
    tokens, size = shape.tokens, shape.head_size
    place = np.argsort(positions).reshape(2, tokens, size)
    strides = []
    for part in place:
        offset, token = int(part[0, 0]), int(part[1, 0] - part[0, 0])
        channel = int(part[0, 1] - part[0, 0])
        if token < 1 or channel < 1:
            return None
        grid = offset + token * np.arange(tokens)[:, None] + channel * np.arange(size)
        if not (grid == part).all():
            return None
        strides += [offset, token, channel]
    return Packing(*strides)


def ordered_packing(positions: np.ndarray, shape: ChunkShape) -> Packing:
    """Rows side by side in staging, brought into that order one element at a time."""
    place = np.argsort(positions).reshape(2, shape.tokens, shape.head_size)
    order = tuple(place.transpose(1, 0, 2).ravel().tolist())
    return replace(rows_packing(shape.head_size), order=order)


def opaque_packing(shape: ChunkShape, isa: str) -> Packing | None:
    """Chunks as bytes nobody understands. None when a chunk is longer than a block: its halves
    would depend on each other's tokens."""
    if shape.tokens > BLOCK_TOKENS:
        return None
    area, size = shape.tokens * shape.head_size, shape.head_size
    return Packing(0, size, 1, area, size, 1, opaque=f"opaque-{isa}-{shape.tokens}")


def find_packing(shape: ChunkShape, isa: str, write: ChunkWriter) -> Packing | None:
    """The engine's packing: strided if it is, else ordered; opaque where numbers do not come back
    as they were written, or None (cannot be cached)."""
    positions = probe_positions(shape, write)
    if positions is None:
        return opaque_packing(shape, isa)
    return strided_packing(positions, shape) or ordered_packing(positions, shape)
