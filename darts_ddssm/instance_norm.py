"""
Reversible instance normalisation of whole windows with missing values.

darts' own normalises the input chunk alone and has no notion of gaps. Here a window,
input and output chunk, is normalised by the observed values of its input chunk, and the
parameters of the emission are brought back to the scale of the data, so that the
likelihood sees the data as they are.

Letters: B batch, T time steps, C components, K parameters.

References
----------
.. [1] T. Kim et al., "Reversible Instance Normalization for Accurate Time-Series
       Forecasting against Distribution Shift", ICLR 2022.
"""

from typing import NamedTuple

import torch
from darts.models.components.layer_norm_variants import RINorm
from darts.utils.likelihood_models.torch import (
    CauchyLikelihood,
    GaussianLikelihood,
    GumbelLikelihood,
    LaplaceLikelihood,
)
from torch import Tensor, nn

# Families whose raw parameters are a location and, before a softplus, a scale: they are
# the ones that a shift and a scaling of the data map to themselves.
LOCATION_SCALE_FAMILIES = (
    GaussianLikelihood,
    LaplaceLikelihood,
    CauchyLikelihood,
    GumbelLikelihood,
)


class InstanceScale(NamedTuple):
    """The map from the data to normalised values: (x - shift) / scale.

    Attributes
    ----------
    shift, scale
        One value a series and component, (B, 1, C).
    """

    shift: Tensor
    scale: Tensor

    def normalise(self, x: Tensor) -> Tensor:
        """Map data (B, T, C) to normalised values."""
        return (x - self.shift) / self.scale

    def to_data(self, raw: Tensor) -> Tensor:
        """Map raw parameters (S * B, T, C, K) to those of the data.

        Rows are sample by sample, as many samples as there are.
        """
        num_samples = raw.shape[0] // self.shift.shape[0]
        shift = self.shift.repeat(num_samples, 1, 1)
        scale = self.scale.repeat(num_samples, 1, 1)
        location, raw_spread = raw.unbind(-1)
        spread = nn.functional.softplus(raw_spread) * scale.abs()
        # the inverse of softplus, exact for large and for small spreads
        raw_spread = spread + torch.log(-torch.expm1(-spread))
        return torch.stack([location * scale + shift, raw_spread], dim=-1)


def instance_scale(rin: RINorm, x: Tensor, observed: Tensor) -> InstanceScale:
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
        return InstanceScale(mean, std)
    # x' = (x - mean) / std * weight + bias
    scale = std / rin.affine_weight
    return InstanceScale(mean - rin.affine_bias * scale, scale)
