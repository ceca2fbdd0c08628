"""Gate: the shipped codec set must not lose more than a quarter more than it did when it came.

The figures are in tests/bench/results/quality_gate.json; `make quality-gate` measures them anew.
"""

import json
import pathlib

import pytest

from flashquant.codec_set import read_codec_set
from flashquant.evaluate.codecs import make_codec
from flashquant.evaluate.plot import draw
from flashquant.evaluate.report import claims_table, tables
from flashquant.evaluate.scoring import Evaluation
from flashquant.models import load_model
from flashquant.models.text import read_documents

ROOT = pathlib.Path(__file__).parents[3]
REPORT = json.loads((ROOT / "tests/bench/results/quality_gate.json").read_text(encoding="utf-8"))
(PART,) = REPORT["running"]
WORSE = 1.25  # the most that a loss may grow


@pytest.fixture(scope="module")
def codec_set():
    return read_codec_set(ROOT / f"codec_sets/{REPORT['codec_sets'][0]['label']}.fqcs")


@pytest.fixture(scope="module")
def evaluation():
    folder = ROOT / "build/models/smollm2"
    files = [ROOT / f"build/text/test/{d['name']}.txt" for d in REPORT["documents"]]
    documents = read_documents(folder, files, PART["tokens"])
    found = Evaluation(load_model(folder), documents, PART["tokens"])
    found.prepare()
    return found


def test_gate_figures_are_of_the_shipped_codec_set(codec_set):
    assert codec_set.id.hex() == REPORT["codec_sets"][0]["id"], "run `make quality-gate`"


@pytest.mark.parametrize("was", PART["codecs"], ids=lambda score: score["name"])
def test_codec_loses_no_more_than_it_did(evaluation, codec_set, was):
    """KL divergence is steady; perplexity is allowed two standard errors besides, because the
    figures may come from a processor that rounds otherwise."""
    found = evaluation.score(make_codec(was["name"], codec_set, codec_set.head_size))
    print(found, "was", was)
    assert found.kl_divergence <= WORSE * was["kl_divergence"]
    assert found.perplexity_excess_percent <= (WORSE * max(was["perplexity_excess_percent"], 0.0)
                                               + 2 * was["standard_error_percent"])


def test_page_shows_the_committed_figures():
    report = json.loads((ROOT / "tests/bench/results/quality.json").read_text(encoding="utf-8"))
    page = (ROOT / "kernels/QUALITY.md").read_text(encoding="utf-8")
    assert tables(report) in page and claims_table(report) in page
    assert draw(report) == (ROOT / "kernels/quality.svg").read_text(encoding="utf-8")
