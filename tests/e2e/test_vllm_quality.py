"""vLLM with compact pages from a node loses what the codec loses, and gets what the node stores.

One vLLM process in FP32, one document, one prefix; the harness (`flashquant eval`, prefix protocol)
scores the same tokens. Needs FQ_BUILD/bin/flashquantd (default build/release), build/models/smollm2
and the codec set in codec_sets/.
"""

import os
import pydoc_data.topics
from pathlib import Path

import pytest
import torch
from vllm_process import ONE_PROCESS

from flashquant.codec import (Page, PageKind, decode_extent, decode_fq, page_bytes,
                              row_codecs)
from flashquant.codec_set import read_codec_set
from flashquant.evaluate.codecs import make_codec
from flashquant.evaluate.scoring import excess
from flashquant.evaluate.through_vllm import (agreed_ids, harness_greedy, harness_sides,
                                              vllm_side)
from flashquant.local_engine import EngineRun
from flashquant.local_node import LocalNode
from flashquant.models import load_model, load_tokenizer
from flashquant.scoring_plan import Case, Plan, read_results, write_plan

ROOT = Path(__file__).parents[2]
BINARY = ROOT / os.environ.get("FQ_BUILD", "build/release") / "bin" / "flashquantd"
MODEL = ROOT / "build/models/smollm2"
CODEC_SET = ROOT / "codec_sets/smollm2-135m-instruct.fqcs"
BLOCKS, NEW, GREEDY = 8, 160, 16
PREFIX = BLOCKS * 64
TAIL_BLOCKS = 2
# Measured: root mean square 0.0005 nats a token, from near ties that another order of summation
# codes otherwise; points of excess 0.001.
SAME_TOKEN_NATS, SAME_EXCESS_POINTS = 0.01, 0.1


@pytest.fixture(name="case", scope="module")
def case_fixture():
    text = pydoc_data.topics.topics["typesseq"] + pydoc_data.topics.topics["specialnames"]
    ids = load_tokenizer(MODEL)(text, verbose=False).input_ids
    return Case("topics", ids[:PREFIX], ids[PREFIX:PREFIX + NEW], GREEDY)


@pytest.fixture(name="run", scope="module")
def run_fixture(tmp_path_factory, case):
    """(exact, compact) as vLLM scored them, and the folder of records."""
    folder, records = tmp_path_factory.mktemp("plan"), tmp_path_factory.mktemp("records")
    with (pytest.MonkeyPatch.context() as patch,
          LocalNode(BINARY, [CODEC_SET], 256 << 20) as node):
        patch.setenv("FQ_TEST_RECORD", str(records))
        for name, value in ONE_PROCESS.items():
            patch.setenv(name, value)
        write_plan(Plan(str(MODEL), str(CODEC_SET), "float32", node.endpoint,
                        ["exact", "compact"], [case]), folder / "plan")
        program = [str(ROOT / "tests/e2e/recording_scoring.py"), str(folder / "plan"),
                   str(folder / "result")]
        with EngineRun(program, folder / "log", print) as engine:
            engine.wait(400)
    return read_results(folder / "result"), records


@pytest.fixture(name="codecs", scope="module")
def codecs_fixture():
    codec_set = read_codec_set(CODEC_SET)
    return [make_codec(name, codec_set, codec_set.head_size)
            for name in ("compact", "near-lossless")]


@pytest.fixture(name="model", scope="module")
def model_fixture():
    return load_model(MODEL, dtype=torch.float32)


def test_loaded_prefix_is_whole(run):
    (exact, compact), _ = run
    assert (exact.loaded_tokens, compact.loaded_tokens) == (PREFIX, PREFIX)
    assert exact.stored_bytes > 8 * compact.stored_bytes  # FP32 pages; two of eight are refined


def test_loss_in_vllm_is_that_of_the_harness(run, case, model, codecs):
    (exact, compact), _ = run
    vllm = vllm_side(exact, compact)
    harness, = harness_sides(model, case, codecs[:1], codecs[1])
    assert len(vllm.added) == NEW - 1 and vllm.added.square().mean().sqrt() > 0.05
    assert (vllm.raw_nll - harness.raw_nll).square().mean().sqrt() < SAME_TOKEN_NATS
    assert (vllm.added - harness.added).square().mean().sqrt() < SAME_TOKEN_NATS
    assert abs(excess(vllm.added) - excess(harness.added)) < SAME_EXCESS_POINTS


def test_greedy_tokens_in_vllm_are_those_of_the_harness(run, case, model, codecs):
    (exact, compact), _ = run
    assert len(exact.greedy) == GREEDY
    there, = harness_greedy(model, case, exact.greedy, codecs[:1], codecs[1])
    assert agreed_ids(compact.greedy, exact.greedy) == there


def cache_rows(record):
    """K, V [layers][blocks][heads][64][d] FP32 in vLLM's cache, block 64 tokens."""
    where, chunks = record["packing"], record["words"].view(torch.float32)
    layers, blocks, size = chunks.shape[0], chunks.shape[1], 64
    heads = chunks.shape[2] // (2 * 64 * size)
    chunks = chunks.view(layers, blocks, heads, -1)
    return [torch.as_strided(chunks[..., where[f"{part}_offset"]:],
                             (layers, blocks, heads, 64, size),
                             (*chunks.stride()[:3], where[f"{part}_token_stride"],
                              where[f"{part}_channel_stride"]))
            for part in "kv"]


def stored_rows(codec_set, extents, block):
    """K, V [layers][heads][64][d] FP32 that the reference decodes from a block's extents."""
    sink, shape = block == 0, (codec_set.layers, codec_set.kv_heads)
    codecs = [row_codecs(codec_set, *divmod(i, shape[1])) for i in range(shape[0] * shape[1])]
    pages = []
    for data, kind in zip(extents, (PageKind.BASE, PageKind.REFINEMENT)):
        sizes = [page_bytes(kind, 64, codecs=pair, sink=sink) for pair in codecs]
        found = decode_extent(data, sizes)[1] if data else [None] * len(codecs)
        pages.append([page and torch.frombuffer(bytearray(page), dtype=torch.uint8)
                      for page in found])
    rows = [decode_fq(pair, Page(*page), 64, sink, torch.float32)
            for pair, page in zip(codecs, zip(*pages))]
    return [torch.stack(part).unflatten(0, shape) for part in zip(*rows)]


def test_cache_holds_what_the_reference_decodes_from_the_stored_bytes(run):
    _, folder = run
    record = torch.load(folder / "1.pt", weights_only=False)  # 0: exact
    extents, rows = record["extents"], cache_rows(record)
    assert [bool(refinement) for _, refinement in extents] == (
        [False] * (BLOCKS - TAIL_BLOCKS) + [True] * TAIL_BLOCKS)
    codec_set = read_codec_set(CODEC_SET)
    for block, data in enumerate(extents):
        for found, expected in zip(rows, stored_rows(codec_set, data, block), strict=True):
            torch.testing.assert_close(found[:, block], expected, rtol=1e-4, atol=1e-4)
