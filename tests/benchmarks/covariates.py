"""
What covariates are worth to a default fit, and what the noise on them is.

    python tests/benchmarks/covariates.py
    python tests/benchmarks/covariates.py --data-dir ../shared/data --seeds 0 1 2 \\
        --only sales "oil temperature"

Four simulated series. Daily sales have the season of a week, promotions that are planned,
and a weather that is known. The response of a machine follows two settings along a curve,
and its own past says nothing. Deliveries follow what was ordered six and eight days before,
of which the past alone is known, and visits to a shop its campaigns of six and eight days
before, which are planned. And three real ones. Growth of consumption has that of income
and the change of unemployment and prices beside it (quarterly, of the US, from
statsmodels). The oil temperature of a transformer has six loads, and the CO2 that leaves a
furnace the gas that went in some steps ago; darts downloads both unless `--data-dir` has
them. The first 60 % of each are fitted, the next 20 % are forecast.

CRPS and coverage of 90 % of a default model, of one without noise on its covariates, and of
one without covariates.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries, datasets
from quiet import quiet
from sampling import TRAINER
from statsmodels.datasets import macrodata

from darts_ddssm import DDSSMModel

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmark"))

import real
import scores

MAX_FORECASTS, NUM_SAMPLES = 40, 100
FIT_SHARE, END_SHARE = 0.6, 0.8
NUM_HOURS = 4000


class Task(NamedTuple):
    """A series with its covariates, and the lengths of the chunks.

    Attributes
    ----------
    series, covariates
        Of the same steps, (T, 1) and (T, F).
    kind
        Kind of the covariates.
    context, horizon
        Steps of the past and of the forecast.
    """

    series: TimeSeries
    covariates: TimeSeries
    kind: str
    context: int
    horizon: int


def as_series(values: Any) -> TimeSeries:
    """Return values (T, F) or (T,) in single precision."""
    return TimeSeries.from_values(np.asarray(values, dtype=np.float32))


def sales(data_dir: str | None) -> Task:
    """Two years of days."""
    rng, days = np.random.default_rng(0), np.arange(730)
    promotion = (rng.random(730) < 0.12).astype(float)
    weather, noise = np.zeros((2, 730))
    for t in days[1:]:
        weather[t] = 0.9 * weather[t - 1] + 0.4 * rng.standard_normal()
        noise[t] = 0.5 * noise[t - 1] + 0.3 * rng.standard_normal()
    week = np.array([0, 0.1, 0.2, 0.4, 1, 1.5, 0.3])[days % 7]
    values = 10 + week + 1.5 * promotion + 0.8 * weather + noise
    covariates = np.stack([promotion, weather], axis=1)
    return Task(as_series(values), as_series(covariates), "future", 28, 7)


def response(data_dir: str | None) -> Task:
    """400 settings that are new at each step."""
    rng = np.random.default_rng(0)
    settings = rng.standard_normal((400, 2))
    values = np.sin(2 * settings[:, 0]) + settings.prod(1) + 0.1 * rng.standard_normal(400)
    return Task(as_series(values), as_series(settings), "future", 24, 6)


def delayed(kind: str) -> Task:
    """400 days of what a covariate brought about six and eight days before."""
    rng, num_days = np.random.default_rng(0), 400
    cause, noise = np.zeros((2, num_days))
    for t in range(1, num_days):
        cause[t] = 0.5 * cause[t - 1] + math.sqrt(0.75) * rng.standard_normal()
        noise[t] = 0.7 * noise[t - 1] + math.sqrt(0.51) * rng.standard_normal()
    values = np.roll(cause, 6) + 0.5 * np.roll(cause, 8) + 0.2 * noise
    return Task(as_series(values[8:]), as_series(cause[8:]), kind, 24, 6)


def deliveries(data_dir: str | None) -> Task:
    """The covariate is known up to the origin of a forecast."""
    return delayed("past")


def visits(data_dir: str | None) -> Task:
    """The covariate is known ahead."""
    return delayed("future")


def consumption(data_dir: str | None) -> Task:
    """Fifty years of quarters."""
    frame = macrodata.load_pandas().data
    growth = 100 * np.log(frame[["realcons", "realdpi"]]).diff()
    beside = [growth["realdpi"], frame["unemp"].diff(), frame["infl"].diff()]
    covariates = np.stack(beside, axis=1)[1:]
    return Task(as_series(growth["realcons"][1:]), as_series(covariates), "future", 16, 4)


def read(source: Any, file: str, data_dir: str | None) -> pd.DataFrame:
    """Return a dataset of darts, or its file without the dates."""
    if data_dir is None:
        return source().load().to_dataframe()
    return pd.read_csv(Path(data_dir) / file).select_dtypes("number")


def oil_temperature(data_dir: str | None) -> Task:
    """Hours; the loads of the past alone are known."""
    frame = read(datasets.ETTh1Dataset, "ETTh1.csv", data_dir)[:NUM_HOURS]
    values = frame.pop("OT")
    return Task(as_series(values), as_series(frame), "past", 96, 24)


def furnace(data_dir: str | None) -> Task:
    """Box and Jenkins' furnace, every nine seconds."""
    gas, co2 = read(datasets.GasRateCO2Dataset, "gasrate_co2.csv", data_dir).to_numpy().T
    return Task(as_series(co2), as_series(gas), "past", 24, 6)


TASKS: dict[str, Callable[[str | None], Task]] = {
    "sales": sales,
    "response": response,
    "deliveries": deliveries,
    "visits": visits,
    "consumption": consumption,
    "oil temperature": oil_temperature,
    "furnace": furnace,
}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "default": {},
    "no noise": {"covariate_noise": 0.0},
    "no covariates": None,
}


def score(task: Task, variant: str, seed: int) -> tuple[float, float]:
    """CRPS and coverage of the part that follows what is fitted."""
    series, covariates, kind, context, n = task
    start, end = (int(share * len(series)) for share in (FIT_SHARE, END_SHARE))
    arguments = VARIANTS[variant]
    name = f"{kind}_covariates"
    model = DDSSMModel(
        context, n, random_state=seed, pl_trainer_kwargs=TRAINER, **(arguments or {})
    )
    known = {} if arguments is None else {name: covariates[:start]}
    model.fit(series[:start], **known)
    origins = real.rolling_origins(start, end, n, MAX_FORECASTS)
    known = {} if arguments is None else {name: [covariates] * len(origins)}
    pasts = [series[:origin] for origin in origins]
    paths = model.predict(n, pasts, **known, num_samples=NUM_SAMPLES, random_state=0)
    # (N, n, C, S) -> (S, N, n, C)
    samples = np.stack([path.all_values() for path in paths]).transpose(3, 0, 1, 2)
    actual = real.following(series, origins, n)
    return scores.crps(actual, samples), scores.coverage(actual, samples, 0.9)


def compare(
    doc: str | None,
    tasks: Mapping[str, Callable[[str | None], Any]],
    variants: Iterable[str],
    score: Callable[[Any, str, int], tuple[float, float]],
) -> None:
    """Print the scores of each variant on each task that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir")
    parser.add_argument("--only", nargs="+", default=list(tasks), choices=list(tasks))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    for name in args.only:
        task = tasks[name](args.data_dir)
        found = []
        for variant in variants:
            each = np.array([score(task, variant, seed) for seed in args.seeds])
            values = ", ".join(f"{value:.3g}" for value in each[:, 0])
            found.append(f"{variant} {values} (coverage {each[:, 1].mean():.2f})")
        print(f"{name}: {'; '.join(found)}", flush=True)


if __name__ == "__main__":
    compare(__doc__, TASKS, VARIANTS, score)
