"""Simulated series, whose true process says how good a forecast can be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import report
import scores
from cells import Cell, Options, Suite
from darts.dataprocessing.transformers import Scaler
from methods import TORCH_METHODS, train
from sklearn.preprocessing import StandardScaler

from darts_ddssm.datasets import (
    LinearGaussian,
    SimulatedSeries,
    bimodal_random_walk,
    linear_gaussian,
    switching_signs,
)
from darts_ddssm.metrics import jensen_shannon_divergence

NUM_TRAIN, NUM_TEST, LENGTH = 1024, 256, 32
NUM_SAMPLES = 512
NUM_LIKELIHOOD, LIKELIHOOD_SAMPLES = 64, 16


class Simulation(NamedTuple):
    """A process, the horizon, and the arguments of the DDSSM that differ from defaults."""

    make: Callable[..., SimulatedSeries]
    horizon: int
    settings: dict[str, Any]


SIMULATIONS = {
    "bimodal walk": Simulation(bimodal_random_walk, 1, {"latent_dim": 2}),
    "switching signs": Simulation(switching_signs, 1, {}),
    "linear Gaussian": Simulation(linear_gaussian, 8, {"latent_dim": 2}),
}


def jensen_shannon(
    samples: np.ndarray, states: np.ndarray, process: Any, **kwargs: Any
) -> float:
    """Mean divergence of one-step forecasts (S, N, 1, 1) to their true densities."""
    centre = process.decay * states[:, 0]
    divergence = jensen_shannon_divergence(
        (samples[:, :, 0, 0] - centre).T,
        lambda x: process.predictive_density(x, np.zeros(1)),
        **kwargs,
    )
    return float(np.mean(divergence))


def kalman_states(process: LinearGaussian, contexts: list, seed: int) -> np.ndarray:
    """Draw the last state given the data alone: (S * N, D), sample by sample."""
    rng = np.random.default_rng(seed)
    draws = []
    for context in contexts:
        moments = process.smooth(context.values())
        mean, cov = moments.filtered_mean[-1], moments.filtered_covariance[-1]
        draws.append(rng.multivariate_normal(mean, cov, size=NUM_SAMPLES))
    # (S, N, D) -> (S * N, D)
    states = np.stack(draws, axis=1)
    return states.reshape(-1, states.shape[-1])


def fit(cell: Cell, series: list, simulation: Simulation, options: Options, **more: Any):
    """Fit to whole series, scaled together; return what was trained and the scaler."""
    method = TORCH_METHODS[cell.method]
    if cell.method.startswith("DDSSM"):
        settings = method.settings | simulation.settings | more
        method = replace(method, settings=settings)
    scaler = Scaler(StandardScaler(), global_fit=True)
    trained = train(
        method,
        [s.astype(np.float32) for s in scaler.fit_transform(series)],
        options.budget,
        cell.seed,
        input_chunk_length=len(series[0]) - simulation.horizon,
        output_chunk_length=simulation.horizon,
    )
    return trained, scaler


def forecast(model, scaler: Scaler, contexts: list, horizon: int, seed: int) -> np.ndarray:
    """Forecast each series: (S, N, n, C)."""
    scaled = [s.astype(np.float32) for s in scaler.transform(contexts)]
    paths = model.predict(horizon, scaled, num_samples=NUM_SAMPLES, random_state=seed)
    return np.stack([p.all_values() for p in scaler.inverse_transform(paths)]).transpose(
        3, 0, 1, 2
    )


def run(cell: Cell, options: Options) -> dict[str, float]:
    """Fit one method to one process and compare its forecasts with the truth."""
    simulation = SIMULATIONS[cell.setting]
    n = simulation.horizon
    train_set = simulation.make(NUM_TRAIN, LENGTH, random_state=10 * cell.seed + 1)
    test = simulation.make(NUM_TEST, LENGTH, random_state=10 * cell.seed + 2)
    contexts = [s[:-n] for s in test.series]
    states = np.stack([z.values()[-n - 1] for z in test.latents])
    actual = np.stack([s.values()[-n:] for s in test.series])
    held_out = test.series[:NUM_LIKELIHOOD]
    out: dict[str, float] = {}
    if cell.method == "true process":
        if cell.setting == "linear Gaussian":
            drawn = kalman_states(test.process, contexts, cell.seed)
            samples = test.process.sample_future(drawn, n, 1, cell.seed)
            # (1, S * N, n, C) -> (S, N, n, C)
            samples = samples.reshape(NUM_SAMPLES, NUM_TEST, *samples.shape[2:])
        else:
            samples = test.process.sample_future(states, n, NUM_SAMPLES, cell.seed)
        if hasattr(test.process, "log_likelihood"):
            exact = [test.process.log_likelihood(s.values()) for s in held_out]
            out["log_likelihood"] = float(np.mean(exact) / held_out[0].values().size)
    elif cell.method == "marginal":
        pool = np.concatenate([s.values() for s in train_set.series])
        rows = np.random.default_rng(cell.seed).integers(
            len(pool), size=(NUM_SAMPLES, NUM_TEST, n)
        )
        samples = pool[rows]
    else:
        trained, scaler = fit(cell, train_set.series, simulation, options)
        samples = forecast(trained.model, scaler, contexts, n, cell.seed)
        out |= trained.cost
        if cell.method.startswith("DDSSM"):
            scaled = [s.astype(np.float32) for s in scaler.transform(held_out)]
            values = trained.model.log_likelihood(
                scaled, num_samples=LIKELIHOOD_SAMPLES, random_state=cell.seed
            )
            # of the values in their own unit
            spread = scaler._fitted_params[0].scale_
            out["log_likelihood"] = float(np.mean(values) - np.log(spread).mean())
    out["crps"] = scores.crps(actual, samples)
    out["energy"] = scores.energy_score(actual, samples)
    if cell.setting == "bimodal walk":
        out["jsd"] = jensen_shannon(samples, states, test.process)
    return out


def summary(frame: pd.DataFrame, folder: Path, data_dir: str | None) -> str:
    """One table of all scores and one of the distances that are closed."""
    labels = {
        "jsd": "JSD to the true density",
        "energy": "energy score",
        "crps": "CRPS",
        "log_likelihood": "log-likelihood, nats per value",
    }
    mean = frame.groupby(["setting", "method"]).mean(numeric_only=True)
    spread = frame.groupby(["setting", "method"]).std(numeric_only=True)
    rows, closed, relative = {}, {}, {}
    for setting in SIMULATIONS:
        for score, label in labels.items():
            if score not in mean or setting not in mean.index:
                continue
            values = mean.loc[setting, score].reindex(SUITE.methods)
            if values.isna().all():
                continue
            texts = []
            for method, value in values.items():
                deviation = spread.loc[setting, score].get(method, np.nan)
                text = "" if np.isnan(value) else f"{value:.4g}"
                if text and deviation > 0:
                    text += f" ({deviation:.1g})"
                texts.append(text)
            rows[f"{setting}, {label}"] = texts
            # the likelihood is no ratio scale, and has no picture
            if score != "log_likelihood" and not np.isnan(values["true process"]):
                relative[f"{setting}, {label}"] = values / values["true process"]
            share = {}
            for worse in ("DDSSM (Gaussian)", "marginal"):
                gap = values[worse] - values["true process"]
                share[f"from {worse}"] = (values[worse] - values["DDSSM"]) / gap
            closed[f"{setting}, {label}"] = share
    if relative:
        picture = pd.DataFrame.from_dict(relative, orient="index", columns=SUITE.methods)
        report.dots(picture, "score / true process's", folder / "simulated.png")
    table = pd.DataFrame.from_dict(rows, orient="index", columns=SUITE.methods)
    shares = pd.DataFrame.from_dict(closed, orient="index")
    shares = shares.map(lambda x: "" if np.isnan(x) else f"{x:.1%}")
    parts = ["Mean over seeds (standard deviation):", report.markdown(table)]
    if (shares != "").any(axis=None):
        title = "Share of the distance to the true process that the DDSSM closes:"
        parts += [title, report.markdown(shares)]
    return "\n\n".join(parts)


SUITE = Suite(
    settings=list(SIMULATIONS),
    methods=["true process", "DDSSM", "DDSSM (Gaussian)", "RNNModel", "marginal"],
    run=run,
    report=summary,
    seconds=150.0,
)
