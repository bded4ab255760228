"""
States, likelihood and imputation on a linear Gaussian series, beside the Kalman smoother.

    python tests/benchmarks/latents.py --seed 10

Everything is asked through the public interface, of series never trained on.
"""

import argparse
import logging
import time
import warnings

import numpy as np
import scoringrules as sr
import torch
from sklearn.linear_model import LinearRegression

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import linear_gaussian

LENGTH = 32


def fit(args: argparse.Namespace) -> DDSSMModel:
    """Fit a model to 1,024 series."""
    train = linear_gaussian(1024, LENGTH, random_state=args.seed)
    model = DDSSMModel(
        input_chunk_length=24,
        output_chunk_length=8,
        latent_dim=args.latent_dim,
        hidden_size=args.hidden_size,
        transition_order=1,
        transition=args.transition,
        batch_size=64,
        n_epochs=args.updates // 16 + 1,
        random_state=args.seed,
        optimizer_kwargs={"lr": 1e-2},
        lr_scheduler_cls=torch.optim.lr_scheduler.OneCycleLR,
        lr_scheduler_kwargs={
            "max_lr": 1e-2,
            "total_steps": args.updates,
            "pct_start": 0.1,
            "interval": "step",
        },
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


def imputation(model: DDSSMModel, test, args: argparse.Namespace) -> None:
    """CRPS in gaps of several lengths against that of the Kalman smoother."""
    rng = np.random.default_rng(args.seed)
    actual = np.stack([s.values() for s in test.series])
    num_series = len(actual)
    kinds = {f"one gap of {n}": n for n in (1, 2, 4, 8)} | {"20 % at random": 0}
    for name, length in kinds.items():
        missing = rng.random((num_series, LENGTH)) < 0.2
        if length:
            start = rng.integers(0, LENGTH - length + 1, size=(num_series, 1))
            steps = np.arange(LENGTH)
            missing = (steps >= start) & (steps < start + length)
        gappy = [
            s.with_values(np.where(m[:, None], np.nan, s.values()))
            for s, m in zip(test.series, missing, strict=True)
        ]
        imputed = model.impute(gappy, num_samples=200, random_state=0)
        samples = np.stack([s.all_values()[:, 0] for s in imputed])
        ours = sr.crps_ensemble(actual[missing, 0], samples[missing], estimator="fair")
        emission = test.process.emission
        best = []
        for x, gaps, s in zip(actual, missing, gappy, strict=True):
            moments = test.process.smooth(s.values())
            mean = moments.smoothed_mean[gaps] @ emission.T
            covariance = emission @ moments.smoothed_covariance[gaps] @ emission.T
            std = np.sqrt(covariance + test.process.emission_covariance)[:, 0, 0]
            best.append(sr.crps_normal(x[gaps, 0], mean[:, 0], std))
        best = np.concatenate(best).mean()
        print(
            f"imputation, {name:14s}: CRPS {ours.mean():.4f}, Kalman {best:.4f}, "
            f"{ours.mean() / best - 1:+.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--latent-dim", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--transition", default="diffusion")
    parser.add_argument("--num-test", type=int, default=256)
    parser.add_argument("--num-densities", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    test = linear_gaussian(args.num_test, LENGTH, random_state=args.seed + 1)
    model = fit(args)
    states(model, test)
    imputation(model, test, args)
    likelihood(model, test, args)


if __name__ == "__main__":
    main()
