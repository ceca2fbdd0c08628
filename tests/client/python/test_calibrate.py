"""Calibration: transforms, allocation, tables, and the whole command on a tiny random model."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import make_model, make_texts

from flashquant.calibrate.allocation import (DISTORTION, LEVELS, allocate, allocate_in_groups,
                                             gaussian_error, merge_heads, unit_channels)
from flashquant.calibrate.command import MOST_DRAWS, SEQUENCES, draws_for, split_texts
from flashquant.calibrate.gradients import OUTPUT_SHARE, LayerInputs, draw_labels
from flashquant.calibrate.statistics import Sequence, Statistics, measure
from flashquant.calibrate.tables import chain_words, fit_tables, half_words, k_means
from flashquant.calibrate.transform import fit_transform
from flashquant.cli import main
from flashquant.codec import PartCodec
from flashquant.codec_set import chain_values, half_pairs, read_codec_set
from flashquant.models import Window, load_model
from flashquant.models.base import hidden_states
from flashquant.models.text import Document, spread_sequences


@pytest.fixture
def seed():
    value = random.randrange(1 << 30)
    print("seed", value)
    torch.manual_seed(value)
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make_model(path / "model")
    make_texts(path / "calibration", 3, 1)
    make_texts(path / "test", 2, 2)
    return path


def random_error(seed, heads=40, units=16):
    """Errors that fall with the class, each unit in its own way."""
    source = np.random.default_rng(seed)
    error = gaussian_error(np.exp(source.normal(0, 3, (heads, units))))
    error[..., 1:] *= np.sort(source.uniform(0.5, 1, (heads, units, 4)))[..., ::-1]
    return error


def test_transform_whitens_and_diagonalises_loss(seed):
    x, y = torch.randn(2, 3, 500, 64).double() * torch.logspace(0, -0.5, 64).double()
    mix = torch.randn(64, 64).double()
    covariance, fisher = (z.transpose(1, 2) @ z / 500 for z in (x, y @ mix))
    t = fit_transform(torch.zeros(3, 64), covariance, fisher, damping=0.0)
    assert torch.allclose(t.A @ covariance @ t.A.transpose(1, 2), torch.eye(64).double(), atol=2e-3)
    loss = t.Ai.transpose(1, 2) @ fisher @ t.Ai
    assert torch.allclose(loss, torch.diag_embed(t.weight), atol=1e-6 * float(t.weight.max()))
    assert (t.weight.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("most", [1, 4, 16, 40])
@pytest.mark.parametrize("bits", [0.5, 2.12, 4.0, 7.9])
def test_allocate_spends_budget_but_no_more(seed, bits, most):
    error = random_error(seed)
    budget = int(bits * error[..., 0].size * 8)
    menu = allocate(error, budget, 8, most)
    spent = menu.bits(8)
    assert len(menu.choice) <= most and menu.profile_of.max() < len(menu.choice)
    # One more step of the dearest profile would not fit.
    dearest = 4 * 8 * np.bincount(menu.profile_of).max()
    assert budget - dearest < spent <= budget
    classes = [sum(menu.classes(p, 8)) for p in menu.profile_of]
    assert 8 * sum(classes) == spent


def test_allocate_free_is_optimal_on_the_hull(seed):
    """No exchange of one step up against one step down of other units lowers the distortion."""
    error = gaussian_error(np.exp(np.random.default_rng(seed).normal(0, 3, (6, 8))))
    menu = allocate(error, int(2.1 * 48 * 8), 8, 6)
    choice = menu.choice[menu.profile_of]
    up = [(error[h, u, c] - error[h, u, c + 1]) / (LEVELS[c + 1] - LEVELS[c])
          for (h, u), c in np.ndenumerate(choice) if c < 4]
    down = [(error[h, u, c - 1] - error[h, u, c]) / (LEVELS[c] - LEVELS[c - 1])
            for (h, u), c in np.ndenumerate(choice) if c > 0]
    assert sorted(down)[2] >= sorted(up)[-2] * 0.999  # the rest of the budget may break a few ties


def test_allocate_more_profiles_less_distortion(seed):
    error = random_error(seed)
    budget = int(2.1 * error[..., 0].size * 8)
    loss = [allocate(error, budget, 8, most).distortion(error) for most in (1, 8, 40)]
    assert loss[0] >= loss[1] >= loss[2]


def test_allocate_in_groups_keeps_groups(seed):
    groups = np.arange(40) % 7
    menu = allocate_in_groups(random_error(seed), groups, 10000, 8)
    assert np.array_equal(menu.profile_of, groups) and menu.bits(8) <= 10000


def test_merge_heads_equal_heads_together():
    energy = np.repeat([[8.0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 9, 9]], 5, axis=0)
    group = merge_heads(gaussian_error(energy), 0.01, 8, 3)
    assert len(set(group)) <= 3
    assert all(len(set(group[i:i + 5])) == 1 for i in (0, 5, 10))


@pytest.mark.parametrize("head_size,channels", [(64, 8), (96, 16), (128, 16), (256, 16)])
def test_unit_channels(head_size, channels):
    assert unit_channels(head_size) == channels and head_size % channels == 0


def test_chain_words_close_and_stable(seed):
    values = np.random.default_rng(seed).normal(0, 1, (256, 4)).astype(np.float32)
    rounded = chain_values(chain_words(values))
    # Two bits of mantissa, at worst a step of 1/4 of the value's power of two, plus a rest.
    assert (np.abs(rounded - values) <= 0.25 * np.maximum(np.abs(values), 2.0 ** -12)).all()
    assert np.array_equal(chain_values(chain_words(rounded)), rounded)


def test_chain_words_huge_values_finite():
    values = np.array([[1e6, -1e6, 65504, -65504]], np.float32)
    assert np.isfinite(chain_values(chain_words(values))).all()


def test_half_words_round_to_fp16(seed):
    values = np.random.default_rng(seed).normal(0, 1, (256, 2)).astype(np.float32)
    assert np.array_equal(half_pairs(half_words(values)), values.astype(np.float16))


def test_k_means_fills_empty_centres(seed):
    vectors = torch.randn(1000, 2)
    start = torch.full((16, 2), 50.0)
    book = k_means(vectors, torch.ones(1000), start, 8, torch.Generator().manual_seed(seed))
    assert torch.cdist(vectors, book).min(1).values.pow(2).mean() < 0.4


@pytest.mark.parametrize("is_key", [True, False])
def test_fit_tables_error_near_theory(seed, is_key):
    classes = [8, 4, 4, 2, 2, 1, 1, 0]
    values = torch.randn(4096, 64)
    generator = torch.Generator().manual_seed(seed)
    part = PartCodec(tuple(classes), fit_tables(values, torch.ones(64), classes, is_key, generator),
                     is_key)
    fresh = torch.randn(1024, 64)
    error = (part.decode(part.encode(fresh)) - fresh).pow(2).mean(0).view(8, 8).mean(1)
    expected = dict(zip(LEVELS, DISTORTION))
    for bits, found in zip(classes, error.tolist()):
        assert found < 1.1 * expected[bits]


def test_spread_sequences_in_turn_and_inside():
    documents = [Document("a", torch.arange(100)), Document("b", torch.arange(1000, 1300))]
    assert [int(s[0]) for s in spread_sequences(documents, 50, 1)] == [1125]
    sequences = spread_sequences(documents, 50, 4)
    assert [int(s[0]) for s in sequences] == [12, 1062, 37, 1187]
    assert all(len(s) == 50 for s in sequences)


@pytest.mark.parametrize("draws", [1, 3])
def test_measure_fisher_matches_autograd_of_whole_model(folder, draws):
    """The layer-by-layer backward pass gives the gradients of the losses in one piece, each of
    labels of its own; V has its share of the gradients at the outputs of attention."""
    model = load_model(folder / "model")
    ids = torch.randint(256, (512,), generator=torch.Generator().manual_seed(0))
    found = Statistics("test")
    measure(model, [Sequence(ids, 1)], found, 3, lambda _: None, draws=draws)
    leaves = []

    def leaf(x):
        leaves.append(torch.zeros_like(x, requires_grad=True))
        return x + leaves[-1]

    x = model.embed(ids)
    for layer in range(2):
        x = model.layer(layer, x, lambda _, k, v: (leaf(k), leaf(v)), Window(), attended=leaf)
    logits = model.final_norm(x)[256:] @ model.head_weight().T
    generator = torch.Generator().manual_seed(3)
    gradients = []
    for _ in range(draws):
        labels = draw_labels(logits.detach().softmax(-1), generator)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        gradients.append(torch.autograd.grad(loss, leaves, retain_graph=True))
    k, v, outputs = (torch.stack([torch.cat([part[3 * layer + place] for part in gradients], 1)
                                  for layer in range(2)]) for place in range(3))
    k, v = (torch.cat([part[:, :, 512 * n + 16:512 * n + 320] for n in range(draws)], 2)
            for part in (k, v))
    k, v, outputs = (part.transpose(2, 3) @ part for part in (
        k, v, outputs.unflatten(1, (2, 2)).flatten(2, 3)))
    trace = v.diagonal(dim1=-2, dim2=-1).sum(-1) / outputs.diagonal(dim1=-2, dim2=-1).sum(-1)
    v = (1 - OUTPUT_SHARE) * v + OUTPUT_SHARE * trace[..., None, None] * outputs
    for kv, expected in enumerate((k, v)):
        expected = expected / (draws * 304)
        assert torch.allclose(found.fisher()[:, kv].float(), expected, rtol=1e-3,
                              atol=1e-4 * float(expected.abs().max()))


def test_draws_make_up_for_short_text():
    half = [(tokens, count // 2) for tokens, count in SEQUENCES]
    assert (draws_for(SEQUENCES), draws_for(half)) == (1, 3)
    assert (draws_for([(512, 1)]), draws_for([(8192, 100)])) == (MOST_DRAWS, 1)


def measured(model, sequences, file=None, stop=None):
    """Statistics of `sequences`; stopped, as by a kill, after `stop` of them."""
    statistics = Statistics.load(file) if file and file.exists() else Statistics("test")
    lines = []

    def progress(line):
        lines.append(line)
        if stop is not None and len(lines) == stop:
            raise KeyboardInterrupt

    measure(model, sequences, statistics, 0, progress, file)
    return statistics


def test_measure_sums_by_length_and_blocks(folder):
    model = load_model(folder / "model")
    ids = [torch.randint(256, (n,), generator=torch.Generator().manual_seed(n))
           for n in (512, 640, 512)]
    found = measured(model, [Sequence(x, b) for x, b in zip(ids, (3, 0, 2))])
    assert {n: sums.sequences for n, sums in found.by_length.items()} == {512: 2, 640: 1}
    assert found.tokens == 640 and found.rows().shape == (2, 2, 2, 5 * 64, 64)
    alone = [measured(model, [Sequence(x, 0)]) for x in ids]
    rows = [496, 624, 496]
    mean = sum(n * s.mean_and_covariance()[0] for n, s in zip(rows, alone)) / sum(rows)
    assert torch.allclose(found.mean_and_covariance()[0], mean)
    # Labels are drawn per sequence, so only the first has the same seed as when it runs alone.
    assert torch.equal(measured(model, [Sequence(ids[0], 0)]).fisher(), alone[0].fisher())
    assert float(found.mean_and_covariance()[1].diagonal(dim1=-2, dim2=-1).min()) > 0


def test_measure_covariance_is_that_of_the_rows(folder):
    model = load_model(folder / "model")
    ids = torch.randint(256, (512,), generator=torch.Generator().manual_seed(1))
    seen = {}
    with torch.no_grad():
        hidden_states(model, ids, lambda layer, k, v: seen.setdefault(layer, (k, v)))
    mean, covariance = measured(model, [Sequence(ids, 0)]).mean_and_covariance()
    for layer in range(2):
        for kv in (0, 1):
            for head in (0, 1):
                rows = seen[layer][kv][head, 16:].double()
                assert torch.allclose(mean[layer, kv, head], rows.mean(0), atol=1e-5)
                assert torch.allclose(covariance[layer, kv, head],
                                      torch.cov(rows.T, correction=0), atol=1e-4)


def test_measure_stopped_and_continued_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("flashquant.calibrate.statistics.SAVE_SECONDS", 0.0)
    model = load_model(folder / "model")
    sequences = [Sequence(torch.randint(256, (512,), generator=torch.Generator().manual_seed(n)), 2)
                 for n in range(4)]
    file = tmp_path / "s.pt"
    with pytest.raises(KeyboardInterrupt):
        measured(model, sequences, file, stop=3)
    assert Statistics.load(file).done == 2  # the third was measured, but not saved
    continued, whole = measured(model, sequences, file), measured(model, sequences)
    assert continued.done == 4
    assert torch.equal(continued.rows(), whole.rows())
    assert torch.equal(continued.fisher(), whole.fisher())
    assert torch.equal(continued.mean_and_covariance()[1], whole.mean_and_covariance()[1])


def test_draw_labels_follow_probabilities(seed):
    probabilities = torch.tensor([[0.0, 0.5, 0.2, 0.3, 0.0]]).expand(20000, 5)
    labels = draw_labels(probabilities, torch.Generator().manual_seed(seed))
    found = torch.bincount(labels, minlength=5) / len(labels)
    assert torch.allclose(found, probabilities[0], atol=0.02)
    assert int(found.count_nonzero()) == 3


def test_layer_inputs_beyond_memory_on_disk():
    stack = LayerInputs(memory_bytes=1000)
    kept = [torch.randn(10, 10) for _ in range(6)]
    for x in kept:
        stack.push(x)
    assert sum(not isinstance(x, torch.Tensor) for x in stack._stack) == 4
    for x in reversed(kept):
        assert torch.equal(stack.pop(), x)


def arguments(folder, output, *extra):
    texts = [sorted(str(f) for f in (folder / kind).iterdir()) for kind in ("calibration", "test")]
    return ["calibrate", "--model", str(folder / "model"), "--text", *texts[0],
            "--test-text", *texts[1], "-o", str(output), "--sequences", "640:2", "512:2",
            "--test-tokens", "512", "--threads", "1", *extra]


def calibrate(folder, output, *extra):
    return main(arguments(folder, output, *extra))


@pytest.fixture(scope="module")
def calibrated(folder, tmp_path_factory):
    """The folder of a codec set a.fqcs and of its statistics s.pt."""
    path = tmp_path_factory.mktemp("calibrated")
    assert calibrate(folder, path / "a.fqcs", "--bits", "2.1", "--bits", "4.1", "--statistics",
                     str(path / "s.pt")) == 0
    return path


def test_calibrate_command_within_budget(calibrated):
    codec_set = read_codec_set(calibrated / "a.fqcs")
    assert (codec_set.layers, codec_set.kv_heads, codec_set.head_size) == (2, 2, 64)
    assert codec_set.calibrated_tokens == 640
    assert 1.9 < codec_set.bits_per_value(False) <= 2.1
    assert 3.8 < codec_set.bits_per_value(True) <= 4.1
    loss = codec_set.loss
    assert loss["near-lossless"]["kl_divergence"] < loss["compact"]["kl_divergence"]
    assert loss["compact"]["tokens"] == 512 and "text-2-0" in loss["compact"]["text"]


DIES = """
import os, signal, sys
from flashquant.calibrate import statistics
from flashquant.cli import main

class Errors:
    def write(self, text):
        sys.__stderr__.write(text)
        if "sequence 3/4" in text:
            os.kill(os.getpid(), signal.SIGKILL)

    def flush(self):
        sys.__stderr__.flush()

statistics.SAVE_SECONDS = 0.0
sys.stderr = Errors()
main(sys.argv[1:])
"""


def test_calibrate_command_killed_and_continued_same_bytes(folder, tmp_path, capfd):
    """SIGKILL in the middle of measuring; the second run goes on and writes the file that one
    which was never stopped writes."""
    kept = ("--statistics", str(tmp_path / "s.pt"))
    killed = [sys.executable, "-c", DIES, *arguments(folder, tmp_path / "a.fqcs", *kept)]
    assert subprocess.run(killed, check=False).returncode == -9
    assert not (tmp_path / "a.fqcs").exists()
    capfd.readouterr()
    assert calibrate(folder, tmp_path / "a.fqcs", *kept) == 0
    again = capfd.readouterr().err
    assert "statistics of 2 sequences from" in again
    assert "sequence 1/4" not in again and "sequence 4/4" in again and " left" in again
    assert calibrate(folder, tmp_path / "b.fqcs") == 0
    assert (tmp_path / "a.fqcs").read_bytes() == (tmp_path / "b.fqcs").read_bytes()


def test_calibrate_command_other_statistics_refused(folder, calibrated, tmp_path, capfd):
    kept = ("--statistics", str(calibrated / "s.pt"))
    assert calibrate(folder, tmp_path / "b.fqcs", *kept, "--seed", "4") == 1
    assert "measured with another model, text, seed" in capfd.readouterr().err
    (tmp_path / "s.pt").write_bytes(b"nonsense")
    assert calibrate(folder, tmp_path / "b.fqcs", "--statistics", str(tmp_path / "s.pt")) == 1
    assert "not a file of statistics" in capfd.readouterr().err


@pytest.mark.parametrize("arguments,message", [
    (["--bits", "2"], "--bits: found"), (["--bits", "4", "--bits", "2"], "--bits: found"),
    (["--profiles", "33"], "--profiles: found 33"),
    (["--sequences", "1030:1"], "1030 tokens, but the model has 1024"),
    (["--sequences", "100000:1"], "tokens, at least 100000 are needed")])
def test_calibrate_command_bad_arguments_refused(folder, tmp_path, capfd, arguments, message):
    assert calibrate(folder, tmp_path / "a.fqcs", *arguments) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "a.fqcs").exists()


@pytest.mark.parametrize("value", ["512", "512:0", "64:2", "a:b"])
def test_calibrate_command_bad_sequences_refused(folder, tmp_path, capfd, value):
    with pytest.raises(SystemExit):
        calibrate(folder, tmp_path / "a.fqcs", "--sequences", value)
    assert f"found {value!r}, expected TOKENS:COUNT" in capfd.readouterr().err


def test_split_texts_without_test_text_holds_out_every_third():
    texts = [Path(name) for name in "abcdefg"]
    kept, held_out = split_texts(texts, None)
    assert held_out == [Path("c"), Path("f")]
    assert kept == [Path(name) for name in "abdeg"]
    assert split_texts(texts[:2], None) == (texts[:1], texts[1:2])


@pytest.mark.parametrize("texts,test_texts,message", [
    ("a", None, "found 1 text and no --test-text"), ("ab", "cb", "is in --text too")])
def test_split_texts_that_measure_nothing_refused(texts, test_texts, message):
    with pytest.raises(ValueError, match=message):
        split_texts([Path(t) for t in texts], test_texts and [Path(t) for t in test_texts])
