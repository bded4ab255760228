"""The posterior's recursion, its handwritten derivative and how it starts out."""

import pytest
import torch
from torch import Tensor

from darts_ddssm.ssm.encoder import Encoder, _PosteriorPath
from tests.helpers import float64, randomised

NUM_SERIES, NUM_STEPS, NUM_COMPONENTS, NUM_FEATURES, LATENT_DIM = 3, 7, 1, 4, 2
# steps of a training window, as many as any test has but one
REACH = 150
FLOOR = torch.linspace(0.01, 0.3, NUM_STEPS, dtype=torch.float64)


def random_encoder(std: float = 0.3) -> Encoder:
    torch.manual_seed(0)
    return randomised(
        Encoder(NUM_COMPONENTS, NUM_FEATURES, LATENT_DIM, hidden_size=5, reach=REACH), std
    )


def features(num_series: int = NUM_SERIES, num_steps: int = NUM_STEPS) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(num_series, num_steps, NUM_FEATURES).double()


def path_by_steps(
    encoder: Encoder, projection: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `Encoder.path` returns, by automatic differentiation of a plain loop."""
    z, steps = torch.zeros_like(noise[:, 0]), []
    for t in range(NUM_STEPS):
        mean, std = encoder.moments(z, projection[t], FLOOR[t])
        z = mean + std * noise[:, t]
        steps.append((z, mean, std))
    z, mean, std = (torch.stack(x, 1) for x in zip(*steps, strict=True))
    return z, mean, std


# --- the path and its derivative ------------------------------------------------------


def test_handwritten_derivative_is_the_numerical_one():
    encoder = random_encoder(std=1.0)
    projection = encoder(features()).detach().requires_grad_()
    noise = torch.randn(NUM_STEPS, NUM_SERIES, LATENT_DIM).double()
    weights = encoder._weights
    assert torch.autograd.gradcheck(
        _PosteriorPath.apply, (projection, noise, FLOOR, *weights)
    )


def test_path_and_its_gradients_are_those_of_a_plain_loop():
    encoder = random_encoder()
    x, after = features().requires_grad_(), features()[..., :NUM_COMPONENTS]
    wanted = [x, *encoder.parameters()]

    def loss(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        # of all three, at every step with a weight of its own
        weight = torch.linspace(1, 2, z.numel()).double().view_as(z)
        return (weight * (z.sin() + mean.square() + std.log())).sum()

    drawn = encoder.sample_path(encoder(x, after), FLOOR)
    z, mean, std = (each.detach() for each in drawn)
    looped = path_by_steps(encoder, encoder(x, after), noise=(z - mean) / std)
    torch.testing.assert_close(looped, drawn)
    torch.testing.assert_close(
        torch.autograd.grad(loss(*drawn), wanted),
        torch.autograd.grad(loss(*looped), wanted),
    )


@pytest.mark.parametrize("num_samples", [1, 4])
def test_without_derivatives_paths_are_the_same(num_samples):
    """Several paths of a window share its projection, as copies of it would."""
    encoder = random_encoder()
    projection = encoder(features())
    torch.manual_seed(2)
    expected = encoder.sample_path(projection, FLOOR, num_samples)
    assert expected.z.shape == (num_samples * NUM_SERIES, NUM_STEPS, LATENT_DIM)
    with torch.no_grad():
        torch.manual_seed(2)
        drawn = encoder.sample_path(projection, FLOOR, num_samples)
        copies = projection.repeat(1, num_samples, 1)
        torch.manual_seed(2)
        of_copies = encoder.sample_path(copies, FLOOR)
    torch.testing.assert_close(drawn, of_copies)
    torch.testing.assert_close(drawn, type(drawn)(*(x.detach() for x in expected)))


def test_moments_are_in_full_precision():
    """Those of a step are as precise as those along a path."""
    torch.manual_seed(0)
    encoder = Encoder(NUM_COMPONENTS, NUM_FEATURES, LATENT_DIM, hidden_size=5, reach=REACH)
    torch.nn.init.normal_(encoder.out.weight)
    step = torch.randn(9, LATENT_DIM), torch.randn(9, 10), torch.tensor(0.01)
    expected = encoder.moments(*step)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.moments(*step), expected, rtol=0, atol=0)


def test_std_is_never_under_its_floor():
    encoder = random_encoder(std=10.0)  # drives some stds to nothing but the floor
    _, _, std = encoder.sample_path(encoder(features(num_series=200)), FLOOR)
    assert (std >= FLOOR.unsqueeze(-1)).all()
    torch.testing.assert_close(std.amin((0, 2)), FLOOR)


def test_noise_is_standard_and_independent():
    encoder = random_encoder()
    z, mean, std = encoder.sample_path(encoder(features(num_series=4000)), FLOOR)
    # (B, T, D) -> (B, T * D)
    noise = ((z - mean) / std).flatten(1)
    # A sample covariance is off by 1 / sqrt(B), a variance by sqrt(2 / B).
    allowed = 5 * (2 / 4000) ** 0.5
    torch.testing.assert_close(
        noise.T.cov(), torch.eye(noise.shape[1]).double(), atol=allowed, rtol=0
    )


# --- what a step depends on -----------------------------------------------------------


@pytest.mark.parametrize("t", [0, 3, NUM_STEPS - 1])
def test_a_step_sees_all_of_the_data(t):
    """Where a value is missing, those before it count as do those after."""
    encoder, x = random_encoder(), features()
    changed = x.clone()
    changed[:, t] += 1.0
    # (T, B, 2 * H) -> (T,)
    off = (encoder(changed) - encoder(x)).abs().amax((1, 2))
    assert (off > 0).all()


def test_series_of_a_batch_are_apart():
    encoder, x = random_encoder(), features()
    alone = torch.cat([encoder(x[i : i + 1]) for i in range(NUM_SERIES)], dim=1)
    torch.testing.assert_close(encoder(x), alone)


# --- long series ----------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [6, 7, 8, 9, 23])
def test_along_a_long_series_it_sees_windows_of_its_training(num_steps):
    """Each step in the window whose middle is nearest, and the first as the first."""
    encoder, reach = random_encoder(), 6
    encoder.reach = reach
    x = features(num_steps=num_steps)
    found = encoder(x)
    assert found.shape == (num_steps, NUM_SERIES, 10)
    starts = range(num_steps - reach + 1)
    windows = torch.stack([encoder(x[:, i : i + reach]) for i in starts])
    # but for the first of a window, which is the first of a series to it
    for t in range(1, num_steps):
        same = [i for i in starts if i < t < i + reach]
        same = [i for i in same if torch.allclose(windows[i, t - i], found[t])]
        # overlapping by half, a window's middle is never further than a quarter away
        at_an_end = t < reach / 2 or t >= num_steps - reach / 2
        assert any(at_an_end or abs(t - i - 2.5) <= reach / 4 for i in same)
    torch.testing.assert_close(found[0], windows[0, 0])


# --- how an untrained encoder starts out ----------------------------------------------


@pytest.mark.parametrize("num_steps, share", [(40, 1.0), (400, 0.97)])
def test_untrained_path_does_not_explode(num_steps, share):
    """It starts as a random walk or, where a window is long, as one that forgets."""
    torch.manual_seed(0)
    encoder = Encoder(
        NUM_COMPONENTS, NUM_FEATURES, LATENT_DIM, hidden_size=32, reach=num_steps
    ).double()
    floor = torch.full((num_steps,), 0.01).double()
    z, _, std = encoder.sample_path(encoder(features(1000, num_steps)), floor)
    num_kept = sum(share ** (2 * k) for k in range(num_steps))
    ratio = z[:, -1].square().mean() / (num_kept * std.square().mean())
    assert 0.5 < ratio < 2


@pytest.mark.parametrize("num_steps, share", [(40, 1.0), (400, 0.97)])
def test_untrained_steps_keep_what_came_before(num_steps, share):
    """The Jacobian of the last state in z_1 is the identity or a power of a share."""
    torch.manual_seed(0)
    encoder = Encoder(
        NUM_COMPONENTS, NUM_FEATURES, LATENT_DIM, hidden_size=32, reach=num_steps
    ).double()
    projection = encoder(features(1, num_steps))
    noise = torch.randn(num_steps, 1, LATENT_DIM).double()

    def last(z: Tensor) -> Tensor:
        z = z.view(1, -1)
        for t in range(1, num_steps):
            mean, std = encoder.moments(z, projection[t], float64(0.01))
            z = mean + std * noise[t]
        return z.flatten()

    jacobian = torch.autograd.functional.jacobian(last, float64(0.3, -1.0))
    wanted = share ** (num_steps - 1) * torch.eye(2).double()
    torch.testing.assert_close(jacobian, wanted, atol=0.1, rtol=0)


def test_weights_of_earlier_versions():
    """They keep all of a state, and see what is after a gap by the GRU alone."""
    encoder = Encoder(NUM_COMPONENTS, NUM_FEATURES, LATENT_DIM, hidden_size=5, reach=REACH)
    state = encoder.state_dict()
    del state["share_kept"], state["weight_after"]
    encoder.load_state_dict(state)
    assert encoder.share_kept == 1 and (encoder.weight_after == 0).all()
