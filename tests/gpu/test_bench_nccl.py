"""bench_nccl.py on a CPU: workers and a node as processes, sockets in NCCL's place, small.

What two GPUs add is in bench_nccl.py itself, what one adds in check_nccl.py.
"""

import os
from pathlib import Path

import pytest
from peer_checks import measure_correctness, measure_kills
from peer_speed import measure_bandwidth
from peers import PATIENT_MS, node_with_peers, spread
from shapes import SHAPES, write_made_up

ROOT = Path(__file__).parents[2]
BUILD = ROOT / os.environ.get("FQ_BUILD", "build/release")
TINY = SHAPES["tiny"]


@pytest.fixture(name="codec", scope="module")
def codec_fixture(tmp_path_factory):
    return write_made_up(TINY, tmp_path_factory.mktemp("codec"))


def test_pages_decoded_and_encoded_come_right_by_the_link_alone(codec):
    results = measure_correctness(*node_with_peers(BUILD, "cpu", PATIENT_MS), TINY, codec, "cpu",
                                  (1, 3, 20), 60)
    sizes = [result for result in results if result["name"] == "size"]
    assert len(sizes) == 6 and all(r["extents"] >= r["blocks"] for r in sizes)
    assert all(not r["wrong_pages"] and not r["wrong_extents"] for r in sizes)
    slabs, counters = results[-2:]
    assert (slabs["slabs"], slabs["wrong_pages"]) == (60, 0)
    assert counters == {"name": "counters", "transport_nccl": 1, "damaged_blocks": 0,
                        "dropped_save_blocks": 0, "broken": ""}


def test_loads_and_saves_are_measured_by_bytes_and_seconds(codec):
    results = measure_bandwidth(*node_with_peers(BUILD, "cpu", PATIENT_MS), TINY, codec, "cpu",
                                (1, 8), 3)
    assert [(r["name"], r["profile"], r["bytes"]) for r in results] == [
        (name, profile, blocks * TINY.block_bytes)
        for profile, blocks in (("exact", 1), ("exact", 8), ("exact", 4 * 8), ("compact", 8))
        for name in ("save", "load")]
    assert all(r["link_GBps"]["median"] > 0 and not r["wrong_pages"] for r in results)


def test_killed_stalled_and_restarted_processes_leave_every_page_right(codec, tmp_path):
    result, = measure_kills(*node_with_peers(BUILD, "cpu"), TINY, codec, "cpu", tmp_path)
    assert result["survivor"]["checked_pages"] and not result["survivor"]["wrong_pages"]
    assert result["stalled_link_gone_seconds"] > 0 and not result["published_by_stalled_stores"]


def test_spread_of_one_run_is_that_run():
    assert spread([2.0]) == {"median": 2.0, "first_quartile": 2.0, "third_quartile": 2.0, "runs": 1}
