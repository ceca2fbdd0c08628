"""What a configuration says about the forward pass, for each architecture that is known."""

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Forward pass of a decoder. `sliding`: tokens that a query sees, None for all, by layer;
    `rope`: parameters of the rotation, by layer; `norm_offset` is added to weights of norms;
    `sandwich`: norms after attention and after the MLP too."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    context_tokens: int
    epsilon: float
    activation: str
    sliding: tuple[int | None, ...]
    rope: tuple[Config, ...]
    head_norm: bool = False
    norm_offset: float = 0.0
    sandwich: bool = False
    embedding_scale: float = 1.0
    query_scale: float = 1.0


def _sliding_layers(config: Config, architecture: str) -> list[bool]:
    """Which layers slide."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if not window or architecture.startswith("Llama"):
        return [False] * layers
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    if architecture.startswith("Mistral"):
        return [True] * layers
    if architecture.startswith("Gemma3"):
        pattern = config.get("sliding_window_pattern", 6)
        return [(layer + 1) % pattern != 0 for layer in range(layers)]
    slides = config.get("use_sliding_window", False)
    return [slides and layer >= config.get("max_window_layers", 0) for layer in range(layers)]


def _rope(config: Config, slides: bool, gemma: bool) -> Config:
    """Parameters of one layer's rotation, from any of the ways in which files state them."""
    stated = config.get("rope_parameters") or {}
    kind = "sliding_attention" if slides else "full_attention"
    if kind in stated:
        return stated[kind]
    theta = stated.get("rope_theta", config.get("rope_theta", 1e6 if gemma else 10000.0))
    if gemma and slides:
        return {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
    scaling = {k: v for k, v in (stated or config.get("rope_scaling") or {}).items()
               if k not in ("sliding_attention", "full_attention")}
    return {"rope_theta": theta} | scaling


def read_settings(config: Config, architecture: str) -> Settings:
    """ValueError if the configuration asks for something that the forward pass does not compute."""
    gemma = architecture.startswith("Gemma3")
    activation = config.get("hidden_activation" if gemma else "hidden_act",
                            "gelu_pytorch_tanh" if gemma else "silu")
    if activation not in ("silu", "gelu_pytorch_tanh"):
        raise ValueError(f"hidden_act is {activation!r}; supported: 'silu', 'gelu_pytorch_tanh'")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name):
            raise ValueError(f"{name} is {config[name]!r}; supported: null")
    if config.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is true; supported: false")
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    slides = _sliding_layers(config, architecture)
    scalar = config.get("query_pre_attn_scalar", 256) if gemma else head_size
    return Settings(
        layers, config["hidden_size"], heads, config.get("num_key_value_heads") or heads, head_size,
        config["max_position_embeddings"], config["rms_norm_eps"], activation,
        tuple(config["sliding_window"] if one else None for one in slides),
        tuple(_rope(config, one, gemma) for one in slides),
        head_norm=gemma or architecture.startswith("Qwen3"), norm_offset=1.0 if gemma else 0.0,
        sandwich=gemma, embedding_scale=config["hidden_size"] ** 0.5 if gemma else 1.0,
        query_scale=(head_size / scalar) ** 0.5)
