"""
The configurations of GIFT-Eval (Aksu et al. 2024), as CSV files or as it is published.

A configuration is a data set, at one of its frequencies, and a term, which says how far
ahead its forecasts reach. Its name is the folder of the data set, followed by the term
where there are several: ``us_births/D``, ``LOOP_SEATTLE/H/short``. Five have CSV files
too, with a row for each series, its oldest value first, empty where missing.

How long the forecasts are and how many is a rule of the benchmark, by frequency and by
length of the series. Its own models without a multivariate side see each component of a
multivariate series as a series, and so does this suite.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

# Names of units that pandas had, or has for the first or last day of them.
UNITS = {
    **{"S": "s", "T": "min", "H": "h", "MS": "M", "ME": "M", "QS": "Q", "QE": "Q"},
    **dict.fromkeys(("A", "AS", "YS", "YE"), "Y"),
}
# Units to a season; 1 where there is none.
SEASONS = {"s": 3600, "min": 1440, "h": 24, "M": 12, "Q": 4}
# Steps of a short forecast.
HORIZONS = {"s": 60, "min": 48, "h": 48, "D": 30, "W": 8, "M": 12}
M4_HORIZONS = {"h": 48, "D": 14, "W": 13, "M": 18, "Q": 8, "Y": 6}
TERMS = {"short": 1, "medium": 10, "long": 15}
# The test part is at least this share of the shortest series, in at most so many windows.
TEST_SHARE, MAX_WINDOWS = 0.1, 20


class Frequency(NamedTuple):
    """Time between two steps: a number of units, such as 15 "min", and an anchor."""

    number: int
    unit: str
    anchor: str = ""

    @classmethod
    def parse(cls, text: str) -> "Frequency":
        """Read what pandas calls it, now or in the past."""
        number, unit, anchor = re.fullmatch(r"(\d*)([A-Za-z]+)(-\w+)?", text).groups()
        return cls(int(number or 1), UNITS.get(unit, unit), anchor or "")

    @property
    def season(self) -> int:
        """Steps to a season, as the benchmark counts them."""
        steps, rest = divmod(SEASONS.get(self.unit, 1), self.number)
        return 1 if rest else steps

    def dates(self, first: pd.Timestamp, start: int, stop: int) -> pd.DatetimeIndex:
        """Dates of the steps from `start` to before `stop` of what begins at `first`."""
        # months, quarters and years begin on their first day
        unit = {"M": "MS", "Q": "QS", "Y": "YS"}.get(self.unit, self.unit)
        anchor = self.anchor if self.unit == "W" else ""
        step = pd.tseries.frequencies.to_offset(f"{self.number}{unit}{anchor}")
        if self.unit == "W":
            first = step.rollforward(first)
        elif unit != self.unit:
            first = step.rollback(first)
        return pd.date_range(first + start * step, periods=stop - start, freq=step)


class Configuration(NamedTuple):
    """A data set and a term.

    Attributes
    ----------
    folder
        Of the data set in the benchmark's own.
    term
        ``"short"``, ``"medium"`` or ``"long"``.
    frequency, first
        Of the CSV file, the date of the first step; None without a file.
    """

    folder: str
    term: str = "short"
    frequency: str | None = None
    first: str | None = None

    @property
    def published(self) -> str:
        """Name of the configuration in the benchmark's tables of results."""
        name, _, frequency = self.folder.partition("/")
        frequency = frequency or FREQUENCIES[name]
        return f"{PUBLISHED.get(name, name.lower())}/{frequency}/{self.term}"


SHORT = """
    m4_yearly m4_quarterly m4_monthly m4_weekly m4_daily m4_hourly hospital covid_deaths
    temperature_rain_with_missing car_parts_with_missing restaurant electricity/D
    electricity/W solar/D solar/W us_births/D us_births/M us_births/W saugeenday/D
    saugeenday/M saugeenday/W kdd_cup_2018_with_missing/D hierarchical_sales/D
    hierarchical_sales/W LOOP_SEATTLE/D SZ_TAXI/H M_DENSE/D ett1/D ett1/W ett2/D ett2/W
    jena_weather/D bitbrains_fast_storage/H bitbrains_rnd/H
""".split()
ALL_TERMS = """
    electricity/15T electricity/H solar/10T solar/H kdd_cup_2018_with_missing/H
    LOOP_SEATTLE/5T LOOP_SEATTLE/H SZ_TAXI/15T M_DENSE/H ett1/15T ett1/H ett2/15T ett2/H
    jena_weather/10T jena_weather/H bitbrains_fast_storage/5T bitbrains_rnd/5T
    bizitobs_application bizitobs_service bizitobs_l2c/5T bizitobs_l2c/H
""".split()

# Frequencies of the data sets that have one alone, and names that differ, in the tables.
FREQUENCIES = {
    "m4_yearly": "A",
    "m4_quarterly": "Q",
    "m4_monthly": "M",
    "m4_weekly": "W",
    "m4_daily": "D",
    "m4_hourly": "H",
    "hospital": "M",
    "covid_deaths": "D",
    "temperature_rain_with_missing": "D",
    "car_parts_with_missing": "M",
    "restaurant": "D",
    "bizitobs_application": "10S",
    "bizitobs_service": "10S",
}
PUBLISHED = {
    "saugeenday": "saugeen",
    "temperature_rain_with_missing": "temperature_rain",
    "kdd_cup_2018_with_missing": "kdd_cup_2018",
    "car_parts_with_missing": "car_parts",
}

# Those with CSV files. The dates of the M4 series are not their own.
WITH_FILES = {
    "m4_hourly": Configuration("m4_hourly", "short", "h"),
    "births_d": Configuration("us_births/D", "short", "D", "1969-01-01"),
    "saugeen_w": Configuration("saugeenday/W", "short", "W-THU", "1915-01-07"),
    "hospital": Configuration("hospital", "short", "M", "2000-01-01"),
    "carparts": Configuration("car_parts_with_missing", "short", "M", "1998-01-01"),
}
CONFIGURATIONS = {
    **{name: Configuration(name) for name in SHORT},
    **{f"{name}/{term}": Configuration(name, term) for name in ALL_TERMS for term in TERMS},
    **WITH_FILES,
}


@dataclass(frozen=True)
class Data:
    """The univariate series of a configuration and what is asked of them, in steps.

    The last ``windows * horizon`` values of each series are its test part: windows one
    after the other, each forecast from all that is before it.

    Attributes
    ----------
    series
        Values of each, NaN where missing.
    firsts
        Date of the first step of each; None where dates are not known.
    frequency
        Time between two steps.
    horizon, windows
        Length of a forecast, and their number for each series.
    """

    series: list[np.ndarray]
    firsts: list[pd.Timestamp] | None
    frequency: Frequency
    horizon: int
    windows: int

    @property
    def season(self) -> int:
        return self.frequency.season

    def training(self) -> list[np.ndarray]:
        """All before the test part of each series."""
        return [values[: -self.windows * self.horizon] for values in self.series]

    def ends(self) -> Iterator[tuple[int, int]]:
        """Each series, by its number, and each end of what a window is forecast from."""
        for i, values in enumerate(self.series):
            for left in range(self.windows, 0, -1):
                yield i, len(values) - left * self.horizon

    def actual(self) -> np.ndarray:
        """Return what is forecast, for each of `ends`: (N, n)."""
        return np.stack([self.series[i][e : e + self.horizon] for i, e in self.ends()])


def root(data_dir: str | None) -> Path:
    """Folder of the benchmark's data: the given one, or ``gift`` in it."""
    if data_dir is None:
        raise SystemExit("--suite gift needs --data-dir, a folder of data of GIFT-Eval")
    inside = Path(data_dir) / "gift"
    return inside if inside.is_dir() else Path(data_dir)


def places(name: str, data_dir: str | None) -> tuple[Path, Path]:
    """The CSV file and the folder where the data of a configuration may be."""
    folder = root(data_dir)
    return folder / f"{name}.csv", folder / CONFIGURATIONS[name].folder


def found(data_dir: str | None) -> list[str]:
    """Those of the five configurations whose data are there."""
    names = [n for n in WITH_FILES if any(path.exists() for path in places(n, data_dir))]
    if not names:
        raise SystemExit(
            f"--data-dir must have data of {list(WITH_FILES)}, got {data_dir}; "
            "or name others with --settings"
        )
    return names


def load(name: str, data_dir: str | None) -> Data:
    """Read a configuration, from its CSV file if there is one."""
    configuration = CONFIGURATIONS[name]
    file, folder = places(name, data_dir)
    if configuration.frequency is not None and file.exists():
        series, frequency = read_csv(file), Frequency.parse(configuration.frequency)
        firsts = [pd.Timestamp(configuration.first)] * len(series)
    elif folder.exists():
        series, firsts, frequency = read_folder(folder)
    else:
        raise FileNotFoundError(f"There is neither {file} nor {folder}.")
    is_m4 = configuration.folder.startswith("m4")
    horizon = (M4_HORIZONS if is_m4 else HORIZONS)[frequency.unit]
    horizon *= TERMS[configuration.term]
    windows = math.ceil(TEST_SHARE * min(map(len, series)) / horizon)
    windows = 1 if is_m4 else min(max(windows, 1), MAX_WINDOWS)
    return Data(series, None if is_m4 else firsts, frequency, horizon, windows)


def read_csv(path: Path) -> list[np.ndarray]:
    """Read one series a row; rows may differ in length, and end in missing values."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [np.array([float(cell or "nan") for cell in row]) for row in rows]


def read_folder(path: Path) -> tuple[list[np.ndarray], list[pd.Timestamp], Frequency]:
    """Read a data set as the benchmark has it, each component a series of its own."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "The benchmark's own data need `datasets`. Install it in a clone of this "
            'repository by `pip install ".[gift]"`.'
        ) from error
    rows = datasets.load_from_disk(str(path))
    series, firsts = [], []
    for row in rows:
        # (T,) or (C, T) -> (C, T)
        components = np.atleast_2d(np.asarray(row["target"], dtype=float))
        series += list(components)
        firsts += [pd.Timestamp(row["start"])] * len(components)
    return series, firsts, Frequency.parse(rows[0]["freq"])
