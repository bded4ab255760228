"""The scale of the training set and reversible instance normalisation."""

import numpy as np
import pytest
import torch
from conftest import noisy_sine, same, with_gaps
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.models.components.layer_norm_variants import RINorm
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm import DDSSMModel
from darts_ddssm.scaling import instance_scale, prefers_instance_scale

# --- the scale of the training set ----------------------------------------------------


def drawn(model, series: TimeSeries) -> np.ndarray:
    forecast = model.fit(series).predict(6, num_samples=20, random_state=0)
    return forecast.all_values()


@pytest.mark.parametrize("scale", [1e-12, 1e6, 1e12])
@pytest.mark.parametrize("norm", [False, True])
def test_forecast_scales_with_the_series(tiny, scale, norm):
    series = noisy_sine()
    expected = scale * drawn(tiny(use_reversible_instance_norm=norm), series)
    scaled = (scale * series).astype(np.float32)
    actual = drawn(tiny(use_reversible_instance_norm=norm), scaled)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * scale)


def test_forecast_scales_with_a_scaled_series(tiny):
    forecasts = []
    for scale in (1.0, 1e6):
        scaler = Scaler()
        scaled = scaler.fit_transform(scale * noisy_sine())
        forecast = tiny().fit(scaled).predict(6, num_samples=20, random_state=0)
        forecasts.append(scaler.inverse_transform(forecast).all_values() / scale)
    np.testing.assert_allclose(*forecasts, rtol=1e-3, atol=1e-3)


def test_offset_of_64_bit_series_is_exact(tiny):
    """In double precision values far from zero keep their variation."""
    series = noisy_sine().astype(np.float64)
    expected = drawn(tiny(), series)
    np.testing.assert_allclose(drawn(tiny(), series + 1e9) - 1e9, expected, atol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 1e-12, -3.0, 1e12])
@pytest.mark.parametrize("norm", [False, True])
def test_constant_is_forecast_as_itself(tiny, constant, norm):
    """Beside a component that moves, too."""
    series = noisy_sine(num_components=2)
    values = series.values(copy=True)
    values[:, 0] = constant
    for one in (series.with_values(values), series.with_values(values)["0"]):
        model = tiny(use_reversible_instance_norm=norm)
        forecast = drawn(model, one)[:, 0]
        # a constant of zero has no scale of its own
        allowed = 1e-5 * abs(constant) or 1e-5
        np.testing.assert_allclose(forecast, constant, rtol=0, atol=allowed)


def test_loss_is_in_nats_of_the_data(tiny):
    """Ten times the series has log(10) more a value."""
    losses = []
    for scale in (1.0, 10.0):
        series = scale * noisy_sine()
        model = tiny().fit(series, val_series=series)
        losses.append(model.trainer.callback_metrics["val_negative_elbo"].item())
    assert losses[1] - losses[0] == pytest.approx(np.log(10), abs=1e-3)


def test_scale_is_that_of_the_observed_values(tiny):
    """Of all series of the training set."""
    one, other = noisy_sine(), with_gaps(noisy_sine(seed=1) + 5, slice(20, 50))
    module = tiny(n_epochs=1).fit([one, other]).model
    windows = []
    for series in (one, other):
        values = series.values()[:, 0]
        windows += [values[i : i + 18] for i in range(80 - 17)]
    values = np.concatenate(windows)
    assert module.target_shift.item() == pytest.approx(np.nanmean(values), rel=1e-4)
    assert module.target_spread.item() == pytest.approx(np.nanstd(values), rel=1e-4)


# --- reversible instance normalisation ------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_follows_shift_and_scale_of_a_series(tiny, affine):
    """A forecast of 100 x + 1,000 is the forecast of x, mapped likewise."""
    series = with_gaps(noisy_sine(), slice(70, 74))
    norm = {"affine": affine, "eps": 1e-9}
    model = tiny(use_reversible_instance_norm=norm).fit(series)
    forecast = model.predict(6, series, num_samples=20, random_state=0)
    mapped = model.predict(6, 100 * series + 1000, num_samples=20, random_state=0)
    expected = 100 * forecast.all_values() + 1000
    np.testing.assert_allclose(mapped.all_values(), expected, rtol=1e-4)


@pytest.mark.parametrize("where", [slice(-12, None), slice(-12, -1)])
def test_instance_norm_of_an_input_chunk_with_little_in_it(tiny, where):
    """Nothing observed, or one value: the forecast is finite, in the data's range."""
    series = noisy_sine()
    model = tiny(use_reversible_instance_norm=True).fit(series)
    forecast = model.predict(6, with_gaps(series, where), num_samples=50).all_values()
    assert np.abs(forecast).max() < 10


def test_instance_norm_is_not_misled_by_what_is_missing(tiny):
    """Observed values have one scale, whatever stands in the gaps beside them."""
    x = torch.randn(3, 12, 2).double()
    observed = (torch.rand(x.shape) > 0.4).double()
    observed[:, 0] = 1.0
    rin = RINorm(input_dim=2, affine=False).double()
    scale = instance_scale(rin, x.masked_fill(observed == 0, 1e3), observed)
    for i in range(3):
        for c in range(2):
            seen = x[i, observed[i, :, c] > 0, c]
            torch.testing.assert_close(scale.shift[i, 0, c], seen.mean())
            std = (seen.var(unbiased=False) + rin.eps).sqrt()
            torch.testing.assert_close(scale.spread[i, 0, c], std)


def test_instance_norm_changes_the_model(tiny):
    series = noisy_sine()
    trend = np.linspace(0, 5, 80, dtype=np.float32)[:, None]
    series = series.with_values(series.values() + trend)
    one, other = (
        tiny(use_reversible_instance_norm=norm).fit(series).predict(3, random_state=0)
        for norm in (False, True)
    )
    assert not same(one, other)


def test_instance_norm_keeps_the_likelihood_of_the_data():
    """Raw parameters mapped back give the density of x, by change of variables."""
    torch.manual_seed(0)
    likelihood = likelihoods.GaussianLikelihood()
    x = 50 + 3 * torch.randn(4, 12, 2, dtype=torch.float64)
    rin = RINorm(input_dim=2).double()
    with torch.no_grad():
        rin.affine_weight.copy_(torch.tensor([0.5, 2.0]))
        rin.affine_bias.copy_(torch.tensor([-1.0, 1.0]))
    scale = instance_scale(rin, x, torch.ones_like(x))
    raw = torch.randn(4, 12, 2, 2, dtype=torch.float64)
    normalised, data = (
        likelihood._distr_from_params(likelihood._params_from_output(r))
        for r in (raw, scale.parameters_to_data(raw))
    )
    expected = normalised.log_prob(scale.normalise(x)) - scale.spread.log()
    torch.testing.assert_close(data.log_prob(x), expected)


def test_instance_norm_of_a_family_without_location(tiny):
    with pytest.raises(ValueError, match="`use_reversible_instance_norm` must be"):
        tiny(
            likelihood=likelihoods.PoissonLikelihood(),
            use_reversible_instance_norm=True,
        )


# --- whose scale, by the training series ----------------------------------------------


def drifting(length: int = 120) -> TimeSeries:
    """A sine on a rising line."""
    return noisy_sine(length) + np.linspace(0, 20, length, dtype=np.float32)[:, None, None]


def intermittent() -> TimeSeries:
    """Zero, but for pulses of different heights at random."""
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.04) * rng.exponential(size=400)
    return TimeSeries.from_values(values.astype(np.float32))


def walk(seed: int) -> TimeSeries:
    """A stationary autoregression that forgets within a window."""
    noise = np.random.default_rng(seed).standard_normal(600)
    x = np.zeros(600)
    for t in range(1, 600):
        x[t] = 0.5 * x[t - 1] + noise[t]
    return TimeSeries.from_values(x.astype(np.float32))


@pytest.mark.parametrize(
    "series, drifts",
    [
        ([noisy_sine(120)], False),
        ([drifting()], True),
        ([drifting() * 1e-9], True),
        ([TimeSeries.from_values(np.full((60, 1), 3.0))], False),
        # two levels, each of which stays
        ([noisy_sine(120), noisy_sine(120) + 50.0], True),
        # too short to tell
        ([drifting()[:19]], False),
        # a constant here and there, and for long
        ([intermittent()], False),
        ([noisy_sine(120).stack(noisy_sine(120).with_columns_renamed("0", "1"))], False),
        *(([walk(seed)], False) for seed in range(5)),
    ],
)
def test_drift_is_recognised(series, drifts):
    values = [one.all_values(copy=True) for one in series]
    assert prefers_instance_scale(series, 12, 0, 6) == drifts
    for one, before in zip(series, values, strict=True):
        assert (one.all_values() == before).all()
    blank = [slice(i, i + 2) for i in range(0, 120, 5)]
    for where in blank:
        series = [with_gaps(one, where) for one in series]
    assert prefers_instance_scale(series, 12, 0, 6) == drifts
    # a single value has no scale
    assert not prefers_instance_scale(series, 1, 0, 6)


@pytest.mark.parametrize("norm, by_instance", [(None, True), (True, True), (False, False)])
def test_drifting_series_are_normalised_window_by_window(tiny, norm, by_instance):
    model = tiny(use_reversible_instance_norm=norm).fit(drifting())
    assert bool(model.model.by_instance) == by_instance
    if by_instance:
        with pytest.raises(ValueError, match="unless set to `False`"):
            model.log_likelihood()
    else:
        assert np.isfinite(model.log_likelihood())


def test_steady_series_have_one_scale(tiny):
    auto, off = (
        drawn(tiny(use_reversible_instance_norm=norm), noisy_sine())
        for norm in (None, False)
    )
    np.testing.assert_array_equal(auto, off)


def test_other_likelihoods_have_one_scale(tiny):
    series = drifting() + 5.0
    model = tiny(likelihood=likelihoods.GammaLikelihood()).fit(series)
    assert not model.model.by_instance
    assert np.isfinite(model.log_likelihood())


def test_whose_scale_is_saved(tiny, tmp_path):
    model = tiny().fit(drifting())
    path = str(tmp_path / "model.pt")
    model.save(path)
    forecasts = [
        one.predict(4, num_samples=3, random_state=1).all_values()
        for one in (model, DDSSMModel.load(path))
    ]
    np.testing.assert_array_equal(*forecasts)
    fresh = tiny()
    fresh.load_weights(path)
    assert fresh.model.by_instance
