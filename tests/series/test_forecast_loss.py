"""The loss of forecasts of several steps."""

import copy

import numpy as np
import pytest
import scoringrules as sr
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import GammaLikelihood

from darts_ddssm.series.forecast_loss import forecast_loss
from darts_ddssm.series.model import NormalisedWindow
from darts_ddssm.ssm.window import Window
from tests.helpers import noisy_sine

INPUT, OUTPUT = 12, 6


def window_of(num_series: int = 4) -> Window:
    torch.manual_seed(0)
    x = torch.randn(num_series, INPUT + OUTPUT, 1)
    none = x.new_empty(num_series, INPUT + OUTPUT, 0)
    return Window(x, torch.ones_like(x), none, none, torch.ones_like(x))


@pytest.fixture
def model(tiny):
    return tiny(num_solver_steps=6).fit(noisy_sine())


def scored(model, window: Window) -> torch.Tensor:
    series_model = model.model.series_model
    normalised = NormalisedWindow(window, series_model.scales.target, window.x)
    return forecast_loss(series_model, normalised, num_samples=2, num_solver_steps=6)


def test_it_is_the_crps_of_the_forecast(model):
    """Two samples estimate it without bias: five standard errors of 400 draws."""
    module, window = model.model, window_of()
    with torch.no_grad():
        draws = np.array([scored(model, window).item() for _ in range(400)])
        past = Window(*(x[:, :INPUT] for x in window))
        encoded = module.series_model.encode(past)
        history = module.series_model.sample_states(encoded, 2000, 6).history
        ahead = torch.empty(len(window.x) * 2000, OUTPUT, 0)
        raw = module.ssm.decoder(module.ssm.roll_out(history, ahead, 6), ahead)
        samples = module.likelihood.sample(raw).unflatten(0, (2000, -1)).numpy()
    exact = sr.crps_ensemble(window.x[:, INPUT:].numpy(), np.moveaxis(samples, 0, -1))
    error = draws.std(ddof=1) / len(draws) ** 0.5
    assert abs(draws.mean() - exact.mean()) < 5 * error
    assert error < 0.05 * exact.mean()


def test_missing_values_and_weights(model):
    """What is not observed or has no weight does not count."""
    window = window_of()
    blank = torch.zeros_like(window.x)
    for name in ("observed", "weight"):
        assert scored(model, window._replace(**{name: blank})) == 0
    wild = window.x.clone()
    wild[:, -1] = 1e6
    seen = window.observed.clone()
    seen[:, -1] = 0
    assert scored(model, window._replace(x=wild, observed=seen)) < 100


@torch.no_grad()
def test_no_raw_parameter_is_too_small(model):
    """A scale that would be rounded to zero is no error of torch."""
    copied = copy.deepcopy(model)
    bias = copied.model.ssm.decoder.network[-1].bias
    bias.view(1, 2)[:, 1] = -1e4
    assert scored(copied, window_of()).isfinite()


def test_the_encoder_does_not_learn_from_it(model):
    ssm = model.model.ssm
    scored(model, window_of()).backward()
    learning = {
        name.split(".")[0]
        for name, parameter in ssm.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert learning == {"transition", "decoder"}


@pytest.fixture
def affine(tiny):
    """Return a model with an affine weight as if it had learned it."""
    model = tiny(num_solver_steps=6, use_reversible_instance_norm=True).fit(noisy_sine())
    with torch.no_grad():
        model.model.rin.affine_weight.fill_(0.25)
        model.model.rin.affine_bias.fill_(0.1)
    return model


def scored_with_norm(model, window: Window) -> torch.Tensor:
    series_model = model.model.series_model
    return forecast_loss(series_model, series_model.normalise(window), 8, 6)


def test_its_unit_is_the_spread_of_the_input_chunk_whatever_the_affine_weight(affine):
    """As of forecasts by `predict`: five standard errors of 80 draws."""
    window = window_of()
    with torch.no_grad():
        draws = np.array([scored_with_norm(affine, window).item() for _ in range(80)])
    x = window.x.numpy()
    past = [TimeSeries.from_values(chunk) for chunk in x[:, :INPUT]]
    forecasts = affine.predict(OUTPUT, past, num_samples=2000, random_state=0)
    samples = np.stack([forecast.all_values() for forecast in forecasts])
    spread = x[:, :INPUT].std(1, keepdims=True)
    exact = sr.crps_ensemble(x[:, INPUT:] / spread, samples / spread[..., None])
    error = draws.std(ddof=1) / len(draws) ** 0.5
    assert abs(draws.mean() - exact.mean()) < 5 * error
    assert error < 0.05 * exact.mean()


def test_the_affine_map_does_not_learn_from_it(affine):
    affine.model.zero_grad()
    scored_with_norm(affine, window_of()).backward()
    assert all(parameter.grad is None for parameter in affine.model.rin.parameters())


def weights(model) -> np.ndarray:
    return torch.nn.utils.parameters_to_vector(model.model.parameters()).detach().numpy()


@pytest.mark.parametrize(
    "arguments, has_effect",
    [
        ({}, True),
        ({"transition": "gaussian"}, True),
        ({"output_chunk_length": 1}, True),
        ({"likelihood": GammaLikelihood()}, False),
    ],
)
def test_when_it_takes_part(tiny, arguments, has_effect):
    series = noisy_sine() + 5.0
    with_it, without = (
        tiny(n_epochs=3, overshooting_weight=weight, **arguments).fit(series)
        for weight in (1.0, 0.0)
    )
    assert (weights(with_it) != weights(without)).any() == has_effect


def test_validation_asks_how_good_forecasts_are(tiny):
    """As those of `predict` are: five standard errors of both, in the training's unit."""
    series, held_out = noisy_sine(), noisy_sine(INPUT + OUTPUT, seed=1)
    model = tiny(n_epochs=1, num_solver_steps=6).fit(series, val_series=held_out)
    logged = model.trainer.callback_metrics["val_loss"].item()
    forecast = model.predict(OUTPUT, held_out[:INPUT], num_samples=2000)
    samples = forecast.all_values()[:, 0]
    actual = held_out.values()[INPUT:, 0]
    expected = sr.crps_ensemble(actual, samples).mean() / series.values().std()
    parts = [
        sr.crps_ensemble(actual, part).mean() for part in np.split(samples, 50, axis=1)
    ]
    error = np.std(parts) / series.values().std()
    assert abs(logged - expected) < 5 * error
    assert error < 0.2 * expected


def test_validation_asks_for_the_elbo_where_forecasts_are_not_trained(tiny):
    series = noisy_sine() + 5.0
    metrics = [
        tiny(**arguments).fit(series, val_series=series).trainer.callback_metrics
        for arguments in (
            {},
            {"output_chunk_length": 1},
            {"overshooting_weight": 0},
            {"likelihood": GammaLikelihood()},
        )
    ]
    assert all(has["val_loss"] < has["val_negative_elbo"] for has in metrics[:2])
    assert all("val_negative_elbo" not in other for other in metrics[2:])
