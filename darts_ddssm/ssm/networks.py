"""
Building blocks shared by the encoder, the transition and the decoder.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Multilayer perceptron with SiLU activations.

    Parameters
    ----------
    in_features, hidden_features, out_features
        Widths of the input, of every hidden layer and of the output.
    num_hidden_layers
        Number of hidden layers.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        num_hidden_layers: int = 1,
    ) -> None:
        widths = [in_features] + [hidden_features] * num_hidden_layers
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width_in, width_out), nn.SiLU()]
        super().__init__(*layers, nn.Linear(widths[-1], out_features))


class FourierEmbedding(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies.

    Parameters
    ----------
    embedding_size
        Size E of the embedding; even.
    max_frequency
        Highest angular frequency; the lowest is 1.
    """

    frequencies: Tensor

    def __init__(self, embedding_size: int, max_frequency: float = 32.0) -> None:
        super().__init__()
        exponents = torch.linspace(0.0, math.log(max_frequency), embedding_size // 2)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``x`` of shape (..., 1) as (..., E)."""
        angles = x * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConditionalBlock(nn.Module):
    """Residual block whose hidden layer is shifted by a condition.

    ``h + W_2 silu(W_1 norm(h) + shift)``. The shift is a sum of projections, one of
    each condition, so that a condition that stays fixed over many calls is projected
    once.

    Parameters
    ----------
    hidden_size
        Width H.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear_in = nn.Linear(hidden_size, hidden_size)
        self.linear_out = nn.Linear(hidden_size, hidden_size)

    def forward(self, h: Tensor, shift: Tensor) -> Tensor:
        """Map ``h`` and ``shift``, both (..., H), to (..., H)."""
        return h + self.linear_out(nn.functional.silu(self.linear_in(self.norm(h)) + shift))


def averaging_rate(count: int, decay: float) -> float:
    """Share of an average of weights that an update replaces.

    The window of the average grows with the number of updates, up to a limit.

    Parameters
    ----------
    count
        Number of updates before.
    decay
        What the average keeps in an update in the end.
    """
    return max(1 - decay, 9 / (10 + count))


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Hold the parameters of modules constant for what is computed inside.

    Gradients flow through the modules to their inputs and not to their parameters.

    Parameters
    ----------
    *modules
        The modules. Parameters that do not learn anyway stay as they are.
    """
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
