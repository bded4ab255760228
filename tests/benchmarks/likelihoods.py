"""
Counts and positive values: densities that suit them, beside the Gaussian default.

    python tests/benchmarks/likelihoods.py
    python tests/benchmarks/likelihoods.py --data-dir ../shared/data --seeds 0 1 2 \\
        --only "air passengers" thousands

Three simulated series of 500 days with the season of a week, whose level walks but for the
rare ones: counts of thousands that spread by more than Poisson variables, Poisson variables
of about twenty, and rare ones. And the air passengers, in thousands; darts downloads them
unless `--data-dir` has them. The first 60 % of each are fitted, the next 20 % are forecast.

CRPS over the standard deviation of the series, and coverage of 90 %, by default arguments
but for the likelihood. Densities of positive values alone are not asked about zeros.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from covariates import (
    END_SHARE,
    FIT_SHARE,
    MAX_FORECASTS,
    NUM_SAMPLES,
    as_series,
    compare,
    read,
)
from darts import datasets
from darts.utils.likelihood_models.torch import (
    GammaLikelihood,
    GaussianLikelihood,
    LogNormalLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    TorchLikelihood,
)
from multivariate import Task
from sampling import TRAINER

from darts_ddssm import DDSSMModel

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmark"))

import real
import scores

NUM_DAYS, WEEK = 500, np.array([0.8, 0.9, 1.0, 1.0, 1.2, 1.5, 0.6])
STEP_OF_LEVEL, DISPERSION, RATE_OF_RARE = 0.03, 0.02, 0.4


def _means(rng: np.random.Generator) -> np.ndarray:
    """Means of the days around one, whose level walks."""
    level = np.exp(STEP_OF_LEVEL * rng.standard_normal(NUM_DAYS).cumsum())
    return level / level.mean() * WEEK[np.arange(NUM_DAYS) % 7]


def thousands(data_dir: str | None) -> Task:
    """Counts of about 5,000."""
    rng = np.random.default_rng(1)
    mean = 5000 * _means(rng)
    counts = rng.negative_binomial(1 / DISPERSION, 1 / (1 + DISPERSION * mean))
    return Task(as_series(counts), 28, 7)


def dozens(data_dir: str | None) -> Task:
    """Counts of about twenty."""
    rng = np.random.default_rng(1)
    return Task(as_series(rng.poisson(20 * _means(rng))), 28, 7)


def rare(data_dir: str | None) -> Task:
    """Mostly zeros."""
    season = 1 + 0.8 * np.sin(2 * np.pi * np.arange(NUM_DAYS) / 7)
    counts = np.random.default_rng(1).poisson(RATE_OF_RARE * season)
    return Task(as_series(counts), 28, 7)


def air_passengers(data_dir: str | None) -> Task:
    """Twelve years of months."""
    frame = read(datasets.AirPassengersDataset, "AirPassengers.csv", data_dir)
    return Task(as_series(frame.to_numpy()[:, -1:]), 24, 12)


TASKS: dict[str, Callable[[str | None], Task]] = {
    "thousands": thousands,
    "dozens": dozens,
    "rare": rare,
    "air passengers": air_passengers,
}
VARIANTS: dict[str, type[TorchLikelihood]] = {
    "Gaussian": GaussianLikelihood,
    "Poisson": PoissonLikelihood,
    "negative binomial": NegativeBinomialLikelihood,
    "Gamma": GammaLikelihood,
    "log-normal": LogNormalLikelihood,
}


def score(task: Task, variant: str, seed: int) -> tuple[float, float]:
    """Scaled CRPS and coverage of the part that follows what is fitted."""
    series, context, n = task
    likelihood = VARIANTS[variant]()
    of_positive = GammaLikelihood, LogNormalLikelihood
    if isinstance(likelihood, of_positive) and (series.values() <= 0).any():
        return np.nan, np.nan
    start, end = (int(share * len(series)) for share in (FIT_SHARE, END_SHARE))
    how = {"random_state": seed, "pl_trainer_kwargs": TRAINER}
    model = DDSSMModel(context, n, likelihood=likelihood, **how).fit(series[:start])
    origins = real.rolling_origins(start, end, n, MAX_FORECASTS)
    pasts = [series[:origin] for origin in origins]
    paths = model.predict(n, pasts, num_samples=NUM_SAMPLES, random_state=0)
    # (N, n, C, S) -> (S, N, n, C)
    samples = np.stack([path.all_values() for path in paths]).transpose(3, 0, 1, 2)
    actual, spread = real.following(series, origins, n), series.values().std()
    coverage = scores.coverage(actual, samples, 0.9)
    return scores.crps(actual, samples) / spread, coverage


if __name__ == "__main__":
    compare(__doc__, TASKS, VARIANTS, score)
