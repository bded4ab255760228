"""
DDSSMForecaster in sktime: a pipeline, a tuner, and an evaluation beside other forecasters.

The passengers of an airline by month, which come with sktime, 12 months ahead: a pipeline
takes the logarithm, a grid search chooses the transition by the CRPS of its sample paths,
and the best of them is evaluated on an expanding window beside exponential smoothing and
the seasonal naive forecast.

Writes a picture, needs no network, and takes about three minutes on one core.

    python examples/sktime_pipeline.py --output-dir examples/output
"""

import argparse
import logging
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.dates import DateFormatter, YearLocator
from sktime.datasets import load_airline
from sktime.forecasting.base import BaseForecaster
from sktime.forecasting.compose import TransformedTargetForecaster
from sktime.forecasting.ets import AutoETS
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.model_selection import ForecastingGridSearchCV
from sktime.forecasting.naive import NaiveForecaster
from sktime.performance_metrics.forecasting.probabilistic import (
    CRPS,
    EmpiricalCoverage,
    PinballLoss,
)
from sktime.split import ExpandingWindowSplitter
from sktime.transformations.boxcox import LogTransformer

from darts_ddssm.sktime import DDSSMForecaster

FH = np.arange(1, 13)
FIRST_TEST = 108  # months to train on before the first forecast that is evaluated
TRAINER = {
    "accelerator": "cpu",
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


def in_logarithms(forecaster: BaseForecaster) -> TransformedTargetForecaster:
    """Forecast the logarithm, in which the season is as strong in all years."""
    return TransformedTargetForecaster([LogTransformer(), forecaster])


def tuned(y: pd.Series, updates: int) -> DDSSMForecaster:
    """Return the forecaster, not yet fitted, of the transition with the lower CRPS."""
    forecaster = DDSSMForecaster(
        input_chunk_length=36,
        output_chunk_length=12,
        pl_trainer_kwargs=TRAINER | {"max_steps": updates},
        random_state=0,
    )
    search = ForecastingGridSearchCV(
        forecaster,
        cv=ExpandingWindowSplitter(FH, initial_window=len(y) - 24, step_length=12),
        param_grid={"transition": ["diffusion", "gaussian"]},
        scoring=CRPS(),
        refit=False,
        error_score="raise",
        backend=None,
    )
    pipeline = in_logarithms(search).fit(y)
    results = pipeline.forecaster_.cv_results_
    rows = {
        params["transition"]: (score, 2 * seconds)
        for params, score, seconds in zip(
            results["params"],
            results["mean_test_CRPS"],
            results["mean_fit_time"],
            strict=True,
        )
    }
    print_table(
        "two forecasts within the first 9 years, in logarithms", ["CRPS", "seconds"], rows
    )
    return pipeline.forecaster_.best_forecaster_.clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--updates", type=int, default=200)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    # not by a filter: sktime sets filters of its own on the way
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    # the matrices are small: more threads wait for each other longer than they compute
    torch.set_num_threads(1)

    y = load_airline()
    forecasters = {
        "DDSSM": tuned(y[:FIRST_TEST], args.updates),
        "ETS(A,A,A)": AutoETS(error="add", trend="add", seasonal="add", sp=12),
        "seasonal naive": NaiveForecaster(sp=12),
    }
    levels = np.linspace(0.05, 0.95, 19).tolist()
    cv = ExpandingWindowSplitter(FH, initial_window=FIRST_TEST, step_length=12)
    rows, last = {}, {}
    for name, forecaster in forecasters.items():
        start = time.perf_counter()
        scores = evaluate(
            in_logarithms(forecaster),
            cv,
            y,
            scoring=[PinballLoss(alpha=levels), EmpiricalCoverage(coverage=0.9)],
            return_model=True,
            error_score="raise",
        )
        elapsed = time.perf_counter() - start
        # twice the mean over levels: the CRPS, as exact as there are many of them
        crps = 2 * scores["test_PinballLoss"].mean()
        rows[name] = (crps, scores["test_EmpiricalCoverage"].mean(), elapsed)
        last[name] = scores["fitted_forecaster"].iloc[-1]
    print_table(
        f"passengers, thousands, 12 months ahead from {len(scores)} times",
        ["CRPS", "coverage", "seconds"],
        rows,
    )
    draw(y, last, args.output_dir / "sktime_airline.png")


def draw(y: pd.Series, fitted: dict[str, TransformedTargetForecaster], path: Path) -> None:
    """Draw the last forecast of each forecaster beside what came."""
    months = y.index[-48:].to_timestamp()
    fig, axes = plt.subplots(
        1, len(fitted), figsize=(12, 3.6), sharey=True, layout="constrained"
    )
    for ax, (name, pipeline) in zip(axes, fitted.items(), strict=True):
        times = months[-len(FH) :]
        for coverage in (0.9, 0.5):
            band = pipeline.predict_interval(FH, coverage=coverage).to_numpy()
            ax.fill_between(
                times, *band.T, color="C0", alpha=0.2, lw=0, label=f"central {coverage:.0%}"
            )
        if isinstance(pipeline.forecaster_, DDSSMForecaster):
            paths = pipeline.forecaster_.predict_proba(FH).spl.to_numpy()
            for i, one in enumerate(np.exp(paths).reshape(-1, len(FH))[:4]):
                label = "joint sample paths" if i == 0 else None
                ax.plot(times, one, color="C0", lw=0.8, label=label)
        ax.plot(months, y[-48:], color="black", lw=1.5, label="observed")
        ax.set_title(name)
        ax.xaxis.set_major_locator(YearLocator())
        ax.xaxis.set_major_formatter(DateFormatter("%Y"))
    axes[0].set_ylabel("passengers (thousands)")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncol=4, frameon=False)
    fig.savefig(path, dpi=120)
    print(f"wrote {path}", flush=True)


def print_table(title: str, columns: list[str], rows: dict[str, tuple]) -> None:
    """Print one line a row, numbers to four figures."""
    width = max(len(name) for name in rows)
    print(f"\n{title}\n{'':{width}s}  " + "".join(f"{c:>10s}" for c in columns))
    for name, values in rows.items():
        print(f"{name:{width}s}  " + "".join(f"{value:10.4g}" for value in values))
    print(flush=True)


if __name__ == "__main__":
    main()
