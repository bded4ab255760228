"""Fitting and forecasting: shapes, times, datasets, tuning, randomness."""

import warnings

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.utils.data import (
    SequentialTorchInferenceDataset,
    SequentialTorchTrainingDataset,
    TorchTrainingDataset,
)
from darts.utils.data.torch_datasets.utils import TorchTrainingSample
from darts.utils.likelihood_models.torch import PoissonLikelihood
from pytorch_lightning.callbacks import Callback

from darts_ddssm import DDSSMModel
from tests.helpers import (
    TRAINER,
    assert_same_mean,
    changed,
    close,
    covariate,
    noisy_sine,
    random_walk,
    same,
    state,
    tiny_model,
    with_gaps,
)

TRANSITIONS = ("diffusion", "gaussian")
ORDERS = (1, 2, None)


# --- shapes and times -----------------------------------------------------------------


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_components", [1, 3])
def test_forecast_has_the_shape_that_was_asked_for(tiny, transition, order, num_components):
    series = noisy_sine(num_components=num_components)
    model = tiny(transition=transition, transition_order=order).fit(series)
    for n in (1, 6, 15):
        forecast = model.predict(n, num_samples=5)
        assert forecast.shape == (n, num_components, 5)
        assert forecast.start_time() == series.end_time() + series.freq
        assert forecast.components.equals(series.components)
        assert forecast.dtype == series.dtype
        assert np.isfinite(forecast.all_values()).all()


def test_one_series_or_many(tiny):
    series = [noisy_sine(seed=i) for i in range(3)]
    model = tiny().fit(series)
    assert [f.shape for f in model.predict(4, series, num_samples=2)] == [(4, 1, 2)] * 3
    assert model.predict(4, series[0], num_samples=2).shape == (4, 1, 2)
    alone = tiny().fit(series[0])
    assert alone.predict(4, num_samples=2).shape == (4, 1, 2)


def test_same_random_state_gives_the_same_forecast(tiny):
    series = noisy_sine()
    one, other = (tiny().fit(series) for _ in range(2))
    assert same(one.predict(5, num_samples=3), other.predict(5, num_samples=3))
    again = [one.predict(5, num_samples=3, random_state=7) for _ in range(2)]
    assert same(*again)
    assert not same(again[0], one.predict(5, num_samples=3, random_state=8))


def test_samples_are_joint_paths(tiny):
    """A random walk's paths spread out while each moves in small steps."""
    steps = np.random.default_rng(0).standard_normal((12, 60)).astype(np.float32)
    walks = [TimeSeries.from_values(x) for x in 0.2 * steps.cumsum(1)]
    model = tiny(
        transition_order=1, batch_size=64, n_epochs=15, optimizer_kwargs={"lr": 1e-2}
    )
    forecast = model.fit(walks).predict(12, walks[0], num_samples=200).all_values()
    path = forecast[:, 0]
    change = np.abs(np.diff(path, axis=0)).mean()
    shuffled = np.random.default_rng(1).permuted(path, axis=1)
    assert change < 0.8 * np.abs(np.diff(shuffled, axis=0)).mean()


def test_inputs_are_not_changed(tiny):
    series = with_gaps(noisy_sine(), slice(3, 9))
    past, future = covariate(80), covariate(100, seed=2)
    before = [x.all_values(copy=True) for x in (series, past, future)]
    model = tiny().fit(series, past_covariates=past, future_covariates=future)
    model.predict(6)
    for x, values in zip((series, past, future), before, strict=True):
        np.testing.assert_array_equal(x.all_values(), values)


def test_float64_series_give_a_float64_model(tiny):
    model = tiny().fit(noisy_sine().astype(np.float64))
    assert model.model.dtype == torch.float64
    assert model.predict(3).dtype == np.float64


def test_more_solver_steps_after_training(tiny, tmp_path):
    model = tiny().fit(noisy_sine())
    few = model.predict(3, num_samples=4, random_state=0)
    model.num_solver_steps = 16
    many = model.predict(3, num_samples=4, random_state=0)
    assert not same(few, many)
    model.save(str(tmp_path / "model.pt"))
    loaded = DDSSMModel.load(str(tmp_path / "model.pt"))
    assert loaded.num_solver_steps == 16
    assert same(many, loaded.predict(3, num_samples=4, random_state=0))


def test_stochastic_series_are_inputs(tiny):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((60, 1, 5)).astype(np.float32)
    series = TimeSeries.from_values(values)
    forecast = tiny(n_epochs=1).fit(series).predict(4, num_samples=3)
    assert forecast.shape == (4, 1, 3)


def test_integers_are_values(tiny):
    series = TimeSeries.from_values(np.arange(60) % 12)
    forecast = tiny(n_epochs=1).fit(series).predict(3)
    assert np.isfinite(forecast.values()).all()


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_latent_may_be_wider_than_the_networks(tiny, transition):
    model = tiny(latent_dim=5, hidden_size=2, transition=transition).fit(noisy_sine())
    assert np.isfinite(model.predict(3, num_samples=2).all_values()).all()


def test_values_may_be_read_only(tiny):
    values = noisy_sine().values()[..., None]
    values.flags.writeable = False
    series = TimeSeries(noisy_sine().time_index, values, copy=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not writable.*", module="darts_ddssm")
        tiny(n_epochs=1).fit(series).predict(3)


def test_series_is_needed_after_fitting_several(tiny):
    model = tiny(n_epochs=1).fit([noisy_sine(), noisy_sine(seed=1)])
    with pytest.raises(ValueError, match="series"):
        model.predict(3)


def test_predict_before_fit(tiny):
    with pytest.raises(ValueError, match="fit"):
        tiny().predict(3, noisy_sine())


# --- how training runs ----------------------------------------------------------------


class Batches(Callback):
    """Record the size of each training batch."""

    def __init__(self):
        self.sizes = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sizes.append(len(batch.past_target))


def test_refitting_continues(tiny):
    """A second fit starts from the weights of the first, with the same scale."""
    model = tiny(optimizer_kwargs={"lr": 1e-2}).fit(noisy_sine())
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    model.fit(5 + noisy_sine(seed=1), epochs=1)
    after = model.model.state_dict()
    name = "ssm.decoder.bypass.weight"
    assert not torch.equal(before[name], after[name])
    assert (before[name] - after[name]).abs().max() < 0.2
    for name in ("target_shift", "target_spread", "progress"):
        torch.testing.assert_close(before[name], after[name])


@pytest.mark.parametrize("patch_length", [1, 3])
def test_beyond_the_output_chunk_each_path_goes_on_from_its_own_level(tiny, patch_length):
    """Where each window has its own scale, after gaps and with covariates, too."""
    series, known = noisy_sine().with_values(random_walk(80).values()), covariate(120)
    model = tiny(
        n_epochs=20, use_reversible_instance_norm=True, patch_length=patch_length
    ).fit(series, future_covariates=known)
    past = with_gaps(series, slice(72, 74))
    how = {"future_covariates": known, "num_samples": 300, "random_state": 0}
    forecast = model.predict(18, past, **how)
    assert close(forecast[:6], model.predict(6, past, **how))
    # the ends of the three chunks are farther and farther from each other
    spread = forecast.all_values()[[5, 11, 17], 0].std(1)
    assert spread[1] > 1.1 * spread[0] and spread[2] > 1.1 * spread[1]


def test_a_level_walks_on_beyond_the_output_chunk(tiny):
    """Its spread grows with the root of the steps, and does not stay that of a window."""
    model = tiny(n_epochs=30, use_reversible_instance_norm=True).fit(random_walk(200))
    forecast = model.predict(120, num_samples=300, random_state=0)
    spread = forecast.all_values()[:, 0].std(1)
    assert 2 * spread[5] < spread[59] < 20 * spread[5]
    assert spread[59] < spread[119] < 4 * spread[59]


@pytest.mark.parametrize(
    "change",
    [
        lambda series: 100 * series,
        lambda series: series / 100,
        lambda series: series + 1000,
        # one of two components
        lambda series: series * np.array([1.0, 100.0], dtype=np.float32).reshape(1, 2, 1),
    ],
)
def test_refitting_to_another_scale_is_said(tiny, caplog, change):
    series = noisy_sine(num_components=2)
    own = {"use_reversible_instance_norm": False}
    model = tiny(n_epochs=1, **own).fit(series)
    model.fit(2 * series + 1, epochs=1)
    message = "keeps the scale of its first training set"
    assert message not in caplog.text
    other = series.with_values(change(series.all_values()))
    model.fit(other, epochs=1)
    assert message in caplog.text and "fit a new model" in caplog.text
    caplog.clear()
    # each window has its own
    own["use_reversible_instance_norm"] = True
    tiny(n_epochs=1, **own).fit(series).fit(other, epochs=1)
    assert message not in caplog.text


@pytest.mark.darts_compat
def test_which_windows_are_trained_on(tiny):
    def sizes(**kwargs) -> list[int]:
        batches = Batches()
        tiny({"callbacks": [batches]}, n_epochs=1).fit(noisy_sine(), **kwargs)
        return batches.sizes

    assert sum(sizes()) == 80 - 18 + 1
    assert sum(sizes(max_samples_per_ts=10)) == 10
    assert sum(sizes(stride=6)) == 11
    assert sizes(dataloader_kwargs={"batch_size": 20, "drop_last": True}) == [20] * 3


LENGTHS = {"input_chunk_length": 12, "output_chunk_length": 6}


@pytest.mark.darts_compat
def test_datasets_in_place_of_series(tiny):
    series = noisy_sine()
    dataset = SequentialTorchTrainingDataset(series=series, **LENGTHS)
    models = [tiny().fit_from_dataset(dataset, val_dataset=dataset) for _ in range(2)]
    expected, same_seed = (
        m.predict(6, series, num_samples=3, random_state=1) for m in models
    )
    assert same(expected, same_seed)
    ahead = SequentialTorchInferenceDataset(series=series, n=6, **LENGTHS)
    (forecast,) = models[0].predict_from_dataset(6, ahead, num_samples=3, random_state=1)
    assert same(forecast, expected)


@pytest.mark.parametrize(
    "length, got",
    [("input_chunk_length", 10), ("output_chunk_length", 7), ("output_chunk_shift", 2)],
)
@pytest.mark.parametrize("name", ["train_dataset", "val_dataset"])
def test_datasets_have_the_chunks_of_the_model(tiny, name, length, got):
    lengths = LENGTHS | {"output_chunk_shift": 0}
    sets = {
        "train_dataset": SequentialTorchTrainingDataset(series=noisy_sine(), **lengths),
        name: SequentialTorchTrainingDataset(
            series=noisy_sine(), **lengths | {length: got}
        ),
    }
    match = f"`{name}` must have the model's `{length}`, {lengths[length]}, got {got}"
    with pytest.raises(ValueError, match=match):
        tiny().fit_from_dataset(**sets)


def with_one(value: float) -> TimeSeries:
    """Return a series with one strange value."""
    values = noisy_sine().values()
    values[5] = value
    return noisy_sine().with_values(values)


@pytest.mark.parametrize("name", ["train_dataset", "val_dataset"])
@pytest.mark.parametrize(
    "given, arguments, match",
    [
        ({"series": with_one(np.inf)}, {}, "`series` must be finite or NaN"),
        ({"series": noisy_sine() * np.nan}, {}, "`series` must have observed values"),
        (
            {"series": noisy_sine()},
            {"likelihood": PoissonLikelihood()},
            "`series` must lie in the support of `PoissonLikelihood",
        ),
        ({"past_covariates": with_one(np.inf)}, {}, "`past_covariates` must be finite"),
        ({"future_covariates": with_one(1e37)}, {}, "`future_covariates` must be within"),
        ({"sample_weight": with_one(np.inf)}, {}, "`sample_weight` must be finite"),
        (
            {"past_covariates": noisy_sine().astype(np.float64)},
            {},
            "`train_dataset` must have values of one type, got `float32`, `float64`",
        ),
    ],
)
def test_data_of_datasets_are_checked(tiny, name, given, arguments, match):
    """As those of `fit()`."""
    plain = {key: noisy_sine() for key in ("series", *given)}
    if arguments:
        plain["series"] = noisy_sine() * 0 + 1
    sets = {
        key: SequentialTorchTrainingDataset(**plain | known, **LENGTHS)
        for key, known in (("train_dataset", {}), (name, given))
    }
    with pytest.raises(ValueError, match=match.replace("train_dataset", name)):
        tiny(**arguments).fit_from_dataset(**sets)


class OwnDataset(TorchTrainingDataset):
    """A user's windows of a series with a future covariate."""

    def __init__(self, **attributes) -> None:
        super().__init__()
        self.windows = [
            TorchTrainingSample(
                past_target=window[:12],
                past_covariates=None,
                historic_future_covariates=window[:12],
                future_covariates=window[12:],
                static_covariates=None,
                future_target=window[12:],
                sample_weight=None,
            )
            for window in (noisy_sine().values()[i : i + 18] for i in range(20))
        ]
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> TorchTrainingSample:
        return self.windows[index]


@pytest.mark.darts_compat
@pytest.mark.parametrize(
    "attributes",
    [
        {"series": [noisy_sine().values()]},
        {"series": noisy_sine()},
        {"series": [noisy_sine()]},
        {"future_covariates": [noisy_sine()], "shift": 6},
    ],
    ids=["arrays", "one series", "several series", "others"],
)
def test_attributes_of_a_users_dataset_are_its_own(tiny, attributes):
    with_them, without = (
        tiny(n_epochs=1).fit_from_dataset(OwnDataset(**given)) for given in (attributes, {})
    )
    assert not changed(state(with_them), state(without))


# --- tuning ---------------------------------------------------------------------------


@pytest.mark.darts_compat
def test_learning_rate_finder(tiny, tmp_path):
    model = tiny({"default_root_dir": str(tmp_path)}, batch_size=4)
    finder = model.lr_find(noisy_sine(), num_training=30, early_stop_threshold=None)
    assert 1e-8 < finder.suggestion() < 1
    # the search leaves the model as it was
    assert model.model is None
    model.fit(noisy_sine())


def losses_of(finder) -> torch.Tensor:
    """Losses of a search, of which it records a running mean, in double precision."""
    smoothed = torch.tensor(finder.results["loss"]).double()
    means = smoothed * (1 - 0.98 ** (torch.arange(len(smoothed)) + 2))
    return (means - 0.98 * torch.nn.functional.pad(means[:-1], (1, 0))) / 0.02


@pytest.mark.parametrize(
    "weights",
    [
        {"peak_kl_weight": 30.0, "overshooting_weight": 0.0, "transition": "gaussian"},
        {"overshooting_weight": 30.0},
    ],
)
def test_learning_rate_finder_compares_losses_of_one_kind(tiny, tmp_path, weights):
    """Under rates that are too small to learn, the losses have no trend."""
    model = tiny({"default_root_dir": str(tmp_path)}, n_epochs=30, **weights)
    rates = dict(min_lr=1e-12, max_lr=1e-11, early_stop_threshold=None)
    losses = losses_of(model.lr_find(noisy_sine(), num_training=100, **rates))
    assert_same_mean(losses[:30], losses[30:])


def test_learning_rate_finder_leaves_a_fitted_model_as_it_was(tiny, tmp_path):
    model = tiny({"default_root_dir": str(tmp_path)}).fit(noisy_sine())
    before = state(model)
    model.lr_find(noisy_sine(), num_training=20, early_stop_threshold=None, epochs=10)
    assert not changed(before, state(model))
    assert model.model.share_done == before["progress"]


@pytest.mark.darts_compat
def test_batch_size_finder(tiny, tmp_path):
    model = tiny({"default_root_dir": str(tmp_path)})
    size = model.scale_batch_size(noisy_sine(), init_val=2, max_trials=2, max_val=8)
    assert size >= 2 and model.batch_size == size
    model.fit(noisy_sine())
    size = model.scale_batch_size(
        [noisy_sine()] * 8, method="predict", n=3, max_trials=2, max_val=8
    )
    assert model.batch_size == size


# --- the model as an object -----------------------------------------------------------


def test_model_parameters_go_round(tiny):
    model = tiny(transition_order=2, peak_kl_weight=2.0)
    for again in (DDSSMModel(**model.model_params), model.untrained_model()):
        assert again.model_params == model.model_params and not again.model_created
    assert "transition_order=2" in repr(model)
    assert model.model_params["pl_trainer_kwargs"] == TRAINER


# --- cost -----------------------------------------------------------------------------


def test_each_series_is_encoded_once(tiny):
    model = tiny().fit(noisy_sine())
    calls = []
    model.model.ssm.encoder.register_forward_hook(lambda *_: calls.append(1))
    model.predict(6, num_samples=500)
    assert len(calls) == 1


def test_paths_in_memory_are_bounded_by_the_batch_size(tiny):
    model = tiny().fit(noisy_sine())
    rows = []
    decoder = model.model.ssm.decoder
    decoder.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    forecast = model.predict(6, num_samples=500, batch_size=4)
    assert forecast.n_samples == 500
    assert sum(rows) == 500 and max(rows) == 4 * (12 + 6)


# --- types ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, other", [("float32", "float64"), ("float64", "float32")])
def test_another_type_is_cast_to_that_of_training(dtype, other):
    """In training beside the first series, in validation and in forecasts."""
    one, two = noisy_sine().astype(dtype), noisy_sine(seed=1).astype(other)
    known = [covariate(100, seed=i).astype(other) for i in (2, 3)]
    arguments = {"past_covariates": known, "future_covariates": known}
    model = tiny_model(n_epochs=1)
    model.fit(
        [one, two],
        val_series=[two, two],
        val_past_covariates=known,
        val_future_covariates=known,
        **arguments,
    )
    assert np.isfinite(model.trainer.callback_metrics["val_loss"].item())
    forecasts = model.predict(3, [two, two], num_samples=5, random_state=0, **arguments)
    assert all(forecast.dtype == dtype for forecast in forecasts)
    same_values = [two.astype(dtype)] * 2
    again = model.predict(3, same_values, num_samples=5, random_state=0, **arguments)
    assert all(same(*pair) for pair in zip(forecasts, again, strict=True))
    backtest = model.historical_forecasts(
        [two, two],
        **arguments,
        start=0.8,
        forecast_horizon=3,
        retrain=False,
        last_points_only=False,
    )
    assert backtest[0][0].dtype == dtype
