"""The connector against the installed vLLM's interface; options, identity and refusals."""

import inspect
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flashquant.vllm import identity
from flashquant.vllm.engine import engine_of, layer_number
from flashquant.vllm.extra_keys import canonical
from flashquant.vllm.geometry import Packing
from flashquant.vllm.jobs import LoadJob, SaveJob, StepJobs
from flashquant.vllm.rows_view import RowsView
from flashquant.vllm.options import Options, codec_set_id, parse_options, policy_of
from flashquant.vllm.scheduler_core import UnkeyableError
from flashquant.wire import Profile

ROWS = Packing(0, 1, 64, 4096, 64, 1)


# Options.

def test_options_defaults_need_a_codec_set_or_another_profile():
    with pytest.raises(ValueError, match="profile compact needs codec_set"):
        parse_options({})
    assert parse_options({"profile": "exact"}) == Options(profile="exact")


@pytest.mark.parametrize("endpoint", ["unix:///run/s", "node-a:7600", "127.0.0.1:1", "[::1]:7600"])
def test_options_endpoint_is_a_socket_or_host_and_port(endpoint):
    assert parse_options({"profile": "exact", "endpoint": endpoint}).endpoint == endpoint


@pytest.mark.parametrize("config,text", [
    ({"profil": "exact"}, "unknown option 'profil'; known: endpoint"),
    ({"profile": "tiny"}, "'tiny' is none of exact"),
    ({"profile": 1}, "profile must be of type str, got 1"),
    ({"profile": "exact", "save": 1}, "save must be of type bool"),
    ({"profile": "exact", "staging_bytes": True}, "staging_bytes must be of type int"),
    ({"profile": "exact", "load_timeout_ms": 0}, "load_timeout_ms must be > 0, got 0"),
    ({"profile": "exact", "endpoint": "/run/s"}, "endpoint '/run/s' is neither unix:///path nor"),
    ({"profile": "exact", "endpoint": "http://h:1"}, "'http://h:1' is neither"),
    ({"profile": "exact", "endpoint": "h"}, "endpoint 'h' is neither"),
    ({"profile": "exact", "namespace": "a b"}, "namespace 'a b' is not"),
    ({"profile": "exact", "max_match_tokens": -1}, "max_match_tokens must be >= 0, got -1"),
    ({"profile": "exact", "min_profile": "universal"}, "min_profile universal"),
])
def test_options_wrong_value_is_named(config, text):
    with pytest.raises(ValueError, match=text):
        parse_options(config)


def test_policy_floor_follows_profile_unless_said():
    options = Options(profile="compact", min_profile="near-lossless", codec_set="x")
    assert policy_of(options, None).floor is Profile.NEAR_LOSSLESS
    assert policy_of(options, {"flashquant_profile": "exact"}).floor is Profile.EXACT
    assert policy_of(options, {"flashquant_profile": "universal"}).floor is Profile.COMPACT


def test_policy_of_a_request_that_must_not_be_stored():
    options = Options(profile="exact")
    assert policy_of(options, None).save and not policy_of(options, {"flashquant_save": False}).save
    with pytest.raises(ValueError, match="flashquant_save must be of type bool, got 'no'"):
        policy_of(options, {"flashquant_save": "no"})


def test_codec_set_id_read_from_the_header(tmp_path):
    path = tmp_path / "a.fqcs"
    path.write_bytes(b"FQCS" + bytes(20) + bytes(range(32)) + bytes(8))
    assert codec_set_id(str(path)) == bytes(range(32)) and codec_set_id("") == b""
    path.write_bytes(b"FQCS")
    with pytest.raises(ValueError, match="not a codec-set file"):
        codec_set_id(str(path))
    with pytest.raises(ValueError, match="No such file"):
        codec_set_id(str(tmp_path / "none"))


# Identity.

def model_config(folder, **changes):
    """A model's configuration as vLLM holds it; `changes` go to config.json."""
    fields = {"architectures": ["LlamaForCausalLM"], "rope_theta": 100000.0, "hidden_size": 576,
              "_name_or_path": str(folder), "transformers_version": "1", **changes}
    hf_config = SimpleNamespace(**fields, to_dict=lambda: dict(fields))
    return SimpleNamespace(model=str(folder), hf_config=hf_config, hf_text_config=hf_config,
                           dtype=torch.bfloat16, get_total_num_kv_heads=lambda: 3,
                           get_head_size=lambda: 64, max_model_len=16384)


def fingerprint(config):
    options = Options(profile="exact")
    return identity.namespace_of(config, options, 30, "rows").fingerprint()


@pytest.fixture(name="folder")
def folder_fixture(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 20))
    return tmp_path


def test_namespace_same_model_in_another_folder_is_the_same(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("copy")
    (other / "model.safetensors").write_bytes(bytes(1 << 20))
    assert fingerprint(model_config(folder)) == fingerprint(model_config(other))


def test_namespace_other_config_or_weights_is_another(folder):
    first = fingerprint(model_config(folder))
    assert fingerprint(model_config(folder, hidden_size=577)) != first
    assert fingerprint(model_config(folder, rope_theta=1.0)) != first
    weights = bytearray(1 << 20)
    weights[700_000] = 1
    (folder / "model.safetensors").write_bytes(weights)
    assert fingerprint(model_config(folder)) != first


def test_namespace_weights_unknown_is_refused(tmp_path):
    with pytest.raises(ValueError, match="weights_digest"):
        fingerprint(model_config(tmp_path / "hub-name"))


@pytest.mark.parametrize("ranks,total,local,expected", [
    (1, 3, 3, [(0, 3)]), (2, 8, 4, [(0, 4), (4, 8)]), (4, 2, 1, [(0, 1), (0, 1), (1, 2), (1, 2)]),
])
def test_head_ranges_of_tensor_parallel_ranks(ranks, total, local, expected):
    assert [identity.head_range(r, ranks, total, local) for r in range(ranks)] == expected
    writers = [r for r in range(ranks) if identity.writes(r, ranks, total, local)]
    assert sorted({expected[r] for r in writers}) == sorted(set(expected))
    assert len(writers) == len(set(expected))


def test_layers_sorted_by_number():
    names = [f"model.layers.{i}.self_attn.attn" for i in (10, 9, 0)]
    assert sorted(names, key=layer_number) == names[::-1]


# Refusals.

def vllm_configs(folder, groups=1, transfer=(), parallel=(), cache=(), spec=()):
    """(VllmConfig, KVCacheConfig) with changes; only what engine_of reads."""
    transfer = {"kv_connector_extra_config": {"profile": "exact"},
                "kv_load_failure_policy": "recompute", **dict(transfer)}
    parallel = {"pipeline_parallel_size": 1, "tensor_parallel_size": 1, "rank": 0,
                **dict(parallel)}
    cache = {"cache_dtype": "auto", "block_size": 64, **dict(cache)}
    spec = {"num_kv_heads": 3, "head_size": 64, "dtype": torch.bfloat16, **dict(spec)}
    group = SimpleNamespace(kv_cache_spec=SimpleNamespace(**spec), layer_names=["model.layers.0.a"])
    config = SimpleNamespace(
        kv_transfer_config=SimpleNamespace(**transfer), model_config=model_config(folder),
        parallel_config=SimpleNamespace(**parallel), cache_config=SimpleNamespace(**cache))
    return config, SimpleNamespace(kv_cache_groups=[group] * groups)


@pytest.mark.parametrize("changes,text", [
    ({"transfer": {"kv_load_failure_policy": "fail"}}, "recompute"),
    ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline"),
    ({"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
    ({"groups": 2}, "one KV cache group, this model has 2"),
    ({"cache": {"cache_dtype": "fp8"}}, "kv_cache_dtype fp8"),
    ({"cache": {"block_size": 48}}, "block_size 48"),
    ({"spec": {"head_size": 80}}, "head size 80"),
    ({"spec": {"head_size_v": 32}}, r"head size 64 \(V: 32\)"),
])
def test_engine_unsupported_is_refused_by_name(folder, changes, text):
    with pytest.raises(ValueError, match=text):
        engine_of(*vllm_configs(folder, **changes))


@pytest.mark.parametrize("spec,stay", [({}, True), ({"sliding_window": None}, True),
                                       ({"sliding_window": 4096}, False),
                                       ({"attention_chunk_size": 8192}, False)])
def test_engine_whose_blocks_may_go_is_known(folder, spec, stay):
    assert engine_of(*vllm_configs(folder, spec=spec)).blocks_stay is stay


def test_engine_staging_and_view_are_checked(folder):
    engine = engine_of(*vllm_configs(folder, transfer={"kv_connector_extra_config": {
        "profile": "exact", "staging_bytes": 98304}}))
    split = RowsView([torch.zeros(8, 3, 16, 128, dtype=torch.bfloat16)], 2, 3, 64)
    assert engine.checked_staging(split) == 98304  # four kernel blocks are one of the manager
    with pytest.raises(ValueError, match="the configuration says"):
        engine.checked_staging(RowsView([torch.zeros(8, 3, 16, 128)], 8, 3, 64))
    double = RowsView([torch.zeros(2, 3, 64, 128, dtype=torch.bfloat16)] * 2, 2, 3, 64)
    with pytest.raises(ValueError, match="staging_bytes 98304 is less than two blocks"):
        engine.checked_staging(double)


def test_engine_opaque_packing_serves_exact_only(folder):
    engine = engine_of(*vllm_configs(folder))
    opaque = Packing(0, 64, 1, 4096, 64, 1, opaque="opaque-amx-64")
    assert engine.check_packing(opaque) is opaque
    universal = {"kv_connector_extra_config": {"profile": "universal"}}
    with pytest.raises(ValueError, match="only profile exact"):
        engine_of(*vllm_configs(folder, transfer=universal)).check_packing(opaque)
    with pytest.raises(ValueError, match="not understood"):
        engine.check_packing(None)


def test_engine_session_spec_of_a_rank(folder):
    engine = engine_of(*vllm_configs(folder))
    spec = engine.session_spec(ROWS, 0, 4096)
    assert spec.layers == (0, 1) and spec.heads == (0, 3) and spec.segment_bytes == 4096
    assert spec.namespace_name == f"vllm/{spec.namespace.fingerprint().hex()[:16]}"


@pytest.mark.parametrize("profile,tokens", [
    ("exact", 0), ("universal", 0), ("compact", 16384), ("near-lossless", 16384)])
def test_engine_context_length_goes_with_profiles_of_a_codec_set(folder, tmp_path, profile, tokens):
    codec_set = tmp_path / "a.fqcs"
    codec_set.write_bytes(b"FQCS" + bytes(20) + bytes(range(32)) + bytes(8))
    options = {"profile": profile, "codec_set": str(codec_set)}
    transfer = {"kv_connector_extra_config": options}
    engine = engine_of(*vllm_configs(folder, transfer=transfer))
    assert engine.session_spec(ROWS, 0, 0).context_tokens == tokens


# Small pieces.

def test_canonical_extras_differ_and_odd_types_are_refused():
    values = [None, True, 1, "1", b"1", (1,), ("1", 1), (("1",), 1), ("11",), ("1", "1"), ()]
    assert len({canonical(v) for v in values}) == len(values)
    assert canonical(["a"]) == canonical(("a",))
    with pytest.raises(UnkeyableError, match="float"):
        canonical(1.0)


def test_jobs_pickle_small():
    jobs = StepJobs([LoadJob("r", bytes(64 * 32), 0, 4096, list(range(64)), Profile.COMPACT)],
                    [SaveJob("r", 0, bytes(32), b"", [1], Profile.EXACT)])
    data = pickle.dumps(jobs)
    assert pickle.loads(data) == jobs and len(data) < 4096


# Against the installed vLLM.

@pytest.fixture(name="interface", scope="module")
def interface_fixture():
    from vllm.distributed.kv_transfer.kv_connector.v1 import base
    return base


def test_interface_every_override_takes_what_vllm_passes(interface):
    from flashquant.vllm.connector import FlashQuantConnector
    base = interface.KVConnectorBase_V1
    assert not FlashQuantConnector.__abstractmethods__
    for name, member in vars(FlashQuantConnector).items():
        function = getattr(member, "__func__", member)
        if name.startswith("_") or not callable(function):
            continue
        assert hasattr(base, name), f"{name} is no hook of this vLLM"
        theirs = inspect.signature(getattr(getattr(base, name), "__func__", getattr(base, name)))
        ours = inspect.signature(function)
        assert list(ours.parameters) == list(theirs.parameters), name


def test_interface_constructor_and_transfer_results(interface):
    from flashquant.vllm.connector import FlashQuantConnector
    parameters = inspect.signature(FlashQuantConnector.__init__).parameters
    assert list(parameters)[1:] == ["vllm_config", "role", "kv_cache_config"]
    source = inspect.getsource(interface.KVConnectorBase_V1.get_transfer_results)
    assert "self.get_finished(" in source


def test_interface_scheduler_output_has_what_we_read(interface):
    from vllm.v1.core.sched.output import (
        CachedRequestData,
        KVConnectorBlockState,
        NewRequestData,
        SchedulerOutput,
    )
    needed = {SchedulerOutput: ("scheduled_new_reqs", "scheduled_cached_reqs",
                                "num_scheduled_tokens", "scheduled_spec_decode_tokens",
                                "finished_req_ids", "preempted_req_ids",
                                "kv_connector_block_state"),
              NewRequestData: ("req_id", "num_computed_tokens"),
              CachedRequestData: ("req_ids", "num_computed_tokens")}
    for kind, names in needed.items():
        assert set(names) <= set(kind.__dataclass_fields__), kind.__name__
    state = KVConnectorBlockState({"r"}, lambda _: ([1, 2],), {})
    assert state.get_block_ids("r")[0] == [1, 2]


def test_interface_extra_keys_importable_and_salt_is_tagged(interface):
    from flashquant.vllm import connector
    request = SimpleNamespace(mm_features=None, lora_request=None, cache_salt="s",
                              prompt_embeds=None)
    extras, state = connector.generate_block_hash_extra_keys(request, 0, 64, 0)
    assert extras == (("cache_salt", "s"),) and state == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [32, 64, 128])
def test_interface_staged_chunks_of_this_machine_are_rows(interface, tokens, dtype):
    """What vLLM's own op writes (AMX interleaves bfloat16), copied to staging, is K and V by
    the strides that the node is told; copied back it is the engine's block again."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    from flashquant.vllm.cache_view import view_of
    from flashquant.vllm.geometry import ChunkShape
    from flashquant.vllm.probe import cpu_packing
    heads, size = 3, 64
    found = cpu_packing(ChunkShape(tokens, heads, size, dtype.itemsize), dtype)
    assert found.name == "rows"
    random = torch.Generator().manual_seed(tokens)
    rows = [torch.randn(tokens, heads, size, generator=random).to(dtype) for _ in range(2)]
    cache = torch.zeros(2, heads, tokens, 2 * size, dtype=dtype)
    parts = cache[1:].view(1, heads, 2 * tokens, size).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(*rows, *parts, torch.arange(tokens),
                                   _get_attn_isa(dtype, tokens, size))
    view = view_of([cache], 2, found.order)
    staging = torch.zeros(1, 1, view.words, dtype=torch.int64)
    view.gather(np.array([1]), staging)
    for row, begin, token, channel in (
            (rows[0], found.k_offset, found.k_token_stride, found.k_channel_stride),
            (rows[1], found.v_offset, found.v_token_stride, found.v_channel_stride)):
        staged = staging.view(dtype).as_strided(row.shape, (token, 2 * tokens * size, channel),
                                                begin)
        assert torch.equal(staged, row)
    view.scatter(np.array([0]), staging)
    assert torch.equal(cache[0], cache[1])


def test_plugin_registers_once_by_name(interface):
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from flashquant.vllm import plugin
    plugin.register()
    plugin.register()
    found = KVConnectorFactory.get_connector_class_by_name("FlashQuantConnector")
    assert found.__module__ == "flashquant.vllm.connector"


def test_hook_that_fails_returns_its_default_and_is_counted(interface):
    from flashquant.vllm.connector import FlashQuantConnector
    broken = object.__new__(FlashQuantConnector)
    broken.hook_errors, broken._scheduler, broken._worker = 0, None, None
    assert broken.get_num_new_matched_tokens(None, 0) == (0, False)
    assert broken.build_connector_meta(None).jobs == StepJobs()
    assert broken.get_block_ids_with_load_errors() == set()
    assert broken.get_transfer_results(set()).finished_recving == set()
    assert broken.get_kv_connector_stats().data == {"hook_errors": 4}


def test_stats_add_up_and_survive_the_wire(interface):
    from flashquant.vllm.stats import HELP, FlashQuantStats
    stats = FlashQuantStats(data={"lookups": 1})
    stats.aggregate(FlashQuantStats(data=json.loads('{"lookups": 2, "load_seconds": 0.5}')))
    assert stats.reduce() == {"lookups": 3, "load_seconds": 0.5} and not stats.is_empty()
    assert set(stats.data) <= set(HELP)
    stats.reset()
    assert stats.is_empty()
