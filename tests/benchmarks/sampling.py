"""
Time of forecasts beside RNNModel, with the full solver and with distilled samplers.

    python tests/benchmarks/sampling.py
    python tests/benchmarks/sampling.py --walk-updates 3000 --evaluations 1 2
    python tests/benchmarks/sampling.py --in-bulk

With ``--walk-updates`` a model is fitted to the bimodal walk and distilled, and the
divergence of its one-step forecasts to the exact density is printed for each sampler;
``--walk-model`` takes one that was saved instead. With ``--in-bulk`` it prints instead what
rolling forecasts cost beside those of the same windows, and the memory of many paths.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from darts import TimeSeries
from darts.models import RNNModel
from darts.utils.likelihood_models.torch import GaussianLikelihood
from gaps import divergence, fit
from quiet import quiet

from darts_ddssm import DDSSMModel
from darts_ddssm.datasets import BimodalRandomWalk

NUM_SERIES, NUM_SAMPLES, HORIZON, INPUT = 100, 100, 12, 36
TRAINER = {
    "accelerator": "cpu",
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


def best_time(function: Callable[[], object], repeats: int) -> float:
    """Least time of some calls in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def name_of(num_evaluations: int | None) -> str:
    return "full solver" if num_evaluations is None else f"{num_evaluations} evaluations"


def times(args: argparse.Namespace) -> None:
    """100 paths of 12 steps of 100 series; what the models learned has no influence."""
    rng = np.random.default_rng(0)
    steps = np.arange(2 * INPUT + 4 * HORIZON)
    series = []
    for _ in range(NUM_SERIES):
        x = np.sin(2 * np.pi * (steps / 12 + rng.random()))
        x = x + 0.1 * rng.standard_normal(len(steps))
        series.append(TimeSeries.from_values(x.astype(np.float32)))
    short = TRAINER | {"max_steps": 3}
    rnn = RNNModel(
        INPUT,
        model="LSTM",
        hidden_dim=40,
        n_rnn_layers=2,
        training_length=INPUT + HORIZON,
        likelihood=GaussianLikelihood(),
        pl_trainer_kwargs=short,
    ).fit(series)

    def forecast(one: RNNModel | DDSSMModel) -> float:
        return best_time(
            lambda: one.predict(HORIZON, series, num_samples=NUM_SAMPLES), args.repeats
        )

    for patch_length in (1, None):
        model = DDSSMModel(
            INPUT, HORIZON, patch_length=patch_length, pl_trainer_kwargs=short
        ).fit(series)
        # side by side, since a machine's pace changes
        for num_evaluations in (None, *args.evaluations):
            model.distill(num_evaluations, series, num_updates=1)
            ours, theirs = forecast(model), forecast(rnn)
            print(
                f"patch_length={patch_length}, {name_of(num_evaluations)}: "
                f"{ours:.2f} s, RNNModel {theirs:.2f} s, {ours / theirs:.2f} times",
                flush=True,
            )


def rolling(model: DDSSMModel, series: TimeSeries, num_windows: int) -> None:
    """Rolling forecasts of a series beside forecasts of the same windows."""
    start = len(series) - num_windows - HORIZON + 1
    pasts = [series[: start + i] for i in range(num_windows)]
    begin = time.process_time()
    model.predict(HORIZON, pasts, num_samples=NUM_SAMPLES)
    middle = time.process_time()
    found = model.historical_forecasts(
        series,
        start=start,
        start_format="position",
        forecast_horizon=HORIZON,
        num_samples=NUM_SAMPLES,
        retrain=False,
        last_points_only=False,
    )
    end = time.process_time()
    assert len(found) == num_windows
    print(
        f"{num_windows} windows: historical_forecasts {end - middle:.1f} s, predict "
        f"{middle - begin:.1f} s, {(end - middle) / (middle - begin):.2f} times",
        flush=True,
    )


def memory(model: DDSSMModel, series: TimeSeries, num_series: int, n: int) -> None:
    """Peak memory of many paths of many series, above what is in use and the result.

    It is the peak of the process: what came before may have had a higher one.
    """
    unit = 2**20
    # the second number of the file are the pages in memory
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize() / unit
    found = model.predict(n, [series] * num_series, num_samples=num_series)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    result = sum(one.all_values(copy=False).nbytes for one in found) / unit
    print(
        f"{num_series} series, {num_series} paths of {n} steps: result {result:.0f} MiB, "
        f"peak above it {peak - before - result:.0f} MiB",
        flush=True,
    )


def in_bulk() -> None:
    """Default arguments; what the model learned has no influence."""
    rng = np.random.default_rng(0)
    x = np.sin(np.arange(700) * np.pi / 6) + 0.1 * rng.standard_normal(700)
    series = TimeSeries.from_values(x.astype(np.float32))
    model = DDSSMModel(INPUT, HORIZON, pl_trainer_kwargs=TRAINER | {"max_steps": 3})
    model.fit(series)
    model.predict(HORIZON, series, num_samples=2)
    for num_series in (250, 500, 1000):
        memory(model, series, num_series, 2 * HORIZON)
    rolling(model, series, num_windows=500)


def walk(args: argparse.Namespace) -> None:
    """Divergence of one-step forecasts of the walk."""
    process = BimodalRandomWalk(noise=args.noise)
    if args.walk_model is None:
        args.updates = args.walk_updates
        model = fit(process, args)
    else:
        model = DDSSMModel.load(args.walk_model, map_location="cpu")
    train = process.simulate(1024, 32, 10 * args.seed + 1).series
    test = process.simulate(args.num_series, 32, 10 * args.seed + 2).series
    contexts = [s[:-1].astype(np.float32) for s in test]
    for num_evaluations in (None, *args.evaluations):
        start = time.perf_counter()
        model.distill(
            num_evaluations, [s.astype(np.float32) for s in train], random_state=0
        )
        seconds = time.perf_counter() - start
        found = model.predict(1, contexts, num_samples=512, random_state=0)
        ours = [
            divergence(process, context, forecast.all_values()[0, 0])
            for context, forecast in zip(contexts, found, strict=True)
        ]
        print(
            f"walk, {name_of(num_evaluations)}: JSD {np.mean(ours):.4f}, distilled in "
            f"{seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--evaluations", type=int, nargs="*", default=[1])
    parser.add_argument("--walk-updates", type=int, default=0)
    parser.add_argument("--walk-model")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-series", type=int, default=64)
    parser.add_argument("--in-bulk", action="store_true")
    parser.set_defaults(missing=0.0, device="cpu")
    args = parser.parse_args()
    quiet()
    if args.in_bulk:
        in_bulk()
        return
    times(args)
    if args.walk_updates or args.walk_model:
        walk(args)


if __name__ == "__main__":
    main()
