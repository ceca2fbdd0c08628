"""What a report says about the promises that fq was built to keep: bound and figure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flashquant.rivals import RIVALS

FQ_PREFIXES = ("compact", "near-lossless")
RUNNING_EXCESS = {2048: 1.3, 4096: 1.5, 8192: 2.0}
RATIOS = {"interior": 7.5, "4096": 7.0, "8192": 7.3, "32768": 7.45}
PREFIX_ALL, PREFIX_FIRST = 1.2, 4.0
LEAST_TOP1, COPY_EXCESS = 93.0, 4.0
THREE_BITS, THREE_BITS_EXCESS = (3.0, 3.1), 0.9
NEAR_LOSSLESS_EXCESS = 0.25
TWO_BITS, SHARE_OF_BEST_RIVAL = (2.0, 2.3), 1 / 8
FOUR_BITS = (4.2, 4.5)


@dataclass(frozen=True)
class Claim:
    """`figure` must be at most `bound`, or at least if `least`."""

    text: str
    bound: float
    figure: float
    least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound."""
        return self.figure >= self.bound if self.least else self.figure <= self.bound


def _of(part: dict, name: str) -> dict | None:
    return next((s for s in part["codecs"] if s["name"] == name), None)


def _between(part: dict, bits: tuple[float, float], ours: bool) -> list[dict]:
    """Our scores, or those of rivals without calibration, whose bits lie in `bits`."""
    return [s for s in part["codecs"] if bits[0] <= s["bits_per_value"] <= bits[1]
            and (s["name"].startswith(FQ_PREFIXES) if ours else s["name"] in RIVALS)]


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of `points` (bits, loss) that no other one beats with as few bits, by bits."""
    kept: list[tuple[float, float]] = []
    for bits, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((bits, loss))
    return kept


def curve_at(points: list[tuple[float, float]], bits: float) -> float | None:
    """Our loss at `bits`: between two of our best points (bits, loss) along the straight line of
    its logarithm, behind the last one that point's; None before the first."""
    points = front(points)
    if not points or bits < points[0][0]:
        return None
    for (a, low), (b, high) in zip(points, points[1:]):
        if a <= bits <= b:
            share = (bits - a) / (b - a)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return points[-1][1]


def _ratio_claims(report: dict) -> Iterator[Claim]:
    for codec_set in report["codec_sets"][:1]:
        for length, bound in RATIOS.items():
            where = "inside a chain" if length == "interior" else f"of {length} tokens"
            yield Claim(f"compact: ratio {where}", bound, codec_set["ratios"]["compact"][length],
                        True)


def _running_claims(part: dict) -> Iterator[Claim]:
    where = f"running {part['tokens']}"
    compact, near = _of(part, "compact"), _of(part, "near-lossless")
    if compact:
        if bound := RUNNING_EXCESS.get(part["tokens"]):
            yield Claim(f"compact: excess %, {where}", bound, compact["perplexity_excess_percent"])
        yield Claim(f"compact: top-1 %, {where}", LEAST_TOP1, compact["top1_agreement_percent"],
                    True)
        if rivals := _between(part, TWO_BITS, False):
            best = min(s["perplexity_excess_percent"] for s in rivals)
            yield Claim("compact: excess over that of the best rival without calibration at "
                        f"2.0-2.3 bits, {where}", SHARE_OF_BEST_RIVAL,
                        compact["perplexity_excess_percent"] / best)
    for score in _between(part, THREE_BITS, True):
        yield Claim(f"{score['bits_per_value']:.2f} bits: excess %, {where}", THREE_BITS_EXCESS,
                    score["perplexity_excess_percent"])
    if near:
        yield Claim(f"near-lossless: excess %, {where}", NEAR_LOSSLESS_EXCESS,
                    near["perplexity_excess_percent"])
        for rival in _between(part, FOUR_BITS, False):
            yield Claim(f"near-lossless: KL divergence, at most that of {rival['name']}, {where}",
                        rival["kl_divergence"], near["kl_divergence"])


def _curve_claims(part: dict, first: bool) -> Iterator[Claim]:
    """Every rival against our curve at its own bits, by KL divergence, which noise hardly moves:
    each at the first length, the closest one at others."""
    points = [(s["bits_per_value"], s["kl_divergence"]) for s in part["codecs"]
              if s["name"].startswith(FQ_PREFIXES)]
    found = []
    for rival in part["codecs"]:
        ours = curve_at(points, rival["bits_per_value"])
        if ours is not None and not rival["name"].startswith(FQ_PREFIXES):
            found.append(Claim(
                f"our curve at {rival['bits_per_value']:.2f} bits below {rival['name']}: "
                f"KL divergence, running {part['tokens']}", rival["kl_divergence"], ours))
    if not first and found:
        found = [max(found, key=lambda claim: claim.figure / claim.bound)]
    yield from found


def _prefix_claims(part: dict) -> Iterator[Claim]:
    for score in part["codecs"]:
        if score["name"] == "compact" and score["tail_rule"]:
            where = f"behind a loaded prefix of {part['prefix']}"
            first, everything = score["buckets"][0], score["buckets"][-1]
            yield Claim(f"compact, tail rule: excess %, 511 tokens {where}", PREFIX_ALL,
                        everything["perplexity_excess_percent"])
            yield Claim(f"compact, tail rule: excess %, first 32 tokens {where}", PREFIX_FIRST,
                        first["perplexity_excess_percent"])


def claims(report: dict) -> list[Claim]:
    """All claims that `report` has figures for."""
    found = list(_ratio_claims(report))
    for part in report.get("running", []):
        found += _running_claims(part)
    for part in report.get("prefix", []):
        found += _prefix_claims(part)
    for part in report.get("copy", []):
        if compact := _of(part, "compact"):
            found.append(Claim("compact: excess %, copying", COPY_EXCESS,
                               compact["perplexity_excess_percent"]))
    for number, part in enumerate(report.get("running", [])):
        found += _curve_claims(part, number == 0)
    return found
