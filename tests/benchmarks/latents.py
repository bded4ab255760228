"""
States, likelihood, forecasts and imputation on a linear Gaussian series, beside Kalman's.

    python tests/benchmarks/latents.py --seed 10

The model has its default arguments but for ``latent_dim=2``. Everything is asked through
the public interface, of series never trained on.
"""

import argparse
import time

import numpy as np
import scoringrules as sr
import torch
from darts import TimeSeries
from quiet import quiet
from sklearn.linear_model import LinearRegression

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import linear_gaussian

LENGTH, HORIZON = 32, 8


def fit(args: argparse.Namespace) -> DDSSMModel:
    """Fit a model to 1,024 series."""
    train = linear_gaussian(1024, LENGTH, random_state=args.seed)
    model = DDSSMModel(
        input_chunk_length=LENGTH - HORIZON,
        output_chunk_length=HORIZON,
        latent_dim=args.latent_dim,
        transition=args.transition,
        batch_size=64,
        random_state=args.seed,
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "max_steps": args.updates,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": False,
        },
    )
    start = time.perf_counter()
    model.fit(train.series)
    print(f"fitted in {time.perf_counter() - start:.0f} s", flush=True)
    return model


def rmse(inferred: np.ndarray, true: np.ndarray) -> float:
    """Error after the best linear map, both of shape (N, T, D)."""
    x, y = (a.reshape(-1, a.shape[-1]) for a in (inferred, true))
    return float(np.sqrt(np.square(LinearRegression().fit(x, y).predict(x) - y).mean()))


def likelihood(model: DDSSMModel, test, args: argparse.Namespace) -> None:
    """Importance-weighted bounds of the log-likelihood against the exact one."""
    series = test.series[: args.num_densities]
    exact = np.array([test.process.log_likelihood(s.values()) for s in series]) / LENGTH
    print(f"log-likelihood, nats per value: exact {exact.mean():.4f}")
    for num_samples in (1, 8, 32):
        start = time.perf_counter()
        estimate = model.log_likelihood(series, num_samples=num_samples, random_state=0)
        gap = np.array(estimate) - exact
        print(
            f"  {num_samples:3d} samples {np.mean(estimate):.4f}  "
            f"above the exact one by {gap.mean():+.4f} (standard error "
            f"{gap.std() / len(gap) ** 0.5:.4f})  {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def states(model: DDSSMModel, test) -> None:
    """Smoothed and filtered states against those of the Kalman smoother."""
    true = np.stack([z.values() for z in test.latents])
    moments = [test.process.smooth(s.values()) for s in test.series]
    for name, filtering in (("smoothed", False), ("filtered", True)):
        oracle = np.stack([getattr(m, f"{name}_mean") for m in moments])
        latents = model.infer_latents(
            test.series, num_samples=200, filtering=filtering, random_state=0
        )
        inferred = np.stack([z.all_values().mean(-1) for z in latents])
        ours, best = rmse(inferred, true), rmse(oracle, true)
        print(
            f"{name} states: RMSE {ours:.4f}, Kalman {best:.4f}, {ours / best - 1:+.1%}",
            flush=True,
        )


def crps_of_smoother(test, gappy: list[TimeSeries], missing: np.ndarray) -> float:
    """Mean CRPS of the exact density of each missing value, (N, T) of booleans."""
    emission, crps = test.process.emission, []
    for full, series, gaps in zip(test.series, gappy, missing, strict=True):
        moments = test.process.smooth(series.values())
        mean = moments.smoothed_mean[gaps] @ emission.T
        covariance = emission @ moments.smoothed_covariance[gaps] @ emission.T
        std = np.sqrt(covariance + test.process.emission_covariance)[:, 0, 0]
        crps.append(sr.crps_normal(full.values()[gaps, 0], mean[:, 0], std))
    return float(np.concatenate(crps).mean())


def compare(name: str, actual: np.ndarray, samples: np.ndarray, best: float) -> None:
    """Print the CRPS of samples, (N, S), beside the exact one."""
    ours = sr.crps_ensemble(actual, samples, estimator="fair").mean()
    print(
        f"{name:27s}: CRPS {ours:.4f}, Kalman {best:.4f}, {ours / best - 1:+.1%}",
        flush=True,
    )


def with_gaps(test, missing: np.ndarray) -> list[TimeSeries]:
    """Return the series with NaN where values are missing, (N, T) of booleans."""
    return [
        s.with_values(np.where(gaps[:, None], np.nan, s.values()))
        for s, gaps in zip(test.series, missing, strict=True)
    ]


def forecasts(model: DDSSMModel, test) -> None:
    """CRPS of forecasts against the Kalman forecast."""
    contexts = [s[:-HORIZON] for s in test.series]
    found = model.predict(HORIZON, contexts, num_samples=500, random_state=0)
    actual = np.stack([s.values()[-HORIZON:, 0] for s in test.series])
    samples = np.stack([s.all_values()[:, 0] for s in found])
    missing = np.zeros((len(actual), LENGTH), dtype=bool)
    missing[:, -HORIZON:] = True
    best = crps_of_smoother(test, with_gaps(test, missing), missing)
    compare(f"forecast of {HORIZON} steps", actual, samples, best)


def imputation(model: DDSSMModel, test, args: argparse.Namespace) -> None:
    """CRPS in gaps of several lengths against that of the Kalman smoother."""
    rng = np.random.default_rng(args.seed)
    actual = np.stack([s.values()[:, 0] for s in test.series])
    num_series = len(actual)
    kinds = {f"one gap of {n}": n for n in (1, 2, 4, 8)} | {"20 % at random": 0}
    for name, length in kinds.items():
        missing = rng.random((num_series, LENGTH)) < 0.2
        if length:
            start = rng.integers(0, LENGTH - length + 1, size=(num_series, 1))
            steps = np.arange(LENGTH)
            missing = (steps >= start) & (steps < start + length)
        gappy = with_gaps(test, missing)
        imputed = model.impute(gappy, num_samples=200, random_state=0)
        samples = np.stack([s.all_values()[:, 0] for s in imputed])
        best = crps_of_smoother(test, gappy, missing)
        compare(f"imputation, {name}", actual[missing], samples[missing], best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--latent-dim", type=int, default=2)
    parser.add_argument("--transition", default="diffusion")
    parser.add_argument("--num-test", type=int, default=256)
    parser.add_argument("--num-densities", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    test = linear_gaussian(args.num_test, LENGTH, random_state=args.seed + 1)
    model = fit(args)
    states(model, test)
    forecasts(model, test)
    imputation(model, test, args)
    likelihood(model, test, args)


if __name__ == "__main__":
    main()
