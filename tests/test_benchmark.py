"""The benchmark: its scores, its store, and each suite end to end, very small."""

import importlib
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from darts.metrics import mase, mql

from darts_ddssm.datasets import BimodalRandomWalk

FOLDER = Path(__file__).parents[1] / "examples" / "benchmark"
MODULES = (
    "cells",
    "gift",
    "gift_data",
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


def write_series(path: Path, *rows: np.ndarray) -> None:
    """Write a file as the suite of GIFT-Eval reads it, empty where missing."""
    cells = [["" if np.isnan(x) else str(x) for x in row] for row in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(",".join(row) + "\n" for row in cells))


@pytest.fixture
def gift_files(tmp_path):
    """Write two configurations of GIFT-Eval, tiny, and published scores of one."""
    rng = np.random.default_rng(0)
    days = 100 + 10 * np.sin(2 * np.pi * np.arange(400) / 7) + rng.standard_normal(400)
    short, gappy = rng.poisson(5.0, 30).astype(float), rng.poisson(5.0, 40).astype(float)
    gappy[[0, 1, 20, 30, -1]] = np.nan
    write_series(tmp_path / "gift" / "births_d.csv", days)
    ended = np.array([4.0, *[np.nan] * 29])
    write_series(tmp_path / "gift" / "hospital.csv", short, gappy, ended)
    rows = [
        "configuration,model,mean_weighted_sum_quantile_loss,MASE",
        "births_d,seasonal_naive,0.5,2.0",
        "hospital,seasonal_naive,0.25,1.0",
        "births_d,other-nano,0.25,0.5",
        "hospital,other-nano,0.0625,0.25",
        "births_d,half,0.1,0.1",
    ]
    (tmp_path / "gift" / "published.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "season", "dates"),
    [
        ("15T", 96, ["2019-12-31 23:45", "2020-01-01 00:00"]),
        ("10S", 360, ["2019-12-31 23:59:50", "2020-01-01 00:00"]),
        ("H", 24, ["2019-12-31 23:00", "2020-01-01 00:00"]),
        ("7h", 1, ["2019-12-31 17:00", "2020-01-01 00:00"]),
        ("D", 1, ["2019-12-31", "2020-01-01"]),
        ("W-THU", 1, ["2019-12-26", "2020-01-02"]),
        ("W-SUN", 1, ["2019-12-29", "2020-01-05"]),
        ("M", 12, ["2019-12-01", "2020-01-01"]),
        ("QE-DEC", 4, ["2019-10-01", "2020-01-01"]),
        ("A-DEC", 1, ["2019-01-01", "2020-01-01"]),
    ],
)
def test_gift_frequency(modules, text, season, dates):
    frequency = modules["gift_data"].Frequency.parse(text)
    assert frequency.season == season
    index = frequency.dates(pd.Timestamp("2020-01-01"), -1, 1)
    assert list(index) == [pd.Timestamp(date) for date in dates]


def test_gift_configurations_have_the_names_of_the_benchmark(modules):
    configurations = modules["gift_data"].CONFIGURATIONS
    published = {c.published for c in configurations.values()}
    assert len(published) == 97
    assert configurations["LOOP_SEATTLE/H/long"].published == "loop_seattle/H/long"
    assert configurations["carparts"].published == "car_parts/M/short"
    assert configurations["bizitobs_service/medium"].published == (
        "bizitobs_service/10S/medium"
    )


@pytest.mark.parametrize(("length", "windows"), [(100, 1), (301, 2), (1000, 4), (9000, 20)])
def test_gift_windows_follow_each_other_up_to_the_end(modules, tmp_path, length, windows):
    values = np.arange(float(length))
    write_series(tmp_path / "births_d.csv", values)
    data = modules["gift_data"].load("births_d", str(tmp_path))
    assert (data.horizon, data.windows, data.season) == (30, windows, 1)
    (train,) = data.training()
    np.testing.assert_array_equal(train, values[: length - 30 * windows])
    ends = [end for _, end in data.ends()]
    assert ends == list(range(length - 30 * windows, length, 30))
    np.testing.assert_array_equal(data.actual().ravel(), values[-30 * windows :])


def test_gift_series_of_different_length(modules, tmp_path):
    long, short = np.arange(400.0), np.arange(250.0)
    short[[0, 3, -1]] = np.nan
    write_series(tmp_path / "gift" / "hospital.csv", long, short)
    data = modules["gift_data"].load("hospital", str(tmp_path))
    # a tenth of the shorter one is 25 steps
    assert (data.horizon, data.windows) == (12, 3)
    assert list(data.ends()) == [(0, 364), (0, 376), (0, 388), (1, 214), (1, 226), (1, 238)]
    np.testing.assert_array_equal(data.series[1], short)
    write_series(tmp_path / "gift" / "m4_hourly.csv", np.arange(900.0))
    data = modules["gift_data"].load("m4_hourly", str(tmp_path))
    assert (data.horizon, data.windows, data.season, data.firsts) == (48, 1, 24, None)


def test_gift_scores_by_hand(modules):
    gift, scores = modules["gift"], modules["scores"]
    y = np.array([[2.0, np.nan], [-4.0, np.nan]])
    deciles = np.zeros((9, 2, 2))
    deciles[:, 0] = np.arange(1.0, 10)[:, None]
    # twice the pinball losses of 1, ..., 9 to 2, then of 0 to -4, mean of the levels
    first = (0.2 + 0 + 1.4 + 2.4 + 3 + 3.2 + 3 + 2.4 + 1.4) / 9
    score = scores.loss_of_deciles(y, deciles)
    assert score == pytest.approx((first + 4) / (2 + 4))

    y = np.array([[1.0, np.nan], [5.0, 5.0], [7.0, 7.0], [1.0, 2.0]])
    # neither of a constant history nor of one with gaps
    scale = np.array([2.0, 0.0, np.nan, 1.0])
    score = scores.scaled_error(y, np.zeros((4, 2)), scale)
    assert score == pytest.approx((0.5 + 1 + 2) / 3)
    assert np.isnan(scores.scaled_error(y, np.full((4, 2), np.nan), scale))

    assert gift.seasonal_error(np.array([1.0, 5.0, 2.0, 3.0]), 2) == 1.5
    assert gift.seasonal_error(np.array([1.0, 5.0, 2.0]), 4) == 3.5
    assert np.isnan(gift.seasonal_error(np.array([1.0, np.nan, 2.0]), 1))


def test_gift_seasonal_naive_by_hand(modules):
    naive = modules["gift"].seasonal_naive
    z = 1.2815515655446004
    deciles = naive(np.array([1.0, 3.0, 2.0, 5.0]), 5, 2)
    spread = np.sqrt((1 + 4) / 2 * np.array([1, 1, 2, 2, 3]))
    np.testing.assert_allclose(deciles[4], [2, 5, 2, 5, 2])
    np.testing.assert_allclose(deciles[8], deciles[4] + z * spread)
    np.testing.assert_allclose(deciles[0], deciles[4] - z * spread)
    # gaps are filled: 1, 1, 1, 4
    deciles = naive(np.array([np.nan, 1.0, np.nan, 4.0]), 2, 1)
    np.testing.assert_allclose(deciles[4], 4)
    np.testing.assert_allclose(deciles[8], 4 + z * np.sqrt([3, 6]))
    # shorter than a season: the last value, and differences of neighbours
    np.testing.assert_allclose(
        naive(np.array([1.0, 3.0]), 1, 12)[[4, 8], 0], [3, 3 + 2 * z]
    )
    # a season exactly, and nothing at all
    np.testing.assert_allclose(naive(np.array([1.0, 3.0]), 3, 2), [[1, 3, 1]] * 9)
    np.testing.assert_allclose(naive(np.full(3, np.nan), 2, 1), 0)


def test_gift_context(modules, tmp_path):
    gift, load = modules["gift"], modules["gift_data"].load
    for name, length, expected in (
        ("births_d", 1000, 60),  # two horizons
        ("births_d", 100, 35),  # half of what there is
        ("saugeen_w", 1000, 52),  # a year
        ("m4_hourly", 900, 168),  # a week
    ):
        write_series(tmp_path / f"{name}.csv", np.arange(float(length)))
        assert gift.context_length(load(name, str(tmp_path))) == expected


def test_gift_series_begins_with_missing_values_where_it_is_short(modules, tmp_path):
    write_series(tmp_path / "hospital.csv", np.arange(30.0))
    data = modules["gift_data"].load("hospital", str(tmp_path))
    series = modules["gift"].as_series(data, 0, -2, 3)
    np.testing.assert_array_equal(series.values()[:, 0], [np.nan, np.nan, 0, 1, 2])
    assert series.start_time() == pd.Timestamp("1999-11-01")
    assert series.freq_str == "MS" and series.dtype == np.float32


def test_gift_series_has_a_value_where_all_are_missing(modules, tmp_path):
    values = np.array([np.nan, 5.0, 6.0, *[np.nan] * 30])
    write_series(tmp_path / "hospital.csv", values, np.full(33, np.nan))
    data = modules["gift_data"].load("hospital", str(tmp_path))
    as_series = modules["gift"].as_series
    np.testing.assert_array_equal(as_series(data, 0, 3, 5).values()[:, 0], [6, np.nan])
    np.testing.assert_array_equal(as_series(data, 0, 2, 4).values()[:, 0], [6, np.nan])
    np.testing.assert_array_equal(as_series(data, 1, -1, 1).values()[:, 0], [0, np.nan])


def as_rows() -> dict[str, list]:
    """Two multivariate series of LOOP_SEATTLE/H, of 500 and 600 steps."""
    targets = [np.arange(2 * n, dtype=float).reshape(2, n) for n in (500, 600)]
    targets[0][1, 7] = np.nan
    return {
        "item_id": ["a", "b"],
        "start": [datetime(2015, 1, 1, 5)] * 2,
        "freq": ["H", "H"],
        "target": [target.tolist() for target in targets],
    }


def check_read(gift_data, data_dir: Path) -> None:
    """Check what is made of `as_rows`."""
    data = gift_data.load("LOOP_SEATTLE/H/short", str(data_dir))
    # a tenth of 500 steps is two windows of 48
    assert (data.horizon, data.windows, data.season) == (48, 2, 24)
    assert [len(values) for values in data.series] == [500, 500, 600, 600]
    assert np.isnan(data.series[1][7])
    np.testing.assert_array_equal(data.series[3], np.arange(600.0, 1200.0))
    assert data.firsts == [pd.Timestamp("2015-01-01 05:00")] * 4
    medium = gift_data.load("LOOP_SEATTLE/H/medium", str(data_dir))
    assert (medium.horizon, medium.windows) == (480, 1)


def test_gift_rows_of_the_benchmark(modules, monkeypatch, tmp_path):
    columns = as_rows()
    rows = [{name: column[i] for name, column in columns.items()} for i in range(2)]
    read = SimpleNamespace(load_from_disk=lambda path: rows)
    (tmp_path / "LOOP_SEATTLE" / "H").mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "datasets", read)
    check_read(modules["gift_data"], tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[gift\]"'):
        check_read(modules["gift_data"], tmp_path)


def test_gift_reads_the_data_of_the_benchmark(modules, tmp_path):
    pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    # the files that it has on disk
    folder = tmp_path / "LOOP_SEATTLE" / "H"
    folder.mkdir(parents=True)
    table = pyarrow.table(as_rows())
    file = "data-00000-of-00001.arrow"
    with pyarrow.ipc.new_stream(str(folder / file), table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": file}], "_fingerprint": "0", "_split": None}
    formats = ("_format_columns", "_format_kwargs", "_format_type", "_output_all_columns")
    state |= dict.fromkeys(formats) | {"_format_kwargs": {}}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    check_read(modules["gift_data"], tmp_path)


def test_gift_suite_needs_data(run, tmp_path, modules):
    message = "must have data of .*; or name others with --settings"
    with pytest.raises(SystemExit, match=message):
        run("--suite", "gift")
    with pytest.raises(SystemExit, match="needs --data-dir"):
        modules["gift_data"].found(None)
    out = run("--suite", "gift", "--settings", "births_d", "--methods", "Seasonal naive")
    assert "FileNotFoundError" in (out / "gift.md").read_text()


def test_gift_suite_end_to_end(run, modules, gift_files, monkeypatch):
    monkeypatch.setattr(modules["gift"], "NUM_SAMPLES", 20)
    monkeypatch.setattr(modules["gift"], "BATCH", 3)
    out = run("--suite", "gift")
    scores, errors = modules["cells"].Store(out / "gift.csv").read()
    assert errors.empty, errors["error"].tolist()
    # those that have files, and all methods
    assert set(scores["setting"]) == {"births_d", "hospital"}
    assert set(scores["method"]) == set(modules["gift"].SUITE.methods)
    assert np.isfinite(scores[["wql", "mase", "coverage_80"]]).all(None)
    trained = scores[scores["method"] != "Seasonal naive"]
    assert (trained["updates"] <= 5).all() and (trained["updates"] > 0).all()

    text = (out / "gift.md").read_text()
    rows = [[x.strip() for x in line.split("|")] for line in text.splitlines()]
    beside = {row[1]: row[2:-1] for row in rows if len(row) == 7}
    # sorted, with what does not have all configurations at the end
    assert beside["other-nano"] == ["0.500", "0.250", "0.354", "0.250"]
    means = [row[2] for row in list(beside.values())[2:]]
    assert means[:-1] == sorted(means[:-1], key=float) and len(means) == 6
    assert list(beside)[-1] == "half"
    assert beside["half"] == ["0.200", "", "", ""]
    naive = scores[scores["method"] == "Seasonal naive"].set_index("setting")["wql"]
    expected = [naive["births_d"] / 0.5, naive["hospital"] / 0.25]
    assert beside["**Seasonal naive**"][:2] == [f"{x:.3f}" for x in expected]
    assert "| births_d, DDSSM |" in text

    run("--suite", "gift", "--report-only")
    assert (out / "gift.md").read_text() == text


def test_gift_report_takes_results_of_the_benchmark_or_none(run, modules, gift_files):
    argv = ["--suite", "gift", "--settings", "births_d", "--methods", "Seasonal naive"]
    (gift_files / "gift" / "published.csv").unlink()
    out = run(*argv)
    # by its own measure
    assert "| **Seasonal naive** | 1.000 | 1.000 | 1.000 |" in (out / "gift.md").read_text()
    for model, score in (("seasonal_naive", 0.5), ("other", 0.25)):
        file = gift_files / "gift" / "results" / model / "all_results.csv"
        file.parent.mkdir(parents=True)
        file.write_text(
            "dataset,model,eval_metrics/MASE[0.5],"
            "eval_metrics/mean_weighted_sum_quantile_loss\n"
            f"us_births/D/short,Name,{score},{score}\nm4_yearly/A/short,Name,9,9\n"
        )
    run(*argv, "--report-only")
    text = (out / "gift.md").read_text()
    assert "| other | 0.500 | 0.500 | 0.500 |" in text
    assert "| seasonal_naive | 1.000 | 1.000 | 1.000 |" in text


def test_gift_report_says_how_far_seeds_are_apart(modules, tmp_path):
    scores = {"wql": [0.02, 0.03, 0.04], "mase": [0.5, 0.7, 0.6], "coverage_80": 0.8}
    frame = pd.DataFrame({"setting": "births_d", "method": "DDSSM", **scores})
    summary = modules["gift"].summary
    text = summary(frame, tmp_path, None)
    # of what does not differ there is none
    assert "| births_d, DDSSM | 0.0300 (0.0100) | 0.600 (0.100) | 0.800 | 3 |" in text
    alone = summary(frame[:1], tmp_path, None)
    assert "| births_d, DDSSM | 0.0200 | 0.500 | 0.800 | 1 |" in alone


def test_no_report_is_written_of_a_budget_without_results(run, modules, tmp_path, capsys):
    store = modules["cells"].Store(tmp_path / "results" / "simulated.csv")
    store.add(modules["cells"].Cell("bimodal walk", "DDSSM", 0, 150.0), {"crps": 2.0})
    store.add(modules["cells"].Cell("bimodal walk", "DDSSM", 1, 90.0), {}, "an error")
    report = tmp_path / "results" / "simulated.md"
    report.write_text("published")
    # the budget is 1
    run("--suite", "simulated", "--report-only")
    assert report.read_text() == "published"
    message = "simulated: no results for --budget 1; budgets stored: 90, 150"
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("name", ["simulated", "robustness", "real", "scaling", "gift"])
def test_published_results_have_the_default_budget(modules, name):
    published = modules["cells"].Store(FOLDER / "results" / f"{name}.csv").read()[0]
    assert set(published["budget"]) == {modules["suites"].SUITES[name].seconds}


def test_robustness_report_says_of_which_seeds_it_is(modules, tmp_path):
    frame = modules["cells"].Store(FOLDER / "results" / "robustness.csv").read()[0]
    frame = frame[frame["seed"] == 0]
    summary = modules["robustness"].summary
    assert summary(frame, tmp_path, None).startswith("One seed; the CRPS")
    three = pd.concat([frame.assign(seed=seed) for seed in (2, 0, 1)])
    expected = "Means over seeds 0, 1, 2; the CRPS"
    assert summary(three, tmp_path, None).startswith(expected)


def test_device_is_that_of_the_trainer(run, modules, gift_files, monkeypatch):
    seen = []

    def see(cell, options):
        seen.append(options.budget.trainer_arguments(max_steps=5)["accelerator"])
        return {"wql": 1.0, "mase": 1.0, "coverage_80": 0.8, "predict_seconds": 0.0}

    suites = modules["suites"].SUITES
    monkeypatch.setitem(suites, "gift", replace(suites["gift"], run=see))
    argv = ["--suite", "gift", "--settings", "births_d", "--methods"]
    run(*argv, "DDSSM")
    run(*argv, "DDSSM (Gaussian)", "--device", "gpu")
    assert seen == ["cpu", "gpu"]
