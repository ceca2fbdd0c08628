"""All measurements of one call: codecs x protocols x lengths x tasks, as one report."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from flashquant.codec_set import CodecSet
from flashquant.evaluate.codecs import FQ_NAMES, NamedCodec, make_codec
from flashquant.evaluate.human_eval import HumanEval
from flashquant.evaluate.generation import Generator
from flashquant.evaluate.prefix import NEW_TOKENS, PrefixEvaluation
from flashquant.evaluate.scoring import Evaluation
from flashquant.evaluate.tasks import Copying, Greedy, Recall, make_look_ups
from flashquant.models import Model
from flashquant.models.text import Document

GREEDY_PREFIX = 2048
GREEDY_TOKENS = 128
TASKS = ("copy", "recall", "greedy", "human-eval")


@dataclass(frozen=True)
class Subject:
    """A codec to measure, and the codec of the last two blocks under the tail rule."""

    codec: NamedCodec
    tail: NamedCodec | None


def make_subjects(names: list[str], codec_sets: dict[str, CodecSet], head_size: int,
                  device: str) -> list[Subject]:
    """`names` with the first of `codec_sets` (label -> set), and `compact@LABEL` of the others.

    Everything has the same tail: near-lossless of the first codec set, where there is one.
    """
    first = next(iter(codec_sets.values()), None)
    tail = make_codec("near-lossless", first, head_size, device) if first else None
    subjects = [Subject(make_codec(name, first, head_size, device), tail) for name in names]
    for label, codec_set in list(codec_sets.items())[1:]:
        codec = make_codec("compact", codec_set, head_size, device)
        own = make_codec("near-lossless", codec_set, head_size, device)
        subjects.append(Subject(replace(codec, name=f"compact@{label}"), own))
    return subjects


@dataclass
class Matrix:
    """Model, documents and subjects; every method adds its part to `report` and calls `keep`."""

    model: Model
    folder: Path
    device: str
    documents: list[Document]
    subjects: list[Subject]
    report: dict
    keep: Callable[[], None]

    def _add(self, part: str, entry: dict | list) -> None:
        self.report.setdefault(part, []).extend(entry if isinstance(entry, list) else [entry])
        self.keep()

    def running(self, tokens: int) -> None:
        """Running protocol at one length."""
        evaluation = Evaluation(self.model, self.documents, tokens)
        perplexity = evaluation.prepare()
        say(f"running, {tokens} tokens: raw perplexity {perplexity:.3f}")
        scores = []
        for subject in self.subjects:
            score = evaluation.score(subject.codec)
            say(f"  {score.name}: excess {score.perplexity_excess_percent:.2f} +- "
                f"{score.standard_error_percent:.2f} %, KL divergence {score.kl_divergence:.5f}, "
                f"{score.seconds:.0f} s")
            scores.append(asdict(score))
        self._add("running", {"tokens": tokens, "raw_perplexity": perplexity, "codecs": scores})

    def prefix(self, prefix: int) -> None:
        """Prefix load of one length, with and without the tail rule."""
        evaluation = PrefixEvaluation(self.model, self.documents, prefix)
        perplexity = evaluation.prepare()
        say(f"prefix of {prefix}: raw perplexity {perplexity:.3f}")
        scores = []
        for subject in self.subjects:
            for tail in ([subject.tail] if subject.tail else []) + [None]:
                score = evaluation.score(subject.codec, tail)
                parts = ", ".join(f"{b.perplexity_excess_percent:.2f}" for b in score.buckets)
                say(f"  {score.name}{', tail rule' if tail else ''}: excess {parts} %, "
                    f"{score.seconds:.0f} s")
                scores.append(asdict(score))
        self._add("prefix", {"prefix": prefix, "new_tokens": NEW_TOKENS - 1,
                             "raw_perplexity": perplexity, "codecs": scores})

    def copy(self) -> None:
        """Copying, running protocol."""
        copying = Copying(self.model, self.documents)
        self._scores("copy", [asdict(copying.score(s.codec)) for s in self.subjects])

    def recall(self, keys: int, seeds: int) -> None:
        """UUID look-up, one passage for each seed 0, 1, ..."""
        context = self.model.context_tokens
        look_ups = [make_look_ups(self.folder, keys, seed, context) for seed in range(seeds)]
        recall = Recall(self.model, look_ups, keys)
        self._scores("recall", [asdict(recall.score(s.codec, s.tail)) for s in self.subjects])

    def greedy(self) -> None:
        """Greedy decoding behind each document's first 2,048 ids."""
        generator = Generator(self.folder, self.device)
        continuations = []
        for document in self.documents:
            before, last = document.ids[:GREEDY_PREFIX - 1], document.ids[GREEDY_PREFIX - 1:]
            cache = generator.prefix_cache(before)
            continuations += generator.decode(cache, before, [last[:1]], GREEDY_TOKENS)
        greedy = Greedy(self.model, self.documents, GREEDY_PREFIX, continuations)
        self._scores("greedy", [asdict(greedy.score(s.codec, s.tail)) for s in self.subjects])

    def human_eval(self, problems: int) -> None:
        """HumanEval behind a few-shot prefix."""
        tests = HumanEval(self.folder, self.device, problems)
        scores = []
        for subject in [Subject(None, None), *self.subjects]:
            scores.append(asdict(tests.score(subject.codec, subject.tail)))
            say(f"  HumanEval {scores[-1]}")
        self._add("human_eval", scores)

    def _scores(self, part: str, scores: list[dict]) -> None:
        for score in scores:
            say(f"  {part} {score}")
        self._add(part, scores)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
