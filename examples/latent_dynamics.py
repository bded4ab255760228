"""
Latent dynamics: what the model has learned beneath a series, and what fills its gaps.

(a) A simulated walk that jumps up or down at every step, with its true states: recovered
    states against the true ones, the learned transition against the true one, and the
    likelihood of series never trained on against that of the process itself. With the
    diffusion transition and, to compare, the Gaussian one. Then a gap: the ways through
    it, the state while they are open, and the observation that decides between them. A
    scenario: the ways to a value that is given six steps ahead. And an anomaly, found by
    the log-density of each step and a detector of darts.
(b) Atmospheric carbon dioxide, weekly, which comes with statsmodels: a fifth of the
    values cut out in blocks of 4 to 20 weeks and imputed, against linear interpolation
    by darts; then the gaps that the series has by itself.

Writes six pictures, needs no network, and takes about ten minutes on two cores.

    python examples/latent_dynamics.py --output-dir examples/output
"""

import argparse
import logging
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import scoringrules as sr
import torch
from darts import TimeSeries
from darts.ad import QuantileDetector
from darts.utils.missing_values import fill_missing_values
from sklearn.linear_model import LinearRegression
from statsmodels.datasets import co2

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import SimulatedSeries, bimodal_random_walk
from darts_ddssm.plotting import plot_density, plot_latents, plot_transition_density

TRAINER = {"accelerator": "cpu", "enable_model_summary": False, "logger": False}


def mean_states(latents: list[TimeSeries]) -> np.ndarray:
    """Mean of the samples of states: (N, T, D)."""
    return np.stack([z.all_values().mean(-1) for z in latents])


def simulated(output_dir: Path, updates: int) -> None:
    """Fit both transitions to a bimodal walk and look beneath."""
    train = bimodal_random_walk(1024, length=32, random_state=0)
    test = bimodal_random_walk(64, length=32, random_state=1)
    num_values = test.series[0].n_timesteps
    oracle = [test.process.log_likelihood(s.values()) / num_values for s in test.series]
    rows = {"true process": (np.mean(oracle), 1.0, 1.0, 0.0)}
    models = {}
    for transition in ("diffusion", "gaussian"):
        model = DDSSMModel(
            input_chunk_length=28,
            output_chunk_length=4,
            latent_dim=2,
            transition_order=1,
            transition=transition,
            batch_size=64,
            random_state=0,
            pl_trainer_kwargs=TRAINER | {"max_steps": updates},
        )
        start = time.perf_counter()
        models[transition] = model.fit(train.series)
        seconds = time.perf_counter() - start
        fit, r2 = recovery(model, test)
        near = np.mean(np.abs(np.abs(jumps(model, fit, test)) - test.process.step) < 1)
        likelihood = np.mean(model.log_likelihood(test.series))
        rows[f"DDSSM, {transition}"] = (likelihood, r2, near, seconds)
    print_table(
        "64 series never trained on",
        ["nats per value", "R2 of state", "near a mode", "seconds"],
        rows,
    )
    draw_states(output_dir, models["diffusion"], test)
    draw_transitions(output_dir, models, test)
    draw_forecast(output_dir, models["diffusion"], test)
    draw_gap(output_dir, models["diffusion"], test)
    draw_scenario(output_dir, models["diffusion"], test)
    find_anomaly(models["diffusion"], test)


def recovery(model: DDSSMModel, sim: SimulatedSeries) -> tuple[LinearRegression, float]:
    """The best linear map from inferred to true states, and its R²."""
    inferred = mean_states(model.infer_latents(sim.series, num_samples=50))
    true = np.stack([z.values() for z in sim.latents])
    # (N, T, D) -> (N * T, D)
    inferred, true = inferred.reshape(-1, inferred.shape[-1]), true.reshape(-1, 1)
    fit = LinearRegression().fit(inferred, true)
    return fit, fit.score(inferred, true)


def in_true_units(latents: TimeSeries, fit: LinearRegression) -> TimeSeries:
    """Samples of inferred states in the units of the true state."""
    # (T, D, S) -> (T, S, D) -> (T, 1, S)
    paths = latents.all_values().swapaxes(1, 2)
    mapped = np.stack([fit.predict(states) for states in paths]).swapaxes(1, 2)
    return TimeSeries(
        times=latents.time_index, values=mapped, components=["recovered state"]
    )


def jumps(
    model: DDSSMModel, fit: LinearRegression, sim: SimulatedSeries, num_samples: int = 500
) -> np.ndarray:
    """Jumps from the last state of each series, in the units of the true state: (S, N)."""
    last = mean_states(model.infer_latents(sim.series, num_samples=50))[:, -1:]
    following = model.sample_transition(last, num_samples=num_samples)
    state = np.stack([z.values()[-1] for z in sim.latents])
    # (S, N, D) -> (S * N, D) -> (S, N)
    mapped = fit.predict(following.reshape(-1, following.shape[-1]))
    return mapped.reshape(following.shape[:2]) - sim.process.decay * state[:, 0]


def draw_states(output_dir: Path, model: DDSSMModel, sim: SimulatedSeries) -> None:
    """Inferred states of one series over its true state."""
    fit, _ = recovery(model, sim)
    latents = model.infer_latents(sim.series[0], num_samples=200)
    recovered = in_true_units(latents, fit)
    fig, ax = plt.subplots(figsize=(9, 3.5), layout="constrained")
    plot_latents(recovered, ax=ax)
    ax.plot(sim.latents[0].time_index, sim.latents[0].values(), "k.", label="true state")
    ax.set(xlabel="time", ylabel="state")
    fig.legend(loc="outside lower center", ncol=3, frameon=False)
    save(fig, output_dir / "latent_states.png")


def draw_transitions(
    output_dir: Path, models: dict[str, DDSSMModel], sim: SimulatedSeries
) -> None:
    """Learned one-step densities, all from where the state is now."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, layout="constrained")
    for ax, (name, model) in zip(axes, models.items(), strict=True):
        fit, _ = recovery(model, sim)
        drawn = jumps(model, fit, sim).reshape(-1, 1)
        plot_transition_density(drawn, range=(-8, 8), ax=ax, label="learned")
        for step in (-sim.process.step, sim.process.step):
            ax.axvline(
                step, color="black", ls=":", label="true jumps" if step > 0 else None
            )
        title = f"{name.capitalize()} transition"
        ax.set(xlabel="jump of the state", ylabel="density", title=title)
    axes[0].legend(frameon=False, loc="upper center")
    save(fig, output_dir / "latent_transition.png")


def draw_forecast(output_dir: Path, model: DDSSMModel, sim: SimulatedSeries) -> None:
    """The forecast as a density over time: modes that a fan of quantiles hides."""
    series = sim.series[1]
    forecast = model.predict(4, series[:-4], num_samples=4000)
    fig, ax = plt.subplots(figsize=(9, 3.5), layout="constrained")
    plot_density(forecast, ax=ax)
    ax.plot(series.time_index[12:], series.values()[12:], "k.-", lw=1, label="observed")
    ax.set(xlabel="time", ylabel="x", xticks=range(12, 33, 4))
    ax.legend(frameon=False, loc="upper left")
    save(fig, output_dir / "forecast_density.png")


def draw_gap(output_dir: Path, model: DDSSMModel, sim: SimulatedSeries) -> None:
    """The ways through a gap, before and after the observation that decides."""
    start, end = 16, 19
    series = sim.series[2]
    values = series.values(copy=True)
    values[start:end] = np.nan
    gappy = series.with_values(values)
    fit, _ = recovery(model, sim)
    # each state given its past alone
    filtered = model.infer_latents(gappy, filtering=True, num_samples=1000)
    states = in_true_units(filtered, fit)
    imputed = model.impute(gappy, num_samples=1000)
    panels = {
        "Each state given the past: the ways open": states,
        "Given the whole series: what came after decides": imputed,
    }
    fig, axes = plt.subplots(
        1, 2, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained"
    )
    shown, times = slice(start - 6, end + 6), series.time_index
    for ax, (title, drawn) in zip(axes, panels.items(), strict=True):
        plot_density(drawn[shown], ax=ax)
        ax.plot(times[shown], values[shown], "k.", label="observed")
        hidden = sim.latents[2].values()[start:end]
        ax.plot(times[start:end], hidden, "x", color="C3", label="true state, hidden")
        ax.axvline(times[end], color="black", ls=":", lw=1, label="first value after it")
        ax.set(title=title, xlabel="time", ylabel="x" if ax is axes[0] else "")
    axes[0].legend(frameon=False)
    save(fig, output_dir / "gap.png")


def draw_scenario(output_dir: Path, model: DDSSMModel, sim: SimulatedSeries) -> None:
    """The ways from the end of a series to a value that is given six steps ahead."""
    series, ahead = sim.series[3], 6
    # jumps up and down in turn lead here, and some other orders of them too
    level = sim.process.decay**ahead * series.values()[-1]
    scenario = series.append_values(np.array([np.nan] * (ahead - 1) + [level[0]]))
    panels = {
        "Forecast": model.predict(ahead, series, num_samples=2000),
        "Given the last value": model.impute(scenario, num_samples=1000)[-ahead:],
    }
    fig, axes = plt.subplots(
        1, 2, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (title, drawn) in zip(axes, panels.items(), strict=True):
        plot_density(drawn, ax=ax)
        ax.plot(series.time_index[-8:], series.values()[-8:], "k.", label="observed")
        ax.set(title=title, xlabel="time", ylabel="x" if ax is axes[0] else "")
    axes[1].plot(scenario.time_index[-1], level, "C3o", label="given")
    axes[1].legend(frameon=False, loc="upper left")
    save(fig, output_dir / "scenario.png")


def find_anomaly(model: DDSSMModel, sim: SimulatedSeries) -> None:
    """Plant half a jump, and find it where the log-density is lowest."""
    planted = 20
    values = sim.series[4].values(copy=True)
    values[planted:] += sim.process.step / 2
    scores = model.log_likelihood(sim.series[4].with_values(values), by_step=True)
    found = QuantileDetector(low_quantile=0.03).fit_detect(scores)
    steps = np.flatnonzero(found.values()[:, 0]).tolist()
    print(f"\nanomaly planted at step {planted}, found at {steps}\n", flush=True)


def load_co2() -> tuple[TimeSeries, TimeSeries]:
    """Weekly carbon dioxide in ppm less its trend, with gaps, and the trend."""
    frame = co2.load_pandas().data
    series = TimeSeries.from_series(frame["co2"], freq="W-SAT").astype(np.float32)
    t = np.linspace(-1, 1, len(series))
    values = series.values()[:, 0]
    seen = ~np.isnan(values)
    trend = np.polyval(np.polyfit(t[seen], values[seen], deg=3), t)
    trend = series.with_values(trend[:, None])
    return series - trend, trend


def cut_blocks(series: TimeSeries, share: float, rng: np.random.Generator) -> TimeSeries:
    """Remove blocks of 4 to 20 steps until a share of the values is missing."""
    values = series.values(copy=True)
    given = np.count_nonzero(~np.isnan(values))
    while np.count_nonzero(~np.isnan(values)) > (1 - share) * given:
        start = rng.integers(1, len(values) - 21)
        values[start : start + rng.integers(4, 21)] = np.nan
    return series.with_values(values)


def real(output_dir: Path, updates: int) -> None:
    """Cut gaps into a series and fill them; then fill its own."""
    series, trend = load_co2()
    gappy = cut_blocks(series, 0.2, np.random.default_rng(0))
    model = DDSSMModel(
        input_chunk_length=78,
        output_chunk_length=26,
        # a state for each week
        patch_length=1,
        # the whole series is to be filled in one scale, though its level rises
        use_reversible_instance_norm=False,
        batch_size=64,
        random_state=0,
        pl_trainer_kwargs=TRAINER | {"max_steps": updates},
    )
    start = time.perf_counter()
    model.fit(gappy)
    imputed = model.impute(gappy, num_samples=200)
    seconds = time.perf_counter() - start

    actual = series.values()[:, 0]
    cut = np.isnan(gappy.values()[:, 0]) & ~np.isnan(actual)
    samples = imputed.all_values()[cut, 0]
    low, high = np.quantile(samples, [0.05, 0.95], axis=1)
    covered = np.mean((actual[cut] >= low) & (actual[cut] <= high))
    lines = fill_missing_values(gappy).values()[cut, 0]
    rows = {
        "DDSSM": (
            sr.crps_ensemble(actual[cut], samples).mean(),
            np.abs(actual[cut] - np.median(samples, axis=1)).mean(),
            covered,
            seconds,
        ),
        "linear interpolation": (*[np.abs(actual[cut] - lines).mean()] * 2, 0.0, 0.0),
    }
    print_table(
        f"{cut.sum()} values of CO2 cut out, ppm",
        ["CRPS", "abs. error", "coverage", "seconds"],
        rows,
    )
    # the longest gap that the series came with, and what was cut out around it
    own = np.isnan(actual)
    longest = max(range(len(own) - 8), key=lambda i: own[i : i + 8].sum())
    shown = slice(max(longest - 60, 0), longest + 80)
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    times, level = series.time_index[shown], trend.values()[shown, 0]
    low, middle, high = (
        imputed.quantile(q).values()[shown, 0] + level for q in (0.05, 0.5, 0.95)
    )
    missing = np.isnan(gappy.values()[shown, 0])
    ax.fill_between(
        times, low, high, where=missing, color="C0", alpha=0.3, lw=0, label="central 90 %"
    )
    ax.plot(times, np.where(missing, middle, np.nan), color="C0", label="imputed median")
    ax.plot(times, gappy.values()[shown, 0] + level, "k.", ms=4, label="observed")
    removed = np.where(missing, actual[shown] + level, np.nan)
    ax.plot(times, removed, "C3x", ms=4, label="cut out")
    ax.set(ylabel="CO2 (ppm)")
    ax.legend(frameon=False, ncol=4)
    save(fig, output_dir / "co2_imputed.png")


def print_table(title: str, columns: list[str], rows: dict[str, tuple]) -> None:
    """Print one line a row, numbers to four figures."""
    width = max(len(name) for name in rows)
    print(f"\n{title}\n{'':{width}s}  " + "".join(f"{c:>14s}" for c in columns))
    for name, values in rows.items():
        print(f"{name:{width}s}  " + "".join(f"{value:14.4g}" for value in values))
    print(flush=True)


def save(fig: plt.Figure, path: Path) -> None:
    """Write a picture and say where."""
    fig.savefig(path, dpi=120)
    print(f"wrote {path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--updates-simulated", type=int, default=3000)
    parser.add_argument("--updates-real", type=int, default=1000)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    # the matrices are small: more threads wait for each other longer than they compute
    torch.set_num_threads(1)
    simulated(args.output_dir, args.updates_simulated)
    real(args.output_dir, args.updates_real)


if __name__ == "__main__":
    main()
