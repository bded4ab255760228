r"""
The state-space model: encoder, transition and emission in one.

.. math::
    \log p(x_{1:T}) \ge \sum_t \mathbb{E}_q \log p_\theta(x_t | z_t, u_t)
    - \sum_t \mathbb{E}_q \mathrm{KL}(
        q_\phi(z_t | z_{t-1}, x_{1:T}) \,\|\, p_\psi(z_t | z_{t-j:t-1}, u_t))

Letters: B batch, S samples, T time steps of a window, n steps ahead, C components,
K parameters of the density of one component, D latent dimension, U inputs known at each
step, P past covariates, H hidden size.

References
----------
.. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from darts_ddssm.ssm.context import Context, History, MarkovContext, RecurrentContext
from darts_ddssm.ssm.decoder import Decoder
from darts_ddssm.ssm.encoder import Encoder
from darts_ddssm.ssm.transition import (
    STEADY_ROWS,
    DiffusionTransition,
    GaussianTransition,
    Transition,
)


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

    @property
    def transition_inputs(self) -> Tensor:
        """All that the transition is told at each step, (B, T, U + P)."""
        return torch.cat([self.u, self.past], dim=-1)

    @property
    def informed(self) -> Tensor:
        """True where anything is observed at the step or later, (B, T)."""
        observed = self.observed.any(-1)
        return observed.flip(1).cummax(1).values.flip(1)


class StateSpaceModel(nn.Module):
    """A deep state-space model with a diffusion or a Gaussian transition.

    Parameters
    ----------
    num_components
        Number C of observed components.
    num_parameters
        Number K of parameters of the density of one component.
    input_size, past_size
        Numbers U and P of inputs of all networks, and of the transition alone.
    latent_dim
        Dimension D of the latent.
    transition_order
        Number of past latents that the transition sees; None for all of them.
    transition
        ``"diffusion"`` or ``"gaussian"``.
    hidden_size
        Width H of every network.
    reach
        Number of past latents that a transition of unbounded order sees directly.
    """

    def __init__(
        self,
        num_components: int,
        num_parameters: int,
        input_size: int,
        past_size: int,
        latent_dim: int,
        transition_order: int | None,
        transition: str,
        hidden_size: int,
        reach: int,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = Encoder(2 * num_components + input_size, latent_dim, hidden_size)
        sizes = (latent_dim, input_size + past_size, hidden_size)
        context: Context
        if transition_order is None:
            context = RecurrentContext(*sizes, reach)
        else:
            context = MarkovContext(*sizes, transition_order)
        self.transition: Transition
        if transition == "diffusion":
            self.transition = DiffusionTransition(context, hidden_size)
        else:
            self.transition = GaussianTransition(context, hidden_size)
        self.decoder = Decoder(
            latent_dim, input_size, hidden_size, num_components, num_parameters
        )

    def encode(self, window: Window) -> Tensor:
        """Run the encoder over a window, once for any number of samples: (T, B, 2 * H)."""
        values = window.x * window.observed
        return self.encoder(torch.cat([values, window.observed, window.u], dim=-1))

    def elbo(self, window: Window, num_practice: int = 0) -> tuple[Tensor, Tensor]:
        """Draw a path of the posterior and return what the evidence bound is made of.

        Parameters
        ----------
        window
            The data.
        num_practice
            Number of first rows that the encoder alone learns from.

        Returns
        -------
        parameters
            Raw parameters of the emission along the path, (B, T, C, K).
        kl
            Estimates of the divergence at each step in nats, (B, T).
        """
        floor = self.transition.min_std(window.x.shape[1])
        steps = self.encoder.path(self.encode(window), floor)
        inputs = (*steps, window.u, window.transition_inputs)
        num_rows = STEADY_ROWS * num_practice // len(window.x)
        raw, kl = self(*(x[num_practice:] for x in inputs), STEADY_ROWS - num_rows)
        if num_practice > 0:
            fixed = {name: x.detach() for name, x in self.named_parameters()}
            practice = (x[:num_practice] for x in inputs)
            first = functional_call(self, fixed, (*practice, max(num_rows, 1)))
            raw, kl = (torch.cat(x) for x in zip(first, (raw, kl), strict=True))
        # After the last observation the exact posterior is the transition.
        return raw, kl * window.informed

    def forward(
        self,
        z: Tensor,
        mean: Tensor,
        std: Tensor,
        u: Tensor,
        inputs: Tensor,
        max_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """Emission and divergence along a path of the posterior."""
        return self.decoder(z, u), self.transition.kl(z, mean, std, inputs, max_rows)

    def smooth(self, window: Window, num_samples: int, num_solver_steps: int) -> Tensor:
        """Draw paths of the states given the whole window.

        After the last observation they follow the transition, as the exact posterior does.

        Parameters
        ----------
        window
            The data.
        num_samples
            Number S of paths a series.
        num_solver_steps
            Number of network evaluations a step of a diffusion transition.

        Returns
        -------
        Tensor
            Paths, (S * B, T, D), sample by sample.
        """
        z, _ = self.encoded_paths(window, num_samples)
        ahead = ~window.informed.repeat(num_samples, 1)
        if not ahead.any():
            return z
        inputs = window.transition_inputs.repeat(num_samples, 1, 1)
        history = self.transition.context.start(len(z), z)
        for t, (rows, u_t) in enumerate(zip(ahead.T, inputs.unbind(1), strict=True)):
            if rows.any():
                kept = History(*(x[rows] for x in history))
                z[rows, t] = self._move(kept, u_t[rows], num_solver_steps, mean=False)
            history = self.transition.context.append(history, z[:, t], u_t)
        return z

    def encoded_paths(self, window: Window, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw paths of q with their densities, for importance weights.

        Parameters
        ----------
        window
            The data.
        num_samples
            Number S of paths a series.

        Returns
        -------
        z
            Paths, (S * B, T, D), sample by sample.
        log_q
            Log-density of each latent of a path given the one before, (S * B, T).
        """
        projection = self.encode(window).repeat(1, num_samples, 1)
        floor = self.transition.min_std(len(projection))
        z, mean, std = self.encoder.path(projection, floor)
        return z, torch.distributions.Normal(mean, std).log_prob(z).sum(-1)

    def posterior(
        self,
        projection: Tensor,
        window: Window,
        num_samples: int,
        num_solver_steps: int,
        mean: bool = False,
    ) -> History:
        """Draw paths of the posterior and return where they end.

        Steps at which nothing is observed are drawn from the transition: exact after the
        last observation, and before it better than the encoder, which has seen few long
        gaps; it puts the path right at the next observation.

        Parameters
        ----------
        projection
            Output of :meth:`encode`, (T, B, 2 * H).
        window
            The window that was encoded.
        num_samples
            Number S of paths a series.
        num_solver_steps
            Number of network evaluations a step of a diffusion transition, where nothing
            is observed any more.
        mean
            Follow the mean of each step instead of drawing from it.

        Returns
        -------
        History
            Histories of S * B paths, sample by sample.
        """
        num_steps, batch_size, _ = projection.shape
        context = self.transition.context
        floor = self.transition.min_std(num_steps)
        inputs, missing = window.transition_inputs, ~window.observed.any(-1)
        any_missing = missing.any(0).tolist()
        if not any(any_missing) and not mean:
            z, _, _ = self.encoder.path(projection.repeat(1, num_samples, 1), floor)
            return context.after(z, inputs.repeat(num_samples, 1, 1))
        history = context.start(num_samples * batch_size, projection)
        for t in range(num_steps):
            u_t = inputs[:, t].repeat(num_samples, 1)
            # (S * B, D) -> (S, B, D) -> (S * B, D)
            z = history.previous.unflatten(0, (num_samples, batch_size))
            noise = torch.zeros_like(z) if mean else torch.randn_like(z)
            z = self.encoder.step(z, projection[t], noise, floor[t]).flatten(0, 1)
            if any_missing[t]:
                rows = missing[:, t].repeat(num_samples)
                kept = History(*(x[rows] for x in history))
                z[rows] = self._move(kept, u_t[rows], num_solver_steps, mean)
            history = context.append(history, z, u_t)
        return history

    def _move(
        self, history: History, u_t: Tensor, num_solver_steps: int, mean: bool
    ) -> Tensor:
        """Draw the next latent of each path from the transition: (N, D)."""
        if mean:
            return self.transition.mean(history, u_t)
        return self.transition.sample(history, u_t, num_solver_steps)

    def roll_out(
        self, history: History, inputs: Tensor, num_solver_steps: int, mean: bool = False
    ) -> Tensor:
        """Draw the latents that follow.

        Parameters
        ----------
        history
            Histories of N paths.
        inputs
            Inputs of the transition at the n steps ahead, (N, n, U + P).
        num_solver_steps
            Number of network evaluations a step of a diffusion transition.
        mean
            Follow the mean of each step instead of drawing from it.

        Returns
        -------
        Tensor
            Paths, (N, n, D).
        """
        path = []
        for u_t in inputs.unbind(1):
            z = self._move(history, u_t, num_solver_steps, mean)
            history = self.transition.context.append(history, z, u_t)
            path.append(z)
        return torch.stack(path, dim=1)
