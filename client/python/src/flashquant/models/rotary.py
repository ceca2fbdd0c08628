"""Rotary position embedding: frequencies by kind of scaling, as transformers computes them."""

import math
from typing import Any

import torch
from torch import Tensor

# Fields of a scaling that change nothing here, or that only training used.
IGNORED = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "factor",
           "partial_rotary_factor"}
KNOWN = {"default": set(), "linear": set(),
         "llama3": {"low_freq_factor", "high_freq_factor"},
         "yarn": {"beta_fast", "beta_slow", "attention_factor", "truncate"}}


def _blend(frequency: Tensor, factor: float, keep: Tensor) -> Tensor:
    """Frequencies where `keep` is 1, divided by `factor` where it is 0."""
    return frequency * keep + frequency / factor * (1 - keep)


def _llama3(frequency: Tensor, rope: dict[str, Any], context: int) -> Tensor:
    """Long wavelengths are stretched, short ones kept, smoothly between."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    old = rope.get("original_max_position_embeddings", context)
    turns = old * frequency / (2 * math.pi)
    return _blend(frequency, rope["factor"], ((turns - low) / (high - low)).clamp(0, 1))


def _yarn(frequency: Tensor, rope: dict[str, Any], context: int, theta: float) -> Tensor:
    """Peng et al. 2023: a ramp over dimensions between two numbers of turns."""
    half = len(frequency)
    old = rope.get("original_max_position_embeddings", context)

    def place(turns: float) -> float:
        return half * math.log(old / (turns * 2 * math.pi)) / math.log(theta)

    low, high = place(rope.get("beta_fast") or 32), place(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = (torch.arange(half, dtype=torch.float64) - low) / max(high - low, 0.001)
    return _blend(frequency, rope["factor"], 1 - ramp.clamp(0, 1))


def rotation(rope: dict[str, Any], head_size: int, context: int,
             tokens: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [tokens, head_size], FP32; ValueError if the scaling is not known.

    `rope`: `rope_theta`, `rope_type` and the numbers of that type; `context`: tokens of the model.
    """
    kind, theta = rope.get("rope_type", rope.get("type", "default")), float(rope["rope_theta"])
    if kind not in KNOWN:
        raise ValueError(f"rope_type is {kind!r}; supported: {', '.join(KNOWN)}")
    unknown = {name for name, value in rope.items() if value is not None}
    unknown -= IGNORED | KNOWN[kind]
    if unknown or rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ValueError(f"rope of type {kind!r} has {sorted(unknown) or 'a partial_rotary_factor'}"
                         ", which is not supported")
    frequency = theta ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    scale = 1.0
    if kind == "linear":
        frequency = frequency / rope["factor"]
    elif kind == "llama3":
        frequency = _llama3(frequency, rope, context)
    elif kind == "yarn":
        frequency = _yarn(frequency, rope, context, theta)
        scale = rope.get("attention_factor") or (
            0.1 * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
    cosine, sine = ((scale * torch.cat([part, part], -1)).float()
                    for part in (angle.cos(), angle.sin()))
    return cosine, sine
