"""The facts of one engine that both halves need, checked once at start-up. Imports no vllm."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from flashquant.keys import Namespace
from flashquant.link import SessionSpec
from flashquant.vllm.geometry import ChunkShape, Packing
from flashquant.vllm.identity import head_range, namespace_name, namespace_of, writes
from flashquant.vllm.options import Options, parse_options
from flashquant.wire import Profile

HEAD_SIZES = (64, 96, 128, 256)
BLOCK_SIZES = (16, 32, 64, 128)


class RefusedError(ValueError):
    """FlashQuant cannot serve this engine; the text says what to change."""


def require(condition: bool, text: str) -> None:
    """RefusedError unless the condition holds."""
    if not condition:
        raise RefusedError(f"FlashQuant: {text}")


@dataclass(frozen=True)
class Engine:
    """What vLLM's configuration says. `rank`, `ranks`: of the tensor-parallel group."""

    config: Any            # VllmConfig
    options: Options
    spec: Any              # KV cache spec of the one group
    layer_names: tuple[str, ...]
    block_tokens: int
    rank: int
    ranks: int

    def chunk_shape(self) -> ChunkShape:
        """One block of one layer as the configuration describes it."""
        return ChunkShape(self.block_tokens, self.spec.num_kv_heads, self.spec.head_size,
                          self.spec.dtype.itemsize)

    @property
    def blocks_stay(self) -> bool:
        """Whether a running request keeps all its blocks."""
        return all(getattr(self.spec, name, None) is None
                   for name in ("sliding_window", "attention_chunk_size"))

    def checked_staging(self, view: Any) -> int:
        """Bytes of staging, if they hold two blocks of `view`, and the view is as configured."""
        from flashquant.vllm.staging import smallest_segment

        whole = dataclasses.replace(view.shape, tokens=view.shape.tokens * view.chunks_per_block)
        require(whole == self.chunk_shape(), f"KV tensors hold {whole}, the configuration says "
                f"{self.chunk_shape()}")
        size, least = self.options.staging_bytes, smallest_segment(view)
        require(size >= least, f"staging_bytes {size} is less than two blocks of the model, "
                f"{least} bytes")
        return size

    def namespace(self, packing: Packing) -> Namespace:
        """Namespace of the whole model."""
        return namespace_of(self.config.model_config, self.options, len(self.layer_names),
                            packing.name)

    def check_packing(self, packing: Packing | None) -> Packing:
        """Refuses what cannot be cached, and lossy profiles over bytes nobody understands."""
        require(packing is not None, f"the CPU's packing of blocks of {self.block_tokens} tokens "
                "is not understood; use block_size 64")
        exact = Profile.parse(self.options.profile) is Profile.EXACT
        require(exact or not packing.opaque, f"the KV packing ({packing.opaque}) does not give "
                "back the numbers that were written: only profile exact can be used here")
        return packing

    def session_spec(self, packing: Packing, rank: int, segment_bytes: int) -> SessionSpec:
        """How rank `rank`'s part is stored and loaded."""
        namespace = self.namespace(packing)
        name = f"vllm-worker-{rank}" if segment_bytes else "vllm-scheduler"
        heads = head_range(rank, self.ranks, namespace.kv_heads, self.spec.num_kv_heads)
        return SessionSpec(namespace_name(namespace, self.options), namespace,
                           (0, len(self.layer_names)), heads, name, segment_bytes,
                           self.lossy_context_tokens)

    @property
    def lossy_context_tokens(self) -> int:
        """Longest context stored by the codec set; 0: nothing is."""
        coded = Profile.parse(self.options.profile) in (Profile.NEAR_LOSSLESS, Profile.COMPACT)
        return self.config.model_config.max_model_len if coded else 0

    @property
    def saves(self) -> bool:
        """Whether this rank stores what it computes."""
        total = self.config.model_config.get_total_num_kv_heads()
        return self.options.save and writes(self.rank, self.ranks, total, self.spec.num_kv_heads)


def engine_of(config: Any, kv_cache_config: Any) -> Engine:
    """Checks vLLM's configuration; ValueError (RefusedError) says what does not fit."""
    transfer, parallel = config.kv_transfer_config, config.parallel_config
    options = parse_options(transfer.kv_connector_extra_config)
    require(getattr(transfer, "kv_load_failure_policy", "") == "recompute",
            'set "kv_load_failure_policy": "recompute", or a lost page fails its request')
    require(parallel.pipeline_parallel_size == 1, "pipeline parallelism is not supported")
    contexts = [getattr(parallel, f"{kind}_context_parallel_size", 1)
                for kind in ("decode", "prefill")]
    require(contexts == [1, 1], "context parallelism is not supported")
    groups = kv_cache_config.kv_cache_groups
    require(len(groups) == 1, f"needs one KV cache group, this model has {len(groups)}")
    return Engine(config, options, checked_spec(config, groups[0].kv_cache_spec),
                  tuple(sorted(groups[0].layer_names, key=layer_number)),
                  config.cache_config.block_size, parallel.rank % parallel.tensor_parallel_size,
                  parallel.tensor_parallel_size)


def checked_spec(config: Any, spec: Any) -> Any:
    """The group's KV cache spec, if its pages can be cached."""
    cache_dtype = config.cache_config.cache_dtype
    require(cache_dtype in ("auto", str(config.model_config.dtype).removeprefix("torch.")),
            f"kv_cache_dtype {cache_dtype} is not supported, use auto")
    for name in ("num_kv_heads", "head_size", "dtype"):
        require(hasattr(spec, name), f"KV cache of kind {type(spec).__name__} is not supported")
    head_size_v = getattr(spec, "head_size_v", None) or spec.head_size
    require(spec.head_size in HEAD_SIZES and head_size_v == spec.head_size,
            f"head size {spec.head_size} (V: {head_size_v}) is none of {HEAD_SIZES}")
    size = config.cache_config.block_size
    require(size in BLOCK_SIZES, f"block_size {size} is none of {BLOCK_SIZES}")
    return spec


def layer_number(name: str) -> tuple[int, str]:
    """Sorts "model.layers.10.self_attn.attn" behind "model.layers.9.self_attn.attn"."""
    found = re.search(r"\.(\d+)\.", name)
    return (int(found.group(1)) if found else 0, name)
