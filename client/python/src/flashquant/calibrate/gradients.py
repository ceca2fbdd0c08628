"""Fisher matrices of K and V rows by a backward pass that holds one layer's graph at a time."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashquant.models import Model, Rows, Window

HEAD_CHUNK = 256
FIRST_LABEL = 256
MEMORY_BYTES = 1 << 30
OUTPUT_SHARE = 0.2
TINY = 1e-30


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


def _label_gradients(model: Model, hidden: Tensor, first: int, draws: int,
                     generator: torch.Generator) -> Tensor:
    """d NLL / d hidden, [draws, T, D]: labels drawn from the model itself, at positions >= first.

    It is the mean row of the head under the model's probabilities less the row of the label, so
    all draws share the products with the head.
    """
    gradients = hidden.new_zeros(draws, *hidden.shape)
    weight = model.head_weight()
    for begin in range(first, len(hidden), HEAD_CHUNK):
        part = hidden[begin:begin + HEAD_CHUNK].to(weight.dtype)
        probabilities = (part @ weight.T).float().softmax(-1)
        mean = (probabilities.to(weight.dtype) @ weight).float()
        for gradient in gradients:
            labels = draw_labels(probabilities, generator)
            gradient[begin:begin + HEAD_CHUNK] = mean - weight[labels].float()
    return gradients


@dataclass(frozen=True)
class _Gradients:
    """Of one layer and one draw: d/d its input [T, D], d/d far rows [2, G, T, d], d/d what its
    attention gives [H, T, d]."""

    x: Tensor
    rows: Tensor
    attended: Tensor


def _layer_gradients(model: Model, index: int, x: Tensor, gradients: Tensor,
                     window: Window) -> list[_Gradients]:
    """Runs layer `index` on x [T, D] once, and back for each of `gradients` [draws, T, D]."""
    leaves: list[Tensor] = []

    def leaf(y: Tensor) -> Tensor:
        leaves.append(torch.zeros_like(y, requires_grad=True))
        return y + leaves[-1]

    with torch.enable_grad():
        start = x.detach().requires_grad_()
        out = model.layer(index, start, lambda _, k, v: (leaf(k), leaf(v)), window, attended=leaf)
    found = []
    for number, gradient in enumerate(gradients, 1):
        down, k, v, attended = torch.autograd.grad(out, [start, *leaves], gradient,
                                                   retain_graph=number < len(gradients))
        found.append(_Gradients(down, torch.stack([k, v]), attended.float()))
    return found


def _moment(rows: Tensor) -> Tensor:
    """Mean of x x^T over rows [..., N, d]."""
    return rows.transpose(-1, -2) @ rows / rows.shape[-2]


def _level(matrix: Tensor) -> Tensor:
    """Mean of the diagonal of [..., d, d], [..., 1, 1]."""
    return matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]


def _steadied(fisher: Tensor, attended: Tensor) -> Tensor:
    """Fisher matrices of V [G, d, d] with a share of those of attention's outputs, `attended`
    [H, T, d], at the same level.

    A row's gradient is a sum over all queries that see it, much the same for all rows of a head
    that looks everywhere: few samples of a sequence. The gradient at an output is of one query.
    """
    of_group = attended.unflatten(0, (len(fisher), -1)).flatten(1, 2)
    shape = _moment(of_group)
    return ((1 - OUTPUT_SHARE) * fisher
            + OUTPUT_SHARE * _level(fisher) / _level(shape).clamp_min(TINY) * shape)


@torch.no_grad()
def fisher_of(model: Model, ids: Tensor, window: Window, seed: int, observe: Rows,
              draws: int = 1) -> Tensor:
    """E[g g^T] over far rows of one sequence [T], [L,2,G,d,d]; `observe` sees the rows on the way.

    True Fisher (labels from the model: Kunstner et al. 2019), `draws` labels per position, each of
    which takes a backward pass; V's with a share of attention's outputs (`_steadied`). Layers are
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
    first = min(FIRST_LABEL, len(ids) // 2)
    gradients = _label_gradients(model, hidden.detach(), first, draws, generator)
    for gradient in gradients:
        gradient.copy_(torch.autograd.grad(hidden, last, gradient, retain_graph=True)[0])
    fisher = torch.zeros(model.layers, 2, model.kv_heads, model.head_size, model.head_size)
    far = slice(window.sinks, len(ids) - window.recent - window.chunk)
    for index in reversed(range(model.layers)):
        found = _layer_gradients(model, index, inputs.pop(), gradients, window)
        gradients = torch.stack([one.x for one in found])
        k, v = sum(_moment(one.rows[:, :, far]) for one in found) / draws
        fisher[index, 0] = k.cpu()
        fisher[index, 1] = _steadied(v, torch.cat([one.attended for one in found], 1)).cpu()
    return fisher
