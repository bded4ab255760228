"""Paths through gaps, against the exact posterior of a walk with two ways at each step."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from darts_ddssm.datasets import BimodalRandomWalk, LinearGaussian
from darts_ddssm.ssm import particles
from darts_ddssm.ssm.context import History, MarkovContext, RecurrentContext
from darts_ddssm.ssm.encoder import PosteriorPath
from darts_ddssm.ssm.particles import (
    Gaps,
    Particles,
    Paths,
    effective_number,
    resample,
    sample_states,
)
from darts_ddssm.ssm.window import Window
from tests.helpers import NUM_ERRORS, assert_same_mean, randomised

# without decay, all orders of the same jumps lead to the same place
WALK = BimodalRandomWalk(decay=1.0, noise=0.1, probability=0.7)
# of a state given the one before, about both of its values
SPREAD = 0.05
NUM_SAMPLES = 100


class ExactTransition:
    """The walk itself, each of its two values a narrow Gaussian."""

    context = MarkovContext(latent_dim=1, input_size=0, hidden_size=1, order=1).double()

    def min_std(self, num_steps: int) -> Tensor:
        return torch.full((num_steps,), 1e-3).double()

    def sample(self, history: History, u: Tensor, num_solver_steps: int) -> Tensor:
        up = torch.rand(len(u), 1) < WALK.probability
        jump = torch.where(up, WALK.step, -WALK.step)
        return WALK.decay * history.previous + jump + SPREAD * torch.randn_like(jump)


class ExactEncoder:
    """What the data say of a state; where they say nothing, it stays where it was."""

    latent_dim = 1

    def moments(
        self, z: Tensor, projection: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, seen = projection.split(1, dim=-1)
        return torch.where(seen > 0, x, z), torch.full_like(z, SPREAD)

    def sample_path(
        self, projection: Tensor, floor: Tensor, num_samples: int
    ) -> PosteriorPath:
        """Paths of series without gaps."""
        # (T, B, 2) -> (S * B, T, 1)
        mean = projection[..., :1].transpose(0, 1).repeat(num_samples, 1, 1)
        std = torch.full_like(mean, SPREAD)
        return PosteriorPath(mean + std * torch.randn_like(mean), mean, std)


def window_of(series: np.ndarray) -> Window:
    """Return series (B, T) with NaN in gaps as a window."""
    x = torch.from_numpy(series).unsqueeze(-1)
    observed = (~x.isnan()).double()
    x = x.nan_to_num()
    none = x[..., :0]
    return Window(x, observed, none, none, torch.ones_like(x))


def encode(window: Window) -> Tensor:
    """Output (T, B, 2) of an encoder that looks at each step alone."""
    return torch.cat([window.x, window.observed], -1).transpose(0, 1)


def arguments(series: np.ndarray, num_samples: int) -> tuple:
    window = window_of(series)

    def log_emission(z: Tensor, series: Tensor, t: int) -> Tensor:
        density = torch.distributions.Normal(z, WALK.noise)
        return density.log_prob(window.x[series, t]).squeeze(-1)

    share_observed = window.observed.squeeze(-1)
    of_encoder = ExactEncoder(), encode, encode(window)
    parts = ExactTransition(), *of_encoder, window, share_observed
    return *parts, log_emission, num_samples, 5


def paths_of(series: np.ndarray, num_samples: int = NUM_SAMPLES, **kwargs) -> Tensor:
    """Paths (S, B, T)."""
    states = sample_states(*arguments(series, num_samples), **kwargs)
    path = states.path
    assert torch.equal(states.history.previous, path[:, -1])
    return path.squeeze(-1).unflatten(0, (num_samples, len(series)))


def walk(length: int, seed: int, gap: slice) -> np.ndarray:
    x = WALK.simulate(1, length, random_state=seed).series[0].values()[:, 0].astype(float)
    x[gap] = np.nan
    return x


def shares(paths: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Share of the paths (S, T) that are near each of the ways (W, T)."""
    near = np.abs(paths[:, None] - ways).max(-1) < 10 * SPREAD
    return near.mean(0)


# --- the ways through a gap -----------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 4])
def test_paths_take_each_way_through_a_gap_by_its_probability(length):
    """Five standard errors of 40 repetitions, and what the approximate weight may cost."""
    torch.manual_seed(0)
    x = walk(length + 6, 0, slice(3, 3 + length))
    posterior = WALK.smooth(x[:, None])
    likely = posterior.probabilities > 0.03
    ways, expected = posterior.states[likely, :, 0], posterior.probabilities[likely]
    assert len(ways) > length
    paths = paths_of(np.stack([x] * 40)).numpy()
    found = np.stack([shares(paths[:, i], ways) for i in range(40)])
    error = found.std(0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - expected) < NUM_ERRORS * error + 0.05)


def test_later_observations_tell_ways_apart_that_hardly_differ(monkeypatch):
    """Up and down, or down and up, ends 0.8 apart, under noise of 0.3."""
    torch.manual_seed(0)
    monkeypatch.setattr(f"{__name__}.WALK", BimodalRandomWalk(decay=0.9, noise=0.3))
    x = np.stack([walk(12, seed, slice(3, 5)) for seed in range(100)])
    posteriors = [WALK.smooth(one[:, None]) for one in x]
    goes_up = [p.states[:, 3, 0] > WALK.decay * p.states[:, 2, 0] for p in posteriors]
    expected = [p.probabilities @ up for p, up in zip(posteriors, goes_up, strict=True)]

    def encode(window: Window) -> Tensor:
        """Output (T, B, 2) of an encoder that sees all of a window."""
        values = torch.where(window.observed > 0, window.x, torch.nan).numpy()
        posteriors = [WALK.smooth(one) for one in values]
        states = np.stack([p.probabilities @ p.states[:, :, 0] for p in posteriors])
        # (B, T) each -> (T, B, 2)
        parts = torch.from_numpy(states), window.observed.squeeze(-1)
        return torch.stack(parts, -1).transpose(0, 1)

    def mean_error() -> float:
        transition, encoder, _, _, window, *rest = arguments(x, NUM_SAMPLES)
        of_encoder = encoder, encode, encode(window)
        path = sample_states(transition, *of_encoder, window, *rest).path
        # (S * B, T, 1) -> (S, B, T)
        path = path.squeeze(-1).unflatten(0, (NUM_SAMPLES, -1))
        found = (path[..., 3] > WALK.decay * path[..., 2]).double().mean(0).numpy()
        return np.abs(found - expected).mean()

    error = mean_error()
    monkeypatch.setattr(particles, "NUM_MEETINGS", 1)
    assert error < 0.7 * mean_error()


def test_filtering_ends_where_smoothing_does():
    """Some steps after a gap, where both follow the encoder."""
    torch.manual_seed(0)
    x = np.stack([walk(12, 0, slice(3, 6))] * 50)
    smoothed, filtered = (paths_of(x, filtering=one) for one in (False, True))
    assert_same_mean(filtered[..., -1].flatten(), smoothed[..., -1].flatten())


def test_both_ways_are_open_at_the_end_of_a_series():
    """No observation has decided: the filtered state has the weights of the walk."""
    torch.manual_seed(0)
    x = np.stack([walk(5, 0, slice(4, 5))] * 50)
    last = paths_of(x)[..., -1].flatten()
    centre = WALK.decay * x[0, 3]
    share = (last > centre).double().mean().item()
    error = math.sqrt(0.7 * 0.3 / len(last))
    assert abs(share - 0.7) < NUM_ERRORS * error
    assert ((last - centre).abs() - WALK.step).abs().max() < 0.5


def test_a_gap_at_the_start():
    torch.manual_seed(0)
    x = walk(8, 2, slice(0, 3))
    posterior = WALK.smooth(x[:, None])
    likely = posterior.probabilities > 0.05
    paths = paths_of(x[None]).numpy()[:, 0]
    assert shares(paths, posterior.states[likely, :, 0]).sum() > 0.9


def test_series_of_a_batch_keep_to_their_own_data():
    """With gaps at other steps, of other lengths, or none; and samples in order."""
    torch.manual_seed(0)
    gaps = slice(2, 3), slice(4, 8), slice(0, 0), slice(9, 10), slice(0, 5)
    x = np.stack([walk(10, i, gap) for i, gap in enumerate(gaps)])
    paths = paths_of(x)
    assert paths.shape == (NUM_SAMPLES, 5, 10)
    seen = ~np.isnan(x)
    distance = np.abs(paths.numpy() - x)[:, seen]
    assert distance.max() < 5 * WALK.noise


def test_where_no_path_arrives_those_of_the_encoder_are_kept():
    """After a gap the series is where no walk could be."""
    torch.manual_seed(0)
    x = walk(8, 0, slice(3, 5))
    x[5:] = 1000.0
    other = walk(8, 0, slice(3, 4))
    states = sample_states(*arguments(np.stack([x, other]), NUM_SAMPLES))
    assert states.misses.tolist() == [True, False]
    paths = states.path.squeeze(-1)[::2]
    # the encoder stays where it was
    assert (paths[:, 3:5] - x[2]).abs().max() < 10 * SPREAD
    assert (paths[:, 5:] - 1000).abs().max() < 6 * SPREAD


def test_filtering_follows_the_transition_into_a_gap_that_no_path_leaves():
    torch.manual_seed(0)
    x = walk(8, 0, slice(3, 5))
    x[5:] = 1000.0
    paths = paths_of(x[None], filtering=True)[:, 0]
    assert ((paths[:, 3] - x[2]).abs() - WALK.step).abs().max() < 1
    assert (paths[:, 5:] - 1000).abs().max() < 6 * SPREAD


def test_paths_that_meet_the_observation_are_counted():
    """Those that go up as often as they must in five jumps, by how near they come."""
    torch.manual_seed(0)
    x = walk(10, 0, slice(3, 7))
    found = arguments(x[None], NUM_SAMPLES)
    transition, encoder, _, projection, window, share_observed, log_emission, *_ = found
    parts, gaps = (transition, encoder, projection, window), Gaps.of(share_observed)
    num_paths = torch.full_like(gaps.number, 1600)
    found = Particles(*parts, gaps, log_emission, NUM_SAMPLES, 5, num_paths)
    found.run()
    up = round((x[7] - x[2]) / WALK.step / 2 + 2.5)
    share = math.comb(5, up) * 0.7**up * 0.3 ** (5 - up)
    assert 0.15 * share < found.num_met[0, 7] / 1600 < 1.2 * share
    assert found.num_met[0, :7].isinf().all()


def test_a_step_that_is_observed_in_part_is_not_left_to_the_encoder():
    """Whose guess of it is wrong here: the walk never stays where it was."""
    torch.manual_seed(0)
    x = walk(8, 0, slice(3, 3))
    found = arguments(x[None], NUM_SAMPLES)
    transition, *of_encoder, projection, window, share, log_emission, _, _ = found
    rest, guess = (log_emission, NUM_SAMPLES, 5), projection.clone()
    guess[4, 0, 0] = x[3]
    for known, expected in ((1.0, x[3]), (0.5, x[4])):
        share[0, 4] = known
        states = sample_states(transition, *of_encoder, guess, window, share, *rest)
        assert (states.path[:, 4, 0] - expected).abs().max() < 6 * SPREAD
    # and so is the first step, which the transition hardly knows
    share[0], guess[0, 0, 0] = 1.0, x[0] + 1
    share[0, 0] = 0.5
    states = sample_states(transition, *of_encoder, guess, window, share, *rest)
    assert (states.path[:, 0, 0] - x[0] - 1).abs().max() < 6 * SPREAD


def test_gaps_and_their_numbers():
    observed = torch.tensor([[0, 0, 1, 0.5, 0, 1, 1, 0], [1, 1, 1, 1, 0, 1, 0.5, 1]])
    gaps = Gaps.of(observed)
    # what follows the last observation is no gap
    assert gaps.inside.int().tolist() == [
        [1, 1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 1, 0],
    ]
    assert gaps.number.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 1, 1, 2, 2]]
    missed = torch.zeros(2, 8, dtype=torch.bool)
    missed[0, 5] = missed[1, 7] = True
    assert gaps.anywhere(missed).int().tolist() == [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_more_paths_are_sent_through_the_gap_that_was_missed_alone(monkeypatch):
    """The second one, of five steps that all go down, by a walk that mostly goes up."""
    torch.manual_seed(0)
    x = WALK.step * np.cumsum([0, *[1] * 5, *[-1] * 6, 1, 1.0])
    x[2] = np.nan
    x[6:11] = np.nan
    given = []

    class Spy(Particles):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            given.append((self.factor * NUM_SAMPLES)[0].tolist())

    monkeypatch.setattr(particles, "Particles", Spy)
    sample_states(*arguments(x[None], NUM_SAMPLES))
    assert len(given) == 3
    assert all(numbers[2] == 200 for numbers in given)
    assert [numbers[8] for numbers in given] == [200, 600, 2100]


@pytest.mark.parametrize("order", [1, None])
def test_paths_know_what_the_transition_needs(order):
    """Along more steps than its context network was trained on, and after a choice."""
    torch.manual_seed(0)
    sizes = {"latent_dim": 2, "input_size": 1, "hidden_size": 4}
    if order is None:
        context = randomised(RecurrentContext(**sizes, reach=5, num_context=3))
    else:
        context = randomised(MarkovContext(**sizes, order=order))
    inputs = torch.randn(2, 12, 1).double()
    owner = torch.tensor([0, 0, 1])
    for first in (0, 4, 9):
        paths = Paths(context, inputs, owner, inputs)
        assert not paths.previous.any()
        states = torch.zeros(3, 0, 2).double()
        for t in range(12):
            if t >= first:
                found = context.output(paths.history, paths.inputs)
                if first == 0:
                    # what comes after the states so far has no influence
                    z = torch.cat([states, torch.zeros(3, 1, 2).double()], 1)
                    whole = context(z, inputs[paths.owner, : t + 1])[:, t]
                    torch.testing.assert_close(found, whole)
            z = torch.randn(3, 2).double()
            paths.add(z)
            states = torch.cat([states, z.unsqueeze(1)], 1)
            for _ in range((t % 3) // 2 * 2):
                paths.keep(torch.tensor([1, 0, 2]))
                paths.keep(torch.tensor([1, 1, 2]))
                states = states[[0, 0, 2]]
            assert torch.equal(paths.previous, states[:, t])
            for number in (1, 2, t + 1):
                assert torch.equal(paths.last(number), states[:, -number:])
            if t % 4 == 3:
                # some of the last states of some paths, up to all that there are
                number = {3: 4, 7: 3, 11: 1}[t]
                new, rows = torch.randn(2, number, 2).double(), torch.tensor([0, 2])
                paths.replace(rows, new)
                states = states.clone()
                states[rows, -number:] = new
                assert torch.equal(paths.previous, states[:, t])
                assert torch.equal(paths.last(t + 1), states)
        # a history that is asked for late is that of the last latents
        late = Paths(context, inputs, paths.owner, inputs)
        for z in states[:, :9].unbind(1):
            late.add(z)
        last = slice(6, 9) if order is None else slice(0, 9)
        expected = context.from_path(states[:, last], inputs[paths.owner, last])
        torch.testing.assert_close(late.history, expected)


# --- the exact posterior of a linear-Gaussian series ----------------------------------


class LinearOracle:
    """The exact transition of z' = 0.95 z + e, and its exact encoder, under some noise.

    The posterior of a state given the one before and all data from it on is Gaussian. Its
    moments follow from what the data from each step on say of the state before.
    """

    context = ExactTransition.context
    decay, innovation = 0.95, 0.1

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.first = self.innovation / (1 - self.decay**2)

    def min_std(self, num_steps: int) -> Tensor:
        return torch.zeros(num_steps).double()

    def sample(self, history: History, u: Tensor, num_solver_steps: int) -> Tensor:
        variance = torch.where(history.started > 0, self.innovation, self.first)
        z = history.previous
        return self.decay * z + variance.sqrt() * torch.randn_like(z)

    def encode(self, window: Window) -> Tensor:
        """Factor of the state before, shift and standard deviation, (T, B, 3)."""
        x, seen = window.x.squeeze(-1), window.observed.squeeze(-1)
        # of the data after a step, as of one observation: precision, and it times the mean
        precision, weighted = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        found = []
        for t in reversed(range(x.shape[1])):
            precision = precision + seen[:, t] / self.noise
            weighted = weighted + seen[:, t] * x[:, t] / self.noise
            before = self.innovation if t > 0 else self.first
            variance = 1 / (1 / before + precision)
            factor = variance * self.decay / before
            found.append(torch.stack([factor, variance * weighted, variance.sqrt()], -1))
            weighted = factor * weighted
            precision = self.decay * factor * precision
        return torch.stack(found[::-1])

    def moments(
        self, z: Tensor, projection: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        factor, shift, std = projection.split(1, dim=-1)
        return factor * z + shift, std.expand_as(z)

    def paths(self, x: np.ndarray, num_samples: int, filtering: bool) -> Tensor:
        """Paths of one series, (S, T)."""
        window = window_of(x[None])

        def log_emission(z: Tensor, series: Tensor, t: int) -> Tensor:
            density = torch.distributions.Normal(z, math.sqrt(self.noise))
            return density.log_prob(window.x[series, t]).squeeze(-1)

        of_encoder = self, self.encode, self.encode(window)
        how = log_emission, num_samples, 5, filtering
        share = window.observed.squeeze(-1)
        return sample_states(self, *of_encoder, window, share, *how).path.squeeze(-1)

    @property
    def process(self) -> LinearGaussian:
        parts = [[self.decay]], [[1.0]], [[self.innovation]], [[self.noise]]
        return LinearGaussian(*parts)

    def smooth(self, x: np.ndarray) -> tuple[Tensor, Tensor]:
        """Exact mean and variance of each state, (T,)."""
        found = self.process.smooth(x[:, None])
        moments = found.smoothed_mean[:, 0], found.smoothed_covariance[:, 0, 0]
        mean, variance = (torch.as_tensor(part) for part in moments)
        return mean, variance


@pytest.mark.parametrize(
    "noise, filtering, gap, bound",
    [
        # what comes after a gap counts once
        (0.5, True, slice(6, 7), 0.2),
        (0.1, True, slice(5, 7), 0.2),
        # a state after a gap knows what comes later, but for the little that the fourth
        # observation from there says
        (0.1, False, slice(3, 4), 0.35),
        (0.01, False, slice(3, 4), 0.35),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_paths_have_the_moments_of_the_exact_posterior(noise, filtering, gap, bound, seed):
    """But for so many of its standard deviations, of 4,000 paths."""
    torch.manual_seed(seed)
    oracle = LinearOracle(noise)
    (series,) = oracle.process.simulate(1, 8, random_state=seed).series
    x = series.values()[:, 0].astype(float)
    x[gap] = np.nan
    path = oracle.paths(x, 4000, filtering)
    mean, variance = oracle.smooth(x)
    off = (path.mean(0) - mean).abs() / variance.sqrt()
    steps = slice(-1, None) if filtering else slice(None)
    assert off[steps].max() < bound
    assert ((path.var(0) / variance)[steps].log().abs() < math.log(1.3)).all()


# --- weights --------------------------------------------------------------------------


def test_each_path_is_drawn_as_often_as_its_weight_says():
    """To within one draw."""
    torch.manual_seed(0)
    log_weights = torch.randn(60).double() * 2 + 100
    owner = torch.tensor([3] * 10 + [5] * 30 + [6] * 20)
    places = resample(log_weights, owner, 50)
    assert torch.equal(owner[places], torch.tensor([3, 5, 6]).repeat_interleave(50))
    counts = places.bincount(minlength=60)
    for series in (3, 5, 6):
        expected = 50 * log_weights[owner == series].softmax(0)
        assert ((counts[owner == series] - expected).abs() < 1).all()


@pytest.mark.parametrize("lost", [-math.inf, math.nan])
def test_weights_that_are_not_finite(lost):
    """Of zero, or where all are, alike."""
    log_weights = torch.tensor([lost, 0.0, lost, lost])
    owner = torch.tensor([0, 0, 1, 1])
    places = resample(log_weights, owner, 4)
    assert places.tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
    # of no weight at all there is none
    assert effective_number(log_weights, owner, 2).tolist() == [1.0, 0.0]


def test_effective_number():
    weights = torch.tensor([0.5, 0.25, 0.25, 1.0]).double()
    found = effective_number(weights.log() + 7, torch.tensor([0, 0, 0, 1]), 3)
    assert found[:2].tolist() == pytest.approx([1 / (0.25 + 2 / 16), 1.0])
