"""The transform of rows into weighted, uncorrelated components (CODEC.md section 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
COVARIANCE_FLOOR = 1e-5


@dataclass(frozen=True)
class Transform:
    """u = A (x - mu): unit variance, loss weight `weight` (falling); x = Ai u + mu.

    Shapes [..., d], [..., d, d] (row = component), [..., d, d] (row = channel), [..., d]; FP64.
    """

    mu: Tensor
    A: Tensor
    Ai: Tensor
    weight: Tensor


def fit_transform(mean: Tensor, covariance: Tensor, fisher: Tensor,
                  damping: float = DAMPING) -> Transform:
    """Karhunen-Loeve transform in the metric of the Fisher matrix, for [..., d, d] at once.

    fisher + damping = L L^T, U Lambda U^T = L^T covariance L, A = Lambda^-1/2 U^T L^T. Errors of
    component i then cost Lambda_i each, in units of the loss that all heads share.
    """
    identity = torch.eye(mean.shape[-1], dtype=torch.float64)

    def damped(matrix: Tensor, share: float) -> Tensor:
        matrix = (matrix + matrix.transpose(-1, -2)).double() / 2
        level = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
        return matrix + share * level[..., None, None] * identity

    lower = torch.linalg.cholesky(damped(fisher, damping))
    upper = lower.transpose(-1, -2)
    weight, basis = torch.linalg.eigh(upper @ damped(covariance, COVARIANCE_FLOOR) @ lower)
    weight = weight.flip(-1).clamp_min(1e-30)
    basis = basis.flip(-1)
    analysis = weight.rsqrt()[..., None] * (basis.transpose(-1, -2) @ upper)
    return Transform(mean.double(), analysis, torch.linalg.inv(analysis), weight)
