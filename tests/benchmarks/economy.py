"""
Twelve short series of the US economy, each by itself: who follows level and trend?

    python tests/benchmarks/economy.py
    python tests/benchmarks/economy.py --only cpi unemp --seeds 0 1 2

Quarterly values of 1959 to 2009, which come with statsmodels. Of each series half is
fitted and the next fifth forecast, two years ahead, and then 70 % are fitted and the rest
forecast. CRPS of a default model, of one trained on the series' own windows alone (none
with random trends, none upside down), of exponential smoothing refitted at each origin, and
of the seasonal naive forecast.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from ablation import fit, samples_of
from darts import TimeSeries
from quiet import quiet
from statsmodels.datasets import macrodata

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmark"))

import real
import scores

CONTEXT, HORIZON, SEASON = 32, 8, 4
PARTS = ((0.5, 0.7), (0.7, 1.0))
MAX_FORECASTS = 20
VARIANTS = {"default": {}, "own windows": {"trend_augmentation": 0.0}}


def crps_of_each(
    series: TimeSeries, start: int, end: int, seeds: list[int]
) -> dict[str, float]:
    """CRPS of forecasts from origins between two steps, mean over the seeds."""
    origins = np.arange(start, end - HORIZON + 1)
    origins = origins[:: -(-len(origins) // MAX_FORECASTS)]
    pasts = [series[:origin] for origin in origins]
    actual = np.stack([series.values()[o : o + HORIZON] for o in origins])
    found = {}
    for name, arguments in VARIANTS.items():
        each = []
        for seed in seeds:
            model = fit(series[:start], (CONTEXT, HORIZON), seed, arguments)
            each.append(scores.crps(actual, samples_of(model, pasts, HORIZON)))
        found[name] = float(np.mean(each))
    for method in ("ExponentialSmoothing", "Seasonal naive"):
        # local methods see the horizon, the season and nothing else of a series' entry
        entry = real.SERIES["beer"]._replace(horizon=HORIZON, season=SEASON)
        paths = real.local_forecasts(method, series, origins, entry, seed=0)
        samples = np.stack(list(paths), axis=1)[..., None]
        found[method] = scores.crps(actual, samples)
    return found


def main() -> None:
    table = macrodata.load_pandas().data.drop(columns=["year", "quarter"])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(table), choices=list(table))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    ratios = []
    for name in args.only:
        series = TimeSeries.from_values(table[name].to_numpy(np.float32))
        for shares in PARTS:
            start, end = (int(share * len(series)) for share in shares)
            found = crps_of_each(series, start, end, args.seeds)
            ratios.append([x / found["ExponentialSmoothing"] for x in found.values()])
            each = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{name} from {shares[0]:.0%}: {each}", flush=True)
    means = np.exp(np.log(ratios).mean(0))
    each = ", ".join(f"{key} {value:.3f}" for key, value in zip(found, means, strict=True))
    print(f"geometric mean, over exponential smoothing's: {each}")


if __name__ == "__main__":
    main()
