"""Which namespace an engine's pages belong to: the model's identity, never its path alone.

Pure functions over vLLM's configuration objects; imports no vllm.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from flashquant.keys import Namespace
from flashquant.vllm.options import Options, codec_set_id
from flashquant.v1 import kv_cache_pb2 as pb

DTYPES = {"float16": pb.DTYPE_F16, "bfloat16": pb.DTYPE_BF16, "float32": pb.DTYPE_F32}
# Differ between two copies of one model, or have no say in K and V.
VOLATILE_CONFIG_KEYS = frozenset({
    "_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "_attn_implementation_autoset", "output_attentions", "output_hidden_states", "return_dict",
})
ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 64 << 10


def canonical_json(value: object) -> str:
    """One text per value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def config_fingerprint(hf_config: Any) -> str:
    """32 hex digits of the model's configuration."""
    fields = {k: v for k, v in hf_config.to_dict().items() if k not in VOLATILE_CONFIG_KEYS}
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()[:32]


def sampled_digest(folder: Path) -> str:
    """Digest of the names, sizes and 64 samples of 64 KiB each of a folder's weight files.

    Reads at most 4 MiB a file, so it costs milliseconds; two trainings of one architecture differ
    in nearly all weights. Empty when the folder has no weight files.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for i in range(SAMPLES_PER_FILE):
                file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES_PER_FILE - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return "sampled:" + digest.hexdigest() if files else ""


def weights_digest(model_config: Any, options: Options) -> str:
    """What tells these weights from others of the same configuration. ValueError: unknown."""
    if options.weights_digest:
        return options.weights_digest
    folder = Path(model_config.model)
    if folder.is_dir() and (digest := sampled_digest(folder)):
        return digest
    if commit := getattr(model_config.hf_config, "_commit_hash", None):
        return f"commit:{commit}"
    raise ValueError("FlashQuant cannot tell the weights of this model apart: set the option "
                     "weights_digest, and change it whenever the weights change")


def rope_text(text_config: Any) -> str:
    """Canonical text of the RoPE settings; a digest of it where it is too long for the wire."""
    settings = {key: value for key in ROPE_KEYS
                if (value := getattr(text_config, key, None)) is not None}
    text = canonical_json(settings)
    return text if len(text) <= 1024 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def namespace_of(model_config: Any, options: Options, layers: int, packing: str) -> Namespace:
    """Namespace of a whole model. `layers`: those with a KV cache; `packing`: see geometry.py."""
    dtype = str(model_config.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"FlashQuant: KV cache of type {dtype} is none of {', '.join(DTYPES)}")
    architectures = getattr(model_config.hf_config, "architectures", None) or ["model"]
    return Namespace(
        model=f"{architectures[0]}:{config_fingerprint(model_config.hf_config)}",
        layers=layers, kv_heads=model_config.get_total_num_kv_heads(),
        head_size=model_config.get_head_size(), dtype=DTYPES[dtype],
        weights_digest=weights_digest(model_config, options),
        rope=rope_text(model_config.hf_text_config),
        codec_set_id=codec_set_id(options.codec_set), extra={"packing": packing})


def namespace_name(namespace: Namespace, options: Options) -> str:
    """The option, or a name that no other namespace has."""
    return options.namespace or f"vllm/{namespace.fingerprint().hex()[:16]}"


def head_range(rank: int, ranks: int, total_heads: int, rank_heads: int) -> tuple[int, int]:
    """KV heads [begin, end) that a tensor-parallel rank holds; ranks share heads when few."""
    copies = max(1, ranks * rank_heads // total_heads)
    begin = rank // copies * rank_heads
    return begin, begin + rank_heads


def writes(rank: int, ranks: int, total_heads: int, rank_heads: int) -> bool:
    """Whether this rank stores its heads; of ranks that share heads only the first does."""
    return rank % max(1, ranks * rank_heads // total_heads) == 0
