"""
Accuracy on simulated series, beside the process that made them, and on real ones.

    python tests/benchmarks/accuracy.py bimodal switching linear
    python tests/benchmarks/accuracy.py sunspots --data-dir path/to/csv

Every model is fitted and asked through its public interface; the test series are never
trained on. Prints one line a model.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scoringrules as sr
import torch
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.metrics import ic, mcrps
from darts.models import RNNModel
from darts.utils.likelihood_models.torch import GaussianLikelihood
from sklearn.preprocessing import StandardScaler

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import (
    SimulatedSeries,
    bimodal_random_walk,
    linear_gaussian,
    switching_signs,
)
from darts_ddssm.metrics import jensen_shannon_divergence

NUM_TRAIN, NUM_TEST, LENGTH = 1024, 256, 32


def one_cycle(updates: int, lr: float) -> dict:
    """Arguments of a model that trains with a rising, then falling learning rate."""
    return dict(
        optimizer_kwargs={"lr": lr},
        lr_scheduler_cls=torch.optim.lr_scheduler.OneCycleLR,
        lr_scheduler_kwargs={
            "max_lr": lr,
            "total_steps": updates,
            "pct_start": 0.1,
            "interval": "step",
        },
    )


def fit(
    train: list[TimeSeries], horizon: int, args: argparse.Namespace, **kwargs
) -> tuple[DDSSMModel, Scaler, float]:
    """Fit a model to whole series, scaled; return it with its scaler and seconds."""
    scaler = Scaler(StandardScaler(), global_fit=True)
    model = DDSSMModel(
        input_chunk_length=LENGTH - horizon,
        output_chunk_length=horizon,
        batch_size=64,
        n_epochs=args.updates * 64 // NUM_TRAIN + 1,
        random_state=args.seed,
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "max_steps": args.updates,
            "enable_model_summary": False,
            "logger": False,
        },
        **(one_cycle(args.updates, args.lr) | kwargs),
    )
    start = time.perf_counter()
    model.fit(scaler.fit_transform(train))
    return model, scaler, time.perf_counter() - start


def forecast(
    model: DDSSMModel, scaler: Scaler, series: list[TimeSeries], n: int, samples: int
) -> np.ndarray:
    """Forecast n steps of each series: samples of shape (S, N, n, C)."""
    paths = model.predict(n, scaler.transform(series), num_samples=samples)
    values = np.stack([p.all_values() for p in scaler.inverse_transform(paths)])
    return values.transpose(3, 0, 1, 2)


def split(sim: SimulatedSeries, n: int) -> tuple[list, np.ndarray, np.ndarray]:
    """Contexts, true states at their ends (N, D), and what follows (N, n, C)."""
    contexts = [s[:-n] for s in sim.series]
    states = np.stack([z.values()[-n - 1] for z in sim.latents])
    return contexts, states, np.stack([s.values()[-n:] for s in sim.series])


def crps(y: np.ndarray, samples: np.ndarray) -> float:
    """Mean CRPS of samples of shape (S, ...)."""
    return float(sr.crps_ensemble(y, np.moveaxis(samples, 0, -1)).mean())


def bimodal(args: argparse.Namespace) -> None:
    train = bimodal_random_walk(NUM_TRAIN, LENGTH, random_state=args.seed)
    test = bimodal_random_walk(NUM_TEST, LENGTH, random_state=args.seed + 1)
    contexts, states, actual = split(test, 1)
    centre = test.process.decay * states
    zero = np.zeros(1)

    def report(name: str, samples: np.ndarray, seconds: float) -> None:
        divergence = jensen_shannon_divergence(
            (samples[:, :, 0, 0] - centre[:, 0]).T,
            lambda x: test.process.predictive_density(x, zero),
        )
        print(
            f"bimodal    {name:24s} JSD {np.mean(divergence):.4f}  "
            f"CRPS {crps(actual, samples):.4f}  fit {seconds:.0f} s",
            flush=True,
        )

    report("true process", test.process.sample_future(states, 1, 512, 0), 0.0)
    for transition in args.transitions:
        model, scaler, seconds = fit(
            train.series,
            1,
            args,
            transition=transition,
            **args.model,
        )
        report(transition, forecast(model, scaler, contexts, 1, 512), seconds)


def switching(args: argparse.Namespace) -> None:
    train = switching_signs(NUM_TRAIN, LENGTH, random_state=args.seed)
    test = switching_signs(NUM_TEST, LENGTH, random_state=args.seed + 1)
    contexts, states, actual = split(test, 1)

    def energy(samples: np.ndarray) -> float:
        # (S, N, 1, C) -> (N, S, C)
        members = samples[:, :, 0].swapaxes(0, 1)
        return float(sr.es_ensemble(actual[:, 0], members, estimator="fair").mean())

    pool = np.concatenate([s.values() for s in train.series])
    rng = np.random.default_rng(args.seed)
    marginal = pool[rng.integers(len(pool), size=(512, NUM_TEST, 1))]
    oracle = energy(test.process.sample_future(states, 1, 512, 0))
    worst = energy(marginal)
    print(f"switching  true process {oracle:.4f}  marginal {worst:.4f}", flush=True)
    for transition in args.transitions:
        model, scaler, seconds = fit(
            train.series, 1, args, transition=transition, **args.model
        )
        score = energy(forecast(model, scaler, contexts, 1, 512))
        share = (worst - score) / (worst - oracle)
        print(
            f"switching  {transition:24s} energy score {score:.4f}  "
            f"share of the distance {share:.1%}  fit {seconds:.0f} s",
            flush=True,
        )


def linear(args: argparse.Namespace) -> None:
    n = 8
    train = linear_gaussian(NUM_TRAIN, LENGTH, random_state=args.seed)
    test = linear_gaussian(NUM_TEST, LENGTH, random_state=args.seed + 1)
    contexts, _, actual = split(test, n)
    moments = [test.process.kalman_forecast(x.values(), n) for x in contexts]
    mean = np.stack([m[:, 0] for m, _ in moments])
    std = np.stack([v[:, 0, 0] for _, v in moments]) ** 0.5
    oracle = float(sr.crps_normal(actual[:, :, 0], mean, std).mean())
    print(f"linear     Kalman forecast CRPS {oracle:.4f}", flush=True)
    for transition in args.transitions:
        model, scaler, seconds = fit(
            train.series, n, args, transition=transition, **args.model
        )
        score = crps(actual, forecast(model, scaler, contexts, n, 512))
        print(
            f"linear     {transition:24s} CRPS {score:.4f}  "
            f"above the Kalman forecast's {score / oracle - 1:.1%}  fit {seconds:.0f} s",
            flush=True,
        )


class RealSeries(NamedTuple):
    """A CSV file, its column, and the steps of context, ahead and between forecasts."""

    file: str
    column: str
    frequency: str | None
    context: int
    horizon: int
    stride: int


REAL = {
    "sunspots": RealSeries("monthly-sunspots.csv", "Sunspots", "MS", 132, 24, 12),
    "gasoline": RealSeries("us_gasoline.csv", "Gasoline", "W-FRI", 52, 13, 13),
    "air": RealSeries("AirPassengers.csv", "#Passengers", "MS", 36, 12, 1),
    "beer": RealSeries("ausbeer.csv", "Y", "QS", 32, 8, 1),
    "milk": RealSeries("monthly-milk-incomplete.csv", "Pounds per cow", "MS", 36, 12, 1),
    "heart": RealSeries("heart_rate.csv", "Heart rate", None, 60, 20, 10),
    "taylor": RealSeries("taylor.csv", "Y", None, 96, 48, 24),
    "oil": RealSeries("ETTh1.csv", "OT", "h", 96, 24, 48),
}


def load(data_dir: str, real: RealSeries) -> TimeSeries:
    """Read a series; what its file leaves out is missing."""
    frame = pd.read_csv(Path(data_dir) / real.file)
    values = frame.pop(real.column)
    if real.frequency is None:
        return TimeSeries.from_series(values).astype(np.float32)
    values.index = pd.to_datetime(frame.iloc[:, 0])
    values = values.sort_index()
    return TimeSeries.from_series(
        values, fill_missing_dates=True, freq=real.frequency
    ).astype(np.float32)


def real(args: argparse.Namespace, name: str) -> None:
    """Rolling forecasts of the last fifth, the best epoch on the 15 % before it."""
    series = load(args.data_dir, REAL[name])
    context, horizon, stride = REAL[name][-3:]
    start = int(0.8 * len(series))
    validate = int(0.85 * start)
    scaler = Scaler(StandardScaler())
    train = scaler.fit_transform(series[:start])
    scaled = scaler.transform(series)
    arguments = dict(
        input_chunk_length=context,
        batch_size=64,
        n_epochs=1000,
        random_state=args.seed,
        save_checkpoints=True,
        force_reset=True,
        work_dir=args.work_dir,
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "max_steps": args.updates,
            "enable_model_summary": False,
            "logger": False,
        },
    )
    models = {
        f"DDSSM {transition}": DDSSMModel(
            output_chunk_length=horizon,
            transition=transition,
            model_name=f"{name}_{transition}_{args.seed}",
            **(arguments | one_cycle(args.updates, args.lr) | args.model),
        )
        for transition in args.transitions
    }
    if args.rnn:
        models["RNNModel"] = RNNModel(
            model="LSTM",
            hidden_dim=40,
            n_rnn_layers=2,
            training_length=context + horizon,
            likelihood=GaussianLikelihood(),
            model_name=f"{name}_rnn_{args.seed}",
            **arguments,
        )
    for label, model in models.items():
        begin = time.perf_counter()
        model.fit(train[:validate], val_series=train[validate - context :], load_best=True)
        forecasts = model.historical_forecasts(
            scaled,
            start=start,
            forecast_horizon=horizon,
            stride=stride,
            retrain=False,
            last_points_only=False,
            num_samples=100,
            random_state=args.seed,
        )
        forecasts = [scaler.inverse_transform(f) for f in forecasts]
        actual = [series] * len(forecasts)
        score = np.mean(mcrps(actual, forecasts))
        covered = np.nanmean(ic(actual, forecasts, q_interval=(0.05, 0.95)))
        print(
            f"{name:10s} {label:24s} CRPS {score:.4g}  coverage of 90 % {covered:.3f}  "
            f"{time.perf_counter() - begin:.0f} s  {len(forecasts)} forecasts",
            flush=True,
        )


def main() -> None:
    suites = {"bimodal": bimodal, "switching": switching, "linear": linear}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+", choices=[*suites, *REAL])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-dir", help="folder of the CSV files, ../shared/data")
    parser.add_argument("--work-dir", default="darts_logs")
    parser.add_argument(
        "--transitions", nargs="*", default=["diffusion", "gaussian"], metavar="NAME"
    )
    parser.add_argument("--order", type=int, help="transition_order; default unbounded")
    parser.add_argument("--latent-dim", type=int)
    parser.add_argument("--peak-kl-weight", type=float, default=1.0)
    parser.add_argument("--instance-norm", action="store_true")
    parser.add_argument("--no-rnn", dest="rnn", action="store_false")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    args.model = {"transition_order": args.order, "peak_kl_weight": args.peak_kl_weight}
    if args.latent_dim:
        args.model["latent_dim"] = args.latent_dim
    if args.instance_norm:
        args.model["use_reversible_instance_norm"] = True
    for suite in args.suites:
        if suite in REAL:
            real(args, suite)
        else:
            suites[suite](args)


if __name__ == "__main__":
    main()
