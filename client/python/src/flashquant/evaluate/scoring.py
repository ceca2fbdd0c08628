"""How much a codec costs: perplexity, KL divergence, top-1 agreement, against the raw cache.

Running protocol: queries run in chunks of 64 tokens over coded pages, as an engine would; the first
16 and the last 128 to 191 tokens are raw for every codec alike (`models.Window`).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashquant.evaluate.codecs import NamedCodec
from flashquant.models import Model, Rows, Window
from flashquant.models.base import hidden_states, same_rows
from flashquant.models.text import Document

FIRST_SCORED = 256
KL_STEP = 4
ERROR_BLOCK = 64
HEAD_CHUNK = 128


@dataclass(frozen=True)
class Score:
    """What one codec loses. `seconds`: wall time of all documents."""

    name: str
    bits_per_value: float
    stored_bits_per_value: float
    perplexity_excess_percent: float
    standard_error_percent: float
    kl_divergence: float
    top1_agreement_percent: float
    excess_by_document: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class _Reference:
    """Of one document: negative log likelihood [n], top-1 [n], log probabilities of every
    KL_STEP-th position FP16 [n / KL_STEP, vocabulary]."""

    nll: Tensor
    best: Tensor
    log_probabilities: list[Tensor]


def _log_probabilities(weight: Tensor, hidden: Tensor) -> Iterator[Tensor]:
    """Log probabilities [<= HEAD_CHUNK, vocabulary] of consecutive positions, chunk by chunk."""
    for part in hidden.split(HEAD_CHUNK):
        yield torch.log_softmax(part @ weight.T, -1)


def _nll(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(1, targets[:, None])[:, 0]


class Evaluation:
    """Scores codecs on the same documents; the raw reference is computed once."""

    def __init__(self, model: Model, documents: list[Document], tokens: int,
                 window: Window = Window()) -> None:
        """Every document is cut to its first `tokens` ids."""
        self._model, self._window = model, window
        self._documents = [(d.name, d.ids[:tokens]) for d in documents]
        self._first = min(FIRST_SCORED, tokens // 2)
        self._weight = model.head_weight().float()
        self._references: list[_Reference] = []
        self.tokens = tokens

    @torch.no_grad()
    def prepare(self) -> float:
        """Runs the raw cache; returns its perplexity."""
        self._references = [self._reference(ids) for _, ids in self._documents]
        return math.exp(torch.cat([r.nll for r in self._references]).mean())

    def _hidden(self, ids: Tensor, rows: Rows = same_rows) -> Tensor:
        return hidden_states(self._model, ids, rows, self._window)[self._first:-1]

    def _reference(self, ids: Tensor) -> _Reference:
        targets = ids[self._first + 1:].split(HEAD_CHUNK)
        nll, best, kept = [], [], []
        for target, logs in zip(targets, _log_probabilities(self._weight, self._hidden(ids))):
            nll.append(_nll(logs, target))
            best.append(logs.argmax(-1))
            kept.append(logs[::KL_STEP].half())
        return _Reference(torch.cat(nll), torch.cat(best), kept)

    def _compare(self, ids: Tensor, codec: NamedCodec,
                 reference: _Reference) -> tuple[Tensor, Tensor, Tensor]:
        """Of one document: added negative log likelihood [n], KL [n / 4], same top-1 [n]."""
        targets = ids[self._first + 1:].split(HEAD_CHUNK)
        hidden = self._hidden(ids, codec.rows)
        nll, kl, best = [], [], []
        for number, logs in enumerate(_log_probabilities(self._weight, hidden)):
            nll.append(_nll(logs, targets[number]))
            best.append(logs.argmax(-1))
            raw = reference.log_probabilities[number].float()
            kl.append((raw.exp() * (raw - logs[::KL_STEP])).sum(-1))
        return torch.cat(nll) - reference.nll, torch.cat(kl), torch.cat(best) == reference.best

    @torch.no_grad()
    def score(self, codec: NamedCodec) -> Score:
        """What `codec` loses on all documents. Needs `prepare` first."""
        start = time.monotonic()
        parts = [self._compare(ids, codec, reference)
                 for (_, ids), reference in zip(self._documents, self._references)]
        added, kl, same = (torch.cat(column) for column in zip(*parts))
        names = [name for name, _ in self._documents]
        return Score(
            codec.name, codec.bits, codec.stored_bits, _excess(added),
            _standard_error([part[0] for part in parts]), float(kl.mean()),
            100 * float(same.float().mean()),
            {name: _excess(part[0]) for name, part in zip(names, parts)},
            time.monotonic() - start)


def _excess(added: Tensor) -> float:
    """Perplexity excess in percent of added negative log likelihoods."""
    return 100 * math.expm1(float(added.double().mean()))


def _standard_error(added: list[Tensor]) -> float:
    """Standard error of the excess, percent: spread of means over blocks of 64 tokens, which are
    nearly independent while neighbouring tokens are not."""
    blocks = torch.cat([x[:len(x) // ERROR_BLOCK * ERROR_BLOCK].view(-1, ERROR_BLOCK).mean(1)
                        for x in added])
    if len(blocks) < 2:
        return math.inf
    return 100 * float(blocks.std()) / len(blocks) ** 0.5
