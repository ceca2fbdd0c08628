"""Llama architecture (Llama, SmolLM2, ...) written out, so that K and V rows can be replaced."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashquant.models.base import Rows, Window, windowed_attention


def _refuse_unknown(folder: Path, config: dict[str, Any]) -> None:
    """ValueError if the configuration asks for something this forward pass does not compute."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    wanted = {"hidden_act": (config.get("hidden_act", "silu"), "silu"),
              "rope_type": (rope_type, "default"),
              "attention_bias": (config.get("attention_bias", False), False),
              "mlp_bias": (config.get("mlp_bias", False), False)}
    for field, (found, supported) in wanted.items():
        if found != supported:
            raise ValueError(f"{folder}: {field} is {found!r}; supported: {supported!r}")


def _load_weights(folder: Path, device: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no *.safetensors file")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(load_file(str(file), device))
    return {name: weight.to(dtype or weight.dtype) for name, weight in weights.items()}


class LlamaModel:
    """See `models.base.Model`. The residual is FP32, whatever the type of matrices and rows."""

    def __init__(self, folder: Path, config: dict[str, Any], device: str = "cpu",
                 dtype: torch.dtype | None = None) -> None:
        """`dtype`: of matrices and rows; None: as in the checkpoint."""
        _refuse_unknown(folder, config)
        self.name = folder.resolve().name
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads", self.heads)
        self.head_size = config.get("head_dim") or config["hidden_size"] // self.heads
        self.context_tokens = config["max_position_embeddings"]
        self._epsilon = config["rms_norm_eps"]
        rope = config.get("rope_parameters") or config
        self.device = device
        self._make_rotation(float(rope.get("rope_theta", 10000.0)))
        weights = _load_weights(folder, device, dtype)
        self._embedding = weights["model.embed_tokens.weight"]
        self._head = weights.get("lm_head.weight", self._embedding)
        self._norm = weights["model.norm.weight"].float()
        self._blocks = [self._make_block(weights, i) for i in range(self.layers)]

    def _make_rotation(self, theta: float) -> None:
        half = torch.arange(0, self.head_size, 2, dtype=torch.float64) / self.head_size
        angle = torch.arange(self.context_tokens, dtype=torch.float64)[:, None] * theta ** -half
        self._cos = torch.cat([angle.cos()] * 2, -1).float().to(self.device)
        self._sin = torch.cat([angle.sin()] * 2, -1).float().to(self.device)

    @staticmethod
    def _make_block(weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        def weight(name: str) -> Tensor:
            return weights[f"model.layers.{index}.{name}.weight"]

        qkv = [weight(f"self_attn.{name}_proj") for name in "qkv"]
        gate_up = [weight(f"mlp.{name}_proj") for name in ("gate", "up")]
        return {"qkv": torch.cat(qkv), "out": weight("self_attn.o_proj"),
                "gate_up": torch.cat(gate_up), "down": weight("mlp.down_proj"),
                "norm_attention": weight("input_layernorm").float(),
                "norm_mlp": weight("post_attention_layernorm").float()}

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._epsilon) * weight

    def _rotate(self, x: Tensor) -> Tensor:
        """RoPE on [heads, T, d], FP32."""
        tokens, half = x.shape[1], self.head_size // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self._cos[:tokens] + turned * self._sin[:tokens]

    def _project(self, block: dict[str, Tensor], x: Tensor) -> list[Tensor]:
        """q [H, T, d], k and v [G, T, d], FP32, q and k after RoPE."""
        normed = self._rms_norm(x, block["norm_attention"]).to(block["qkv"].dtype)
        counts = [self.heads, self.kv_heads, self.kv_heads]
        parts = (normed @ block["qkv"].T).split([n * self.head_size for n in counts], -1)
        q, k, v = (part.float().view(len(x), n, self.head_size).transpose(0, 1)
                   for part, n in zip(parts, counts))
        return [self._rotate(q), self._rotate(k), v]

    def embed(self, ids: Tensor) -> Tensor:
        """See `Model`; ValueError if there are more ids than positions."""
        if len(ids) > self.context_tokens:
            raise ValueError(f"{len(ids)} tokens, but the model has {self.context_tokens}")
        return self._embedding[ids.to(self.device)].float()

    def layer(self, index: int, x: Tensor, rows: Rows, window: Window) -> Tensor:
        """See `Model`."""
        block = self._blocks[index]
        dtype = block["qkv"].dtype
        q, k, v = self._project(block, x)
        k, v = k.to(dtype), v.to(dtype)
        far_k, far_v = rows(index, k.float(), v.float())
        seen = windowed_attention(q.to(dtype), k, v, (far_k.to(dtype), far_v.to(dtype)), window)
        x = x + (seen.transpose(0, 1).reshape(len(x), -1) @ block["out"].T).float()
        normed = self._rms_norm(x, block["norm_mlp"]).to(dtype)
        gate, up = (normed @ block["gate_up"].T).chunk(2, -1)
        return x + ((F.silu(gate) * up) @ block["down"].T).float()

    def final_norm(self, x: Tensor) -> Tensor:
        """See `Model`."""
        return self._rms_norm(x, self._norm)

    def head_weight(self) -> Tensor:
        """See `Model`."""
        return self._head
