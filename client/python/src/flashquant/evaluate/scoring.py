"""What a codec changes, position by position, against the raw cache; and sums of it.

A passage is a text of which some positions are scored. Which rows are coded while they are scored
is a `Window`: by default the running protocol, queries in chunks of 64 tokens over coded pages with
the first 16 and the last 128 to 191 tokens raw.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flashquant.evaluate.codecs import NamedCodec
from flashquant.models import Model, Rows, Window
from flashquant.models.base import Past, hidden_states, past_of, same_rows
from flashquant.models.text import Document

FIRST_SCORED = 256
KL_STEP = 4
ERROR_BLOCK = 64
HEAD_CHUNK = 128
RARE = 0.999


@dataclass(frozen=True)
class Passage:
    """ids [T]; the positions first .. T - 2 are scored, each predicts the next id."""

    name: str
    ids: Tensor
    first: int


@dataclass(frozen=True)
class Outcome:
    """Of the n scored positions of one passage, on the CPU. `raw_nll`, `nll` [n]: negative log
    likelihood of the next id without and with the codec; `kl`: KL divergence of every
    `kl_step`-th; `same` [n]: same best id as raw; `raw_right`, `right` [n]: it is the next id."""

    raw_nll: Tensor
    nll: Tensor
    kl: Tensor
    same: Tensor
    raw_right: Tensor
    right: Tensor

    @property
    def added(self) -> Tensor:
        """Negative log likelihood that the codec adds, [n]."""
        return self.nll - self.raw_nll


@dataclass(frozen=True)
class _Reference:
    """Of one passage: negative log likelihood [n], best id [n], log probabilities of every
    kl_step-th position FP16 [n / kl_step, vocabulary] in chunks; raw K and V of the past."""

    nll: Tensor
    best: Tensor
    log_probabilities: list[Tensor]
    past: list[Past] | None


def _log_probabilities(weight: Tensor, hidden: Tensor) -> Iterator[Tensor]:
    """Log probabilities [<= HEAD_CHUNK, vocabulary] of consecutive positions, chunk by chunk."""
    for part in hidden.split(HEAD_CHUNK):
        yield torch.log_softmax(part @ weight.T, -1)


def _behind(past: tuple[Tensor, Tensor], _: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`Rows` that puts `past` in the place of the first rows."""
    k, v = (torch.cat([x, raw[:, x.shape[1]:]], 1) for x, raw in zip(past, (k, v)))
    return k, v


def _nll(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(1, targets[:, None])[:, 0]


class PastRows(Protocol):
    """`Rows` that also know what becomes of the pasts of several passages at once."""

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rows`."""

    def load(self, layer: int, k: Tensor, v: Tensor) -> list[Tensor]:
        """K, V [G, N P, d] of N pasts of P rows, one behind the other, as far queries see them."""


class Comparison:
    """Compares codecs with the raw cache on the same passages; raw runs once, in `prepare`."""

    def __init__(self, model: Model, passages: list[Passage], window: Window = Window(),
                 kl_step: int = KL_STEP, past_tokens: int = 0) -> None:
        """`past_tokens`: whole chunks in which no query sees coded rows, so that they run once;
        positions are scored behind them, and `compare` takes `PastRows`."""
        self._model, self._window, self._step = model, window, kl_step
        self._past_tokens = past_tokens
        self._weight = model.head_weight().float()
        self._references: list[_Reference] = []
        self.passages = passages

    @torch.no_grad()
    def prepare(self) -> float:
        """Runs the raw cache; returns its perplexity."""
        self._references = [self._reference(passage) for passage in self.passages]
        return math.exp(torch.cat([r.nll for r in self._references]).mean())

    def _hidden(self, passage: Passage, rows: Rows, past: list[Past] | None) -> Tensor:
        hidden = hidden_states(self._model, passage.ids[self._past_tokens:], rows, self._window,
                               past)
        return hidden[passage.first - self._past_tokens:-1]

    def _hidden_behind_pasts(self, rows: PastRows) -> Iterator[Tensor]:
        """As `_hidden` of every passage, layer by layer, so that the pasts are coded at once."""
        states = [self._model.embed(p.ids[self._past_tokens:]) for p in self.passages]
        for layer in range(self._model.layers):
            pasts = [reference.past[layer] for reference in self._references]
            joined = (torch.cat(column, 1).float() for column in zip(*pasts))
            loaded = zip(*(x.split(self._past_tokens, 1) for x in rows.load(layer, *joined)))
            for number, far in enumerate(loaded):
                states[number] = self._model.layer(
                    layer, states[number], partial(_behind, far), self._window, pasts[number])
        for passage, state in zip(self.passages, states):
            yield self._model.final_norm(state)[passage.first - self._past_tokens:-1]

    def _targets(self, passage: Passage) -> tuple[Tensor, ...]:
        return passage.ids[passage.first + 1:].to(self._weight.device).split(HEAD_CHUNK)

    def _reference(self, passage: Passage) -> _Reference:
        nll, best, kept = [], [], []
        past = None
        if self._past_tokens:
            past = past_of(self._model, passage.ids[:self._past_tokens])
        hidden = self._hidden(passage, same_rows, past)
        for target, logs in zip(self._targets(passage), _log_probabilities(self._weight, hidden)):
            nll.append(_nll(logs, target))
            best.append(logs.argmax(-1))
            kept.append(logs[::self._step].half())
        return _Reference(torch.cat(nll), torch.cat(best), kept, past)

    def _outcome(self, passage: Passage, hidden: Tensor, reference: _Reference) -> Outcome:
        targets = self._targets(passage)
        nll, kl, best = [], [], []
        for number, logs in enumerate(_log_probabilities(self._weight, hidden)):
            nll.append(_nll(logs, targets[number]))
            best.append(logs.argmax(-1))
            raw = reference.log_probabilities[number].float()
            kl.append((raw.exp() * (raw - logs[::self._step])).sum(-1))
        found, target = torch.cat(best), torch.cat(targets)
        parts = (reference.nll, torch.cat(nll), torch.cat(kl), found == reference.best,
                 reference.best == target, found == target)
        return Outcome(*(part.cpu() for part in parts))

    @torch.no_grad()
    def compare(self, rows: Rows | PastRows) -> list[Outcome]:
        """One outcome for each passage. Needs `prepare` first."""
        if self._past_tokens:
            found = self._hidden_behind_pasts(rows)
        else:
            found = (self._hidden(passage, rows, None) for passage in self.passages)
        return [self._outcome(passage, hidden, reference)
                for passage, hidden, reference in zip(self.passages, found, self._references)]


@dataclass(frozen=True)
class Score:
    """What one codec loses. `seconds`: wall time of all documents."""

    name: str
    bits_per_value: float
    stored_bits_per_value: float
    perplexity_excess_percent: float
    standard_error_percent: float
    kl_divergence: float
    kl_divergence_999: float
    top1_agreement_percent: float
    excess_by_document: dict[str, float]
    seconds: float


class Evaluation:
    """The running protocol: every document is cut to `tokens` ids, scored from id 256 on."""

    def __init__(self, model: Model, documents: list[Document], tokens: int,
                 window: Window = Window()) -> None:
        first = min(FIRST_SCORED, tokens // 2)
        self._comparison = Comparison(
            model, [Passage(d.name, d.ids[:tokens], first) for d in documents], window)
        self.tokens = tokens

    def prepare(self) -> float:
        """Runs the raw cache; returns its perplexity."""
        return self._comparison.prepare()

    def score(self, codec: NamedCodec) -> Score:
        """What `codec` loses on all documents. Needs `prepare` first."""
        start = time.monotonic()
        outcomes = self._comparison.compare(codec.rows)
        kl = torch.cat([o.kl for o in outcomes])
        return Score(
            codec.name, codec.bits, codec.stored_bits,
            excess(torch.cat([o.added for o in outcomes])),
            standard_error([o.added for o in outcomes]), float(kl.mean()),
            float(kl.quantile(RARE)),
            100 * float(torch.cat([o.same for o in outcomes]).float().mean()),
            {p.name: excess(o.added) for p, o in zip(self._comparison.passages, outcomes)},
            time.monotonic() - start)


def excess(added: Tensor) -> float:
    """Perplexity excess in percent of added negative log likelihoods."""
    return 100 * math.expm1(float(added.double().mean()))


def standard_error(added: list[Tensor], block: int = ERROR_BLOCK) -> float:
    """Standard error of the excess, percent: spread of means over blocks of tokens, which are
    nearly independent while neighbouring tokens are not. Infinite with less than two blocks."""
    blocks = torch.cat([x[:len(x) // block * block].view(-1, block).mean(1) for x in added])
    if len(blocks) < 2:
        return math.inf
    return 100 * float(blocks.std()) / len(blocks) ** 0.5
