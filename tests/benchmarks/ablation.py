"""
What each part of the training recipe is worth: default fits without it, one at a time.

    python tests/benchmarks/ablation.py
    python tests/benchmarks/ablation.py --only "no forecast loss" --tasks milk --seeds 0

Two simulated series, 1,024 short ones each, are scored as in the simulated suite of
`examples/benchmark`; of two real series, which darts downloads unless `--data-dir` has
them, the first 60 % are fitted and the next 20 % forecast. Training has its default length
there, and 22 epochs on the simulated ones.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from darts import TimeSeries
from quiet import quiet
from sampling import TRAINER

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import bimodal_random_walk, switching_signs

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmark"))

import real
import scores
import simulated

MODULE = "darts_ddssm.training.lightning_module."
NUM_FORECASTS, NUM_SAMPLES = 40, 100
# Updates of the simulated series, 22 epochs.
NUM_UPDATES = 704


class Part(NamedTuple):
    """How a part of the recipe is switched off: by arguments, or by what stands for it."""

    arguments: dict[str, Any]
    instead: dict[str, Any]


PARTS = {
    "all": Part({}, {}),
    "Adam for SOAP": Part({}, {MODULE + "SOAP": torch.optim.Adam}),
    "constant rate": Part({}, {MODULE + "learning_rate_share": lambda progress: 1.0}),
    "no warm-up of the KL": Part({}, {MODULE + "kl_weight": lambda progress, peak: 1.0}),
    "no forecast loss": Part({"overshooting_weight": 0.0}, {}),
    "no gap augmentation": Part({"gap_augmentation": 0.0}, {}),
    "no noise on the input": Part({"input_noise": 0.0}, {}),
    "own windows alone": Part({"trend_augmentation": 0.0}, {}),
    "no averaging": Part(
        {},
        {"darts_ddssm.training.weight_averaging.averaging_rate": lambda count, decay: 1.0},
    ),
}


def fit(
    series: Any,
    lengths: tuple[int, int],
    seed: int,
    arguments: dict[str, Any],
    max_steps: int = -1,
) -> DDSSMModel:
    """Fit a model of default arguments but for some."""
    trainer = TRAINER | {"max_steps": max_steps}
    model = DDSSMModel(*lengths, random_state=seed, pl_trainer_kwargs=trainer, **arguments)
    return model.fit(series)


def samples_of(
    model: DDSSMModel, contexts: list[TimeSeries], n: int, num_samples: int = NUM_SAMPLES
) -> np.ndarray:
    """Forecast each series: (S, N, n, C)."""
    found = model.predict(n, contexts, num_samples=num_samples, random_state=0)
    return np.stack([forecast.all_values() for forecast in found]).transpose(3, 0, 1, 2)


def walk(seed: int, arguments: dict[str, Any], data_dir: str | None) -> float:
    """Divergence of the bimodal walk's one-step forecasts to their true densities."""
    train = bimodal_random_walk(1024, simulated.LENGTH, random_state=10 * seed + 1)
    test = bimodal_random_walk(256, simulated.LENGTH, random_state=10 * seed + 2)
    model = fit(
        train.series,
        (simulated.LENGTH - 1, 1),
        seed,
        {"latent_dim": 2} | arguments,
        NUM_UPDATES,
    )
    contexts = [series[:-1] for series in test.series]
    samples = samples_of(model, contexts, 1, simulated.NUM_SAMPLES)
    states = np.stack([z.values()[-2] for z in test.latents])
    return simulated.jensen_shannon(samples, states, test.process)


def signs(seed: int, arguments: dict[str, Any], data_dir: str | None) -> float:
    """Energy score of the switching signs' one-step forecasts."""
    train = switching_signs(1024, simulated.LENGTH, random_state=10 * seed + 1)
    test = switching_signs(256, simulated.LENGTH, random_state=10 * seed + 2)
    model = fit(train.series, (simulated.LENGTH - 1, 1), seed, arguments, NUM_UPDATES)
    samples = samples_of(model, [series[:-1] for series in test.series], 1)
    actual = np.stack([series.values()[-1:] for series in test.series])
    return scores.energy_score(actual, samples)


def forecasts(
    name: str, seed: int, arguments: dict[str, Any], data_dir: str | None
) -> float:
    """CRPS of rolling forecasts of a real series."""
    source = real.SERIES[name]
    series, n = source.read(data_dir).astype(np.float32), source.horizon
    start, end = int(0.6 * len(series)), int(0.8 * len(series))
    model = fit(series[:start], (source.context, n), seed, arguments)
    origins = real.rolling_origins(start, end, n, NUM_FORECASTS)
    samples = samples_of(model, [series[:origin] for origin in origins], n)
    return scores.crps(real.following(series, origins, n), samples)


Score = Callable[[int, dict[str, Any], str | None], float]
TASKS: dict[str, tuple[str, Score]] = {
    "bimodal walk": ("JSD", walk),
    "switching signs": ("energy score", signs),
    "sunspots": ("CRPS", partial(forecasts, "sunspots")),
    "milk": ("CRPS", partial(forecasts, "milk")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    for part in args.only:
        for task in args.tasks:
            name, score = TASKS[task]
            start, found = time.perf_counter(), []
            for seed in args.seeds:
                with ExitStack() as stack:
                    for target, value in PARTS[part].instead.items():
                        stack.enter_context(patch(target, value))
                    found.append(score(seed, PARTS[part].arguments, args.data_dir))
            seconds = (time.perf_counter() - start) / len(args.seeds)
            each = ", ".join(f"{value:.4g}" for value in found)
            print(
                f"{part}; {task}, {name}: {np.mean(found):.4g} ({each}), "
                f"{seconds:.0f} s a seed",
                flush=True,
            )


if __name__ == "__main__":
    main()
