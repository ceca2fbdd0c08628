"""Fisher matrices of K and V rows by a backward pass that holds one layer's graph at a time."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from flashquant.models import Model, Rows, Window

HEAD_CHUNK = 256
FIRST_LABEL = 256
MEMORY_BYTES = 1 << 30


class LayerInputs:
    """Stack of the inputs of layers; what exceeds `memory_bytes` waits in files."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._left = memory_bytes
        self._stack: list[Tensor | Path] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def push(self, x: Tensor) -> None:
        """Keeps `x`."""
        size = x.numel() * x.element_size()
        if size <= self._left:
            self._left -= size
            self._stack.append(x)
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="flashquant-")
        file = Path(self._folder.name) / str(len(self._stack))
        torch.save(x, file)
        self._stack.append(file)

    def pop(self) -> Tensor:
        """The last that was kept."""
        x = self._stack.pop()
        if isinstance(x, Tensor):
            self._left += x.numel() * x.element_size()
            return x
        found = torch.load(x, weights_only=True)
        x.unlink()
        return found


def draw_labels(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index [N] for each row of `probabilities` [N, vocabulary], by inversion: one random
    number a row, while torch.multinomial draws one for each entry."""
    total = probabilities.cumsum(-1)
    shape = (len(total), 1)
    place = torch.rand(shape, generator=generator, device=total.device) * total[:, -1:]
    return torch.searchsorted(total, place, right=True)[:, 0].clamp_max(total.shape[1] - 1)


def _label_gradient(model: Model, hidden: Tensor, first: int,
                    generator: torch.Generator) -> Tensor:
    """d NLL / d hidden [T, D] for labels drawn from the model itself, at positions >= first."""
    gradient = torch.zeros_like(hidden)
    weight = model.head_weight()
    for begin in range(first, len(hidden), HEAD_CHUNK):
        part = hidden[begin:begin + HEAD_CHUNK].to(weight.dtype)
        probabilities = (part @ weight.T).float().softmax(-1)
        labels = draw_labels(probabilities, generator)
        probabilities[torch.arange(len(part), device=part.device), labels] -= 1.0
        gradient[begin:begin + HEAD_CHUNK] = (probabilities.to(weight.dtype) @ weight).float()
    return gradient


def _far_gradients(model: Model, index: int, x: Tensor, gradient: Tensor,
                   window: Window) -> tuple[Tensor, Tensor]:
    """Runs layer `index` on x [T, D] with gradients: (d/dx, [2, G, T, d] d/d far rows)."""
    leaves: list[Tensor] = []

    def detour(_: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        leaves.extend([torch.zeros_like(k, requires_grad=True),
                       torch.zeros_like(v, requires_grad=True)])
        return k + leaves[0], v + leaves[1]

    with torch.enable_grad():
        start = x.detach().requires_grad_()
        out = model.layer(index, start, detour, window)
        grads = torch.autograd.grad(out, [start, *leaves], gradient)
    return grads[0], torch.stack(grads[1:])


@torch.no_grad()
def fisher_of(model: Model, ids: Tensor, window: Window, seed: int, observe: Rows) -> Tensor:
    """E[g g^T] over far rows of one sequence [T], [L,2,G,d,d]; `observe` sees the rows on the way.

    True Fisher (labels from the model: Kunstner et al. 2019), one sample per position. Layers are
    run again one by one backwards, so only their inputs are kept.
    """
    inputs, x = LayerInputs(), model.embed(ids)
    for index in range(model.layers):
        inputs.push(x)
        x = model.layer(index, x, observe, window)
    with torch.enable_grad():
        last = x.detach().requires_grad_()
        hidden = model.final_norm(last)
    generator = torch.Generator(x.device).manual_seed(seed)
    gradient = _label_gradient(model, hidden.detach(), min(FIRST_LABEL, len(ids) // 2), generator)
    (gradient,) = torch.autograd.grad(hidden, last, gradient)
    fisher = torch.zeros(model.layers, 2, model.kv_heads, model.head_size, model.head_size)
    stop = len(ids) - window.recent - window.chunk
    for index in reversed(range(model.layers)):
        gradient, rows = _far_gradients(model, index, inputs.pop(), gradient, window)
        rows = rows[:, :, window.sinks:stop]
        fisher[index] = (rows.transpose(2, 3) @ rows / rows.shape[2]).cpu()
    return fisher
