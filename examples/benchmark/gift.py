"""
GIFT-Eval (Aksu et al. 2024): the model beside published scores of others.

The model has its default arguments. What is left to a user is by one rule for all
configurations: how far it looks back, see `context_length`, and which parts of the
calendar it sees, see `CALENDAR`. It is trained on all that comes before the test part,
up to the most recent values, for the seconds of the budget, to which its schedules adapt.
The benchmark's validation part, the last steps of these, is not held out: that is one
window of each series, too few to choose an epoch by where there are few series.

The scores are those of the benchmark, from the deciles of each step.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist

import gift_data
import numpy as np
import pandas as pd
import report
import scores
from cells import Cell, Options, Suite
from darts import TimeSeries
from gift_data import CONFIGURATIONS, Data
from methods import TORCH_METHODS, Budget, Trained

NAIVE, PUBLISHED_NAIVE = "Seasonal naive", "seasonal_naive"
NUM_SAMPLES = 200
# Windows that are forecast at a time: what is kept of them is their deciles.
BATCH = 512

# What is worth looking back for, in units: an hour of seconds, a day of minutes, a week,
# four weeks, a year, and two years of months or quarters.
CYCLES = {"s": 3600, "min": 1440, "h": 168, "D": 28, "W": 52, "M": 24, "Q": 8}
# What of a date may matter at a step of a unit.
CALENDAR = {
    "s": ["minute", "hour"],
    "min": ["hour", "dayofweek"],
    "h": ["hour", "dayofweek"],
    "D": ["dayofweek", "day", "dayofyear"],
    "W": ["weekofyear"],
    "M": ["month"],
    "Q": ["quarter"],
}

NORMAL_DECILES = np.array([NormalDist().inv_cdf(q) for q in scores.QUANTILES])


def filled(values: np.ndarray) -> np.ndarray:
    """Put the last known value in place of each missing one, the first one at the start."""
    series = pd.Series(values).ffill().bfill()
    return series.fillna(0.0).to_numpy()


def seasonal_naive(history: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Deciles of the benchmark's seasonal naive forecast: (9, n).

    They are those of a Gaussian around the value of a season ago, whose variance is the
    mean square of the seasonal differences, times the number of seasons ahead.
    """
    values = filled(history)
    if len(values) < season:
        season = 1
    differences = values[season:] - values[:-season]
    spread = np.sqrt(np.mean(differences**2)) if len(differences) else 0.0
    ahead = np.arange(horizon)
    spread = spread * np.sqrt(ahead // season + 1)
    return values[-season:][ahead % season] + NORMAL_DECILES[:, None] * spread


def seasonal_error(history: np.ndarray, season: int) -> float:
    """Mean absolute seasonal difference, NaN where a value is missing, as it is scored."""
    if season > len(history):
        season = 1
    differences = history[season:] - history[:-season]
    return float(np.abs(differences).mean()) if len(differences) else np.nan


def context_length(data: Data) -> int:
    """How far a model looks back: twice the horizon and a cycle, whichever is longer.

    It is at most half of the median length of the training series, so that short series
    leave windows to train on.
    """
    cycle = CYCLES.get(data.frequency.unit, 1) // data.frequency.number
    longest = max(2 * data.horizon, cycle)
    median = np.median([len(values) for values in data.training()])
    return max(min(longest, int(median) // 2), 1)


def as_series(data: Data, i: int, start: int, end: int) -> TimeSeries:
    """Return steps from `start` to before `end` of series `i`, those before it missing.

    The model needs one value at least: where there is none, the first step has the last
    known value before it.
    """
    known = data.series[i][max(start, 0) : end]
    # (T,) -> (T', 1)
    values = np.full((end - start, 1), np.nan, dtype=np.float32)
    values[len(values) - len(known) :, 0] = known
    if np.isnan(known).all():
        values[0] = filled(data.series[i][:end])[-1]
    if data.firsts is None:
        times = pd.RangeIndex(start, end)
    else:
        times = data.frequency.dates(data.firsts[i], start, end)
    return TimeSeries.from_times_and_values(times, values)


def train(method: str, data: Data, budget: Budget, seed: int) -> Trained:
    """Fit a model to all before the test part for at most the time of a budget."""
    context, clock = context_length(data), report.Stopwatch()
    calendar = CALENDAR.get(data.frequency.unit) if data.firsts is not None else None
    model = TORCH_METHODS[method](
        input_chunk_length=context,
        output_chunk_length=data.horizon,
        add_encoders=calendar and {"cyclic": {"future": calendar}},
        random_state=seed,
        pl_trainer_kwargs=budget.trainer_arguments(**budget.own_length),
    )
    window = context + data.horizon
    ends = map(len, data.training())
    # what is shorter than a window begins with missing values
    model.fit([as_series(data, i, min(0, end - window), end) for i, end in enumerate(ends)])
    return Trained(model, model.trainer.global_step, clock.seconds)


def forecasts(trained: Trained, data: Data, seed: int) -> Iterator[np.ndarray]:
    """Deciles of each window, read off samples: (9, n) each."""
    model = trained.model
    length = model.input_chunk_length
    pasts = [as_series(data, i, end - length, end) for i, end in data.ends()]
    for first in range(0, len(pasts), BATCH):
        paths = model.predict(
            data.horizon,
            series=pasts[first : first + BATCH],
            num_samples=NUM_SAMPLES,
            random_state=seed,
        )
        for path in paths:
            yield np.quantile(path.all_values()[:, 0], scores.QUANTILES, axis=1)


def run(cell: Cell, options: Options) -> dict[str, float]:
    """Forecast all windows of a configuration and score their deciles."""
    data = gift_data.load(cell.setting, options.data_dir)
    cost: dict[str, float] = {}
    histories = [data.series[i][:end] for i, end in data.ends()]
    if cell.method == NAIVE:
        clock = report.Stopwatch()
        each = [seasonal_naive(past, data.horizon, data.season) for past in histories]
    else:
        trained = train(cell.method, data, options.budget, cell.seed)
        cost, clock = trained.cost, report.Stopwatch()
        each = list(forecasts(trained, data, cell.seed))
    # (N, 9, n) -> (9, N, n)
    deciles = np.stack(each, axis=1)
    actual = data.actual()
    scale = np.array([seasonal_error(past, data.season) for past in histories])
    return cost | {
        "predict_seconds": clock.seconds,
        "wql": scores.loss_of_deciles(actual, deciles),
        "mase": scores.scaled_error(actual, deciles[4], scale),
        "coverage_80": scores.inside(actual, deciles[0], deciles[-1]),
    }


def published_scores(data_dir: str | None) -> pd.DataFrame:
    """Scores of others by name of configuration and model, none without their files.

    They are in ``published.csv``, or else in ``results/<model>/all_results.csv`` as the
    benchmark's repository has them.
    """
    columns = ["configuration", "model", "wql", "mase"]
    files: Sequence[Path] = []
    if data_dir is not None:
        folder = gift_data.root(data_dir)
        files = sorted(folder.glob("results/*/all_results.csv"))
        if (folder / "published.csv").exists():
            files = [folder / "published.csv"]
    parts = [pd.DataFrame(columns=columns)]
    for file in files:
        frame = pd.read_csv(file).rename(columns=lambda c: c.removeprefix("eval_metrics/"))
        if file.name == "all_results.csv":
            frame["model"] = file.parent.name
        frame = frame.rename(
            columns={
                "dataset": "configuration",
                "mean_weighted_sum_quantile_loss": "wql",
                "MASE[0.5]": "mase",
                "MASE": "mase",
            }
        )
        parts.append(frame[columns])
    names = {name: c.published for name, c in CONFIGURATIONS.items()}
    frame = pd.concat(parts)
    frame["configuration"] = frame["configuration"].replace(names)
    return frame.groupby(["configuration", "model"]).last()


def relative(own: pd.Series, others: pd.Series) -> pd.DataFrame:
    """A score over that of the seasonal naive forecast: a row a method, best mean first.

    The published naive forecast is the measure; where it is not there, the own one.

    Parameters
    ----------
    own
        Scores by setting and method.
    others
        Published scores by configuration and model.
    """
    ours, theirs = own.unstack("method"), others.unstack("model")
    theirs = theirs.reindex([CONFIGURATIONS[name].published for name in ours.index])
    naive = pd.Series(np.nan, ours.index)
    if PUBLISHED_NAIVE in theirs:
        naive = pd.Series(theirs[PUBLISHED_NAIVE].to_numpy(float), ours.index)
    if NAIVE in ours:
        naive = naive.fillna(ours[NAIVE])
    ours = ours.rename(columns=lambda method: f"**{method}**")
    both = pd.concat([ours, theirs.set_axis(ours.index, axis=0)], axis=1)
    table = both.astype(float).div(naive, axis=0).T
    # NaN where a configuration is missing: what is left would be another benchmark
    table["geometric mean"] = np.exp(np.log(table).mean(axis=1, skipna=False))
    return table.sort_values("geometric mean")


def with_deviation(mean: pd.Series, deviation: pd.Series, digits: int) -> pd.Series:
    """Means as text and, in brackets, standard deviations; none where all are alike."""
    number = f"{{:.{digits}f}}".format
    brackets = deviation.map(lambda x: f" ({number(x)})" if x > 0 else "")
    return mean.map(number) + brackets


def summary(frame: pd.DataFrame, folder: Path, data_dir: str | None) -> str:
    """Table of the scores beside published ones, and of all that was measured."""
    grouped = frame.groupby(["setting", "method"])
    mean, spread = grouped.mean(numeric_only=True), grouped.std(numeric_only=True)
    others = published_scores(data_dir)
    beside = relative(mean["wql"], others["wql"])
    errors = relative(mean["mase"], others["mase"])
    beside["MASE, geometric mean"] = errors["geometric mean"]

    def score(name: str, digits: int) -> pd.Series:
        return with_deviation(mean[name], spread[name], digits)

    measured = pd.DataFrame(
        {
            "WQL": score("wql", 4),
            "MASE": score("mase", 3),
            "coverage of the central 80 %": score("coverage_80", 3),
            "seeds": grouped.size(),
        }
    )
    for name, label in (
        ("updates", "updates"),
        ("fit_seconds", "seconds of fit"),
        ("predict_seconds", "seconds of forecast"),
    ):
        if name in mean:
            measured[label] = mean[name].map("{:.0f}".format)
    measured.index = measured.index.map(", ".join)
    return "\n\n".join(
        [
            "Weighted quantile loss (WQL) over that of the seasonal naive forecast, lower "
            "is better; ours bold, means over seeds, beside published scores if there are "
            "any:",
            report.markdown(beside.map("{:.3f}".format)),
            "What was measured, means over seeds (standard deviation):",
            report.markdown(measured),
        ]
    )


SUITE = Suite(
    settings=list(CONFIGURATIONS),
    methods=["DDSSM", "DDSSM (Gaussian)", NAIVE],
    run=run,
    report=summary,
    seconds=300.0,
    found=gift_data.found,
)
