"""
What DDSSMForecaster costs: one global fit of a panel, beside the same fit through darts.

    python tests/benchmarks/sktime_panel.py

Prints the median seconds of a fit and of a forecast by DDSSMForecaster and by DDSSMModel,
on the same series with the same arguments, by turns. One thread by default.
"""

import argparse
import statistics
import time

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from quiet import quiet

from darts_ddssm import DDSSMModel
from darts_ddssm.sktime import DDSSMForecaster

HORIZON = 12
NUM_SAMPLES = 100
QUIET = {
    "accelerator": "cpu",
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


def sines(num_series: int, length: int) -> pd.DataFrame:
    """Noisy sines of period 12 by month, (num_series * length, 1)."""
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(length) / 12)
    values = wave + 0.1 * rng.standard_normal((num_series, length))
    months = pd.period_range("2000-01", periods=length, freq="M")
    index = pd.MultiIndex.from_product([range(num_series), months], names=["id", "month"])
    return pd.DataFrame({"y": values.ravel()}, index=index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--length", type=int, default=120)
    parser.add_argument("--updates", type=int, default=20)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(args.threads)
    arguments = dict(
        input_chunk_length=36,
        output_chunk_length=HORIZON,
        n_epochs=1000,
        random_state=0,
        pl_trainer_kwargs=QUIET | {"max_steps": args.updates},
    )
    y = sines(args.series, args.length)
    series = [
        TimeSeries.from_values(rows.to_numpy(np.float32)) for _, rows in y.groupby(level=0)
    ]

    def by_sktime() -> tuple[float, float]:
        forecaster = DDSSMForecaster(num_samples=NUM_SAMPLES, **arguments)
        start = time.perf_counter()
        forecaster.fit(y)
        fitted = time.perf_counter()
        forecaster.predict(fh=range(1, HORIZON + 1))
        return fitted - start, time.perf_counter() - fitted

    def by_darts() -> tuple[float, float]:
        model = DDSSMModel(**arguments)
        start = time.perf_counter()
        model.fit(series)
        fitted = time.perf_counter()
        model.predict(HORIZON, series, num_samples=NUM_SAMPLES)
        return fitted - start, time.perf_counter() - fitted

    methods = {"DDSSMModel": by_darts, "DDSSMForecaster": by_sktime}
    seconds = {name: [] for name in methods}
    # the first round warms up; by turns, so that a busy machine is busy for both
    for _ in range(args.repeats + 1):
        for name, method in methods.items():
            seconds[name].append(method())
    print(f"{args.series} series of {args.length} steps, {args.updates} updates of 32")
    print(f"{'seconds':20s}{'fit':>10s}{'forecast':>10s}")
    for name, rounds in seconds.items():
        fit, forecast = map(statistics.median, zip(*rounds[1:], strict=True))
        print(f"{name:20s}{fit:10.2f}{forecast:10.2f}")


if __name__ == "__main__":
    main()
