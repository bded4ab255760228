"""Tables in Markdown, pictures, and the seconds of a stopwatch."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

# pictures go to files, on machines without a display too
matplotlib.use("Agg")

COLOURS = {
    "DDSSM": "#0b5394",
    "DDSSM (Gaussian)": "#6fa8dc",
    "RNNModel": "#cc4125",
    "TiDEModel": "#e69138",
    "TFTModel": "#6aa84f",
    "ExponentialSmoothing": "#674ea7",
    "Seasonal naive": "#7f7f7f",
    "true process": "black",
    "marginal": "#bcbd22",
}


class Stopwatch:
    """Seconds since it was made or restarted."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


def numbers(column: pd.Series, digits: int) -> pd.Series:
    """Numbers as text, the least bold."""
    text = column.map(f"{{:.{digits}f}}".format)
    return text.where(column > column.min(), "**" + text + "**")


def with_spread(mean: pd.DataFrame, spread: pd.DataFrame) -> pd.DataFrame:
    """Means and, in brackets, standard deviations, with the least of each row bold."""
    text = mean.map("{:.3g}".format)
    text = text.where(mean.gt(mean.min(axis=1), axis=0), "**" + text + "**")
    brackets = spread.map(lambda x: "" if np.isnan(x) or x == 0 else f" ({x:.2g})")
    return (text + brackets).where(mean.notna(), "")


def markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown, its index as first column."""
    head = ["", *map(str, frame.columns)]
    rows = [
        [str(i), *map(str, row)]
        for i, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return re.sub(r"\bnan\b", "", text)


def save(figure: plt.Figure, path: Path) -> None:
    """Write and close a figure."""
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def dots(table: pd.DataFrame, label: str, path: Path) -> None:
    """One row a series, one dot a method, at its score."""
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(table) + 1.5))
    rows = np.arange(len(table))[::-1]
    for method in table.columns:
        first = method.startswith("DDSSM")
        axis.scatter(
            table[method],
            rows,
            s=70 if first else 40,
            marker="D" if first else "o",
            color=COLOURS[method],
            label=method,
            zorder=3 if first else 2,
        )
    axis.set_yticks(rows, table.index)
    axis.set_xscale("log")
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left", frameon=False)
    save(figure, path)


def coverage(level_50: pd.DataFrame, level_90: pd.DataFrame, path: Path) -> None:
    """Coverage of each method on each series beside the nominal one."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), sharey=True)
    for axis, table, nominal in zip(axes, (level_50, level_90), (0.5, 0.9), strict=True):
        axis.axvline(nominal, color="black", linewidth=1)
        for row, method in enumerate(reversed(table.columns)):
            values = table[method]
            axis.scatter(
                values, np.full(len(values), row), color=COLOURS[method], alpha=0.6
            )
            axis.scatter(values.mean(), row, color=COLOURS[method], marker="|", s=400)
        axis.set_yticks(range(table.shape[1]), table.columns[::-1])
        axis.set_title(f"coverage of the {nominal:.0%} interval")
        axis.set_xlim(0, 1.02)
        axis.grid(alpha=0.3)
    save(figure, path)


def curves(
    panels: Mapping[str, pd.DataFrame],
    label: str,
    path: Path,
    floors: Mapping[str, pd.Series] | None = None,
) -> None:
    """One panel a factor: a line a method over the factor's settings."""
    columns = 3
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(11, 2.9 * lines), squeeze=False)
    for axis, (factor, table) in zip(axes.flat, panels.items(), strict=False):
        places = range(len(table))
        for method in table.columns:
            colour = COLOURS.get(method, "black")
            axis.plot(places, table[method], "o-", color=colour, label=method)
        if floors is not None:
            axis.plot(places, floors[factor], "k--", linewidth=1, label="true process")
        axis.set_xticks(places, table.index)
        axis.set_xlabel(factor)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel(label)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower right", frameon=False)
    figure.tight_layout()
    save(figure, path)


def log_curves(panels: Mapping[str, pd.DataFrame], path: Path) -> None:
    """One panel a size, both axes logarithmic, with a line of slope one."""
    columns = 3
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(11, 2.9 * lines), squeeze=False)
    for axis, (title, table) in zip(axes.flat, panels.items(), strict=False):
        for method in table.columns:
            line = table[method].dropna()
            axis.plot(line.index, line, "o-", label=method)
        ends = table.index[[0, -1]].to_numpy(float)
        last = table.iloc[-1].dropna().max()
        axis.plot(ends, last * ends / ends[-1], "k:", linewidth=1, label="slope 1")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(table.index, table.index)
        axis.set_xticks([], minor=True)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    axes.flat[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, path)
