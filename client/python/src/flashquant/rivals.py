"""Published codecs that fq is compared with, as functions of K and V rows [G, T, d], FP32.

They emulate the arithmetic of their sources, scales rounded to FP16 included; nothing is packed.
Those that need statistics of a model are in `evaluate/calibrated_rivals.py`. `bits` counts codes,
scales, zeros and norms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from flashquant.codec import SINK_TOKENS, hadamard, nearest, universal_codes, universal_rows

Q4_GROUP = 32
INT4_GROUP = 64
KIVI_GROUP = 32
LEAST_NORM = 1e-8
BOOK_SAMPLES = 60000
BOOK_ROUNDS = 40
Apply = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rival:
    """`apply`: K, V of a sequence -> what a reader gets. `bits(d)`: per value, mean of K and V.
    `by_row`: no row depends on another."""

    apply: Apply
    bits: Callable[[int], float]
    about: str
    by_row: bool = True


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


def asymmetric(groups: Tensor, bits: int, dim: int) -> Tensor:
    """Uniform steps between least and largest along `dim`; both the step and the least in FP16."""
    low, high = groups.amin(dim, keepdim=True), groups.amax(dim, keepdim=True)
    step = ((high - low) / (2 ** bits - 1)).clamp_min(LEAST_NORM).half().float()
    low = low.half().float()
    inverse = torch.where(step == 0, 0.0, 1 / step)
    return ((groups - low) * inverse).round().clamp(0, 2 ** bits - 1) * step + low


def int4(x: Tensor) -> Tensor:
    """Asymmetric INT4 in groups of 64 values of a row (as FlexGen, Sheng et al. 2023)."""
    return asymmetric(x.unflatten(-1, (-1, INT4_GROUP)), 4, -1).flatten(-2)


def kivi_2(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """KIVI (Liu et al. 2024), 2 bits, groups of 32: K along tokens per channel, V along channels.

    Sink rows, raw for every codec, are left out of their group's range.
    """
    tokens = k.shape[1]
    k = torch.cat([k[:, SINK_TOKENS:SINK_TOKENS + 1].expand(-1, min(SINK_TOKENS, tokens), -1),
                   k[:, SINK_TOKENS:]], 1) if tokens > SINK_TOKENS else k
    rest = -tokens % KIVI_GROUP
    padded = torch.cat([k, k[:, -1:].expand(-1, rest, -1)], 1)
    keys = asymmetric(padded.unflatten(1, (-1, KIVI_GROUP)), 2, 2).flatten(1, 2)[:, :tokens]
    return keys, asymmetric(v.unflatten(-1, (-1, KIVI_GROUP)), 2, -1).flatten(-2)


@lru_cache(maxsize=None)
def lloyd_max(bits: int) -> Tensor:
    """Lloyd-Max levels of the unit Gaussian (Max 1960; Lloyd 1982), rising, FP32 [2^bits]."""
    count = 2 ** bits
    levels = torch.linspace(-2.5, 2.5, count, dtype=torch.float64)
    for _ in range(1000):
        edges = torch.cat([torch.tensor([-math.inf]), (levels[1:] + levels[:-1]) / 2,
                           torch.tensor([math.inf])])
        density = torch.exp(-edges ** 2 / 2) / math.sqrt(2 * math.pi)
        levels = (density[:-1] - density[1:]) / torch.special.ndtr(edges).diff()
    return levels.float()


def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows turned by the Hadamard matrix with mean square 1, and their norms [..., 1] in FP16."""
    turned = x @ hadamard(x.shape[-1]).to(x)
    norm = turned.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(LEAST_NORM).half().float()
    inverse = torch.where(norm == 0, 0.0, 1 / norm)
    return turned * inverse, norm


def _nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    levels = levels.to(x.device)
    return levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]


def hadamard_lloyd_max(x: Tensor, bits: int) -> Tensor:
    """Hadamard rotation, FP16 norm per row, Lloyd-Max (TurboQuant, Zandieh et al. 2025)."""
    unit, norm = _unit_rows(x)
    return (_nearest_level(unit, lloyd_max(bits)) * norm) @ hadamard(x.shape[-1]).to(x)


def turboquant_nc(k: Tensor, v: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """vLLM's `turboquant_{bits}bit_nc`: K as above with the norm of the levels corrected, V
    uniform between the least and the largest of a row."""
    unit, norm = _unit_rows(k)
    found = _nearest_level(unit, lloyd_max(bits))
    found = found * found.pow(2).mean(-1, keepdim=True).rsqrt()
    return (found * norm) @ hadamard(k.shape[-1]).to(k), asymmetric(v, bits, -1)


@lru_cache(maxsize=None)
def gaussian_book(entries: int, size: int) -> Tensor:
    """Book of the unit Gaussian in `size` dimensions by k-means, [entries, size]; always the same.
    """
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(BOOK_SAMPLES, size, generator=generator)
    book = samples[:entries].clone()
    for _ in range(BOOK_ROUNDS):
        index = nearest(samples, book)
        total = torch.zeros_like(book).index_add_(0, index, samples)
        mass = torch.bincount(index, minlength=entries)
        used = mass > 0
        book[used] = total[used] / mass[used, None]
    return book


def nearest_entry(x: Tensor, book: Tensor) -> Tensor:
    """x [..., d], coded in runs of the width of `book`."""
    book = book.to(x.device)
    return book[nearest(x.reshape(-1, book.shape[1]), book)].view(x.shape)


def higgs_2d(x: Tensor) -> Tensor:
    """HIGGS (Malinovskii et al. 2024) with pairs and 16 entries: 2 bits; FP16 norm per row."""
    unit, norm = _unit_rows(x)
    return (nearest_entry(unit, gaussian_book(16, 2)) * norm) @ hadamard(x.shape[-1]).to(x)


def universal(x: Tensor) -> Tensor:
    """The node's codec without calibration (FORMAT.md section 6)."""
    return universal_rows(*universal_codes(x))


def _both(apply: Callable[[Tensor], Tensor]) -> Apply:
    return lambda k, v: (apply(k), apply(v))


def _hadamard_rival(bits: int) -> Rival:
    return Rival(_both(lambda x: hadamard_lloyd_max(x, bits)), lambda d: bits + 16 / d,
                 f"Hadamard + Lloyd-Max, {bits} bits (TurboQuant)")


def _turboquant_rival(bits: int) -> Rival:
    return Rival(lambda k, v: turboquant_nc(k, v, bits), lambda d: bits + 24 / d,
                 f"vLLM's turboquant_{bits}bit_nc, no layer skipped")


RIVALS = {
    "fp8": Rival(_both(fp8_e4m3), lambda d: 8.0, "FP8 E4M3"),
    "q4_0": Rival(_both(q4_0), lambda d: 4.5, "4-bit groups of 32 (llama.cpp)"),
    "int4": Rival(_both(int4), lambda d: 4 + 32 / INT4_GROUP, "INT4 per token, groups of 64"),
    "universal": Rival(_both(universal), lambda d: 4 + 16 / d,
                       "Hadamard + Lloyd-Max, 4 bits (the node's own, no file)"),
    "hadamard-lm4": _hadamard_rival(4),
    "turboquant-4": _turboquant_rival(4),
    "turboquant-3": _turboquant_rival(3),
    "hadamard-lm3": _hadamard_rival(3),
    "kivi-2": Rival(kivi_2, lambda d: 2 + 32 / KIVI_GROUP, "KIVI, 2 bits, groups of 32",
                    by_row=False),
    "hadamard-lm2": _hadamard_rival(2),
    "higgs-2d": Rival(_both(higgs_2d), lambda d: 2 + 16 / d, "Hadamard + 16 pairs (HIGGS)"),
}
