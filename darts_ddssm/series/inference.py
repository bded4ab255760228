"""
What can be asked of a model beside forecasts, each question with its answer.

A question travels through Lightning's trainer as a batch does, so that devices, precisions
and progress bars are Lightning's affair here too.

Letters as in :mod:`darts_ddssm.ssm`; B series of T time steps, cut into M patches.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from darts.logging import get_logger
from darts.utils.data.torch_datasets.utils import TorchInferenceBatch
from torch import Tensor

from darts_ddssm.series.batches import context_window
from darts_ddssm.series.likelihoods import given_the_rest, log_prob
from darts_ddssm.series.model import (
    Encoded,
    NormalisedWindow,
    SeriesModel,
    group_sizes,
)
from darts_ddssm.ssm.particles import GAP_PATHS, States
from darts_ddssm.ssm.patches import Patches
from darts_ddssm.ssm.transition import DiffusionTransition
from darts_ddssm.ssm.window import Window

logger = get_logger(__name__)

# The most steps of all samples that are drawn at a time, to bound the memory.
MAX_ROWS = 2**16

# A particle filter has so many paths at least, if they are asked for. A few of them soon
# follow one way alone.
MIN_FILTER_PATHS = 128


@dataclass
class Question(ABC):
    """A question about whole series.

    Parameters
    ----------
    batch
        Whole series as the input chunks of a batch, B of them.
    num_samples
        Number S of samples.
    num_solver_steps
        Number of network evaluations for each state of a diffusion transition.
    nearest
        Values that tell the scale of components that have none in the first input chunk,
        as for :meth:`SeriesModel.normalise
        <darts_ddssm.series.model.SeriesModel.normalise>`.
    """

    batch: TorchInferenceBatch
    num_samples: int
    num_solver_steps: int
    nearest: Tensor | None = field(default=None, kw_only=True)

    @abstractmethod
    def answer(self, model: SeriesModel) -> Tensor:
        """Return the answer for all series."""

    def _window(self, model: SeriesModel) -> Window:
        return context_window(self.batch, model.patch_length, model.scales)

    def _normalised(self, model: SeriesModel) -> NormalisedWindow:
        return model.normalise(self._window(model), nearest=self.nearest)

    def _encoded(self, model: SeriesModel) -> Encoded:
        return model.encode(self._window(model), nearest=self.nearest)

    def _cut(self, model: SeriesModel) -> Patches:
        """Return how the series are cut: their last patches are whole."""
        return model.patches(self.batch.past_target.shape[1])

    def _group_sizes(self, least: int = 1) -> Iterator[int]:
        """Sizes of groups of samples that bound the memory, but are not too small."""
        num_series, num_steps, _ = self.batch.past_target.shape
        size = max(MAX_ROWS // (num_series * num_steps), least)
        return group_sizes(self.num_samples, size)

    def _sampled_states(self, model: SeriesModel, encoded: Encoded) -> list[States]:
        """Draw paths of the states given the whole series, group by group."""
        # many paths are sent through a gap, however few are asked for
        is_complete = bool((encoded.share_observed == 1).all())
        groups = [
            model.sample_states(encoded, size, self.num_solver_steps)
            for size in self._group_sizes(1 if is_complete else GAP_PATHS[0])
        ]
        _say_misses(groups)
        return groups


class SmoothedStates(Question):
    """States given the whole series, one per patch: (S, B, M, D)."""

    def answer(self, model: SeriesModel) -> Tensor:
        groups = self._sampled_states(model, self._encoded(model))
        paths = torch.cat([states.path for states in groups])
        # (S * B, M, D) -> (S, B, M, D)
        return paths.unflatten(0, (self.num_samples, -1))


class FilteredStates(Question):
    """The state at the last step of each series: (S, B, D)."""

    def answer(self, model: SeriesModel) -> Tensor:
        encoded = self._encoded(model)
        states = [
            model.sample_states(encoded, size, self.num_solver_steps, True).history.previous
            for size in self._group_sizes()
        ]
        # (S * B, D) -> (S, B, D)
        return torch.cat(states).unflatten(0, (self.num_samples, -1))


class LogLikelihood(Question):
    """Importance-weighted estimate of the log-density of each series in nats: (B,)."""

    def answer(self, model: SeriesModel) -> Tensor:
        normalised = self._normalised(model)
        log_weights = [
            self._log_weights(model, normalised, size) for size in self._group_sizes()
        ]
        log_mean = torch.cat(log_weights).logsumexp(0) - math.log(self.num_samples)
        if model.family.location_scale:
            change = normalised.window.observed * normalised.scale.spread.log()
            log_mean = log_mean - change.sum((1, 2))
        return log_mean

    def _log_weights(
        self, model: SeriesModel, normalised: NormalisedWindow, num_samples: int
    ) -> Tensor:
        """Return log p(x, z) - log q(z | x) of paths drawn from q: (S, B)."""
        window, cut = normalised.window, self._cut(model)
        # the values that the emission is a density of
        x = window.x if model.family.location_scale else normalised.data
        patches = cut.fold_window(model.inputs_of(window))
        path = model.ssm.sample_posterior(patches, num_samples)
        # (B, ...) -> (S * B, ...), sample by sample
        x, observed = (part.repeat(num_samples, 1, 1) for part in (x, window.observed))
        patches = patches.map(lambda part: part.repeat(num_samples, 1, 1))
        log_p = model.ssm.transition.log_prob(path.z, patches.transition_inputs)
        # (S * B, T, ...) -> (S, B, T, ...) and back
        raw = model.decode(path.z, patches.u, cut).unflatten(0, (num_samples, -1))
        first = model.first_step(raw.shape[2])
        raw = model.of_emitted(raw, normalised.scale, first).flatten(0, 1)
        log_emission = log_prob(model.likelihood, raw, x, observed)
        # after the last observation the states integrate to one
        log_ratio = (log_p - path.log_prob()) * patches.until_last_observation
        # (S * B, T) and (S * B, M) -> (S * B,) -> (S, B)
        total = log_emission.sum(1) + log_ratio.sum(1)
        return total.unflatten(0, (num_samples, -1))


class PredictiveLogDensities(Question):
    """Log-density in nats of each patch given those before it: (1, B, M).

    By group of samples, the exponential of the sum up to a step is an unbiased estimate of
    the likelihood up to there. Those of all groups are averaged.
    """

    def answer(self, model: SeriesModel) -> Tensor:
        normalised, groups, sizes = self._normalised(model), [], []
        for size in self._group_sizes(MIN_FILTER_PATHS):
            found = model.predictive(normalised, size, self.num_solver_steps)
            groups.append(found.log_density)
            sizes.append(math.log(size / self.num_samples))
        log_shares = torch.tensor(sizes).to(groups[0]).unsqueeze(-1)
        steps = []
        # a sum over all steps would leave no digits for those after an unusual one
        for log_density in torch.stack(groups).unbind(-1):
            # (groups, B) -> (B,)
            highest = log_density.amax(0)
            is_possible = highest > -torch.inf
            # of an impossible step nothing can be learned
            relative = torch.where(is_possible, log_density - highest, 0.0)
            joint = log_shares + relative
            steps.append(highest + joint.logsumexp(0))
            log_shares = joint.log_softmax(0)
        # M of (B,) -> (1, B, M)
        return torch.stack(steps, -1).unsqueeze(0)


class ProbabilityTransforms(Question):
    """P(X <= x) of each value given the patches before its own: (1, B, T, C)."""

    def answer(self, model: SeriesModel) -> Tensor:
        normalised, total = self._normalised(model), torch.zeros(())
        for size in self._group_sizes(MIN_FILTER_PATHS):
            how = size, self.num_solver_steps
            found = model.predictive(normalised, *how, transforms=True)
            total = total.to(found.transform) + size / self.num_samples * found.transform
        # (B, M, L * C) -> (B, T, C)
        steps = self._cut(model).unfold(total.unsqueeze(-1)).squeeze(-1)
        return steps.masked_fill(normalised.window.observed == 0, torch.nan)[None]


class Imputation(Question):
    """Joint samples of what would be observed, given what is: (S, B, T, C)."""

    def answer(self, model: SeriesModel) -> Tensor:
        cut, encoded = self._cut(model), self._encoded(model)
        normalised = encoded.normalised
        observed, num_series = normalised.window.observed, len(normalised.data)
        groups = self._sampled_states(model, encoded)
        paths = torch.cat([states.path for states in groups])
        samples = []
        for size in self._group_sizes():
            path, paths = paths.tensor_split([size * num_series])
            drawn = _draw(model, normalised, path, encoded.patches, cut, size)
            samples.append(
                given_the_rest(model.likelihood, drawn, normalised.data, observed)
            )
        return torch.cat(samples)


def _say_misses(groups: list[States]) -> None:
    """Warn of gaps that the learned dynamics hardly ever lead through."""
    misses = torch.stack([states.misses for states in groups]).any(0)
    if misses.any():
        logger.warning(
            f"`DDSSMModel`: in {int(misses.sum())} of {len(misses)} series hardly a path "
            "of the learned dynamics met the observation after a gap. There the encoder's "
            "paths fill the gap, which may be too sure."
        )


class Simulation(Question):
    """Series from scratch, of T steps each: (S, B, T, C)."""

    def answer(self, model: SeriesModel) -> Tensor:
        normalised = self._normalised(model)
        # the first patch is whole
        cut = model.patches(0, normalised.data.shape[1])
        patches = cut.fold_window(normalised.window)
        samples = []
        for size in self._group_sizes():
            inputs = patches.transition_inputs.repeat(size, 1, 1)
            history = model.ssm.transition.context.init(len(inputs), normalised.data)
            z = model.ssm.roll_out(history, inputs, self.num_solver_steps)
            samples.append(_draw(model, normalised, z, patches, cut, size))
        return torch.cat(samples)


def _draw(
    model: SeriesModel,
    normalised: NormalisedWindow,
    z: Tensor,
    patches: Window,
    cut: Patches,
    num_samples: int,
) -> Tensor:
    """Draw observations along paths of states (S * B, M, D): (S, B, T, C)."""
    raw = model.decode(z, patches.u.repeat(num_samples, 1, 1), cut)
    # (S * B, T, C, K) -> (S, B, T, C, K)
    first = model.first_step(normalised.data.shape[1])
    return model.draw(raw.unflatten(0, (num_samples, -1)), normalised.scale, first)


@dataclass
class Distillation(Question):
    """Weights of a distilled sampler, and how far its draws are off, last: (P + 1,).

    The batch has windows of the length of a training window. Along each are paths of the
    posterior to its end, and as many that follow a forecast from its origin.

    Parameters
    ----------
    num_evaluations
        Number of network evaluations of the sampler.
    num_updates
        Number of updates of its training.
    num_draws
        Number of steps of all paths from which draws are learned, at most.
    """

    num_evaluations: int
    num_updates: int
    num_draws: int

    def answer(self, model: SeriesModel) -> Tensor:
        transition = cast(DiffusionTransition, model.ssm.transition)
        sampler, distance = transition.distilled(
            self._contexts(model), self.num_evaluations, self.num_updates
        )
        weights = torch.nn.utils.parameters_to_vector(sampler.parameters())
        return torch.cat([weights.detach(), distance.view(1)])

    def _contexts(self, model: SeriesModel) -> Tensor:
        """Contexts of steps of the paths, in random order: (N, H)."""
        ssm, context = model.ssm, model.ssm.transition.context
        seen = model.inputs_of(self._normalised(model).window)
        patches = model.training_patches.fold_window(seen)
        num_windows, num_patches, _ = patches.x.shape
        size = math.ceil(self.num_draws / (2 * num_windows * num_patches))
        inputs = patches.transition_inputs.repeat(size, 1, 1)
        before, after = inputs.tensor_split([ssm.num_context], dim=1)
        past = ssm.sample_posterior(patches.map(lambda x: x[:, : ssm.num_context]), size).z
        following = ssm.roll_out(
            context.from_path(past, before),
            after,
            self.num_solver_steps,
            num_before=ssm.num_context,
        )
        forecasts = torch.cat([past, following], dim=1)
        smoothed = ssm.sample_posterior(patches, size).z
        # twice (S * B, M, H) -> (2 * S * B * M, H) -> (N, H)
        contexts = torch.cat([context(z, inputs) for z in (smoothed, forecasts)])
        contexts = contexts.flatten(0, 1)
        order = torch.randperm(len(contexts), device=contexts.device)
        return contexts[order[: self.num_draws]]


@dataclass
class TransitionDraws(Question):
    """The state that follows each history: (S, B, D).

    Parameters
    ----------
    states
        Histories, oldest state first, (B, M, D). The batch ends with their patches and
        one more, for the inputs of the state that follows.
    """

    states: Tensor

    def answer(self, model: SeriesModel) -> Tensor:
        window = self._window(model)
        inputs = self._cut(model).fold_window(window).transition_inputs
        inputs = inputs[:, -(self.states.shape[1] + 1) :]
        transition = model.ssm.transition
        history = transition.context.from_path(self.states, inputs[:, :-1])
        draws = []
        for size in self._group_sizes():
            # (B, ...) -> (S * B, ...)
            repeated = history.repeat(size)
            u = inputs[:, -1].repeat(size, 1)
            draws.append(transition.sample(repeated, u, self.num_solver_steps))
        # (S * B, D) -> (S, B, D)
        return torch.cat(draws).unflatten(0, (self.num_samples, -1))
