"""
A stretch of data, as the state-space model takes it.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Window(NamedTuple):
    """A stretch of data of one batch.

    Attributes
    ----------
    x
        Observations, (B, T, C); any finite number where missing.
    observed
        1 where ``x`` is observed and 0 where it is missing, (B, T, C).
    u
        Inputs known at each step, future ones too: future and static covariates,
        (B, T, U).
    past
        Inputs of the transition alone: past covariates of the step before, (B, T, P).
        Not of the encoder: at the end of the past they are known, at the end of a
        training window they are not.
    weight
        Weight of each observation in the likelihood, (B, T, C).
    """

    x: Tensor
    observed: Tensor
    u: Tensor
    past: Tensor
    weight: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Window":
        """Return the window of what a function makes of each part."""
        return Window(*(function(part) for part in self))

    def with_noise(self, std: float) -> "Window":
        """Return the window with Gaussian noise of a standard deviation on ``x``."""
        return self._replace(x=with_noise(self.x, std))

    @property
    def transition_inputs(self) -> Tensor:
        """All inputs of the transition at each step, (B, T, U + P)."""
        return torch.cat([self.u, self.past], dim=-1)

    @property
    def next_observed(self) -> Tensor:
        """The next observation from each step on, 0 where none follows, (B, T, C)."""
        num_steps = self.x.shape[1]
        steps = torch.arange(num_steps, device=self.x.device).unsqueeze(-1)
        # that of a step after the last one, where there is none
        steps = torch.where(self.observed > 0, steps, num_steps)
        steps = steps.flip(1).cummin(1).values.flip(1)
        return nn.functional.pad(self.x, (0, 0, 0, 1)).gather(1, steps)

    @property
    def until_last_observation(self) -> Tensor:
        """True where anything is observed at the step or later, (B, T)."""
        return until_last(self.observed.any(-1))


def until_last(observed: Tensor) -> Tensor:
    """Tell whether anything is observed at a step or later, (B, T) -> (B, T)."""
    return observed.flip(1).cummax(1).values.flip(1)


def with_noise(x: Tensor, std: float) -> Tensor:
    """Return values with Gaussian noise of a standard deviation. 0 draws none."""
    return x if std == 0 else x + std * torch.randn_like(x)
