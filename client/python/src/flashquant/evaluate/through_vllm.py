"""The loss of a load, measured twice: in vLLM with pages from a node, and by the harness.

Both score the same new tokens behind the same prefixes, computed in the same number type, so their
difference is what the service adds. Everything here is arithmetic; `through_vllm_command` runs it.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashquant.evaluate.codecs import NamedCodec
from flashquant.evaluate.prefix import BUCKETS, ERROR_BLOCK, LoadedRows, PrefixWindow
from flashquant.evaluate.scoring import Comparison, Outcome, Passage, excess, standard_error
from flashquant.models import Model
from flashquant.scoring_plan import Case, Scored


@dataclass(frozen=True)
class Side:
    """One case under one profile, as vLLM or the harness saw it. Of the n scored positions:
    `raw_nll`, `nll` [n] without and with loss; `same` [n]: same best id."""

    raw_nll: Tensor
    nll: Tensor
    same: Tensor

    @property
    def added(self) -> Tensor:
        """Negative log likelihood that the profile adds, [n]."""
        return self.nll - self.raw_nll


@dataclass(frozen=True)
class Pair:
    """One case under one profile. `greedy`: ids that greedy decoding with the profile has in
    common with lossless decoding, in vLLM and in the harness; None: not measured."""

    prefix: int
    stored_bytes: int
    vllm: Side
    harness: Side
    greedy: tuple[int, int] | None


def vllm_side(exact: Scored, lossy: Scored) -> Side:
    """What vLLM measured; `exact`: the same case loaded from exact pages."""
    return Side(torch.tensor(exact.nll), torch.tensor(lossy.nll),
                torch.tensor(lossy.best) == torch.tensor(exact.best))


def harness_sides(model: Model, case: Case, codecs: list[NamedCodec],
                  tail: NamedCodec) -> list[Side]:
    """The harness' prefix protocol on one case, for each codec, with the tail rule."""
    outcomes = _outcomes(model, case.prefix, case.new, codecs, tail)
    return [Side(o.raw_nll, o.nll, o.same) for o in outcomes]


def harness_greedy(model: Model, case: Case, lossless: list[int], codecs: list[NamedCodec],
                   tail: NamedCodec) -> list[int]:
    """For each codec: how many of the ids that vLLM decoded losslessly after the first new one
    the codec would have decoded, up to the first other one. One pass along them tells."""
    outcomes = _outcomes(model, case.prefix, case.new[:1] + lossless, codecs, tail)
    return [agreed(o.right) for o in outcomes]


def _outcomes(model: Model, prefix: list[int], new: list[int], codecs: list[NamedCodec],
              tail: NamedCodec) -> list[Outcome]:
    passage = Passage("", torch.tensor(prefix + new), len(prefix))
    comparison = Comparison(model, [passage], PrefixWindow(prefix=len(prefix)), len(new),
                            len(prefix))
    comparison.prepare()
    return [outcome for codec in codecs for outcome in
            comparison.compare(LoadedRows(codec, len(prefix), tail))]


def agreed(same: Tensor) -> int:
    """Positions before the first False of [n]."""
    return int(same.long().cumprod(0).sum())


def agreed_ids(a: list[int], b: list[int]) -> int:
    """Ids before the first that differs; of the same length."""
    return agreed(torch.tensor(a) == torch.tensor(b))


@dataclass(frozen=True)
class Bucket:
    """New tokens begin + 1 .. end: vLLM, the harness, and vLLM less the harness in points. The
    standard error of the difference is from means of cases: infinite for one."""

    begin: int
    end: int
    perplexity_excess_percent: float
    standard_error_percent: float
    harness_excess_percent: float
    harness_standard_error_percent: float
    difference_points: float
    difference_standard_error: float
    top1_agreement_percent: float
    harness_top1_agreement_percent: float


@dataclass(frozen=True)
class Greedy:
    """Mean ids in common with lossless decoding; `equal_cases`: both sides say the same."""

    cases: int
    vllm_ids: float
    harness_ids: float
    equal_cases: int


@dataclass(frozen=True)
class Group:
    """All cases of one profile and prefix; `prefix_tokens` 0: of all prefixes."""

    profile: str
    prefix_tokens: int
    cases: int
    stored_bytes: int
    buckets: list[Bucket]
    greedy: Greedy | None


def bucket_of(pairs: list[Pair], begin: int, end: int) -> Bucket:
    """Of these cases."""
    def numbers(added: list[Tensor]) -> tuple[float, float]:
        return excess(torch.cat(added)), standard_error(added, ERROR_BLOCK)

    def top1(same: list[Tensor]) -> float:
        return 100 * float(torch.cat(same).float().mean())

    vllm = [pair.vllm.added[begin:end] for pair in pairs]
    harness = [pair.harness.added[begin:end] for pair in pairs]
    (here, here_error), (there, there_error) = numbers(vllm), numbers(harness)
    # A row that two orders of summation code differently is seen by all tokens of its case, so
    # cases, not blocks of tokens, are what differs independently.
    error = standard_error([a - b for a, b in zip(vllm, harness)], end - begin)
    return Bucket(begin, end, here, here_error, there, there_error, here - there, error,
                  top1([pair.vllm.same[begin:end] for pair in pairs]),
                  top1([pair.harness.same[begin:end] for pair in pairs]))


def greedy_of(pairs: list[Pair]) -> Greedy | None:
    """Of the cases where it was measured; None: of none."""
    found = [pair.greedy for pair in pairs if pair.greedy]
    if not found:
        return None
    vllm, harness = (statistics.fmean(column) for column in zip(*found))
    return Greedy(len(found), vllm, harness, sum(a == b for a, b in found))


def group_of(profile: str, prefix: int, pairs: list[Pair]) -> Group:
    """`prefix` 0: all prefixes together."""
    return Group(profile, prefix, len(pairs), sum(pair.stored_bytes for pair in pairs),
                 [bucket_of(pairs, begin, end) for begin, end in BUCKETS], greedy_of(pairs))


def groups_of(pairs: dict[str, list[Pair]]) -> Iterator[Group]:
    """Per profile: each prefix, then all together."""
    for profile, found in pairs.items():
        prefixes = sorted({pair.prefix for pair in found})
        for prefix in prefixes:
            yield group_of(profile, prefix, [p for p in found if p.prefix == prefix])
        if len(prefixes) > 1:
            yield group_of(profile, 0, found)


def table(groups: list[Group]) -> str:
    """Text for a terminal: the first 32 new tokens and all of them."""
    lines = [f"{'profile':<14} {'prefix':>6} {'new':>7} {'vLLM excess %':>16} "
             f"{'harness excess %':>16} {'difference':>17} {'top-1 %':>13} {'greedy':>11}"]
    for group in groups:
        ids = group.greedy
        greedy = f"{ids.vllm_ids:.1f} {ids.harness_ids:.1f}" if ids else ""
        for bucket in (group.buckets[0], group.buckets[-1]):
            lines.append(_line(group, bucket, greedy))
    return "\n".join(lines)


def _line(group: Group, bucket: Bucket, greedy: str) -> str:
    new = f"{bucket.begin + 1}-{bucket.end}"
    here = f"{bucket.perplexity_excess_percent:.2f} +- {bucket.standard_error_percent:.2f}"
    there = f"{bucket.harness_excess_percent:.2f} +- {bucket.harness_standard_error_percent:.2f}"
    apart = f"{bucket.difference_points:.3f} +- {bucket.difference_standard_error:.3f}"
    top1 = f"{bucket.top1_agreement_percent:.2f} {bucket.harness_top1_agreement_percent:.2f}"
    return (f"{group.profile:<14} {group.prefix_tokens or 'all':>6} {new:>7} {here:>16} "
            f"{there:>16} {apart:>17} {top1:>13} {greedy:>11}")
