"""One unit of work: a setting, a method and a seed; and a store of what came out."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from methods import Budget


class Cell(NamedTuple):
    """One run of one method, with a budget in seconds of training."""

    setting: str
    method: str
    seed: int
    budget: float


@dataclass(frozen=True)
class Options:
    """What holds for all cells.

    Attributes
    ----------
    budget
        What training may cost.
    data_dir
        Folder of data; None to load by ``darts.datasets``.
    """

    budget: Budget
    data_dir: str | None


@dataclass(frozen=True)
class Suite:
    """A question, cut into cells.

    Attributes
    ----------
    settings, methods
        What is crossed with the seeds.
    run
        Function of a cell and the options that returns scores by name.
    report
        Function of all scores, a folder and the folder of data that draws into the
        first and returns Markdown.
    seconds
        Default time of training a model.
    applies
        Whether a method has anything to do in a setting.
    found
        Function of the folder of data that returns the settings that are run where none
        are asked for; None for all.
    """

    settings: Sequence[str]
    methods: Sequence[str]
    run: Callable[[Cell, Options], dict[str, float]]
    report: Callable[[pd.DataFrame, Path, str | None], str]
    seconds: float
    applies: Callable[[str, str], bool] = lambda setting, method: True
    found: Callable[[str | None], Sequence[str]] | None = None

    def cells(
        self,
        settings: Sequence[str],
        methods: Sequence[str],
        seeds: Sequence[int],
        seconds: float,
    ) -> list[Cell]:
        """All cells, seed by seed, so that an early stop leaves whole tables."""
        return [
            Cell(setting, method, seed, seconds)
            for seed in seeds
            for setting in settings
            for method in methods
            if self.applies(setting, method)
        ]


class Store:
    """A CSV file with one line a score, written as soon as a cell is done.

    Parameters
    ----------
    path
        The file; made if there is none.
    """

    columns = (*Cell._fields, "name", "value", "error")

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(self.columns)

    def add(self, cell: Cell, scores: dict[str, float], error: str = "") -> None:
        """Append the scores of a cell, or why it has none."""
        rows = [(*cell, name, value, "") for name, value in scores.items()]
        if error:
            rows = [(*cell, "", "", error)]
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        # in one piece: a cell is there as a whole or not at all
        with self.path.open("a", newline="") as file:
            file.write(text.getvalue())

    def read(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return scores, a row a cell and a column a score, and the cells that failed."""
        frame = pd.read_csv(
            self.path, dtype={"setting": str, "error": str, "budget": float}
        )
        failed = frame["error"].notna()
        keys = list(Cell._fields)
        scores = frame[~failed].pivot_table(
            index=keys, columns="name", values="value", aggfunc="last", dropna=False
        )
        scores = scores.dropna(how="all").reset_index()
        errors = frame.loc[failed, [*keys, "error"]].drop_duplicates(keys, keep="last")
        done = set(scores[keys].itertuples(index=False, name=None))
        mended = [row in done for row in errors[keys].itertuples(index=False, name=None)]
        return scores, errors.loc[[not m for m in mended]]

    def done(self) -> set[Cell]:
        """Cells that have scores."""
        scores = self.read()[0]
        rows = scores[list(Cell._fields)].itertuples(index=False, name=None)
        return {Cell(*row) for row in rows}
