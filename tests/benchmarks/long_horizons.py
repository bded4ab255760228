"""
Forecasts of several output chunks: their error and their coverage, chunk by chunk.

    python tests/benchmarks/long_horizons.py
    python tests/benchmarks/long_horizons.py --seeds 0 1 2 --only walk CO2

A random walk, one with drift, a swing of 50 steps that drifts, and a damped cycle of about
40 steps that noise drives, 600 steps each. CO2 in the air of Mauna Loa by week, and
population and consumer prices of the US by quarter, which come with statsmodels. The first
65 % of each are fitted with default arguments, and what follows is forecast from up to 20
origins, five output chunks ahead.
"""

import argparse
from typing import NamedTuple

import numpy as np
import scoringrules as sr
import torch
from darts import TimeSeries
from quiet import quiet
from sampling import TRAINER
from statsmodels.datasets import co2, macrodata

from darts_ddssm import DDSSMModel

NUM_STEPS, NUM_CHUNKS, MAX_FORECASTS, NUM_SAMPLES = 600, 5, 20, 200
FIT_SHARE = 0.65


class Task(NamedTuple):
    """Values of a series, and the lengths of the chunks."""

    values: np.ndarray
    context: int
    horizon: int


def tasks() -> dict[str, Task]:
    """All series by name."""
    rng, time = np.random.default_rng(0), np.arange(NUM_STEPS)
    noise = rng.standard_normal((4, NUM_STEPS))
    cycle = np.zeros(NUM_STEPS)
    for t in range(2, NUM_STEPS):
        before = 2 * 0.98 * np.cos(2 * np.pi / 40) * cycle[t - 1] - 0.98**2 * cycle[t - 2]
        cycle[t] = before + noise[3, t]
    swing = 5 * np.sin(2 * np.pi * time / 50) + 0.05 * time + 0.3 * noise[2]
    economy = macrodata.load_pandas().data
    return {
        "walk": Task(noise[0].cumsum(), 24, 8),
        "walk with drift": Task((0.3 + noise[1]).cumsum(), 24, 8),
        "swing": Task(swing, 24, 6),
        "cycle": Task(cycle, 24, 6),
        "CO2": Task(co2.load_pandas().data["co2"].to_numpy(), 52, 12),
        "population": Task(economy["pop"].to_numpy(), 24, 8),
        "prices": Task(economy["cpi"].to_numpy(), 24, 8),
    }


def scores(task: Task, seed: int) -> np.ndarray:
    """CRPS and coverage of 90 % of each output chunk, (2, chunks)."""
    series = TimeSeries.from_values(task.values.astype(np.float32))
    start, n = int(FIT_SHARE * len(series)), NUM_CHUNKS * task.horizon
    model = DDSSMModel(
        task.context, task.horizon, random_state=seed, pl_trainer_kwargs=TRAINER
    )
    model.fit(series[:start])
    last = len(series) - n
    origins = np.unique(np.linspace(start, last, MAX_FORECASTS).astype(int))
    pasts = [series[:origin] for origin in origins]
    paths = model.predict(n, pasts, num_samples=NUM_SAMPLES, random_state=seed)
    # (N, n, S) and (N, n)
    samples = np.stack([path.all_values()[:, 0] for path in paths])
    actual = np.stack([task.values[origin : origin + n] for origin in origins])
    low, high = np.quantile(samples, [0.05, 0.95], axis=-1)
    inside = np.where(np.isnan(actual), np.nan, (low <= actual) & (actual <= high))
    found = np.stack([sr.crps_ensemble(actual, samples), inside])
    # (2, N, n) -> (2, chunks)
    found = found.reshape(2, len(origins), NUM_CHUNKS, task.horizon)
    return np.nanmean(found, axis=(1, 3))


def main() -> None:
    every = tasks()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(every), choices=list(every))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    for name in args.only:
        for seed in args.seeds:
            crps, coverage = scores(every[name], seed)
            values = "; ".join(
                f"{value:.3g} ({share:.2f})"
                for value, share in zip(crps, coverage, strict=True)
            )
            print(f"{name}, seed {seed}: CRPS (coverage) by chunk {values}", flush=True)


if __name__ == "__main__":
    main()
