"""
The emission p_theta(x_t | z_t, u_t): the parameters of a density, step by step.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.networks import MLP


class Decoder(nn.Module):
    """Perceptron with a linear bypass, from latents and inputs to raw parameters.

    Parameters
    ----------
    latent_dim
        Dimension D of the latent.
    input_size
        Number U of inputs known at each step; may be 0.
    hidden_size
        Width of the hidden layers.
    num_components
        Number C of observed components.
    num_parameters
        Number K of parameters of the density of one component.
    """

    def __init__(
        self,
        latent_dim: int,
        input_size: int,
        hidden_size: int,
        num_components: int,
        num_parameters: int,
    ) -> None:
        super().__init__()
        self.shape = (num_components, num_parameters)
        size_in, size_out = latent_dim + input_size, num_components * num_parameters
        self.network = MLP(size_in, hidden_size, size_out, num_hidden_layers=2)
        # A linear system is then within reach from the start.
        self.bypass = nn.Linear(size_in, size_out, bias=False)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Map (..., T, D) and (..., T, U) to raw parameters (..., T, C, K)."""
        # 16 bits are too few for a draw of small spread
        with torch.autocast(z.device.type, enabled=False):
            inputs = torch.cat([z, u], dim=-1).to(self.bypass.weight.dtype)
            raw: Tensor = self.network(inputs) + self.bypass(inputs)
        # (..., T, C * K) -> (..., T, C, K)
        return raw.unflatten(-1, self.shape)
