"""Exact tasks: copying a text, looking up a value by key, and how long greedy decoding agrees.

Everything is scored along a given text in one pass: a greedy decoder with the codec gives the text
exactly as long as the best id of every position is the next id.
"""

import random
import statistics
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashquant.codec import PAGE_TOKENS
from flashquant.evaluate.codecs import NamedCodec
from flashquant.evaluate.prefix import LoadedRows, PrefixWindow
from flashquant.evaluate.scoring import Comparison, Outcome, Passage, excess, standard_error
from flashquant.models import Model, load_tokenizer
from flashquant.models.text import Document

COPY_TOKENS = 600
BETWEEN_TOKENS = 700
COPY_BEGIN = 2048
BETWEEN_BEGIN = 1000
LOOK_UPS = 10


@dataclass(frozen=True)
class CopyScore:
    """Second occurrence of a text. `raw_perplexity`: of it, without a codec."""

    name: str
    raw_perplexity: float
    perplexity_excess_percent: float
    standard_error_percent: float
    kl_divergence: float
    top1_agreement_percent: float


class Copying:
    """Texts of 600 ids, 700 others, the same 600 again; the second time is scored (running)."""

    def __init__(self, model: Model, documents: list[Document]) -> None:
        passages = []
        for number, document in enumerate(documents):
            text = document.ids[COPY_BEGIN:COPY_BEGIN + COPY_TOKENS]
            other = documents[(number + 1) % len(documents)].ids
            between = other[BETWEEN_BEGIN:BETWEEN_BEGIN + BETWEEN_TOKENS]
            passages.append(Passage(document.name, torch.cat([text, between, text]),
                                    COPY_TOKENS + BETWEEN_TOKENS))
        self._comparison = Comparison(model, passages, kl_step=1)
        self._raw_perplexity = self._comparison.prepare()

    def score(self, codec: NamedCodec) -> CopyScore:
        """What `codec` loses."""
        outcomes = self._comparison.compare(codec.together)
        added = [o.added for o in outcomes]
        return CopyScore(codec.name, self._raw_perplexity, excess(torch.cat(added)),
                         standard_error(added), float(torch.cat([o.kl for o in outcomes]).mean()),
                         100 * float(torch.cat([o.same for o in outcomes]).float().mean()))


@dataclass(frozen=True)
class LookUps:
    """A passage of pairs and look-ups, and where its answers are: [begin, end) of ids."""

    passage: Passage
    answers: list[tuple[int, int]]


def make_look_ups(model_folder: Path, keys: int, seed: int, context: int) -> LookUps:
    """`keys` pairs of UUIDs, then up to 10 keys with their values, as many as `context` holds."""
    tokenizer = load_tokenizer(model_folder)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    source = random.Random(seed)
    pairs = [[str(uuid.UUID(int=source.getrandbits(128))) for _ in range(2)] for _ in range(keys)]
    ids = encode("Pairs of key and value:\n" + "".join(f'"{k}": "{v}"\n' for k, v in pairs))
    prefix = len(ids) // PAGE_TOKENS * PAGE_TOKENS
    ids += encode("\nLook-ups:\n")
    answers = []
    for key, value in source.sample(pairs, min(keys, LOOK_UPS)):
        question, answer, end = encode(f'"{key}": "'), encode(value), encode('"\n')
        if len(ids) + len(question) + len(answer) > context:
            break
        answers.append((len(ids) + len(question), len(ids) + len(question) + len(answer)))
        ids += question + answer + end
    if not answers:
        raise ValueError(f"--recall-keys: {keys} pairs take {len(ids)} tokens and leave no room "
                         f"for a look-up; the model has {context}")
    return LookUps(Passage(f"seed {seed}", torch.tensor(ids[:context]), prefix), answers)


@dataclass(frozen=True)
class RecallScore:
    """Look-ups of values by key in a loaded prefix: share of answers that greedy decoding gives
    exactly, and mean log probability of the right one, with the raw cache and with the codec."""

    name: str
    look_ups: int
    raw_exact_percent: float
    exact_percent: float
    raw_log_probability: float
    log_probability: float


class Recall:
    """UUID look-up after a prefix load with the tail rule, one passage for each seed."""

    def __init__(self, model: Model, look_ups: list[LookUps]) -> None:
        self._look_ups = look_ups
        self._comparisons = []
        for item in look_ups:
            first = item.passage.first
            self._comparisons.append(Comparison(model, [item.passage], PrefixWindow(prefix=first),
                                                past_tokens=first))
            self._comparisons[-1].prepare()

    def score(self, codec: NamedCodec, tail: NamedCodec | None) -> RecallScore:
        """What `codec` recalls; `tail` as in `PrefixEvaluation.score`."""
        answers = []
        for item, comparison in zip(self._look_ups, self._comparisons):
            first = item.passage.first
            (outcome,) = comparison.compare(LoadedRows(codec, first, tail))
            answers += [_answer(outcome, begin - 1 - first, end - 1 - first)
                        for begin, end in item.answers]
        raw, found, raw_log, log = (statistics.fmean(x) for x in zip(*answers))
        return RecallScore(codec.name, len(answers), 100 * raw, 100 * found, raw_log, log)


def _answer(outcome: Outcome, begin: int, end: int) -> tuple[float, float, float, float]:
    """(raw exact, exact, raw log probability, log probability) of one answer."""
    return (float(outcome.raw_right[begin:end].all()), float(outcome.right[begin:end].all()),
            -float(outcome.raw_nll[begin:end].sum()), -float(outcome.nll[begin:end].sum()))


@dataclass(frozen=True)
class GreedyScore:
    """Ids of greedy decoding before the first that differs from raw. `whole`: share of documents
    where none of `new_tokens` differs, percent."""

    name: str
    new_tokens: int
    mean_agreed_tokens: float
    median_agreed_tokens: float
    whole_percent: float


class Greedy:
    """Greedy decoding after a loaded prefix. `continuations`: what raw decoding gives, ids [n]
    each; the first of them is given, the others are compared."""

    def __init__(self, model: Model, documents: list[Document], prefix: int,
                 continuations: list[Tensor]) -> None:
        passages = [Passage(d.name, torch.cat([d.ids[:prefix], new]), prefix)
                    for d, new in zip(documents, continuations)]
        self._comparison = Comparison(model, passages, PrefixWindow(prefix=prefix),
                                      past_tokens=prefix)
        self._comparison.prepare()
        self._prefix = prefix

    def score(self, codec: NamedCodec, tail: NamedCodec | None) -> GreedyScore:
        """How long `codec` agrees; `tail` as in `PrefixEvaluation.score`."""
        rows = LoadedRows(codec, self._prefix, tail)
        same = [o.same for o in self._comparison.compare(rows)]
        agreed = [float(s.long().cumprod(0).sum()) for s in same]
        return GreedyScore(codec.name, max(map(len, same)),
                           statistics.fmean(agreed), statistics.median(agreed),
                           100 * statistics.fmean(float(s.all()) for s in same))
