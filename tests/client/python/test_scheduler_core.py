"""Scheduler half against a fake node: what is loaded, what is saved, and what failures do."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from flashquant.keys import KeyChain, root_key
from flashquant.vllm.extra_keys import extra_keys_from
from flashquant.vllm.jobs import StepJobs
from flashquant.vllm.options import Options
from flashquant.vllm.provenance import Provenance
from flashquant.vllm.scheduler_core import ANSWER_LIFE_S, SchedulerCore
from flashquant.wire import Profile


@dataclass
class FakePending:
    """A lookup whose answer comes when the test says so."""

    match: object
    ready: bool = True

    def done(self):
        return self.ready

    def result(self):
        return self.match


@dataclass
class FakeNode:
    """Holds keys; `cut` blocks of every match are not usable (tail rule)."""

    keys: set = field(default_factory=set)
    up: bool = True
    ready: bool = True
    cut: int = 0
    profile: Profile = Profile.COMPACT
    limit: int = 1024
    asked: list = field(default_factory=list)

    def root(self, salt):
        return root_key(bytes(32), "t", salt) if self.up else None

    def max_blocks(self):
        return self.limit

    def lookup_later(self, keys, floor):
        split = [keys[i:i + 32] for i in range(0, len(keys), 32)]
        matched = next((i for i, k in enumerate(split) if k not in self.keys), len(split))
        match = SimpleNamespace(matched_blocks=matched, usable_blocks=max(0, matched - self.cut),
                                profiles=[self.profile] * matched)
        self.asked.append((len(split), floor, FakePending(match, self.ready)))
        return self.asked[-1][2]


def make_request(tokens, name="r", **fields):
    """Like vLLM's Request; `tokens`: a number, or ids."""
    ids = list(range(tokens)) if isinstance(tokens, int) else tokens
    defaults = dict(cache_salt=None, kv_transfer_params=None, mm_features=[], lora_request=None,
                    prompt_embeds=None, skip_reading_prefix_cache=False)
    return SimpleNamespace(request_id=name, all_token_ids=ids, num_tokens=len(ids),
                           **{**defaults, **fields})


class Engine:
    """Plays vLLM's scheduler for one core."""

    def __init__(self, block_tokens=64, generate=None, **options):
        self.node = FakeNode()
        self.now = 0.0
        options.setdefault("profile", "compact")
        self.core = SchedulerCore(self.node, Options(codec_set="x", **options), block_tokens,
                                  extra_keys_from(generate), clock=lambda: self.now)
        self.block_tokens = block_tokens
        self.ids = list(range(100, 1100))

    def stored(self, request, blocks, extras=()):
        """Puts the first blocks of a request into the node."""
        chain = KeyChain(self.node.root(request.cache_salt or ""))
        chain.extend(request.all_token_ids[:blocks * 64], extras)
        self.node.keys.update(chain.keys(i, i + 1) for i in range(blocks))
        return chain

    def step(self, *progress, finished=()):
        jobs = StepJobs(self.core.take_loads(),
                        self.core.save_jobs(progress, lambda _: self.ids))
        for name in finished:
            self.core.drop(name)
        return jobs

    def load(self, request, local_tokens=0):
        """Schedules a request with a hit; returns its LoadJob."""
        external, background = self.core.matched_tokens(request, local_tokens)
        assert external and background
        self.core.allocated(request, self.ids[:(local_tokens + external) // self.block_tokens],
                            external)
        (job,) = self.step().loads
        self.core.allocated(request, self.ids, 0)  # vLLM calls it again after the load
        return job


def test_miss_computes_all_and_saves_full_blocks_once():
    engine, request = Engine(), make_request(300)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (0, False)
    (job,) = engine.step(("r", 0, 300)).saves
    assert (job.first_block, job.blocks, job.preceding_keys) == (0, 4, b"")
    assert job.block_ids == engine.ids[:4] and job.profile is Profile.COMPACT
    assert engine.step(("r", 300, 301)).saves == []


def test_hit_loads_in_background_and_saves_only_the_rest():
    engine, request = Engine(), make_request(64 * 5 + 10)
    chain = engine.stored(request, 3)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (192, True)
    job = engine.load(request)
    assert (job.begin_token, job.end_token, job.keys) == (0, 192, chain.keys(0, 3))
    assert job.block_ids == engine.ids[:3] and job.floor is Profile.COMPACT
    (save,) = engine.step(("r", 192, 330)).saves
    assert (save.first_block, save.blocks) == (3, 2)
    assert save.preceding_keys == chain.keys(1, 3)


def test_full_hit_leaves_a_token_to_compute():
    engine, request = Engine(), make_request(256)
    engine.stored(request, 4)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (192, True)


def test_local_prefix_loads_only_beyond_it():
    engine, request = Engine(), make_request(400)
    engine.stored(request, 6)
    engine.core.add_request(request)
    job = engine.load(request, local_tokens=128)
    assert (job.begin_token, job.end_token) == (128, 384)
    assert job.block_ids == engine.ids[2:6] and len(job.keys) == 6 * 32


def test_local_prefix_longer_than_match_loads_nothing():
    engine, request = Engine(), make_request(400)
    engine.stored(request, 3)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 192) == (0, False)
    assert engine.core.matched_tokens(request, 320) == (0, False)


def test_tail_rule_loads_usable_and_saves_after_matched():
    engine, request = Engine(), make_request(64 * 6 + 1)
    engine.node.cut = 2
    engine.stored(request, 5)
    engine.core.add_request(request)
    job = engine.load(request)
    assert job.end_token == 192
    (save,) = engine.step(("r", 192, 385)).saves
    assert (save.first_block, save.blocks) == (5, 1)


def test_pending_lookup_defers_then_hits():
    engine, request = Engine(), make_request(200)
    engine.stored(request, 3)
    engine.node.ready = False
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (None, False)
    assert engine.core.matched_tokens(request, 0) == (None, False)
    engine.node.asked[0][2].ready = True
    assert engine.core.matched_tokens(request, 0) == (192, True)
    assert len(engine.node.asked) == 1


def test_matched_asked_many_times_one_lookup_until_the_answer_is_old():
    engine, request = Engine(), make_request(200)
    engine.stored(request, 3)
    engine.core.add_request(request)
    assert all(engine.core.matched_tokens(request, 0) == (192, True) for _ in range(5))
    assert len(engine.node.asked) == 1
    engine.now += ANSWER_LIFE_S + 1
    engine.node.keys.clear()
    assert engine.core.matched_tokens(request, 0) == (0, False)


def test_load_failed_whole_never_asks_again_and_saves_all():
    engine, request = Engine(), make_request(300)
    engine.stored(request, 4)
    engine.core.add_request(request)
    engine.load(request)
    for _ in range(3):
        assert engine.core.matched_tokens(request, 0) == (0, False)
    assert len(engine.node.asked) == 1
    (save,) = engine.step(("r", 0, 300)).saves
    assert (save.first_block, save.blocks) == (0, 4)
    assert engine.core.take_counters()["failed_loads"] == 1


def test_load_failed_in_part_saves_what_was_missing():
    engine, request = Engine(), make_request(300)
    engine.stored(request, 4)
    engine.core.add_request(request)
    engine.load(request)
    (save,) = engine.step(("r", 128, 300)).saves  # vLLM goes on after the good part
    assert (save.first_block, save.blocks) == (2, 2)
    assert engine.core.matched_tokens(request, 128) == (0, False)


def test_abort_while_loading_forgets_the_request():
    engine, request = Engine(), make_request(300)
    engine.stored(request, 4)
    engine.core.add_request(request)
    engine.load(request)
    engine.core.drop("r")
    jobs = engine.step(finished=["r"])
    assert jobs.loads == [] and jobs.saves == []


@pytest.mark.parametrize("blocks_wait,tokens,held", [
    (True, 300, True), (True, 60, False), (False, 300, False)])
def test_finished_request_is_held_once_where_its_saves_may_still_read(blocks_wait, tokens, held):
    engine, request = Engine(), make_request(tokens)
    engine.core.blocks_wait = blocks_wait
    engine.core.add_request(request)
    engine.step(("r", 0, tokens))
    assert engine.core.finished("r") is held
    assert engine.core.take_held() == (["r"] if held else [])
    assert engine.core.take_held() == [] and engine.core.finished("r") is False


def test_request_aborted_while_it_loads_again_is_not_held():
    engine, request = Engine(), make_request(64 * 5 + 10)
    engine.core.blocks_wait = True
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (0, False)
    engine.step(("r", 0, 330))
    engine.stored(request, 5)
    engine.now += ANSWER_LIFE_S + 1  # preempted; asks again
    engine.load(request)
    assert engine.core.finished("r") is False and engine.core.take_held() == []


def test_allocation_that_did_not_happen_leaves_no_trace():
    engine, request = Engine(), make_request(300)
    engine.stored(request, 4)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (256, True)
    assert engine.step().loads == []
    assert engine.core.matched_tokens(request, 0) == (256, True)


def test_preempted_resumes_from_its_own_saved_blocks():
    engine, request = Engine(), make_request(300)
    engine.core.add_request(request)
    engine.core.matched_tokens(request, 0)
    engine.step(("r", 0, 300))
    request.all_token_ids += range(300, 330)
    request.num_tokens = 330
    engine.step(("r", 300, 329))
    engine.stored(request, 5)
    assert engine.core.matched_tokens(request, 0) == (320, True)
    engine.load(request)
    assert engine.step(("r", 320, 330)).saves == []


def test_chunked_prefill_saves_each_block_once_in_order():
    engine, request = Engine(), make_request(1000)
    engine.core.add_request(request)
    saved, before = [], 0
    for after in (100, 150, 400, 401, 1000):
        for job in engine.step(("r", before, after)).saves:
            saved += range(job.first_block, job.first_block + job.blocks)
        before = after
    assert saved == list(range(15))


def test_decode_saves_a_block_when_it_is_full():
    engine, request = Engine(), make_request(120)
    engine.core.add_request(request)
    engine.step(("r", 0, 120))
    counts = []
    for token in range(120, 130):
        request.all_token_ids.append(token)
        counts.append(len(engine.step(("r", token, token + 1)).saves))
    assert counts == [0] * 7 + [1] + [0] * 2


def test_tokens_not_known_yet_wait():
    engine, request = Engine(), make_request(127)
    engine.core.add_request(request)
    (job,) = engine.step(("r", 0, 129)).saves  # asynchronous scheduling: two placeholders
    assert job.blocks == 1


@pytest.mark.parametrize("block_tokens,prompt,local,expected", [
    (16, 300, 0, (0, 256)), (16, 300, 80, (80, 256)), (32, 300, 96, (96, 256)),
    (128, 500, 0, (0, 384)), (128, 500, 128, (128, 384)), (128, 450, 0, (0, 384)),
])
def test_block_sizes_external_tokens_are_whole_engine_blocks(block_tokens, prompt, local, expected):
    engine, request = Engine(block_tokens), make_request(prompt)
    engine.stored(request, prompt // 64)
    engine.core.add_request(request)
    job = engine.load(request, local)
    assert (job.begin_token, job.end_token) == expected
    assert (job.end_token - local) % block_tokens == 0
    assert job.block_ids == engine.ids[local // block_tokens:job.end_token // block_tokens]


def test_blocks_of_128_save_a_half():
    engine, request = Engine(128), make_request(200)
    engine.core.add_request(request)
    (first,) = engine.step(("r", 0, 200)).saves
    assert (first.first_block, first.blocks, first.block_ids) == (0, 3, engine.ids[:2])
    request.all_token_ids += range(200, 256)
    (second,) = engine.step(("r", 200, 256)).saves
    assert (second.first_block, second.blocks, second.block_ids) == (3, 1, engine.ids[1:2])


def test_blocks_of_16_save_four_ids_a_block():
    engine, request = Engine(16), make_request(130)
    engine.core.add_request(request)
    (job,) = engine.step(("r", 0, 130)).saves
    assert job.block_ids == engine.ids[:8]


def test_salt_separates():
    engine, plain = Engine(), make_request(200)
    engine.stored(plain, 3)
    salted = make_request(200, "salted", cache_salt="x")
    engine.core.add_request(salted)
    assert engine.core.matched_tokens(salted, 0) == (0, False)
    engine.core.add_request(plain)
    assert engine.core.matched_tokens(plain, 0) == (192, True)


def lora_extras(request, begin, end, state):
    return (("lora", request.lora_request, "/a"), ("cache_salt", "s")), state


def test_lora_separates_and_the_salt_is_not_counted_twice():
    engine = Engine(generate=lora_extras)
    jobs = []
    for name in ("a", "b"):
        engine.core.add_request(make_request(200, name, lora_request=name))
        jobs += engine.step((name, 0, 200)).saves
    assert jobs[0].keys != jobs[1].keys
    unsalted = Engine(generate=lambda r, b, e, s: (lora_extras(r, b, e, s)[0][:1], s))
    unsalted.core.add_request(make_request(200, "a", lora_request="a"))
    assert unsalted.step(("a", 0, 200)).saves[0].keys == jobs[0].keys


@pytest.mark.parametrize("fields", [
    {"prompt_embeds": object()}, {"lora_request": object()}, {"mm_features": [object()]},
])
def test_unkeyable_request_is_neither_loaded_nor_saved(fields):
    generate = None if "prompt_embeds" not in fields else lora_extras
    engine, request = Engine(generate=generate), make_request(200, **fields)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (0, False)
    assert engine.step(("r", 0, 200)).saves == []


def test_skip_reading_prefix_cache_asks_nothing_but_saves():
    engine = Engine()
    request = make_request(200, skip_reading_prefix_cache=True)
    engine.stored(request, 3)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (0, False) and engine.node.asked == []
    assert len(engine.step(("r", 0, 200)).saves) == 1


def test_node_down_then_up_saves_from_the_first_block():
    engine, request = Engine(), make_request(300)
    engine.node.up = False
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (0, False)
    assert engine.step(("r", 0, 128)).saves == []
    engine.node.up = True
    (job,) = engine.step(("r", 128, 300)).saves
    assert (job.first_block, job.blocks) == (0, 4)


def test_request_override_of_profile_and_floor():
    engine = Engine()
    params = {"flashquant_profile": "exact"}
    request = make_request(200, kv_transfer_params=params)
    engine.core.add_request(request)
    assert engine.node.asked[0][1] is Profile.EXACT
    assert engine.step(("r", 0, 200)).saves[0].profile is Profile.EXACT
    loose = make_request(200, "l", kv_transfer_params={**params,
                                                       "flashquant_min_profile": "compact"})
    engine.core.add_request(loose)
    assert engine.node.asked[1][1] is Profile.COMPACT


def test_request_with_unknown_profile_is_not_cached():
    engine = Engine()
    request = make_request(200, kv_transfer_params={"flashquant_profile": "tiny"})
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (0, False)
    assert engine.step(("r", 0, 200)).saves == []


def test_request_that_must_not_be_stored_loads_and_leaves_its_provenance():
    engine, params = Engine(), {"flashquant_save": False}
    request = make_request(400, kv_transfer_params=params)
    engine.stored(request, 3)
    engine.core.add_request(request)
    assert engine.load(request).end_token == 192
    assert engine.step(("r", 192, 400)).saves == []
    exact = make_request(400, "e", kv_transfer_params={"flashquant_profile": "exact"})
    engine.core.add_request(exact)  # continues from the blocks that "r" left in vLLM's own cache
    engine.core.matched_tokens(exact, 384)
    assert engine.step(("e", 384, 500)).saves == []
    assert engine.core.take_counters()["tainted_blocks"] == 3


def test_request_whose_save_is_no_bool_is_not_cached():
    engine = Engine()
    request = make_request(200, kv_transfer_params={"flashquant_save": "no"})
    engine.core.add_request(request)
    assert engine.step(("r", 0, 200)).saves == []
    assert engine.core.take_counters() == {"refused_requests": 1}


def test_opaque_packing_refuses_lossy_requests():
    engine = Engine(profile="exact")
    engine.core.exact_only = True
    lossy = make_request(200, "l", kv_transfer_params={"flashquant_profile": "compact"})
    engine.core.add_request(lossy)
    engine.core.add_request(make_request(200))
    assert [job.request_id for job in engine.step(("l", 0, 200), ("r", 0, 200)).saves] == ["r"]
    assert [floor for _, floor, _ in engine.node.asked] == [Profile.EXACT]


def test_short_prompt_asks_nothing():
    engine, request = Engine(), make_request(64)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (0, False) and engine.node.asked == []


def test_max_match_tokens_limits_the_prefix():
    engine, request = Engine(max_match_tokens=150), make_request(500)
    engine.stored(request, 7)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (128, True)


def test_prompt_longer_than_a_lookup_asks_for_what_the_node_takes():
    engine, request = Engine(), make_request(500)
    engine.node.limit = 4
    engine.stored(request, 7)
    engine.core.add_request(request)
    assert engine.core.matched_tokens(request, 0) == (256, True)
    assert engine.node.asked[0][0] == 4


def test_fewer_blocks_than_asked_for_load_what_was_given():
    engine, request = Engine(), make_request(400)
    engine.stored(request, 6)
    engine.core.add_request(request)
    engine.core.matched_tokens(request, 0)
    engine.core.allocated(request, engine.ids[:4], 256)
    (job,) = engine.step().loads
    assert (job.begin_token, job.end_token, len(job.keys)) == (0, 256, 4 * 32)


def test_finished_requests_are_forgotten():
    engine, request = Engine(), make_request(200)
    engine.core.add_request(request)
    engine.step(("r", 0, 200), finished=["r"])
    assert engine.core._requests == {}


def run_after_compact_load(profile, local_tokens):
    """A compact request loads 4 blocks and computes 2; then another hits the engine's own cache.

    Returns what the second one saves."""
    engine, first = Engine(), make_request(400)
    engine.stored(first, 4)
    engine.core.add_request(first)
    engine.load(first)
    assert engine.step(("r", 256, 400)).saves[0].blocks == 2
    engine.node.keys.clear()
    second = make_request(520, "second", kv_transfer_params={"flashquant_profile": profile})
    engine.core.add_request(second)
    assert engine.core.matched_tokens(second, local_tokens) == (0, False)
    return engine.step(("second", local_tokens, 520)).saves, engine.core.take_counters()


@pytest.mark.parametrize("local_tokens", [128, 256, 384])
def test_computed_from_compact_pages_is_not_stored_as_better(local_tokens):
    saves, counters = run_after_compact_load("exact", local_tokens)
    assert saves == [] and counters["tainted_blocks"] == 8
    assert run_after_compact_load("near-lossless", local_tokens)[0] == []


@pytest.mark.parametrize("profile", ["compact", "universal"])
def test_computed_from_compact_pages_is_stored_as_lossy(profile):
    saves, _ = run_after_compact_load(profile, 384)
    assert saves[0].blocks == 8


def test_computed_from_nothing_is_stored_as_exact():
    saves, _ = run_after_compact_load("exact", 0)
    assert saves[0].blocks == 8


def test_exact_pages_leave_no_mark():
    engine, request = Engine(profile="exact"), make_request(400)
    engine.node.profile = Profile.EXACT
    engine.stored(request, 4)
    engine.core.add_request(request)
    engine.load(request)
    assert engine.step(("r", 256, 400)).saves[0].blocks == 2


def test_failed_load_leaves_no_mark():
    engine, request = Engine(profile="exact", min_profile="compact"), make_request(400)
    engine.stored(request, 4)
    engine.core.add_request(request)
    engine.load(request)
    engine.core.matched_tokens(request, 0)
    assert engine.step(("r", 0, 400)).saves[0].blocks == 6


def test_provenance_is_bounded_and_keeps_the_worst():
    marks = Provenance(max_keys=3)
    marks.note(b"a" * 32 + b"b" * 32, Profile.COMPACT)
    marks.note(b"a" * 32, Profile.NEAR_LOSSLESS)
    assert marks.worst(b"a" * 32) is Profile.COMPACT
    marks.note(b"c" * 32 + b"d" * 32, Profile.NEAR_LOSSLESS)
    assert marks.worst(b"b" * 32) is Profile.EXACT
    assert marks.worst(b"a" * 32 + b"d" * 32) is Profile.COMPACT
