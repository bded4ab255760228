"""
What series of several components lose, or gain, by one model of all components.

    python tests/benchmarks/multivariate.py
    python tests/benchmarks/multivariate.py --data-dir ../shared/data --seeds 0 1 2 \\
        --only waves transformer

Two simulated series. Six waves have seasons of their own and autoregressive noise, and say
nothing of each other. The five components of a vector autoregression do. And three real
ones: growth of four aggregates of the economy (quarterly, of the US, from statsmodels),
loads and oil temperature of a transformer, and gas and CO2 of a furnace; darts downloads
the last two unless `--data-dir` has them. The first 60 % of each are fitted, the next 20 %
are forecast.

CRPS over the standard deviation of each component, its mean, and coverage of 90 % of a
default model, of one without noise on its input, and of one model of the components as
separate series.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
from darts import TimeSeries, datasets
from sampling import TRAINER
from statsmodels.datasets import macrodata

from darts_ddssm import DDSSMModel

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmark"))

import real
import scores

NUM_HOURS = 3000


class Task(NamedTuple):
    """A series and the lengths of the chunks.

    Attributes
    ----------
    series
        The series, (T, C).
    context, horizon
        Steps of the past and of the forecast.
    """

    series: TimeSeries
    context: int
    horizon: int


def waves(data_dir: str | None) -> Task:
    """400 steps."""
    rng, steps = np.random.default_rng(0), np.arange(400)[:, None]
    periods, phases = rng.integers(5, 14, 6), rng.random(6)
    noise = np.zeros((400, 6))
    for t in range(1, 400):
        noise[t] = 0.6 * noise[t - 1] + 0.4 * rng.standard_normal(6)
    return Task(as_series(np.sin(2 * np.pi * (steps / periods + phases)) + noise), 28, 7)


def autoregression(data_dir: str | None) -> Task:
    """300 steps."""
    rng, x = np.random.default_rng(0), np.zeros((300, 5))
    weights = rng.standard_normal((5, 5))
    weights *= 0.9 / np.abs(np.linalg.eigvals(weights)).max()
    for t in range(1, 300):
        x[t] = weights @ x[t - 1] + 0.3 * rng.standard_normal(5)
    return Task(as_series(x), 24, 6)


def economy(data_dir: str | None) -> Task:
    """Fifty years of quarters."""
    names = ["realgdp", "realcons", "realinv", "realdpi"]
    growth = 100 * np.log(macrodata.load_pandas().data[names]).diff()
    return Task(as_series(growth[1:]), 16, 4)


def transformer(data_dir: str | None) -> Task:
    """Hours."""
    frame = read(datasets.ETTh1Dataset, "ETTh1.csv", data_dir)[:NUM_HOURS]
    return Task(as_series(frame), 96, 24)


def furnace(data_dir: str | None) -> Task:
    """Box and Jenkins' furnace, every nine seconds."""
    frame = read(datasets.GasRateCO2Dataset, "gasrate_co2.csv", data_dir)
    return Task(as_series(frame), 24, 6)


TASKS: dict[str, Callable[[str | None], Task]] = {
    "waves": waves,
    "autoregression": autoregression,
    "economy": economy,
    "transformer": transformer,
    "furnace": furnace,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no noise": {"input_noise": 0.0},
    "separate": {},
}


def score(task: Task, variant: str, seed: int) -> tuple[float, float]:
    """Scaled CRPS and coverage of the part that follows what is fitted."""
    series, context, n = task
    start, end = (int(share * len(series)) for share in (FIT_SHARE, END_SHARE))
    parts = [series]
    if variant == "separate":
        parts = [series[name] for name in series.components]
    model = DDSSMModel(
        context, n, random_state=seed, pl_trainer_kwargs=TRAINER, **VARIANTS[variant]
    )
    model.fit([part[:start] for part in parts])
    origins = real.rolling_origins(start, end, n, MAX_FORECASTS)
    pasts = [part[:origin] for part in parts for origin in origins]
    paths = model.predict(n, pasts, num_samples=NUM_SAMPLES, random_state=0)
    samples = np.stack([path.all_values() for path in paths])
    # (P * N, n, C / P, S) -> (P, N, n, C / P, S) -> (S, N, n, C)
    samples = samples.reshape(len(parts), len(origins), *samples.shape[1:])
    samples = np.concatenate(list(samples), axis=2).transpose(3, 0, 1, 2)
    actual, spread = real.following(series, origins, n), series[:start].values().std(0)
    coverage = scores.coverage(actual, samples, 0.9)
    return scores.crps(actual / spread, samples / spread), coverage


if __name__ == "__main__":
    compare(__doc__, TASKS, VARIANTS, score)
