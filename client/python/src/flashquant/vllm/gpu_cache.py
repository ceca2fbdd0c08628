"""An engine's KV cache on a GPU: how it is viewed, and whether a node may use it in place."""

import logging
from dataclasses import dataclass

import torch

from flashquant import nccl
from flashquant.device_memory import DeviceMemoryError, device_uuid
from flashquant.device_segment import DeviceMemory
from flashquant.peer_comm import PeerError
from flashquant.peer_link import PeerOptions
from flashquant.vllm.rows_view import RowsView

log = logging.getLogger("flashquant")


@dataclass(frozen=True)
class GpuCache:
    """`shared`: what a node on the same GPU may register; None: pages go through host memory."""

    view: RowsView
    shared: DeviceMemory | None


def peer_options(tensor: torch.Tensor, window_bytes: int) -> PeerOptions | None:
    """How links from the GPU of `tensor` are opened; None (logged): there is no NCCL."""
    try:
        nccl.library()
        return PeerOptions(device_uuid(tensor.data_ptr()), nccl.connect, window_bytes)
    except (PeerError, DeviceMemoryError) as error:
        log.warning("FlashQuant: no pages by NCCL: %s", error)
        return None


def gpu_cache(tensors: list[torch.Tensor], blocks: int, heads: int, head_size: int,
              blocks_stay: bool) -> GpuCache:
    """ValueError: tensors that cannot be cached at all.

    `blocks_stay`: the engine keeps a running request's blocks as they are (no sliding window).
    """
    view = RowsView(tensors, blocks, heads, head_size)
    try:
        if not blocks_stay:
            raise ValueError("a sliding window frees blocks while they may still be read")
        view.device_layout()
        shared = DeviceMemory(view.memory())
    except (ValueError, DeviceMemoryError) as error:
        log.warning("FlashQuant: the KV cache cannot be shared with a node on this GPU: %s", error)
        shared = None
    return GpuCache(view, shared)
