"""Calibration: transforms, allocation, tables, and the whole command on a tiny random model."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import make_model, make_texts

from flashquant.calibrate.allocation import (DISTORTION, LEVELS, allocate, allocate_in_groups,
                                             merge_heads, unit_channels)
from flashquant.calibrate.command import split_texts
from flashquant.calibrate.statistics import Plan, Statistics, measure
from flashquant.calibrate.tables import chain_words, fit_tables, half_words, k_means
from flashquant.calibrate.transform import fit_transform
from flashquant.cli import main
from flashquant.codec import PartCodec
from flashquant.codec_set import chain_values, half_pairs, parse_codec_set, read_codec_set
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


def random_energy(seed, heads=40, units=16):
    return np.exp(np.random.default_rng(seed).normal(0, 3, (heads, units)))


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
    energy = random_energy(seed)
    budget = int(bits * energy.size * 8)
    menu = allocate(energy, budget, 8, most)
    spent = menu.bits(8)
    assert len(menu.choice) <= most and menu.profile_of.max() < len(menu.choice)
    # One more step of the dearest profile would not fit.
    dearest = 4 * 8 * np.bincount(menu.profile_of).max()
    assert budget - dearest < spent <= budget
    classes = [sum(menu.classes(p, 8)) for p in menu.profile_of]
    assert 8 * sum(classes) == spent


def test_allocate_free_is_optimal_on_the_hull(seed):
    """No exchange of one step up against one step down of other units lowers the distortion."""
    energy = random_energy(seed, heads=6, units=8)
    menu = allocate(energy, int(2.1 * energy.size * 8), 8, 6)
    choice = menu.choice[menu.profile_of]
    up = [energy[h, u] * (DISTORTION[c] - DISTORTION[c + 1]) / (LEVELS[c + 1] - LEVELS[c])
          for (h, u), c in np.ndenumerate(choice) if c < 4]
    down = [energy[h, u] * (DISTORTION[c - 1] - DISTORTION[c]) / (LEVELS[c] - LEVELS[c - 1])
            for (h, u), c in np.ndenumerate(choice) if c > 0]
    assert sorted(down)[2] >= sorted(up)[-2] * 0.999  # the rest of the budget may break a few ties


def test_allocate_more_profiles_less_distortion(seed):
    energy = random_energy(seed)
    budget = int(2.1 * energy.size * 8)
    loss = [allocate(energy, budget, 8, most).distortion(energy) for most in (1, 8, 40)]
    assert loss[0] >= loss[1] >= loss[2]


def test_allocate_in_groups_keeps_groups(seed):
    energy = random_energy(seed)
    groups = np.arange(40) % 7
    menu = allocate_in_groups(energy, groups, 10000, 8)
    assert np.array_equal(menu.profile_of, groups) and menu.bits(8) <= 10000


def test_merge_heads_equal_heads_together():
    energy = np.repeat([[8.0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 9, 9]], 5, axis=0)
    group = merge_heads(energy, 0.01, 8, 3)
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
    sequences = spread_sequences(documents, 50, 4)
    assert [int(s[0]) for s in sequences] == [12, 1062, 37, 1187]
    assert all(len(s) == 50 for s in sequences)


def test_model_matches_transformers(folder):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model = load_model(folder / "model")
    ids = torch.randint(256, (200,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        found = hidden_states(model, ids) @ model.head_weight().T
    assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))


def test_model_far_queries_see_coded_rows_only_far(folder):
    model = load_model(folder / "model")
    ids = torch.randint(256, (512,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = hidden_states(model, ids)
        coded = hidden_states(model, ids, lambda _, k, v: (k * 0, v * 0), Window(16, 128, 64))
    different = (raw != coded).any(1).nonzero()[:, 0]
    # The chunk at 192 is the first whose window leaves rows (16..63) beyond it.
    assert int(different[0]) == 192


@pytest.mark.parametrize("change,message", [
    ({"architectures": ["GemmaForCausalLM"]}, "architecture .'GemmaForCausalLM'. is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type is 'yarn'"),
])
def test_load_model_unknown_refused(folder, tmp_path, change, message):
    shutil.copytree(folder / "model", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model")


def test_measure_fisher_matches_autograd_of_whole_model(folder):
    """The layer-by-layer backward pass gives the gradient of the loss in one piece."""
    model = load_model(folder / "model")
    ids = torch.randint(256, (512,), generator=torch.Generator().manual_seed(0))
    plan = Plan([ids], [], 1, 100, 3)
    found = measure(model, plan, lambda _: None)
    leaves = {}

    def detour(layer, k, v):
        leaves[layer] = [torch.zeros_like(x, requires_grad=True) for x in (k, v)]
        return k + leaves[layer][0], v + leaves[layer][1]

    hidden = hidden_states(model, ids, detour)[256:]
    logits = hidden @ model.head_weight().T
    labels = torch.multinomial(logits.detach().softmax(-1), 1,
                               generator=torch.Generator().manual_seed(3))[:, 0]
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    for layer in range(2):
        for kv in (0, 1):
            gradient = leaves[layer][kv].grad[:, 16:512 - 192]
            expected = gradient.transpose(1, 2) @ gradient / gradient.shape[1]
            assert torch.allclose(found.fisher_long[layer, kv], expected, rtol=1e-3,
                                  atol=1e-4 * float(expected.abs().max()))


def test_statistics_save_load_same(folder, tmp_path):
    model = load_model(folder / "model")
    ids = torch.randint(256, (512,), generator=torch.Generator().manual_seed(0))
    saved = measure(model, Plan([ids], [ids], 1, 4, 0), lambda _: None)
    saved.save(tmp_path / "s.pt")
    loaded = Statistics.load(tmp_path / "s.pt")
    assert loaded.tokens == 512 and torch.equal(loaded.rows, saved.rows)
    assert torch.equal(loaded.fisher_short, saved.fisher_short)
    assert saved.rows.shape[3] % 64 == 0 and saved.rows.shape[3] <= 4 * 64


def calibrate(folder, output, *extra):
    texts = [sorted(str(f) for f in (folder / kind).iterdir()) for kind in ("calibration", "test")]
    return main(["calibrate", "--model", str(folder / "model"), "--text", *texts[0],
                 "--test-text", *texts[1], "-o", str(output), "--tokens", "512",
                 "--sequences", "3", "--fisher-sequences", "2", "--short-tokens", "512",
                 "--short-sequences", "1", "--test-tokens", "512", "--threads", "1", *extra])


def test_calibrate_command_deterministic_and_within_budget(folder, tmp_path, capfd):
    for name in ("a.fqcs", "b.fqcs"):
        assert calibrate(folder, tmp_path / name, "--bits", "2.1", "--bits", "4.1") == 0
    a, b = ((tmp_path / name).read_bytes() for name in ("a.fqcs", "b.fqcs"))
    assert a == b
    codec_set = parse_codec_set(a)
    assert (codec_set.layers, codec_set.kv_heads, codec_set.head_size) == (2, 2, 64)
    assert 1.9 < codec_set.bits_per_value(False) <= 2.1
    assert 3.8 < codec_set.bits_per_value(True) <= 4.1
    loss = codec_set.loss
    assert loss["near-lossless"]["kl_divergence"] < loss["compact"]["kl_divergence"]
    assert loss["compact"]["tokens"] == 512 and "text-2-0" in loss["compact"]["text"]
    assert " left" in capfd.readouterr().err


def test_calibrate_command_statistics_reused(folder, tmp_path, capfd):
    kept = ("--statistics", str(tmp_path / "s.pt"))
    assert calibrate(folder, tmp_path / "a.fqcs", *kept) == 0
    assert calibrate(folder, tmp_path / "b.fqcs", *kept, "--seed", "4") == 0
    assert "statistics from" in capfd.readouterr().err
    assert read_codec_set(tmp_path / "b.fqcs").seed == 4


@pytest.mark.parametrize("arguments,message", [
    (["--bits", "2"], "--bits: found"), (["--bits", "4", "--bits", "2"], "--bits: found"),
    (["--profiles", "33"], "--profiles: found 33"), (["--tokens", "64"], "--tokens: found 64"),
    (["--tokens", "100000"], "tokens, at least 100000 are needed")])
def test_calibrate_command_bad_arguments_refused(folder, tmp_path, capfd, arguments, message):
    assert calibrate(folder, tmp_path / "a.fqcs", *arguments) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "a.fqcs").exists()


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
