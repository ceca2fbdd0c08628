"""All measurements of one call: codecs x protocols x lengths x tasks, as one report."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from flashquant.codec_set import CodecSet
from flashquant.evaluate.codecs import FQ_NAMES, NamedCodec, make_codec
from flashquant.evaluate.generation import Generator
from flashquant.evaluate.human_eval import HumanEval
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
    """`names` with the first of `codec_sets` (label -> set), and `compact@LABEL` and
    `near-lossless@LABEL` of the others.

    All others have the same tail: near-lossless of the first codec set, where there is one.
    """
    first = next(iter(codec_sets.values()), None)
    tail = make_codec("near-lossless", first, head_size, device) if first else None
    subjects = [Subject(make_codec(name, first, head_size, device), tail) for name in names]
    for label, codec_set in list(codec_sets.items())[1:]:
        both = [make_codec(name, codec_set, head_size, device) for name in FQ_NAMES]
        subjects += [Subject(replace(codec, name=f"{codec.name}@{label}"), both[1])
                     for codec in both]
    return subjects


@dataclass
class Matrix:
    """Model, documents and subjects. Every method measures what `report` lacks of its part, adds
    it codec by codec and calls `keep` after each."""

    model: Model
    folder: Path
    device: str
    documents: list[Document]
    subjects: list[Subject]
    report: dict
    keep: Callable[[], None]

    def _entry(self, part: str, **what) -> dict:
        """The entry of `part` that has the values of `what`; a new one with them otherwise."""
        entries = self.report.setdefault(part, [])
        for entry in entries:
            if what.items() <= entry.items():
                return entry
        entries.append({**what, "codecs": []})
        return entries[-1]

    def _missing(self, entry: dict) -> list[Subject]:
        """Subjects that `entry` has no figures of; an earlier call may have left some."""
        known = {score["name"] for score in entry["codecs"]}
        return [s for s in self.subjects if s.codec.name not in known]

    def _keep(self, entry: dict, what: str, *scores) -> None:
        """Adds the scores of one codec."""
        for score in scores:
            say(f"{what}: {score}")
        entry["codecs"] += [asdict(score) for score in scores]
        self.keep()

    def running(self, tokens: int) -> None:
        """Running protocol at one length."""
        entry = self._entry("running", tokens=tokens)
        if missing := self._missing(entry):
            evaluation = Evaluation(self.model, self.documents, tokens)
            entry["raw_perplexity"] = evaluation.prepare()
            for subject in missing:
                self._keep(entry, f"running {tokens}", evaluation.score(subject.codec))

    def prefix(self, prefix: int, windows: int) -> None:
        """Prefix load of one length, with and without the tail rule; at most `windows` texts of
        each document."""
        entry = self._entry("prefix", prefix=prefix, new_tokens=NEW_TOKENS - 1, windows=windows)
        if missing := self._missing(entry):
            evaluation = PrefixEvaluation(self.model, self.documents, prefix, windows)
            entry["texts"] = evaluation.texts
            entry["raw_perplexity"] = evaluation.prepare()
            for subject in missing:
                tails = [subject.tail, None] if subject.tail else [None]
                self._keep(entry, f"prefix {prefix}",
                           *(evaluation.score(subject.codec, tail) for tail in tails))

    def copy(self) -> None:
        """Copying, running protocol."""
        entry = self._entry("copy")
        if missing := self._missing(entry):
            copying = Copying(self.model, self.documents)
            for subject in missing:
                self._keep(entry, "copy", copying.score(subject.codec))

    def recall(self, keys: int, seeds: int) -> None:
        """UUID look-up, one passage for each seed 0, 1, ..."""
        entry = self._entry("recall", keys=keys, seeds=seeds)
        if missing := self._missing(entry):
            context = self.model.context_tokens
            look_ups = [make_look_ups(self.folder, keys, seed, context) for seed in range(seeds)]
            recall = Recall(self.model, look_ups)
            for subject in missing:
                self._keep(entry, f"recall {keys}", recall.score(subject.codec, subject.tail))

    def greedy(self) -> None:
        """Greedy decoding behind each document's first 2,048 ids."""
        entry = self._entry("greedy", prefix=GREEDY_PREFIX)
        if missing := self._missing(entry):
            greedy = Greedy(self.model, self.documents, GREEDY_PREFIX, self._continuations())
            for subject in missing:
                self._keep(entry, "greedy", greedy.score(subject.codec, subject.tail))

    def _continuations(self) -> list:
        """What raw greedy decoding gives behind each document's first 2,048 ids."""
        generator = Generator(self.folder, self.device)
        before = torch.stack([d.ids[:GREEDY_PREFIX - 1] for d in self.documents])
        last = [d.ids[GREEDY_PREFIX - 1:GREEDY_PREFIX] for d in self.documents]
        return generator.decode(generator.prefix_cache(before), before, last, GREEDY_TOKENS)

    def human_eval(self, problems: int) -> None:
        """HumanEval behind a few-shot prefix."""
        entry = self._entry("human_eval", problems=problems)
        if missing := self._missing(entry):
            tests = HumanEval(self.folder, self.device, problems)
            entry["raw_pass_percent"] = tests.raw_pass_percent
            for subject in missing:
                self._keep(entry, "HumanEval", tests.score(subject.codec, subject.tail))


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
