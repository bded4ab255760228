"""
Time series in pandas, laid on regular grids of times, for :mod:`darts_ddssm.sktime`.

pandas counts time by an index of numbers, dates or periods, darts by its own. Here each
series gets the grid of all its times, by its frequency, and goes to darts as the numbered
steps of that grid, so that all kinds of index work alike. A time without a row is a step
of missing values.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.logging import raise_log
from pandas.tseries.frequencies import to_offset

from darts_ddssm.validation import check

# The rows of each series by time; the key is () for a series that is alone.
Key = tuple[Hashable, ...]
Instances = dict[Key, pd.DataFrame]


def instances(name: str, frame: pd.DataFrame) -> Instances:
    """Split a frame by all levels of its index but the last, which is time.

    Raises
    ------
    ValueError
        If a time comes twice or is a duration, or a key or time is missing; ``name`` is
        that of the argument.
    """
    index = frame.index
    repeated = index[index.duplicated()]
    if len(repeated):
        raise_log(
            ValueError(
                f"The index of `{name}` must have no time twice, got `{repeated[0]}` again."
            )
        )
    # pandas would leave out such rows
    missing = index[index.to_frame().isna().any(axis=1)]
    if len(missing):
        raise_log(
            ValueError(
                f"The index of `{name}` must have no missing key or time, got "
                f"`{missing[0]}`."
            )
        )
    check(
        not isinstance(index.get_level_values(-1), pd.TimedeltaIndex),
        f"The times of `{name}` must be numbers, dates or periods, got a `TimedeltaIndex`.",
    )
    levels = list(range(frame.index.nlevels - 1))
    if not levels:
        # the user may change theirs later
        return {(): frame.copy()}
    groups = frame.groupby([index.get_level_values(i) for i in levels], sort=False)
    return {key: rows.droplevel(levels) for key, rows in groups}


def merged(name: str, old: Instances, new: Instances) -> Instances:
    """Return the rows of both; where both have a value, the new one.

    Raises
    ------
    ValueError
        If the columns differ; ``name`` is that of the argument.
    """
    result = dict(old)
    check_columns(name, columns_of(new), columns_of(old), "fit")
    for key, rows in new.items():
        result[key] = rows.combine_first(old[key]) if key in old else rows
    return result


def columns_of(one: Instances) -> list[Any]:
    """Return the names of the columns, which all instances share."""
    return list(next(iter(one.values())).columns)


def check_columns(name: str, columns: list[Any], expected: list[Any], method: str) -> None:
    """Refuse columns other than those that a method has had; ``name`` is the argument's."""
    check(
        columns == expected,
        f"`{name}` must have the columns {expected} as in `{method}`, got {columns}.",
    )


def frequency(indices: Iterable[pd.Index]) -> pd.offsets.BaseOffset | None:
    """Frequency of the dates of several series, ``None`` if they are no dates.

    It is the one that each series has by itself, however they lie to each other. Where that
    of some is unknown, or they differ, it is the longest step between neighbours that leads
    to all dates of all series.

    Raises
    ------
    ValueError
        If there is none.
    """
    indices = list(indices)
    times = indices[0].append(indices[1:]).unique().sort_values()
    if not isinstance(times, pd.DatetimeIndex):
        return None
    own = {_own_frequency(index) for index in indices} - {None}
    if len(own) == 1:
        (freq,) = own
        if all(_is_regular(index, freq) for index in indices):
            return freq
    found = _own_frequency(times)
    if found is not None:
        return found
    triples = (times[i : i + 3] for i in range(len(times) - 2))
    steps = {pd.infer_freq(triple) for triple in triples} - {None}
    steps = {step for step in steps if _is_regular(times, step)}
    check(
        bool(steps),
        "The index of `y` must have one frequency, got dates from which none can be "
        f"inferred, from `{times[0]}` to `{times[-1]}`. Of one series, it may be set by "
        "`y.asfreq()`.",
    )
    grids = (pd.date_range(times[0], times[-1], freq=step) for step in steps)
    return min(grids, key=len).freq


def _own_frequency(index: pd.DatetimeIndex) -> pd.offsets.BaseOffset | None:
    """Frequency that an index has, or that its dates have without a gap."""
    if index.freq is not None or len(index) < 3:
        return index.freq
    found = pd.infer_freq(index)
    return None if found is None else to_offset(found)


def _is_regular(index: pd.DatetimeIndex, freq: Any) -> bool:
    """Tell whether all dates are on the grid of a frequency from the first one."""
    grid = pd.date_range(index[0], index[-1], freq=freq)
    return bool(index.isin(grid).all())


def grid(index: pd.Index, last: Any, freq: pd.offsets.BaseOffset | None) -> pd.Index:
    """All times from the first of an index to ``last``.

    Raises
    ------
    ValueError
        If the index has others.
    """
    first = index[0]
    if isinstance(index, pd.DatetimeIndex):
        times = pd.date_range(first, last, freq=freq)
    elif isinstance(index, pd.PeriodIndex):
        times = pd.period_range(first, last, freq=index.freq)
    else:
        times = pd.RangeIndex(first, last + 1)
    outside = index[~index.isin(times)]
    if len(outside):
        raise_log(
            ValueError(
                f"The index of `y` must be regular, got `{outside[0]}`, which is no "
                f"multiple of `{times.freqstr}` from `{first}`."
            )
        )
    return times


def steps(
    name: str,
    key: Key,
    rows: pd.DataFrame,
    times: pd.Index,
    before: int,
    dtype: type[np.floating],
) -> TimeSeries:
    """Rows at all times of a grid, and ``before`` missing steps before them.

    Raises
    ------
    ValueError
        If a value is infinite in ``dtype``; ``name`` is that of the argument.
    """
    # what is too large for the type is told below
    with np.errstate(over="ignore"):
        values = rows.astype(np.float64).reindex(times).to_numpy(dtype)
    check(
        not np.isinf(values).any(),
        f"`{name}` must be NaN (missing) or finite in {dtype.__name__}, got infinite "
        f"values{_of(key)}.",
    )
    padded = np.pad(values, ((before, 0), (0, 0)), constant_values=np.nan)
    return TimeSeries.from_values(padded)


def num_seen(rows: pd.DataFrame, times: pd.Index) -> int:
    """Number of steps of a grid up to the last row."""
    return times.get_loc(rows.index[-1]) + 1


def steps_ahead(rows: pd.DataFrame, times: pd.Index, horizon: pd.Index) -> np.ndarray:
    """Numbers of the steps of a horizon, 1 for the first one after the last row.

    Raises
    ------
    ValueError
        If a time of the horizon is not after the last row, or not on the grid.
    """
    found = times.get_indexer(horizon)
    ahead = found + 1 - num_seen(rows, times)
    wrong = horizon[(found < 0) | (ahead < 1)]
    if len(wrong):
        raise_log(
            ValueError(
                "`fh` must be after the last time of each series, here "
                f"`{rows.index[-1]}`, and on its grid, got `{wrong[0]}`."
            )
        )
    return ahead


def with_frequency(index: pd.Index, freq: pd.offsets.BaseOffset | None) -> pd.Index:
    """Return an index that, if it has dates, has this frequency."""
    return pd.DatetimeIndex(index, freq=freq) if freq is not None else index


def joined(times: dict[Key, pd.Index], names: Iterable[Hashable]) -> pd.Index:
    """Return the index of a frame with these times of each series."""
    if () in times:
        return times[()].set_names(names)
    rows = [(*key, time) for key, index in times.items() for time in index]
    return pd.MultiIndex.from_tuples(rows, names=names)


def _of(key: Key) -> str:
    """Return which series an error is about, nothing if there is one only."""
    return f" of the series `{key}`" if key else ""


def check_observed(key: Key, rows: pd.DataFrame) -> None:
    """Raise a `ValueError` if a series has missing values only."""
    check(
        bool(rows.notna().any(axis=None)),
        f"`y` must have observed values, got missing values only{_of(key)}.",
    )


def check_rows(X: Instances, key: Key, times: pd.Index) -> None:
    """Raise a `ValueError` if a series has no covariates, or none at some of the times."""
    check(key in X, f"`X` must have the series of `y`, got none{_of(key)}.")
    missing = times[~times.isin(X[key].index)]
    if len(missing):
        raise_log(
            ValueError(
                "`X` must have a row at each time of `y` and of the horizon, got none at "
                f"`{missing[0]}`{_of(key)}. A value may be NaN: not known."
            )
        )
