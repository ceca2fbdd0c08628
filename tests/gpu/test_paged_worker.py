"""The driver of tests/gpu on a CPU: a worker beside a real node, through shared memory.

What a GPU adds is in bench_node.py and check_device_memory.py; all else of them runs here, small.
"""

import os
from pathlib import Path

import pytest
import torch
from capacity import measure_capacity
from mixed_load import measure_mixed
from pages import LIMITS, make_rows, page_errors, serial_of
from paged_worker import PagedWorker, node_binary
from shapes import SHAPES, write_made_up
from speed import measure_speed

from flashquant.local_node import LocalNode
from flashquant.wire import Profile

ROOT = Path(__file__).parents[2]
BINARY = node_binary(ROOT / os.environ.get("FQ_BUILD", "build/release"))
TINY = SHAPES["tiny"]
LIMIT_ARGUMENTS = ("--max-blocks-per-call=4096",)


@pytest.fixture(name="codec", scope="module")
def codec_fixture(tmp_path_factory):
    return write_made_up(TINY, tmp_path_factory.mktemp("codec"))


@pytest.fixture(name="node", scope="module")
def node_fixture(codec):
    with LocalNode(BINARY, [codec[0]], 256 << 20) as node:
        yield node


@pytest.fixture(name="make")
def make_fixture(node, codec):
    """Makes workers of the shared node."""
    workers = []

    def make(blocks=40, **arguments):
        workers.append(PagedWorker(node.endpoint, TINY, codec[1], "cpu", blocks, **arguments))
        return workers[-1]
    yield make
    for worker in workers:
        worker.close()


def test_rows_are_unit_gaussians_and_differ_by_block_and_layer():
    serials = torch.tensor([serial_of("a", 0), serial_of("a", 1)], dtype=torch.int32)
    rows = make_rows(serials, 0, 8, 128).float()
    assert abs(rows.mean()) < 0.01 and abs(rows.std() - 1) < 0.01
    assert torch.equal(rows, make_rows(serials, 0, 8, 128).float())
    others = torch.stack([rows[1], make_rows(serials, 1, 8, 128)[0].float(), rows[0].roll(1, 0)])
    correlation = (others * rows[0]).mean(dim=(1, 2, 3))
    assert correlation.abs().max() < 0.01


@pytest.mark.parametrize("profile", list(Profile), ids=lambda profile: profile.label)
def test_one_wrong_page_or_bit_is_found(profile):
    serials = torch.tensor([5, 6], dtype=torch.int32)
    rows = make_rows(serials, 0, 2, 128)
    found = rows.clone()
    if profile is Profile.EXACT:
        found.view(torch.int16)[1, 1, 63, 255] ^= 1
    else:
        found[1, 1, :, 128:] = found[1, 0, :, 128:]
    errors = page_errors(rows, found, profile is Profile.EXACT)
    assert (errors > LIMITS[profile]).nonzero().tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("chunk_tokens", [16, 64])
@pytest.mark.parametrize("profile", list(Profile), ids=lambda profile: profile.label)
def test_pages_come_back_in_other_blocks(make, profile, chunk_tokens):
    worker = make(chunk_tokens=chunk_tokens)
    source, target = worker.take_chunks(10), worker.take_chunks(10)
    serials = [serial_of("back", block) for block in range(10)]
    worker.fill(source, serials)
    chain = worker.chain(f"{profile.label}{chunk_tokens}", 10)
    worker.save("s", chain, 0, source, profile)
    worker.finish("s")
    worker.wait("s", loads=False)
    worker.poison(source)
    worker.submit_load("l", chain, 10, target, profile.own_floor)
    assert worker.wait("l", loads=True) == set()
    assert worker.wrong_pages(target, serials, profile)[0] == 0
    pages = 10 * TINY.layers * TINY.heads * 2
    assert worker.wrong_pages(source, serials, profile)[0] == pages
    assert worker.wrong_pages(target, serials[::-1], profile)[0] == pages


def test_speed_of_each_profile_is_measured_and_pages_are_right(codec):
    results = measure_speed(BINARY, TINY, codec, "cpu", (), tuple(Profile), (1, 3))
    loads = [result for result in results if result["name"] == "load"]
    assert len(loads) == 8 and all(load["wrong_pages"] == 0 for load in loads)
    assert {load["transport"] for load in loads} == {"shared-memory"}


def test_long_context_is_held_whole_and_decodes_as_the_reference_says(codec):
    result, = measure_capacity(BINARY, TINY, codec, "cpu", 300, LIMIT_ARGUMENTS, samples=3)
    assert result["wrong_pages"] == result["blocks_not_loaded"] == 0
    assert result["checked_pages"] == 300 * TINY.layers * TINY.heads * 2
    assert result["stored_bytes"] < result["raw_bytes"] / 7
    assert result["largest_difference"] <= result["tolerance"]
    assert result["decoded_beside_reference_pages"] == 3 * TINY.layers * TINY.heads * 2


def test_mixed_load_with_a_killed_worker_has_no_wrong_page(codec, tmp_path):
    result, = measure_mixed(BINARY, codec[0], tmp_path, "cpu", 4.0, LIMIT_ARGUMENTS,
                            ["--shape", "tiny", "--blocks", "96"], count=2, kill_every_s=2.5)
    assert result["killed"] >= 1 and result["wrong_pages"] == 0
    assert result["loaded_blocks"] > 0 and result["checked_pages"] > 0
