r"""
Distillation of a diffusion model into a sampler of few network evaluations.

Given a context, the probability flow is a function: it leads noise to a draw. A
:class:`FewStepSampler` learns this function from the flow's own paths [1]_. It passes
through some of the noise levels of the flow, and from each to the next it jumps by one
evaluation of a network. Between modes the flow is steep, so that one jump from noise to
draw blurs the edges of the modes. With a level between, each jump has a part of the
steepness only [2]_.

The distance between the end of a path of the sampler and that of the flow, averaged over
the noise, is no less than the Wasserstein distance between the densities of their draws.
It tells how good a sampler is.

Letters as in :mod:`darts_ddssm.ssm`; k counts the evaluations.

References
----------
.. [1] Luhman and Luhman, "Knowledge Distillation in Iterative Generative Models for
       Improved Sampling Speed", arXiv 2101.02388.
.. [2] Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models",
       ICLR 2022.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from darts_ddssm.ssm.diffusion import (
    DenoiserNetwork,
    preconditioned_denoiser,
    sampling_levels,
    solve_probability_flow,
)
from darts_ddssm.ssm.networks import averaging_rate

# Levels of the flow that is distilled, and places among them of the levels of a sampler,
# by its number of evaluations.
NUM_LEVELS = 32
PLACES = {1: (0,), 2: (0, 17), 3: (0, 14, 20), 4: (0, 11, 17, 23)}

# Rows of an update, and draws that are held out.
BATCH_SIZE, NUM_HELD_OUT = 1024, 4096

PEAK_LEARNING_RATE, WARM_UP, WEIGHT_AVERAGE_DECAY = 2e-3, 0.05, 0.995

# Rows whose flow is followed at a time, small enough for the cache.
FLOW_ROWS = 4096

# The denoiser at the i-th of some levels, (N, D) to (N, D), and what makes it of contexts,
# (N, H), and these levels. All are in units of the scale.
Denoiser = Callable[[Tensor, int], Tensor]
DenoiserOf = Callable[[Tensor, list[float]], Denoiser]


class FewStepSampler(nn.Module):
    """A function from noise to a draw, of one to four network evaluations.

    Parameters
    ----------
    latent_dim
        Dimension D of the variable.
    context_size
        Size of the context.
    hidden_size
        Width H.
    num_evaluations
        Number k of network evaluations, each of a network of its own.
    """

    def __init__(
        self, latent_dim: int, context_size: int, hidden_size: int, num_evaluations: int
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        levels = sampling_levels(NUM_LEVELS)
        self.levels = [levels[i] for i in PLACES[num_evaluations]]
        self.networks = nn.ModuleList(
            DenoiserNetwork(latent_dim, context_size, hidden_size) for _ in self.levels
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    def noise(self, context: Tensor) -> Tensor:
        """Draw standard noise for each context: (N, H) -> (N, D)."""
        return torch.randn_like(context.new_empty(len(context), self.latent_dim))

    def forward(self, context: Tensor) -> Tensor:
        """Draw for each context, in units of the scale: (N, H) -> (N, D)."""
        return self.path(self.levels[0] * self.noise(context), context)[-1]

    def path(self, noise: Tensor, context: Tensor) -> list[Tensor]:
        """Lead noise of the first level to the levels below and to zero, (N, D) each."""
        path, z = [], noise
        lower_levels = [*self.levels[1:], 0.0]
        for module, level, lower in zip(
            self.networks, self.levels, lower_levels, strict=True
        ):
            network = cast(DenoiserNetwork, module)
            shift = network.project_context(context)
            shift = shift + network.condition(shift.new_full((1,), math.log(level)))
            denoised = preconditioned_denoiser(partial(network, shift=shift), z, level)
            # as far as the flow would go on a straight line
            z = torch.lerp(denoised, z, lower / level)
            path.append(z)
        return path


@torch.no_grad()
def flow_paths(
    denoiser_of: DenoiserOf, contexts: Tensor, sampler: FewStepSampler
) -> Tensor:
    """Follow the flow from noise, one path for each context.

    Parameters
    ----------
    denoiser_of
        The denoiser that is distilled.
    contexts
        Contexts, (N, H).
    sampler
        The sampler that is to follow the paths.

    Returns
    -------
    Tensor
        Noise, states at the lower levels of the sampler, and draws, in the type of the
        sampler: (N, k + 1, D).
    """
    levels, paths = sampling_levels(NUM_LEVELS), []
    for context in contexts.split(FLOW_ROWS):
        noise = levels[0] * sampler.noise(context)
        # the solver asks for the denoiser at every state that it passes
        states: list[Tensor] = []
        denoise = _recorded(denoiser_of(context, levels), states)
        draw = solve_probability_flow(denoise, noise, levels)
        kept = [states[i] for i in PLACES[len(sampler.levels)]]
        paths.append(torch.stack([*kept, draw], dim=1))
    return torch.cat(paths).to(sampler.dtype)


def _recorded(denoise: Denoiser, states: list[Tensor]) -> Denoiser:
    """Return a denoiser that also adds its inputs to a list."""

    def recorded(z: Tensor, i: int) -> Tensor:
        states.append(z)
        return denoise(z, i)

    return recorded


@torch.enable_grad()
def follow(
    sampler: FewStepSampler, contexts: Tensor, paths: Tensor, num_updates: int
) -> None:
    """Train a sampler, in place, to follow paths of the flow.

    The loss is the absolute error. Where noise is near the edge between two modes, its
    minimum lies in one of them, that of the square between them.

    Parameters
    ----------
    sampler
        The sampler. It ends with an average of its weights.
    contexts, paths
        Contexts (N, H) and paths of the flow, (N, k + 1, D).
    num_updates
        Number of updates of Adam, whose rate rises and then falls along a cosine.
    """
    current = deepcopy(sampler)
    averages: list[Tensor] = list(sampler.parameters())
    currents: list[Tensor] = list(current.parameters())
    optimizer = torch.optim.Adam(currents, lr=PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: _learning_rate_share(i / num_updates)
    )
    for i in range(num_updates):
        rows = torch.randint(len(paths), (BATCH_SIZE,), device=paths.device)
        path = paths[rows]
        states = torch.stack(current.path(path[:, 0], contexts[rows]), dim=1)
        loss = nn.functional.l1_loss(states, path[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(currents, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            rate = averaging_rate(i, WEIGHT_AVERAGE_DECAY)
            torch._foreach_lerp_(averages, currents, rate)


def _learning_rate_share(progress: float) -> float:
    """Share of the peak of the learning rate at a share of the training."""
    return min(progress / WARM_UP, 1.0) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def relative_distance(
    sampler: FewStepSampler, denoiser_of: DenoiserOf, contexts: Tensor
) -> Tensor:
    """Mean distance of sampler and flow from the same noise, a scalar.

    In units of the mean distance between two draws of the flow from the same context.

    Parameters
    ----------
    sampler, denoiser_of, contexts
        As for :func:`flow_paths`, with contexts that the sampler was not trained on.
    """
    first, second = (flow_paths(denoiser_of, contexts, sampler) for _ in range(2))
    drawn, draws = sampler.path(first[:, 0], contexts.to(first))[-1], first[:, -1]
    distance, spread = ((draws - x).norm(dim=-1).mean() for x in (drawn, second[:, -1]))
    return distance / spread


def distil(
    sampler: FewStepSampler, denoiser_of: DenoiserOf, contexts: Tensor, num_updates: int
) -> Tensor:
    """Train a sampler, in place, to draw as the flow of a denoiser does.

    Parameters
    ----------
    sampler
        The sampler.
    denoiser_of
        The denoiser, in units of the scale.
    contexts
        Contexts (N, H) in random order. Of some the draws are held out.
    num_updates
        Number of updates.

    Returns
    -------
    Tensor
        The :func:`relative_distance` of held-out draws, a scalar.
    """
    num_held_out = min(NUM_HELD_OUT, len(contexts) // 4)
    held_out, contexts = contexts.tensor_split([num_held_out])
    paths = flow_paths(denoiser_of, contexts, sampler)
    follow(sampler, contexts.to(paths), paths, num_updates)
    return relative_distance(sampler, denoiser_of, held_out)
