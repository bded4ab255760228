"""Patches: how windows are cut, and models whose states stand for several steps."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import covariate, noisy_sine, same, with_gaps
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from darts.utils.likelihood_models.torch import GaussianLikelihood

from darts_ddssm import DDSSMModel
from darts_ddssm.ssm.patches import Patches, automatic_patch_length
from darts_ddssm.ssm.state_space import Window
from darts_ddssm.window import training_window


def window_of(num_steps: int, num_components: int = 2) -> Window:
    torch.manual_seed(0)
    x = torch.randn(3, num_steps, num_components)
    weight = torch.rand(3, num_steps, num_components)
    inputs = torch.randn(3, num_steps, 2)
    return Window(x, torch.ones_like(x), inputs, inputs, weight)


# --- the cut ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("num_before, num_after", [(12, 6), (7, 4), (7, 0), (0, 5)])
def test_what_is_cut_is_joined_again(length, num_before, num_after):
    patches = Patches(length, num_before, num_after)
    window = window_of(num_before + num_after)
    folded = patches.window(window)
    assert folded.x.shape == (3, patches.before + patches.after, 2 * length)
    # two parameters of each value
    joined = patches.unfold(torch.stack([folded.x, folded.observed], dim=-1))
    assert torch.equal(joined, torch.stack([window.x, window.observed], dim=-1))


def test_a_forecast_starts_with_a_patch():
    """The steps of a patch, by hand: the past ends and the future starts with one."""
    patches = Patches(3, 4, 5)
    steps = torch.arange(1.0, 10.0).reshape(1, 9, 1)
    expected = [[0, 0, 1], [2, 3, 4], [5, 6, 7], [8, 9, 0]]
    assert patches.fold(steps)[0].tolist() == expected
    assert (patches.before, patches.after) == (2, 2)


def test_nothing_is_observed_outside_the_window():
    """There the weight is that of the nearest step: part of a patch weighs as a whole."""
    window = window_of(9, 1)
    folded = Patches(3, 4, 5).window(window)
    assert folded.observed[0].tolist() == [[0, 0, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert (folded.weight[:, 0, :2] == window.weight[:, :1, 0]).all()
    assert (folded.weight[:, -1, 2] == window.weight[:, -1, 0]).all()


def test_a_patch_of_one_step_changes_nothing():
    window = window_of(9)
    folded = Patches(1, 4, 5).window(window)
    assert all(torch.equal(a, b) for a, b in zip(folded, window, strict=True))


def test_past_covariates_act_on_the_next_patch():
    """A patch is told those of the whole patch before it, as far as they are known."""
    past = torch.arange(1.0, 5.0).reshape(1, 4, 1)
    batch = TorchTrainingBatch(
        torch.zeros(1, 4, 1), future_target=torch.zeros(1, 4, 1), past_covariates=past
    )
    folded = Patches(2, 4, 4).window(training_window(batch, gap=0, lag=2))
    # value and flag of each step
    expected = [[0, 0, 0, 0], [1, 1, 2, 1], [3, 1, 4, 1], [0, 0, 0, 0]]
    assert folded.past[0].tolist() == expected


@pytest.mark.parametrize(
    "window, output, expected",
    [
        (18, 6, 1),
        (48, 12, 1),
        (49, 12, 4),
        (65, 13, 5),
        (80, 20, 5),
        (156, 24, 12),
        (192, 48, 16),
        (120, 7, 7),
        (120, 1, 1),
    ],
)
def test_automatic_length(window, output, expected):
    assert automatic_patch_length(window, output) == expected


# --- the model ----------------------------------------------------------------------------

# 12 and 6 steps: whole patches, and patches that reach beyond both chunks
LENGTHS = [3, 4]


@pytest.fixture(params=LENGTHS)
def patched(tiny, request):
    def make(**kwargs) -> DDSSMModel:
        return tiny(patch_length=request.param, **kwargs)

    return make


@pytest.mark.parametrize("transition", ["diffusion", "gaussian"])
@pytest.mark.parametrize("order", [None, 1])
@pytest.mark.parametrize("n", [1, 6, 17])
def test_forecast(patched, transition, order, n):
    series = noisy_sine(num_components=2)
    model = patched(transition=transition, transition_order=order).fit(series)
    forecast = model.predict(n, num_samples=7)
    assert forecast.all_values().shape == (n, 2, 7)
    assert forecast.start_time() == series.end_time() + series.freq
    assert np.isfinite(forecast.all_values()).all()


def test_all_that_a_model_may_be_given(patched):
    """Covariates of each kind, gaps, weights, a shift, a validation set."""
    series = with_gaps(noisy_sine(), slice(30, 37)).with_static_covariates(
        pd.DataFrame({"a": [0.3]})
    )
    model = patched(output_chunk_shift=2)
    covariates = {"past_covariates": covariate(80), "future_covariates": covariate(100, 2)}
    val = {f"val_{name}": values for name, values in covariates.items()}
    model.fit(series, **covariates, sample_weight="linear", val_series=series, **val)
    assert np.isfinite(model.trainer.callback_metrics["val_loss"].item())
    forecast = model.predict(6, num_samples=5)
    assert forecast.start_time() == series.end_time() + 3 * series.freq
    assert np.isfinite(forecast.all_values()).all()


def test_past_covariates_need_not_outlast_the_series(patched):
    model = patched().fit(noisy_sine(), past_covariates=covariate(80))
    assert model.predict(17, num_samples=2).n_timesteps == 17


def test_historical_forecasts_are_those_of_predict(patched):
    series = noisy_sine()
    model = patched().fit(series)
    (last,) = model.historical_forecasts(
        series,
        start=-6,
        start_format="position",
        retrain=False,
        forecast_horizon=6,
        num_samples=3,
        random_state=1,
        last_points_only=False,
    )
    assert same(last, model.predict(6, series[:-6], num_samples=3, random_state=1))


def test_the_end_of_a_series_counts(patched):
    """Each value of the input chunk reaches the forecast, the first and the last one."""
    series = noisy_sine()
    model = patched().fit(series)
    context = series[-12:]
    forecast = model.predict(6, context, num_samples=3, random_state=1)
    for step in (0, 11):
        values = context.values(copy=True)
        values[step] += 1
        changed = context.with_values(values)
        assert not same(forecast, model.predict(6, changed, num_samples=3, random_state=1))


def test_saved_and_loaded(patched, tmp_path):
    model = patched().fit(noisy_sine())
    model.save(str(tmp_path / "model.pt"))
    loaded = DDSSMModel.load(str(tmp_path / "model.pt"))
    one, other = (m.predict(6, num_samples=3, random_state=2) for m in (model, loaded))
    assert same(one, other)


def test_weights_of_another_length_are_refused(tiny, tmp_path):
    tiny(patch_length=3).fit(noisy_sine()).save(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="`patch_length` must be .* 3, got 1"):
        tiny().load_weights(str(tmp_path / "model.pt"))
    tiny(patch_length=3).load_weights(str(tmp_path / "model.pt"))


def test_the_length_of_a_long_window_is_logged(tiny, caplog):
    model = tiny(input_chunk_length=48, output_chunk_length=12)
    with caplog.at_level("INFO", logger="darts_ddssm.model"):
        model.fit(noisy_sine())
    assert "A window of 60 steps is modelled in patches of 4 steps" in caplog.text
    assert model.model.patch_length == 4


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_the_length_must_be_a_positive_integer(tiny, value):
    with pytest.raises(ValueError, match="`patch_length` must be an integer >= 1, got"):
        tiny(patch_length=value)


def test_the_length_must_not_exceed_the_input_chunk(tiny):
    with pytest.raises(ValueError, match="`patch_length` must be at most .* 12, got 13"):
        tiny(patch_length=13)


# --- the latent side ----------------------------------------------------------------------


def test_states_stand_at_the_ends_of_patches(tiny):
    series = noisy_sine(80)
    model = tiny(patch_length=3).fit(series)
    states = model.infer_latents(num_samples=4)
    # 80 = 26 * 3 + 2: the first patch has two steps
    assert states.n_timesteps == 27
    assert states.time_index.equals(series.time_index[1::3])
    filtered = model.infer_latents(num_samples=4, filtering=True)
    assert filtered.time_index.equals(series.time_index)


def test_gaps_are_filled(tiny):
    series = with_gaps(noisy_sine(80), slice(40, 45))
    filled = tiny(patch_length=3).fit(series).impute(num_samples=5)
    assert filled.time_index.equals(series.time_index)
    values = filled.all_values()
    seen = ~np.isnan(series.values()[:, 0])
    assert np.isfinite(values).all()
    assert (values[seen] == series.all_values()[seen]).all()
    assert (values[~seen].std(-1) > 0).all()


def test_series_are_simulated(tiny):
    model = tiny(patch_length=4).fit(noisy_sine())
    assert model.simulate(10, num_samples=3).all_values().shape == (10, 1, 3)


def test_the_next_patch_is_drawn(tiny):
    """Covariates are those of the steps of the given patches, and of the next one."""
    model = tiny(patch_length=3)
    model.fit(noisy_sine(), past_covariates=covariate(80), future_covariates=covariate(99))
    states = np.zeros((2, 2))
    draws = model.sample_transition(
        states, 5, future_covariates=covariate(9), past_covariates=covariate(6)
    )
    assert draws.shape == (5, 2)
    with pytest.raises(ValueError, match="must cover the 6 steps of the given states"):
        model.sample_transition(states, 5, past_covariates=covariate(5))


def test_likelihood_of_a_normal_series(tiny):
    """Independent normal values: the exact density is theirs.

    The model knows it but for what it has learned wrong: 0.1 nats a value.
    """
    rng = np.random.default_rng(0)
    series = [
        noisy_sine(60).with_values(rng.standard_normal((60, 1)).astype(np.float32))
        for _ in range(20)
    ]
    model = tiny(
        patch_length=3,
        n_epochs=10,
        use_reversible_instance_norm=False,
        likelihood=GaussianLikelihood(),
    ).fit(series[:16])
    estimate = np.mean(model.log_likelihood(series[16:], num_samples=16))
    values = np.concatenate([s.values() for s in series[16:]])
    exact = -0.5 * np.log(2 * np.pi) - 0.5 * np.square(values).mean()
    assert abs(estimate - exact) < 0.1
