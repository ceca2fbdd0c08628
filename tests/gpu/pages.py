"""Rows that anybody can make again: a pseudo-random function of block, layer, head, token, channel.

Close to unit Gaussians, FP16, on any device, the same bits on all. So every page that comes back,
in whatever blocks of whatever worker, can be checked where it lies.
"""

import hashlib

import torch

from flashquant.keys import BLOCK_TOKENS
from flashquant.wire import Profile

# Largest mean squared error of a page of unit rows. What the made-up sets make of it is at most
# 0.48 (compact), 0.06 (near-lossless), 0.01 (universal); a page of another block has 1.6 to 2.
LIMITS = {Profile.EXACT: 0.0, Profile.NEAR_LOSSLESS: 0.1, Profile.UNIVERSAL: 0.05,
          Profile.COMPACT: 0.7}
SPREAD = 147.8  # of the sum of four bytes


def serial_of(conversation: str, block: int) -> int:
    """Number of a block of a chain, 31 bits; seeds its rows."""
    digest = hashlib.sha256(f"{conversation}/{block}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def mixed(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 that leaves no pattern (lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, -2073254261), (16, 1)):
        x = (x ^ ((x >> shift) & ((1 << (32 - shift)) - 1))) * factor
    return x


def make_rows(serials: torch.Tensor, layer: int, heads: int, head_size: int) -> torch.Tensor:
    """FP16 [blocks][heads][64][2 head_size] (K | V) of blocks `serials` (int32) in one layer."""
    count = heads * BLOCK_TOKENS * 2 * head_size
    seeds = mixed(mixed(serials) + layer * 0x3C6EF35F % (1 << 31))
    places = torch.arange(count, dtype=torch.int32, device=serials.device)
    bits = mixed(seeds[:, None] + mixed(places)[None, :])
    total = (bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + ((bits >> 24) & 255)
    rows = ((total - 510).float() / SPREAD).half()
    return rows.view(-1, heads, BLOCK_TOKENS, 2 * head_size)


def page_errors(rows: torch.Tensor, found: torch.Tensor, exact: bool) -> torch.Tensor:
    """Mean squared error of each page, [blocks][heads][2] FP32; exact: 0, or 1 if a bit differs."""
    half = rows.shape[-1] // 2
    if exact:
        differs = rows.view(torch.int16) != found.view(torch.int16)
        return differs.unflatten(-1, (2, half)).any(dim=4).any(dim=2).float()
    error = (found.float() - rows.float()).square()
    return error.unflatten(-1, (2, half)).mean(dim=(2, 4)).nan_to_num(nan=float("inf"))
