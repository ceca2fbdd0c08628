"""What calibration measures on a model: mean, covariance, Fisher matrices and sample rows.

Shapes: L layers, G kv heads, d head size; the axis of 2 is K, V. K is taken after RoPE.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashquant.models import Model, Rows, Window
from flashquant.models.base import same_rows

BLOCK_TOKENS = 64
HEAD_CHUNK = 256
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Which sequences are run: lists of token ids [tokens], and how many of them with gradients."""

    long: list[Tensor]
    short: list[Tensor]
    fisher_long: int
    sample_blocks: int
    seed: int


@dataclass
class Statistics:
    """mean [L,2,G,d]; covariance, fisher_long, fisher_short [L,2,G,d,d] FP32; rows FP16
    [L,2,G,N,d], N a multiple of 64: whole blocks; `tokens` is the length of a long sequence."""

    mean: Tensor
    covariance: Tensor
    fisher_long: Tensor
    fisher_short: Tensor
    rows: Tensor
    tokens: int

    def save(self, file: Path) -> None:
        """Writes everything to `file`, so that tables can be fitted again without the model."""
        torch.save(asdict(self), file)

    @staticmethod
    def load(file: Path) -> "Statistics":
        """Reads what `save` wrote."""
        return Statistics(**torch.load(file, weights_only=True))


class RowStatistics:
    """Accumulates mean, covariance and sample blocks of the rows beyond the sinks."""

    def __init__(self, model: Model, sinks: int, every: int) -> None:
        shape = (model.layers, 2, model.kv_heads, model.head_size)
        self._sum = torch.zeros(shape, dtype=torch.float64)
        self._product = torch.zeros(*shape, model.head_size, dtype=torch.float64)
        self._blocks: list[list[Tensor]] = [[] for _ in range(model.layers)]
        self._count = 0
        self._sinks = sinks
        self._every = every
        self._layers = model.layers
        self._sequences = 0

    def observe(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A `Rows` that changes nothing. Blocks 1, 2, ... are sampled, every `every`-th."""
        rows = torch.stack([k, v])[:, :, self._sinks:]
        self._sum[layer] += rows.sum(2)
        self._product[layer] += rows.transpose(2, 3) @ rows
        whole = torch.stack([k, v])[:, :, BLOCK_TOKENS:]
        count = whole.shape[2] // BLOCK_TOKENS
        blocks = whole[:, :, :count * BLOCK_TOKENS].unflatten(2, (count, BLOCK_TOKENS))
        self._blocks[layer].append(blocks[:, :, self._sequences % self._every::self._every].half())
        if layer == self._layers - 1:
            self._count += rows.shape[2]
            self._sequences += 1
        return k, v

    def mean(self) -> Tensor:
        """[L,2,G,d]"""
        return (self._sum / self._count).float()

    def covariance(self) -> Tensor:
        """[L,2,G,d,d]"""
        mean = self._sum / self._count
        return (self._product / self._count - mean[..., :, None] * mean[..., None, :]).float()

    def rows(self) -> Tensor:
        """[L,2,G,N,d] FP16"""
        return torch.stack([torch.cat(blocks, 2).flatten(2, 3) for blocks in self._blocks])


def _label_gradient(model: Model, hidden: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """d NLL / d hidden [T, D] for labels drawn from the model itself, at positions >= first."""
    gradient = torch.zeros_like(hidden)
    weight = model.head_weight()
    for begin in range(first, len(hidden), HEAD_CHUNK):
        part = hidden[begin:begin + HEAD_CHUNK].to(weight.dtype)
        probabilities = (part @ weight.T).float().softmax(-1)
        labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        probabilities[torch.arange(len(part)), labels] -= 1.0
        gradient[begin:begin + HEAD_CHUNK] = (probabilities.to(weight.dtype) @ weight).float()
    return gradient


def _far_gradients(model: Model, index: int, x: Tensor, gradient: Tensor,
                   window: Window) -> tuple[Tensor, Tensor]:
    """Runs layer `index` on x [T, D] with gradients: (d/dx, [2, G, T, d] d/d far rows)."""
    leaves: list[Tensor] = []

    def detour(_: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        leaves.extend([torch.zeros_like(k, requires_grad=True),
                       torch.zeros_like(v, requires_grad=True)])
        return k + leaves[0], v + leaves[1]

    with torch.enable_grad():
        start = x.detach().requires_grad_()
        out = model.layer(index, start, detour, window)
        grads = torch.autograd.grad(out, [start, *leaves], gradient)
    return grads[0], torch.stack(grads[1:])


def _fisher_of(model: Model, ids: Tensor, window: Window, seed: int,
               observe: Rows = same_rows) -> Tensor:
    """E[g g^T] over far rows of one sequence, [L,2,G,d,d]; `observe` sees the rows on the way.

    True Fisher (labels from the model: Kunstner et al. 2019), one sample per position. Layers are
    run again one by one backwards, so only their inputs are kept.
    """
    inputs = [model.embed(ids)]
    for index in range(model.layers):
        inputs.append(model.layer(index, inputs[-1], observe, window))
    generator = torch.Generator().manual_seed(seed)
    first = min(256, len(ids) // 2)
    with torch.enable_grad():
        last = inputs.pop().detach().requires_grad_()
        hidden = model.final_norm(last)
    gradient = _label_gradient(model, hidden.detach(), first, generator)
    (gradient,) = torch.autograd.grad(hidden, last, gradient)
    fisher = torch.zeros(model.layers, 2, model.kv_heads, model.head_size, model.head_size)
    stop = len(ids) - window.recent - window.chunk
    for index in reversed(range(model.layers)):
        gradient, rows = _far_gradients(model, index, inputs.pop(), gradient, window)
        rows = rows[:, :, window.sinks:stop]
        fisher[index] = rows.transpose(2, 3) @ rows / rows.shape[2]
    return fisher


class _Clock:
    """Says which sequence is next and how long the rest will take, by tokens."""

    def __init__(self, costs: list[float], progress: Progress) -> None:
        self._costs, self._progress = costs, progress
        self._start, self._done = time.monotonic(), 0

    def step(self, what: str) -> None:
        spent = time.monotonic() - self._start
        self._done += 1
        ratio = sum(self._costs[self._done:]) / sum(self._costs[:self._done])
        self._progress(f"{what} {self._done}/{len(self._costs)}: {spent:.0f} s, "
                       f"about {spent * ratio:.0f} s left")


@torch.no_grad()
def measure(model: Model, plan: Plan, progress: Progress, window: Window = Window()) -> Statistics:
    """Runs `plan`. Memory: inputs of all layers of one sequence and one layer's graph."""
    shape = (model.layers, 2, model.kv_heads, model.head_size, model.head_size)
    fisher = {"long": torch.zeros(shape), "short": torch.zeros(shape)}
    blocks = sum(len(ids) // BLOCK_TOKENS - 1 for ids in plan.long)
    rows = RowStatistics(model, window.sinks, math.ceil(blocks / plan.sample_blocks))
    costs = [len(ids) * (4.0 if n < plan.fisher_long else 1.0) for n, ids in enumerate(plan.long)]
    clock = _Clock(costs + [4.0 * len(ids) for ids in plan.short], progress)
    for number, ids in enumerate(plan.long):
        if number < plan.fisher_long:
            fisher["long"] += _fisher_of(model, ids, window, plan.seed + number, rows.observe)
        else:
            x = model.embed(ids)
            for index in range(model.layers):
                x = model.layer(index, x, rows.observe, window)
        clock.step("sequence")
    for number, ids in enumerate(plan.short):
        fisher["short"] += _fisher_of(model, ids, window, plan.seed + 1000 + number)
        clock.step("sequence")
    return Statistics(rows.mean(), rows.covariance(), fisher["long"] / plan.fisher_long,
                      fisher["short"] / max(1, len(plan.short)), rows.rows(), len(plan.long[0]))
