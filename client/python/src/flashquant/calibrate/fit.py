"""From statistics to a codec set: transforms, allocation, tables, refinement."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashquant.calibrate.allocation import (Menu, allocate, allocate_in_groups,
                                             gaussian_error, unit_channels)
from flashquant.calibrate.statistics import Progress, Statistics
from flashquant.calibrate.tables import fit_tables
from flashquant.calibrate.transform import DAMPING, Transform, fit_transform
from flashquant.codec import PartCodec
from flashquant.codec_set import CodecSet, Profile, row_dtype

# (layer, head) -> classes of K and of V.
ClassesOf = Callable[[int, int], list[list[int]]]

LEAST_SD = 1e-4
NO_LOSS = {"perplexity_excess_percent": 0.0, "standard_error_percent": 0.0, "kl_divergence": 0.0,
           "top1_agreement_percent": 0.0, "bits_per_value": 0.0, "tokens": 0, "text": "unmeasured"}


@dataclass(frozen=True)
class FitOptions:
    """Bits per value of base, and of base + refinement; most profiles; damping; seed; where."""

    base_bits: float
    total_bits: float
    profiles: int = 32
    damping: float = DAMPING
    seed: int = 0
    device: str = "cpu"


def _unit_energy(weight: Tensor) -> np.ndarray:
    """Loss weights [L, 2, G, d] -> sum per unit of channels, [L * G, units of K then of V]."""
    d = weight.shape[-1]
    units = weight.cpu().unflatten(-1, (-1, unit_channels(d))).sum(-1)
    return units.permute(0, 2, 1, 3).flatten(0, 1).flatten(1, 2).double().numpy()


def _budget(bits: float, weight: Tensor) -> int:
    """Bits per token of the whole model for `bits` per value."""
    return int(bits * weight.numel())


class _Fitter:
    """Holds what is fitted, head by head. rows: [L, G, 2] of `row_dtype(d)`."""

    def __init__(self, sample: Tensor, transform: Transform, options: FitOptions,
                 progress: Progress) -> None:
        """`sample` [L, 2, G, N, d]: rows that tables are trained on."""
        self._sample, self._device, self.progress = sample, options.device, progress
        layers, _, heads, size = transform.mu.shape
        self.rows = np.zeros((layers, heads, 2), row_dtype(size))
        self.generator = torch.Generator().manual_seed(options.seed)
        for name in ("mu", "A", "Ai", "weight"):
            value = getattr(transform, name).float().transpose(1, 2).numpy()
            self.rows[name] = value
        self.rows["sd"] = 1.0

    def places(self) -> Iterator[tuple[int, int, int]]:
        """All (layer, head, K|V)."""
        layers, heads, _ = self.rows.shape
        for layer in range(layers):
            for head in range(heads):
                for kv in (0, 1):
                    yield layer, head, kv
            if layer % 5 == 4:
                self.progress(f"  layer {layer + 1}/{layers}")

    def components(self, layer: int, head: int, kv: int) -> Tensor:
        """u [T, d] FP32 of the sample rows."""
        x = self._sample[layer, kv, head].to(self._device).float()
        return (x - self._array(layer, head, kv, "mu")) @ self._array(layer, head, kv, "A").T

    def _array(self, layer: int, head: int, kv: int, name: str) -> Tensor:
        """An array of `rows`, on the device."""
        return torch.from_numpy(self.rows[layer, head, kv][name].copy()).to(self._device)

    def _residual(self, classes: list[list[int]], layer: int, head: int, kv: int) -> Tensor:
        u = self.components(layer, head, kv)
        tables = self.rows[layer, head, kv]["base"]
        part = PartCodec(tuple(classes[kv]), tables, kv == 0, self._device)
        return u - part.decode(part.encode(u))

    def fit_base(self, classes_of: ClassesOf) -> Tensor:
        """Base tables and `sd`; returns the mean weighted square of the residual, [L, 2, G, d]."""
        layers, heads, _ = self.rows.shape
        energy = torch.zeros(layers, 2, heads, self.rows["mu"].shape[-1])
        for layer, head, kv in self.places():
            classes = classes_of(layer, head)
            row = self.rows[layer, head, kv]
            weight = self._array(layer, head, kv, "weight")
            row["base"] = fit_tables(self.components(layer, head, kv), weight, classes[kv],
                                     kv == 0, self.generator)
            square = self._residual(classes, layer, head, kv).pow(2).mean(0)
            row["sd"] = square.sqrt().clamp_min(LEAST_SD).cpu().numpy()
            energy[layer, kv, head] = (square * weight).cpu()
        return energy

    def fit_refinement(self, classes_of: ClassesOf, refinement_of: ClassesOf,
                       energy: Tensor) -> None:
        """Refinement tables for residuals of mean weighted square `energy` [L, 2, G, d]."""
        for layer, head, kv in self.places():
            row = self.rows[layer, head, kv]
            residual = self._residual(classes_of(layer, head), layer, head, kv)
            row["refinement"] = fit_tables(
                residual / self._array(layer, head, kv, "sd"),
                energy[layer, kv, head].to(self._device),
                refinement_of(layer, head)[kv], kv == 0, self.generator)


def _classes_of(menu: Menu, heads: int, size: int) -> ClassesOf:
    half = size // 8

    def find(layer: int, head: int) -> list[list[int]]:
        classes = menu.classes(menu.profile_of[layer * heads + head], unit_channels(size))
        return [classes[:half], classes[half:]]

    return find


def _profiles(base: Menu, refinement: Menu, size: int) -> list[Profile]:
    channels, half = unit_channels(size), size // 8
    profiles = []
    for index in range(len(base.choice)):
        first, second = base.classes(index, channels), refinement.classes(index, channels)
        profiles.append(Profile(*(tuple(part) for part in (first[:half], first[half:],
                                                           second[:half], second[half:]))))
    return profiles


def _report(name: str, menu: Menu, error: np.ndarray, budget: int, channels: int,
            progress: Progress) -> None:
    free = allocate(error, budget, channels, len(error))
    ratio = menu.distortion(error) / free.distortion(error)
    progress(f"{name}: {len(menu.choice)} profiles, {menu.bits(channels)} of {budget} bits a "
             f"token, predicted distortion {ratio:.3f} x that of free profiles")


def fit_codec_set(statistics: Statistics, options: FitOptions, model: str, created_by: str,
                  progress: Progress) -> CodecSet:
    """The codec set of `statistics`; its `loss` is still to be measured."""
    transform = fit_transform(*statistics.mean_and_covariance(), statistics.fisher(),
                              options.damping)
    layers, _, heads, size = transform.mu.shape
    channels = unit_channels(size)
    error = gaussian_error(_unit_energy(transform.weight))
    budget = _budget(options.base_bits, transform.weight)
    base = allocate(error, budget, channels, options.profiles)
    _report("base", base, error, budget, channels, progress)
    fitter = _Fitter(statistics.rows(), transform, options, progress)
    base_of = _classes_of(base, heads, size)
    residual = fitter.fit_base(base_of)
    rest = _budget(options.total_bits, transform.weight) - base.bits(channels)
    error = gaussian_error(_unit_energy(residual))
    refinement = allocate_in_groups(error, base.profile_of, rest, channels)
    _report("refinement", refinement, error, rest, channels, progress)
    fitter.fit_refinement(base_of, _classes_of(refinement, heads, size), residual)
    return CodecSet(
        model=model, layers=layers, kv_heads=heads, head_size=size,
        calibrated_tokens=statistics.tokens, profiles=_profiles(base, refinement, size),
        profile_of=base.profile_of.reshape(layers, heads).tolist(), rows=fitter.rows,
        loss={"compact": dict(NO_LOSS), "near-lossless": dict(NO_LOSS)},
        created_by=created_by, seed=options.seed)
