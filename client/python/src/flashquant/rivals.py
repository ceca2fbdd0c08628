"""Published row codecs that fq is compared with, as functions of rows [..., T, d] -> rows, FP32.

They emulate the arithmetic, scales rounded to FP16 included; nothing is packed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flashquant.codec import hadamard, universal_codes, universal_rows

# Lloyd-Max levels of the unit Gaussian (Max 1960), 2 bits.
LLOYD_MAX_2 = torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104])
Q4_GROUP = 32
LEAST_NORM = 1e-8


@dataclass(frozen=True)
class Rival:
    """`apply` maps rows to what a reader would get; `bits(d)` counts scales and norms."""

    apply: Callable[[Tensor], Tensor]
    bits: Callable[[int], float]
    about: str


def fp8_e4m3(x: Tensor) -> Tensor:
    """FP8 E4M3 without a scale, as vLLM's `kv_cache_dtype=fp8`."""
    return x.to(torch.float8_e4m3fn).float()


def q4_0(x: Tensor) -> Tensor:
    """llama.cpp's q4_0: groups of 32, scale = signed extreme / -8 in FP16, 4-bit integers."""
    groups = x.unflatten(-1, (-1, Q4_GROUP))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (extreme / -8).half().float()
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    codes = (groups * inverse + 8.5).floor().clamp(0, 15) - 8
    return (codes * scale).flatten(-2)


def hadamard_lloyd_max_2(x: Tensor) -> Tensor:
    """Hadamard rotation, FP16 norm per row, Lloyd-Max 2 bits (as TurboQuant, 2025)."""
    turn = hadamard(x.shape[-1])
    rotated = x @ turn
    norm = rotated.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(LEAST_NORM).half().float()
    between = (LLOYD_MAX_2[1:] + LLOYD_MAX_2[:-1]) / 2
    return (LLOYD_MAX_2[torch.bucketize(rotated / norm, between)] * norm) @ turn


def universal(x: Tensor) -> Tensor:
    """The node's codec without calibration (FORMAT.md section 6)."""
    return universal_rows(*universal_codes(x))


RIVALS = {
    "fp8": Rival(fp8_e4m3, lambda d: 8.0, "FP8 E4M3"),
    "q4_0": Rival(q4_0, lambda d: 4.5, "4-bit groups of 32 (llama.cpp)"),
    "hadamard-lm2": Rival(hadamard_lloyd_max_2, lambda d: 2 + 16 / d,
                          "Hadamard + Lloyd-Max, 2 bits (TurboQuant-like)"),
    "universal": Rival(universal, lambda d: 4 + 16 / d, "Hadamard + Lloyd-Max, 4 bits, no file"),
}
