"""Fisher matrices of K and V rows by a backward pass that holds one layer's graph at a time."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from flashquant.models import Model, Rows, Window

HEAD_CHUNK = 256
FIRST_SCORED = 256
MEMORY_BYTES = 1 << 30
INT64_RANGE = (-(1 << 63), (1 << 63) - 1)


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


def draw_cotangents(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Random c [N, vocabulary] of mean 0 with E[c c^T] = diag(p) - p p^T for each row p of
    `probabilities`: the true Fisher matrix of logits (Kunstner et al. 2019).

    c = sum over labels y of +-sqrt(p_y) (e_y - p). A drawn label has the same moments, but is a
    lottery: a rare one weighs as much as thousands of likely ones. Signs take all labels each time.
    """
    count, labels = probabilities.shape
    # Words of eight bytes, of each byte the sign: an eighth of the numbers to draw.
    words = torch.randint(*INT64_RANGE, (count, -(-labels // 8)), generator=generator,
                          device=probabilities.device)
    roots = probabilities.sqrt().copysign_(words.view(torch.int8)[:, :labels])
    return roots.addcmul_(probabilities, roots.sum(-1, keepdim=True), value=-1)


def _logit_gradient(model: Model, hidden: Tensor, first: int,
                    generator: torch.Generator) -> Tensor:
    """d / d hidden [T, D] of logits along random cotangents, at positions >= first."""
    gradient = torch.zeros_like(hidden)
    weight = model.head_weight()
    for begin in range(first, len(hidden), HEAD_CHUNK):
        part = hidden[begin:begin + HEAD_CHUNK].to(weight.dtype)
        probabilities = (part @ weight.T).float().softmax(-1)
        cotangents = draw_cotangents(probabilities, generator)
        gradient[begin:begin + HEAD_CHUNK] = (cotangents.to(weight.dtype) @ weight).float()
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

    True Fisher, one sample per position (`draw_cotangents`). Layers are run again one by one
    backwards, so only their inputs are kept.
    """
    inputs, x = LayerInputs(), model.embed(ids)
    for index in range(model.layers):
        inputs.push(x)
        x = model.layer(index, x, observe, window)
    with torch.enable_grad():
        last = x.detach().requires_grad_()
        hidden = model.final_norm(last)
    generator = torch.Generator(x.device).manual_seed(seed)
    begin = min(FIRST_SCORED, len(ids) // 2)
    gradient = _logit_gradient(model, hidden.detach(), begin, generator)
    (gradient,) = torch.autograd.grad(hidden, last, gradient)
    fisher = torch.zeros(model.layers, 2, model.kv_heads, model.head_size, model.head_size)
    stop = len(ids) - window.recent - window.chunk
    for index in reversed(range(model.layers)):
        gradient, rows = _far_gradients(model, index, inputs.pop(), gradient, window)
        rows = rows[:, :, window.sinks:stop]
        fisher[index] = (rows.transpose(2, 3) @ rows / rows.shape[2]).cpu()
    return fisher
