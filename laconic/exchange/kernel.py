"""Where a walk goes next: Metropolis-Hastings steps, that avoid what was visited more than its share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def base(degrees: Mapping[int, int], at: int, target: Sequence[float] | None = None) -> dict[int, float]:
    """The chances of a Metropolis-Hastings step from ``at``: to each neighbour, and to stay.

    ``degrees`` are those of ``at`` and of its neighbours. Uniform over the workers in the long run, or as ``target``
    says: ``P_ij = 1/d_i min(1, mu_j d_i / (mu_i d_j))``, for equal shares ``min(1/d_i, 1/d_j)``.

    Law:    reversible: ``mu_i P_ij = mu_j P_ji``.
    Source: specs of SRRW, arXiv:2305.05097, section 2.
    """
    mine = degrees[at]
    chances = {}
    for other, degree in degrees.items():
        if other != at:
            ratio = 1.0 if target is None else target[other] / target[at]
            chances[other] = min(1 / mine, ratio / degree)
    chances[at] = max(0.0, 1 - math.fsum(chances.values()))
    return chances


def repelled(
    chances: Mapping[int, float], visits: Sequence[float], alpha: float, target: Sequence[float] | None = None
) -> dict[int, float]:
    """The chances weighed by ``(x_j / mu_j)^-alpha``: a place that had more than its share is less likely.

    Law:    they sum to 1, none is added, and a multiple of ``visits`` gives the same; ``alpha=0`` or visits as the
            target says change nothing.
    Source: Doshi, Hu and Eun 2023, arXiv:2305.05097, equation 3.
    """
    # By logarithms: x may be tiny, and alpha large.
    logs = {
        j: math.log(p) - alpha * math.log(visits[j] / (1.0 if target is None else target[j]))
        for j, p in chances.items()
        if p > 0
    }
    largest = max(logs.values())
    weights = {j: math.exp(value - largest) for j, value in logs.items()}
    total = math.fsum(weights.values())
    return {j: weight / total for j, weight in weights.items()}


def draw(chances: Mapping[int, float], number: float) -> int:
    """The place that ``number``, uniform in [0, 1), falls on."""
    for place in sorted(chances):
        number -= chances[place]
        if number < 0:
            return place
    return max(place for place in chances if chances[place] > 0)


def sampling_covariance(transitions: Tensor, alpha: float, target: Tensor | None = None) -> Tensor:
    """The limit of ``n Cov(x_n)``, the spread of visits, for step sizes ``1/n``: V(alpha).

    ``sum_k 1 / (2 alpha (1 + l_k) + 1) (1 + l_k) / (1 - l_k) u_k u_k^T`` over the eigenvalues ``l_k`` of
    ``transitions`` but 1, with left eigenvectors ``u_k`` such that ``u_k^T D_mu^-1 u_k = 1``.

    Source: Doshi, Hu and Eun 2023, arXiv:2305.05097, theorem 3.3 (as the specification has it).
    """
    size = len(transitions)
    mu = torch.full((size,), 1 / size, dtype=torch.float64) if target is None else target
    root = mu.sqrt()
    # D^1/2 P D^-1/2 is symmetric for a reversible chain; w of it gives u = D^1/2 w.
    values, vectors = torch.linalg.eigh(root[:, None] * transitions / root)
    left = root[:, None] * vectors
    made = torch.zeros(size, size, dtype=torch.float64)
    for k in range(size):
        value = float(values[k])
        if value < 1 - 1e-9:
            factor = (1 + value) / (1 - value) / (2 * alpha * (1 + value) + 1)
            made += factor * torch.outer(left[:, k], left[:, k])
    return made
