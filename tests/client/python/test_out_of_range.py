"""Rows beyond what calibration saw saturate: they lose their own precision, others hardly any."""

import pathlib

import pytest
import torch

from flashquant.codec import row_codecs
from flashquant.codec_set import read_codec_set

SHIPPED = pathlib.Path(__file__).parents[3] / "codec_sets/smollm2-135m-instruct.fqcs"
LOUD = 37  # one token of each page


@pytest.fixture(scope="module")
def codecs():
    codec_set = read_codec_set(SHIPPED)
    return [(codec, torch.from_numpy(codec_set.rows["weight"][layer, 0, kv].copy()))
            for layer in (0, 14, 29) for kv, codec in enumerate(row_codecs(codec_set, layer, 0))]


def errors(codec, weight, u):
    """Weighted squared errors [T] of `u` [T, d] as compact and as near-lossless."""
    base, refinement = codec.encode(u, torch.zeros(len(u), dtype=torch.bool))
    return [(codec.values(base, rest) - u).pow(2) @ weight for rest in (None, refinement)]


def components(seed):
    return torch.randn(1024, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [2.0, 4.0, 10.0, 1000.0])
def test_rows_out_of_range_lose_less_than_leaving_them_out(codecs, scale):
    """A side may have no codes in the base (V of layer 29, head 0): it is left out, no more."""
    lost, energy = [0.0, 0.0], 0.0
    for codec, weight in codecs:
        u = scale * components(1)
        own = float((u.pow(2) @ weight).sum())
        energy += own
        for part, error in enumerate(errors(codec, weight, u)):
            assert error.isfinite().all()
            assert float(error.sum()) <= own
            lost[part] += float(error.sum())
    assert max(lost) < energy


@pytest.mark.parametrize("scale, most", [(4.0, 1.15), (10.0, 1.3), (1000.0, 1.6)])
def test_one_row_out_of_range_others_of_its_page_keep_theirs(codecs, scale, most):
    """A byte holds values of up to four tokens, so one token's values weigh on others' entries."""
    others = torch.arange(1024) % 64 != LOUD
    before = after = 0.0
    for codec, weight in codecs:
        u = components(2)
        before += float(errors(codec, weight, u)[0][others].sum())
        u[~others] *= scale
        after += float(errors(codec, weight, u)[0][others].sum())
    assert before < after < most * before
