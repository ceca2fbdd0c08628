"""Evaluation: scores, rivals, and the whole command on a tiny random model."""

import json
import math
import random

import pytest
import torch
from test_codec_set import random_codec_set
from tiny_model import make_model, make_texts

from flashquant.cli import main
from flashquant.codec_set import write_codec_set
from flashquant.evaluate.codecs import CODEC_NAMES, NamedCodec, make_codec, slab_bytes
from flashquant.evaluate.scoring import Evaluation
from flashquant.models import load_model
from flashquant.models.base import same_rows
from flashquant.models.text import Document
from flashquant.rivals import RIVALS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make_model(path / "model")
    make_texts(path / "test", 2, 2)
    codec_set = random_codec_set(layers=2, kv_heads=2)
    for name in ("A", "Ai"):
        codec_set.rows[name] = torch.eye(64).numpy()
    write_codec_set(codec_set, path / "set.fqcs")
    return path


@pytest.fixture(scope="module")
def evaluation(folder):
    generator = torch.Generator().manual_seed(3)
    documents = [Document(n, torch.randint(256, (600,), generator=generator)) for n in "ab"]
    found = Evaluation(load_model(folder / "model"), documents, 512)
    assert found.prepare() > 1
    return found


def test_score_raw_rows_no_loss(evaluation):
    score = evaluation.score(NamedCodec("raw", same_rows, 16.0, 16.0))
    assert score.perplexity_excess_percent == 0 and score.standard_error_percent == 0
    assert score.top1_agreement_percent == 100 and abs(score.kl_divergence) < 2e-3
    assert set(score.excess_by_document) == {"a", "b"}


def test_score_destroyed_rows_lose(evaluation):
    score = evaluation.score(NamedCodec("zero", lambda _, k, v: (k * 0, v * 0), 0.0, 0.0))
    assert score.kl_divergence > 0.01 and score.top1_agreement_percent < 100
    assert 0 < score.standard_error_percent < math.inf


def test_score_fp8_better_than_2_bits(evaluation):
    fp8, two = (evaluation.score(make_codec(n, None, 64)) for n in ("fp8", "hadamard-lm2"))
    assert fp8.kl_divergence < two.kl_divergence / 4
    assert (fp8.bits_per_value, two.bits_per_value) == (8.0, 2.25)


ERROR = {"fp8": 0.001, "q4_0": 0.01, "hadamard-lm2": 0.125, "universal": 0.0125}


@pytest.mark.parametrize("name", RIVALS)
def test_rival_gaussian_rows_expected_error(name):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    x = torch.randn(3, 200, 64, generator=torch.Generator().manual_seed(seed)) * 3
    found = RIVALS[name].apply(x)
    assert found.shape == x.shape
    assert (found - x).pow(2).mean() / x.pow(2).mean() < ERROR[name]


@pytest.mark.parametrize("name", RIVALS)
def test_rival_zero_rows_zero(name):
    assert RIVALS[name].apply(torch.zeros(2, 3, 64)).abs().max() < 1e-6


def test_slab_bytes_by_hand():
    codec_set = random_codec_set(layers=2, kv_heads=3)
    pages = sum(64 * (sum(p.k) + sum(p.v)) for line in codec_set.profile_of
                for p in (codec_set.profiles[i] for i in line))
    assert slab_bytes(codec_set, refined=False) == pages + 192  # 128 + 6 * 8, to 64


def run_eval(folder, *extra):
    texts = sorted(str(f) for f in (folder / "test").iterdir())
    return main(["eval", "--model", str(folder / "model"), "--text", *texts, "--tokens", "512",
                 "--threads", "1", *extra])


def test_eval_command_table_and_json(folder, capfd):
    assert run_eval(folder, "--codec-set", str(folder / "set.fqcs")) == 0
    table = capfd.readouterr()
    assert len(table.out.splitlines()) == 1 + len(CODEC_NAMES) and "warning" not in table.err
    assert run_eval(folder, "--codecs", "q4_0", "fp8", "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert [codec["name"] for codec in report["codecs"]] == ["q4_0", "fp8"]
    assert report["tokens"] == 512 and report["raw_perplexity"] > 1
    assert {"perplexity_excess_percent", "standard_error_percent", "kl_divergence",
            "top1_agreement_percent", "bits_per_value"} <= set(report["codecs"][0])


def test_eval_command_no_codec_set_refused(folder, capfd):
    assert run_eval(folder, "--codecs", "compact") == 1
    assert "'compact' needs a codec set" in capfd.readouterr().err


def test_eval_command_other_shape_refused(folder, tmp_path, capfd):
    write_codec_set(random_codec_set(layers=3, kv_heads=2), tmp_path / "other.fqcs")
    assert run_eval(folder, "--codec-set", str(tmp_path / "other.fqcs")) == 1
    assert "layers: the codec set has 3, the model 2" in capfd.readouterr().err


def test_eval_command_not_a_model_refused(folder, tmp_path, capfd):
    assert main(["eval", "--model", str(tmp_path), "--text", "x", "--codecs", "fp8"]) == 1
    assert "no config.json" in capfd.readouterr().err


def test_eval_command_longer_than_calibrated_warns(folder, tmp_path, capfd):
    codec_set = random_codec_set(layers=2, kv_heads=2)
    codec_set.calibrated_tokens = 256
    write_codec_set(codec_set, tmp_path / "short.fqcs")
    assert run_eval(folder, "--codec-set", str(tmp_path / "short.fqcs"), "--codecs", "fp8") == 0
    assert "calibrated at 256 tokens, this measures 512" in capfd.readouterr().err
