r"""
The latent transition p_psi(z_t | z_{t-j:t-1}, u_t), diffusion or Gaussian.

Both work in coordinates centred on the previous latent, :math:`z_t - z_{t-1}`, and on
zero at the first step (*persistence*): a shift changes neither a noise level nor a
difference of scores, and a network that gives zero then says "as before".

Letters: N rows, T time steps, D latent dimension, H context size.

References
----------
.. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.context import Context, History, shift_right
from darts_ddssm.ssm.diffusion import (
    MIN_RELATIVE_STD,
    DenoiserNetwork,
    LogUniformNoise,
    dpm_solver,
    explicit_score_matching,
    preconditioned_denoiser,
    sampling_levels,
)
from darts_ddssm.ssm.networks import MLP
from darts_ddssm.ssm.probability_flow import probability_flow_log_prob

# How much of the tracked scale a training step replaces.
SCALE_UPDATE = 0.02

# Noise levels at which the mean of a transition is read off its denoiser.
MEAN_LEVELS = [8.0, 4.0, 2.0]

# Noised rows that make a steady estimate for a batch. Training takes no more of them; a
# small batch in evaluation, where a comparison should not be left to chance, no fewer.
STEADY_ROWS = 2048

# Rows whose density is computed at a time: their derivatives stay in the cache.
DENSITY_ROWS = 1024


class Transition(nn.Module, ABC):
    """A conditional density of the next latent given a context.

    Parameters
    ----------
    context
        The network that makes the context of the past latents and the inputs.
    """

    squared_scale: Tensor
    num_updates: Tensor

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        # sigma_d^2 of the centred latent: of the first step, of all others
        self.register_buffer("squared_scale", torch.ones(2))
        self.register_buffer("num_updates", torch.zeros(()))

    def scale(self, started: Tensor) -> Tensor:
        """Return sigma_d where ``started`` is 0 (first step) or 1, of its shape."""
        first, rest = self.squared_scale.sqrt()
        return first + started * (rest - first)

    @torch.no_grad()
    def update_scale(self, mean: Tensor, std: Tensor) -> None:
        """Track the scale of the centred latent: E[v] + E[(mu - mu_p)^2].

        About zero, where the preconditioned denoiser starts, and not about the mean: a
        drift that is large beside the noise is then within its range.

        Parameters
        ----------
        mean, std
            Moments of q in centred coordinates, (N, T, D).
        """
        num_updates = self.num_updates
        new = self.squared_scale.clone()
        for i, rows in enumerate((slice(0, 1), slice(1, None))):
            m, s = mean[:, rows], std[:, rows]
            if m.shape[1] > 0:
                new[i] = m.square().mean() + s.square().mean()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(new)
            new /= torch.distributed.get_world_size()
        # A plain mean of the first values, then an exponential one.
        rate = (1 / (num_updates + 1)).clamp(min=SCALE_UPDATE)
        self.squared_scale.lerp_(new, rate)
        self.num_updates += 1

    def min_std(self, num_steps: int) -> Tensor:
        """Floor of q's standard deviation at each of the first steps, (T,)."""
        started = torch.ones(num_steps).to(self.squared_scale)
        started[0] = 0.0
        return MIN_RELATIVE_STD * self.scale(started)

    def kl(
        self,
        z: Tensor,
        mean: Tensor,
        std: Tensor,
        u: Tensor,
        max_rows: int = STEADY_ROWS,
    ) -> Tensor:
        """Estimate KL(q(z_t | z_{t-1}) || p(z_t | z_{t-j:t-1})) along a path of q.

        Parameters
        ----------
        z
            A path drawn from q, (N, T, D).
        mean, std
            Moments of q at each step given that path, (N, T, D).
        u
            Inputs, (N, T, U).
        max_rows
            In training, the most steps of all paths that an estimate is made of.

        Returns
        -------
        Tensor
            Divergences in nats, (N, T).
        """
        mean = mean - shift_right(z)
        if self.training and any(p.requires_grad for p in self.parameters()):
            self.update_scale(mean, std)
        # (N, T, ...) -> (N * T, ...)
        parts = (self.context.features(z, u), mean, std, self._scale_along(z))
        flat = (x.flatten(0, 1) for x in parts)
        return self._kl(*flat, max_rows).unflatten(0, z.shape[:2])

    def log_prob(self, z: Tensor, u: Tensor) -> Tensor:
        """Log-density of each latent of a path given those before it.

        Parameters
        ----------
        z
            Paths, (N, T, D).
        u
            Inputs, (N, T, U).

        Returns
        -------
        Tensor
            log p(z_t | z_{t-j:t-1}, u_t) in nats, (N, T).
        """
        # (N, T, ...) -> (N * T, ...), a part of the rows at a time
        parts = (self.context.features(z, u), z - shift_right(z), self._scale_along(z))
        flat = zip(*(x.flatten(0, 1).split(DENSITY_ROWS) for x in parts), strict=True)
        log_probs = [
            self._log_prob(self.context.network(features), centred, scale)
            for features, centred, scale in flat
        ]
        return torch.cat(log_probs).unflatten(0, z.shape[:2])

    def _scale_along(self, z: Tensor) -> Tensor:
        """Return sigma_d at each step of paths (N, T, D): (N, T, 1)."""
        started = torch.ones_like(z[..., :1])
        started[:, 0] = 0.0
        return self.scale(started)

    def sample(self, history: History, u: Tensor, num_solver_steps: int) -> Tensor:
        """Draw the next latent of each history: inputs (N, U) -> (N, D)."""
        context = self.context.context(history, u)
        scale = self.scale(history.started)
        return history.previous + self._sample(context, scale, num_solver_steps)

    def mean(self, history: History, u: Tensor) -> Tensor:
        """Mean of the next latent of each history: inputs (N, U) -> (N, D)."""
        context = self.context.context(history, u)
        return history.previous + self._mean(context, self.scale(history.started))

    @abstractmethod
    def _kl(
        self, features: Tensor, mean: Tensor, std: Tensor, scale: Tensor, max_rows: int
    ) -> Tensor:
        """Divergence of each row in centred coordinates, (N,).

        ``features`` are those of the context network, which turns them into contexts.
        """

    @abstractmethod
    def _log_prob(self, context: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        """Log-density of each row in centred coordinates, (N,)."""

    @abstractmethod
    def _sample(self, context: Tensor, scale: Tensor, num_solver_steps: int) -> Tensor:
        """Draw for each row, in centred coordinates, (N, D)."""

    @abstractmethod
    def _mean(self, context: Tensor, scale: Tensor) -> Tensor:
        """Mean of each row in centred coordinates, (N, D)."""


class DiffusionTransition(Transition):
    """A diffusion model of the next latent: any density, several modes included.

    Parameters
    ----------
    context
        The network that makes the context.
    hidden_size
        Width of the denoiser.
    """

    def __init__(self, context: Context, hidden_size: int) -> None:
        super().__init__(context)
        self.latent_dim = context.latent_dim
        self.network = DenoiserNetwork(
            context.latent_dim, context.context_size, hidden_size
        )
        self.noise = LogUniformNoise()

    def _kl(
        self, features: Tensor, mean: Tensor, std: Tensor, scale: Tensor, max_rows: int
    ) -> Tensor:
        num_rows = len(mean)
        if not self.training:
            num_draws = max(STEADY_ROWS // num_rows, 1)
            rows = (x.repeat(num_draws, 1) for x in (features, mean, std, scale))
            # (draws * N,) -> (draws, N) -> (N,)
            return self._draw_kl(*rows).unflatten(0, (num_draws, num_rows)).mean(0)
        if num_rows <= max_rows:
            return self._draw_kl(features, mean, std, scale)
        # A random part of the rows, scaled up, has the same mean as all of them.
        rows = torch.randperm(num_rows, device=mean.device)[:max_rows]
        kl = self._draw_kl(*(x[rows] for x in (features, mean, std, scale)))
        return mean.new_zeros(num_rows).index_put((rows,), kl * (num_rows / max_rows))

    def _draw_kl(
        self, features: Tensor, mean: Tensor, std: Tensor, scale: Tensor
    ) -> Tensor:
        """Estimate the divergence from one noise level a row, (N,)."""
        shift = self.network.project_context(self.context.network(features))

        def network(z: Tensor, log_sigma: Tensor) -> Tensor:
            return self.network(z, shift + self.network.condition(log_sigma))

        noise = self.noise.draw(mean)
        return explicit_score_matching(network, mean, std.square(), scale, noise)

    def _log_prob(self, context: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        shift = self.network.project_context(context)

        def network(z: Tensor, log_sigma: Tensor) -> Tensor:
            return self.network(z, shift + self.network.condition(log_sigma))

        return probability_flow_log_prob(network, z, scale)

    def _denoiser(self, context: Tensor, scale: Tensor, levels: list[float]):
        """Return the denoiser at the i-th of the levels, in units of the scale."""
        log_sigmas = context.new_tensor(levels).log().unsqueeze(-1)
        # once a noise level, and once a row for all noise levels
        shifts = self.network.condition(log_sigmas)
        shift_of_context = self.network.project_context(context)

        def denoise(z: Tensor, i: int) -> Tensor:
            def network(scaled: Tensor, _: Tensor) -> Tensor:
                return self.network(scaled, shift_of_context + shifts[i])

            return preconditioned_denoiser(network, z, log_sigmas[i], scale)

        return denoise

    def _sample(self, context: Tensor, scale: Tensor, num_solver_steps: int) -> Tensor:
        levels = sampling_levels(num_solver_steps)
        noise = torch.randn_like(context.new_empty(len(context), self.latent_dim))
        noise = levels[0] * scale * noise
        return dpm_solver(self._denoiser(context, scale, levels), noise, levels)

    def _mean(self, context: Tensor, scale: Tensor) -> Tensor:
        # Under noise above the scale a denoiser gives nearly the mean, whatever it sees.
        # From level to level it is told better where to look.
        mean = context.new_zeros(len(context), self.latent_dim)
        denoise = self._denoiser(context, scale, MEAN_LEVELS)
        for i in range(len(MEAN_LEVELS)):
            mean = denoise(mean, i)
        return mean


class GaussianTransition(Transition):
    """The deep state-space baseline: a diagonal Gaussian and its closed-form KL.

    Parameters
    ----------
    context
        The network that makes the context.
    hidden_size
        Width of the network of the moments.
    """

    def __init__(self, context: Context, hidden_size: int) -> None:
        super().__init__(context)
        self.network = MLP(context.context_size, hidden_size, 2 * context.latent_dim)

    def moments(self, context: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in centred coordinates, (N, D) each."""
        mean, raw_std = self.network(context).chunk(2, dim=-1)
        std = nn.functional.softplus(raw_std) + MIN_RELATIVE_STD
        return scale * mean, scale * std

    def _kl(
        self, features: Tensor, mean: Tensor, std: Tensor, scale: Tensor, max_rows: int
    ) -> Tensor:
        context = self.context.network(features)
        p = torch.distributions.Normal(*self.moments(context, scale))
        q = torch.distributions.Normal(mean, std)
        return torch.distributions.kl_divergence(q, p).sum(-1)

    def _log_prob(self, context: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        moments = self.moments(context, scale)
        return torch.distributions.Normal(*moments).log_prob(z).sum(-1)

    def _sample(self, context: Tensor, scale: Tensor, num_solver_steps: int) -> Tensor:
        mean, std = self.moments(context, scale)
        return mean + std * torch.randn_like(mean)

    def _mean(self, context: Tensor, scale: Tensor) -> Tensor:
        return self.moments(context, scale)[0]
