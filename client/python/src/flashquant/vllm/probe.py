"""How vLLM packs K and V on this machine, asked of vLLM's own op on a scratch block."""

import numpy as np
import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from flashquant.vllm.geometry import ChunkShape, Packing, find_packing


def cpu_packing(shape: ChunkShape, dtype: torch.dtype) -> Packing | None:
    """Packing of the CPU attention backend for these chunks; None: cannot be cached."""
    isa = _get_attn_isa(dtype, shape.tokens, shape.head_size)

    def write(key: np.ndarray, value: np.ndarray) -> np.ndarray:
        scratch = torch.zeros(1, shape.heads, 2 * shape.tokens, shape.head_size, dtype=dtype)
        key_part, value_part = scratch.chunk(2, dim=2)  # as CPUAttentionBackendImpl does
        ops.cpu_attn_reshape_and_cache(
            torch.from_numpy(key).to(dtype), torch.from_numpy(value).to(dtype),
            key_part, value_part, torch.arange(shape.tokens), isa)
        return scratch.float().numpy().reshape(shape.heads, -1)

    return find_packing(shape, isa, write)
