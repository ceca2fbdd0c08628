"""Rows between an engine's paged cache and dense regions of a peer link's window, in one kernel.

A region is a block's pages [layer][K|V][token][head][head size]. A *unit* is as many tokens as a
block and a chunk have in common; bytes go in grains of 16. Needs torch; runs on CPU tensors too.
"""

import ctypes

import numpy as np
import torch

from flashquant.keys import BLOCK_TOKENS
from flashquant.peer_comm import Span
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.placement import Placement
from flashquant.vllm.rows_view import RowsView

GRAIN = torch.complex128
GRAIN_BYTES = 16


class DeviceBytes:
    """GPU memory from an address on, as torch.as_tensor takes it."""

    def __init__(self, pointer: int, grains: int) -> None:
        self.__cuda_array_interface__ = {"shape": (grains,), "typestr": "<c16", "version": 3,
                                         "data": (pointer, False), "strides": None}


def memory_at(pointer: int, grains: int, device: torch.device) -> torch.Tensor:
    """Grains from an address on, whatever lies there; only touch what is known to be mapped."""
    if device.type == "cuda":
        return torch.as_tensor(DeviceBytes(pointer, grains), device=device)
    memory = (ctypes.c_char * (grains * GRAIN_BYTES)).from_address(pointer)
    return torch.frombuffer(memory, dtype=GRAIN)


class PeerRows:
    """Copies in the order of the current stream; nothing here waits for a GPU. Thread-safe."""

    def __init__(self, view: RowsView) -> None:
        """ValueError: pages that are not addressed alike in all layers, or not by grains."""
        view.device_layout()
        self._view, shape = view, view.shape
        self._device = view.rows[0].k.device
        self._chunk, head, self._token, _, v_offset = view.rows[0].strides()
        pointers = np.array([rows.k.data_ptr() for rows in view.rows], dtype=np.int64)
        base = int(pointers.min())
        self._layers = pointers - base
        if shape.row_bytes % GRAIN_BYTES or (pointers % GRAIN_BYTES).any():
            raise ValueError(f"rows of {shape.row_bytes} bytes, or where layers begin, are no "
                             f"multiple of {GRAIN_BYTES}")
        self.blocks_per_chunk = max(1, shape.tokens // BLOCK_TOKENS)
        self.unit_tokens = min(shape.tokens, BLOCK_TOKENS)
        sizes = (2, shape.heads, self.unit_tokens, shape.row_bytes // GRAIN_BYTES)
        strides = (v_offset // GRAIN_BYTES, head // GRAIN_BYTES, self._token // GRAIN_BYTES, 1)
        end = int(self._layers.max()) + max(memory.size for memory in view.memory())
        reach = sum((size - 1) * stride for size, stride in zip(sizes, strides))
        memory = memory_at(base, end // GRAIN_BYTES, self._device)
        self._units = memory.as_strided((end // GRAIN_BYTES - reach, *sizes), (1, *strides))
        self.layout = self._dense_layout()
        self.block_bytes = view.layers * 2 * BLOCK_TOKENS * shape.heads * shape.row_bytes

    def _dense_layout(self) -> pb.PageLayout:
        shape = self._view.shape
        token = shape.heads * shape.row_bytes
        return pb.PageLayout(
            tokens_per_chunk=BLOCK_TOKENS, layer_stride=0, head_stride=shape.row_bytes, k_offset=0,
            k_token_stride=token, k_channel_stride=shape.element_bytes,
            v_offset=BLOCK_TOKENS * token, v_token_stride=token,
            v_channel_stride=shape.element_bytes)

    def gather(self, place: Placement, chunk_ids: np.ndarray, regions: torch.Tensor) -> None:
        """Copies all blocks of `place` to `regions`, uint8 [blocks][block_bytes]."""
        index = self._index(place, chunk_ids, slice(None), slice(None))
        torch.ops.aten.index.Tensor_out(self._units, [index], out=self._dense(regions))

    def scatter(self, place: Placement, chunk_ids: np.ndarray, begin: int, end: int,
                regions: torch.Tensor) -> None:
        """Copies what chunks [begin, end) of the row hold from the blocks' regions."""
        wanted = (place.indices() >= begin) & (place.indices() < end)
        blocks, units = (slice(int(hit[0]), int(hit[-1]) + 1)
                         for hit in (np.flatnonzero(wanted.any(axis)) for axis in (1, 0)))
        if not wanted[blocks, units].all():
            raise ValueError(f"chunks [{begin}, {end}) of {place} are no whole blocks")
        index = self._index(place, chunk_ids, blocks, units)
        self._units[index] = self._dense(regions)[blocks, :, units]

    def load_kernels(self, region: torch.Tensor) -> None:
        """Launches what gather and scatter do, on `region`, uint8 [1][block_bytes], only."""
        place = Placement(0, 1, self._view.shape.tokens)
        self.gather(place, np.zeros(place.chunks, np.int64), region)
        grains = region.view(GRAIN)[0]
        grains[torch.zeros(1, dtype=torch.int64, device=region.device)] = grains[:1].clone()

    def _index(self, place: Placement, chunk_ids: np.ndarray, blocks: slice,
               units: slice) -> torch.Tensor:
        """Where units begin, [blocks][layers][units of a block], in grains from the first layer."""
        chunks = chunk_ids[place.indices()[blocks, units]]
        if chunks.size and not 0 <= chunks.min() <= chunks.max() < len(self._view.rows[0].k):
            raise ValueError(f"chunks {chunks.min()} to {chunks.max()} of a cache of "
                             f"{len(self._view.rows[0].k)}")
        tokens = np.asarray(place.first_tokens(), np.int64)[blocks, None] * self._token
        at = self._layers[None, :, None] + (chunks * self._chunk + tokens)[:, None, :]
        index = torch.from_numpy(at // GRAIN_BYTES)
        if self._device.type == "cuda":
            index = index.pin_memory()
        return index.to(self._device, non_blocking=True)

    def _dense(self, regions: torch.Tensor) -> torch.Tensor:
        """Regions as [blocks][layers][units of a block][K|V][heads][tokens of a unit][grains]."""
        shape = self._view.shape
        rows = regions.view(GRAIN).view(
            len(regions), self._view.layers, 2, BLOCK_TOKENS // self.unit_tokens, self.unit_tokens,
            shape.heads, shape.row_bytes // GRAIN_BYTES)
        return rows.permute(0, 1, 3, 2, 5, 4, 6)


def block_spans(offset: int, block_bytes: int, blocks: int) -> list[Span]:
    """Regions of so many blocks, one behind the other."""
    return [Span(offset + i * block_bytes, block_bytes) for i in range(blocks)]
