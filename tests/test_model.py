"""
DDSSMModel as a user of darts calls it.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import covariate, noisy_sine
from darts import TimeSeries
from darts.metrics import mcrps
from darts.models import ExponentialSmoothing, NaiveEnsembleModel
from darts.models.components.layer_norm_variants import RINorm
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch
from darts.utils.likelihood_models import torch as likelihoods
from darts.utils.serialization import safe_globals
from darts.utils.timeseries_generation import linear_timeseries
from pytorch_lightning.callbacks import Callback

from darts_ddssm import DDSSMModel
from darts_ddssm.scaling import instance_scale
from darts_ddssm.window import training_window

TRANSITIONS = ("diffusion", "gaussian")
ORDERS = (1, 2, None)


def with_gaps(series: TimeSeries, where) -> TimeSeries:
    values = series.values(copy=True)
    values[where] = np.nan
    return series.with_values(values)


def same(one: TimeSeries, other: TimeSeries) -> bool:
    return np.array_equal(one.all_values(), other.all_values())


# --- fit and predict ------------------------------------------------------------------


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
    model = tiny(transition_order=1, n_epochs=10, optimizer_kwargs={"lr": 1e-2})
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


# --- covariates -----------------------------------------------------------------------


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("future", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_covariates_of_every_kind(tiny, past, future, static):
    series = noisy_sine(num_components=2)
    if static:
        series = series.with_static_covariates(pd.DataFrame({"a": [1.0], "b": [2.0]}))
    covariates = {}
    if past:
        # ends with the series, whatever the horizon
        covariates["past_covariates"] = covariate(80, num_components=2)
    if future:
        covariates["future_covariates"] = covariate(95)
    model = tiny().fit(series, **covariates)
    assert model.uses_static_covariates is static
    assert model.predict(15, num_samples=2).shape == (15, 2, 2)


def test_component_specific_static_covariates(tiny):
    static = pd.DataFrame({"a": [1.0, -1.0]})
    series = noisy_sine(num_components=2).with_static_covariates(static)
    assert tiny().fit(series).predict(3).n_components == 2
    without = tiny(use_static_covariates=False).fit(series)
    assert not without.uses_static_covariates


def test_forecast_follows_a_future_covariate(tiny):
    """A covariate that is the level of the series decides the forecast."""
    rng = np.random.default_rng(0)
    level = rng.choice([-1.0, 1.0], size=(200, 1)).astype(np.float32)
    known = TimeSeries.from_values(level)
    noise = 0.1 * rng.standard_normal((180, 1)).astype(np.float32)
    series = TimeSeries.from_values(level[:180] + noise)
    model = tiny(n_epochs=30, optimizer_kwargs={"lr": 1e-2})
    model.fit(series, future_covariates=known)
    forecast = model.predict(20, num_samples=100).quantile(0.5).values()
    assert np.corrcoef(forecast[:, 0], level[180:, 0])[0, 1] > 0.9


def test_future_covariates_too_short(tiny):
    model = tiny().fit(noisy_sine(), future_covariates=covariate(86))
    with pytest.raises(ValueError, match="future_covariates"):
        model.predict(12)


def test_output_chunk_shift(tiny):
    series = noisy_sine()
    model = tiny(output_chunk_shift=3).fit(series, future_covariates=covariate(100))
    forecast = model.predict(6, num_samples=2)
    assert forecast.start_time() == series.end_time() + 4 * series.freq
    with pytest.raises(ValueError, match="auto-regression"):
        model.predict(7)


# --- missing values -------------------------------------------------------------------


def test_missing_values_in_training_and_context(tiny):
    rng = np.random.default_rng(0)
    series = noisy_sine(num_components=2)
    gaps = rng.random((80, 2)) < 0.3
    gaps[-4:] = True
    model = tiny().fit(with_gaps(series, gaps), val_series=with_gaps(series, gaps))
    assert np.isfinite(model.trainer.callback_metrics["val_loss"].item())
    assert np.isfinite(model.predict(6, num_samples=3).all_values()).all()


def test_a_gap_says_nothing(tiny):
    """Windows whose gaps hold different values give one loss."""
    target = torch.randn(4, 12, 2)
    target[:, 5:8] = torch.nan
    batch = TorchTrainingBatch(past_target=target, future_target=torch.randn(4, 6, 2))
    window = training_window(batch, gap=0)
    assert torch.isfinite(window.x).all()
    module = tiny().fit(noisy_sine(num_components=2)).model.eval()
    losses = []
    for value in (0.0, 1e6):
        x = torch.where(window.observed > 0, window.x, value)
        torch.manual_seed(0)
        losses.append(module.negative_elbo(window._replace(x=x), kl_weight=1.0))
    assert losses[0] == losses[1]


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


# --- likelihoods ----------------------------------------------------------------------

ANY = noisy_sine(num_components=2).values()
POSITIVE = np.exp(ANY)
COUNTS = np.round(3 * POSITIVE)
SHARES = POSITIVE / POSITIVE.sum(1, keepdims=True)
FAMILIES = {
    "Gaussian": ANY,
    "Laplace": ANY,
    "Cauchy": ANY,
    "Gumbel": ANY,
    "Gamma": POSITIVE,
    "Exponential": POSITIVE,
    "HalfNormal": POSITIVE,
    "LogNormal": POSITIVE,
    "Weibull": POSITIVE,
    "Poisson": COUNTS,
    "NegativeBinomial": COUNTS,
    "Geometric": COUNTS,
    "Bernoulli": (ANY > 0).astype(float),
    "Beta": SHARES,
    "ContinuousBernoulli": SHARES,
    "Dirichlet": SHARES,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_density_trains_and_samples_in_its_support(tiny, family):
    likelihood = getattr(likelihoods, f"{family}Likelihood")()
    values = FAMILIES[family].astype(np.float32)
    series = noisy_sine(num_components=2).with_values(values)
    model = tiny(likelihood=likelihood).fit(with_gaps(series, (slice(20, 24), 1)))
    forecast = model.predict(6, num_samples=20).all_values()
    assert np.isfinite(forecast).all()
    if values is not FAMILIES["Gaussian"] and family not in ("Laplace", "Cauchy"):
        assert (forecast >= 0).all() or family in ("Gaussian", "Gumbel")
    if family in ("Poisson", "NegativeBinomial", "Geometric", "Bernoulli"):
        np.testing.assert_array_equal(forecast, forecast.round())
    if family in ("Beta", "ContinuousBernoulli", "Dirichlet", "Bernoulli"):
        assert (forecast <= 1).all()
    if family == "Dirichlet":
        np.testing.assert_allclose(forecast.sum(1), 1.0, rtol=1e-5)


def test_all_densities_of_darts_are_tested():
    names = {n.removesuffix("Likelihood") for n in dir(likelihoods)}
    types = {t.name for t in likelihoods.LikelihoodType}
    assert names & types == set(FAMILIES)


def test_likelihood_parameters_are_the_moments_of_the_samples(tiny):
    model = tiny(n_epochs=5).fit(noisy_sine(num_components=2))
    parameters = model.predict(6, predict_likelihood_parameters=True)
    names = ["0_mu", "0_sigma", "1_mu", "1_sigma"]
    assert parameters.components.tolist() == names
    samples = model.predict(6, num_samples=4000).all_values()
    # five standard errors of a mean of 4,000 samples and of the parameters' own 500
    error = 5 * samples.std(2) * (1 / 4000 + 1 / 500) ** 0.5
    assert (np.abs(parameters.values()[:, ::2] - samples.mean(2)) < error).all()
    np.testing.assert_allclose(parameters.values()[:, 1::2], samples.std(2), rtol=0.2)


def test_likelihood_parameters_of_no_marginal(tiny):
    positive = noisy_sine().map(lambda x: np.exp(x))
    model = tiny(likelihood=likelihoods.GammaLikelihood()).fit(positive)
    with pytest.raises(ValueError, match="predict_likelihood_parameters"):
        model.predict(3, predict_likelihood_parameters=True)


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


# --- training -------------------------------------------------------------------------


def test_validation_and_best_checkpoint(tiny, tmp_path):
    series = noisy_sine()
    arguments = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    model = tiny(**arguments).fit(series, val_series=series, load_best=True)
    loaded = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=True)
    forecasts = [
        m.predict(4, series, num_samples=3, random_state=1) for m in (model, loaded)
    ]
    assert same(*forecasts)


def test_save_and_load(tiny, tmp_path):
    model = tiny().fit(noisy_sine())
    forecast = model.predict(4, num_samples=3, random_state=1)
    path = str(tmp_path / "model.pt")
    model.save(path)
    loaded = DDSSMModel.load(path)
    assert same(forecast, loaded.predict(4, num_samples=3, random_state=1))
    weights = tiny()
    weights.load_weights(path)
    assert same(forecast, weights.predict(4, noisy_sine(), num_samples=3, random_state=1))


def test_forecasts_use_averaged_weights(tiny, tmp_path):
    """With a large step the last weights jump about; the average does not."""
    arguments = dict(
        save_checkpoints=True,
        work_dir=str(tmp_path),
        model_name="m",
        n_epochs=4,
        optimizer_kwargs={"lr": 0.05},
    )
    model = tiny(**arguments).fit(noisy_sine())
    (path,) = (tmp_path / "m" / "checkpoints").glob("last-*")
    checkpoint = torch.load(path, weights_only=False)
    name = "ssm.decoder.bypass.weight"
    average, last = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert not torch.equal(average[name], last[name])
    used = model.model.state_dict()[name]
    torch.testing.assert_close(used, average[name])


class KLWeights(Callback):
    """Record the weight of the divergence in every update."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append(pl_module.kl_weight)


def test_kl_weight_starts_low_and_ends_at_one(tiny):
    record = KLWeights()
    model = tiny({"callbacks": [record]}, n_epochs=10, peak_kl_weight=3)
    model.fit(noisy_sine())
    assert record.weights[0] == pytest.approx(0.05)
    assert max(record.weights) == 3.0
    assert record.weights[-1] == 1.0
    record.weights.clear()
    # a fitted model does not go through it again
    model.fit(noisy_sine(), epochs=2)
    assert set(record.weights) == {1.0}


def test_gradient_is_clipped_by_default(tiny):
    norms = []

    class Norm(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(grads).item())

    series = 100 * noisy_sine()
    tiny({"callbacks": [Norm()]}).fit(series)
    assert max(norms) > 1.0
    norms.clear()

    class ClippedNorm(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads:
                norms.append(torch.nn.utils.get_total_norm(grads).item())

    tiny({"callbacks": [ClippedNorm()]}).fit(series)
    assert max(norms) <= 1.0 + 1e-4
    norms.clear()
    tiny({"callbacks": [ClippedNorm()], "gradient_clip_val": 0}).fit(series)
    assert max(norms) > 1.0


# --- beside darts' own ----------------------------------------------------------------


def test_backtest_and_ensemble(tiny):
    series = noisy_sine()
    model = tiny().fit(series)
    score = model.backtest(
        series,
        forecast_horizon=8,
        stride=8,
        retrain=False,
        num_samples=5,
        metric=mcrps,
    )
    assert np.isfinite(score)
    members = [tiny(), ExponentialSmoothing(seasonal_periods=12)]
    ensemble = NaiveEnsembleModel(members).fit(series)
    assert ensemble.predict(4, num_samples=5).n_samples == 5


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["latent_dim", "hidden_size", "num_solver_steps", "transition_order"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_sizes_must_be_positive_integers(tiny, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `{value!r}`"):
        tiny(**{name: value})


@pytest.mark.parametrize("name", ["latent_dim", "hidden_size", "num_solver_steps"])
def test_sizes_must_not_be_none(tiny, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got `None`"):
        tiny(**{name: None})


def test_num_solver_steps_is_checked_when_changed(tiny):
    model = tiny()
    with pytest.raises(ValueError, match="`num_solver_steps` must be .* got `0`"):
        model.num_solver_steps = 0


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_peak_kl_weight_must_be_a_positive_number(tiny, value):
    with pytest.raises(ValueError, match=f"`peak_kl_weight` must be .* got `{value!r}`"):
        tiny(peak_kl_weight=value)


def test_transition_must_be_known(tiny):
    with pytest.raises(ValueError, match="`transition` must be .* got `'laplace'`"):
        tiny(transition="laplace")


def test_likelihood_must_be_a_density(tiny):
    with pytest.raises(ValueError, match="`likelihood` .*no|`likelihood` must be a d"):
        tiny(likelihood=likelihoods.QuantileRegression())
    with pytest.raises(ValueError, match="`likelihood` must be one of .*'gaussian'"):
        tiny(likelihood="gaussian")


def test_unknown_argument(tiny):
    with pytest.raises(ValueError, match="no args/kwargs `\\['latent_size'\\]`"):
        tiny(latent_size=3)


def test_series_must_have_observed_values(tiny):
    nothing = with_gaps(noisy_sine(), slice(None))
    with pytest.raises(ValueError, match="`series` must have observed .* index `1`"):
        tiny().fit([noisy_sine(), nothing])
    with pytest.raises(ValueError, match="`series` must have observed"):
        tiny().fit(noisy_sine()).predict(3, nothing)


def test_infinite_values(tiny):
    broken = noisy_sine(100).values(copy=True)
    broken[5] = np.inf
    broken = noisy_sine(100).with_values(broken)
    series = noisy_sine()
    with pytest.raises(ValueError, match="`series` must be finite"):
        tiny().fit(broken)
    with pytest.raises(ValueError, match="`past_covariates` must be finite"):
        tiny().fit(series, past_covariates=broken)
    with pytest.raises(ValueError, match="`future_covariates` must be finite"):
        tiny().fit(series, future_covariates=broken)


def test_values_outside_the_support(tiny):
    model = tiny(likelihood=likelihoods.PoissonLikelihood())
    with pytest.raises(ValueError, match="`series` must lie in the support of `Poi"):
        model.fit(noisy_sine())
    counts = noisy_sine().with_values(COUNTS[:, :1].astype(np.float32))
    with pytest.raises(ValueError, match="`series` must lie in the support"):
        model.fit(counts).predict(3, counts - 100)


class Break(Callback):
    """Spoil the weights in the third epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            pl_module.ssm.decoder.bypass.weight.data.fill_(torch.nan)


def test_loss_that_becomes_non_finite_stops_training(tiny, tmp_path):
    """The checkpoint saved before the failure still loads and forecasts."""
    arguments = dict(save_checkpoints=True, work_dir=str(tmp_path), model_name="m")
    model = tiny({"callbacks": [Break()]}, n_epochs=5, **arguments)
    series = noisy_sine()
    with pytest.raises(RuntimeError, match="non-finite .* smaller learning rate"):
        model.fit(series, val_series=series)
    with safe_globals([Break]):
        loaded = DDSSMModel.load_from_checkpoint("m", str(tmp_path), best=False)
    assert np.isfinite(loaded.predict(3, series).values()).all()


def test_series_too_short(tiny):
    with pytest.raises(ValueError, match="too short"):
        tiny().fit(linear_timeseries(length=10).astype(np.float32))
