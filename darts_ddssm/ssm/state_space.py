r"""
The state-space model: transition and emission, their posterior and the ELBO.

The generative model is

.. math::
    z_t \sim p_\psi(z_t | z_{t-j:t-1}, u_t) , \qquad x_t \sim p_\theta(x_t | z_t, u_t) ,

with a diffusion model or a Gaussian for the transition :math:`p_\psi`, which also gives
the first states, whose history is shorter than j. The posterior is

.. math::
    q_\phi(z_{1:T} | x_{1:T}) = \prod_t q_\phi(z_t | z_{t-1}, x_{1:T}) ,

each factor a Gaussian. All are trained together by the evidence lower bound

.. math::
    \log p(x_{1:T}) \ge \mathrm{ELBO}
    = \sum_t \mathbb{E}_q \log p_\theta(x_t | z_t, u_t)
    - \sum_t \mathbb{E}_q \mathrm{KL}\bigl(
        q_\phi(z_t | z_{t-1}, x_{1:T}) \,\|\, p_\psi(z_t | z_{t-j:t-1}, u_t)\bigr) .

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.
.. [2] R. Strauss and J. Oliva, "Posterior Matching for Arbitrary Conditioning",
       NeurIPS 2022.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.context import Context, History, MarkovContext, RecurrentContext
from darts_ddssm.ssm.decoder import Decoder
from darts_ddssm.ssm.encoder import Encoder, PosteriorPath
from darts_ddssm.ssm.networks import frozen
from darts_ddssm.ssm.particles import (
    OfEmission,
    Predictive,
    States,
    predictive,
    sample_states,
)
from darts_ddssm.ssm.transition import (
    DiffusionTransition,
    GaussianTransition,
    Transition,
)
from darts_ddssm.ssm.window import Window, until_last

# Share of steps observed like the one before them, below which other steps teach the
# transition too, all of them where it is zero.
FEW_CLOSED_STEPS = 0.1

# Weight of the KL at the first observation after a gap, in training.
AFTER_GAP_WEIGHT = 0.1

# Where paths branch: how many go on from one past, and the last states that are their own.
NUM_BRANCHES, OWN_STATES = 4, 2


class StateSpaceModel(nn.Module):
    """A deep state-space model with a diffusion or a Gaussian transition [1]_.

    Parameters
    ----------
    num_components
        Number C of observed components.
    num_parameters
        Number K of parameters of the density of one component.
    input_size, past_size
        Numbers U and P of inputs of all networks, and of the transition alone.
    reach, num_context
        Numbers of latents of a training window and of its input chunk. A transition of
        unbounded order sees no more than the first of them, directly and through its
        recurrent network, and where there were more it starts again from the second.
    latent_dim
        Dimension D of the latent.
    transition_order
        Number j of past latents that the transition sees; None for all of them.
    transition
        ``"diffusion"`` or ``"gaussian"``.
    hidden_size
        Width H of every network.
    lagged
        Which of the U + P inputs of the transition may act with a delay. ``None`` for all.
    """

    def __init__(
        self,
        num_components: int,
        num_parameters: int,
        input_size: int,
        past_size: int,
        reach: int,
        num_context: int,
        latent_dim: int,
        transition_order: int | None,
        transition: str,
        hidden_size: int,
        lagged: Sequence[slice] | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.reach, self.num_context = reach, num_context
        self.encoder = Encoder(
            num_components,
            2 * num_components + input_size,
            latent_dim,
            hidden_size,
            reach,
        )
        sizes = (latent_dim, input_size + past_size, hidden_size)
        context: Context
        if transition_order is None:
            context = RecurrentContext(*sizes, reach, num_context, lagged)
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

    # --- the posterior and the ELBO ---------------------------------------------------

    def encode(self, window: Window) -> Tensor:
        """Run the encoder over a window, once for any number of samples: (T, B, 2 * H)."""
        values = window.x * window.observed
        features = torch.cat([values, window.observed, window.u], dim=-1)
        return self.encoder(features, window.next_observed * (1 - window.observed))

    def sample_posterior(self, window: Window, num_samples: int = 1) -> PosteriorPath:
        """Draw paths of q given the whole window.

        Parameters
        ----------
        window
            The data, B series.
        num_samples
            Number S of paths of each series.

        Returns
        -------
        PosteriorPath
            Paths, (S * B, T, D), sample by sample.
        """
        projection = self.encode(window)
        floor = self.transition.min_std(len(projection))
        return self.encoder.sample_path(projection, floor, num_samples)

    def elbo_terms(
        self,
        window: Window,
        path: PosteriorPath,
        num_encoder_rows: int = 0,
        max_rows: int | None = None,
        num_draws: int = 1,
        share_observed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return both terms of the ELBO along a path of the posterior.

        Where a state or the one before it is not observed, the posterior guesses, and a
        transition that learned from guesses would forecast them: its density would fill up
        between the modes. Such steps teach the encoder alone.

        Parameters
        ----------
        window
            The data, B series.
        path
            A path of each series.
        num_encoder_rows
            Number of first series from which the encoder alone learns: transition and
            decoder are held constant for them.
        max_rows
            The most steps of all series for which the KL is estimated, a random choice of
            them scaled up to all. ``None`` for all.
        num_draws
            Number of noise levels for each step, if the KL is estimated for all.
        share_observed
            Share of the values at each step that are observed, (B, T), on the CPU. ``None``
            for all.

        Returns
        -------
        parameters
            Raw parameters of the emission along the path, (B, T, C, K).
        kl
            Estimates of the KL at each step in nats, (B, T).
        """

        def terms(
            rows: slice, max_rows: int | None, learns: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            part, q = window.map(lambda x: x[rows]), path.rows(rows)
            how = part.transition_inputs, max_rows, num_draws, learns
            return self.decoder(q.z, part.u), self.transition.kl(q, *how)

        # each part of the batch has its share of the steps
        first_max_rows = rest_max_rows = max_rows
        if max_rows is not None:
            first_max_rows = max_rows * num_encoder_rows // len(window.x)
            rest_max_rows = max_rows - first_max_rows
            first_max_rows = max(first_max_rows, 1)
        rest = slice(num_encoder_rows, None)
        learns = None if share_observed is None else _teaching_steps(share_observed[rest])
        raw, kl = terms(rest, rest_max_rows, learns)
        if num_encoder_rows > 0:
            with frozen(self.transition, self.decoder):
                first = terms(slice(num_encoder_rows), first_max_rows)
            raw, kl = torch.cat([first[0], raw]), torch.cat([first[1], kl])
        # After the last observation the exact posterior is the transition.
        return raw, kl * window.until_last_observation

    def posterior_matching(self, hidden: Window, shown: Window) -> Tensor:
        r"""Tell how far q is, where data are hidden, from q where they are shown, (B, T).

        The ELBO asks of a guess at a gap that it be likely, and that what follows be. Of
        several ways a Gaussian then keeps to the one that it is near, though what is
        observed after the gap tells another. Where data were hidden that are known, the
        posterior given these shows it the way [2]_. It is

        .. math::
            \rho\bigl(\mathrm{KL}\bigl(q_\phi(z_t | z_{t-1}, x^{\mathrm{hidden}})
            \,\|\, q_\phi(z_t | z_{t-1}, x^{\mathrm{shown}})\bigr)\bigr) , \qquad
            \rho(k) = D \log(1 + k / D)

        along paths of the former. Only its own moments at each step learn from it. A guess
        that takes a wrong way is thousands of nats away, hence the logarithm.

        Parameters
        ----------
        hidden, shown
            The data, B series, with some hidden, and with all that are known.
        """
        projection = self.encode(hidden)
        floor = self.transition.min_std(len(projection))
        with torch.no_grad():
            z = self.encoder.sample_path(projection, floor).z
            target = self.encoder.moments_along(z, self.encode(shown), floor)
        q = self.encoder.moments_along(z, projection, floor)
        # a look at the moments would wait for the device
        normal = partial(torch.distributions.Normal, validate_args=False)
        kl = torch.distributions.kl_divergence(normal(*q), normal(*target)).sum(-1)
        distance = self.latent_dim * (kl / self.latent_dim).log1p()
        # after the last observation the transition takes the place of q
        return distance * hidden.until_last_observation

    # --- states given data ------------------------------------------------------------

    def sample_states(
        self,
        projection: Tensor,
        window: Window,
        log_emission: OfEmission,
        num_samples: int,
        num_solver_steps: int,
        filtering: bool = False,
        share_observed: Tensor | None = None,
    ) -> States:
        """Draw paths of the states given a window, with what a forecast needs of them.

        After the last observation they follow the transition, as the exact posterior does.
        Where data of a series are missing before it, :mod:`darts_ddssm.ssm.particles` draws
        its paths.

        Parameters
        ----------
        projection
            Output of :meth:`encode`, (T, B, 2 * H).
        window
            The window that was encoded, B series.
        log_emission
            Log-density of an observation.
        num_samples
            Number S of paths of each series.
        num_solver_steps
            Number of network evaluations for each step of a diffusion transition.
        filtering
            Whether the last state is all that is asked for.
        share_observed
            Share of each step that is observed, (B, T), on the CPU, where a look at it
            waits for no device. A step of which some component is observed may count as a
            whole one, and does so by default.

        Returns
        -------
        States
            Paths of S * B rows, sample by sample.
        """
        if share_observed is None:
            share_observed = window.observed.any(-1).to(window.x.dtype).cpu()
        return sample_states(
            self.transition,
            self.encoder,
            self.encode,
            # 16 bits are too few for the recursion
            projection.to(self.encoder.weight_in.dtype),
            window,
            share_observed,
            log_emission,
            num_samples,
            num_solver_steps,
            filtering,
        )

    def predictive(
        self,
        window: Window,
        log_emission: OfEmission,
        cumulative: OfEmission | None,
        num_samples: int,
        num_solver_steps: int,
    ) -> Predictive:
        """Predict each observation from those before it.

        Parameters
        ----------
        window, log_emission, num_samples, num_solver_steps
            As for :meth:`sample_states`.
        cumulative
            P(X <= x) of each value, for its transform. ``None`` for no transforms.
        """
        return predictive(
            self.transition,
            self.encoder,
            self.encode,
            window,
            log_emission,
            cumulative,
            num_samples,
            num_solver_steps,
            self.reach,
        )

    def branching_histories(
        self, projection: Tensor, window: Window, num_samples: int
    ) -> History:
        """Draw histories of complete series, some of which share all but their last states.

        Each is a draw of the posterior, but fewer long pasts go through the context
        network than histories come out.

        Parameters
        ----------
        projection
            Output of :meth:`encode`, (T, B, 2 * H).
        window
            The window that was encoded, B series.
        num_samples
            Number S of histories of each series.

        Returns
        -------
        History
            Histories of S * B rows, sample by sample.
        """
        # 16 bits are too few for the recursion
        projection = projection.to(self.encoder.weight_in.dtype)
        num_steps, num_series, _ = projection.shape
        num_shared = max(num_steps - OWN_STATES, 1)
        num_pasts = math.ceil(num_samples / NUM_BRANCHES)
        floor, context = self.transition.min_std(num_steps), self.transition.context
        shared = self.encoder.sample_path(
            projection[:num_shared], floor[:num_shared], num_pasts
        )
        # (B, T, ...) -> (S * B, T, ...), sample by sample
        inputs = window.transition_inputs.repeat(num_samples, 1, 1)
        before, after = inputs.tensor_split([num_shared], dim=1)
        history = context.from_path(shared.z, before[: num_pasts * num_series])
        history = history.repeat(NUM_BRANCHES).map(lambda x: x[: num_samples * num_series])
        for t, u_t in enumerate(after.unbind(1), start=num_shared):
            rows = projection[t].repeat(num_samples, 1)
            mean, std = self.encoder.moments(history.previous, rows, floor[t])
            z = mean + std * torch.randn_like(mean)
            history = context.update(history, z, u_t)
        return history

    def mean_history(
        self, projection: Tensor, window: Window, num_solver_steps: int
    ) -> History:
        """Follow the mean of each step to the end of a window, by the transition in gaps.

        Parameters
        ----------
        projection, window, num_solver_steps
            As for :meth:`sample_states`.
        """
        context = self.transition.context
        floor = self.transition.min_std(len(projection))
        missing = ~window.observed.any(-1)
        history = context.init(len(window.x), projection)
        for t, u_t in enumerate(window.transition_inputs.unbind(1)):
            z, _ = self.encoder.moments(history.previous, projection[t], floor[t])
            if missing[:, t].any():
                following = self._next(history, u_t, num_solver_steps, mean=True)
                z = torch.where(missing[:, t, None], following, z)
            history = context.update(history, z, u_t)
        return history

    # --- what follows -----------------------------------------------------------------

    def _next(
        self, history: History, u_t: Tensor, num_solver_steps: int, mean: bool = False
    ) -> Tensor:
        """Draw the next latent of each path from the transition: (N, D)."""
        if mean:
            return self.transition.mean(history, u_t)
        return self.transition.sample(history, u_t, num_solver_steps)

    def roll_out(
        self,
        history: History,
        inputs: Tensor,
        num_solver_steps: int,
        mean: bool = False,
        num_before: int = 0,
    ) -> Tensor:
        """Draw the latents that follow, step by step from the transition.

        A transition of unbounded order was trained on windows. Once a history is as long,
        it is made anew from the last latents, as many as an input chunk has, as soon as so
        many were drawn. Whatever the horizon, the transition then sees what it knows.

        Parameters
        ----------
        history
            Histories of N paths.
        inputs
            Inputs of the transition at the n steps to come, (N, n, U + P).
        num_solver_steps
            Number of network evaluations for each step of a diffusion transition.
        mean
            Follow the mean of each step instead of drawing from it.
        num_before
            Number of latents in the histories.

        Returns
        -------
        Tensor
            Paths, (N, n, D).
        """
        context = self.transition.context
        path: list[Tensor] = []
        for t, u_t in enumerate(inputs.unbind(1)):
            is_full = context.reach is not None and num_before >= context.reach
            if is_full and t >= context.num_context:
                last = slice(t - context.num_context, t)
                history = context.from_path(torch.stack(path[last], 1), inputs[:, last])
                num_before = context.num_context
            z = self._next(history, u_t, num_solver_steps, mean)
            history = context.update(history, z, u_t)
            num_before += 1
            path.append(z)
        return torch.stack(path, dim=1)


def weights_of_kl(share_observed: Tensor, is_guess: Tensor) -> Tensor:
    """Weight of the KL of each step in training, (B, T).

    A guess, where nothing is known, pays nothing for being unlikely, or it would keep to
    the way that it is near. How to guess is learned by
    :meth:`StateSpaceModel.posterior_matching`. At the first observation after a gap, a path
    pays for a wrong guess. If it paid in full, it would rather stay off what is observed,
    and the error would blur the steps that follow, from which the transition learns.

    Parameters
    ----------
    share_observed
        Share of the values at each step that the encoder sees, (B, T).
    is_guess
        Whether nothing is known of a step, masked values included, (B, T).
    """
    guess = is_guess.to(share_observed.dtype)
    after_guess = share_observed * (1 - _step_before(share_observed))
    _, least = _closed_steps(share_observed)
    # where hardly a step is closed, the transition has nothing else to learn from
    return 1 - (1 - least) * (guess + (1 - AFTER_GAP_WEIGHT) * after_guess)


def weights_of_moments(share_observed: Tensor) -> Tensor:
    """Weight of each step, (B, T), in the moments that the transition tracks.

    It is the share with which the step teaches the transition. After the last observation,
    where the KL does not count, it is zero.
    """
    return _teaching_share(share_observed) * until_last(share_observed > 0)


def _teaching_steps(share_observed: Tensor) -> Tensor:
    """Tell which steps teach the transition, (B, T), given the share that is observed."""
    share = _teaching_share(share_observed)
    return torch.rand_like(share) < share


def _teaching_share(share_observed: Tensor) -> Tensor:
    """Probability that a step teaches the transition, (B, T), given what is observed.

    It is the step's share or that of the step before, the lower one. Where hardly a step is
    observed after another one, guesses are all there is.
    """
    closed, least = _closed_steps(share_observed)
    return closed.maximum(least)


def _closed_steps(share_observed: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each step and the one before that is observed, and the least that teaches.

    (B, T) -> (B, T), the lower one of the two, and a scalar.
    """
    closed = share_observed.minimum(_step_before(share_observed))
    # the first step has none before it
    later = closed[:, 1:]
    share = later.sum() / max(later.numel(), 1)
    return closed, (1 - share / FEW_CLOSED_STEPS).clamp(min=0.0)


def _step_before(share_observed: Tensor) -> Tensor:
    """Share of the step before each that is observed, all of it before the first."""
    return nn.functional.pad(share_observed, (1, 0), value=1.0)[:, :-1]
