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
# Rows of logits at once, and tokens of passages that are run together.
HEAD_CHUNK = {"cpu": 128, "cuda": 2048}
BATCH_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 16}
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
    kl_step-th position FP16 [n / kl_step, vocabulary] in chunks."""

    nll: Tensor
    best: Tensor
    log_probabilities: list[Tensor]


def _behind(past: list[Tensor], _: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`Rows` that puts `past` in the place of the first rows."""
    k, v = (torch.cat([x, raw[..., x.shape[-2]:, :]], -2) for x, raw in zip(past, (k, v)))
    return k, v


def _nll(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(1, targets[:, None])[:, 0]


class PastRows(Protocol):
    """`Rows` that also know what becomes of a past."""

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Rows`."""

    def load(self, layer: int, k: Tensor, v: Tensor) -> list[Tensor]:
        """K, V [N, G, P, d] of N pasts of P rows, as far queries see them."""


@dataclass
class _Batch:
    """Passages of one shape, by number, which run together: `passages` [N]; raw K and V of the past
    of every layer, [N, G, P, d]."""

    numbers: list[int]
    passages: list[Passage]
    past: list[Past] | None = None

    @property
    def ids(self) -> Tensor:
        """[N, T]."""
        return torch.stack([passage.ids for passage in self.passages])


def _batches(passages: list[Passage], most_tokens: int) -> list[_Batch]:
    """`passages` in batches of at most `most_tokens`, or of one."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for number, passage in enumerate(passages):
        shapes.setdefault((len(passage.ids), passage.first), []).append(number)
    found = []
    for (tokens, _), numbers in shapes.items():
        most = max(1, most_tokens // tokens)
        found += [_Batch(part, [passages[n] for n in part]) for part in
                  (numbers[begin:begin + most] for begin in range(0, len(numbers), most))]
    return found


class Comparison:
    """Compares codecs with the raw cache on the same passages; raw runs once, in `prepare`."""

    def __init__(self, model: Model, passages: list[Passage], window: Window = Window(),
                 kl_step: int = KL_STEP, past_tokens: int = 0) -> None:
        """`past_tokens`: whole chunks in which no query sees coded rows, so that they run once;
        positions are scored behind them, and `compare` takes `PastRows`."""
        self._model, self._window, self._step = model, window, kl_step
        self._past_tokens = past_tokens
        self._weight = model.head_weight().float()
        device = self._weight.device.type
        self._chunk = HEAD_CHUNK[device]
        self._batches = _batches(passages, BATCH_TOKENS[device])
        self._references: dict[int, _Reference] = {}
        self.passages = passages

    @torch.no_grad()
    def prepare(self) -> float:
        """Runs the raw cache; returns its perplexity."""
        for batch in self._batches:
            if self._past_tokens:
                batch.past = past_of(self._model, batch.ids[:, :self._past_tokens])
            self._references |= {
                number: self._reference(passage, hidden) for number, passage, hidden in
                zip(batch.numbers, batch.passages, self._hidden(batch, same_rows))}
        return math.exp(torch.cat([r.nll for r in self._references.values()]).mean())

    def _scored(self, passage: Passage, hidden: Tensor) -> Tensor:
        """Of hidden states [..., T, D] behind the past, those of positions that are scored."""
        return hidden[..., passage.first - self._past_tokens:-1, :]

    def _hidden(self, batch: _Batch, rows: Rows) -> Tensor:
        """Hidden states [N, n, D] of the positions that are scored."""
        hidden = hidden_states(self._model, batch.ids[:, self._past_tokens:], rows, self._window,
                               batch.past)
        return self._scored(batch.passages[0], hidden)

    def _hidden_behind_past(self, batch: _Batch, rows: PastRows) -> Tensor:
        """As `_hidden`; of the rows only those of the past are asked for."""
        x = self._model.embed(batch.ids[:, self._past_tokens:])
        for layer, past in enumerate(batch.past):
            loaded = rows.load(layer, *(part.float() for part in past))
            x = self._model.layer(layer, x, partial(_behind, loaded), self._window, past)
        return self._scored(batch.passages[0], self._model.final_norm(x))

    def _logs(self, passage: Passage, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Log probabilities [<= chunk, vocabulary] of consecutive positions, and the next ids."""
        targets = passage.ids[passage.first + 1:].to(self._weight.device)
        for part, target in zip(hidden.split(self._chunk), targets.split(self._chunk)):
            yield torch.log_softmax(part @ self._weight.T, -1), target

    def _reference(self, passage: Passage, hidden: Tensor) -> _Reference:
        nll, best, kept = [], [], []
        for logs, target in self._logs(passage, hidden):
            nll.append(_nll(logs, target))
            best.append(logs.argmax(-1))
            kept.append(logs[::self._step].half())
        return _Reference(torch.cat(nll), torch.cat(best), kept)

    def _outcome(self, passage: Passage, hidden: Tensor, reference: _Reference) -> Outcome:
        nll, kl, found, right = [], [], [], []
        for (logs, target), raw in zip(self._logs(passage, hidden), reference.log_probabilities):
            raw = raw.float()
            nll.append(_nll(logs, target))
            kl.append((raw.exp() * (raw - logs[::self._step])).sum(-1))
            found.append(logs.argmax(-1))
            right.append(target)
        best, target = torch.cat(found), torch.cat(right)
        parts = (reference.nll, torch.cat(nll), torch.cat(kl), best == reference.best,
                 reference.best == target, best == target)
        return Outcome(*(part.cpu() for part in parts))

    @torch.no_grad()
    def compare(self, rows: Rows | PastRows) -> list[Outcome]:
        """One outcome for each passage; `rows` of N sequences. Needs `prepare` first."""
        run = self._hidden_behind_past if self._past_tokens else self._hidden
        outcomes = {}
        for batch in self._batches:
            for number, passage, hidden in zip(batch.numbers, batch.passages, run(batch, rows)):
                outcomes[number] = self._outcome(passage, hidden, self._references[number])
        return [outcomes[number] for number in range(len(self.passages))]


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
        outcomes = self._comparison.compare(codec.together)
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
