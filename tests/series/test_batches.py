"""From darts' batches to windows."""

import pytest
import torch
from darts.utils.data.torch_datasets.utils import TorchInferenceBatch, TorchTrainingBatch

from darts_ddssm.series.batches import rolled_on, training_window
from darts_ddssm.ssm.patches import Patches
from tests.helpers import UNIT_SCALES, covariate, delayed_effect, static


def test_past_covariates_act_on_the_next_patch():
    """A patch is told those of the whole patch before it, as far as they are known."""
    past = torch.arange(1.0, 5.0).reshape(1, 4, 1)
    batch = TorchTrainingBatch(
        torch.zeros(1, 4, 1), future_target=torch.zeros(1, 4, 1), past_covariates=past
    )
    folded = Patches(2, 4, 4).fold_window(training_window(batch, 0, 2, UNIT_SCALES))
    # value and flag of each step
    expected = [[0, 0, 0, 0], [1, 1, 2, 1], [3, 1, 4, 1], [0, 0, 0, 0]]
    assert folded.past[0].tolist() == expected


def test_noise_on_covariates_is_on_what_is_known_of_them():
    """On values alone, each with its own; the user's are left as they are."""
    torch.manual_seed(0)
    length, num_series = 50, 200
    future, past = torch.zeros(2, num_series, length, 2)
    future[:, 0], past[:, 0] = torch.nan, torch.nan
    target = torch.zeros(num_series, length, 1)
    batch = TorchTrainingBatch(
        target,
        future_target=target,
        past_covariates=past,
        historic_future_covariates=future,
        future_covariates=future,
        static_covariates=torch.ones(num_series, 1, 1),
    )
    before = future.clone()
    window = training_window(batch, 0, 1, UNIT_SCALES, covariate_noise=0.5)
    plain = training_window(batch, 0, 1, UNIT_SCALES)
    assert torch.equal(future.nan_to_num(), before.nan_to_num())
    # values, flags and what is static
    values, flags = window.u[..., :2], window.u[..., 2:4]
    assert torch.equal(window.u[..., 2:], plain.u[..., 2:])
    assert torch.equal(window.past[..., 2:], plain.past[..., 2:])
    for part in (values[flags > 0], window.past[..., :2][window.past[..., 2:] > 0]):
        # the standard deviation of n draws is known to its share 1 / sqrt(2 n)
        assert abs(part.std() / 0.5 - 1) < 6 / (2 * len(part)) ** 0.5
        assert abs(part.mean()) < 6 * 0.5 / len(part) ** 0.5
    assert (values[flags == 0] == 0).all()
    assert (window.past[..., :2][window.past[..., 2:] == 0] == 0).all()


@pytest.mark.parametrize("num_drawn", [2, 6])
def test_a_batch_with_a_later_origin(num_drawn):
    """Two paths of each of two series of four steps, a horizon of ten."""
    first = torch.tensor([0.0, 100.0]).view(2, 1, 1)
    steps = torch.arange(14.0).view(1, -1, 1) + first
    batch = TorchInferenceBatch(
        steps[:, :4],
        past_covariates=steps[:, :4],
        historic_future_covariates=steps[:, :4],
        future_covariates=steps[:, 4:],
        static_covariates=first,
    )
    drawn = 1000.0 + torch.arange(4.0).view(4, 1, 1) + torch.zeros(4, num_drawn, 1)
    later = rolled_on(batch, drawn)
    steps, first = steps.repeat(2, 1, 1), first.repeat(2, 1, 1)
    joint = torch.cat([steps[:, :4], drawn], 1)
    assert torch.equal(later.past_target, joint[:, -4:])
    end = num_drawn + 4
    assert torch.equal(later.historic_future_covariates, steps[:, num_drawn:end])
    assert torch.equal(later.future_covariates, steps[:, end:])
    assert torch.equal(later.static_covariates, first)
    # of past covariates nothing is known beyond the origin
    known = torch.where(torch.arange(num_drawn, end).view(1, -1, 1) < 4, 1.0, torch.nan)
    expected = steps[:, num_drawn:end] * known
    torch.testing.assert_close(later.past_covariates, expected, equal_nan=True)


@pytest.mark.parametrize("patch_length", [1, 2])
def test_values_of_covariates_may_be_delayed(tiny, patch_length):
    """Neither flags nor static covariates, which tell where in a window a step is."""
    series, cause = delayed_effect()
    cause = cause.astype("float32")
    series = series.astype("float32").with_static_covariates(static(0.0))
    two = cause.stack(cause.with_values(covariate(len(cause)).values()))
    model = tiny(n_epochs=1, patch_length=patch_length)
    model.fit(series, future_covariates=two, past_covariates=cause)
    future, past = torch.full((1, 18, 2), 2.0), torch.full((1, 12, 1), 3.0)
    target = torch.zeros(1, 18, 1)
    batch = TorchTrainingBatch(
        target[:, :12],
        future_target=target[:, 12:],
        past_covariates=past,
        historic_future_covariates=future[:, :12],
        future_covariates=future[:, 12:],
        static_covariates=torch.full((1, 1, 1), 5.0),
    )
    window = training_window(batch, 0, patch_length, UNIT_SCALES)
    folded = Patches(patch_length, 12, 6).fold_window(window)
    kernel = model.model.ssm.transition.context.kernel
    seen = kernel.steps(folded.x[..., :0], folded.transition_inputs)
    # of the second patch
    expected = [2.0] * 2 * patch_length + [3.0] * patch_length
    assert seen[0, 1].tolist() == expected
