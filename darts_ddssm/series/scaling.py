"""
The scale of the target: of the training set and, if asked for, of each window.

The state-space model works on values near zero with a spread near one, whatever the
units of the data, so that neither its training nor its numerical range depends on them.
With reversible instance normalisation [1]_, each window, input and output chunk, is also
normalised by the observed values of its input chunk. darts' own normalisation knows
neither gaps nor output chunks.

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] T. Kim et al., "Reversible Instance Normalization for Accurate Time-Series
       Forecasting against Distribution Shift", ICLR 2022.
"""

from typing import NamedTuple

import torch
from darts.models.components.layer_norm_variants import RINorm
from torch import Tensor, nn


class Scale(NamedTuple):
    """The map from data to normalised values, (x - shift) / spread.

    Attributes
    ----------
    shift, spread
        One value per component, (C,), or per series and component, (B, 1, C).
    """

    shift: Tensor
    spread: Tensor

    def normalise(self, x: Tensor) -> Tensor:
        """Map data (..., B, T, C) to normalised values."""
        return (x - self.shift) / self.spread

    def to_data(self, x: Tensor) -> Tensor:
        """Map normalised values (..., B, T, C) to data."""
        return x * self.spread + self.shift

    def parameters_to_data(self, raw: Tensor) -> Tensor:
        """Map raw parameters of a location-scale family (B, T, C, K) to the data's."""
        location, raw_spread = raw.unbind(-1)
        spread = nn.functional.softplus(raw_spread) * self.spread
        # the inverse of softplus, exact for large and for small spreads
        raw_spread = spread + torch.log(-torch.expm1(-spread))
        return torch.stack([self.to_data(location), raw_spread], dim=-1)

    def then(self, inner: "Scale") -> "Scale":
        """Return this map followed by another one of its normalised values."""
        return Scale(self.to_data(inner.shift), self.spread * inner.spread)


def instance_scale(rin: RINorm, x: Tensor, observed: Tensor) -> Scale:
    """Scale of each series by the observed values of its input chunk.

    Parameters
    ----------
    rin
        darts' module, whose affine parameters and ``eps`` are used.
    x, observed
        Values and flags of the input chunk, (B, T, C). A component that is nowhere
        observed is left as it is.
    """
    count = observed.sum(1, keepdim=True)
    mean = (x * observed).sum(1, keepdim=True) / count.clamp(min=1)
    squares = ((x - mean) * observed).square().sum(1, keepdim=True)
    variance = torch.where(count > 0, squares / count.clamp(min=1), 1.0)
    std = (variance + rin.eps).sqrt()
    if not rin.affine:
        return Scale(mean, std)
    # x' = (x - mean) / std * |weight| + bias
    spread = std / (rin.affine_weight.abs() + rin.eps)
    return Scale(mean - rin.affine_bias * spread, spread)
