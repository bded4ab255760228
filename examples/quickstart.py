"""
Quick start: see two modes that a Gaussian transition cannot, then forecast a real series.

(a) A simulated series whose next value is near +4 or near -4: the Diffusion-Driven State
    Space Model with its diffusion transition, and with the Gaussian one, beside the
    process that made the series.
(b) The monthly sea surface temperature of the El Niño region, which comes with
    statsmodels: forecasts with joint sample paths, and a backtest beside other models.

Writes two pictures, needs no network, and takes about five minutes on two cores.

    python examples/quickstart.py --output-dir examples/output
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
import pandas as pd
import torch
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.metrics import ic, mcrps
from darts.models import ExponentialSmoothing, NaiveEnsembleModel, RNNModel
from darts.utils.likelihood_models.torch import GaussianLikelihood
from sklearn.preprocessing import StandardScaler
from statsmodels.datasets import elnino

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import bimodal_random_walk
from darts_ddssm.metrics import jensen_shannon_divergence

TRAINER = {"accelerator": "cpu", "enable_model_summary": False, "logger": False}


def simulated(output_dir: Path, updates: int) -> None:
    """Fit both transitions to a bimodal series and compare with the truth."""
    train = bimodal_random_walk(1024, length=32, random_state=0)
    test = bimodal_random_walk(256, length=32, random_state=1)
    contexts = [series[:-1] for series in test.series]
    actual = [series[-1:] for series in test.series]
    states = np.stack([latent.values()[-2] for latent in test.latents])
    process = test.process

    def score(samples: np.ndarray) -> tuple[float, float]:
        """Divergence to the true density and CRPS of samples (N, S)."""
        divergence = jensen_shannon_divergence(
            samples - process.decay * states,
            lambda x: process.predictive_density(x, np.zeros(1)),
        )
        forecasts = [
            TimeSeries.from_times_and_values(a.time_index, s[None, None])
            for a, s in zip(actual, samples, strict=True)
        ]
        return float(np.mean(divergence)), float(np.mean(mcrps(actual, forecasts)))

    true = process.sample_future(states, n=1, num_samples=512, random_state=0)
    rows = {"true process": (*score(true[:, :, 0, 0].T), 0.0)}
    scaler = Scaler(StandardScaler(), global_fit=True)
    scaled = scaler.fit_transform(train.series)
    samples = {}
    for transition in ("diffusion", "gaussian"):
        model = DDSSMModel(
            input_chunk_length=31,
            output_chunk_length=1,
            latent_dim=2,
            transition=transition,
            batch_size=64,
            random_state=0,
            pl_trainer_kwargs=TRAINER | {"max_steps": updates},
        )
        start = time.perf_counter()
        model.fit(scaled)
        forecasts = model.predict(1, scaler.transform(contexts), num_samples=512)
        paths = scaler.inverse_transform(forecasts)
        samples[transition] = np.stack([p.all_values()[0, 0] for p in paths])
        seconds = time.perf_counter() - start
        rows[f"DDSSM, {transition}"] = (*score(samples[transition]), seconds)
    print_table("one step ahead, 256 series", ["JSD", "CRPS", "seconds"], rows)

    fig, axes = plt.subplots(1, 3, figsize=(11, 3), sharey=True, layout="constrained")
    for i, ax in enumerate(axes):
        edges = np.linspace(*(process.decay * states[i, 0] + np.array([-8, 8])), 121)
        grid = np.linspace(edges[0], edges[-1], 1001)
        for transition, colour in (("diffusion", "C0"), ("gaussian", "C1")):
            ax.hist(
                samples[transition][i],
                edges,
                density=True,
                alpha=0.5,
                color=colour,
                label=f"DDSSM, {transition} transition",
            )
        density = process.predictive_density(grid, states[i])
        ax.plot(grid, density, color="black", lw=1, label="true density")
        ax.axvline(actual[i].values()[0, 0], color="C3", ls=":", label="what came")
        ax.set_title(f"series {i}")
        ax.set_xlabel("next value")
    axes[0].set_ylabel("density")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncol=4, frameon=False)
    save(fig, output_dir / "one_step_densities.png")


def load_elnino() -> TimeSeries:
    """Monthly sea surface temperatures in degrees Celsius, 1950 to 2010."""
    table = elnino.load_pandas().data.set_index("YEAR")
    months = pd.date_range("1950-01", periods=table.size, freq="MS")
    return TimeSeries.from_times_and_values(
        months, table.to_numpy(np.float32).ravel(), columns=["temperature"]
    )


def real(output_dir: Path, updates: int) -> None:
    """Fit, predict and backtest on a real series, alone and in an ensemble."""
    series = load_elnino()
    start, context, horizon, stride = pd.Timestamp("1990-01"), 48, 12, 3
    scaler = Scaler(StandardScaler())
    train = scaler.fit_transform(series.drop_after(start))
    scaled = scaler.transform(series)
    # the last years before the test say when to stop
    fitted, validation = train[:-84], train[-84 - context :]
    arguments = dict(
        input_chunk_length=context,
        batch_size=64,
        random_state=0,
        save_checkpoints=True,
        force_reset=True,
        work_dir=str(output_dir / "checkpoints"),
        pl_trainer_kwargs=TRAINER | {"max_steps": updates},
    )
    models = {
        "DDSSM": DDSSMModel(
            output_chunk_length=horizon,
            model_name="ddssm",
            **arguments,
        ),
        "RNNModel": RNNModel(
            model="LSTM",
            hidden_dim=40,
            training_length=context + horizon,
            likelihood=GaussianLikelihood(),
            model_name="rnn",
            **arguments,
        ),
    }
    seconds = {}
    for name, model in models.items():
        begin = time.perf_counter()
        model.fit(fitted, val_series=validation, load_best=True)
        seconds[name] = time.perf_counter() - begin
    models["DDSSM + RNNModel"] = NaiveEnsembleModel(
        list(models.values()), train_forecasting_models=False
    )
    models["ExponentialSmoothing"] = ExponentialSmoothing(seasonal_periods=12)

    rows = {}
    for name, model in models.items():
        is_local = isinstance(model, ExponentialSmoothing)
        begin = time.perf_counter()
        forecasts = model.historical_forecasts(
            scaled,
            start=start,
            forecast_horizon=horizon,
            stride=stride,
            retrain=is_local,
            last_points_only=False,
            num_samples=200,
            random_state=0,
        )
        elapsed = seconds.get(name, 0.0) + time.perf_counter() - begin
        forecasts = [scaler.inverse_transform(f) for f in forecasts]
        actual = [series] * len(forecasts)
        covered = np.mean(ic(actual, forecasts, q_interval=(0.05, 0.95)))
        rows[name] = (np.mean(mcrps(actual, forecasts)), covered, elapsed)
    print_table(
        f"El Niño, {horizon} months ahead from {len(forecasts)} times",
        ["CRPS", "coverage", "seconds"],
        rows,
    )

    forecast = scaler.inverse_transform(
        models["DDSSM"].predict(24, scaled.drop_after(start), num_samples=500)
    )
    fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    observed = series.slice(start - 36 * series.freq, start + 23 * series.freq)
    for low, high in ((0.05, 0.95), (0.25, 0.75)):
        ax.fill_between(
            forecast.time_index,
            forecast.quantile(low).values()[:, 0],
            forecast.quantile(high).values()[:, 0],
            color="C0",
            alpha=0.2,
            lw=0,
            label=f"central {high - low:.0%}",
        )
    for i, path in enumerate(forecast.all_values()[:, 0, :4].T):
        label = "joint sample paths" if i == 0 else None
        ax.plot(forecast.time_index, path, color="C0", lw=1, label=label)
    ax.plot(observed.time_index, observed.values(), color="black", lw=1.5, label="observed")
    ax.set(ylabel="sea surface temperature (°C)")
    ax.set_title("DDSSM: 24 months ahead")
    ax.legend(frameon=False, ncol=4, loc="upper center")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.15 * (high - low))
    save(fig, output_dir / "elnino_forecast.png")


def print_table(title: str, columns: list[str], rows: dict[str, tuple]) -> None:
    """Print one line a row, numbers to four figures."""
    width = max(len(name) for name in rows)
    print(f"\n{title}\n{'':{width}s}  " + "".join(f"{c:>10s}" for c in columns))
    for name, values in rows.items():
        print(f"{name:{width}s}  " + "".join(f"{value:10.4g}" for value in values))
    print(flush=True)


def save(fig: plt.Figure, path: Path) -> None:
    """Write a picture and say where."""
    fig.savefig(path, dpi=120)
    print(f"wrote {path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--updates-simulated", type=int, default=1000)
    parser.add_argument("--updates-real", type=int, default=400)
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
