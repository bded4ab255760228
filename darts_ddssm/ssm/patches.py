"""
Patches: one latent state for several time steps.

A long window is cut into M patches of L steps. What is observed and known at the steps of
a patch becomes one observation of the state-space model, with L times as many components,
and the model itself stays the same on a coarser clock. Errors of a forecast then add up
over fewer transitions, a season is fewer states long, and training and forecasts take
nearly L times less time, because their cost is that of the states. Given the state of a
patch, its values are independent.

Patches are laid out from the origin of a forecast, where the past ends, so that a
forecast starts with a whole patch. Steps of a patch outside the window are unknown.

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] Nie et al., "A Time Series is Worth 64 Words: Long-term Forecasting with
       Transformers", ICLR 2023: patches as the tokens of a forecasting model.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.window import Window


class Patches(NamedTuple):
    """How a window is cut.

    Attributes
    ----------
    length
        Number L of steps of a patch.
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
        """Steps of the first patch before the window, and of the last one after it."""
        early = self.before * self.length - self.num_before
        return early, self.after * self.length - self.num_after

    def fold(self, x: Tensor) -> Tensor:
        """Join the features of the steps of each patch: (B, T, F) -> (B, M, L * F).

        They are zero outside the window.
        """
        return self._join(nn.functional.pad(x, (0, 0, *self._margins)))

    def _join(self, x: Tensor) -> Tensor:
        """Join the features of whole patches: (B, M * L, F) -> (B, M, L * F)."""
        return x.unflatten(1, (-1, self.length)).flatten(2)

    def share(self, flags: Tensor) -> Tensor:
        """Share of the flags of each patch that are 1: (B, T, F) -> (B, M).

        What of a patch is outside the window does not count.
        """
        inside = self.fold(torch.ones_like(flags[:1])).sum(-1)
        return self.fold(flags).sum(-1) / inside

    def fold_window(self, window: Window) -> Window:
        """Cut a window. Outside it nothing is observed, and weights are continued."""
        early, late = self._margins
        first = window.weight[:, :1].expand(-1, early, -1)
        last = window.weight[:, -1:].expand(-1, late, -1)
        weight = self._join(torch.cat([first, window.weight, last], dim=1))
        return window.map(self.fold)._replace(weight=weight)

    def unfold(self, raw: Tensor) -> Tensor:
        """Split patches into the steps of a window.

        Parameters (..., M, L * C, K) -> (..., T, C, K).
        """
        # (..., M, L * C, K) -> (..., M, L, C, K) -> (..., M * L, C, K)
        steps = raw.unflatten(-2, (self.length, -1)).flatten(-4, -3)
        return steps.narrow(-3, self._margins[0], self.num_before + self.num_after)
