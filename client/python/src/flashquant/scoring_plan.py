"""What `flashquant eval-vllm` asks of its vLLM process (vllm/scoring.py), and what comes back."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """`prefix`: ids of whole blocks; `new`: ids behind it. `name` keeps its keys apart.
    `greedy_tokens`: how many to decode after the first of `new`; may be 0."""

    name: str
    prefix: list[int]
    new: list[int]
    greedy_tokens: int


@dataclass(frozen=True)
class Plan:
    """`model`, `codec_set`: paths; `dtype`: of vLLM; `endpoint`: of the node."""

    model: str
    codec_set: str
    dtype: str
    endpoint: str
    profiles: list[str]
    cases: list[Case]


@dataclass(frozen=True)
class Scored:
    """One case under one profile, its prefix loaded.

    Of the n new tokens but the first: negative log likelihood [n], most likely token [n].
    `greedy` [greedy_tokens]: what follows the first new token.
    """

    case: str
    profile: str
    loaded_tokens: int
    stored_bytes: int
    nll: list[float]
    best: list[int]
    greedy: list[int]


def write_plan(plan: Plan, file: Path) -> None:
    """As JSON."""
    file.write_text(json.dumps(asdict(plan)), encoding="utf-8")


def read_plan(file: Path) -> Plan:
    """What write_plan has written."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    return Plan(**{**fields, "cases": [Case(**case) for case in fields["cases"]]})


def write_results(results: list[Scored], file: Path) -> None:
    """As JSON."""
    file.write_text(json.dumps([asdict(scored) for scored in results]), encoding="utf-8")


def read_results(file: Path) -> list[Scored]:
    """What write_results has written."""
    return [Scored(**fields) for fields in json.loads(file.read_text(encoding="utf-8"))]
