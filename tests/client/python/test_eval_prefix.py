"""Prefix load: which rows new tokens see, and that only they lose."""

import pytest
import torch
from test_codec_set import random_codec_set
from tiny_model import make_model

from flashquant.codec import decode_fq, encode_fq, row_codecs
from flashquant.evaluate import scoring
from flashquant.evaluate.codecs import CODEC_NAMES, NamedCodec, make_codec, sink_rows
from flashquant.evaluate.prefix import (
    NEW_TOKENS, LoadedRows, PrefixEvaluation, PrefixWindow, cut_windows)
from flashquant.evaluate.scoring import Comparison, Passage
from flashquant.models import load_model
from flashquant.models.base import (
    chunked_attention, hidden_states, joined_attention, past_of, same_rows, window_mask)
from flashquant.models.text import Document

PREFIX = 256


def zero_rows(layer, k, v):
    del layer
    return k * 0, v * 0


def negative_rows(layer, k, v):
    del layer
    return -k, -v


ZERO, NEGATIVE = (NamedCodec(rows.__name__, rows, 0.0, 0.0) for rows in (zero_rows, negative_rows))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(make_model(tmp_path_factory.mktemp("tiny") / "model"))


def test_sink_rows_are_those_of_the_record():
    codec_set = random_codec_set(layers=1, kv_heads=1)
    codecs = row_codecs(codec_set, 0, 0)
    k, v = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(2))
    page = encode_fq(codecs, k, v, sink=True)
    for found, raw in zip(decode_fq(codecs, page, 64, True, torch.float32), (k, v)):
        assert found[:16].equal(sink_rows(raw[:16]))
    assert sink_rows(torch.zeros(2, 64)).abs().max() == 0


def test_loaded_rows_sinks_codec_tail_and_new_tokens():
    k, v = torch.randn(2, 2, PREFIX + 10, 64, generator=torch.Generator().manual_seed(3))
    for found, raw in zip(LoadedRows(ZERO, PREFIX, NEGATIVE)(0, k, v), (k, v)):
        assert found[:, :16].equal(sink_rows(raw[:, :16]))
        assert found[:, 16:128].abs().max() == 0
        assert found[:, 128:PREFIX].equal(-raw[:, 128:PREFIX])
        assert found[:, PREFIX:].equal(raw[:, PREFIX:])


def test_loaded_rows_of_codec_set_are_what_a_node_delivers():
    codec_set = random_codec_set(layers=1, kv_heads=1)
    k, v = torch.randn(2, 1, PREFIX, 64, generator=torch.Generator().manual_seed(4))
    compact, near = (make_codec(name, codec_set, 64) for name in ("compact", "near-lossless"))
    rows = LoadedRows(compact, PREFIX, near)
    loaded = rows(0, k, v)
    codecs = row_codecs(codec_set, 0, 0)
    for block in range(4):
        part = slice(64 * block, 64 * block + 64)
        page = encode_fq(codecs, k[0, part], v[0, part], sink=block == 0)
        if block < 2:
            page = type(page)(page.primary)
        for found, wanted in zip(loaded, decode_fq(codecs, page, 64, block == 0, torch.float32)):
            assert found[0, part].allclose(wanted, atol=1e-4), block


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_loaded_rows_of_several_prefixes_are_those_of_each(name):
    codec_set = random_codec_set(layers=1, kv_heads=2)
    codec, tail = (make_codec(n, codec_set, 64) for n in (name, "near-lossless"))
    k, v = torch.randn(2, 3, 2, PREFIX, 64, generator=torch.Generator().manual_seed(9))
    rows = LoadedRows(codec, PREFIX, tail)
    together = rows.load(0, k, v)
    for number in range(3):
        for found, alone in zip(together, rows(0, k[number], v[number])):
            assert found[number].allclose(alone, atol=1e-4)


def test_prefix_window_only_new_tokens_see_loaded_rows(model):
    ids = torch.randint(256, (PREFIX + 80,), generator=torch.Generator().manual_seed(5))
    window = PrefixWindow(prefix=PREFIX)
    raw = hidden_states(model, ids)
    same, changed = (hidden_states(model, ids, rows, window) for rows in (same_rows, zero_rows))
    assert same.allclose(raw, atol=1e-4)
    assert changed[:PREFIX].allclose(raw[:PREFIX], atol=1e-4)
    assert not changed[PREFIX:].allclose(raw[PREFIX:], atol=1e-2)


def test_comparison_past_runs_once_same_outcome(model):
    """A prefix that is run once gives what one that is run with every codec gives."""
    ids = torch.randint(256, (PREFIX + 80,), generator=torch.Generator().manual_seed(7))
    found = []
    for past in (0, PREFIX):
        comparison = Comparison(model, [Passage("a", ids, PREFIX)], PrefixWindow(prefix=PREFIX), 1,
                                past)
        comparison.prepare()
        found.append(comparison.compare(LoadedRows(NEGATIVE, PREFIX, ZERO))[0])
    assert found[0].raw_nll.allclose(found[1].raw_nll, atol=1e-3)
    assert found[0].nll.allclose(found[1].nll, atol=1e-3)
    assert not found[0].nll.allclose(found[0].raw_nll, atol=1e-2)


def test_comparison_passages_of_several_lengths_in_their_order(model, monkeypatch):
    """Passages that run together are told apart, whatever their length and the size of a batch."""
    generator = torch.Generator().manual_seed(8)
    passages = [Passage(str(n), torch.randint(256, (PREFIX + n,), generator=generator), PREFIX)
                for n in (80, 50, 80, 80, 50)]
    found = []
    for most in (1, 800, 1 << 20):
        monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": most})
        comparison = Comparison(model, passages, PrefixWindow(prefix=PREFIX), 1, PREFIX)
        comparison.prepare()
        found.append(comparison.compare(LoadedRows(NEGATIVE, PREFIX, ZERO)))
    for alone, *others in zip(*found):
        assert all(alone.nll.allclose(o.nll, atol=1e-3) for o in others)
    assert [len(o.nll) for o in found[0]] == [79, 49, 79, 79, 49]
    assert not found[0][0].nll.allclose(found[0][2].nll, atol=1e-2)


def test_joined_attention_with_past_equals_chunks():
    """What a device computes in one piece, and the CPU chunk by chunk."""
    window, generator = PrefixWindow(prefix=128), torch.Generator().manual_seed(8)
    q = torch.randn(1, 4, 70, 16, generator=generator)
    k, v, far_k, far_v = torch.randn(4, 1, 2, 198, 16, generator=generator)
    mask = window_mask(198, window, "cpu")
    joined = joined_attention(q, k, v, (far_k, far_v), mask)
    assert joined.allclose(chunked_attention(q, k, v, (far_k, far_v), window), atol=1e-4)


def test_hidden_states_more_tokens_than_positions_refused(model):
    past = past_of(model, torch.zeros(1000, dtype=torch.long))
    with pytest.raises(ValueError, match="1030 tokens, but the model has 1024"):
        hidden_states(model, torch.zeros(30, dtype=torch.long), past=past)


@pytest.mark.parametrize("tokens, most, count", [(768, 9, 1), (1279, 9, 1), (1280, 9, 2),
                                                 (5000, 4, 4), (5000, 99, 9)])
def test_cut_windows_score_every_token_once(tokens, most, count):
    passages = cut_windows(Document("a", torch.arange(tokens)), PREFIX, most)
    assert len(passages) == count and {len(p.ids) for p in passages} == {PREFIX + NEW_TOKENS}
    scored = torch.cat([p.ids[p.first + 1:] for p in passages])
    assert len(scored.unique()) == len(scored)
    assert passages[0].ids[0] == 0 and (count == 1 or passages[-1].ids[-1] == tokens - 1)


def test_prefix_evaluation_buckets(model):
    generator = torch.Generator().manual_seed(6)
    documents = [Document(n, torch.randint(256, (800,), generator=generator)) for n in "ab"]
    evaluation = PrefixEvaluation(model, documents, PREFIX)
    assert evaluation.prepare() > 1
    lost = evaluation.score(ZERO, None)
    assert [(b.begin, b.end) for b in lost.buckets] == [(0, 32), (32, 128), (128, 511), (0, 511)]
    assert lost.buckets[-1].kl_divergence > 0.01 and not lost.tail_rule
    kept = evaluation.score(NamedCodec("raw", same_rows, 16.0, 16.0), None)  # sinks are int8
    assert kept.buckets[-1].kl_divergence < 0.1 * lost.buckets[-1].kl_divergence
