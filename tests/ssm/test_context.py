"""What the transition sees of the past, over a whole path and step by step."""

import copy

import pytest
import torch
from torch import Tensor

from darts_ddssm.ssm.context import Context, LagKernel, MarkovContext, RecurrentContext
from tests.helpers import randomised

NUM_ROWS, NUM_STEPS, LATENT_DIM, HIDDEN_SIZE = 3, 8, 2, 6


def context_of(order: int | None, input_size: int = 1, sees_lags: bool = False) -> Context:
    torch.manual_seed(0)
    sizes = (LATENT_DIM, input_size, HIDDEN_SIZE)
    if order is None:
        context = RecurrentContext(*sizes, reach=5, num_context=3)
        if sees_lags:
            context.see_lags()
        randomised(context)
        # the kernel forgets, but no history starts again
        context.reach = 100
        return context
    return randomised(MarkovContext(*sizes, order=order))


def path(input_size: int = 1) -> tuple[Tensor, Tensor]:
    """Latents and inputs of a few rows."""
    torch.manual_seed(1)
    values = torch.randn(NUM_ROWS, NUM_STEPS, LATENT_DIM + input_size).double()
    return values[..., :LATENT_DIM], values[..., LATENT_DIM:]


def steps_that_see(context: Context, t: int) -> list[int]:
    """Steps, from 0, whose context changes with the latent at t."""
    z, u = path()
    changed = z.clone()
    changed[:, t] += 1.0
    off = (context(changed, u) - context(z, u)).abs().amax((0, 2))
    # beyond the rounding of the Fourier transform, in double precision
    return (off > 1e-12).nonzero().flatten().tolist()


@pytest.mark.parametrize("order", [1, 3, None])
@pytest.mark.parametrize("input_size", [0, 2])
@pytest.mark.parametrize("sees_lags", [False, True])
def test_step_by_step_is_the_whole_path_at_once(order, input_size, sees_lags):
    context, (z, u) = context_of(order, input_size, sees_lags), path(input_size)
    history = context.init(NUM_ROWS, z)
    steps = []
    for z_t, u_t in zip(z.unbind(1), u.unbind(1), strict=True):
        steps.append(context.output(history, u_t))
        history = context.update(history, z_t, u_t)
    torch.testing.assert_close(torch.stack(steps, dim=1), context(z, u))


@pytest.mark.parametrize("order", [1, 3, None])
@pytest.mark.parametrize("known", [1, 2, NUM_STEPS])
@pytest.mark.parametrize("sees_lags", [False, True])
def test_step_by_step_after_a_path_goes_on_with_it(order, known, sees_lags):
    num_steps = NUM_STEPS + known
    context = context_of(order, sees_lags=sees_lags)
    # of a kernel that reaches over five steps all, some, and none are in the first part
    z, u = (torch.cat([x, x.flip(1)], dim=1)[:, :num_steps] for x in path())
    history = context.from_path(z[:, :known], u[:, :known])
    steps = []
    for z_t, u_t in zip(z[:, known:].unbind(1), u[:, known:].unbind(1), strict=True):
        steps.append(context.output(history, u_t))
        torch.testing.assert_close(history.previous, z[:, known + len(steps) - 2])
        history = context.update(history, z_t, u_t)
    torch.testing.assert_close(torch.stack(steps, dim=1), context(z, u)[:, known:])


def test_a_long_path_starts_again_from_its_last_latents():
    """The context was trained on five latents, and forecasts start from three."""
    context, (z, u) = context_of(None), path()
    context.reach = 5
    found = context(z, u)
    torch.testing.assert_close(found[:, :5], context(z[:, :5], u[:, :5]))
    for t in range(5, NUM_STEPS):
        # from the fifth and from the seventh step on
        first = 2 if t < 7 else 4
        history = context.from_path(z[:, first : first + 3], u[:, first : first + 3])
        for i in range(first + 3, t):
            history = context.update(history, z[:, i], u[:, i])
        torch.testing.assert_close(found[:, t], context.output(history, u[:, t]))
    for t in range(1, NUM_STEPS):
        history = context.from_path(z[:, :t], u[:, :t])
        torch.testing.assert_close(found[:, t], context.output(history, u[:, t]))


def test_rows_are_each_by_themselves(monkeypatch):
    """However many of them the recurrent network runs through at a time."""
    context, (z, u) = context_of(None), path()
    expected = context.from_path(z, u)
    monkeypatch.setattr("darts_ddssm.ssm.context.GRU_ROWS", NUM_ROWS - 1)
    torch.testing.assert_close(context.from_path(z, u), expected)


@pytest.mark.parametrize("order", [1, 3, None])
def test_history_knows_its_last_latent(order):
    context, (z, u) = context_of(order), path()
    history = context.init(NUM_ROWS, z)
    assert not history.started.any() and not history.previous.any()
    for z_t, u_t in zip(z.unbind(1), u.unbind(1), strict=True):
        history = context.update(history, z_t, u_t)
        assert history.started.all()
        torch.testing.assert_close(history.previous, z_t)


def test_an_input_of_some_steps_ago_is_seen_directly():
    """As far back as the kernel reaches, and without the recurrent network's help."""
    z, u = path()
    changed = u.clone()
    changed[:, 1] += 1.0
    for context, expected in (
        (context_of(None), [1]),
        (context_of(None, sees_lags=True), [1, 2, 3, 4, 5, 6]),
    ):
        with torch.no_grad():
            for parameter in context.gru.parameters():
                parameter.zero_()
        off = (context(z, changed) - context(z, u)).abs().amax((0, 2))
        assert (off > 1e-12).nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("input_size", [0, 3])
def test_to_see_inputs_changes_nothing_at_first(input_size):
    context, (z, u) = context_of(None, input_size), path(input_size)
    expected = context(z, u)
    context.see_lags()
    torch.testing.assert_close(context(z, u), expected)


@pytest.mark.parametrize("latent_dim, expected", [(2, 1), (8, 2), (16, 4), (64, 16)])
def test_inputs_are_in_few_sums(latent_dim, expected):
    kernel = LagKernel(latent_dim, input_size=3, reach=5, num_sums=16)
    kernel.see_inputs()
    z, u = torch.zeros(1, 2, latent_dim), torch.zeros(1, 2, 3)
    u[:, 0] = 1.0
    sums = randomised(kernel)(z.double(), u.double())
    assert (sums[0, 1].abs() > 1e-12).sum() == expected


def test_a_kernel_sees_those_inputs_that_may_be_delayed():
    lagged = [slice(0, 1), slice(2, 4)]
    kernel = LagKernel(2, input_size=5, reach=5, num_sums=4, lagged=lagged)
    kernel.see_inputs()
    randomised(kernel)
    z, u = torch.zeros(5, 2, 2).double(), torch.zeros(5, 2, 5).double()
    # in each row another input
    u[:, 0] = torch.eye(5)
    sums = kernel(z, u)[:, 1].abs().amax(-1)
    assert (sums > 1e-12).nonzero().flatten().tolist() == [0, 2, 3]


def test_a_kernel_sees_what_the_saved_one_saw():
    blind = randomised(LagKernel(4, input_size=3, reach=5, num_sums=16))
    seeing = LagKernel(4, input_size=3, reach=5, num_sums=16)
    seeing.see_inputs()
    randomised(seeing)
    for saved in (blind, seeing):
        for other in (blind, seeing):
            loaded = copy.deepcopy(other)
            loaded.load_state_dict(saved.state_dict())
            torch.testing.assert_close(loaded.weights, saved.weights)


def test_an_optimizer_goes_on_with_what_is_loaded():
    """As after a search for the learning rate, which ends with the first weights."""
    kernel = context_of(None, sees_lags=True).kernel
    before = list(kernel.parameters())
    kernel.load_state_dict(kernel.state_dict())
    assert all(x is y for x, y in zip(kernel.parameters(), before, strict=True))


def test_to_see_inputs_twice_is_to_see_them_once():
    context = context_of(None, sees_lags=True)
    expected = context.kernel.weights
    context.see_lags()
    torch.testing.assert_close(context.kernel.weights, expected)


@pytest.mark.parametrize("order", [1, 3])
def test_markov_context_sees_the_last_latents_alone(order):
    assert steps_that_see(context_of(order), 2) == list(range(3, 3 + order))


def test_recurrent_context_sees_all_of_the_past():
    assert steps_that_see(context_of(None), 2) == list(range(3, NUM_STEPS))


@pytest.mark.parametrize("order", [1, 3, None])
def test_inputs_count_at_their_own_step_and_with_their_latent(order):
    context, (z, u) = context_of(order), path()
    changed = u.clone()
    changed[:, 2] += 1.0
    off = (context(z, changed) - context(z, u)).abs().amax((0, 2))
    last = NUM_STEPS if order is None else 3 + order
    assert (off > 1e-12).nonzero().flatten().tolist() == list(range(2, last))


@pytest.mark.parametrize("order", [1, 3, None])
def test_a_missing_latent_is_not_a_latent_of_zero(order):
    """Every step that lacks some of what it would see has a context of its own."""
    context = context_of(order)
    zeros = torch.zeros(1, NUM_STEPS, LATENT_DIM).double()
    contexts = context(zeros, zeros[..., :1]).squeeze(0)
    num_lacking = order or 1  # a recurrent context flags the first step
    for t in range(num_lacking):
        off = (contexts[t + 1 :] - contexts[t]).abs().amax(-1)
        assert (off > 1e-6).all()
