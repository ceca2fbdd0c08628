"""Evaluation: scores, rivals, and the whole command on a tiny random model."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree

import pytest
import torch
from test_codec_set import random_codec_set
from tiny_model import make_model, make_texts

from flashquant.cli import main
from flashquant.codec_set import write_codec_set
from flashquant.evaluate.codecs import NamedCodec, make_codec
from flashquant.evaluate.command import DEFAULT_CODECS
from flashquant.evaluate.report import tables
from flashquant.evaluate.scoring import Evaluation
from flashquant.models import load_model
from flashquant.models.base import same_rows
from flashquant.models.text import Document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make_model(path / "model", max_position_embeddings=4096)
    make_texts(path / "test", 2, 2)
    codec_set = random_codec_set(layers=2, kv_heads=2)
    for name in ("A", "Ai"):
        codec_set.rows[name] = torch.eye(64).numpy()
    for name in ("set", "other"):
        write_codec_set(codec_set, path / f"{name}.fqcs")
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


def run_eval(folder, *extra):
    texts = sorted(str(f) for f in (folder / "test").iterdir())
    return main(["eval", "--model", str(folder / "model"), "--text", *texts, "--tokens", "512",
                 "--threads", "1", *extra])


def test_eval_command_table_and_json(folder, capfd):
    assert run_eval(folder, "--codec-set", str(folder / "set.fqcs")) == 0
    table = capfd.readouterr()
    named = [line.split()[1] for line in table.out.splitlines() if line.startswith("| ")]
    assert named[-len(DEFAULT_CODECS):] == DEFAULT_CODECS and "warning" not in table.err
    assert run_eval(folder, "--codecs", "q4_0", "fp8", "--json") == 0
    report = json.loads(capfd.readouterr().out)
    part, = report["running"]
    assert [codec["name"] for codec in part["codecs"]] == ["q4_0", "fp8"]
    assert part["tokens"] == 512 and part["raw_perplexity"] > 1
    assert {"perplexity_excess_percent", "standard_error_percent", "kl_divergence",
            "kl_divergence_999", "top1_agreement_percent", "bits_per_value"} <= set(
                part["codecs"][0])
    assert report["commit"] and report["machine"]["processor"]
    assert [d["name"] for d in report["documents"]] == ["text-2-0", "text-2-1"]


NAMES = ["compact", "near-lossless", "kivi-2", "pca", "wush-lm2"]


def test_eval_command_everything_written(folder, tmp_path, capfd):
    report_file, plot = tmp_path / "deep/report.json", tmp_path / "plot.svg"
    assert run_eval(folder, "--codec-set", str(folder / "set.fqcs"), str(folder / "other.fqcs"),
                    "--codecs", *NAMES, "--protocol", "running", "prefix", "--prefix", "256",
                    "--prefix-windows", "2", "--tasks", "copy", "recall", "--recall-keys", "4",
                    "--recall-seeds", "2", "-o", str(report_file), "--plot", str(plot)) == 0
    out = capfd.readouterr().out
    report = json.loads(report_file.read_text())
    assert out.strip() == tables(report)
    names = [*NAMES, "compact@other", "near-lossless@other"]
    assert [s["name"] for s in report["running"][0]["codecs"]] == names
    for part in ("copy", "recall"):
        assert [s["name"] for s in report[part][0]["codecs"]] == names
    found = report["prefix"][0]["codecs"]
    assert [s["tail_rule"] for s in found] == [True, False] * len(names)
    assert [b["end"] for b in found[0]["buckets"]] == [32, 128, 511, 511]
    assert (report["prefix"][0]["windows"], report["prefix"][0]["texts"]) == (2, 4)
    assert report["recall"][0]["codecs"][0]["look_ups"] == 8
    picture = xml.etree.ElementTree.fromstring(plot.read_text())
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * len(names)


def test_commands_start_without_grpc():
    """A machine that only calibrates need not have it."""
    program = ("import sys; sys.modules['grpc'] = None; from flashquant.cli import main; "
               "main(['eval', '--help'])")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                           check=False)
    assert found.returncode == 0 and "--codec-set" in found.stdout, found.stderr


def test_commands_without_torch_say_what_to_install():
    """As after `pip install ./client/python`, which is all that vLLM needs. What is installed is
    this tree: no registry has a package of ours by that name."""
    program = ("import sys; sys.modules['torch'] = None; from flashquant.cli import main; "
               "sys.exit(main(['--help']))")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                           check=False)
    assert found.returncode == 1 and "'./client/python[calibrate]'" in found.stderr, found.stderr


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


def test_eval_command_goes_on_where_it_ended(folder, tmp_path, capfd):
    report_file = str(tmp_path / "report.json")
    assert run_eval(folder, "--codecs", "fp8", "-o", report_file) == 0
    first = json.loads((tmp_path / "report.json").read_text())
    assert run_eval(folder, "--codecs", "q4_0", "fp8", "-o", report_file) == 0
    second = json.loads((tmp_path / "report.json").read_text())
    assert [s["name"] for s in second["running"][0]["codecs"]] == ["fp8", "q4_0"]
    assert second["running"][0]["codecs"][0] == first["running"][0]["codecs"][0]
    assert "goes on where" in capfd.readouterr().err
    sets = [str(folder / f"{name}.fqcs") for name in ("set", "other")]
    assert run_eval(folder, "--codec-set", *sets, "--codecs", "-o", report_file) == 0
    third = json.loads((tmp_path / "report.json").read_text())
    assert [s["name"] for s in third["running"][0]["codecs"]] == [
        "fp8", "q4_0", "compact@other", "near-lossless@other"]
    assert [s["label"] for s in third["codec_sets"]] == ["set", "other"]
    assert run_eval(folder, "--codecs", "fp8", "-o", report_file, "--commit", "other") == 0
    assert "another commit: measured anew" in capfd.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["--prefix", "300"], "--prefix: found 300, expected a multiple of 64"),
    (["--prefix", "128"], ">= 256"),
    (["--prefix-windows", "0"], "--prefix-windows: found 0, expected >= 1"),
    (["--tasks", "recall", "--recall-keys", "90"], "--recall-keys: 90 pairs take"),
    (["--protocol", "--plot", "x.svg"], "--plot: found no running protocol"),
])
def test_eval_command_bad_input_refused(folder, capfd, arguments, message):
    assert run_eval(folder, "--codecs", "fp8", *arguments) == 1
    assert message in capfd.readouterr().err


def test_eval_command_longer_than_calibrated_warns(folder, tmp_path, capfd):
    codec_set = random_codec_set(layers=2, kv_heads=2)
    codec_set.calibrated_tokens = 256
    write_codec_set(codec_set, tmp_path / "short.fqcs")
    assert run_eval(folder, "--codec-set", str(tmp_path / "short.fqcs"), "--codecs", "fp8") == 0
    assert "calibrated at 256 tokens, this measures 512" in capfd.readouterr().err
