"""Byte tables: weighted k-means on the exact byte shapes, rounded to what the file can hold."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flashquant.codec import nearest, to_lanes
from flashquant.codec_set import GROUP, row_dtype

ENTRIES = 256
ROUNDS = 10
START_ROUNDS = 30
START_SAMPLES = 60000
MOST_VECTORS = 30000
TABLE_BITS = (4, 2, 1)


def k_means(vectors: Tensor, weights: Tensor, start: Tensor, rounds: int,
            generator: torch.Generator) -> Tensor:
    """Centres [K, D] of `vectors` [N, D] with `weights` [N]; empty ones move to random vectors."""
    book = start.clone()
    for _ in range(rounds):
        index = nearest(vectors, book)
        total = torch.zeros_like(book).index_add_(0, index, vectors * weights[:, None])
        mass = weights.new_zeros(len(book)).index_add_(0, index, weights)
        used = mass > 1e-9
        book[used] = total[used] / mass[used, None]
        empty = int((~used).sum())
        if empty:
            pick = torch.randint(len(vectors), (empty,), generator=generator)
            book[~used] = vectors[pick.to(vectors.device)]
    return book


@lru_cache(maxsize=None)
def gaussian_table(bits: int) -> Tensor:
    """Table of unit Gaussian values, [256, 8 / bits]: where training starts."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(START_SAMPLES, 8 // bits, generator=generator)
    return k_means(samples, torch.ones(len(samples)), samples[:ENTRIES], START_ROUNDS, generator)


def _all_halves() -> np.ndarray:
    """FP16 values as FP32, [low byte, high byte]; those that are not finite are NaN."""
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values.reshape(256, 256).T


HALVES = _all_halves()


def _nearest_high_byte(values: np.ndarray, low: np.ndarray) -> np.ndarray:
    """High byte [N] of the FP16 nearest to `values` [N] among those with low byte `low` [N]."""
    with np.errstate(invalid="ignore"):
        return np.nanargmin(np.abs(HALVES[low] - values[:, None]), 1).astype(np.uint32)


def chain_words(values: np.ndarray) -> np.ndarray:
    """Values (0,0), (0,1), (1,0), (1,1) [N, 4] -> chain words u32 [N] (FORMAT.md section 2).

    Each byte is the high byte of one value and the low byte of the next, so they are rounded in
    the order of the chain: (1,0), (0,0), (1,1), (0,1).
    """
    word = np.zeros(len(values), np.uint32)
    low = np.zeros(len(values), np.uint32)
    for place, column in enumerate((2, 0, 3, 1)):
        low = _nearest_high_byte(values[:, column], low)
        word |= low << np.uint32(8 * place)
    return word


def half_words(values: np.ndarray) -> np.ndarray:
    """Pairs [N, 2] -> class-4 entries u32 [N]."""
    halves = values.astype(np.float16).view(np.uint16).astype(np.uint32)
    return halves[:, 0] | halves[:, 1] << np.uint32(16)


def _class_vectors(values: Tensor, weight: Tensor, groups: list[int], bits: int,
                   is_key: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training vectors [N, 8 / bits] and their weights [N] from values [T, d], at most 30,000."""
    size = 8 // bits
    channels = torch.cat([GROUP * g + torch.arange(GROUP) for g in groups]).to(values.device)
    vectors = to_lanes(values[:, channels], is_key).reshape(-1, size)
    share = (weight[channels] / weight[channels].mean()).float().expand(64, -1)
    weights = to_lanes(share, is_key).reshape(-1, size).mean(1).repeat(len(values) // 64)
    if len(vectors) > MOST_VECTORS:
        pick = torch.randperm(len(vectors), generator=generator)[:MOST_VECTORS].to(vectors.device)
        vectors, weights = vectors[pick], weights[pick]
    return vectors, weights


def fit_tables(values: Tensor, weight: Tensor, classes: list[int], is_key: bool,
               generator: torch.Generator) -> np.ndarray:
    """Tables of one part: a record like `base` in `row_dtype`, zero for classes not used.

    values [T, d]: what will be coded, whole blocks of 64; weight [d]: loss weight of its square.
    """
    tables = np.zeros((), row_dtype(values.shape[1])["base"])
    for bits in TABLE_BITS:
        groups = [i for i, c in enumerate(classes) if c == bits]
        if not groups:
            continue
        vectors, weights = _class_vectors(values, weight, groups, bits, is_key, generator)
        start = gaussian_table(bits).to(values.device)
        book = k_means(vectors, weights, start, ROUNDS, generator).cpu().numpy()
        if bits == 4:
            tables["class4"] = half_words(book)
        else:
            words = chain_words(book.reshape(-1, 4))
            tables[f"class{bits}"] = words.reshape(tables[f"class{bits}"].shape)
    return tables
