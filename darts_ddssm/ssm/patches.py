"""
Patches: one latent state for several time steps.

A long window is cut into patches of P steps, and what is observed and known at the steps
of a patch becomes one observation of the state-space model, of P times as many
components. Nothing else changes: the model is the same on a coarser clock. Errors of a
forecast then add up over fewer transitions, a season is fewer states long, and training
and forecasts take nearly P times less time, since what they wait for are the steps of the
state. Within a patch the state says all: given it, the values are independent.

Patches are laid out from the origin of a forecast, where the past ends, so that a
forecast starts with a whole patch. What they reach beyond the window is unknown.

Letters: B batch, T time steps, N patches, P steps of a patch, F features, C components,
K parameters of the density of one component.

References
----------
.. [1] Nie et al., "A Time Series is Worth 64 Words: Long-term Forecasting with
       Transformers", ICLR 2023: patches as the tokens of a forecasting model.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.state_space import Window


class Patches(NamedTuple):
    """How a window is cut.

    Attributes
    ----------
    length
        Number P of steps of a patch.
    num_before, num_after
        Steps of the window before and after the origin, T in all.
    """

    length: int
    num_before: int
    num_after: int

    @property
    def before(self) -> int:
        """Number of patches before the origin."""
        return math.ceil(self.num_before / self.length)

    @property
    def after(self) -> int:
        """Number of patches after the origin."""
        return math.ceil(self.num_after / self.length)

    @property
    def _margins(self) -> tuple[int, int]:
        """Steps that the first patch begins too early and the last one ends too late."""
        early = self.before * self.length - self.num_before
        return early, self.after * self.length - self.num_after

    def fold(self, x: Tensor) -> Tensor:
        """Join the features of the steps of each patch: (B, T, F) -> (B, N, P * F).

        They are zero outside the window.
        """
        return self._join(nn.functional.pad(x, (0, 0, *self._margins)))

    def _join(self, x: Tensor) -> Tensor:
        """Join the features of whole patches: (B, N * P, F) -> (B, N, P * F)."""
        return x.unflatten(1, (-1, self.length)).flatten(2)

    def window(self, window: Window) -> Window:
        """Cut a window; outside it nothing is observed, and steps weigh as inside."""
        early, late = self._margins
        first = window.weight[:, :1].expand(-1, early, -1)
        last = window.weight[:, -1:].expand(-1, late, -1)
        weight = self._join(torch.cat([first, window.weight, last], dim=1))
        return Window(*(self.fold(x) for x in window[:-1]), weight=weight)

    def unfold(self, raw: Tensor) -> Tensor:
        """Parameters of the steps of a window: (..., N, P * C, K) -> (..., T, C, K)."""
        # (..., N, P * C, K) -> (..., N, P, C, K) -> (..., N * P, C, K)
        steps = raw.unflatten(-2, (self.length, -1)).flatten(-4, -3)
        return steps.narrow(-3, self._margins[0], self.num_before + self.num_after)


# Windows of up to so many steps have a state at each; longer ones have some so many.
MAX_SINGLE_STEPS = 48
NUM_PATCHES = 12


def automatic_patch_length(window_length: int, output_length: int) -> int:
    """Length of the patches of a window for which the user has asked for none.

    A twelfth of the window, shortened so that patches divide the output chunk evenly.

    Parameters
    ----------
    window_length, output_length
        Steps of a training window and of its output chunk.
    """
    if window_length <= MAX_SINGLE_STEPS:
        return 1
    num_ahead = math.ceil(output_length / (window_length // NUM_PATCHES))
    return math.ceil(output_length / num_ahead)
