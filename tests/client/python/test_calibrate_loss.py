"""The figures that a codec set carries, and the picture of its bits."""

import copy
import xml.dom.minidom

import numpy as np
import pytest
import torch
from test_codec_set import random_codec_set
from tiny_model import make_model, make_texts

from flashquant.calibrate import inspect
from flashquant.calibrate.loss import expected_error, measure_losses
from flashquant.cli import main
from flashquant.codec import row_codecs
from flashquant.codec_set import read_codec_set, write_codec_set
from flashquant.models import load_model
from flashquant.models.base import hidden_states
from flashquant.models.text import read_documents


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A tiny model, its codec set and the documents that its loss was measured on."""
    path = tmp_path_factory.mktemp("tiny")
    make_model(path / "model")
    texts, tests = make_texts(path / "calibration", 2, 1), make_texts(path / "test", 2, 2)
    assert main(["calibrate", "--model", str(path / "model"), "--text", *texts, "--test-text",
                 *tests, "--sequences", "640:1", "512:1", "--test-tokens", "512", "--loss-tokens",
                 "1024", "--threads", "1", "-o", str(path / "a.fqcs")]) == 0
    documents = read_documents(path / "model", [path / t for t in tests], 512)
    return load_model(path / "model"), read_codec_set(path / "a.fqcs"), documents


def test_calibrate_stores_error_and_losses(calibrated):
    model, codec_set, documents = calibrated
    assert codec_set.expected_error == expected_error(codec_set, model, documents, 512)
    assert [(loss["profile"], loss["tokens"]) for loss in codec_set.loss_by_length] == [
        ("compact", 1024), ("near-lossless", 1024)]
    # Measured alone, the shorter length gives what it gave as the beginning of the longer one.
    again = measure_losses(codec_set, model, documents, [512], lambda _: None)
    for entry, name in zip(again, ("compact", "near-lossless")):
        assert entry.pop("profile") == name
        stored = codec_set.loss[name]
        assert entry["text"] == stored["text"] and entry["tokens"] == 512
        assert entry["kl_divergence"] == pytest.approx(stored["kl_divergence"], rel=1e-2)
        assert entry["standard_error_percent"] == pytest.approx(
            stored["standard_error_percent"], rel=1e-2)


def test_expected_error_is_that_of_the_rows(calibrated):
    """Once more, from all whole blocks beyond the first, straight from the definition."""
    model, codec_set, documents = calibrated
    sums = np.zeros((2, 2))  # K of layer 1, head 0: [error, whole] of both profiles

    def look(layer, k, v):
        if layer == 1:
            codec = row_codecs(codec_set, 1, 0)[0]
            u = codec.components(k[0, 64:512])
            base, rest = codec.encode(u, torch.zeros(len(u), dtype=torch.bool))
            weight = torch.from_numpy(codec_set.rows["weight"][1, 0, 0].copy())
            for n, found in enumerate((codec.values(base, None), codec.values(base, rest))):
                sums[n] += [float((x ** 2 * weight).sum()) for x in (u - found, u)]
        return k, v

    with torch.no_grad():
        for document in documents:
            hidden_states(model, document.ids[:512], look)
    for n, name in enumerate(("compact", "near-lossless")):
        found = codec_set.expected_error[name][1][0][0]
        assert found == pytest.approx(sums[n, 0] / sums[n, 1], rel=1e-3)
    assert sums[1, 0] < sums[0, 0]


def test_expected_error_grows_with_damage(calibrated):
    model, codec_set, documents = calibrated
    damaged = copy.deepcopy(codec_set)
    damaged.rows["base"]["class2"][0, 0, 0] = 0  # all entries of one table are zero
    damaged.rows["base"]["class4"][0, 0, 0] = 0
    found = expected_error(damaged, model, documents, 512)["compact"]
    before = codec_set.expected_error["compact"]
    assert found[0][0][0] > 2 * before[0][0][0]
    assert found[1] == before[1] and found[0][1] == before[0][1]


@pytest.mark.parametrize("value,message", [
    ("1025", "--loss-tokens: found 1025, the model has 1024"),
    ("100", "--loss-tokens: found 100, expected >= 512")])
def test_calibrate_bad_loss_tokens_refused(tmp_path, capfd, value, message):
    texts = make_texts(tmp_path / "t", 2, 1)
    arguments = ["calibrate", "--model", str(make_model(tmp_path / "m")), "--text", *texts, "-o",
                 str(tmp_path / "a.fqcs"), "--test-tokens", "512", "--loss-tokens", value]
    assert main(arguments) == 1
    assert message in capfd.readouterr().err


def test_bits_of_a_set_sum_to_its_rate():
    codec_set = random_codec_set(layers=3, kv_heads=2)
    for refined in (False, True):
        found = inspect.bits(codec_set, refined)
        assert found.shape == (3, 2, 2)
        assert found.mean() == pytest.approx(codec_set.bits_per_value(refined))


def test_text_picture_shows_every_layer_and_loss(calibrated):
    picture = inspect.text_picture(calibrated[1])
    lines = picture.splitlines()
    assert sum(line.split()[:1] in (["0"], ["1"]) for line in lines) == 4
    assert f"compact: {calibrated[1].bits_per_value(False):.3f} bits/value" in picture
    assert sum("+-" in line for line in lines) == 4
    assert any(bar in picture for bar in inspect.BARS)


def test_svg_picture_has_a_cell_for_each_row_codec(tmp_path):
    write_codec_set(random_codec_set(layers=4, kv_heads=3), tmp_path / "a.fqcs")
    found = ["calibrate", "--inspect", str(tmp_path / "a.fqcs"), "-o", str(tmp_path / "a.svg")]
    assert main(found) == 0
    drawing = xml.dom.minidom.parse(str(tmp_path / "a.svg"))
    assert len(drawing.getElementsByTagName("title")) == 2 * 4 * 3 * 2
    width = int(drawing.documentElement.getAttribute("width"))
    cells = drawing.getElementsByTagName("rect")[1:]  # the first is the background
    assert max(int(c.getAttribute("x")) + int(c.getAttribute("width")) for c in cells) <= width


def test_inspect_prints_and_refuses(tmp_path, capfd):
    write_codec_set(random_codec_set(), tmp_path / "a.fqcs")
    assert main(["calibrate", "--inspect", str(tmp_path / "a.fqcs")]) == 0
    assert "near-lossless: " in capfd.readouterr().out
    arguments = ["calibrate", "--inspect", str(tmp_path / "a.fqcs"), "-o", str(tmp_path / "a.png")]
    assert main(arguments) == 1
    assert "expected a file .svg" in capfd.readouterr().err
    assert main(["calibrate", "--inspect", str(tmp_path / "none.fqcs")]) == 1
    assert main(["calibrate"]) == 1
    assert "--model: missing, needed unless --inspect is given" in capfd.readouterr().err
