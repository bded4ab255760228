"""Real series: rolling forecasts over the last fifth of each.

The first 80 % of a series are for training, their last 15 % for choosing the epoch.
Everything is forecast from the same windows. Where a method cannot deal with missing
values, they are interpolated for it; scores are of observed values alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import report
import scores
from cells import Cell, Options, Suite
from darts import TimeSeries, datasets
from darts.dataprocessing.transformers import Scaler
from darts.models import ExponentialSmoothing
from darts.utils.missing_values import fill_missing_values
from darts.utils.utils import ModelMode, SeasonalityMode
from methods import TORCH_METHODS, train
from sklearn.preprocessing import StandardScaler

NUM_SAMPLES = 100
MAX_FORECASTS = 60
TRAIN_SHARE, FIT_SHARE = 0.8, 0.85


class RealSeries(NamedTuple):
    """Where a series comes from and what is asked of it, in steps.

    Attributes
    ----------
    load
        The dataset of darts.
    file, column, frequency
        Its CSV file, the column, and the frequency of its dates; None without dates.
    context, horizon, season
        Length of the past, of the forecast, and of a season.
    length
        Number of first steps that are used; None for all.
    """

    load: Callable
    file: str
    column: str
    frequency: str | None
    context: int
    horizon: int
    season: int
    length: int | None = None

    def read(self, data_dir: str | None) -> TimeSeries:
        """Return the series in double precision; what its file leaves out is missing."""
        if data_dir is None:
            series = self.load().load()[self.column]
        else:
            frame = pd.read_csv(Path(data_dir) / self.file)
            values = frame.pop(self.column)
            if self.frequency is not None:
                values.index = pd.to_datetime(frame.iloc[:, 0])
            series = TimeSeries.from_series(
                values.sort_index(),
                fill_missing_dates=self.frequency is not None,
                freq=self.frequency,
            )
        return series.astype(np.float64)[: self.length]


SERIES = {
    "sunspots": RealSeries(
        datasets.SunspotsDataset,
        "monthly-sunspots.csv",
        "Sunspots",
        "MS",
        132,
        24,
        132,
    ),
    "gasoline": RealSeries(
        datasets.USGasolineDataset, "us_gasoline.csv", "Gasoline", "W-FRI", 52, 13, 52
    ),
    "air passengers": RealSeries(
        datasets.AirPassengersDataset,
        "AirPassengers.csv",
        "#Passengers",
        "MS",
        36,
        12,
        12,
    ),
    "beer": RealSeries(datasets.AusBeerDataset, "ausbeer.csv", "Y", "QS", 32, 8, 4),
    "milk": RealSeries(
        datasets.MonthlyMilkIncompleteDataset,
        "monthly-milk-incomplete.csv",
        "Pounds per cow",
        "MS",
        36,
        12,
        12,
    ),
    "heart rate": RealSeries(
        datasets.HeartRateDataset, "heart_rate.csv", "Heart rate", None, 60, 20, 1
    ),
    "electricity": RealSeries(datasets.TaylorDataset, "taylor.csv", "Y", None, 144, 48, 48),
    "oil temperature": RealSeries(
        datasets.ETTh1Dataset, "ETTh1.csv", "OT", "h", 96, 24, 24, 6000
    ),
}


def interpolated(series: TimeSeries) -> TimeSeries:
    """Fill the gaps, for methods that cannot deal with them.

    A context is cut before it is filled: across its end the future would fill the gap.
    """
    return fill_missing_values(series)


def seasonal_naive(
    history: np.ndarray, horizon: int, season: int, num_samples: int, rng
) -> np.ndarray:
    """Value of a season ago, with past errors of the same step added: (S, n).

    The errors of a past path are drawn together, from all starts with a whole path.
    """
    lags = -(-np.arange(1, horizon + 1) // season) * season
    steps = np.arange(1, horizon + 1)
    starts = np.arange(season - 1, len(history) - horizon)
    # (starts, n)
    errors = history[starts[:, None] + steps] - history[starts[:, None] + steps - lags]
    errors = errors[~np.isnan(errors).any(1)]
    now = len(history) - 1
    return history[now + steps - lags] + errors[rng.integers(len(errors), size=num_samples)]


def exponential_smoothing(history: TimeSeries, horizon: int, season: int, seed: int):
    """Refit and forecast: (S, n)."""
    seasonal = 1 < season <= 52 and len(history) > 2 * season
    model = ExponentialSmoothing(
        trend=ModelMode.ADDITIVE,
        damped=True,
        seasonal=SeasonalityMode.ADDITIVE if seasonal else SeasonalityMode.NONE,
        seasonal_periods=season if seasonal else None,
        random_state=seed,
    )
    # older data says nothing and takes time
    model.fit(history[-max(20 * season, 200) :])
    forecast = model.predict(horizon, num_samples=NUM_SAMPLES)
    return forecast.all_values()[:, 0].T


def rolling_origins(start: int, end: int, horizon: int, most: int) -> np.ndarray:
    """Origins, evenly spaced from a step, of forecasts that end by another: (N,)."""
    origins = np.arange(start, end - horizon + 1)
    return origins[:: -(-len(origins) // most)]


def following(series: TimeSeries, origins: np.ndarray, horizon: int) -> np.ndarray:
    """What follows each origin: (N, n, C)."""
    values = series.values()
    return np.stack([values[origin : origin + horizon] for origin in origins])


def local_samples(
    method: str,
    series: TimeSeries,
    origins: np.ndarray,
    horizon: int,
    season: int,
    seed: int,
) -> np.ndarray:
    """Samples of a method that sees one series up to each origin: (S, N, n, 1)."""
    rng = np.random.default_rng(seed)
    paths = []
    for origin in origins:
        past = interpolated(series[:origin])
        if method == "Seasonal naive":
            values = past.values()[:, 0]
            paths.append(seasonal_naive(values, horizon, season, NUM_SAMPLES, rng))
        else:
            paths.append(exponential_smoothing(past, horizon, season, seed))
    # N times (S, n)
    return np.stack(paths, axis=1)[..., None]


def run(cell: Cell, options: Options) -> dict[str, float]:
    """Fit one method to one series and score its rolling forecasts."""
    real = SERIES[cell.setting]
    series = real.read(options.data_dir)
    start = int(TRAIN_SHARE * len(series))
    origins = rolling_origins(start, len(series), real.horizon, MAX_FORECASTS)
    # (N, n, 1)
    actual = following(series, origins, real.horizon)

    clock = report.Stopwatch()
    if cell.method in TORCH_METHODS:
        takes_gaps = cell.method.startswith("DDSSM")
        pasts = [series[:origin] for origin in origins]
        given = [past if takes_gaps else interpolated(past) for past in pasts]
        fit_end = int(FIT_SHARE * start)
        # at least one window to validate on
        fit_end = min(fit_end, start - real.horizon)
        scaler = Scaler(StandardScaler(), global_fit=True)
        scaler.fit(given[0][:fit_end])
        scaled = [s.astype(np.float32) for s in scaler.transform(given)]
        past = scaled[0]
        trained = train(
            TORCH_METHODS[cell.method],
            [past[:fit_end]],
            options.budget,
            cell.seed,
            [past[fit_end - real.context :]],
            input_chunk_length=real.context,
            output_chunk_length=real.horizon,
        )
        clock.restart()
        forecasts = trained.model.predict(
            real.horizon,
            series=scaled,
            num_samples=NUM_SAMPLES,
            random_state=cell.seed,
        )
        # (S, N, n, 1)
        paths = [f.all_values() for f in scaler.inverse_transform(forecasts)]
        samples = np.stack(paths).transpose(3, 0, 1, 2)
        cost = trained.cost
    else:
        how = real.horizon, real.season, cell.seed
        samples = local_samples(cell.method, series, origins, *how)
        cost = {}
    return cost | {
        "predict_seconds": clock.seconds,
        "crps": scores.crps(actual, samples),
        "wql": scores.weighted_quantile_loss(actual, samples),
        "coverage_50": scores.coverage(actual, samples, 0.5),
        "coverage_90": scores.coverage(actual, samples, 0.9),
        "mase": scores.mase(actual, samples, series.values()[:start, 0], real.season),
        "energy": scores.energy_score(actual, samples),
    }


def summary(frame: pd.DataFrame, folder: Path, data_dir: str | None) -> str:
    """Tables of accuracy, ranks and calibration, and their pictures."""
    methods = [m for m in SUITE.methods if m in set(frame["method"])]
    names = [s for s in SERIES if s in set(frame["setting"])]
    mean = frame.groupby(["setting", "method"]).mean(numeric_only=True)

    def table(score: str) -> pd.DataFrame:
        return mean[score].unstack("method").reindex(index=names, columns=methods)

    crps = table("crps")
    spread = frame.groupby(["setting", "method"])["crps"].std().unstack("method")
    spread = spread.reindex(index=names, columns=methods)
    report.dots(
        crps.div(crps.min(axis=1), axis=0), "CRPS over the best", folder / "real.png"
    )
    accuracy = report.with_spread(crps, spread)
    accuracy.loc["mean rank"] = report.numbers(crps.rank(axis=1).mean(), 2)
    level_50, level_90 = table("coverage_50"), table("coverage_90")
    covered = level_50.map("{:.2f}".format) + " / " + level_90.map("{:.2f}".format)
    # run by run: too wide and too narrow do not make up for each other
    each = (frame["coverage_50"] - 0.5).abs() + (frame["coverage_90"] - 0.9).abs()
    each = each.groupby([frame["setting"], frame["method"]]).mean() / 2
    away = each.unstack("method").reindex(index=names, columns=methods).mean()
    covered.loc["mean distance from 50 / 90 %"] = report.numbers(away, 3)
    report.coverage(level_50, level_90, folder / "real_coverage.png")
    others = pd.DataFrame(
        {
            "rank by WQL": table("wql").rank(axis=1).mean(),
            "rank by energy score": table("energy").rank(axis=1).mean(),
            "MASE": table("mase").mean(),
            "updates": table("updates").mean() if "updates" in mean else np.nan,
            "seconds of fit": table("fit_seconds").mean()
            if "fit_seconds" in mean
            else np.nan,
            "seconds of forecast": table("predict_seconds").mean(),
        }
    )
    return "\n\n".join(
        [
            "CRPS, mean over seeds (standard deviation), best bold:",
            report.markdown(accuracy),
            "Coverage of the central 50 % / 90 % intervals:",
            report.markdown(covered),
            "Means over the series:",
            report.markdown(others.round(2)),
        ]
    )


SUITE = Suite(
    settings=list(SERIES),
    methods=[*TORCH_METHODS, "ExponentialSmoothing", "Seasonal naive"],
    run=run,
    report=summary,
    seconds=120.0,
)
