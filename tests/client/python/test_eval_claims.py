"""Promises checked against a report made by hand."""

import pytest

from flashquant.evaluate.claims import claims, curve_at, front
from flashquant.evaluate.report import claims_table


def score(name, bits, excess, kl, top1=95.0):
    return {"name": name, "bits_per_value": bits, "perplexity_excess_percent": excess,
            "kl_divergence": kl, "top1_agreement_percent": top1}


def report(**changes):
    ratios = {"interior": 7.51, "4096": 7.19, "8192": 7.2, "32768": 7.47}
    codecs = [score("compact", 2.12, 0.5, 0.01), score("near-lossless", 4.12, 0.1, 0.001),
              score("compact@three", 3.06, 0.95, 0.004), score("hadamard-lm2", 2.25, 8.0, 0.09),
              score("pca", 2.12, 1.0, 0.03), score("q4_0", 4.5, 0.8, 0.0005)]
    buckets = [{"perplexity_excess_percent": x} for x in (4.5, 1.0, 0.5, 0.6)]
    prefix = {"prefix": 1024, "codecs": [
        {"name": "compact", "tail_rule": tail, "buckets": buckets} for tail in (True, False)]}
    return {"codec_sets": [{"ratios": {"compact": ratios}}], "prefix": [prefix],
            "running": [{"tokens": 2048, "codecs": codecs}],
            "copy": [{"codecs": [score("compact", 2.12, 4.2, 0.1)]}]} | changes


def test_claims_kept_and_not():
    broken = {c.text for c in claims(report()) if not c.met}
    assert broken == {
        "compact: ratio of 8192 tokens", "3.06 bits: excess %, running 2048",
        "near-lossless: KL divergence, at most that of q4_0, running 2048",
        "our curve at 4.50 bits below q4_0: KL divergence, running 2048",
        "compact, tail rule: excess %, first 32 tokens behind a loaded prefix of 1024",
        "compact: excess %, copying"}


def test_claims_best_rival_is_one_without_calibration():
    found = {c.text.split(",")[0]: c for c in claims(report())}
    share = found["compact: excess over that of the best rival without calibration at 2.0-2.3 bits"]
    assert share.figure == pytest.approx(0.5 / 8.0) and share.met


def test_claims_without_figures_none():
    assert claims({"codec_sets": []}) == []


def test_curve_at_between_points_and_outside():
    points = [(4.0, 0.001), (2.0, 0.1)]
    assert curve_at(points, 3.0) == pytest.approx(0.01)
    assert curve_at(points, 8.0) == 0.001 and curve_at(points, 1.9) is None
    assert curve_at([], 3.0) is None


def test_front_drops_what_another_beats():
    assert front([(2.0, 0.2), (2.0, 0.1), (3.0, 0.15), (4.0, 0.01)]) == [(2.0, 0.1), (4.0, 0.01)]
    assert front([]) == []


def test_claims_curve_at_other_lengths_closest_rival_only():
    parts = [{"tokens": n, "codecs": report()["running"][0]["codecs"]} for n in (2048, 4096)]
    found = [c.text for c in claims(report(running=parts)) if c.text.startswith("our curve")]
    assert len(found) == 4 and [text for text in found if text.endswith("4096")] == [
        "our curve at 4.50 bits below q4_0: KL divergence, running 4096"]


def test_claims_table_shows_bounds():
    lines = claims_table(report()).splitlines()
    assert "| compact: excess %, running 2048 | <= 1.3 | 0.5 | yes |" in lines
    assert "| compact: ratio of 8192 tokens | >= 7.3 | 7.2 | **no** |" in lines
