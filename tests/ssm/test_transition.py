"""The transitions: their KL, the scale they track and what they learn."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from darts_ddssm.ssm.context import History, MarkovContext, RecurrentContext
from darts_ddssm.ssm.encoder import PosteriorPath
from darts_ddssm.ssm.probability_flow import NUM_STEPS
from darts_ddssm.ssm.transition import (
    DRIFT_RIDGE,
    DiffusionTransition,
    GaussianTransition,
    Transition,
)
from tests.helpers import assert_mean, assert_same_mean, float64, randomised

BOTH = [DiffusionTransition, GaussianTransition]

# Of the linear system that the transitions learn.
SLOPE, STD = 0.6, 0.5


def transition_of(
    kind: type, latent_dim: int = 1, order: int | None = 1, hidden_size: int = 16
) -> Transition:
    """Without inputs."""
    torch.manual_seed(0)
    if order is None:
        context = RecurrentContext(latent_dim, 0, hidden_size, reach=4, num_context=2)
    else:
        context = MarkovContext(latent_dim, 0, hidden_size, order=order)
    return kind(context, hidden_size).double()


def no_inputs(z: Tensor) -> Tensor:
    return z[..., :0]


def posterior(num_rows: int, num_steps: int, latent_dim: int = 1) -> PosteriorPath:
    """A path with moments of q that go with it."""
    shape = (num_rows, num_steps, latent_dim)
    mean = torch.randn(shape).double().cumsum(1)
    std = 0.2 + torch.rand(shape).double()
    return PosteriorPath(mean + std * torch.randn_like(std), mean, std)


def history_of(transition: Transition, z: Tensor) -> History:
    """Histories that end with the latents of z (N, D), the first of their paths."""
    context = transition.context
    return context.update(context.init(len(z), z), z, no_inputs(z))


def train(transition: Transition, paths: Callable[[], Tensor], steps: int) -> None:
    """Fit to paths that are known but for a tiny std, by Adam with a falling rate."""
    optimizer = torch.optim.Adam(transition.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    transition.train()
    for _ in range(steps):
        z = paths()
        path = PosteriorPath(z, z, torch.full_like(z, 0.02))
        transition.track_moments(path)
        kl = transition.kl(path, no_inputs(z))
        optimizer.zero_grad()
        kl.mean().backward()
        optimizer.step()
        decay.step()
    transition.eval()


def autoregression(num_rows: int, num_steps: int) -> Tensor:
    """Paths of z_t = 0.2 + SLOPE z_{t-1} + STD w_t from z_1 = 0.5 + STD w_1."""
    noise = STD * torch.randn(num_steps, num_rows, 1).double()
    z = [0.5 + noise[0]]
    for noise_t in noise[1:]:
        z.append(0.2 + SLOPE * z[-1] + noise_t)
    return torch.stack(z, dim=1)


# --- the KL ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 3, None])
def test_gaussian_kl_is_the_closed_form_of_its_moments(order):
    transition = randomised(transition_of(GaussianTransition, 3, order))
    transition.squared_scale.copy_(float64(0.5, 2.0))
    transition.drift.copy_(torch.randn(4, 3))
    z, mean, std = posterior(5, 4, latent_dim=3)

    started = (torch.arange(4) > 0).double().view(1, 4, 1).expand(5, -1, -1)
    context = transition.context(z, no_inputs(z))
    mean_p, std_p = transition.moments(context, transition.scale(started))
    slope, intercept = transition.drift.split([3, 1])
    mean_p[:, 1:] += z[:, :-1] + z[:, :-1] @ slope + intercept
    terms = (std_p / std).log() + (std**2 + (mean - mean_p) ** 2) / (2 * std_p**2) - 0.5

    kl = transition.kl(PosteriorPath(z, mean, std), no_inputs(z))
    torch.testing.assert_close(kl, terms.sum(-1))


def test_estimate_is_unbiased_in_every_layout():
    """Windows in one batch, each in a call of its own, each step a row of its own."""
    transition = randomised(transition_of(DiffusionTransition, 2))
    window = posterior(1, 3, latent_dim=2)
    # Each step after the first depends on one latent alone: two-step windows hold it.
    rows = [torch.cat([x[:, :2], x[:, 1:]]) for x in window]

    transition.track_moments(window)

    @torch.no_grad()
    def estimates(parts: Sequence[Tensor], num_copies: int, **kwargs: int) -> Tensor:
        path = PosteriorPath(*(x.repeat(num_copies, 1, 1) for x in parts))
        kl = transition.kl(path, no_inputs(path.z), **kwargs)
        return kl.unflatten(0, (num_copies, -1))

    batch = estimates(window, 5000)[:, 0]
    assert_same_mean(batch, torch.cat([estimates(window, 1)[0] for _ in range(500)]))
    # of some of the rows, and of several noise levels for each
    assert_same_mean(batch, estimates(window, 20_000, max_rows=2048)[:, 0])
    draws = estimates(window, 1000, num_draws=5)[:, 0]
    assert_same_mean(batch, draws)
    assert (draws.var(0) < 0.5 * batch.var(0)).all()
    assert_same_mean(batch[:, 1:], estimates(rows, 5000)[:, :, 1])


@pytest.mark.parametrize("kind", BOTH)
def test_kl_is_that_of_the_change_since_the_last_latent(kind):
    """Where the context is blind to the latents, a shift of all of them is unseen."""
    transition = randomised(transition_of(kind, 2)).eval()
    for parameter in transition.context.parameters():
        torch.nn.init.zeros_(parameter)
    z, mean, std = posterior(4, 5, latent_dim=2)

    def kl(shift: float) -> Tensor:
        torch.manual_seed(0)
        path = PosteriorPath(z + shift, mean + shift, std)
        return transition.kl(path, no_inputs(z))

    torch.testing.assert_close(kl(7.0)[:, 1:], kl(0.0)[:, 1:])
    # the first step has no latent before it
    assert ((kl(7.0) - kl(0.0))[:, 0].abs() > 1e-3).all()


@pytest.mark.parametrize("order", [1, None])
@pytest.mark.parametrize("kind", BOTH)
@torch.no_grad()
def test_density_of_the_next_step_is_that_of_the_last_of_a_path(kind, order):
    transition = randomised(transition_of(kind, 2, order))
    z = posterior(5, 4, latent_dim=2)[0]
    u = no_inputs(z)
    history = transition.context.from_path(z[:, :-1], u[:, :-1])
    found = transition.log_prob_next(history, z[:, -1], u[:, -1], NUM_STEPS)
    torch.testing.assert_close(found, transition.log_prob(z, u)[:, -1])


@pytest.mark.parametrize("order", [1, None])
@pytest.mark.parametrize("kind", BOTH)
def test_steps_that_do_not_teach(kind, order):
    """Their KL is the same, and the transition has no gradient of it."""
    transition = randomised(transition_of(kind, 2, order))
    z, mean, std = posterior(3, 4, latent_dim=2)
    learns = torch.arange(12).view(3, 4) % 3 == 0
    u = no_inputs(z)

    def gradients(counted: Tensor) -> list[Tensor]:
        transition.zero_grad()
        moments = mean.clone().requires_grad_()
        kl = transition.kl(PosteriorPath(z, moments, std), u, learns=learns)
        (kl * counted).sum().backward()
        return [moments.grad, *(p.grad for p in transition.parameters())]

    of_encoder, *of_transition = gradients(~learns)
    assert (of_encoder.abs().sum(-1) > 0).equal(~learns)
    assert all(x is None or not x.any() for x in of_transition)
    of_encoder, *of_transition = gradients(learns)
    assert (of_encoder.abs().sum(-1) > 0).equal(learns)
    assert any(x is not None and x.any() for x in of_transition)

    path = PosteriorPath(*(x.repeat(3000, 1, 1) for x in (z, mean, std)))
    with torch.no_grad():
        u, whole = u.repeat(3000, 1, 1), transition.kl(path, u.repeat(3000, 1, 1))
        for max_rows in (None, 9000):
            parts = transition.kl(path, u, max_rows, learns=learns.repeat(3000, 1))
            assert_same_mean(parts.unflatten(0, (3000, 3)), whole.unflatten(0, (3000, 3)))


# --- the scale ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scale_is_exact_in_every_precision(dtype):
    """Also where that of the first step is far above the others, or far below."""
    transition = transition_of(DiffusionTransition).to(dtype)
    started = torch.tensor([[0.0], [1.0]], dtype=dtype)
    for squares in ([100.0, 4e-4], [4e-4, 100.0]):
        squared_scale = torch.tensor(squares, dtype=dtype)
        transition.squared_scale.copy_(squared_scale)
        scale = transition.scale(started)
        assert scale.dtype == dtype
        assert torch.equal(scale, squared_scale.sqrt().unsqueeze(-1))


def scales(transition: Transition) -> Tensor:
    """Of the first step and of all others."""
    return transition.scale(float64(0.0, 1.0))


def squared_scales(transition: Transition, path: PosteriorPath) -> Tensor:
    """E[v] + E[(mu - mu_p)^2] of the first step and of all others."""
    z, mean, std = path
    change = mean.clone()
    change[:, 1:] -= z[:, :-1] @ (torch.eye(1).double() + transition.drift[:-1])
    change[:, 1:] -= transition.drift[-1]
    parts = [(change[:, :1], std[:, :1]), (change[:, 1:], std[:, 1:])]
    return torch.stack([c.square().mean() + s.square().mean() for c, s in parts])


@pytest.mark.parametrize("kind", BOTH)
def test_scale_is_the_mean_of_what_was_tracked(kind):
    transition = transition_of(kind)
    torch.manual_seed(1)
    one, other = posterior(50, 6), posterior(50, 6)
    transition.track_moments(one)
    expected = squared_scales(transition, one)
    torch.testing.assert_close(scales(transition) ** 2, expected)
    transition.track_moments(other)
    expected = (expected + squared_scales(transition, other)) / 2
    torch.testing.assert_close(scales(transition) ** 2, expected)


@pytest.mark.parametrize("kind", BOTH)
def test_scale_follows_a_change(kind):
    transition = transition_of(kind)
    torch.manual_seed(1)
    path = posterior(20, 6)
    for _ in range(5):
        transition.track_moments(PosteriorPath(*(10 * part for part in path)))
    for _ in range(1000):
        transition.track_moments(path)
    torch.testing.assert_close(
        scales(transition) ** 2, squared_scales(transition, path), rtol=1e-3, atol=0
    )


def test_drift_is_a_ridge_regression():
    """Of all that was tracked, whatever the first step is."""
    transition = transition_of(DiffusionTransition, 3)
    torch.manual_seed(1)
    paths = []
    for _ in range(3):
        z = torch.randn(200, 1, 3).double() + 2
        slope = torch.eye(3).double() - 0.3 + 0.1 * torch.randn(3, 3).double()
        mean = torch.cat([5 + z, 1 + z @ slope], dim=1)
        following = mean[:, 1:] + torch.randn(200, 1, 3).double()
        paths.append(PosteriorPath(torch.cat([z, following], 1), mean, mean * 0 + 1))
        transition.track_moments(paths[-1])
    z, mean = torch.cat([p.z for p in paths]), torch.cat([p.mean for p in paths])
    regressors = torch.nn.functional.pad(z[:, 0], (0, 1), value=1.0)
    # least squares beside a pseudo-observation of no change for each regressor
    pseudo = (DRIFT_RIDGE * regressors.square().sum(0)).sqrt().diag()
    known = torch.cat([mean[:, 1] - z[:, 0], torch.zeros(4, 3).double()])
    solution = torch.linalg.lstsq(torch.cat([regressors, pseudo]), known).solution
    predicted = transition.centre(z[:, 0], torch.ones(len(z), 1).double())
    torch.testing.assert_close(predicted, z[:, 0] + regressors @ solution)
    first = transition.centre(torch.zeros(2, 3).double(), torch.zeros(2, 1).double())
    assert not first.any()


def test_drift_without_variation_is_none():
    """Paths that stand still say nothing about it."""
    transition = transition_of(GaussianTransition, 2)
    still = torch.zeros(4, 3, 2).double()
    transition.track_moments(PosteriorPath(still, still, still + 1))
    assert not transition.drift.any()


@pytest.mark.parametrize("num_steps", [1, 4])
def test_processes_exchange_their_moments_at_once(monkeypatch, num_steps):
    """Two that see the same paths track what one alone does."""
    alone, one_of_two = (transition_of(DiffusionTransition, 2) for _ in range(2))
    path, exchanged = posterior(20, num_steps, latent_dim=2), []
    alone.track_moments(path)

    def all_reduce(value: Tensor) -> None:
        exchanged.append(value.mul_(2))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    one_of_two.track_moments(path)
    assert len(exchanged) == 1
    for name, value in alone.named_buffers():
        torch.testing.assert_close(one_of_two.get_buffer(name), value)


def buffers(transition: Transition) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in transition.named_buffers()}


def assert_same_buffers(transition: Transition, expected: dict[str, Tensor]) -> None:
    for name, value in transition.named_buffers():
        torch.testing.assert_close(value, expected[name])


def test_steps_without_a_weight_do_not_count():
    """As if the paths ended before, or as if a path were not there."""
    weighted, plain = (transition_of(DiffusionTransition, 2) for _ in range(2))
    path, weight = posterior(20, 6, latent_dim=2), torch.ones(20, 6)
    weight[:, 4:] = 0
    weight[3] = 0
    for part in path:
        part[:, 4:] += 100
        part[3] += 100
    weighted.track_moments(path, weight)
    rows = [*range(3), *range(4, 20)]
    plain.track_moments(PosteriorPath(*(part[rows, :4] for part in path)))
    assert_same_buffers(weighted, buffers(plain))


def test_a_weight_of_two_counts_as_two_steps():
    weighted, plain = (transition_of(DiffusionTransition, 2) for _ in range(2))
    path, weight = posterior(20, 6, latent_dim=2), torch.ones(20, 6)
    weight[7] = 2
    weighted.track_moments(path, weight)
    rows = [*range(20), 7]
    plain.track_moments(PosteriorPath(*(part[rows] for part in path)))
    assert_same_buffers(weighted, buffers(plain))


def test_what_no_step_counts_for_is_left_as_it_is():
    """The first step, the others, or all."""
    transition = transition_of(DiffusionTransition, 2)
    transition.track_moments(posterior(20, 6, latent_dim=2))
    path, weight = posterior(20, 6, latent_dim=2), torch.ones(20, 6)
    for steps, kept in [(slice(1), [0]), (slice(1, None), [1]), (slice(None), [0, 1])]:
        before = buffers(transition)
        transition.track_moments(path, weight.index_fill(1, torch.arange(6)[steps], 0))
        after = buffers(transition)
        same = before["squared_scale"] == after["squared_scale"]
        assert same.nonzero().flatten().tolist() == kept
        for name in ("squares", "products", "drift"):
            assert torch.equal(before[name], after[name]) == (1 in kept)
        assert (before["num_updates"] == after["num_updates"]) == (kept == [0, 1])


def test_processes_share_what_counts(monkeypatch):
    """However few steps count in one of them: each step counts the same."""
    alone, one_of_two = (transition_of(DiffusionTransition, 2) for _ in range(2))
    path, weight = posterior(20, 6, latent_dim=2), torch.rand(20, 6).round()
    weight[:10, 1:] = 0
    alone.track_moments(path, weight)
    sums = []

    def all_reduce(value: Tensor) -> None:
        sums.append(value.clone())
        value.copy_(sum(sums))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    # what the other one has, and then both
    transition_of(DiffusionTransition, 2).track_moments(path.rows(slice(10)), weight[:10])
    one_of_two.track_moments(path.rows(slice(10, None)), weight[10:])
    assert_same_buffers(one_of_two, buffers(alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scale_in_half_precision_follows_a_change(dtype):
    """By steps that are too small for 16 bits."""
    half = transition_of(DiffusionTransition, 2).to(dtype)
    single = transition_of(DiffusionTransition, 2).to(dtype).float()
    assert half.drift.dtype == dtype and half.scale(half.drift).dtype == dtype
    for size, count in ((1.0, 100), (1.1, 300)):
        path = PosteriorPath(*(size * part for part in posterior(20, 6, latent_dim=2)))
        path = PosteriorPath(*(part.to(dtype) for part in path))
        for _ in range(count):
            half.track_moments(path)
            single.track_moments(PosteriorPath(*(part.float() for part in path)))
    for name in ("squared_scale", "squares", "products"):
        torch.testing.assert_close(half.get_buffer(name), single.get_buffer(name))


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_paths_that_are_not_finite_leave_no_trace(value):
    transition = transition_of(DiffusionTransition, 2)
    path = posterior(20, 4, latent_dim=2)
    transition.track_moments(path)
    before = {name: x.clone() for name, x in transition.named_buffers()}
    path.z[0, 1, 0] = value
    transition.track_moments(path)
    for name, x in transition.named_buffers():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_kl_leaves_the_scale_as_it_is(kind):
    transition = transition_of(kind)
    before = scales(transition)
    path = posterior(5, 4)
    transition.kl(path, no_inputs(path.z))
    torch.testing.assert_close(scales(transition), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_one_step_windows_leave_the_scale_of_other_steps(kind):
    transition = transition_of(kind)
    before = scales(transition)
    path = posterior(50, 1)
    transition.track_moments(path)
    after = scales(transition)
    torch.testing.assert_close(after[0] ** 2, (path.mean**2).mean() + (path.std**2).mean())
    torch.testing.assert_close(after[1], before[1])


@pytest.mark.parametrize("kind", BOTH)
def test_scale_is_saved_with_the_weights(kind):
    trained, fresh = transition_of(kind).train(), transition_of(kind).train()
    one, other = posterior(50, 6), posterior(50, 6)
    trained.track_moments(one)
    assert (scales(fresh) != scales(trained)).all()
    fresh.load_state_dict(trained.state_dict())
    # also how many values went into it: the next one counts as much in both
    for transition in (trained, fresh):
        transition.track_moments(other)
    torch.testing.assert_close(scales(fresh), scales(trained), rtol=0, atol=0)


# --- what it learns -------------------------------------------------------------------


def test_gaussian_transition_learns_a_linear_system():
    """As least squares on the same data does."""
    transition = transition_of(GaussianTransition)
    z = autoregression(256, 16)
    train(transition, lambda: z, steps=300)

    before, after = z[:, :-1].reshape(-1, 1), z[:, 1:].reshape(-1, 1)
    design = torch.cat([torch.ones_like(before), before], dim=-1)
    fitted = design @ torch.linalg.lstsq(design, after).solution
    residual = (after - fitted).std()

    history = history_of(transition, before)
    with torch.no_grad():
        mean = transition.mean(history, no_inputs(before))
        draws = transition.sample(history, no_inputs(before), num_solver_steps=1)
    # A line has 2 of 3840 degrees of freedom and a perceptron tens: 0.1 of the residual
    # is the error of 38 of them.
    assert (mean - fitted).square().mean().sqrt() < 0.1 * residual
    slope = torch.linalg.lstsq(design, mean).solution[1]
    assert slope.item() == pytest.approx(SLOPE, abs=0.1)
    # a fit of the std to within a twentieth, and the draws about it
    variance = residual.square()
    assert_mean((draws - mean).square(), variance, allowance=0.1 * variance.item())


@pytest.fixture(scope="module")
def trained_diffusion() -> Transition:
    transition = transition_of(DiffusionTransition, hidden_size=32)
    train(transition, lambda: autoregression(256, 4), steps=400)
    return transition


@pytest.mark.parametrize("last", [None, 0.0, 0.5, 1.0])
def test_diffusion_transition_learns_a_linear_system(trained_diffusion, last):
    """Draws and the mean have the moments of the system, after few updates."""
    torch.manual_seed(1)
    transition, num_rows = trained_diffusion, 10_000
    z = torch.full((num_rows, 1), last or 0.0).double()
    history = history_of(transition, z)
    if last is None:
        history = transition.context.init(num_rows, z)
    with torch.no_grad():
        mean = transition.mean(history, no_inputs(z))[0]
        draws = transition.sample(history, no_inputs(z), num_solver_steps=16)
    # what so short a training leaves: a quarter of the std, a third of the variance
    expected = 0.5 if last is None else 0.2 + SLOPE * last
    assert mean.item() == pytest.approx(expected, abs=STD / 4)
    assert_mean(draws, mean, allowance=STD / 4)
    assert_mean((draws - draws.mean()).square(), STD**2, allowance=STD**2 / 3)
