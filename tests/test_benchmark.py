"""The benchmark: its scores, its store, and each suite end to end, very small."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from darts.metrics import mase, mql

from darts_ddssm.datasets import BimodalRandomWalk

FOLDER = Path(__file__).parents[1] / "examples" / "benchmark"
MODULES = (
    "cells",
    "methods",
    "real",
    "report",
    "robustness",
    "scaling",
    "scores",
    "simulated",
    "suites",
)


@pytest.fixture(scope="module")
def modules():
    """Return the modules of the folder, which is a script and no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def run(modules, monkeypatch, tmp_path):
    """Run the command in this process, which is faster; return its folder of results."""
    # no process of its own for each cell, nor its minutes of training
    monkeypatch.setattr(modules["suites"], "run_apart", modules["suites"].run_cell)
    monkeypatch.setattr(modules["methods"], "MIN_UPDATES", 5)
    monkeypatch.setattr(modules["methods"], "WARM_UP", 1)
    monkeypatch.setattr(modules["methods"], "TIMED", 2)
    main = runpy.run_path(str(FOLDER), run_name="benchmark")["main"]

    def call(*argv: str) -> Path:
        out = tmp_path / "results"
        common = ["--seeds", "0", "--budget", "1", "--max-updates", "5"]
        main([*argv, *common, "--out-dir", str(out), "--data-dir", str(tmp_path)])
        return out

    return call


@pytest.fixture
def passengers(tmp_path):
    """Write a monthly series where the benchmark looks for the air passengers."""
    months = pd.date_range("1949-01", periods=144, freq="MS").strftime("%Y-%m")
    noise = np.random.default_rng(0).standard_normal(144)
    values = 200 + np.arange(144) + 30 * np.sin(np.arange(144) * np.pi / 6) + noise
    frame = pd.DataFrame({"Month": months, "#Passengers": values})
    frame.to_csv(tmp_path / "AirPassengers.csv", index=False)


def forecast(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, n, C) and samples (S, N, n, C)."""
    rng = np.random.default_rng(seed)
    return rng.normal(5, 1, (1, 12, 1)), rng.normal(5, 1, (200, 1, 12, 1))


def test_coverage_by_hand(modules):
    samples = np.arange(101.0).reshape(-1, 1, 1, 1).repeat(4, axis=2)
    y = np.array([10.0, 30.0, 70.0, np.nan]).reshape(1, 4, 1)
    coverage = modules["scores"].coverage
    assert coverage(y, samples, 0.5) == pytest.approx(2 / 3)
    assert coverage(y, samples, 0.9) == 1


def test_weighted_quantile_loss_is_that_of_darts(modules):
    y, samples = forecast()
    actual = TimeSeries.from_values(y[0])
    predicted = TimeSeries.from_values(samples[:, 0].transpose(1, 2, 0))
    # darts' is the mean of twice the pinball loss
    losses = [mql(actual, predicted, q=q / 10) for q in range(1, 10)]
    expected = np.mean(losses) / np.abs(y).mean()
    score = modules["scores"].weighted_quantile_loss(y, samples)
    assert score == pytest.approx(expected, rel=1e-6)


def test_mase_is_that_of_darts(modules):
    y, samples = forecast()
    history = np.random.default_rng(1).normal(size=40)
    whole = TimeSeries.from_values(np.concatenate([history, y[0, :, 0]]))
    median = np.median(samples, axis=0)[0]
    predicted = TimeSeries.from_times_and_values(whole[40:].time_index, median)
    expected = mase(whole[40:], predicted, whole[:40], m=4)
    assert modules["scores"].mase(y, samples, history, 4) == pytest.approx(expected)


def test_scores_leave_out_what_was_not_observed(modules):
    scores = modules["scores"]
    y, samples = forecast()
    short = y[:, :6], samples[:, :, :6]
    gappy = y.copy()
    gappy[:, 6:] = np.nan
    for score in (scores.crps, scores.weighted_quantile_loss, scores.energy_score):
        assert score(gappy, samples) == pytest.approx(score(*short))


def test_a_forecast_that_is_nan_has_no_score(modules):
    scores = modules["scores"]
    y, samples = forecast()
    samples[:, :, 3] = np.nan
    history = np.arange(9.0) ** 2
    assert np.isnan(scores.crps(y, samples))
    assert np.isnan(scores.weighted_quantile_loss(y, samples))
    assert np.isnan(scores.energy_score(y, samples))
    assert np.isnan(scores.coverage(y, samples, 0.5))
    assert np.isnan(scores.mase(y, samples, history, 1))


@pytest.mark.parametrize("horizon", [2, 4, 7])
def test_seasonal_naive_repeats_the_season_with_its_residuals(modules, horizon):
    history = np.tile([1.0, 2.0, 3.0, 4.0], 6)
    rng = np.random.default_rng(0)
    samples = modules["real"].seasonal_naive(history, horizon, 4, 10, rng)
    expected = np.resize([1.0, 2.0, 3.0, 4.0], horizon)
    np.testing.assert_array_equal(samples, np.tile(expected, (10, 1)))
    # a step of 1 a season is an error of 1 in the first season ahead, 2 in the second
    rising = history + np.repeat(np.arange(6), 4)
    samples = modules["real"].seasonal_naive(rising, horizon, 4, 10, rng)
    ahead = 6 + np.arange(horizon) // 4
    np.testing.assert_allclose(samples, np.tile(expected + ahead, (10, 1)))


def test_filling_a_context_does_not_look_ahead(modules):
    series = TimeSeries.from_values(np.array([1.0, 2.0, np.nan, 9.0]))
    assert modules["real"].interpolated(series[:3]).values()[-1, 0] == 2


def test_divergence_is_to_the_density_given_incomplete_series(modules):
    robustness = modules["robustness"]
    for process in (BimodalRandomWalk(), robustness.HeavyTailedWalk(noise=0.5)):
        series = process.simulate(8, 10, random_state=0).series
        gappy = robustness.with_missing(series, 0.5, seed=0)
        known = [process.smooth(one.values()) for one in gappy]
        states = [paths.sample(512, i)[:, -1] for i, paths in enumerate(known)]
        drawn = process.sample_future(np.stack(states, axis=1), 1, 1, random_state=0)[0]
        assert robustness.divergence(drawn, known, process) < 0.05
        # of what the gaps leave open, one way alone
        surer = process.sample_future(
            np.stack([states[i][:1].repeat(512, 0) for i in range(8)], axis=1), 1, 1
        )[0]
        assert robustness.divergence(surer, known, process) > 0.1
        shifted = drawn + process.step / 2
        assert robustness.divergence(shifted, known, process) > 0.4


def test_store_keeps_budgets_apart_and_forgets_mended_errors(modules, tmp_path):
    cell = modules["cells"].Cell("air", "DDSSM", 0, 1.0)
    path = tmp_path / "suite.csv"
    modules["cells"].Store(path).add(cell, {}, "ValueError: first time")
    store = modules["cells"].Store(path)
    assert store.done() == set()
    assert store.read()[1]["error"].tolist() == ["ValueError: first time"]
    store.add(cell, {"crps": 2.0, "mase": np.nan})
    assert store.done() == {cell}
    assert cell._replace(budget=2.0) not in store.done()
    assert store.read()[1].empty


def test_real_suite_resumes_and_records_failures(run, modules, passengers, monkeypatch):
    argv = ["--suite", "real", "--settings", "air passengers", "--methods"]
    methods = ["DDSSM", "RNNModel", "Seasonal naive"]

    def broken(*args, **kwargs):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(modules["real"], "seasonal_naive", broken)
        out = run(*argv, *methods)
    report = (out / "real.md").read_text()
    assert "Failed: air passengers, Seasonal naive" in report
    assert "out of luck" in report
    store = modules["cells"].Store(out / "real.csv")
    assert {cell.method for cell in store.done()} == {"DDSSM", "RNNModel"}
    scores = store.read()[0]
    assert np.isfinite(scores[["crps", "wql", "mase", "energy", "fit_seconds"]]).all(None)
    assert (scores["updates"] == 5).all()

    before = (out / "real.csv").read_text()
    run(*argv, *methods)
    after = (out / "real.csv").read_text()
    added = after.removeprefix(before)
    assert "Seasonal naive" in added and "DDSSM" not in added and "RNNModel" not in added
    assert "out of luck" not in (out / "real.md").read_text()
    assert {path.name for path in out.glob("*.png")} == {"real.png", "real_coverage.png"}

    run(*argv, *methods)
    assert (out / "real.csv").read_text() == after


@pytest.mark.parametrize(
    "argv",
    [
        ("simulated", "bimodal walk", "true process", "DDSSM"),
        ("simulated", "switching signs", "marginal"),
        ("robustness", "missing 0.5", "DDSSM", "DDSSM (Gaussian)"),
        ("scaling", "window 64", "DDSSM, patch_length=1"),
        ("scaling", "samples 10", "DDSSM", "RNNModel"),
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_suite_end_to_end(run, modules, monkeypatch, argv):
    for name in ("simulated", "robustness"):
        module = importlib.import_module(name)
        for size, value in (("NUM_TEST", 8), ("NUM_SAMPLES", 20), ("NUM_TRAIN", 128)):
            monkeypatch.setattr(module, size, value, raising=False)
    monkeypatch.setattr(importlib.import_module("simulated"), "NUM_LIKELIHOOD", 2)
    suite, setting, *methods = argv
    out = run("--suite", suite, "--settings", setting, "--methods", *methods)
    scores, errors = modules["cells"].Store(out / f"{suite}.csv").read()
    assert errors.empty, errors["error"].tolist()
    assert set(scores["method"]) == set(methods)
    assert (out / f"{suite}.md").read_text().startswith(f"# {suite}")
    # there is no picture without the true process to compare with
    assert bool(list(out.glob("*.png"))) == (methods != ["marginal"])
    table = (out / f"{suite}.md").read_text()
    run("--suite", suite, "--report-only")
    assert (out / f"{suite}.md").read_text() == table


def test_command_runs_each_cell_in_a_process_of_its_own(passengers, tmp_path):
    # beer has no file, which must not stop the other
    command = [sys.executable, str(FOLDER), "--suite", "real"]
    command += ["--settings", "beer", "air passengers", "--methods", "Seasonal naive"]
    command += [
        "--seeds",
        "0",
        "--data-dir",
        str(tmp_path),
        "--out-dir",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "o" / "real.md").read_text()
    assert "| air passengers |" in report
    assert "Failed: beer" in report and "FileNotFoundError" in report
