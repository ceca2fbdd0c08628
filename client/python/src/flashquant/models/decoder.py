"""A decoder written out, so that K and V rows can be replaced on their way to attention."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flashquant.models.base import Attended, Past, Rows, Window, as_it_is, windowed_attention
from flashquant.models.rotary import rotation
from flashquant.models.settings import Settings
from flashquant.models.weights import Weights

ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}
MATRICES = {name: f"self_attn.{name}_proj" for name in "qkvo"} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
NORMS = {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
SANDWICH = {"before_attention": "input_layernorm", "after_attention": "post_attention_layernorm",
            "before_mlp": "pre_feedforward_layernorm", "after_mlp": "post_feedforward_layernorm"}
HEAD_NORMS = {"norm_q": "self_attn.q_norm", "norm_k": "self_attn.k_norm"}


class Decoder:
    """See `models.base.Model`. The residual is FP32, whatever the type of matrices and rows."""

    def __init__(self, folder: Path, settings: Settings, device: str = "cpu",
                 dtype: torch.dtype | None = None) -> None:
        """`dtype`: of matrices and rows; None: as in the files."""
        self.name, self.device = folder.resolve().name, device
        self.layers, self.heads = settings.layers, settings.heads
        self.kv_heads, self.head_size = settings.kv_heads, settings.head_size
        self.context_tokens = settings.context_tokens
        self._settings, self._activation = settings, ACTIVATIONS[settings.activation]
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        for index in range(self.layers):
            self._turn(index, 1)
        weights = Weights(folder, device, dtype)
        self._embedding = weights.get("model.embed_tokens.weight")
        head = weights.find("lm_head.weight")
        self._head = self._embedding if head is None else head
        self._norm = self._norm_weight(weights, "model.norm")
        self._blocks = [self._make_block(weights, f"model.layers.{index}.")
                        for index in range(self.layers)]

    def _norm_weight(self, weights: Weights, name: str) -> Tensor:
        return weights.get(f"{name}.weight").float() + self._settings.norm_offset

    def _make_block(self, weights: Weights, prefix: str) -> dict[str, tuple[Tensor, ...]]:
        """Matrices with their bias (or None), norms alone."""
        norms = SANDWICH if self._settings.sandwich else NORMS
        norms = norms | HEAD_NORMS if self._settings.head_norm else norms
        block = {key: (weights.get(f"{prefix}{name}.weight"),
                       weights.find(f"{prefix}{name}.bias")) for key, name in MATRICES.items()}
        return block | {key: (self._norm_weight(weights, prefix + name),)
                        for key, name in norms.items()}

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        epsilon = self._settings.epsilon
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight

    def _turn(self, index: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of layer `index`, [end, d]."""
        rope = self._settings.rope[index]
        known = self._turns.get(str(rope))
        if known is None or len(known[0]) < end:
            known = tuple(part.to(self.device) for part in rotation(
                rope, self.head_size, self.context_tokens, end))
            self._turns[str(rope)] = known
        return known[0][:end], known[1][:end]

    def _rotate(self, index: int, x: Tensor, first: int) -> Tensor:
        """RoPE of layer `index` on [..., T, d], FP32; the first row is at position `first`."""
        end = first + x.shape[-2]
        cosine, sine = (part[first:] for part in self._turn(index, end))
        half = self.head_size // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cosine + turned * sine

    def _project(self, index: int, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """q [..., H, T, d], k and v [..., G, T, d], FP32, q and k after RoPE from position `first`
        on."""
        block = self._blocks[index]
        normed = self._rms_norm(x, *block["before_attention"]).to(block["q"][0].dtype)
        q, k, v = (F.linear(normed, *block[name]).float().unflatten(-1, (-1, self.head_size))
                   .transpose(-3, -2) for name in "qkv")
        if self._settings.head_norm:
            q, k = self._rms_norm(q, *block["norm_q"]), self._rms_norm(k, *block["norm_k"])
        q, k = self._rotate(index, q, first), self._rotate(index, k, first)
        return q * self._settings.query_scale, k, v

    def _after(self, index: int, name: str, x: Tensor) -> Tensor:
        """Norm of what attention or the MLP adds, where the architecture has one."""
        found = self._blocks[index].get(name)
        return x.float() if found is None else self._rms_norm(x.float(), *found)

    def embed(self, ids: Tensor) -> Tensor:
        """See `Model`; ValueError if there are more ids than positions."""
        if ids.shape[-1] > self.context_tokens:
            raise ValueError(f"{ids.shape[-1]} tokens, but the model has {self.context_tokens}")
        return self._embedding[ids.to(self.device)].float() * self._settings.embedding_scale

    def layer(self, index: int, x: Tensor, rows: Rows, window: Window,
              past: Past | None = None, attended: Attended = as_it_is) -> Tensor:
        """See `Model`."""
        block = self._blocks[index]
        dtype = block["q"][0].dtype
        q, k, v = self._project(index, x, past[0].shape[-2] if past else 0)
        k, v = k.to(dtype), v.to(dtype)
        if past:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        far = tuple(part.to(dtype) for part in rows(index, k.float(), v.float()))
        seen = windowed_attention(q.to(dtype), k, v, far, window, self._settings.sliding[index])
        seen = attended(seen)
        seen = F.linear(seen.transpose(-3, -2).flatten(-2), *block["o"])
        x = x + self._after(index, "after_attention", seen)
        normed = self._rms_norm(x, *block["before_mlp"]).to(dtype)
        gate = self._activation(F.linear(normed, *block["gate"]))
        found = F.linear(gate * F.linear(normed, *block["up"]), *block["down"])
        return x + self._after(index, "after_mlp", found)

    def final_norm(self, x: Tensor) -> Tensor:
        """See `Model`."""
        return self._rms_norm(x, self._norm)

    def head_weight(self) -> Tensor:
        """See `Model`."""
        return self._head
