r"""
The latent transition p_psi(z_t | z_{t-j:t-1}, u_t), diffusion or Gaussian.

Both work in coordinates centred on a linear prediction of the latent,
:math:`z_t - z_{t-1} - W z_{t-1} - b`, and on zero at the first step: a shift changes
neither a noise level nor a difference of scores. The *drift* :math:`(W, b)` is that of a
ridge regression along the paths of the posterior, tracked as the scale is, and the
networks learn what is left. The change that they make is bounded. Far from the data the
drift therefore has the last word, and leads a long forecast back.

Letters as in :mod:`darts_ddssm.ssm`; U counts all inputs of the transition.

References
----------
.. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.context import Context, History, shift_right, started_along
from darts_ddssm.ssm.diffusion import (
    MIN_RELATIVE_STD,
    DenoiserNetwork,
    LogUniformNoise,
    explicit_score_matching,
    preconditioned_denoiser,
    sampling_levels,
    solve_probability_flow,
)
from darts_ddssm.ssm.distillation import FewStepSampler, distil
from darts_ddssm.ssm.encoder import PosteriorPath
from darts_ddssm.ssm.networks import MLP, frozen
from darts_ddssm.ssm.probability_flow import NUM_STEPS, probability_flow_log_prob

# How much of the tracked scale a training step replaces.
SCALE_UPDATE = 0.02

# Share of their squares that is added to the squares of the drift's regressors, so that it
# makes half of the change that least squares do. With all of it, the scale would be that
# of the innovations alone, and the networks, which move the latent by a few scales at
# most, could not correct a path that has lost its amplitude or its level.
DRIFT_RIDGE = 1.0

# The buffers of running means. In 16 bits what an update adds to them would be lost.
RUNNING_MEANS = ("squared_scale", "squares", "products")

# Noise levels at which the mean of a transition is read off its denoiser.
MEAN_LEVELS = [8.0, 4.0, 2.0]

# Rows whose density is computed at a time: their derivatives stay in the cache.
DENSITY_ROWS = 1024


def _with_drift(
    transition: "Transition", state: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """Add to loaded weights the drift of earlier versions: none."""
    for name in ("squares", "products", "drift"):
        buffer = transition.get_buffer(name)
        state.setdefault(prefix + name, torch.zeros_like(buffer))


def _with_sampler(
    transition: "DiffusionTransition", state: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """Make the transition have a distilled sampler if loaded weights have one."""
    start = f"{prefix}sampler.networks."
    numbers = {name[len(start) :].split(".")[0] for name in state if name.startswith(start)}
    transition.sampler = transition.new_sampler(len(numbers)) if numbers else None


def _by_parts(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Call a function of rows (N, ...) with a part of them at a time."""
    parts = zip(*(x.split(DENSITY_ROWS) for x in rows), strict=True)
    return torch.cat([function(*part) for part in parts])


def _sum_of_processes(value: Tensor) -> Tensor:
    """Return the sum over all processes of a training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value


def _moments(path: PosteriorPath, weight: Tensor) -> Tensor:
    """Weighted sums of paths (N, T, D), one after another, for one exchange of processes.

    The weights (N, T), of the first step and of the others. mu^2 + v of the first step. Of
    the others: |mu_t - z_{t-1}|^2 + |s_t|^2, and products of (z_{t-1}, 1) with itself and
    with mu_t - z_{t-1}.
    """
    # 16 bits are too few for sums
    dtype = torch.promote_types(path.z.dtype, torch.float32)
    z, mean, std = (x.to(dtype) for x in path)
    # (N, T) -> (N, T, 1)
    weight = weight.to(dtype).unsqueeze(-1)
    weights = torch.stack([weight[:, 0].sum(), weight[:, 1:].sum()])
    first = (weight[:, 0] * (mean[:, 0].square() + std[:, 0].square())).sum()
    # (N, T - 1, ...) -> (N * (T - 1), ...)
    previous, std = z[:, :-1].flatten(0, 1), std[:, 1:].flatten(0, 1)
    change = mean[:, 1:].flatten(0, 1) - previous
    weight = weight[:, 1:].flatten(0, 1)
    previous = nn.functional.pad(previous, (0, 1), value=1.0)
    weighted = weight * previous
    with torch.autocast(previous.device.type, enabled=False):
        squares, products = weighted.T @ previous, weighted.T @ change
    squared_change = (weight * (change.square() + std.square())).sum()
    parts = (weights, first, squared_change, squares, products)
    return torch.cat([part.flatten() for part in parts])


class _Rows(NamedTuple):
    """Steps of paths of the posterior in centred coordinates, one per row.

    Attributes
    ----------
    features
        Inputs of the context network, (N, F).
    mean, std
        Moments of q, (N, D).
    scale
        Scale sigma_d, (N, 1).
    """

    features: Tensor
    mean: Tensor
    std: Tensor
    scale: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "_Rows":
        return _Rows(*(function(part) for part in self))


class Transition(nn.Module, ABC):
    """A conditional density of the next latent given a context.

    Parameters
    ----------
    context
        The network that makes the context of the past latents and the inputs.
    """

    squared_scale: Tensor
    num_updates: Tensor
    squares: Tensor
    products: Tensor
    drift: Tensor

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        # sigma_d^2 of the centred latent: of the first step, of all others
        self.register_buffer("squared_scale", torch.ones(2))
        self.register_buffer("num_updates", torch.zeros(()))
        # of (z_{t-1}, 1) with itself and with z_t - z_{t-1}: second moments, and the
        # coefficients (W, b) of the linear prediction
        size = context.latent_dim
        self.register_buffer("squares", torch.zeros(size + 1, size + 1))
        self.register_buffer("products", torch.zeros(size + 1, size))
        self.register_buffer("drift", torch.zeros(size + 1, size))
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _with_drift
        )

    def _apply(self, *args: Any, **kwargs: Any) -> "Transition":
        """Cast or move it; the running means keep single precision at least."""
        before = {name: self.get_buffer(name) for name in RUNNING_MEANS}
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            cast = self.get_buffer(name)
            dtype = torch.promote_types(cast.dtype, torch.float32)
            if cast.dtype != dtype:
                setattr(self, name, value.to(cast.device, dtype))
        return self

    def scale(self, started: Tensor) -> Tensor:
        """Return sigma_d where ``started`` is 0 (first step) or 1, of its shape."""
        first, rest = self.squared_scale.sqrt()
        # exact: in 16 bits, a sum with their difference may lose the smaller one
        return torch.where(started > 0, rest, first).to(started.dtype)

    def centre(self, previous: Tensor, started: Tensor) -> Tensor:
        """Return the linear prediction of the latent that follows.

        Parameters
        ----------
        previous
            Latents before, zero before the first, (..., D).
        started
            0 at the first step, where the prediction is zero, and 1 later, (..., 1).
        """
        with torch.autocast(previous.device.type, enabled=False):
            previous = previous.to(self.drift.dtype)
            change = torch.addmm(self.drift[-1], previous.flatten(0, -2), self.drift[:-1])
        return previous + started * change.view_as(previous)

    @torch.no_grad()
    def track_moments(self, path: PosteriorPath, weight: Tensor | None = None) -> None:
        """Update the drift (W, b) and sigma_d from paths of the posterior.

        The scale is that of E[v] + E[(mu - mu_p)^2], with mu_p the linear prediction. The
        square is about zero, where the preconditioned denoiser starts, and not about the
        mean. What no step has a weight for is left as it is.

        Parameters
        ----------
        path
            Paths of a training batch, (N, T, D).
        weight
            Weight of each step, (N, T). ``None`` for the same of all.
        """
        if weight is None:
            weight = path.z.new_ones(path.z.shape[:2])
        sums = _sum_of_processes(_moments(path, weight))
        # What is not finite leaves no trace. The loss will tell.
        sums = sums.where(sums.isfinite().all(), 0.0)
        # of the first step, and of the others
        weights, first, rest = sums[:2], sums[2:3], sums[3:]
        seen = weights > 0
        weights = weights.where(seen, 1.0)
        # A plain mean of the first values, then an exponential one.
        rate = (1 / (self.num_updates + 1)).clamp(min=SCALE_UPDATE)
        rates = (rate * seen).to(self.squared_scale.dtype)
        rest = self._track_drift(rest / weights[1], rates[1])
        new = torch.cat([first / weights[0], rest]) / self.drift.shape[-1]
        self.squared_scale.lerp_(new.to(self.squared_scale.dtype), rates)
        self.num_updates += seen.any()

    def _track_drift(self, moments: Tensor, rate: Tensor) -> Tensor:
        """Update the drift from moments of the later steps.

        Returns
        -------
        Tensor
            E |change - drift|^2 + E |s|^2, (1,).
        """
        size = self.drift.shape[-1]
        parts = moments.split([1, (size + 1) ** 2, (size + 1) * size])
        squared_change, new_squares, new_products = parts
        new_squares = new_squares.view_as(self.squares)
        new_products = new_products.view_as(self.products)
        self.squares.lerp_(new_squares.to(self.squares.dtype), rate)
        self.products.lerp_(new_products.to(self.products.dtype), rate)
        # 16 bits have no solver
        squares, products = self.squares.to(moments.dtype), self.products.to(moments.dtype)
        ridge = DRIFT_RIDGE * squares.diagonal() + torch.finfo(moments.dtype).tiny
        # it raises nothing, and does not wait for the device
        drift, _ = torch.linalg.solve_ex(squares + ridge.diag(), products)
        self.drift.copy_(drift)
        # E |change - (z, 1) drift|^2, multiplied out. The ridge bounds each of the terms by
        # the square of the change, so that hardly a digit is lost.
        with torch.autocast(moments.device.type, enabled=False):
            explained = (drift * (2 * new_products - new_squares @ drift)).sum()
        return (squared_change - explained).clamp(min=0.0)

    def min_std(self, num_steps: int) -> Tensor:
        """Floor of q's standard deviation at each of the first steps, (T,)."""
        steps = torch.arange(num_steps, device=self.drift.device)
        return MIN_RELATIVE_STD * self.scale((steps > 0).to(self.drift.dtype))

    def kl(
        self,
        path: PosteriorPath,
        u: Tensor,
        max_rows: int | None = None,
        num_draws: int = 1,
        learns: Tensor | None = None,
    ) -> Tensor:
        """Estimate KL(q(z_t | z_{t-1}) || p(z_t | z_{t-j:t-1})) along paths of q.

        A Gaussian transition has it in closed form and heeds neither ``max_rows`` nor
        ``num_draws``.

        Parameters
        ----------
        path
            Paths with the moments of q, (N, T, D).
        u
            Inputs, (N, T, U).
        max_rows
            The most of the N * T steps that are evaluated, a random choice of them scaled
            up to all. ``None`` for all.
        num_draws
            Number of noise levels for each step, if all are evaluated.
        learns
            Steps whose KL teaches the transition, (N, T), on the CPU, where counting them
            waits for no device. At the others its parameters are held constant. ``None``
            for all.

        Returns
        -------
        Tensor
            KL in nats, (N, T).
        """
        if learns is None:
            return self._kl_along(path, u, max_rows, num_draws)
        # each kind of step has its share of the rows
        share = None if max_rows is None else max(max_rows // 2, 1)
        with frozen(self):
            constant = self._kl_along(path, u, share, num_draws, ~learns)
        return constant + self._kl_along(path, u, share, num_draws, learns)

    def _kl_along(
        self,
        path: PosteriorPath,
        u: Tensor,
        max_rows: int | None,
        num_draws: int,
        steps: Tensor | None = None,
    ) -> Tensor:
        """KL at some of the steps, (N, T) of booleans, and zero at the others."""
        mean = path.mean - self._centre_along(path.z)
        features, scale = self.context.features(path.z, u), self._scale_along(path.z)
        # (N, T, ...) -> (N * T, ...)
        rows = _Rows(*(x.flatten(0, 1) for x in (features, mean, path.std, scale)))
        if steps is None:
            kl = self._kl(rows, max_rows, num_draws)
        else:
            chosen = steps.flatten().nonzero().squeeze(-1)
            chosen = chosen.to(mean.device, non_blocking=True)
            kl = self._kl(rows.map(lambda x: x[chosen]), max_rows, num_draws)
            kl = mean.new_zeros(steps.numel()).index_put((chosen,), kl)
        # (N * T,) -> (N, T)
        return kl.unflatten(0, path.z.shape[:2])

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

        def of_rows(features: Tensor, z: Tensor, scale: Tensor) -> Tensor:
            return self._log_prob(self.context.network(features), z, scale)

        centred = z - self._centre_along(z)
        parts = (self.context.features(z, u), centred, self._scale_along(z))
        # (N, T, ...) -> (N * T, ...)
        flat = (x.flatten(0, 1) for x in parts)
        return _by_parts(of_rows, *flat).unflatten(0, z.shape[:2])

    def log_prob_next(
        self, history: History, z: Tensor, u: Tensor, num_steps: int
    ) -> Tensor:
        """Log-density of the latent that follows each history in nats, (N,).

        Parameters
        ----------
        history
            Histories of N paths.
        z
            The latents, (N, D).
        u
            Inputs, (N, U).
        num_steps
            Number of network evaluations of a diffusion transition.
        """

        def of_rows(context: Tensor, z: Tensor, scale: Tensor) -> Tensor:
            return self._log_prob(context, z, scale, num_steps)

        context, scale = self.context.output(history, u), self.scale(history.started)
        centred = z - self.centre(history.previous, history.started)
        return _by_parts(of_rows, context, centred, scale)

    def _scale_along(self, z: Tensor) -> Tensor:
        """Return sigma_d at each step of paths (N, T, D): (N, T, 1)."""
        return self.scale(started_along(z))

    def _centre_along(self, z: Tensor) -> Tensor:
        """Return the linear prediction at each step of paths (N, T, D): (N, T, D)."""
        return self.centre(shift_right(z), started_along(z))

    def sample(
        self, history: History, u: Tensor, num_solver_steps: int, in_full: bool = False
    ) -> Tensor:
        """Draw the latent that follows each history, (N, D).

        Parameters
        ----------
        history
            Histories of N paths.
        u
            Inputs, (N, U).
        num_solver_steps
            Number of network evaluations of a diffusion transition.
        in_full
            Whether to draw from the density itself, though there is a distilled sampler.
        """
        context = self.context.output(history, u)
        scale = self.scale(history.started)
        centre = self.centre(history.previous, history.started)
        return centre + self._sample(context, scale, num_solver_steps, in_full)

    @property
    def is_distilled(self) -> bool:
        """Whether a sampler of few evaluations draws."""
        return False

    def mean(self, history: History, u: Tensor) -> Tensor:
        """Mean of the next latent of each history: inputs (N, U) -> (N, D)."""
        context = self.context.output(history, u)
        centre = self.centre(history.previous, history.started)
        return centre + self._mean(context, self.scale(history.started))

    @abstractmethod
    def _kl(self, rows: _Rows, max_rows: int | None, num_draws: int) -> Tensor:
        """KL of each row, (N,)."""

    @abstractmethod
    def _log_prob(
        self, context: Tensor, z: Tensor, scale: Tensor, num_steps: int = NUM_STEPS
    ) -> Tensor:
        """Log-density of each row in centred coordinates, (N,)."""

    @abstractmethod
    def _sample(
        self, context: Tensor, scale: Tensor, num_solver_steps: int, in_full: bool
    ) -> Tensor:
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
        # takes the place of the solver once the transition is distilled
        self.sampler: FewStepSampler | None = None
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _with_sampler
        )

    @property
    def is_distilled(self) -> bool:
        return self.sampler is not None

    def _kl(self, rows: _Rows, max_rows: int | None, num_draws: int) -> Tensor:
        num_rows = len(rows.mean)
        if max_rows is not None and num_rows > max_rows:
            chosen = torch.randperm(num_rows, device=rows.mean.device)[:max_rows]
            kl = self._draw_kl(rows.map(lambda x: x[chosen])) * (num_rows / max_rows)
            return rows.mean.new_zeros(num_rows).index_put((chosen,), kl)
        # (draws * N,) -> (draws, N) -> (N,)
        kl = self._draw_kl(rows.map(lambda x: x.repeat(num_draws, 1)))
        return kl.unflatten(0, (num_draws, num_rows)).mean(0)

    def _draw_kl(self, rows: _Rows) -> Tensor:
        """Estimate the KL from one noise level for each row, (N,)."""
        network = self._network(self.context.network(rows.features))
        noise = self.noise.draw(rows.mean)
        return explicit_score_matching(
            network, rows.mean, rows.std.square(), rows.scale, noise
        )

    def _network(self, context: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return F(c_in z, log(sigma / sigma_d)) given contexts (N, H)."""
        shift = self.network.project_context(context)

        def network(z: Tensor, log_sigma: Tensor) -> Tensor:
            return self.network(z, shift + self.network.condition(log_sigma))

        return network

    def _log_prob(
        self, context: Tensor, z: Tensor, scale: Tensor, num_steps: int = NUM_STEPS
    ) -> Tensor:
        network = self._network(context)
        return probability_flow_log_prob(network, z, scale, num_steps=num_steps)

    def _denoiser(
        self, context: Tensor, levels: list[float]
    ) -> Callable[[Tensor, int], Tensor]:
        """Return the denoiser at the i-th of the levels, all in units of sigma_d.

        They are in even steps of their logarithm.
        """
        # made on the device: a list that is copied there would wait for it
        log_sigmas = torch.linspace(
            math.log(levels[0]),
            math.log(levels[-1]),
            len(levels),
            dtype=context.dtype,
            device=context.device,
        ).unsqueeze(-1)
        # one projection per noise level, and one per row for all noise levels
        shifts = self.network.condition(log_sigmas)
        shift_of_context = self.network.project_context(context)

        def denoise(z: Tensor, i: int) -> Tensor:
            shift = shift_of_context + shifts[i]
            return preconditioned_denoiser(
                lambda scaled: self.network(scaled, shift), z, levels[i]
            )

        return denoise

    def new_sampler(self, num_evaluations: int) -> FewStepSampler:
        """Return a sampler of few evaluations that starts with the denoiser's weights."""
        size, width = self.network.project_context.in_features, self.network.hidden_size
        sampler = FewStepSampler(self.latent_dim, size, width, num_evaluations)
        for network in sampler.networks:
            network.load_state_dict(self.network.state_dict())
        return sampler.to(self.drift)

    def distilled(
        self, contexts: Tensor, num_evaluations: int, num_updates: int
    ) -> tuple[FewStepSampler, Tensor]:
        """Return a sampler of few evaluations, and how far its draws are off.

        Parameters
        ----------
        contexts
            Contexts of what is to be drawn, (N, H), in random order.
        num_evaluations
            Number of network evaluations.
        num_updates
            Number of updates of its training.

        Returns
        -------
        sampler
            The sampler.
        distance
            As :func:`darts_ddssm.ssm.distillation.relative_distance`, a scalar.
        """
        # 16 bits are too few to learn
        dtype = torch.promote_types(self.drift.dtype, torch.float32)
        sampler = self.new_sampler(num_evaluations).to(dtype)
        with torch.autocast(contexts.device.type, enabled=False):
            contexts = contexts.to(self.drift.dtype)
            return sampler, distil(sampler, self._denoiser, contexts, num_updates)

    def _sample(
        self, context: Tensor, scale: Tensor, num_solver_steps: int, in_full: bool
    ) -> Tensor:
        if self.sampler is not None and not in_full:
            return scale * self.sampler(context)
        levels = sampling_levels(num_solver_steps)
        noise = torch.randn_like(context.new_empty(len(context), self.latent_dim))
        denoise = self._denoiser(context, levels)
        return scale * solve_probability_flow(denoise, levels[0] * noise, levels)

    def _mean(self, context: Tensor, scale: Tensor) -> Tensor:
        # Under noise far above the scale a denoiser gives nearly the mean, whatever its
        # input. Each level starts from the mean that the one before found.
        mean = context.new_zeros(len(context), self.latent_dim)
        denoise = self._denoiser(context, MEAN_LEVELS)
        for i in range(len(MEAN_LEVELS)):
            mean = denoise(mean, i)
        return scale * mean


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

    def _kl(self, rows: _Rows, max_rows: int | None, num_draws: int) -> Tensor:
        context = self.context.network(rows.features)
        # a look at the moments would wait for the device
        normal = partial(torch.distributions.Normal, validate_args=False)
        p = normal(*self.moments(context, rows.scale))
        q = normal(rows.mean, rows.std)
        return torch.distributions.kl_divergence(q, p).sum(-1)

    def _log_prob(
        self, context: Tensor, z: Tensor, scale: Tensor, num_steps: int = NUM_STEPS
    ) -> Tensor:
        moments = self.moments(context, scale)
        return torch.distributions.Normal(*moments).log_prob(z).sum(-1)

    def _sample(
        self, context: Tensor, scale: Tensor, num_solver_steps: int, in_full: bool
    ) -> Tensor:
        mean, std = self.moments(context, scale)
        return mean + std * torch.randn_like(mean)

    def _mean(self, context: Tensor, scale: Tensor) -> Tensor:
        return self.moments(context, scale)[0]
