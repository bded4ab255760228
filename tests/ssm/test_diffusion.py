"""Score matching, the denoiser and the solver against what is known in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from darts_ddssm.ssm.diffusion import (
    MIN_RELATIVE_STD,
    TRAINING_RANGE,
    LogUniformNoise,
    NoiseDraw,
    explicit_score_matching,
    preconditioned_denoiser,
    sampling_levels,
    solve_probability_flow,
)
from tests.helpers import assert_mean, assert_same_mean, float64, randomised

WIDE = LogUniformNoise(1e-4, 1e4)


# Densities whose denoiser is known


class Mixture:
    """A mixture of isotropic Gaussians: weights (K,), means (K, D), stds (K,)."""

    def __init__(self, weights: list, means: list, stds: list):
        self.weights, self.stds = float64(*weights), float64(*stds)
        self.means = float64(*means)

    def log_terms(self, z: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log density of z (N, D) noised by sigma (N, 1), component by component."""
        std = (self.stds.square() + sigma**2).sqrt().unsqueeze(-1)
        terms = Normal(self.means, std).log_prob(z.unsqueeze(-2)).sum(-1)
        return self.weights.log() + terms

    def log_prob(self, z: Tensor) -> Tensor:
        return self.log_terms(z).logsumexp(-1)

    def denoise(self, z: Tensor, sigma: Tensor) -> Tensor:
        share = self.stds.square() / (self.stds.square() + sigma.square())
        share = share.unsqueeze(-1)
        means = share * z.unsqueeze(-2) + (1 - share) * self.means
        posterior = self.log_terms(z, sigma).softmax(-1).unsqueeze(-1)
        return (posterior * means).sum(-2)


def denoiser_of(mean: Tensor, variance: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Posterior mean of a Gaussian variable given its noised value."""

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        total = variance + sigma.square()
        return (variance * z + sigma.square() * mean) / total

    return denoise


def as_network(denoise: Callable[[Tensor, Tensor], Tensor], scale: Tensor):
    """The F with which the preconditioned form is a given denoiser."""

    def network(scaled: Tensor, log_sigma: Tensor) -> Tensor:
        sigma = scale * log_sigma.exp()
        norm = (sigma.square() + scale.square()).sqrt()
        z = norm * scaled
        c_skip, c_out = (scale / norm).square(), sigma * scale / norm
        return (denoise(z, sigma) - c_skip * z) / c_out

    return network


def estimate(denoise, mean, variance, noise=WIDE, scale=0.9, num_rows=100_000):
    """Independent estimates of KL(N(mean, variance) || p), p by its denoiser: (N,)."""
    mean, variance = mean.expand(num_rows, -1), variance.expand(num_rows, -1)
    scale = torch.full_like(mean[:, :1], scale)
    network = as_network(denoise, scale)
    return explicit_score_matching(network, mean, variance, scale, noise.draw(mean))


def gaussian_kl(mean, variance, mean_p, variance_p) -> Tensor:
    q, p = Normal(mean, variance.sqrt()), Normal(mean_p, variance_p.sqrt())
    return kl_divergence(q, p).sum(-1)


class LogisticNoise:
    """Noise levels of a logistic density of log sigma, on all the line."""

    def draw(self, like: Tensor) -> NoiseDraw:
        uniform = torch.rand_like(like[:, :1]).clamp(1e-12, 1 - 1e-12)
        return NoiseDraw(uniform.logit() - 1, 1 / (uniform * (1 - uniform)))


MOMENTS = {  # mean and variance of q, mean and variance of p
    "narrow": (float64(0.7), float64(0.09), float64(0.0), float64(1.3)),
    "wide": (float64(-0.2), float64(2.0), float64(0.3), float64(0.5)),
    "three dimensions": (
        float64(0.5, -1.0, 0.1),
        float64(0.04, 0.5, 1.5),
        float64(0.2, 0.4, 0.0),
        float64(1.0, 0.3, 1.0),
    ),
}
each_pair = pytest.mark.parametrize("moments", MOMENTS.values(), ids=MOMENTS.keys())

MIXTURE = Mixture([0.5, 0.2, 0.3], [[-1.0, 0.5], [1.2, 0.0], [0.0, -1.0]], [0.3, 0.5, 0.4])


# --- explicit score matching ----------------------------------------------------------


@each_pair
def test_mean_is_the_divergence_of_gaussians(moments):
    torch.manual_seed(0)
    mean, variance, mean_p, variance_p = moments
    draws = estimate(denoiser_of(mean_p, variance_p), mean, variance)
    assert_mean(draws, gaussian_kl(*moments))


@pytest.mark.parametrize(
    "levels, divergence", [((1e-4, 1e4), 1.058232), ((0.005, 40.0), 1.05795)]
)
def test_mean_is_the_number_of_the_design(levels, divergence):
    torch.manual_seed(0)
    mean, variance, mean_p, variance_p = MOMENTS["narrow"]
    draws = estimate(
        denoiser_of(mean_p, variance_p),
        mean,
        variance,
        noise=LogUniformNoise(*levels),
        scale=1.0,
        num_rows=1_000_000,
    )
    assert_mean(draws, divergence)


@pytest.mark.parametrize("noise", [WIDE, LogUniformNoise(1e-3, 1e5), LogisticNoise()])
def test_mean_is_the_divergence_to_a_mixture_whatever_the_density_of_levels(noise):
    torch.manual_seed(0)
    mean, variance = float64(0.3, -0.2), float64(0.3, 0.1)
    draws = estimate(MIXTURE.denoise, mean, variance, noise)
    q = Normal(mean, variance.sqrt())
    z = q.sample((400_000,))
    assert_same_mean(draws, q.log_prob(z).sum(-1) - MIXTURE.log_prob(z))


@each_pair
def test_mean_gradient_is_that_of_the_closed_form(moments):
    torch.manual_seed(0)
    # one leaf a row, so that each row has a gradient of its own
    rows = [x.expand(100_000, -1).clone().requires_grad_() for x in moments]
    mean, variance, mean_p, variance_p = rows
    draws = estimate(denoiser_of(mean_p, variance_p), mean, variance)
    gradients = torch.autograd.grad(draws.sum(), rows)
    leaves = [x.clone().requires_grad_() for x in moments]
    expected = torch.autograd.grad(gaussian_kl(*leaves), leaves)
    for draws, closed_form in zip(gradients, expected, strict=True):
        assert_mean(draws, closed_form)


def test_a_shift_of_both_leaves_every_estimate_alone():
    mean, variance, mean_p, variance_p = MOMENTS["three dimensions"]

    def draw(shift: float) -> Tensor:
        torch.manual_seed(0)
        denoise = denoiser_of(mean_p + shift, variance_p)
        # below 1e-3 the round-off of a difference of equals, not the shift, would show
        noise = LogUniformNoise(1e-3, 1e3)
        return estimate(denoise, mean + shift, variance, noise, num_rows=1000)

    torch.testing.assert_close(draw(3.0), draw(0.0), rtol=1e-7, atol=1e-7)


def test_a_change_of_unit_leaves_every_estimate_alone():
    mean, variance, *_ = MOMENTS["three dimensions"]
    network = randomised(nn.Linear(4, 3))

    def draw(unit: float) -> Tensor:
        torch.manual_seed(0)
        rows = (unit * mean).expand(1000, -1)
        scale = torch.full_like(rows[:, :1], 0.9 * unit)
        return explicit_score_matching(
            lambda z, log_sigma: network(torch.cat([z, log_sigma], dim=-1)),
            rows,
            (unit**2 * variance).expand(1000, -1),
            scale,
            WIDE.draw(rows),
        )

    torch.testing.assert_close(draw(100.0), draw(1.0), rtol=1e-9, atol=1e-9)


def test_little_is_missed_under_the_lowest_level():
    """A q at the floor of its std, p of the scale: by quadrature over the levels."""
    variance, variance_p = float64(MIN_RELATIVE_STD**2), float64(1.0)
    zero = torch.zeros_like(variance)

    def integral(low: float, high: float) -> float:
        log_sigma = torch.linspace(math.log(low), math.log(high), 100_001).double()
        squared = (2 * log_sigma).exp()
        # E |D_q - D_p|^2 / sigma^2, both linear in z ~ N(0, variance + sigma^2)
        slope = variance / (variance + squared) - variance_p / (variance_p + squared)
        values = slope.square() * (variance + squared) / squared
        return torch.trapezoid(values, log_sigma).item()

    whole = gaussian_kl(zero, variance, zero, variance_p).item()
    assert integral(1e-6, 1e6) == pytest.approx(whole, abs=1e-5)
    seen = integral(*TRAINING_RANGE)
    assert whole - seen < 0.02

    torch.manual_seed(0)
    denoise = denoiser_of(zero, variance_p)
    draws = estimate(denoise, zero, variance, LogUniformNoise(), scale=1.0)
    assert_mean(draws, seen)


# --- the preconditioned denoiser ------------------------------------------------------


LEVELS = [math.exp(log_sigma) for log_sigma in (-4.0, -1.0, 0.0, 2.0, 4.0)]


@pytest.mark.parametrize("sigma", LEVELS)
def test_zero_network_is_the_denoiser_of_a_gaussian_of_the_scale(sigma):
    z = torch.randn(50, 2).double()
    denoised = preconditioned_denoiser(torch.zeros_like, z, sigma)
    expected = denoiser_of(float64(0.0), float64(1.0))(z, float64(sigma))
    torch.testing.assert_close(denoised, expected)


@pytest.mark.parametrize("sigma", LEVELS)
def test_network_sees_and_predicts_unit_variance(sigma):
    torch.manual_seed(0)
    # clean values of the scale and far from Gaussian
    clean = torch.randn(100_000, 1).double().sign()
    z = clean + sigma * torch.randn_like(clean)
    seen = []

    def constant(value: float):
        def network(scaled: Tensor) -> Tensor:
            seen.append(scaled)
            return torch.full_like(scaled, value)

        return preconditioned_denoiser(network, z, sigma)

    skipped = constant(0.0)
    target = (clean - skipped) / (constant(1.0) - skipped)
    assert_mean(seen[0].square(), 1.0)
    assert_mean(target.square(), 1.0)


# --- the solver -----------------------------------------------------------------------


def solve(denoise, z: Tensor, levels: list[float]) -> Tensor:
    return solve_probability_flow(
        lambda z, i: denoise(z, z.new_tensor([levels[i]])), z, levels
    )


def quantiles_of_noise(num: int = 4000) -> Tensor:
    """Standard normal quantiles, which the flow of one dimension maps in their order."""
    return Normal(0.0, 1.0).icdf((torch.arange(num).double() + 0.5) / num).unsqueeze(-1)


def of_unit_square(weights: list, means: list, stds: list) -> Mixture:
    """A mixture in one dimension in units of its scale, the root of its mean square."""
    squares = [s**2 + m**2 for m, s in zip(means, stds, strict=True)]
    scale = math.sqrt(sum(w * x for w, x in zip(weights, squares, strict=True)))
    return Mixture(weights, [[m / scale] for m in means], [s / scale for s in stds])


def solved(mixture: Mixture, num_levels: int) -> Tensor:
    """Quantiles of what the solver draws, (N,)."""
    levels = sampling_levels(num_levels)
    return solve(mixture.denoise, levels[0] * quantiles_of_noise(), levels).squeeze(-1)


# evaluations, and the error of standard deviations that they may leave
each_accuracy = pytest.mark.parametrize("num_levels, tolerance", [(12, 0.02), (7, 0.05)])


@each_accuracy
@pytest.mark.parametrize("std", [0.01, 0.03, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_solver_keeps_the_spread_of_gaussians(num_levels, tolerance, std, share):
    """About zero, and off it as far as the scale allows."""
    mean = share * math.sqrt(1 - std**2)
    z = solved(Mixture([1.0], [[mean]], [std]), num_levels)
    assert z.std().item() == pytest.approx(std, rel=tolerance)
    assert z.mean().item() == pytest.approx(mean, abs=tolerance * std)


@each_accuracy
@pytest.mark.parametrize("std", [0.01, 0.03, 0.1, 0.2, 0.3])
@pytest.mark.parametrize(
    "weights, means",
    [
        ([0.5, 0.5], [-1, 1]),
        ([0.1, 0.9], [-1, 1]),
        ([0.2, 0.8], [-2, 0.5]),
        ([0.34, 0.33, 0.33], [-1, 0, 1]),
    ],
)
def test_solver_keeps_the_spread_and_the_weights_of_modes(
    num_levels, tolerance, std, weights, means
):
    mixture = of_unit_square(weights, means, len(means) * [std])
    z, means = solved(mixture, num_levels), mixture.means.squeeze(-1)
    mean = mixture.weights @ means
    variance = mixture.weights @ (mixture.stds.square() + means.square()) - mean**2
    assert z.std().item() == pytest.approx(variance.sqrt().item(), rel=tolerance)
    nearest = (z.unsqueeze(-1) - means).abs().argmin(-1)
    shares = nn.functional.one_hot(nearest, len(means)).double().mean(0)
    # wide modes overlap: what is nearest to a mean is not quite its mode
    edges = (means[1:] + means[:-1]) / 2
    below = Normal(means, mixture.stds).cdf(edges.unsqueeze(-1)) @ mixture.weights
    expected = torch.cat([below, float64(1.0)]).diff(prepend=float64(0.0))
    torch.testing.assert_close(shares, expected, rtol=0, atol=tolerance)


def test_solver_draws_from_a_mixture_of_several_dimensions():
    """Two modes of two dimensions, the line between them along no axis."""
    torch.manual_seed(0)
    mixture = Mixture([0.3, 0.7], [[1.2, 0.7], [-0.6, -0.4]], [0.1, 0.2])
    levels = sampling_levels(12)
    noise = levels[0] * torch.randn(50_000, 2).double()
    z = solve(mixture.denoise, noise, levels)
    distance = (z.unsqueeze(-2) - mixture.means).norm(dim=-1)
    nearest = distance.argmin(-1)
    assert_mean((nearest == 0).double(), 0.3, allowance=0.02)
    for mode, (mean, std) in enumerate(zip(mixture.means, mixture.stds, strict=True)):
        of_mode = z[nearest == mode]
        assert_mean(of_mode, mean, allowance=0.02)
        assert_mean((of_mode - mean).square(), std**2, allowance=0.25 * std**2)


THREE_MODES = Mixture([0.5, 0.15, 0.35], [[-1.3], [0.1], [1.5]], [0.1, 0.2, 0.15])


def test_more_levels_are_nearer_to_the_flow():
    """In one dimension the exact flow maps quantiles to quantiles."""
    highest = sampling_levels(1)[0]
    noise = highest * quantiles_of_noise(400)
    z = noise + THREE_MODES.denoise(noise, float64(highest))

    def cdf(x: Tensor, sigma: float) -> Tensor:
        std = (THREE_MODES.stds.square() + sigma**2).sqrt()
        terms = Normal(THREE_MODES.means.squeeze(-1), std).cdf(x)
        return terms @ THREE_MODES.weights

    def error(num_levels: int) -> float:
        found = solve(THREE_MODES.denoise, noise, sampling_levels(num_levels))
        return (cdf(found, 0.0) - cdf(z, highest)).abs().mean().item()

    errors = [error(num_levels) for num_levels in (8, 16, 32, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 5


def test_gradient_of_a_sample_is_finite_and_follows_the_mean():
    """Where rows take different steps, and one has no slope at all."""
    mean = float64(0.4).requires_grad_()
    levels = sampling_levels(8)
    noise = levels[0] * float64([0.0], [0.3], [-2.0])
    z = solve(denoiser_of(mean, float64(0.01)), noise, levels)
    (gradient,) = torch.autograd.grad(z.sum(), mean)
    # a shift of the density shifts each sample
    assert gradient.item() / 3 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("num_levels", [1, 2, 7])
def test_one_evaluation_a_level(num_levels):
    evaluated = []

    def denoise(z: Tensor, i: int) -> Tensor:
        evaluated.append(i)
        return z / 2

    solve_probability_flow(denoise, torch.ones(3, 2), sampling_levels(num_levels))
    assert evaluated == list(range(num_levels))


@pytest.mark.parametrize("num_levels", [2, 9, 64])
def test_levels_fall_evenly_in_their_logarithm(num_levels):
    levels = sampling_levels(num_levels, low=0.01, high=20.0)
    assert levels[0] == pytest.approx(20.0) and levels[-1] == pytest.approx(0.01)
    steps = float64(*levels).log().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert (steps < 0).all()
