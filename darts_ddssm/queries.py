"""
What the Lightning module is asked beside forecasts, each question with its answer.

A query travels through Lightning's trainer like a batch of a forecast, so that devices,
precisions and progress bars are Lightning's affair here too.

Letters: B series, S samples, T time steps, n simulated steps, C components, D latent
dimension, U and P inputs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from darts.utils.data.torch_datasets.utils import TorchInferenceBatch
from torch import Tensor

from darts_ddssm.density import given_the_rest, log_prob
from darts_ddssm.ssm.context import History
from darts_ddssm.ssm.patches import Patches
from darts_ddssm.ssm.state_space import Window
from darts_ddssm.window import context_window

if TYPE_CHECKING:
    from darts_ddssm.module import _DDSSMModule

# Latents, one a row, that a query draws at a time, to bound its memory.
ROWS = 2**16


@dataclass
class Query(ABC):
    """A question to a fitted module.

    Parameters
    ----------
    batch
        Whole series as the input chunks of a batch, B of them.
    num_samples
        Number S of samples.
    """

    batch: TorchInferenceBatch
    num_samples: int

    @abstractmethod
    def answer(self, module: "_DDSSMModule") -> Tensor:
        """Answer for each series, along the last axis but those of the answer."""

    def _patches(self, module: "_DDSSMModule") -> Patches:
        """How the series are cut: their last patches are whole."""
        return module.patches(self.batch.past_target.shape[1])

    def _window(self, module: "_DDSSMModule") -> Window:
        """Return the series in their own units."""
        return context_window(self.batch, module.patch_length)

    def _normalised_patches(self, module: "_DDSSMModule") -> Window:
        """Return what the encoder reads of the series."""
        normalised, _ = module.normalise(self._window(module))
        return self._patches(module).window(normalised)

    def _groups(self) -> Iterator[int]:
        """Sizes of groups of samples that bound the memory."""
        batch_size, num_steps, _ = self.batch.past_target.shape
        group = max(ROWS // (batch_size * num_steps), 1)
        return (min(group, self.num_samples - i) for i in range(0, self.num_samples, group))


class SmoothedStates(Query):
    """States given the whole series, one a patch: (S, B, N, D)."""

    def answer(self, module: "_DDSSMModule") -> Tensor:
        window = self._normalised_patches(module)
        steps = module.num_solver_steps
        paths = [module.ssm.smooth(window, size, steps) for size in self._groups()]
        # (S * B, N, D) -> (S, B, N, D)
        return torch.cat(paths).unflatten(0, (self.num_samples, -1))


class LastStates(Query):
    """The state at the last step of each series: (S, B, D)."""

    def answer(self, module: "_DDSSMModule") -> Tensor:
        window = self._normalised_patches(module)
        projection = module.ssm.encode(window)
        steps = module.num_solver_steps
        states = [
            module.ssm.posterior(projection, window, size, steps).previous
            for size in self._groups()
        ]
        # (S * B, D) -> (S, B, D)
        return torch.cat(states).unflatten(0, (self.num_samples, -1))


class LogLikelihood(Query):
    """Importance-weighted estimate of the log-density of each series in nats: (B,)."""

    def answer(self, module: "_DDSSMModule") -> Tensor:
        window = self._window(module)
        normalised, scale = module.normalise(window)
        # the values that the emission is a density of
        x = normalised.x if module.has_location else window.x
        folded = self._patches(module).window(normalised)
        log_weights = [
            self._log_weights(module, folded, x, window.observed, size)
            for size in self._groups()
        ]
        log_mean = torch.cat(log_weights).logsumexp(0) - math.log(self.num_samples)
        if module.has_location:
            log_mean = log_mean - (window.observed * scale.spread.log()).sum((1, 2))
        return log_mean

    def _log_weights(
        self,
        module: "_DDSSMModule",
        folded: Window,
        x: Tensor,
        observed: Tensor,
        num_samples: int,
    ) -> Tensor:
        """Return log p(x, z) - log q(z | x) of paths drawn from q: (S, B)."""
        z, log_q = module.ssm.encoded_paths(folded, num_samples)
        # of the S * B paths, sample by sample
        x, observed = (part.repeat(num_samples, 1, 1) for part in (x, observed))
        folded = Window(*(part.repeat(num_samples, 1, 1) for part in folded))
        log_p = module.ssm.transition.log_prob(z, folded.transition_inputs)
        raw = self._patches(module).unfold(module.ssm.decoder(z, folded.u))
        log_emission = log_prob(module.likelihood, raw, x, observed)
        # after the last observation the states integrate to one
        log_ratio = (log_p - log_q) * folded.informed
        # (S * B, T) and (S * B, N) -> (S * B,) -> (S, B)
        total = log_emission.sum(1) + log_ratio.sum(1)
        return total.unflatten(0, (num_samples, -1))


class SmoothedObservations(Query):
    """Joint samples of what would be observed, given what is: (S, B, T, C)."""

    def answer(self, module: "_DDSSMModule") -> Tensor:
        window = self._window(module)
        normalised, scale = module.normalise(window)
        patches = self._patches(module)
        folded = patches.window(normalised)
        groups = []
        for size in self._groups():
            z = module.ssm.smooth(folded, size, module.num_solver_steps)
            raw = patches.unfold(module.ssm.decoder(z, folded.u.repeat(size, 1, 1)))
            # (S * B, ...) -> (S, B, ...)
            drawn = module.draw(raw.unflatten(0, (size, -1)), scale)
            groups.append(
                given_the_rest(module.likelihood, drawn, window.x, window.observed)
            )
        return torch.cat(groups)


class Simulation(Query):
    """Series from scratch: (S, B, n, C)."""

    def answer(self, module: "_DDSSMModule") -> Tensor:
        window, scale = module.normalise(self._window(module))
        # the first patch is whole
        patches = module.patches(0, window.x.shape[1])
        window = patches.window(window)
        batches = []
        for size in self._groups():
            inputs = window.transition_inputs.repeat(size, 1, 1)
            history = module.ssm.transition.context.start(len(inputs), window.x)
            z = module.ssm.roll_out(history, inputs, module.num_solver_steps)
            raw = patches.unfold(module.ssm.decoder(z, window.u.repeat(size, 1, 1)))
            batches.append(module.draw(raw.unflatten(0, (size, -1)), scale))
        return torch.cat(batches)


@dataclass
class NextStates(Query):
    """The state that follows each history: (S, B, D).

    Parameters
    ----------
    states
        Histories, oldest state first, (B, N, D). The batch has a patch more, for the
        inputs of the state that follows.
    """

    states: Tensor

    def answer(self, module: "_DDSSMModule") -> Tensor:
        window, z = self._patches(module).window(self._window(module)), self.states
        inputs = window.transition_inputs
        context = module.ssm.transition.context
        history = context.start(len(z), z)
        for t in range(z.shape[1]):
            history = context.append(history, z[:, t], inputs[:, t])
        draws = [
            module.ssm.transition.sample(
                History(*(x.repeat(size, 1) for x in history)),
                inputs[:, -1].repeat(size, 1),
                module.num_solver_steps,
            )
            for size in self._groups()
        ]
        # (S * B, D) -> (S, B, D)
        return torch.cat(draws).unflatten(0, (self.num_samples, -1))
