"""Rivals that need statistics of the model; they take them from a codec set.

A codec set holds A with unit variance of u = A (x - mu) and the weights Lambda of its components
(CODEC.md section 1), so covariance = Ai Ai^T and Fisher matrix = A^T Lambda A (damping included):
these rivals see the very statistics that fq had.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


from flashquant.codec_set import CLASSES, GROUP, CodecSet
from flashquant.rivals import gaussian_book, hadamard_lloyd_max, nearest_entry

# Mean squared error of a unit-variance component by class, in the order of CLASSES (CODEC.md).
DISTORTION = np.array([0.00025, 0.0095, 0.1078, 0.3414, 1.0])
STEP_8 = 4.5 / 127
BISECTIONS = 60


@dataclass(frozen=True)
class Statistics:
    """Of every (layer, head, K|V): mu [..., d], covariance and fisher [..., d, d], FP64."""

    mu: Tensor
    covariance: Tensor
    fisher: Tensor


def statistics_of(codec_set: CodecSet) -> Statistics:
    """What the codec set was made from."""
    rows = codec_set.rows
    analysis, synthesis = (torch.from_numpy(rows[name].astype(np.float64)) for name in ("A", "Ai"))
    weight = torch.from_numpy(rows["weight"].astype(np.float64))
    return Statistics(torch.from_numpy(rows["mu"].astype(np.float64)),
                      synthesis @ synthesis.transpose(-1, -2),
                      analysis.transpose(-1, -2) * weight[..., None, :] @ analysis)


def allocate_classes(energy: np.ndarray, bits_per_value: float) -> np.ndarray:
    """Class of each group, [rows, groups], for energy [rows, groups] = loss weight of the group:
    reverse water-filling, one price for all, mean bits at most `bits_per_value`."""
    levels = np.array(CLASSES, dtype=np.float64)

    def choose(price: float) -> np.ndarray:
        return (energy[..., None] * DISTORTION + price * GROUP * levels).argmin(-1)

    low, high = 1e-12 * float(energy.max()), float(energy.max())
    for _ in range(BISECTIONS):
        price = (low * high) ** 0.5
        if levels[choose(price)].mean() > bits_per_value:
            low = price
        else:
            high = price
    return np.array(CLASSES)[choose(high)]


def code_classes(u: Tensor, classes: np.ndarray) -> Tensor:
    """u [T, d], unit variance, coded with Gaussian byte tables; classes [d / 8]."""
    out = torch.zeros_like(u)
    for bits in set(classes.tolist()) - {0}:
        channels = torch.from_numpy(np.flatnonzero(np.repeat(classes == bits, GROUP))).to(u.device)
        part = u[:, channels]
        if bits == 8:
            out[:, channels] = (part / STEP_8).round().clamp(-127, 127) * STEP_8
        else:
            out[:, channels] = nearest_entry(part, gaussian_book(256, 8 // bits))
    return out


class PrincipalComponents:
    """Plain PCA per (layer, head, K|V) with our allocation: a component's variance times its own
    Fisher weight decides its class; the metric of the transform is not the loss. Bits of compact.
    """

    def __init__(self, codec_set: CodecSet, device: torch.device) -> None:
        found = statistics_of(codec_set)
        variance, basis = torch.linalg.eigh(found.covariance)
        variance = variance.clamp_min(1e-12)
        weight = variance * (basis * (found.fisher @ basis)).sum(-2)
        order = weight.argsort(-1, descending=True)
        variance, weight = variance.gather(-1, order), weight.gather(-1, order)
        basis = basis.gather(-1, order[..., None, :].expand_as(basis))
        energy = weight.unflatten(-1, (-1, GROUP)).sum(-1)
        flat = energy.reshape(-1, energy.shape[-1]).numpy()
        classes = allocate_classes(flat, codec_set.bits_per_value(False))
        self._classes = classes.reshape(energy.shape)
        self.bits = float(classes.mean())
        scale = variance.sqrt()[..., None, :]
        self._mu = found.mu.float().to(device)
        self._analysis = (basis / scale).float().to(device)
        self._synthesis = (basis * scale).float().to(device)

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A `Rows`."""
        return tuple(torch.stack([self._one((layer, head, which), row)
                                  for head, row in enumerate(x)]) for which, x in enumerate((k, v)))

    def _one(self, place: tuple[int, int, int], x: Tensor) -> Tensor:
        u = (x - self._mu[place]) @ self._analysis[place]
        return code_classes(u, self._classes[place]) @ self._synthesis[place].T + self._mu[place]


class BalancedTransform:
    """Balanced weighted transform (WUSH-KV, 2026) in our version: H Lambda^-1/4 U^T L^T of the
    centred row, which makes all components equally important, then Lloyd-Max with a norm per row.
    """

    def __init__(self, codec_set: CodecSet, bits: int, device: torch.device) -> None:
        self._levels = bits
        self.bits = bits + 16 / codec_set.head_size
        rows = codec_set.rows
        self._mu, analysis, synthesis, weight = (
            torch.from_numpy(rows[name].copy()).to(device) for name in ("mu", "A", "Ai", "weight"))
        quarter = weight.clamp_min(1e-30) ** 0.25
        self._analysis = quarter[..., None] * analysis
        self._synthesis = synthesis / quarter[..., None, :]

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A `Rows`."""
        return tuple(self._one(self._mu[layer, :, which], self._analysis[layer, :, which],
                               self._synthesis[layer, :, which], x)
                     for which, x in enumerate((k, v)))

    def _one(self, mu: Tensor, analysis: Tensor, synthesis: Tensor, x: Tensor) -> Tensor:
        """x [G, T, d]. The Hadamard matrix is inside `hadamard_lloyd_max`."""
        u = (x - mu[:, None]) @ analysis.transpose(-1, -2)
        coded = hadamard_lloyd_max(u, self._levels)
        return coded @ synthesis.transpose(-1, -2) + mu[:, None]
