"""The scale of the training set and reversible instance normalisation."""

import numpy as np
import pytest
import torch
from darts.models.components.layer_norm_variants import RINorm
from darts.utils.likelihood_models import torch as likelihoods

from darts_ddssm.series import scaling
from darts_ddssm.series.likelihoods import in_units
from darts_ddssm.series.scaling import (
    InstanceFloor,
    LocalPattern,
    Scale,
    instance_scale,
    moved_scale,
    season_of,
)
from tests.helpers import drawn, noisy_sine, same, with_gaps

NO_FLOOR = InstanceFloor(*torch.zeros(3, 1))

# --- the scale of the training set ----------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1e6, 1e12])
@pytest.mark.parametrize("norm", [False, True])
def test_forecast_scales_with_the_series(tiny, scale, norm):
    series = noisy_sine()
    expected = scale * drawn(tiny(use_reversible_instance_norm=norm), series)
    scaled = (scale * series).astype(np.float32)
    actual = drawn(tiny(use_reversible_instance_norm=norm), scaled)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * scale)


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
    whole = Scale(x.new_zeros(2), x.new_ones(2))
    floor = InstanceFloor(*x.new_zeros(3, 2))
    x = x.masked_fill(observed == 0, 1e3)
    scale = instance_scale(rin, x, observed, whole, floor, LocalPattern(12))
    for i in range(3):
        for c in range(2):
            seen = x[i, observed[i, :, c] > 0, c]
            torch.testing.assert_close(scale.shift[i, 0, c], seen.mean())
            std = seen.std(unbiased=False)
            torch.testing.assert_close(scale.spread[i, 0, c], std)


@pytest.mark.parametrize("level_steps", [1, 4, 12])
def test_level_is_the_mean_of_the_last_steps(level_steps):
    """Of what is observed of them, or else of the last values before them."""
    x = torch.randn(3, 12, 2).double()
    observed = torch.ones_like(x)
    observed[0, -3:] = 0.0
    rin = RINorm(input_dim=2, affine=False).double()
    whole = Scale(x.new_zeros(2), x.new_ones(2))
    floor = InstanceFloor(*x.new_zeros(3, 2))
    scale = instance_scale(rin, x, observed, whole, floor, LocalPattern(level_steps))
    for i in (1, 2):
        expected = x[i, -level_steps:].mean(0)
        torch.testing.assert_close(scale.shift[i, 0], expected)
    expected = x[0, -level_steps:-3].mean(0) if level_steps > 3 else x[0, -4]
    torch.testing.assert_close(scale.shift[0, 0], expected)
    spread = instance_scale(rin, x, observed, whole, floor, LocalPattern(12)).spread
    torch.testing.assert_close(scale.spread, spread)


@pytest.mark.parametrize("level_steps, trend_values", [(1, 1), (1, 3), (4, 6), (12, 5)])
@pytest.mark.parametrize("share_missing", [0.0, 0.4])
def test_a_line_is_taken_out(level_steps, trend_values, share_missing):
    """Before and after the origin, whichever values tell of it and whatever is missing."""
    torch.manual_seed(level_steps)
    level, slope = torch.randn(2, 5, 1, 2, dtype=torch.float64)
    time = torch.arange(-12, 6, dtype=torch.float64).unsqueeze(-1)
    x = level + slope * time
    observed = (torch.rand_like(x[:, :12]) >= share_missing).double()
    # enough of them to tell the trend
    observed[:, : trend_values + 1] = 1.0
    rin = RINorm(input_dim=2, affine=False).double()
    whole = Scale(x.new_zeros(2), x.new_ones(2))
    floor = InstanceFloor(x.new_ones(2), x.new_zeros(2), x.new_ones(2))
    past = x[:, :12].masked_fill(observed == 0, 1e3)
    how = LocalPattern(level_steps, trend_values, 1.0)
    scale = instance_scale(rin, past, observed, whole, floor, how)
    zeros = torch.zeros_like(x)
    torch.testing.assert_close(scale.normalise(x, first=-12), zeros, atol=1e-9, rtol=0)
    torch.testing.assert_close(scale.to_data(zeros[:, 12:]), x[:, 12:])
    raw = torch.zeros(5, 6, 2, 2, dtype=torch.float64)
    location = scale.shift_along(6)
    of_data = in_units(likelihoods.GaussianLikelihood(), raw, location, scale.spread)
    torch.testing.assert_close(of_data[..., 0], x[:, 12:])


def test_what_is_missing_may_be_any_number():
    """Also one whose square overflows."""
    x = torch.randn(2, 12, 1)
    observed = torch.ones_like(x)
    observed[:, 4] = 0.0
    scales = []
    for missing in (0.0, 1e30):
        given = x.masked_fill(observed == 0, missing)
        rin, one = RINorm(input_dim=1, affine=False), torch.ones(1)
        floor = InstanceFloor(0 * one, 0 * one, 0 * one)
        whole, how = Scale(0 * one, one), LocalPattern(2, 3, 1.0, 4, 3)
        scales.append(instance_scale(rin, given, observed, whole, floor, how))
    for part, other in zip(*scales, strict=True):
        assert torch.equal(part, other)


def test_a_share_of_the_trend_goes_on():
    """And the spread is that around the line, on which the values are not."""
    torch.manual_seed(0)
    x = torch.randn(3, 12, 1, dtype=torch.float64).cumsum(1)
    late, early = x[:, -4:].mean(1, keepdim=True), x[:, -8:-4].mean(1, keepdim=True)
    rin = RINorm(input_dim=1, affine=False).double()
    whole = Scale(x.new_zeros(1), x.new_ones(1))
    floor = InstanceFloor(*x.new_zeros(3, 1))
    how = LocalPattern(2, 4, 0.5)
    scale = instance_scale(rin, x, torch.ones_like(x), whole, floor, how)
    slope = 0.5 * (late - early) / 4
    torch.testing.assert_close(scale.slope, slope)
    # the mean of the last two values is one and a half steps before the origin
    torch.testing.assert_close(scale.shift, x[:, -2:].mean(1, keepdim=True) + 1.5 * slope)
    rest = x - slope * torch.arange(12).unsqueeze(-1)
    torch.testing.assert_close(scale.spread, rest.std(1, unbiased=False, keepdim=True))


@pytest.mark.parametrize("level_steps, num_cycles", [(1, 2), (3, 4), (8, 3)])
def test_a_season_is_taken_out(level_steps, num_cycles):
    """With the growth of its level, before and after the origin, at any phase."""
    torch.manual_seed(level_steps)
    season = torch.randn(5, 4, 2, dtype=torch.float64)
    season = season - season.mean(1, keepdim=True)
    level = torch.randn(5, 1, 2, dtype=torch.float64)
    # 18 steps before the origin and 7 after it
    phases = torch.arange(-18, 7) % 4
    x = level + season[:, phases]
    rin = RINorm(input_dim=2, affine=False).double()
    whole = Scale(x.new_zeros(2), x.new_ones(2))
    floor = InstanceFloor(*x.new_zeros(3, 2))
    how = LocalPattern(level_steps, season_length=4, season_cycles=num_cycles)
    observed = torch.ones_like(x[:, :18])
    scale = instance_scale(rin, x[:, :18], observed, whole, floor, how)
    zeros = torch.zeros_like(x)
    torch.testing.assert_close(scale.season, season)
    torch.testing.assert_close(scale.normalise(x, first=-18), zeros, atol=1e-9, rtol=0)
    torch.testing.assert_close(scale.to_data(zeros[:, 18:]), x[:, 18:])
    torch.testing.assert_close(scale.to_data(zeros[:, 21:], first=3), x[:, 21:])
    # the spread is that of all that the chunk does
    spread = x[:, :18].std(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(scale.spread, spread)
    growing = x + 0.7 * torch.arange(25, dtype=torch.float64).unsqueeze(-1)
    found = season_of(growing[:, :18], observed, 4, num_cycles)
    torch.testing.assert_close(found, season)


def test_a_season_is_seen_through_gaps(monkeypatch):
    """A cycle that lacks its high steps is not taken for a low one."""
    season = torch.tensor([6.0, 1.0, -2.0, -5.0]).double().view(1, 4, 1)
    x = 100 + season.repeat(1, 4, 1)
    observed = torch.ones_like(x)
    observed[:, [4, 5, 11]] = 0.0
    given = x.masked_fill(observed == 0, 1e3), observed, 4, 4
    assert (season_of(*given) - season).abs().max() < 0.3
    monkeypatch.setattr(scaling, "SEASON_PASSES", 1)
    assert (season_of(*given) - season).abs().max() > 0.6


def test_of_what_is_nowhere_observed_there_is_no_season():
    x = torch.randn(2, 12, 1).double()
    observed = torch.ones_like(x)
    observed[1] = 0.0
    season = season_of(x, observed, 4, 3)
    assert season[0].abs().max() > 0 and torch.equal(season[1], 0 * season[1])


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
    whole = Scale(x.new_zeros(2), x.new_ones(2))
    floor = InstanceFloor(*x.new_zeros(3, 2))
    scale = instance_scale(rin, x, torch.ones_like(x), whole, floor, LocalPattern(12))
    raw = torch.randn(4, 12, 2, 2, dtype=torch.float64)
    normalised, data = (
        likelihood._distr_from_params(likelihood._params_from_output(r))
        for r in (raw, in_units(likelihood, raw, scale.shift, scale.spread))
    )
    expected = normalised.log_prob(scale.normalise(x)) - scale.spread.log()
    torch.testing.assert_close(data.log_prob(x), expected)


def test_instance_norm_of_a_family_without_unit(tiny):
    with pytest.raises(ValueError, match="`use_reversible_instance_norm` must be"):
        tiny(
            likelihood=likelihoods.BetaLikelihood(),
            use_reversible_instance_norm=True,
        )


# --- forecasts of several chunks ------------------------------------------------------


def scale_with_all(num_series: int = 2) -> Scale:
    torch.manual_seed(0)
    parts = torch.randn(3, num_series, 1, 2).double()
    season = torch.randn(num_series, 5, 2).double()
    return Scale(parts[0], parts[1].exp(), parts[2], season)


@pytest.mark.parametrize("num_steps", [1, 5, 12])
def test_a_scale_is_the_same_from_a_later_step_on(num_steps):
    scale = scale_with_all()
    later = scale.later(num_steps)
    for first in (-7, 0, 3):
        expected = scale.shift_along(9, first + num_steps)
        torch.testing.assert_close(later.shift_along(9, first), expected)
    plain = Scale(scale.shift, scale.spread).later(num_steps)
    torch.testing.assert_close(plain.shift, scale.shift)


@pytest.mark.parametrize("affine", [True, False])
def test_a_moved_scale_has_the_level_of_its_path(affine):
    """A path that keeps to line and season at another level, some of it missing."""
    scale, rin = scale_with_all(), RINorm(2, affine=affine)
    if affine:
        torch.nn.init.constant_(rin.affine_bias, 0.3)
    offset = torch.tensor([3.0, -50.0]).double()
    x = scale.shift_along(10, -10) + offset
    observed = torch.ones_like(x)
    observed[:, -1], x[:, -1] = 0.0, 1e3
    # what lies before the last steps tells nothing of the level
    x[:, :6] += 7.0
    pattern = LocalPattern(level_steps=4, trend_values=3, trend_share=1.0)
    moved = moved_scale(rin, x, observed, scale, NO_FLOOR, pattern)
    bias = 0.3 * scale.spread if affine else 0.0
    expected = scale.shift_along(6) + offset - bias
    torch.testing.assert_close(moved.shift_along(6), expected)
    assert torch.equal(moved.spread, scale.spread)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "growth, kept", [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5), (100.0, 3.0), (1e-6, 1 / 3)]
)
def test_a_moved_scale_has_the_spread_of_its_path(affine, growth, kept):
    """Up to a bound; its level is that of the path all the same."""
    rin, pattern, floor = RINorm(2, affine=affine), LocalPattern(4), NO_FLOOR
    if affine:
        torch.nn.init.constant_(rin.affine_bias, 0.3)
        torch.nn.init.constant_(rin.affine_weight, 1.7)
    x = torch.randn(3, 10, 2, dtype=torch.float64) * torch.tensor([1.0, 1e-3])
    known = torch.ones_like(x)
    scale = instance_scale(rin, x, known, Scale.unit(), floor, pattern)
    moved = moved_scale(rin, growth * x, known, scale, floor, pattern)
    torch.testing.assert_close(moved.spread, kept * scale.spread)
    level = growth * x[:, -4:].mean(1, keepdim=True)
    bias = 0.3 * moved.spread if affine else 0.0
    torch.testing.assert_close(moved.shift, level - bias)


def test_a_path_at_rest_is_divided_by_the_floor_at_least():
    floor = InstanceFloor(*torch.tensor([[0.5], [0.0], [0.5]]).double())
    x = torch.zeros(1, 10, 1, dtype=torch.float64)
    known, rin, pattern = torch.ones_like(x), RINorm(1, affine=False), LocalPattern(4)
    scale = instance_scale(rin, x, known, Scale.unit(), floor, pattern)
    moved = moved_scale(rin, x, known, scale, floor, pattern)
    assert moved.spread.item() == scale.spread.item() == 0.5
