"""The density of a diffusion model against exact ones."""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from darts_ddssm.ssm.context import MarkovContext
from darts_ddssm.ssm.diffusion import DenoiserNetwork
from darts_ddssm.ssm.probability_flow import (
    FEW_ROWS,
    FLOW_RANGE,
    exact_trace,
    hutchinson_trace,
    probability_flow_log_prob,
)
from darts_ddssm.ssm.transition import DiffusionTransition, GaussianTransition


class Mixture:
    """A mixture of Gaussians with its exact denoiser, as the network F would give it."""

    def __init__(self, dim: int, width: float, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.means = torch.randn(4, dim, generator=generator, dtype=torch.float64)
        self.weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
        self.width = width
        square = self.weights @ self.means.square().sum(-1) / dim + width**2
        self.scale = square.sqrt()

    def density(self, sigma: float = 0.0) -> MixtureSameFamily:
        std = math.hypot(self.width, sigma)
        parts = Independent(Normal(self.means, std), 1)
        return MixtureSameFamily(Categorical(self.weights), parts)

    def network(self, y: torch.Tensor, log_sigma: torch.Tensor) -> torch.Tensor:
        sigma = self.scale * log_sigma.exp()
        noised = (sigma.square() + self.scale.square()).sqrt()
        z = (y * noised).unsqueeze(-2)
        variance = self.width**2 + sigma.square()
        log_r = self.weights.log() - (z - self.means).square().sum(-1) / (2 * variance)
        means = z - sigma.square() / variance * (z - self.means)
        mean = (log_r.softmax(-1).unsqueeze(-1) * means).sum(-2)
        # the inverse of the preconditioning
        skip = (self.scale / noised).square() * z.squeeze(-2)
        return (mean - skip) / (sigma * self.scale / noised)

    def log_prob(self, z: torch.Tensor, **kwargs) -> torch.Tensor:
        scale = self.scale.expand(len(z), 1)
        return probability_flow_log_prob(self.network, z, scale, **kwargs)


@pytest.mark.parametrize("width", [0.5, 0.1])
@pytest.mark.parametrize("dim", [1, 2, 8])
def test_density_of_a_mixture(dim, width):
    """Within 0.001 nats everywhere; at the default number of steps on average."""
    torch.manual_seed(0)
    mixture = Mixture(dim, width)
    z = mixture.density().sample((500,))
    truth = mixture.density(FLOW_RANGE[0] * mixture.scale.item()).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z, num_steps=256), truth, atol=1e-3, rtol=0)
    error = (mixture.log_prob(z) - truth).abs().mean()
    assert error < 0.02


@pytest.mark.parametrize("width, num_steps", [(0.5, 64), (0.1, 256), (0.02, 512)])
def test_density_integrates_to_one(width, num_steps):
    """Also where next to nothing lies between narrow modes."""
    mixture = Mixture(1, width)
    z = torch.linspace(-8, 8, 20001, dtype=torch.float64).unsqueeze(-1)
    density = mixture.log_prob(z, num_steps=num_steps).exp()
    assert torch.trapezoid(density, z[:, 0]).item() == pytest.approx(1, abs=1e-3)


def random_network(dim: int, size: float = 0.3):
    """A denoiser of random weights, whose flow is far from standing still."""
    network = DenoiserNetwork(dim, context_size=4, hidden_size=16).double()
    torch.nn.init.normal_(network.linear_out.weight, std=size)
    context = torch.randn(1, 4, dtype=torch.float64)

    def forward(y: torch.Tensor, log_sigma: torch.Tensor) -> torch.Tensor:
        shift = network.project_context(context) + network.condition(log_sigma)
        return network(y, shift)

    return forward


def test_density_of_any_network_integrates_to_one():
    """A flow keeps the mass, whatever drives it."""
    torch.manual_seed(0)
    network = random_network(1)
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64).unsqueeze(-1)
    # what the network of no density does at high noise falls off slowly
    log_prob = probability_flow_log_prob(
        network, z, torch.ones_like(z), num_steps=256, noise_range=(0.005, 4000.0)
    )
    density = log_prob.exp()
    # a Gaussian would be a poor guess of it
    assert (density - Normal(0, 1).log_prob(z[:, 0]).exp()).abs().max() > 0.05
    assert torch.trapezoid(density, z[:, 0]).item() == pytest.approx(1, abs=1e-3)


def test_a_gaussian_stands_still():
    z = torch.randn(50, 3, dtype=torch.float64)
    scale = torch.full((50, 1), 0.7, dtype=torch.float64)
    log_prob = probability_flow_log_prob(lambda y, _: 0 * y, z, scale, num_steps=1)
    std = 0.7 * math.hypot(1, FLOW_RANGE[0])
    torch.testing.assert_close(log_prob, Normal(0, std).log_prob(z).sum(-1))


def test_change_of_units():
    torch.manual_seed(0)
    network = random_network(2)
    z = torch.randn(20, 2, dtype=torch.float64)
    one = probability_flow_log_prob(network, z, torch.ones_like(z[:, :1]))
    other = probability_flow_log_prob(network, 50 * z, torch.full_like(z[:, :1], 50.0))
    torch.testing.assert_close(other, one - 2 * math.log(50))


def test_traces():
    """Exact, and Hutchinson's unbiased."""
    torch.manual_seed(0)
    network = random_network(5)
    y = torch.randn(3, 5, dtype=torch.float64)
    level = y.new_zeros(1)

    def function(y):
        return network(y, level)

    rows = (row.unsqueeze(0) for row in y)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(function, row).squeeze() for row in rows]
    )
    truth = jacobian.diagonal(dim1=1, dim2=2).sum(-1)
    value, trace = exact_trace(function, y)
    torch.testing.assert_close(value, function(y))
    torch.testing.assert_close(trace, truth)
    # of many rows the derivatives are taken one after another
    _, trace = exact_trace(function, y.repeat(FEW_ROWS, 1))
    torch.testing.assert_close(trace, truth.repeat(FEW_ROWS))
    probes = torch.randint(2, (4000, 3, 5)) * 2.0 - 1.0
    estimates = torch.stack([hutchinson_trace(function, y, p.double())[1] for p in probes])
    error = (estimates.mean(0) - truth) / (estimates.std(0) / 4000**0.5)
    assert error.abs().max() < 4


def test_hutchinson_log_density_is_unbiased():
    torch.manual_seed(0)
    network = random_network(4)
    z = torch.randn(1, 4, dtype=torch.float64)
    truth = probability_flow_log_prob(network, z, torch.ones(1, 1).double())
    rows = z.expand(4000, -1)
    estimates = probability_flow_log_prob(
        network, rows, torch.ones_like(rows[:, :1]), exact=False
    )
    assert estimates.std() > 1e-3
    error = (estimates.mean() - truth) / (estimates.std() / 4000**0.5)
    assert error.abs() < 4


def test_correlated_gaussian():
    """The denoiser of a Gaussian with full covariance: linear, but no multiple of one."""
    torch.manual_seed(0)
    root = torch.randn(3, 3, dtype=torch.float64)
    covariance = root @ root.T / 3
    mean = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    scale = ((covariance.trace() + mean @ mean) / 3).sqrt()

    def network(y, log_sigma):
        sigma = scale * log_sigma.exp()
        noised = (sigma.square() + scale.square()).sqrt()
        z = y * noised
        total = covariance + sigma.square() * torch.eye(3)
        denoised = mean + (z - mean) @ torch.linalg.solve(total, covariance)
        return (denoised - (scale / noised).square() * z) / (sigma * scale / noised)

    z = MultivariateNormal(mean, covariance).sample((200,))
    low = (FLOW_RANGE[0] * scale) ** 2 * torch.eye(3)
    truth = MultivariateNormal(mean, covariance + low).log_prob(z)
    log_prob = probability_flow_log_prob(network, z, scale.expand(200, 1))
    torch.testing.assert_close(log_prob, truth, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", [DiffusionTransition, GaussianTransition])
@pytest.mark.parametrize("order", [1, 2])
def test_densities_of_a_path(kind, order, monkeypatch):
    """Each step by itself from its own history; in parts as in one."""
    torch.manual_seed(0)
    transition = kind(MarkovContext(2, 1, 8, order), 8).double()
    last = transition.network[-1] if kind is GaussianTransition else None
    weights = (last or transition.network.linear_out).weight
    torch.nn.init.normal_(weights, std=0.3)
    transition.squared_scale.copy_(torch.tensor([2.0, 0.5]))
    z, u = torch.randn(3, 5, 2).double(), torch.randn(3, 5, 1).double()
    path = transition.log_prob(z, u)
    assert path.shape == (3, 5)
    history = transition.context.init(3, z)
    for t in range(5):
        context = transition.context.output(history, u[:, t])
        centred = z[:, t] - history.previous
        step = transition._log_prob(context, centred, transition.scale(history.started))
        torch.testing.assert_close(path[:, t], step)
        history = transition.context.update(history, z[:, t], u[:, t])
    monkeypatch.setattr("darts_ddssm.ssm.transition.DENSITY_ROWS", 4)
    torch.testing.assert_close(transition.log_prob(z, u), path)


def test_density_of_the_gaussian_transition():
    torch.manual_seed(0)
    transition = GaussianTransition(MarkovContext(2, 0, 8, 1), 8)
    z = torch.randn(4, 3, 2)
    history = transition.context.init(4, z)
    mean, std = transition.moments(
        transition.context.output(history, z[:, 0, :0]), transition.scale(history.started)
    )
    truth = Normal(mean, std).log_prob(z[:, 0]).sum(-1)
    torch.testing.assert_close(transition.log_prob(z, z[..., :0])[:, 0], truth)
