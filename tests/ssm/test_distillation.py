"""Distillation against a mixture whose denoiser, and thus the flow, is known."""

import math

import pytest
import torch
from torch import Tensor

from darts_ddssm.ssm.distillation import (
    FewStepSampler,
    distil,
    flow_paths,
    relative_distance,
)

# Two modes of equal width, in units near the scale of the whole.
PLACE, WIDTH = 1.0, 0.1
NUM_DRAWS = 20_000


def mixture_denoiser(context: Tensor, levels: list[float]):
    """Denoiser of the mixture whose upper mode has the log-odds ``context``, (N, 1)."""

    def denoise(z: Tensor, i: int) -> Tensor:
        total = WIDTH**2 + levels[i] ** 2
        # log-odds given the noised value
        share = (context + 2 * PLACE * z / total).sigmoid()
        means = PLACE * torch.tensor([1.0, -1.0])
        upper, lower = ((WIDTH**2 * z + levels[i] ** 2 * m) / total for m in means)
        return share * upper + (1 - share) * lower

    return denoise


def contexts(num: int = 2**14) -> Tensor:
    """Weights of the upper mode from 0.1 to 0.9, as log-odds (N, 1)."""
    return (0.1 + 0.8 * torch.rand(num, 1)).logit()


@pytest.fixture(scope="module", params=[1, 2])
def distilled(request):
    """A sampler of the mixture, and how far it says to be off."""
    torch.manual_seed(0)
    sampler = FewStepSampler(1, 1, hidden_size=32, num_evaluations=request.param)
    return sampler, distil(sampler, mixture_denoiser, contexts(), num_updates=400)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.75])
def test_weights_and_spreads_are_those_of_the_mixture(distilled, weight):
    sampler, _ = distilled
    torch.manual_seed(1)
    with torch.no_grad():
        z = sampler(torch.tensor([[weight]]).logit().expand(NUM_DRAWS, 1))
    upper = z > 0
    # standard errors: 0.0035 of a weight, 0.0011 of a spread of 0.1, 0.0016 of a mean
    assert upper.double().mean().item() == pytest.approx(weight, abs=0.02)
    for mode, place in ((z[upper], PLACE), (z[~upper], -PLACE)):
        assert mode.median().item() == pytest.approx(place, abs=0.02)
        # half the distance of these quantiles, which the few draws between do not move
        low, high = mode.quantile(torch.tensor([0.1587, 0.8413]))
        assert ((high - low) / 2).item() == pytest.approx(WIDTH, rel=0.15)
    # of the mixture itself 1e-23 lie there
    assert (z.abs() < PLACE / 2).double().mean() < 0.02


def test_distance_is_that_of_draws_from_the_same_noise(distilled):
    sampler, distance = distilled
    torch.manual_seed(2)
    given = contexts(4096)
    paths = flow_paths(mixture_denoiser, given, sampler)
    with torch.no_grad():
        drawn = sampler.path(paths[:, 0], given)[-1]
    # of two draws of a mixture: 2 p (1 - p) of pairs are 2 apart, others 2 / sqrt(pi) stds
    p = given.sigmoid()
    spread = (
        4 * p * (1 - p) * PLACE + (1 - 2 * p * (1 - p)) * 2 * WIDTH / math.pi**0.5
    ).mean()
    expected = (drawn - paths[:, -1]).abs().mean() / spread
    # a few rows between the modes make most of it
    assert distance.item() == pytest.approx(expected.item(), rel=0.5)
    assert distance < 0.05


def test_an_untrained_sampler_is_far_off():
    torch.manual_seed(0)
    sampler = FewStepSampler(1, 1, hidden_size=8, num_evaluations=1)
    # nearly zero for all noise, where the mixture is at 1 or -1
    assert relative_distance(sampler, mixture_denoiser, contexts(4096)) > 0.5


@pytest.mark.parametrize("num_evaluations", [1, 2, 3, 4])
def test_paths_begin_with_noise_and_pass_falling_levels(num_evaluations):
    torch.manual_seed(0)
    sampler = FewStepSampler(1, 1, hidden_size=8, num_evaluations=num_evaluations)
    given = torch.zeros(NUM_DRAWS, 1)
    paths = flow_paths(mixture_denoiser, given, sampler)
    assert paths.shape == (NUM_DRAWS, num_evaluations + 1, 1)
    assert len(sampler.path(paths[:, 0], given)) == num_evaluations
    # noise alone, then the mixture under noise of each lower level and of none
    levels = [*sampler.levels[1:], 0.0]
    variances = [sampler.levels[0] ** 2, *(1.01 + level**2 for level in levels)]
    stds = torch.tensor(variances).sqrt()
    torch.testing.assert_close(paths.std(0).squeeze(-1), stds, rtol=0.03, atol=0.0)
