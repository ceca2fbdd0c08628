"""Real vLLM, a real model, a real node: right answers, warm starts, and every way to lose a node.

Three vLLM processes, shared by all tests: one without the connector, a first one that fills the
node, a second one that loads from it. The second has its scheduler and its worker in processes of
their own, as a server has. The oracle of a warm answer is vLLM's own prefix-cache hit. A lookup
that a busy machine holds up is a miss like any other, so warm answers are asked for until they are.
Needs FQ_BUILD/bin/flashquantd (default build/release) and build/models/smollm2.
"""

import os
import time
from pathlib import Path

import pytest
from vllm_process import ONE_PROCESS, Engine

from flashquant.local_node import LocalNode

ROOT = Path(__file__).parents[2]
BINARY = ROOT / os.environ.get("FQ_BUILD", "build/release") / "bin" / "flashquantd"
MODEL = ROOT / "build/models/smollm2"
BLOCKS = 10
PROMPT_TOKENS = BLOCKS * 64 + 17
PROMPTS = [[(i * 7919 + j * j * 31 + j) % 40000 + 100 for j in range(PROMPT_TOKENS)]
           for i in range(3)]
LOOKUP_S, LONG_S = 0.5, 60.0
BUSY_S = 0.3  # what a loaded test machine may add to the delay that the connector allows itself


def transfer(node, connector="FlashQuantConnector", module=None):
    options = {"endpoint": node.endpoint, "profile": "exact", "lookup_timeout_ms": LOOKUP_S * 1e3,
               "load_timeout_ms": LONG_S * 1e3, "store_timeout_ms": LONG_S * 1e3}
    return {"kv_connector": connector, "kv_connector_module_path": module, "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute", "kv_connector_extra_config": options}


def wait_for(condition, what, timeout_s=2 * LONG_S):
    deadline_s = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline_s, f"{what} within {timeout_s} s"
        time.sleep(0.05)
    return result


def warm(engine, prompt):
    """The answer behind a prefix that was loaded."""
    def loaded():
        answer = engine.generate(prompt, fresh=True)
        return answer if answer["cached"] == BLOCKS * 64 else None
    return wait_for(loaded, "a prefix is loaded")


@pytest.fixture(name="folder", scope="module")
def folder_fixture(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(name="node", scope="module")
def node_fixture():
    with LocalNode(BINARY, host_bytes=512 << 20) as node:
        yield node


@pytest.fixture(name="plain", scope="module")
def plain_fixture(folder):
    """Answers without the connector: cold, and from vLLM's own cache."""
    with Engine(MODEL, None, folder / "plain.log", **ONE_PROCESS) as engine:
        return [(engine.generate(p), engine.generate(p)) for p in PROMPTS]


@pytest.fixture(name="first", scope="module")
def first_fixture(folder, node, plain):
    """Started with the node down; then the node comes, and is filled. (down, cold, local)"""
    node.kill()
    with Engine(MODEL, transfer(node), folder / "first.log", **ONE_PROCESS) as engine:
        down = engine.generate(PROMPTS[0])
        node.start()
        wait_for(lambda: node.status(LONG_S).sessions == 2, "scheduler and worker connect")
        cold = [engine.generate(p, fresh=True) for p in PROMPTS]
        local = [engine.generate(p) for p in PROMPTS]
        wait_for(lambda: node.status(LONG_S).blocks == BLOCKS * len(PROMPTS),
                 "all blocks published")
        return down, cold, local


@pytest.fixture(name="fault", scope="module")
def fault_fixture(folder):
    return folder / "fault"


@pytest.fixture(name="second", scope="module")
def second_fixture(folder, node, first, fault):
    """The second process. Tests below use it in the order of this file."""
    config = transfer(node, "FailingConnector", "failing_connector")
    with Engine(MODEL, config, folder / "second.log", FQ_TEST_FAULT=str(fault)) as engine:
        yield engine


def tokens(answers):
    return [answer["tokens"] for answer in answers]


def test_node_down_at_start_serves_and_answers_the_same(plain, first):
    down, _, _ = first
    assert down["tokens"] == plain[0][0]["tokens"]


def test_cold_answers_equal_those_without_connector(plain, first):
    _, cold, local = first
    assert tokens(cold) == tokens(answer for answer, _ in plain)
    assert tokens(local) == tokens(answer for _, answer in plain)
    assert {answer["cached"] for answer in cold} == {0}


def test_second_process_loads_all_and_equals_the_local_hit(first, second):
    _, _, local = first
    assert tokens(warm(second, p) for p in PROMPTS) == tokens(local)


def test_load_that_fails_is_recomputed(first, second, fault):
    fault.write_text("all")
    answer = second.generate(PROMPTS[0], fresh=True)
    fault.unlink()
    assert answer["tokens"] == first[1][0]["tokens"] and answer["reason"] == "length"


def test_load_that_fails_half_way_is_finished(second, fault):
    fault.write_text("half")
    answer = second.generate(PROMPTS[1], fresh=True)
    fault.unlink()
    assert len(answer["tokens"]) == 16 and answer["reason"] == "length"


def test_after_failed_loads_the_next_request_loads_again(first, second):
    assert warm(second, PROMPTS[0])["tokens"] == first[2][0]["tokens"]


def test_node_frozen_answers_go_on_with_bounded_delay(first, second, node):
    node.freeze()
    answers = [second.generate(p, fresh=True) for p in PROMPTS]
    node.thaw()
    assert tokens(answers) == tokens(first[1])
    assert min(answer["waited_s"] for answer in answers) < LOOKUP_S + BUSY_S


def test_node_thawed_is_used_again(first, second, node):
    assert warm(second, PROMPTS[1])["tokens"] == first[2][1]["tokens"]


def test_node_killed_answers_go_on(first, second, node):
    node.kill()
    answers = [second.generate(p, fresh=True) for p in PROMPTS]
    assert tokens(answers) == tokens(first[1])
    assert min(answer["waited_s"] for answer in answers) < LOOKUP_S + BUSY_S


def test_node_back_empty_is_filled_and_used_again(first, second, node):
    node.start()
    wait_for(lambda: node.status(LONG_S).sessions == 2, "scheduler and worker reconnect")
    cold = second.generate(PROMPTS[0], fresh=True)
    assert cold["cached"] == 0 and cold["tokens"] == first[1][0]["tokens"]
    wait_for(lambda: node.status(LONG_S).blocks >= BLOCKS, "blocks published again")
    assert warm(second, PROMPTS[0])["tokens"] == first[2][0]["tokens"]
