"""
Short series, each by itself, beside exponential smoothing that is refitted all the time.

    python tests/benchmarks/short_series.py
    python tests/benchmarks/short_series.py --data-dir ../shared/data --seeds 0 1 2 \\
        --only "air passengers" beer milk

Three series with a season, which darts downloads unless `--data-dir` has them, and twelve
of the US economy, quarterly values of 1959 to 2009, which come with statsmodels. A share of
a series is fitted, and what follows is forecast from every or every second or third step:
the last quarter of a seasonal series, one year or two ahead, and of an economic one 50 to
70 % and 70 to 100 %, two years ahead.

CRPS of a default model with its coverage of 90 %, CRPS of one trained on the series' own
windows alone (none with random trends, none upside down), of exponential smoothing refitted
at each origin, and of the seasonal naive forecast.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ablation import fit, samples_of
from darts import TimeSeries
from quiet import quiet
from statsmodels.datasets import macrodata

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmark"))

import real
import scores

MAX_FORECASTS, NUM_SAMPLES = 25, 500
VARIANTS = {"default": {}, "own windows": {"trend_augmentation": 0.0}}
ECONOMY = macrodata.load_pandas().data.drop(columns=["year", "quarter"])


class Protocol(NamedTuple):
    """What is fitted and forecast: lengths in steps, and shares of a series.

    Attributes
    ----------
    context, horizon, season
        Length of the past, of the forecast, and of a season.
    parts
        Where the fitted part of the series ends, and where the forecasts end.
    """

    context: int
    horizon: int
    season: int
    parts: tuple[tuple[float, float], ...]


SEASONAL = {
    "air passengers": Protocol(24, 12, 12, ((0.75, 1.0),)),
    "beer": Protocol(16, 8, 4, ((0.75, 1.0),)),
    "milk": Protocol(24, 12, 12, ((0.75, 1.0),)),
}
OF_ECONOMY = Protocol(32, 8, 4, ((0.5, 0.7), (0.7, 1.0)))
PROTOCOLS = SEASONAL | dict.fromkeys(ECONOMY, OF_ECONOMY)


def read(name: str, data_dir: str | None) -> TimeSeries:
    """Return a series by its name."""
    if name in SEASONAL:
        return real.SERIES[name].read(data_dir).astype(np.float32)
    return TimeSeries.from_values(ECONOMY[name].to_numpy(np.float32))


def compare(
    series: TimeSeries, start: int, end: int, protocol: Protocol, seeds: list[int]
) -> tuple[dict[str, float], float]:
    """CRPS of each method between two steps, mean over the seeds, and our coverage."""
    n = protocol.horizon
    origins = real.rolling_origins(start, end, n, MAX_FORECASTS)
    pasts = [series[:origin] for origin in origins]
    actual = real.following(series, origins, n)
    found, covered = {}, []
    for name, arguments in VARIANTS.items():
        each = []
        for seed in seeds:
            model = fit(series[:start], (protocol.context, n), seed, arguments)
            samples = samples_of(model, pasts, n, NUM_SAMPLES)
            each.append(scores.crps(actual, samples))
            if name == "default":
                covered.append(scores.coverage(actual, samples, 0.9))
        found[name] = float(np.mean(each))
    for method in ("ExponentialSmoothing", "Seasonal naive"):
        how = n, protocol.season, 0
        samples = real.local_samples(method, series, origins, *how)
        found[method] = scores.crps(actual, samples)
    return found, float(np.mean(covered))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir")
    parser.add_argument(
        "--only", nargs="+", default=list(PROTOCOLS), choices=list(PROTOCOLS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    ratios = []
    for name in args.only:
        series, protocol = read(name, args.data_dir), PROTOCOLS[name]
        for shares in protocol.parts:
            start, end = (int(share * len(series)) for share in shares)
            found, covered = compare(series, start, end, protocol, args.seeds)
            ratios.append([x / found["ExponentialSmoothing"] for x in found.values()])
            each = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(
                f"{name} from {shares[0]:.0%}: {each}; coverage {covered:.2f}", flush=True
            )
    means = np.exp(np.log(ratios).mean(0))
    each = ", ".join(f"{key} {value:.3f}" for key, value in zip(found, means, strict=True))
    print(f"geometric mean, over exponential smoothing's: {each}")


if __name__ == "__main__":
    main()
