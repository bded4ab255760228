r"""
Diffusion in the noise level: explicit score matching, the denoiser and its solver.

A variance-exploding process adds Gaussian noise of standard deviation
:math:`\sigma` to a variable. With :math:`D(z, \sigma)` the denoiser, the mean of the
clean variable given the noised one, the score at level :math:`\sigma` is
:math:`(D(z, \sigma) - z) / \sigma^2`, and for :math:`q = N(\mu, v)`

.. math::
    \mathrm{KL}(q \| p) = \int \mathbb{E}_{z \sim N(\mu, v + \sigma^2)}
    \frac{\| D_q(z, \sigma) - D_p(z, \sigma) \|^2}{\sigma^2} \, d \log \sigma ,
    \qquad D_q(z, \sigma) = z - \sigma^2 \frac{z - \mu}{v + \sigma^2} .

The identity is de Bruijn's, differentiated in the noise level; where the learned
denoiser is not that of a density, Girsanov's theorem makes the right-hand side an upper
bound on the KL to the law of the reverse process.

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.
.. [2] Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
       Models", NeurIPS 2022.
.. [3] Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
       Probabilistic Models", arXiv 2211.01095.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.networks import ConditionalBlock, FourierEmbedding

# Noise levels in units of the scale of the variable. Training has a wider range than
# sampling: that costs nothing, and the ends of the narrower one are then well learned.
TRAINING_RANGE = (0.002, 40.0)
SAMPLING_RANGE = (0.03, 6.0)

# The fewest noise levels from which a sample has the right spread to a tenth.
MIN_SOLVER_STEPS = 5

# Variances that the solver assumes, in squared units of the scale: in its first step, and
# at most.
FIRST_VARIANCE, MAX_VARIANCE = 0.5, 50.0

# The integral starts at the lowest noise level, so that a q narrower than that could
# shrink at no cost. This floor keeps the part that is cut off below
# (0.002 / 0.01)^2 / 2 = 0.02 nats per dimension.
MIN_RELATIVE_STD = 0.01

# A denoiser D(z, sigma): both (..., D) and (..., 1), to (..., D).
Denoise = Callable[[Tensor, Tensor], Tensor]


class NoiseDraw(NamedTuple):
    """Noise levels with the weights that make averages of them integrals.

    Attributes
    ----------
    log_sigma
        Logarithm of the noise level in units of the variable's scale, (N, 1).
    weight
        One over the density of ``log_sigma``, (N, 1).
    """

    log_sigma: Tensor
    weight: Tensor


class LogUniformNoise:
    """Noise levels uniform in their logarithm, stratified over the rows.

    Parameters
    ----------
    low, high
        Range of the noise level in units of the variable's scale.
    """

    def __init__(self, low: float = TRAINING_RANGE[0], high: float = TRAINING_RANGE[1]):
        self.log_low, self.log_high = math.log(low), math.log(high)

    def draw(self, like: Tensor) -> NoiseDraw:
        """Draw one level for every row of ``like``, (N, D)."""
        num_rows = like.shape[0]
        width = self.log_high - self.log_low
        strata = torch.randperm(num_rows, device=like.device).unsqueeze(-1)
        uniform = (strata + torch.rand_like(like[:, :1])) / num_rows
        log_sigma = self.log_low + width * uniform
        return NoiseDraw(log_sigma, torch.full_like(log_sigma, width))


def preconditioned_denoiser(
    network: Callable[[Tensor], Tensor], z: Tensor, sigma: float
) -> Tensor:
    """Evaluate D(z, sigma) = c_skip z + c_out F(c_in z), in units of the scale sigma_d.

    The coefficients are those of Karras et al. [2]_, table 1: the network's input and
    its target have unit variance at every noise level.

    Parameters
    ----------
    network
        F at this noise level, from scaled values (..., D) to (..., D).
    z
        Noised values, (..., D).
    sigma
        Noise level.
    """
    c_in = (sigma**2 + 1) ** -0.5
    c_skip, c_out = c_in**2, sigma * c_in
    return torch.add(c_skip * z, network(c_in * z), alpha=c_out)


class DenoiserNetwork(nn.Module):
    """The network F_psi inside the preconditioned denoiser.

    A residual multilayer perceptron conditioned on the noise level and on a context.
    The conditions enter as a sum of projections, so that a solver projects a context
    once for all noise levels and a noise level once for all rows.

    Parameters
    ----------
    latent_dim
        Dimension D of the variable.
    context_size
        Size of the context.
    hidden_size
        Width H.
    num_blocks
        Number of residual blocks.
    """

    def __init__(
        self, latent_dim: int, context_size: int, hidden_size: int, num_blocks: int = 3
    ) -> None:
        super().__init__()
        embedding_size = 32
        self.hidden_size = hidden_size
        self.embedding = FourierEmbedding(embedding_size)
        self.linear_in = nn.Linear(latent_dim, hidden_size)
        self.project_context = nn.Linear(context_size, num_blocks * hidden_size)
        self.project_noise = nn.Linear(embedding_size, num_blocks * hidden_size, bias=False)
        self.blocks = nn.ModuleList(
            ConditionalBlock(hidden_size) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.linear_out = nn.Linear(hidden_size, latent_dim)
        # Zero at the start: the denoiser is then that of a Gaussian of the right scale.
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def condition(self, relative_log_sigma: Tensor) -> Tensor:
        """Project noise levels log(sigma / sigma_d), (..., 1), to shifts of the blocks."""
        return self.project_noise(self.embedding(relative_log_sigma / 4))

    def forward(self, z: Tensor, shift: Tensor) -> Tensor:
        """Map scaled noised values (..., D) and the sum of the shifts to (..., D)."""
        h = self.linear_in(z)
        for block, shift_of_block in zip(
            self.blocks, shift.chunk(len(self.blocks), dim=-1), strict=True
        ):
            h = block(h, shift_of_block)
        return self.linear_out(self.norm(h))


def explicit_score_matching(
    network: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    noise: NoiseDraw,
) -> Tensor:
    r"""Estimate KL(N(mean, variance) || p) for a diffusion model p, one value per row.

    Each row is one draw of the integrand of the module's formula. It is written in the
    preconditioned form, with F* the value at which the network F makes the denoiser
    exact,

    .. math::
        \frac{\|D_q - D_\psi\|^2}{\sigma^2}
        = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2} \| F^* - F_\psi \|^2 ,

    whose weight is bounded and free of cancellation at small noise.

    Parameters
    ----------
    network
        F(c_in z, log(sigma / sigma_d)), from (N, D) and (N, 1) to (N, D).
    mean, variance
        Moments of q, (N, D), in the coordinates in which the network denoises.
    scale
        Scale sigma_d, (N, 1).
    noise
        Noise levels and weights, as drawn by :class:`LogUniformNoise`.

    Returns
    -------
    Tensor
        Unbiased estimates of the KL in nats, (N,).
    """
    sigma = scale * noise.log_sigma.exp()
    total = variance + sigma.square()
    z = mean + total.sqrt() * torch.randn_like(mean)
    c_in = (sigma.square() + scale.square()).rsqrt()
    # (D_q - c_skip z) / c_out with the terms of order z cancelled by hand
    target = sigma / (scale * c_in) * (z * c_in.square() - (z - mean) / total)
    error = target - network(c_in * z, noise.log_sigma)
    weight = noise.weight * (scale * c_in).square()
    return (weight * error.square()).sum(-1)


def sampling_levels(
    num_levels: int, low: float = SAMPLING_RANGE[0], high: float = SAMPLING_RANGE[1]
) -> list[float]:
    """Falling noise levels in units of the scale, in even steps of their logarithm."""
    if num_levels == 1:
        return [high]
    ratio = (low / high) ** (1 / (num_levels - 1))
    return [high * ratio**i for i in range(num_levels)]


def solve_probability_flow(
    denoise: Callable[[Tensor, int], Tensor], noise: Tensor, levels: list[float]
) -> Tensor:
    r"""Follow the probability flow from the first noise level down to zero.

    Around any one place a density under noise is nearly Gaussian, and for a Gaussian of
    variance :math:`s^2` the flow from level :math:`\sigma` to :math:`\sigma'` is known:

    .. math::
        z' = z + \frac{z - D(z, \sigma)}{\sigma^2}
        \Bigl( \sqrt{(s^2 + \sigma^2)(s^2 + \sigma'^2)} - (s^2 + \sigma^2) \Bigr) .

    How much the slope :math:`(z - D) / \sigma^2` has grown since the level before tells
    the variance, for each coordinate of each row by itself. The step is then exact for
    Gaussians, narrow or wide. Where the slope did not grow as that of a Gaussian does, as
    between two modes, the step is that of DPM-Solver++(2M) [3]_, of second order in the
    step of log sigma. Each level takes one evaluation of the denoiser.

    Parameters
    ----------
    denoise
        The denoiser at the i-th level, from noised values (..., D) and i to (..., D).
    noise
        Noise of ``levels[0]``, (..., D). The path starts from the sum of this noise and
        the denoiser's output at that level, which is nearly the mean of the variable.
    levels
        Falling noise levels in units of the variable's scale, in even steps of their
        logarithm.
    """
    denoised, slope = denoise(noise, 0), noise.detach() / levels[0] ** 2
    lower_levels = [*levels[1:], 0.0]
    change = _change_of_gaussian(FIRST_VARIANCE, levels[0], lower_levels[0])
    z = denoised + (1 + change / levels[0] ** 2) * noise
    for i, (level, lower) in enumerate(pairwise(lower_levels), start=1):
        previous, previous_slope = denoised, slope
        denoised = denoise(z, i)
        # how much of z and of the last D the step keeps is no matter of the gradient
        with torch.no_grad():
            slope = (z - denoised) / level**2
            growth = slope / previous_slope
            is_gaussian = (growth > 1) & (growth < levels[i - 1] / level)
            variance = _variance_of_gaussian(growth, levels[i - 1], level)
            if lower == 0:
                # no other step ends here; a slope that did not grow is that of a flat
                # density
                flat = (growth > 0) & (growth <= 1)
                variance = torch.where(is_gaussian, variance, flat * MAX_VARIANCE)
                is_gaussian = torch.ones_like(flat)
            kept = 1 + _change_of_gaussian(variance, level, lower) / level**2
            kept = torch.where(is_gaussian, kept, lower / level)
            # half the last change of D: the step before was as long in log sigma
            of_previous = torch.where(is_gaussian, 0.0, (lower / level - 1) / 2)
        z = torch.addcmul(denoised, kept, z - denoised)
        z = torch.addcmul(z, of_previous, previous - denoised)
    return z


def _variance_of_gaussian(growth: Tensor, level: float, lower: float) -> Tensor:
    """Variance of the Gaussian whose slope grows so much from a level to a lower one."""
    squared = growth.square()
    variance = (level**2 - squared * lower**2) / (squared - 1)
    return variance.clamp(0.0, MAX_VARIANCE)


def _change_of_gaussian(
    variance: Tensor | float, level: float, lower: float
) -> Tensor | float:
    """What the slope is multiplied by in a step of the flow of a Gaussian."""
    total = variance + level**2
    change: Tensor | float = (total * (variance + lower**2)) ** 0.5 - total
    return change
