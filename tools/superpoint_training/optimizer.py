"""Muon for the normalised convolutions, Adam for the rest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """Orthogonalised momentum for convolutions that a batch norm follows.

    Such a convolution's output does not depend on the scale of its weights, so each step keeps
    their norm and turns them by a fixed amount: `lr` is the spectral norm of an update relative
    to filters of norm one. Reaches a given loss in markedly fewer steps than Adam.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float = 0.03, momentum: float = 0.9
    ) -> None:
        super().__init__(parameters, {'lr': lr, 'momentum': momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        for group in self.param_groups:
            for weight in group['params']:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state['momentum'] = torch.zeros_like(weight)
                state['momentum'].mul_(group['momentum']).add_(weight.grad)
                direction = weight.grad.add(state['momentum'], alpha=group['momentum'])
                update = _orthogonalise(direction.reshape(len(weight), -1)).view_as(direction)
                weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-8))
                weight.add_(update, alpha=-group['lr'])


def _orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return about U V^T of a matrix U S V^T, by a quintic Newton-Schulz iteration."""
    transposed = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if transposed else matrix
    x = x / x.norm().clamp(min=1e-8)
    for _ in range(iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x.T if transposed else x
