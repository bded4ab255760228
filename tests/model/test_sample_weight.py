"""Sample weights in training and validation."""

import numpy as np
import pytest
import torch
from darts import TimeSeries
from darts.metrics import mae
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch

from darts_ddssm.series.batches import training_window
from darts_ddssm.ssm.window import Window
from tests.helpers import UNIT_SCALES, ahead, fitted, noisy_sine, same


def constant(series: TimeSeries, weight) -> TimeSeries:
    """Weights of a series: one for all of it, or one a component."""
    values = np.broadcast_to(np.float32(weight), (len(series), np.size(weight)))
    return TimeSeries.from_times_and_values(series.time_index, values)


# --- what a weight is -----------------------------------------------------------------


def test_weights_of_one_change_nothing(tiny):
    series = noisy_sine(num_components=2)
    forecast = ahead(tiny().fit(series))
    for weight in (1.0, [1.0, 1.0]):
        weighted = tiny().fit(series, sample_weight=constant(series, weight))
        assert same(forecast, ahead(weighted))


def test_one_weight_is_that_of_all_components(tiny):
    series = noisy_sine(num_components=2)
    values = np.random.default_rng(0).random((80, 1)).astype(np.float32)
    forecasts = []
    for num_components in (1, 2):
        weights = constant(series, np.ones(num_components))
        weights = weights.with_values(values.repeat(num_components, axis=1))
        forecasts.append(ahead(tiny().fit(series, sample_weight=weights)))
    assert same(*forecasts)
    assert not same(forecasts[0], ahead(tiny().fit(series)))


@pytest.mark.parametrize("name", ["linear", "exponential"])
def test_weights_by_name(tiny, name):
    """They rise to 1 at the end, as fast in short series as in the longest."""
    series = [noisy_sine(80), noisy_sine(50, seed=1)]
    rise = np.linspace(0, 1, 80)
    values = rise if name == "linear" else np.exp(-10 * (1 - rise))
    weights = [s.with_values(values[-len(s) :, None].astype(np.float32)) for s in series]
    losses, forecasts = [], []
    for weight in (name, weights):
        model = tiny().fit(
            series, sample_weight=weight, val_series=series, val_sample_weight=weight
        )
        losses.append(model.trainer.callback_metrics["val_loss"])
        forecasts.append(ahead(model, series[0]))
    assert losses[0] == losses[1]
    assert same(*forecasts)
    assert not same(forecasts[0], ahead(tiny().fit(series), series[0]))


@pytest.mark.parametrize("name", ["sample_weight", "val_sample_weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_are_finite(tiny, name, value):
    series, values = noisy_sine(), np.ones((80, 1), np.float32)
    values[40] = value
    weights = [constant(series, 1.0), series.with_values(values)]
    validation = {"val_series": [series, series]} if name.startswith("val") else {}
    with pytest.raises(ValueError, match=f"`{name}` must be finite, .* index `1`"):
        tiny().fit([series, series], **validation, **{name: weights})


# --- effects --------------------------------------------------------------------------

QUICK = {"transition": "gaussian", "n_epochs": 20, "optimizer_kwargs": {"lr": 2e-2}}


@pytest.mark.parametrize("regime", [0, 1])
def test_forecast_follows_the_regime_that_counts(tiny, regime):
    """From zero a series goes up in its first half and down in its second."""
    sign = np.repeat([1.0, -1.0], 120)
    rng = np.random.default_rng(0)
    values = sign * np.tile([0.0, 1.0], 120) + 0.1 * rng.standard_normal(240)
    series = TimeSeries.from_values(values.astype(np.float32))
    counts = np.repeat([1.0, 0.0] if regime == 0 else [0.0, 1.0], 120)
    model = tiny(
        input_chunk_length=1,
        output_chunk_length=2,
        **QUICK,
    )
    model.fit(series, sample_weight=TimeSeries.from_values(counts.astype(np.float32)))
    forecast = model.predict(1, series[:101], num_samples=200).quantile(0.5).values()
    expected = 1.0 if regime == 0 else -1.0
    assert abs(forecast[0, 0] - expected) < 0.3


def test_component_that_does_not_count_is_not_learned(tiny):
    """A covariate tells both components; one of them counts."""
    rng = np.random.default_rng(0)
    level = rng.choice([-1.0, 1.0], size=(90, 1))
    values = level * [1.0, -1.0] + 0.1 * rng.standard_normal((90, 2))
    known, series = (TimeSeries.from_values(x.astype(np.float32)) for x in (level, values))
    past, future = series[:70], series[70:]
    errors = []
    for weight in ([1.0, 1.0], [1.0, 0.0]):
        model = tiny(**QUICK)
        weights = constant(past, weight)
        model.fit(past, future_covariates=known, sample_weight=weights)
        forecast = model.predict(20, num_samples=100)
        errors.append(mae(future, forecast, component_reduction=None))
    (first, second), (first_alone, not_learned) = errors
    # the mean of the levels is off by 1
    assert max(first, second, first_alone) < 0.2 and not_learned > 0.4


def val_loss(tiny, val_series, weights) -> float:
    model = tiny(n_epochs=1, batch_size=200)
    model.fit(noisy_sine(), val_series=val_series, val_sample_weight=weights)
    return model.trainer.callback_metrics["val_loss"].item()


def test_weights_of_the_validation_loss(tiny):
    one, other = noisy_sine(seed=1), noisy_sine(seed=2)
    loss = val_loss(tiny, one, None)
    for weight in (0.0, 1.0, 2.0):
        weighted = val_loss(tiny, one, constant(one, weight))
        assert weighted == pytest.approx(weight * loss, rel=1e-5)
    weights = [constant(one, 1.0), constant(one, 0.0)]
    losses = [val_loss(tiny, [one, x], weights) for x in (other, 5 * other)]
    assert losses[0] == losses[1] > 0
    assert val_loss(tiny, [one, other], None) < val_loss(tiny, [one, 5 * other], None)


def test_weights_of_validation_leave_training_alone(tiny):
    series = noisy_sine()
    forecasts = [
        ahead(tiny().fit(series, val_series=series, val_sample_weight=weights))
        for weights in (None, "exponential")
    ]
    assert same(*forecasts)


# --- the KL ---------------------------------------------------------------------------


def kl_part(model, weight: torch.Tensor) -> torch.Tensor:
    """What the KL adds to the loss of windows with these weights (B, T, C)."""
    torch.manual_seed(0)
    x = torch.randn(4, 18, 3)
    none = x[..., :0]
    window = Window(x, torch.ones_like(x), none, none, weight.expand_as(x))
    normalised = model.normalise(window)
    posterior = model.posterior(normalised)
    losses = []
    for kl_weight in (0.0, 1.0):
        torch.manual_seed(1)
        losses.append(model.negative_elbo(normalised, posterior, kl_weight))
    return losses[1] - losses[0]


def test_kl_of_a_window_has_one_weight():
    """Weights of zero for some steps or components do not make it cheaper."""
    model = fitted(num_components=3).model.series_model
    whole = kl_part(model, torch.ones(1, 1, 1))
    assert whole > 0
    steps, components = torch.ones(1, 18, 1), torch.zeros(1, 1, 3)
    steps[:, ::2], components[..., 0] = 0.0, 1.0
    for weight in (steps, components):
        torch.testing.assert_close(kl_part(model, weight), whole)
    torch.testing.assert_close(kl_part(model, torch.full((1, 1, 1), 0.3)), 0.3 * whole)
    # of half of the windows
    rows = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(-1, 1, 1)
    assert 0.1 * whole < kl_part(model, rows) < 0.9 * whole


def test_input_chunk_has_the_greatest_weight_of_the_output_chunk():
    weight = torch.zeros(2, 6, 2)
    weight[0, 1, 0], weight[0, 3, 0], weight[1, 0, 1] = 0.5, 2.0, 1.0
    batch = TorchTrainingBatch(
        past_target=torch.randn(2, 12, 2),
        future_target=torch.randn(2, 6, 2),
        sample_weight=weight,
    )
    window = training_window(batch, 3, 1, UNIT_SCALES)
    assert torch.equal(window.weight[:, -6:], weight)
    expected = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).unsqueeze(1).expand(-1, 15, -1)
    assert torch.equal(window.weight[:, :-6], expected)
