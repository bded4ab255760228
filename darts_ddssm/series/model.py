r"""
The distribution of a series in its own units.

.. math::
    x_{1:T} \;\to\; \text{normalised} \;\to\; \text{patches} \;\to\; z \;\to\;
    \text{parameters of the density at each step} \;\to\; \text{draws in data units}

Each of these arrows is one method of :class:`SeriesModel`.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from darts.models.components.layer_norm_variants import RINorm
from darts.utils.likelihood_models.torch import TorchLikelihood
from torch import Tensor

from darts_ddssm.series.likelihoods import (
    Family,
    cumulative,
    draw,
    family_of,
    has_prior,
    in_units,
    log_prob,
    marginal_parameters,
    negative_log_likelihood,
)
from darts_ddssm.series.scaling import (
    InstanceFloor,
    LocalPattern,
    Scale,
    TrainingScales,
    instance_scale,
    local_scale,
    moved_scale,
)
from darts_ddssm.ssm.context import History
from darts_ddssm.ssm.encoder import PosteriorPath
from darts_ddssm.ssm.particles import OfEmission, Predictive, States
from darts_ddssm.ssm.patches import Patches
from darts_ddssm.ssm.state_space import StateSpaceModel, weights_of_kl
from darts_ddssm.ssm.window import Window

# Samples of each series that are drawn at a time where the past has gaps.
FILTERED_SAMPLES = 512

# How far from zero an input may be, as a share of the farthest one in training.
MAX_SHARE_OF_LARGEST = 10.0


class NormalisedWindow(NamedTuple):
    """A window near zero with a spread near one.

    Attributes
    ----------
    window
        The window, its observations normalised, (B, T, C).
    scale
        The map from the data to these values.
    data
        The observations in their own units, (B, T, C).
    """

    window: Window
    scale: Scale
    data: Tensor


class Posterior(NamedTuple):
    """A draw of the latent states behind a window.

    Attributes
    ----------
    patches
        The window as the state-space model sees it, in M patches.
    path
        A path of the states of each series, (B, M, D).
    """

    patches: Window
    path: PosteriorPath


class Encoded(NamedTuple):
    """A stretch of data, encoded once for any number of paths.

    Attributes
    ----------
    normalised
        The data, normalised.
    patches
        The data as the state-space model sees them, in M patches.
    projection
        Output of the encoder, (M, B, 2 * H).
    share_observed
        Share of the steps of each patch at which something is observed, (B, M), on the CPU.
    """

    normalised: NormalisedWindow
    patches: Window
    projection: Tensor
    share_observed: Tensor

    @property
    def scale(self) -> Scale:
        """The map from data to normalised values."""
        return self.normalised.scale


@dataclass(frozen=True)
class SeriesModel:
    """Scale, patches, state-space model and likelihood of a series.

    Parameters
    ----------
    ssm
        The state-space model of normalised values.
    likelihood
        The density of an observation, one of darts' torch likelihoods.
    scales
        The scales of the training set.
    instance_norm
        darts' module if each window is normalised by its input chunk, or None.
    instance_floor
        The least spread of an input chunk.
    local_pattern
        Which last values of an input chunk tell its level and its trend.
    patch_length
        Number L of time steps that a latent state stands for.
    input_chunk_length, output_chunk_shift, output_chunk_length
        Steps I, G and n of a training window.
    largest_input
        The greatest distance of normalised values from zero in training, (C,), infinite
        where none is known.
    is_unit_free
        Whether the decoder knows nothing of the unit of values that are not negative. In
        models of earlier versions it gives their parameters as they are.
    """

    ssm: StateSpaceModel
    likelihood: TorchLikelihood
    scales: TrainingScales
    instance_norm: RINorm | None
    instance_floor: InstanceFloor
    local_pattern: LocalPattern
    patch_length: int
    input_chunk_length: int
    output_chunk_shift: int
    output_chunk_length: int
    largest_input: Tensor
    is_unit_free: bool = True

    @property
    def family(self) -> Family:
        """What the family of the likelihood can do."""
        return family_of(self.likelihood)

    # --- from data to patches and back ------------------------------------------------

    def normalise(
        self,
        window: Window,
        origin: Scale | None = None,
        nearest: Tensor | None = None,
    ) -> NormalisedWindow:
        """Bring a window to the scale of the training set, or to that of its past.

        Parameters
        ----------
        window
            The window.
        origin
            The scale of what its past is a path from, its shift counted from the end of
            the past on. ``None`` where the past was observed.
        nearest
            The values nearest to the past of components that have none in it, NaN of
            others, (B, I, C): mean, season and spread of these are their scale. ``None``
            where none are known, which leaves the scale of the training set.
        """
        scale = self.scales.target
        if self.instance_norm is not None:
            steps = slice(0, self.input_chunk_length)
            own = self.instance_norm, window.x[:, steps], window.observed[:, steps]
            rules = self.instance_floor, self.local_pattern
            if nearest is not None:
                known = (~nearest.isnan()).to(nearest.dtype)
                # a trend does not go on for long
                of_all = self.local_pattern._replace(
                    level_steps=nearest.shape[1], trend_values=0, trend_share=0.0
                )
                how = scale, self.instance_floor, of_all
                scale = local_scale(nearest.nan_to_num(), known, *how)
            if origin is None:
                scale = instance_scale(*own, scale, *rules)
            else:
                scale = moved_scale(*own, origin, *rules)
        x = scale.normalise(window.x, self.first_step(window.x.shape[1]))
        return NormalisedWindow(window._replace(x=x), scale, window.x)

    @torch.no_grad()
    def track_inputs(self, window: Window) -> None:
        """Note how far the values of normalised training windows are from zero."""
        largest = (window.x.abs() * window.observed).amax((0, 1))
        known = self.largest_input.masked_fill(self.largest_input.isinf(), 0.0)
        self.largest_input.copy_(known.maximum(largest))

    def inputs_of(self, window: Window) -> Window:
        """Return what the encoder sees of a normalised window.

        Of values very far beyond those of training it knows nothing: one of a component
        that was constant would outweigh all others.
        """
        bound = MAX_SHARE_OF_LARGEST * self.largest_input
        return window._replace(x=window.x.clamp(-bound, bound))

    def first_step(self, num_steps: int) -> int:
        """Return the first step of so many that begin with an input chunk.

        It is counted from the first one after the chunk.
        """
        return -min(self.input_chunk_length, num_steps)

    def patches(self, num_before: int, num_after: int = 0) -> Patches:
        """Return how a window of so many steps before and after an origin is cut."""
        return Patches(self.patch_length, num_before, num_after)

    @property
    def training_patches(self) -> Patches:
        """How a training window is cut."""
        num_after = self.output_chunk_shift + self.output_chunk_length
        return self.patches(self.input_chunk_length, num_after)

    def decode(self, z: Tensor, u: Tensor, patches: Patches) -> Tensor:
        """Return the raw parameters of each time step.

        Parameters
        ----------
        z, u
            States and inputs of M patches, (N, M, D) and (N, M, U).
        patches
            How the window was cut.

        Returns
        -------
        Tensor
            Raw parameters of the density of normalised values, (N, T, C, K).
        """
        return patches.unfold(self.ssm.decoder(z, u))

    def draw(self, raw: Tensor, scale: Scale, first: int) -> Tensor:
        """Draw an observation from each density: (S, B, T, C, K) -> (S, B, T, C).

        The first step is counted from the first one after the input chunk.
        """
        raw = self.of_emitted(raw, scale, first)
        # (S, B, T, ...) -> (S * B, T, ...) and back
        sample = draw(self.likelihood, raw.flatten(0, 1)).unflatten(0, raw.shape[:2])
        return scale.to_data(sample, first) if self.family.location_scale else sample

    def of_emitted(self, raw: Tensor, scale: Scale, first: int) -> Tensor:
        """Return raw parameters of what the emission is a density of.

        That is of normalised values where the family has a location and a scale, and else
        of the data. Arguments as for :meth:`in_units`.
        """
        return raw if self.family.location_scale else self.in_units(raw, scale, first)

    def in_units(self, raw: Tensor, scale: Scale, first: int) -> Tensor:
        """Turn raw parameters of normalised values into those of the data.

        Parameters
        ----------
        raw
            Raw parameters, (..., B, T, C, K).
        scale
            The map from the data to normalised values.
        first
            The first step, counted from the first one after the input chunk.
        """
        return self._in_units(raw, scale.shift_along(raw.shape[-3], first), scale.spread)

    def _in_units(self, raw: Tensor, location: Tensor, spread: Tensor) -> Tensor:
        if not (self.is_unit_free or self.family.location_scale):
            return raw
        return in_units(self.likelihood, raw, location, spread)

    # --- the ELBO ---------------------------------------------------------------------

    def posterior(
        self, normalised: NormalisedWindow, input_noise: float = 0.0
    ) -> Posterior:
        """Draw a path of the states of each series of a training batch.

        Parameters
        ----------
        normalised
            The windows.
        input_noise
            Standard deviation of the noise that is added to what the encoder sees.
        """
        fold = self.training_patches.fold_window
        window = normalised.window
        path = self.ssm.sample_posterior(fold(window.with_noise(input_noise)))
        return Posterior(fold(window), path)

    def negative_elbo(
        self,
        normalised: NormalisedWindow,
        posterior: Posterior,
        kl_weight: float = 1.0,
        num_encoder_rows: int = 0,
        max_rows: int | None = None,
        num_draws: int = 1,
        observed: Tensor | None = None,
    ) -> Tensor:
        """Negative ELBO of training windows in nats per value, a scalar.

        Where it teaches all networks from series with gaps, its KL has the weights of
        :func:`~darts_ddssm.ssm.state_space.weights_of_kl`.

        Parameters
        ----------
        normalised
            The windows.
        posterior
            A draw of the states behind them.
        kl_weight
            Weight of the KL; at 1 it is the ELBO.
        num_encoder_rows, max_rows, num_draws
            As for :meth:`StateSpaceModel.elbo_terms
            <darts_ddssm.ssm.state_space.StateSpaceModel.elbo_terms>`.
        observed
            The flags of the windows, (B, T, C), on the CPU, where a look at them waits for
            no device. ``None`` if they are not there.
        """
        share_observed = None
        if torch.is_grad_enabled():
            flags = normalised.window.observed.cpu() if observed is None else observed
            if not flags[num_encoder_rows:].all():
                share_observed = self.training_patches.share(flags)
        raw, kl = self.ssm.elbo_terms(
            *posterior,
            num_encoder_rows,
            max_rows=max_rows,
            num_draws=num_draws,
            share_observed=share_observed,
        )
        if share_observed is not None:
            is_guess = (share_observed == 0).to(kl.device, non_blocking=True)
            # masked values are missing, too
            share_observed = self.training_patches.share(normalised.window.observed)
            kl = kl * weights_of_kl(share_observed, is_guess)
        raw = self.training_patches.unfold(raw)
        window, scale, x = normalised
        weight = window.weight * window.observed
        change = x.new_zeros(())
        if self.family.location_scale and not has_prior(self.likelihood):
            # The density of the normalised values, and the change of variables.
            x, change = window.x, (weight * scale.spread.log()).mean()
        else:
            # The density of the data. A prior is one of its parameters.
            raw = self.in_units(raw, scale, self.first_step(x.shape[1]))
        nll = negative_log_likelihood(self.likelihood, raw, x, weight) + change
        # One weight for each window, (B, 1), that of its greatest value: a step or a
        # component of little weight must not make states cheap that all of them share.
        kl = kl * window.weight.amax((1, 2)).unsqueeze(-1)
        return nll + kl_weight * kl.sum() / x.numel()

    def posterior_matching(
        self, normalised: NormalisedWindow, hidden: Window, input_noise: float = 0.0
    ) -> Tensor:
        """How far the posterior is, where data are hidden, from that where they are shown.

        In nats, added over all steps, (B,), see :meth:`StateSpaceModel.posterior_matching
        <darts_ddssm.ssm.state_space.StateSpaceModel.posterior_matching>`.

        Parameters
        ----------
        normalised
            Training windows.
        hidden
            The same with some values hidden.
        input_noise
            As for :meth:`posterior`.
        """
        fold, shown = self.training_patches.fold_window, normalised.window
        shown = shown.with_noise(input_noise)
        hidden = hidden._replace(x=shown.x)
        return self.ssm.posterior_matching(fold(hidden), fold(shown)).sum(1)

    # --- forecasts --------------------------------------------------------------------

    def encode(
        self,
        window: Window,
        observed: Tensor | None = None,
        origin: Scale | None = None,
        nearest: Tensor | None = None,
    ) -> Encoded:
        """Encode data up to the step before a forecast.

        Parameters
        ----------
        window
            The data, B series of T steps.
        observed
            Its flags, (B, T, C), on the CPU, where a look at them waits for no device.
            ``None`` if they are not there.
        origin, nearest
            As for :meth:`normalise`.
        """
        normalised = self.normalise(window, origin, nearest)
        cut = self.patches(window.x.shape[1])
        patches = cut.fold_window(self.inputs_of(normalised.window))
        seen = (window.observed.cpu() if observed is None else observed).any(-1, True)
        share = cut.share(seen.to(window.x.dtype))
        return Encoded(normalised, patches, self.ssm.encode(patches), share)

    def sample_states(
        self,
        encoded: Encoded,
        num_samples: int,
        num_solver_steps: int,
        filtering: bool = False,
    ) -> States:
        """Draw paths of the states given data, and the histories that they end in.

        Parameters
        ----------
        encoded
            The encoded data of B series.
        num_samples
            Number S of paths of each series.
        num_solver_steps
            Number of network evaluations for each state of a diffusion transition.
        filtering
            Whether the last state is all that is asked for.

        Returns
        -------
        States
            Paths of M states, of S * B rows, sample by sample.
        """
        normalised, patches, projection, share_observed = encoded
        log_emission = self._of_emission(normalised, patches, log_prob)
        how = num_samples, num_solver_steps, filtering, share_observed
        return self.ssm.sample_states(projection, patches, log_emission, *how)

    def _of_emission(
        self,
        normalised: NormalisedWindow,
        patches: Window,
        function: Callable[[TorchLikelihood, Tensor, Tensor, Tensor], Tensor],
    ) -> OfEmission:
        """Return a function of the density of what is observed in a patch.

        Parameters
        ----------
        normalised, patches
            The data, and the same in patches.
        function
            Function of likelihood, raw parameters, values and flags of the L steps of a
            patch. Its values (N, L) are added, and values (N, L, C) are joined.
        """
        is_normalised = self.family.location_scale
        # what the emission is a density of
        x = normalised.window.x if is_normalised else normalised.data
        scale, cut = normalised.scale, self.patches(x.shape[1])
        location = scale.shift_along(x.shape[1], self.first_step(x.shape[1]))
        # outside the window, where nothing is observed, the spread must not be zero
        location, log_spread = (
            cut.fold(part.expand_as(x)) for part in (location, scale.spread.log())
        )
        # (B, M, L * C) -> (B, M, L, C)
        parts = [
            part.unflatten(-1, (self.patch_length, -1))
            for part in (cut.fold(x), patches.observed, location, log_spread.exp())
        ]

        def of_states(z: Tensor, series: Tensor, t: int) -> Tensor:
            # (N, L * C, K) -> (N, L, C, K)
            raw = self.ssm.decoder(z, patches.u[series, t])
            raw = raw.unflatten(1, (self.patch_length, -1))
            values, seen, *units = (part[series, t] for part in parts)
            if not is_normalised:
                raw = self._in_units(raw, *units)
            found = function(self.likelihood, raw, values, seen)
            # (N, L) -> (N,), or (N, L, C) -> (N, L * C)
            return found.sum(1) if found.dim() < values.dim() else found.flatten(1)

        return of_states

    def predictive(
        self,
        normalised: NormalisedWindow,
        num_samples: int,
        num_solver_steps: int,
        transforms: bool = False,
    ) -> Predictive:
        """Predict each patch from those before it.

        Parameters
        ----------
        normalised
            The data, B series.
        num_samples, num_solver_steps
            As for :meth:`sample_states`.
        transforms
            Whether the probability integral transforms are asked for.

        Returns
        -------
        Predictive
            Log-densities of the data in their units, in nats, (B, M), and transforms of
            the values of each patch, (B, M, L * C).
        """
        cut = self.patches(normalised.window.x.shape[1])
        patches = cut.fold_window(self.inputs_of(normalised.window))
        log_emission = self._of_emission(normalised, patches, log_prob)
        of_transforms = None
        if transforms:
            of_transforms = self._of_emission(normalised, patches, cumulative)
        how = num_samples, num_solver_steps
        found = self.ssm.predictive(patches, log_emission, of_transforms, *how)
        if self.family.location_scale:
            change = cut.fold(normalised.window.observed * normalised.scale.spread.log())
            found = found._replace(log_density=found.log_density - change.sum(-1))
        return found

    def _histories(
        self,
        encoded: Encoded,
        num_samples: int,
        num_solver_steps: int,
        max_paths: int,
    ) -> Iterator[History]:
        """Draw what forecasts start from, group by group of the samples.

        Parameters
        ----------
        encoded
            The encoded context of B series.
        num_samples, num_solver_steps, max_paths
            As for :meth:`forecast`.

        Yields
        ------
        History
            Histories of a group of the samples, (S' * B, ...), sample by sample.
        """
        num_series = len(encoded.patches.x)
        size = max_paths // num_series
        complete = bool((encoded.share_observed == 1).all())
        # many paths are sent through a gap, however few are asked for
        num_drawn = size if complete else max(size, FILTERED_SAMPLES)
        # to a distilled sampler the past is most of the work
        branching = complete and self.ssm.transition.is_distilled
        for number in group_sizes(num_samples, num_drawn):
            if branching:
                yield self.ssm.branching_histories(
                    encoded.projection, encoded.patches, number
                )
            else:
                how = number, num_solver_steps, True
                history = self.sample_states(encoded, *how).history
                yield from history.split(max(size, 1) * num_series)

    def _decode_ahead(
        self,
        history: History,
        horizon: Window,
        n: int,
        num_solver_steps: int,
        num_before: int,
        mean: bool = False,
    ) -> Tensor:
        """Follow paths over gap and horizon, and decode them after the gap.

        Parameters
        ----------
        history
            What the paths start from, (S * B, ...), sample by sample.
        horizon
            The gap and the horizon of B series, of which the inputs are known, at least
            G + n steps.
        n
            Number of steps of the forecast.
        num_solver_steps
            Number of network evaluations for each state of a diffusion transition.
        num_before
            Number of latents in the histories.
        mean
            Follow the mean of each step instead of drawing from it.

        Returns
        -------
        Tensor
            Raw parameters of the density of normalised values, (S, B, n, C, K).
        """
        num_series, num_steps, _ = horizon.x.shape
        num_samples = len(history.previous) // num_series
        patches = self.patches(0, num_steps)
        folded = patches.fold_window(horizon)
        # (B, M, ...) -> (S * B, M, ...)
        inputs, u = (
            x.repeat(num_samples, 1, 1) for x in (folded.transition_inputs, folded.u)
        )
        z = self.ssm.roll_out(history, inputs, num_solver_steps, mean, num_before)
        raw = self.decode(z, u, patches).narrow(1, self.output_chunk_shift, n)
        # (S * B, n, ...) -> (S, B, n, ...)
        return raw.unflatten(0, (num_samples, num_series))

    def _forecast_parameters(
        self,
        encoded: Encoded,
        horizon: Window,
        n: int,
        num_samples: int,
        num_solver_steps: int,
        max_paths: int,
    ) -> Iterator[Tensor]:
        """Draw latent paths and decode them, group by group: (S', B, n, C, K) each.

        Raw parameters of the density of normalised values. Arguments as for
        :meth:`forecast`.
        """
        num_before = encoded.patches.x.shape[1]
        for history in self._histories(encoded, num_samples, num_solver_steps, max_paths):
            yield self._decode_ahead(history, horizon, n, num_solver_steps, num_before)

    def forecast(
        self,
        context: Window,
        horizon: Window,
        n: int,
        num_samples: int,
        num_solver_steps: int,
        max_paths: int,
        observed: Tensor | None = None,
        origin: Scale | None = None,
    ) -> Tensor:
        """Draw joint sample paths of the horizon.

        Parameters
        ----------
        context
            The steps before the forecast, B series.
        horizon, n, num_samples, num_solver_steps
            Number n of steps, number S of samples of each series, and of network
            evaluations for each state of a diffusion transition. The horizon begins with
            the G steps before the first one.
        max_paths
            The most paths of all series that are drawn at a time, to bound the memory.
        observed
            The flags of the context, as for :meth:`encode`.
        origin
            As for :meth:`normalise`.

        Returns
        -------
        Tensor
            Observations, (S, B, n, C).
        """
        encoded = self.encode(context, observed, origin)
        how = n, num_samples, num_solver_steps, max_paths
        groups = self._forecast_parameters(encoded, horizon, *how)
        first = self.output_chunk_shift
        return torch.cat([self.draw(raw, encoded.scale, first) for raw in groups])

    def marginal_parameters(
        self,
        context: Window,
        horizon: Window,
        n: int,
        num_samples: int,
        num_solver_steps: int,
        max_paths: int,
        observed: Tensor | None = None,
    ) -> Tensor:
        """Parameters of the predictive marginal of each value, by latent paths.

        Only for a likelihood whose family has a marginal.

        Parameters
        ----------
        context, horizon, n, num_samples, num_solver_steps, max_paths, observed
            As for :meth:`forecast`.

        Returns
        -------
        Tensor
            Parameters in data units, (B, n, C, K).
        """
        encoded = self.encode(context, observed)
        how = n, num_samples, num_solver_steps, max_paths
        raw = torch.cat(list(self._forecast_parameters(encoded, horizon, *how)))
        raw = self.of_emitted(raw, encoded.scale, self.output_chunk_shift)
        parameters = marginal_parameters(self.likelihood, raw)
        if self.family.location_scale:
            mean, std = parameters
            mean = encoded.scale.to_data(mean, self.output_chunk_shift)
            parameters = mean, std * encoded.scale.spread
        return torch.stack(parameters, dim=-1)

    def mean_path_parameters(
        self, context: Window, horizon: Window, n: int, num_solver_steps: int
    ) -> Tensor:
        """Raw parameters in data units along a mean path, (B, n, C, K).

        Parameters
        ----------
        context, horizon, n, num_solver_steps
            As for :meth:`forecast`.
        """
        encoded = self.encode(context)
        patches = encoded.patches
        history = self.ssm.mean_history(encoded.projection, patches, num_solver_steps)
        how = n, num_solver_steps, patches.x.shape[1], True
        raw = self._decode_ahead(history, horizon, *how)[0]
        return self.in_units(raw, encoded.scale, self.output_chunk_shift)


def group_sizes(total: int, size: int) -> Iterator[int]:
    """Yield the sizes of groups of at most ``size``, and of at least 1, in ``total``."""
    size = max(size, 1)
    return (min(size, total - i) for i in range(0, total, size))
