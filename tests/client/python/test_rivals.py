"""Arithmetic of the rivals, against values by hand, published figures and properties."""

import random

import numpy as np
import pytest
import torch
from test_codec_set import random_codec_set

from flashquant.evaluate.calibrated_rivals import (
    BalancedTransform, PrincipalComponents, allocate_classes, statistics_of)
from flashquant.rivals import (
    RIVALS, asymmetric, gaussian_book, hadamard_lloyd_max, higgs_2d, int4, kivi_2,
    lloyd_max, q4_0, turboquant_nc)

# Max 1960, table I: the positive levels.
LLOYD_MAX_TABLE = {2: (0.4528, 1.5104), 3: (0.2451, 0.7560, 1.3439, 2.1520),
                   4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326)}
# Mean squared error of unit Gaussian rows: Max 1960 for Lloyd-Max, CODEC.md 2.1 for the others.
ERROR = {"fp8": 0.001, "q4_0": 0.0081, "int4": 0.0083, "universal": 0.0098, "hadamard-lm4": 0.0098,
         "turboquant-4": 0.0105, "turboquant-3": 0.043, "hadamard-lm3": 0.0352, "kivi-2": 0.145,
         "hadamard-lm2": 0.119, "higgs-2d": 0.110}


def gaussian(*shape):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("name", RIVALS)
def test_rival_gaussian_rows_expected_error(name):
    k, v = gaussian(2, 3, 416, 64)
    parts = [(found - x)[:, 16:].pow(2).mean() / x.pow(2).mean()
             for found, x in zip(RIVALS[name].apply(k, v), (k, v))]
    assert 0.7 * ERROR[name] < sum(parts) / 2 < 1.1 * ERROR[name] or name == "fp8"
    assert sum(parts) / 2 < 1.1 * ERROR[name]


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_rival_zero_rows_zero_of_same_shape(name, tokens):
    zero = torch.zeros(2, tokens, 64)
    for found in RIVALS[name].apply(zero, zero):
        assert found.shape == zero.shape and found.abs().max() < 1e-6


def test_rival_bits_count_scales():
    assert {name: rival.bits(64) for name, rival in RIVALS.items()} == {
        "fp8": 8, "q4_0": 4.5, "int4": 4.5, "universal": 4.25, "hadamard-lm4": 4.25,
        "turboquant-4": 4.375, "turboquant-3": 3.375, "hadamard-lm3": 3.25, "kivi-2": 3,
        "hadamard-lm2": 2.25, "higgs-2d": 2.25}


def test_q4_0_by_hand():
    row = torch.zeros(32)
    row[0], row[1], row[2] = -8.0, 3.4, 7.9
    found = q4_0(row)  # scale 1: codes -8, 3 and 7, the largest
    assert found[:4].tolist() == [-8, 3, 7, 0]


def test_asymmetric_by_hand():
    groups = torch.tensor([[1.0, 2.0, 3.2, 4.0]])
    assert asymmetric(groups, 2, -1).tolist() == [[1, 2, 3, 4]]
    assert asymmetric(torch.full((1, 4), 0.3), 2, -1).allclose(torch.tensor(0.3), atol=1e-3)


def test_int4_levels_of_a_group():
    found = int4(torch.arange(64.0)[None])  # step 63 / 15 = 4.2
    assert len(found.unique()) == 16 and (found - torch.arange(64.0)).abs().max() <= 2.11


def test_kivi_2_keys_along_tokens_values_along_channels():
    # One channel is 100 times larger: it harms V, whose groups hold it, and not K.
    x = gaussian(1, 128, 64)
    x[..., 5] *= 100
    k, v = kivi_2(x, x)
    others = [c for c in range(32) if c != 5]
    error = [(found - x)[..., others].pow(2).mean() for found in (k, v)]
    assert error[0] < 0.1 * error[1]


def test_kivi_2_sinks_do_not_widen_their_group():
    x = gaussian(1, 64, 64)
    big = x.clone()
    big[:, :16] *= 1000
    assert kivi_2(x, x)[0][:, 16:].equal(kivi_2(big, x)[0][:, 16:])


@pytest.mark.parametrize("bits, levels", LLOYD_MAX_TABLE.items())
def test_lloyd_max_published_levels(bits, levels):
    assert lloyd_max(bits)[2 ** (bits - 1):].numpy() == pytest.approx(levels, abs=2e-4)


def test_hadamard_lloyd_max_any_scale_same_codes():
    x = gaussian(1, 50, 64)
    assert hadamard_lloyd_max(x * 1024, 2).allclose(hadamard_lloyd_max(x, 2) * 1024, rtol=1e-4)


def test_turboquant_nc_keeps_norms_of_keys():
    x = gaussian(1, 50, 64)
    found = turboquant_nc(x, x, 3)[0]
    assert found.norm(dim=-1).numpy() == pytest.approx(x.norm(dim=-1).numpy(), rel=1e-3)


def test_gaussian_book_error_of_pairs():
    x = torch.randn(20000, 2, generator=torch.Generator().manual_seed(9))
    error = (x[:, None] - gaussian_book(16, 2)).pow(2).sum(-1).min(1).values.mean() / 2
    assert float(error) == pytest.approx(0.1078, rel=0.03)
    assert higgs_2d(x.view(1, -1, 64)).shape == (1, 625, 64)


def test_statistics_of_codec_set_invert_the_transform():
    """covariance and Fisher matrix -> A, weight (CODEC.md section 1) -> the same matrices."""
    generator = torch.Generator().manual_seed(4)
    root, other = torch.randn(2, 64, 64, generator=generator, dtype=torch.float64)
    covariance, fisher = root @ root.T + torch.eye(64), other @ other.T + torch.eye(64)
    lower = torch.linalg.cholesky(fisher)
    weight, basis = torch.linalg.eigh(lower.T @ covariance @ lower)
    analysis = weight.rsqrt()[:, None] * (basis.T @ lower.T)
    codec_set = random_codec_set(layers=1, kv_heads=1)
    for name, value in (("A", analysis), ("Ai", analysis.inverse()), ("weight", weight)):
        codec_set.rows[name] = value.float().numpy()
    found = statistics_of(codec_set)
    assert found.covariance[0, 0, 0].allclose(covariance, rtol=1e-3, atol=1e-2)
    assert found.fisher[0, 0, 1].allclose(fisher, rtol=1e-3, atol=1e-2)


def test_allocate_classes_more_energy_more_bits_within_budget():
    energy = np.outer([100.0, 1.0], 2.0 ** -np.arange(8))
    classes = allocate_classes(energy, 2.12)
    assert classes.mean() <= 2.12 and classes[0].sum() > classes[1].sum()
    assert (np.diff(classes, axis=1) <= 0).all()


@pytest.fixture
def identity_set():
    codec_set = random_codec_set(layers=1, kv_heads=2)
    for name in ("A", "Ai"):
        codec_set.rows[name] = np.eye(64, dtype=np.float32)
    codec_set.rows["mu"], codec_set.rows["weight"] = 0, 1
    return codec_set


def test_principal_components_bits_and_error(identity_set):
    rival = PrincipalComponents(identity_set, torch.device("cpu"))
    assert rival.bits <= identity_set.bits_per_value(False)
    x = gaussian(2, 2, 128, 64) / 3
    for found, row in zip(rival(0, *x), x):
        assert 0.02 < (found - row).pow(2).mean() < 0.5


def test_principal_components_sensitive_ones_smaller_error(identity_set):
    scale = np.linspace(1, 2, 64, dtype=np.float32)
    heavy = np.arange(64) % 3 == 0
    identity_set.rows["A"], identity_set.rows["Ai"] = np.diag(1 / scale), np.diag(scale)
    identity_set.rows["weight"] = np.where(heavy, 1e4, 1.0)
    x = gaussian(2, 2, 256, 64) / 3 * torch.from_numpy(scale)
    found = PrincipalComponents(identity_set, torch.device("cpu"))(0, *x)[0]
    error = ((found - x[0]) / torch.from_numpy(scale)).pow(2).mean((0, 1))
    assert error[heavy].mean() < 0.1 * error[~heavy].mean()


def test_balanced_transform_equal_weights_is_hadamard_lloyd_max(identity_set):
    rival = BalancedTransform(identity_set, 2, torch.device("cpu"))
    x = gaussian(2, 2, 64, 64)
    for found, rows in zip(rival(0, *x), x):
        assert found.allclose(hadamard_lloyd_max(rows, 2), atol=1e-4)
    assert rival.bits == 2.25


def test_balanced_transform_heavy_components_smaller_error(identity_set):
    identity_set.rows["weight"] = np.where(np.arange(64) % 3 == 0, 1e4, 1.0)
    x = gaussian(2, 2, 256, 64) / 3
    error = (BalancedTransform(identity_set, 2, torch.device("cpu"))(0, *x)[0] - x[0]).pow(2)
    error = error.mean((0, 1))
    heavy = torch.arange(64) % 3 == 0
    assert error[heavy].mean() < 0.1 * error[~heavy].mean()
