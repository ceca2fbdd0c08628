"""Counters of the connector in vLLM's logs and Prometheus metrics."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

HELP = {
    "lookups": "Lookups sent to the node",
    "lookup_hits": "Lookups that found something to load",
    "lookup_misses": "Lookups that found nothing, or got no answer in time",
    "load_requests": "Loads asked for by the scheduler",
    "load_tokens": "Tokens asked for by the scheduler",
    "loads": "Loads that ended, well or not",
    "load_seconds": "Seconds from the start to the end of loads",
    "loaded_tokens": "Tokens that arrived in the KV cache",
    "failed_loads": "Loads that did not arrive whole and were recomputed",
    "failed_load_blocks": "Blocks of the engine that did not arrive",
    "save_blocks": "Blocks of 64 tokens given to the worker to save",
    "saved_ok_blocks": "Blocks the node stored",
    "saved_exists_blocks": "Blocks the node had already",
    "saved_full_blocks": "Blocks the node had no room for",
    "saved_miss_blocks": "Blocks the node refused: they came over NCCL with another sum",
    "damaged_blocks": "Blocks that came over NCCL with another sum, and were recomputed",
    "tainted_blocks": "Blocks not saved: computed from pages of a lower profile",
    "dropped_save_blocks": "Blocks not saved: no node, or no staging memory",
    "staging_seconds": "Seconds the model thread spent on saves",
    "transport_device": "Sessions whose pages the node reads and writes on the GPU (CUDA IPC)",
    "transport_nccl": "Links by which pages go to a node on another GPU (NCCL)",
    "transport_pinned": "Sessions whose pages travel through page-locked host memory",
    "transport_shared_memory": "Sessions whose pages travel through host memory",
    "transport_inline": "Sessions whose pages travel inside gRPC messages",
    "refused_requests": "Requests with parameters that do not fit",
    "unkeyable_requests": "Requests whose KV cannot be given a key",
    "hook_errors": "Exceptions caught in the connector's hooks",
}


class FlashQuantStats(KVConnectorStats):
    """`data`: counts by the names above, since the last report."""

    def reset(self) -> None:
        """Forgets all counts."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Adds the counts of another worker or interval."""
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """For vLLM's log line."""
        return {name: round(count, 4) for name, count in self.data.items()}

    def is_empty(self) -> bool:
        """Whether there is anything to report."""
        return not self.data


class FlashQuantPromMetrics(KVConnectorPromMetrics):
    """One counter per name, `vllm:flashquant_<name>`; all exist from the start."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any,
                 per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[tuple[str, int], Any] = {}
        for name, text in HELP.items():
            metric = self._counter_cls(name=f"vllm:flashquant_{name}", documentation=text,
                                       labelnames=labelnames)
            for engine, values in per_engine_labelvalues.items():
                self._counters[name, engine] = metric.labels(*values)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds one report."""
        for name, count in transfer_stats_data.items():
            if counter := self._counters.get((name, engine_idx)):
                counter.inc(count)
