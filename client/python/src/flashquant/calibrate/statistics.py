"""What calibration measures on a model: mean, covariance, Fisher matrices and sample rows.

Shapes: L layers, G kv heads, d head size; the axis of 2 is K, V. K is taken after RoPE.
"""

import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from flashquant.calibrate.gradients import fisher_of
from flashquant.models import Model, Window

BLOCK_TOKENS = 64
SAVE_SECONDS = 60.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sequence:
    """Token ids [T] and how many blocks of its rows are kept for tables."""

    ids: Tensor
    blocks: int


@dataclass
class Sums:
    """Sums over the sequences of one length, on the CPU: mean and covariance come from `rows`,
    `total` [L,2,G,d] and `product` [L,2,G,d,d] FP64; `fisher` [L,2,G,d,d] FP64 of `sequences`."""

    total: Tensor
    product: Tensor
    fisher: Tensor
    rows: int = 0
    sequences: int = 0

    @staticmethod
    def zero(model: Model) -> "Sums":
        """Nothing seen yet."""
        shape = (model.layers, 2, model.kv_heads, model.head_size)
        matrices = (torch.zeros(*shape, shape[-1], dtype=torch.float64) for _ in range(2))
        return Sums(torch.zeros(shape, dtype=torch.float64), *matrices)

    def add(self, other: "Sums") -> None:
        """Adds what `other` saw."""
        for name in ("total", "product", "fisher"):
            getattr(self, name).add_(getattr(other, name))
        self.rows += other.rows
        self.sequences += other.sequences


@dataclass
class Statistics:
    """`by_length`: sums by sequence length. `blocks`: sample rows FP16, [L,2,G,64 b,d] each.

    Whatever was measured: `plan` names it, `done` counts its sequences that are in.
    """

    plan: str
    done: int = 0
    by_length: dict[int, Sums] = field(default_factory=dict)
    blocks: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Length of the longest sequences."""
        return max(self.by_length)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """[L,2,G,d] and [L,2,G,d,d] FP64, over the rows of all lengths."""
        count = sum(sums.rows for sums in self.by_length.values())
        mean = sum(sums.total for sums in self.by_length.values()) / count
        product = sum(sums.product for sums in self.by_length.values()) / count
        return mean, product - mean[..., :, None] * mean[..., None, :]

    def fisher(self) -> Tensor:
        """[L,2,G,d,d] FP64: each length counts the same (CODEC.md, round two)."""
        means = [sums.fisher / sums.sequences for sums in self.by_length.values()]
        return sum(means) / len(means)

    def rows(self) -> Tensor:
        """Sample rows [L,2,G,N,d] FP16, N a multiple of 64: whole blocks."""
        return torch.cat(self.blocks, 3)

    def save(self, file: Path) -> None:
        """Writes everything to `file` in one step."""
        partial = file.with_name(file.name + ".partial")
        torch.save(asdict(self), partial)
        os.replace(partial, file)

    @staticmethod
    def load(file: Path) -> "Statistics":
        """Reads what `save` wrote; ValueError if the file is something else."""
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{file}: not a file of statistics")
        try:
            found = torch.load(file, weights_only=True)
            by_length = {n: Sums(**sums) for n, sums in found.pop("by_length").items()}
            return Statistics(by_length=by_length, **found)
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a file of statistics of this version") from error


class _Rows:
    """Sees the rows of one sequence on their way: sums beyond the sinks, and sample blocks."""

    def __init__(self, model: Model, sequence: Sequence, window: Window) -> None:
        self.sums, self._sinks = Sums.zero(model), window.sinks
        self.sums.rows = len(sequence.ids) - window.sinks
        self.blocks: list[Tensor] = []
        whole = len(sequence.ids) // BLOCK_TOKENS - 1
        self._keep = torch.linspace(1, whole, sequence.blocks + 2)[1:-1].round().long()

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A `Rows` that changes nothing."""
        both = torch.stack([k, v])
        rows = both[:, :, self._sinks:]
        self.sums.total[layer] = rows.sum(2).cpu()
        self.sums.product[layer] = (rows.transpose(2, 3) @ rows).cpu()
        whole = both.shape[2] // BLOCK_TOKENS
        blocks = both[:, :, :whole * BLOCK_TOKENS].unflatten(2, (whole, BLOCK_TOKENS))
        self.blocks.append(blocks[:, :, self._keep.to(k.device)].flatten(2, 3).half().cpu())
        return k, v


def observe(model: Model, sequence: Sequence, seed: int, draws: int = 1,
            window: Window = Window()) -> tuple[Sums, Tensor]:
    """Runs one sequence forwards and `draws` times backwards: its sums, and its sample rows
    [L,2,G,64 b,d]."""
    rows = _Rows(model, sequence, window)
    rows.sums.fisher = fisher_of(model, sequence.ids, window, seed, rows, draws).double()
    rows.sums.sequences = 1
    return rows.sums, torch.stack(rows.blocks)


class _Clock:
    """Says which sequence is next and how long the rest will take, by tokens."""

    def __init__(self, sequences: list[Sequence], done: int, progress: Progress) -> None:
        self._costs = [float(len(s.ids)) for s in sequences[done:]]
        self._before, self._progress = done, progress
        self._start, self._done = time.monotonic(), 0

    def step(self) -> None:
        spent = time.monotonic() - self._start
        self._done += 1
        ratio = sum(self._costs[self._done:]) / sum(self._costs[:self._done])
        self._progress(f"sequence {self._before + self._done}/{self._before + len(self._costs)}: "
                       f"{spent:.0f} s, about {spent * ratio:.0f} s left")


def measure(model: Model, sequences: list[Sequence], statistics: Statistics, seed: int,
            progress: Progress, file: Path | None = None, draws: int = 1) -> None:
    """Adds to `statistics` the `sequences` that are not in it, with `draws` labels per position;
    keeps `file` up to date if given.

    A run that was stopped and goes on from `file` gives the same statistics as one that was not.
    Memory: inputs of all layers of one sequence (on disk if large) and one layer's graph.
    """
    clock = _Clock(sequences, statistics.done, progress)
    saved = time.monotonic()
    for number in range(statistics.done, len(sequences)):
        sequence = sequences[number]
        sums, blocks = observe(model, sequence, seed + number, draws)
        statistics.by_length.setdefault(len(sequence.ids), Sums.zero(model)).add(sums)
        statistics.blocks.append(blocks)
        statistics.done = number + 1
        clock.step()
        last = statistics.done == len(sequences)
        if file is not None and (last or time.monotonic() - saved > SAVE_SECONDS):
            statistics.save(file)
            saved = time.monotonic()
