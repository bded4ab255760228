"""Models whose states stand for several steps."""

import numpy as np
import pandas as pd
import pytest
import torch
from darts.utils.likelihood_models.torch import GaussianLikelihood
from pytorch_lightning.callbacks import Callback

from darts_ddssm import DDSSMModel
from darts_ddssm.estimator.automatic import say_once
from darts_ddssm.ssm.state_space import StateSpaceModel
from tests.helpers import (
    TRAINER,
    agree,
    covariate,
    noisy_sine,
    same,
    tiny_model,
    with_gaps,
)

# 12 and 6 steps: whole patches, and patches that reach beyond both chunks
LENGTHS = [3, 4]


@pytest.fixture(params=LENGTHS)
def patched(tiny, request):
    def make(**kwargs) -> DDSSMModel:
        return tiny(patch_length=request.param, **kwargs)

    return make


@pytest.mark.parametrize("lengths", [(1, 40), (2, 40), (3, 200), (40, 4)])
def test_automatic_patches_are_such_as_may_be_given(tiny, lengths):
    """None is longer than the input chunk."""
    sizes = dict(zip(("input_chunk_length", "output_chunk_length"), lengths, strict=True))
    length = tiny(**sizes)._patch_length
    assert length == min(lengths[0], 2 if lengths[1] == 4 else 3)
    assert tiny(**sizes, patch_length=length)._patch_length == length


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


@pytest.mark.parametrize("covariates", [{}, {"future_covariates": covariate(80, 2)}])
def test_historical_forecasts_are_those_of_predict(patched, covariates):
    """Where future covariates end with the series, too."""
    series = noisy_sine()
    model = patched().fit(series, **covariates)
    (last,) = model.historical_forecasts(
        series,
        **covariates,
        start=-6,
        start_format="position",
        retrain=False,
        forecast_horizon=6,
        num_samples=3,
        random_state=1,
        last_points_only=False,
    )
    expected = model.predict(6, series[:-6], **covariates, num_samples=3, random_state=1)
    assert same(last, expected)


def test_a_backtest_takes_future_covariates_that_end_with_the_series(patched):
    """The last one starts where they cover an output chunk, not a patch more."""
    series, known = noisy_sine(), covariate(80, 2)
    model = patched().fit(series, future_covariates=known)
    forecasts = model.historical_forecasts(
        series,
        future_covariates=known,
        start=-9,
        start_format="position",
        retrain=False,
        forecast_horizon=5,
        last_points_only=False,
    )
    assert [one.start_time() for one in forecasts] == list(series.time_index[-9:-5])
    assert all(np.isfinite(one.values()).all() for one in forecasts)


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


@pytest.mark.parametrize("length, chosen, now", [(24, 1, 3), (48, 4, 3)])
def test_models_of_earlier_versions_keep_their_choice(tiny, length, chosen, now):
    """They cut windows of more than 48 steps into about twelve, and did not save it."""
    chunks = {"input_chunk_length": length, "output_chunk_length": 12}
    model = tiny(patch_length=chosen, n_epochs=1, **chunks).fit(noisy_sine())
    earlier = model.__getstate__()
    del earlier["_patch_length"]
    earlier["_model_params"] = earlier["_model_params"] | {"patch_length": None}
    loaded = DDSSMModel.__new__(DDSSMModel)
    loaded.__setstate__(earlier)
    assert loaded.model.patch_length == chosen
    assert same(*(m.predict(4, noisy_sine(), random_state=1) for m in (model, loaded)))
    # one that is made anew makes its own choice
    assert tiny(n_epochs=1, **chunks).fit(noisy_sine()).model.patch_length == now


def test_the_length_of_a_long_window_is_said_once(tiny, caplog):
    say_once.cache_clear()
    for _ in range(2):
        model = tiny(input_chunk_length=48, output_chunk_length=12, n_epochs=1)
        assert model.fit(noisy_sine()).model.patch_length == 3
    said = [r for r in caplog.records if "cuts a window of 60 steps" in r.message]
    # at a level that a plain script shows
    assert [record.levelname for record in said] == ["WARNING"]
    assert "patches of 3 steps" in said[0].message and "`patch_length`" in said[0].message


def test_a_long_window_with_a_state_at_each_step_trains_from_the_start():
    """Noise and a little weight do not add up along 600 states."""
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *args):
            losses.append(outputs["loss"].item())

    trainer = TRAINER | {"max_steps": 6, "callbacks": [Losses()]}
    model = DDSSMModel(
        588, 12, patch_length=1, batch_size=8, random_state=0, pl_trainer_kwargs=trainer
    )
    model.fit(noisy_sine(700))
    assert max(losses) < 5


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_the_length_must_be_a_positive_integer(tiny, value):
    with pytest.raises(ValueError, match="`patch_length` must be an integer >= 1, got"):
        tiny(patch_length=value)


def test_the_length_must_not_exceed_the_input_chunk(tiny):
    with pytest.raises(ValueError, match="`patch_length` must be at most .* 12, got 13"):
        tiny(patch_length=13)


@pytest.mark.parametrize("length, shares", [(3, [1, 1, 2 / 3, 1]), (5, [1, 0.8, 1])])
def test_a_value_that_is_missing_makes_a_part_of_its_patch_a_guess(
    tiny, monkeypatch, length, shares
):
    """What lies outside the context, in its first patch, does not count."""
    given = []

    def spy(ssm, projection, window, log_emission, *how):
        given.append(how[-1])
        return sample_states(ssm, projection, window, log_emission, *how)

    sample_states = StateSpaceModel.sample_states
    monkeypatch.setattr(StateSpaceModel, "sample_states", spy)
    model = tiny(patch_length=length).fit(noisy_sine(num_components=2))
    values = noisy_sine(num_components=2).values(copy=True)
    values[-6] = np.nan
    # of a step of which a component is there nothing has to be guessed
    values[-1, 0] = np.nan
    model.predict(2, noisy_sine(num_components=2).with_values(values), num_samples=2)
    torch.testing.assert_close(given[0], torch.tensor([shares]))


# --- the latent side ------------------------------------------------------------------


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
        batch_size=64,
        n_epochs=20,
        use_reversible_instance_norm=False,
        likelihood=GaussianLikelihood(),
    ).fit(series[:16])
    estimate = np.mean(model.log_likelihood(series[16:], num_samples=16))
    values = np.concatenate([s.values() for s in series[16:]])
    exact = -0.5 * np.log(2 * np.pi) - 0.5 * np.square(values).mean()
    assert abs(estimate - exact) < 0.1


@pytest.mark.parametrize("long", [6, 8, 12])
def test_a_forecast_is_the_head_of_a_longer_one(long):
    """Wherever the covariates are known. Five standard errors."""
    series, known = noisy_sine(), covariate(120)
    model = tiny_model(patch_length=4, output_chunk_length=8, n_epochs=1)
    # an untrained decoder is nearly blind to its inputs
    model = model.fit(series, future_covariates=known)
    torch.manual_seed(0)
    for parameter in model.model.ssm.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    short, head = (
        model.predict(n, future_covariates=known, num_samples=4000, random_state=n)
        for n in (1, long)
    )
    short, head = (one.all_values()[0, 0] for one in (short, head))
    assert agree(short, head)
    assert agree(short**2, head**2)
    # the covariates of the patch do matter
    values = known.values(copy=True)
    values[81:84] += 5.0
    other = known.with_values(values)
    moved = model.predict(1, future_covariates=other, num_samples=4000)
    assert not agree(short**2, moved.all_values()[0, 0] ** 2)


def test_covariates_that_end_with_the_horizon_are_enough():
    """What a last patch has beyond them is unknown."""
    series, known = noisy_sine(), covariate(120)
    model = tiny_model(patch_length=4, n_epochs=1).fit(series, future_covariates=known)
    for n, end in ((5, 86), (9, 89), (10, 90)):
        forecast = model.predict(n, future_covariates=known[:end], num_samples=3)
        assert len(forecast) == n and np.isfinite(forecast.all_values()).all()
    with pytest.raises(ValueError, match="`future_covariates` must extend 9 steps"):
        model.predict(9, future_covariates=known[:88])
