"""The state-space model as a whole: gaps, layouts, its ELBO and its forecasts."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from darts_ddssm.ssm.context import History
from darts_ddssm.ssm.particles import Particles, States
from darts_ddssm.ssm.state_space import (
    AFTER_GAP_WEIGHT,
    NUM_BRANCHES,
    StateSpaceModel,
    _teaching_steps,
    weights_of_kl,
)
from darts_ddssm.ssm.window import Window
from tests.helpers import assert_mean, assert_same_mean, randomised

each_model = pytest.mark.parametrize(
    "transition, order",
    [("diffusion", 1), ("diffusion", None), ("gaussian", 2), ("gaussian", None)],
)

NUM_COMPONENTS, LATENT_DIM, INPUT_SIZE, PAST_SIZE = 2, 3, 1, 2


def model_of(transition: str, order: int | None) -> StateSpaceModel:
    torch.manual_seed(0)
    model = StateSpaceModel(
        num_components=NUM_COMPONENTS,
        num_parameters=2,
        input_size=INPUT_SIZE,
        past_size=PAST_SIZE,
        latent_dim=LATENT_DIM,
        transition_order=order,
        transition=transition,
        hidden_size=8,
        reach=4,
        num_context=3,
    )
    return randomised(model).eval()


def window_of(num_series: int = 2, num_steps: int = 6) -> Window:
    """Series that differ more and more, with gaps."""
    torch.manual_seed(1)
    level = 3.0 * torch.arange(num_series).view(-1, 1, 1)

    def values(size: int) -> Tensor:
        return (level + torch.randn(num_series, num_steps, size)).double()

    x = values(NUM_COMPONENTS)
    observed = (torch.rand(x.shape) > 0.3).double()
    u, past = values(INPUT_SIZE), values(PAST_SIZE)
    return Window(x, observed, u, past, weight=torch.ones_like(x))


def elbo_terms(
    model: StateSpaceModel, window: Window, num_encoder_rows: int = 0
) -> tuple[Tensor, Tensor]:
    return model.elbo_terms(window, model.sample_posterior(window), num_encoder_rows)


def series_of(window: Window, i: int) -> Window:
    return Window(*(x[i : i + 1] for x in window))


def future_inputs(num_series: int = 2, num_steps: int = 4) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(num_series, num_steps, INPUT_SIZE + PAST_SIZE).double()


def no_weight(z: Tensor, series: Tensor, t: int) -> Tensor:
    """The log-density of an observation that says nothing of its state."""
    return z.new_zeros(len(z))


def states_of(model: StateSpaceModel, window: Window, num_samples: int) -> States:
    return model.sample_states(model.encode(window), window, no_weight, num_samples, 5)


@torch.no_grad()
def forecast(
    model: StateSpaceModel,
    window: Window,
    inputs: Tensor,
    num_samples: int,
    mean: bool = False,
) -> tuple[History, Tensor]:
    """Histories of S * B paths and the paths that follow, (S, B, n, D)."""
    if mean:
        history = model.mean_history(model.encode(window), window, 5).repeat(num_samples)
    else:
        history = states_of(model, window, num_samples).history
    path = model.roll_out(
        history, inputs.repeat(num_samples, 1, 1), num_solver_steps=5, mean=mean
    )
    return history, path.unflatten(0, (num_samples, len(inputs)))


# --- gaps -----------------------------------------------------------------------------


@each_model
def test_values_in_gaps_never_matter(transition, order):
    model, window = model_of(transition, order), window_of()

    def terms(x: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        return elbo_terms(model, window._replace(x=x))

    expected = terms(window.x)
    gaps = window.observed == 0
    elsewhere = terms(window.x.masked_fill(gaps, 1e6))
    torch.testing.assert_close(elsewhere, expected, rtol=0, atol=0)
    # a value that is observed does matter, to both
    observed = terms(window.x.masked_fill(~gaps, 1.0))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(observed, expected, strict=True))


def test_a_gap_is_not_a_value_of_zero():
    model, window = model_of("gaussian", 1), window_of()
    zeros = window._replace(x=torch.zeros_like(window.x))
    seen = zeros._replace(observed=torch.ones_like(window.x))
    assert (model.encode(zeros) - model.encode(seen)).abs().max() > 1e-3


def test_next_observations():
    x = torch.arange(1.0, 11.0).view(1, 5, 2)
    observed = torch.tensor([[[0, 1], [0, 0], [1, 0], [0, 0], [0, 1]]])
    window = window_of()._replace(x=x, observed=observed)
    expected = [[5.0, 2.0], [5.0, 10.0], [5.0, 10.0], [0.0, 10.0], [0.0, 10.0]]
    assert window.next_observed[0].tolist() == expected


def test_a_guess_sees_what_comes_after_the_gap_past_the_gru():
    """The GRU alone, whose output is bounded, does not tell large values apart."""
    model, window = model_of("gaussian", 1), window_of(1)
    observed = torch.ones_like(window.x)
    observed[:, 2:4, 0] = 0
    at_gap = []
    for value in (1e6, 2e6):
        x = window.x.clone()
        x[:, 4] = value
        at_gap.append(model.encode(window._replace(x=x, observed=observed))[2:4])
    change = (at_gap[1] - at_gap[0]).abs()
    assert (change.amax(-1) > 1e3).all()


def hidden_and_shown() -> tuple[Window, Window]:
    """The same data, two steps of which are hidden in the first."""
    shown = window_of()
    observed = shown.observed.clone()
    observed[:, 2:4] = 0
    return shown._replace(observed=observed), shown


@each_model
def test_posterior_matching_is_a_robust_kl_along_paths(transition, order):
    model, (hidden, shown) = model_of(transition, order), hidden_and_shown()
    torch.manual_seed(0)
    found = model.posterior_matching(hidden, shown)
    torch.manual_seed(0)
    path = model.sample_posterior(hidden)
    floor, target = model.transition.min_std(6), model.encode(shown)
    previous = torch.zeros_like(path.z[:, 0])
    for t in range(6):
        p = Normal(*model.encoder.moments(previous, target[t], floor[t]))
        q = Normal(path.mean[:, t], path.std[:, t])
        kl = torch.distributions.kl_divergence(q, p).sum(-1)
        expected = LATENT_DIM * torch.log(1 + kl / LATENT_DIM)
        expected = expected * hidden.until_last_observation[:, t]
        torch.testing.assert_close(found[:, t], expected)
        previous = path.z[:, t]
    assert found.sum() > 0.1
    torch.testing.assert_close(
        model.posterior_matching(shown, shown), torch.zeros_like(found)
    )


def test_posterior_matching_teaches_the_encoder_to_guess():
    """The other networks, and the posterior of what is shown, stay as they are."""
    model, (hidden, shown) = model_of("diffusion", None), hidden_and_shown()
    model.posterior_matching(hidden, shown).sum().backward()
    of_encoder, others = [], []
    for name, parameter in model.named_parameters():
        (of_encoder if name.startswith("encoder") else others).append(parameter.grad)
    assert all(grad is None for grad in others)
    assert all(grad is not None and grad.isfinite().all() for grad in of_encoder)


def first_steps(window: Window, num_steps: int) -> Window:
    return Window(*(x[:, :num_steps] for x in window))


@each_model
def test_where_nothing_is_observed_the_transition_takes_over(transition, order):
    """In the first series at the last two steps, in the second nowhere."""
    model, window = model_of(transition, order), window_of()
    observed = torch.ones_like(window.observed)
    observed[0, 4:] = 0.0
    window = window._replace(observed=observed)
    projection = model.encode(window)
    drawn = model.mean_history(projection, window, 5).previous
    before = model.mean_history(projection[:4], first_steps(window, 4), 5)
    path = model.roll_out(before, window.transition_inputs[:, 4:], 4, mean=True)
    torch.testing.assert_close(drawn[0], path[0, -1])
    full = window._replace(observed=torch.ones_like(observed))
    encoded = model.mean_history(projection, full, 5).previous
    torch.testing.assert_close(drawn[1], encoded[1])
    assert (encoded[0] - path[0, -1]).abs().max() > 1e-3


@each_model
def test_kl_ends_with_the_observations(transition, order):
    """Not at a gap before them."""
    model, window = model_of(transition, order), window_of()
    observed = torch.ones_like(window.observed)
    observed[0, 4:] = 0.0
    observed[1, 2:5] = 0.0
    _, kl = elbo_terms(model, window._replace(observed=observed))
    assert (kl[0, 4:] == 0).all() and (kl[0, :4] != 0).all() and (kl[1] != 0).all()


# --- layouts --------------------------------------------------------------------------


@each_model
def test_forecast_rows_go_sample_by_sample(transition, order):
    model, window, u = model_of(transition, order), window_of(), future_inputs()
    history, path = forecast(model, window, u, num_samples=5, mean=True)
    assert all(len(x) == 5 * 2 for x in history)
    assert history.previous.shape == (5 * 2, LATENT_DIM)
    assert path.shape == (5, 2, 4, LATENT_DIM)

    last = history.previous.unflatten(0, (5, 2))
    # every sample of a series is the same mean, and the series are far apart
    torch.testing.assert_close(last, last[:1].expand_as(last))
    torch.testing.assert_close(path, path[:1].expand_as(path))
    assert (last[:, 0] - last[:, 1]).abs().max() > 0.1


@each_model
def test_mean_forecast_does_not_depend_on_the_other_series(transition, order):
    model, window, u = model_of(transition, order), window_of(), future_inputs()
    history, path = forecast(model, window, u, num_samples=3, mean=True)
    last = history.previous.unflatten(0, (3, 2))
    for i in range(2):
        alone = forecast(model, series_of(window, i), u[i : i + 1], 1, mean=True)
        torch.testing.assert_close(last[:1, i], alone[0].previous)
        torch.testing.assert_close(path[:1, i], alone[1][:, 0])


@each_model
def test_sampled_forecast_does_not_depend_on_the_other_series(transition, order):
    model, window, u = model_of(transition, order), window_of(), future_inputs()
    history, path = forecast(model, window, u, num_samples=4000)
    last = history.previous.unflatten(0, (4000, 2))
    for i in range(2):
        alone = forecast(model, series_of(window, i), u[i : i + 1], 4000)
        for drawn, expected in [
            (last[:, i], alone[0].previous),
            (path[:, i], alone[1][:, 0]),
        ]:
            assert_same_mean(drawn, expected)
            centre = expected.mean(0)
            assert_same_mean((drawn - centre).square(), (expected - centre).square())


@each_model
def test_filtering_ends_where_posterior_paths_do(transition, order):
    """Step by step, many samples at once, and by the fused path: one distribution."""
    model, window = model_of(transition, order), series_of(window_of(), 1)
    copies = Window(*(x.repeat(4000, 1, 1) for x in window))
    with torch.no_grad():
        z = model.sample_posterior(copies).z
        last = states_of(model, window, 4000).history.previous
    assert_same_mean(last, z[:, -1])
    centre = z[:, -1].mean(0)
    assert_same_mean((last - centre).square(), (z[:, -1] - centre).square())


@each_model
@pytest.mark.parametrize("num_steps", [1, 3])
def test_branching_histories_are_draws_of_the_posterior(transition, order, num_steps):
    """In both series, all of their parts, though some share a past."""
    model, window = model_of(transition, order), window_of(2, num_steps)
    window = window._replace(observed=torch.ones_like(window.observed))
    num_samples, u = 8000, future_inputs()[:, 0]
    projection = model.encode(window)
    with torch.no_grad():
        found = model.branching_histories(projection, window, num_samples)
        expected = states_of(model, window, num_samples).history

        def parts_of(history: History) -> Tensor:
            context = model.transition.context.output(history, u.repeat(num_samples, 1))
            parts = torch.cat([history.previous, history.started, context], dim=-1)
            return parts.unflatten(0, (num_samples, 2))

    found, expected = parts_of(found), parts_of(expected)
    assert len(found.flatten(0, 1)[:, :LATENT_DIM].unique(dim=0)) == 2 * (
        num_samples if num_steps > 1 else num_samples // NUM_BRANCHES
    )
    # those that share a past are not independent, but their means are
    centre, found = expected.mean(0), found.unflatten(0, (NUM_BRANCHES, -1))
    assert_same_mean(found.mean(0), expected)
    assert_same_mean((found - centre).square().mean(0), (expected - centre).square())


@pytest.mark.parametrize("first_has_gap", [False, True])
def test_a_gap_in_one_series_costs_the_others_nothing(monkeypatch, first_has_gap):
    """They have no particles, and are drawn as they are alone."""
    model, window, u = model_of("diffusion", None), window_of(), future_inputs()
    complete = torch.tensor([not first_has_gap, first_has_gap])
    observed = torch.ones_like(window.observed)
    observed[~complete, 2:4] = 0
    window, given = window._replace(observed=observed), []

    class Spy(Particles):
        def run(self) -> None:
            given.append(self.num_series)
            super().run()

    monkeypatch.setattr("darts_ddssm.ssm.particles.Particles", Spy)
    history, path = forecast(model, window, u, num_samples=4000)
    assert given and set(given) == {1}
    for i in range(2):
        alone = forecast(model, series_of(window, i), u[i : i + 1], 4000)
        own = history.map(lambda x, i=i: x.unflatten(0, (4000, 2))[:, i])
        assert_same_mean(own.previous, alone[0].previous)
        assert_same_mean(own.memory, alone[0].memory)
        assert_same_mean(path[:, i], alone[1][:, 0])


# --- types and sizes ------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [1, 6])
def test_any_type_and_length(transition, order, dtype, num_steps):
    model = model_of(transition, order).to(dtype).train()
    window = Window(*(x.to(dtype) for x in window_of(num_steps=num_steps)))
    parameters, kl = elbo_terms(model, window)
    assert parameters.shape == (2, num_steps, NUM_COMPONENTS, 2)
    assert kl.shape == (2, num_steps)
    (parameters.square().sum() + kl.sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            # what is for later steps alone: one step has no use for it
            assert num_steps == 1, name
        else:
            assert parameter.grad.isfinite().all(), name
    _, path = forecast(model, window, future_inputs().to(dtype), num_samples=3)
    assert parameters.dtype == kl.dtype == path.dtype == dtype
    assert path.isfinite().all()


# --- the ELBO -------------------------------------------------------------------------

SLOPE, STD, NOISE_STD, LENGTH = 0.8, 0.6, 0.3, 10


def exact_marginal() -> MultivariateNormal:
    """x_t = z_t + noise of a stationary z_t = SLOPE z_{t-1} + STD w_t."""
    t = torch.arange(LENGTH).double()
    variance = STD**2 / (1 - SLOPE**2)
    covariance = variance * SLOPE ** (t - t[:, None]).abs()
    covariance += NOISE_STD**2 * torch.eye(LENGTH)
    return MultivariateNormal(torch.zeros(LENGTH).double(), covariance)


def elbo(model: StateSpaceModel, x: Tensor) -> Tensor:
    """Estimates of the ELBO of each of the series, (B, T) -> (B,)."""
    x = x.unsqueeze(-1)
    ones, none = torch.ones_like(x), x[..., :0]
    window = Window(x, ones, none, none, weight=ones)
    path = model.sample_posterior(window)
    if model.training:
        model.transition.track_moments(path)
    parameters, kl = model.elbo_terms(window, path)
    mean, raw_std = parameters.unbind(-1)
    std = torch.nn.functional.softplus(raw_std)
    return (Normal(mean, std).log_prob(x).sum(-1) - kl).sum(-1)


@pytest.mark.parametrize("transition", ["diffusion", "gaussian"])
def test_trained_elbo_is_just_under_the_exact_log_likelihood(transition):
    torch.manual_seed(0)
    exact = exact_marginal()
    model = StateSpaceModel(
        num_components=1,
        num_parameters=2,
        input_size=0,
        past_size=0,
        latent_dim=1,
        transition_order=1,
        transition=transition,
        hidden_size=16,
        reach=4,
        num_context=3,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=300)
    for _ in range(300):
        loss = -elbo(model, exact.sample((64,)).float()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()

    model.double().eval()
    x = exact.sample((4000,))
    with torch.no_grad():
        off = (elbo(model, x) - exact.log_prob(x)) / LENGTH
    # between 0.1 nats per value under it and 0, beyond the error
    assert_mean(off, -0.05, allowance=0.05)


# --- rows for the encoder alone -------------------------------------------------------


@each_model
def test_first_rows_teach_the_encoder_alone(transition, order):
    """The other networks learn from the other rows, and from them as ever."""
    model, window = model_of(transition, order), window_of(num_series=5)

    def gradients(window: Window, num_encoder_rows: int) -> dict[str, Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        raw, kl = elbo_terms(model, window, num_encoder_rows)
        (raw[:2].square().sum() + kl[:2].sum()).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    for name, gradient in gradients(window, num_encoder_rows=2).items():
        learns = name.startswith("encoder")
        assert (gradient is not None and gradient.any()) == learns, name
    for name, gradient in gradients(window, num_encoder_rows=0).items():
        assert gradient is not None and gradient.any(), name


def test_who_learns_does_not_change_the_elbo():
    model, window = model_of("gaussian", 2), window_of(num_series=5)
    terms = []
    for num_encoder_rows in (0, 2, 5):
        torch.manual_seed(3)
        terms.append(elbo_terms(model, window, num_encoder_rows))
    for raw, kl in terms[1:]:
        torch.testing.assert_close(raw, terms[0][0])
        torch.testing.assert_close(kl, terms[0][1])


@pytest.mark.parametrize(
    "observed, teaching",
    [
        # a gap, and the step after it
        ("1111011111", "1111001111"),
        ("0111111111", "0011111111"),
        # every second step: guesses are all there is
        ("1010101010", "1111111111"),
        ("1111111111", "1111111111"),
    ],
)
def test_the_transition_learns_from_steps_that_are_observed(observed, teaching):
    share = torch.tensor([[float(x) for x in observed]]).repeat(50, 1)
    expected = torch.tensor([[x == "1" for x in teaching]]).repeat(50, 1)
    assert torch.equal(_teaching_steps(share), expected)


@pytest.mark.parametrize(
    "observed, paid",
    [
        # by an observation after a gap little
        ("1111001111", "111100l111"),
        ("0111111111", "0l11111111"),
        # after guesses is where all observations are
        ("1010101010", "1111111111"),
        ("1111111111", "1111111111"),
    ],
)
def test_the_posterior_hardly_pays_for_its_guesses(observed, paid):
    share = torch.tensor([[float(x) for x in observed]])
    weights = {"0": 0.0, "l": AFTER_GAP_WEIGHT, "1": 1.0}
    expected = torch.tensor([[weights[x] for x in paid]])
    torch.testing.assert_close(weights_of_kl(share, share == 0), expected)
    # a value that is masked is known
    none = torch.zeros_like(share, dtype=torch.bool)
    expected = torch.where(share == 0, 1.0, expected)
    torch.testing.assert_close(weights_of_kl(share, none), expected)


def test_it_pays_for_the_share_that_is_no_guess():
    share = torch.tensor([[1.0, 0.5, 0.5, 1.0, 1.0]])
    half = 0.5 * (1 - AFTER_GAP_WEIGHT)
    expected = torch.tensor([[1.0, 1.0, 1 - half / 2, 1 - half, 1.0]])
    torch.testing.assert_close(weights_of_kl(share, share == 0), expected)


def test_a_step_of_which_a_part_is_observed_teaches_as_often():
    torch.manual_seed(0)
    share = torch.tensor([1.0, 0.3, 0.3, 1.0, 0.8, 0.6, 1.0]).repeat(20_000, 1)
    expected = torch.tensor([1.0, 0.3, 0.3, 0.3, 0.8, 0.6, 0.6])
    assert_mean(_teaching_steps(share).double(), expected.double())


# --- states ---------------------------------------------------------------------------


@each_model
@torch.no_grad()
def test_states_after_the_last_observation_are_a_forecast(transition, order):
    """Given the whole window, one series of which ends before it."""
    model, window = model_of(transition, order), window_of(num_series=2)
    observed = torch.ones_like(window.observed)
    observed[0, 4:] = 0.0
    window = window._replace(observed=observed)
    torch.manual_seed(3)
    z = states_of(model, window, 2000).path.unflatten(0, (2000, 2))
    # the first series, as far as it goes, and rolled on
    known = Window(*(x[:1, :4] for x in window))
    history = states_of(model, known, 2000).history
    inputs = window.transition_inputs[:1, 4:].repeat(2000, 1, 1)
    ahead = model.roll_out(history, inputs, num_solver_steps=5)
    # what the encoder is told of missing steps bends the known ones a little
    spread = ahead.std(0)
    assert ((z[:, 0, 4:].mean(0) - ahead.mean(0)).abs() < 0.5 * spread).all()
    torch.testing.assert_close(z[:, 0, 4:].std(0), spread, rtol=0.3, atol=0)
    # the other series ends in q
    encoded = model.sample_posterior(window, 2000).z.unflatten(0, (2000, 2))
    assert_same_mean(z[:, 1], encoded[:, 1])


# --- likelihood -----------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("transition", ["diffusion", "gaussian"])
def test_predictive_densities_against_a_grid(transition):
    """Those of a short series with a gap, by the forward recursion on a grid of states."""
    torch.manual_seed(0)
    model = StateSpaceModel(
        num_components=1,
        num_parameters=1,
        input_size=0,
        past_size=0,
        reach=4,
        num_context=3,
        latent_dim=1,
        transition_order=1,
        transition=transition,
        hidden_size=8,
    )
    model = randomised(model).eval().requires_grad_(False)
    model.transition.squared_scale.copy_(torch.tensor([1.0, 0.5]))
    x = torch.tensor([0.3, -0.5, 1.0, 0.2]).double()
    seen = torch.tensor([1.0, 1.0, 0.0, 1.0]).double()

    def log_emission(z: Tensor, series: Tensor, t: int) -> Tensor:
        # a narrow Gaussian about what the decoder says
        location = model.decoder(z.unsqueeze(1), z.unsqueeze(1)[..., :0])[:, 0, 0, 0]
        return Normal(location, 0.5).log_prob(x[t])

    def cumulative(z: Tensor, series: Tensor, t: int) -> Tensor:
        location = model.decoder(z.unsqueeze(1), z.unsqueeze(1)[..., :0])[:, 0, 0, 0]
        return Normal(location, 0.5).cdf(x[t]).unsqueeze(-1)

    grid = torch.linspace(-6, 6, 161).double()
    pairs = torch.cartesian_prod(grid, grid).unsqueeze(-1)
    log_p = model.transition.log_prob(pairs, pairs[..., :0]).view(161, 161, 2)
    log_move, log_weight = log_p[..., 1], log_p[:, 0, 0]
    log_cell, exact, exact_transforms = (grid[1] - grid[0]).log(), [], []
    for t in range(4):
        before = log_weight.logsumexp(0)
        below = cumulative(grid.view(-1, 1), grid, t).squeeze(-1)
        exact_transforms.append((log_weight.softmax(0) * below).sum())
        if seen[t]:
            log_weight = log_weight + log_emission(grid.view(-1, 1), grid, t)
        exact.append(log_weight.logsumexp(0) - before)
        log_weight = (log_weight.unsqueeze(1) + log_move).logsumexp(0) + log_cell

    x, seen = (part.view(1, -1, 1).repeat(10, 1, 1) for part in (x, seen))
    window = Window(x, seen, x[..., :0], x[..., :0], torch.ones_like(x))
    x = x[0, :, 0]
    functions = log_emission, cumulative
    found, transforms = model.predictive(window, *functions, 300, num_solver_steps=12)
    for estimates, number in zip(transforms[..., 0].T, exact_transforms, strict=True):
        assert_mean(estimates, number, allowance=0.01)
    assert (found[:, 2] == 0).all()
    # the logarithm of an unbiased estimate is a little low
    for estimates, number in zip(found.T, exact, strict=True):
        assert_mean(estimates + estimates.var() / 2, number, allowance=0.01)
    # many samples know the number well, few do not
    assert found.std(0).max() < 0.1
    few, none = model.predictive(window, log_emission, None, 2, num_solver_steps=12)
    assert none.shape == (10, 4, 0)
    assert few.std(0).max() > 0.1


@torch.no_grad()
def test_a_transform_is_a_probability():
    """Whatever the weights of 300 paths add up to in single precision."""
    model = model_of("gaussian", 1).float()
    window = Window(*(part.float() for part in window_of(num_series=50)))

    def log_emission(z: Tensor, series: Tensor, t: int) -> Tensor:
        return -0.01 * z.square().sum(-1)

    def certain(z: Tensor, series: Tensor, t: int) -> Tensor:
        return torch.ones_like(z[:, :1])

    found = model.predictive(window, log_emission, certain, 300, num_solver_steps=2)
    assert found.transform.max() <= 1
    torch.testing.assert_close(found.transform, torch.ones_like(found.transform))


@torch.no_grad()
@pytest.mark.parametrize("num_before", [0, 3])
def test_a_long_roll_out_starts_again_from_its_last_states(num_before):
    """Whatever lies further back than a training window, the transition has not seen."""
    model = model_of("gaussian", None)
    inputs = future_inputs(num_steps=9)
    context = model.transition.context
    z = torch.randn(2, num_before, LATENT_DIM).double()
    history = context.init(2, inputs)
    if num_before:
        u = torch.randn(2, num_before, INPUT_SIZE + PAST_SIZE).double()
        history = context.from_path(z, u)
    how = {"num_solver_steps": 5, "mean": True}
    path = model.roll_out(history, inputs, **how, num_before=num_before)
    # windows have four states and input chunks three: it starts again at the first of
    # these steps, and at each one after it
    first = 4 if num_before == 0 else 3
    plain = model.roll_out(history, inputs[:, :first], **how)
    torch.testing.assert_close(path[:, :first], plain)
    for t in range(first, 9):
        again = context.from_path(path[:, t - 3 : t], inputs[:, t - 3 : t])
        one = model.roll_out(again, inputs[:, t : t + 1], **how)
        torch.testing.assert_close(path[:, t : t + 1], one)
    # a transition of finite order has nothing to forget
    model = model_of("gaussian", 1)
    history = model.transition.context.init(2, inputs)
    some = [model.roll_out(history, inputs, **how, num_before=n) for n in (0, 100)]
    torch.testing.assert_close(*some)
