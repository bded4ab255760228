"""
From whole series to the Lightning module and back: what the latent side stands on.

darts' datasets cut series into chunks. Here a series is one sample as it is, with its
covariates at its own time steps, and travels to the module as a query.

Letters: S samples, B series, T time steps, F features of a covariate.
"""

from abc import ABC
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from darts.models.forecasting.torch_forecasting_model import (
    MixedCovariatesTorchModel,
)
from darts.utils.data.torch_datasets.utils import (
    TorchInferenceBatch,
    TorchInferenceSample,
)
from darts.utils.ts_utils import SeriesType, get_series_seq_type, series2seq
from darts.utils.utils import generate_index
from torch.utils.data import DataLoader

from darts_ddssm.checks import check, check_positive_integer
from darts_ddssm.queries import Query

Series = TimeSeries | Sequence[TimeSeries]
Sample = TorchInferenceSample

# The parts of a batch that hold data of time steps, and all parts.
STEPS = ("past_target", "past_covariates", "historic_future_covariates")
SLOTS = (*STEPS, "static_covariates")


def _on_index(covariates: TimeSeries, index: pd.Index) -> np.ndarray:
    """Values at the times of an index, NaN where there are none: (T, F)."""
    frame = pd.DataFrame(covariates.values(copy=False), index=covariates.time_index)
    return frame.reindex(index).to_numpy()


def prolonged(series: TimeSeries, num_steps: int) -> TimeSeries:
    """Append unknown values to a series."""
    shape = (num_steps, series.n_components, series.n_samples)
    return series.append_values(np.full(shape, np.nan, dtype=series.dtype))


def part_of(sample: Sample, steps: slice) -> Sample:
    """Return some of the time steps of a sample."""
    kept = {name: getattr(sample, name) for name in STEPS}
    parts = {name: None if x is None else x[steps] for name, x in kept.items()}
    return TorchInferenceSample(**parts, static_covariates=sample.static_covariates)


def collate(samples: Sequence[Sample]) -> TorchInferenceBatch:
    """Join samples of one length."""

    def join(name: str) -> torch.Tensor | None:
        parts = [getattr(sample, name) for sample in samples]
        return None if parts[0] is None else torch.from_numpy(np.stack(parts))

    return TorchInferenceBatch(**{name: join(name) for name in SLOTS})


def _batches(samples: Sequence[Sample], batch_size: int) -> Iterator[list[int]]:
    """Places of samples of one length, ``batch_size`` of them at most."""
    by_length: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        by_length.setdefault(len(sample.past_target), []).append(i)
    for places in by_length.values():
        for start in range(0, len(places), batch_size):
            yield places[start : start + batch_size]


class WholeSeriesModel(MixedCovariatesTorchModel, ABC):
    """A darts torch model that can be asked about whole series."""

    # The first step of the training series, blank: its components, frequency and type.
    _example: TimeSeries | None = None

    @property
    def _window_length(self) -> int:
        """Steps of a training window."""
        chunks = self.input_chunk_length + self.output_chunk_length
        return chunks + self.output_chunk_shift

    @property
    def _dtype(self) -> np.dtype:
        """Type of the data that the model was trained on."""
        return self.train_sample.past_target.dtype

    def _check_fitted(self, method: str) -> None:
        check(
            self._fit_called and self.model is not None,
            f"The model must be fitted before calling `{method}()`.",
        )

    def _check_has_scale(self, method: str) -> None:
        self._check_fitted(method)
        check(
            not self.model.by_instance,
            f"`{method}()` must be called on a model without "
            "`use_reversible_instance_norm`: with it, the density is that of a window "
            "given its scale. Where the level drifts it is on unless set to `False`.",
        )

    def _check_length(self, method: str, sequence: Sequence[TimeSeries]) -> None:
        """With instance normalisation, a series has the scale of one window."""
        if self.model.by_instance:
            for i, one in enumerate(sequence):
                check(
                    len(one) <= self._window_length,
                    f"`series` must have at most {self._window_length} steps, one training "
                    f"window, for `{method}()` with `use_reversible_instance_norm`, got "
                    f"{len(one)} (at sequence index `{i}`).",
                )

    def _whole(
        self,
        method: str,
        series: Series | None,
        past_covariates: Series | None,
        future_covariates: Series | None,
    ) -> tuple[Sequence[TimeSeries], list[Sample], bool]:
        """Return whole series, their samples, and whether there was but one."""
        self._check_fitted(method)
        if series is None:
            check(
                self.training_series is not None,
                f"`series` must be given to `{method}()`, since the model was fitted to "
                "several series or does not hold them.",
            )
            series = self.training_series
            past_covariates = past_covariates or self.past_covariate_series
            future_covariates = future_covariates or self.future_covariate_series
        single = get_series_seq_type(series) == SeriesType.SINGLE
        sequence, past, future = (
            series2seq(one) for one in (series, past_covariates, future_covariates)
        )
        for name, covariates in (("past", past), ("future", future)):
            check(
                covariates is None or len(covariates) == len(sequence),
                f"`{name}_covariates` must have one series for each of `series`.",
            )
        for i, one in enumerate(sequence):
            check(
                one.n_samples == 1,
                f"`series` must have one sample, got {one.n_samples} (at sequence index "
                f"`{i}`).",
            )
            check(
                len(one) >= self.input_chunk_length,
                "`series` must have at least `input_chunk_length`, "
                f"{self.input_chunk_length}, steps, got {len(one)} (at sequence index "
                f"`{i}`).",
            )
        self._check_values(sequence, past, future)
        samples = [
            self._sample(method, one, past and past[i], future and future[i])
            for i, one in enumerate(sequence)
        ]
        return sequence, samples, single

    def _sample(
        self,
        method: str,
        series: TimeSeries,
        past_covariates: TimeSeries | None,
        future_covariates: TimeSeries | None,
        optional: Sequence[str] = (),
        encode: bool = True,
    ) -> Sample:
        """Return a whole series with its covariates, as darts' datasets give a chunk.

        Covariates that are ``optional`` and not given are unknown. Those of
        ``add_encoders`` are added if ``encode``.
        """
        given = {"past_covariates": past_covariates, "future_covariates": future_covariates}
        if encode and self.encoders is not None and self.encoders.encoding_available:
            # those of the whole series, as the start of a forecast would need them; darts
            # asks for the steps of a training window at least
            missing = max(self._window_length - len(series), 0)
            past, future = self.generate_fit_predict_encodings(
                self.output_chunk_length,
                [prolonged(series, missing)],
                past_covariates and [past_covariates],
                future_covariates and [future_covariates],
            )
            past_covariates = past and past[0]
            future_covariates = future and future[0]
        self._check_values(
            [],
            past_covariates and [past_covariates],
            future_covariates and [future_covariates],
        )
        index = series.time_index
        parts = {"past_target": series.values(copy=False)}
        for name, slot, covariates in (
            ("past_covariates", "past_covariates", past_covariates),
            ("future_covariates", "historic_future_covariates", future_covariates),
        ):
            if covariates is None:
                continue
            check(
                covariates.freq == series.freq,
                f"`{name}` must have the frequency of `series`, got `{covariates.freq}` "
                f"beside `{series.freq}`.",
            )
            # past covariates may end before the series
            needed = index if name == "future_covariates" else index[:1]
            check(
                needed.isin(covariates.time_index).all(),
                f"`{name}` must cover `series` from {needed[0]} to {needed[-1]} in "
                f"`{method}()`, got {covariates.start_time()} to {covariates.end_time()}.",
            )
            parts[slot] = _on_index(covariates, index)
            if slot in optional and given[name] is None:
                # encodings alone, which darts puts after the user's covariates
                width = getattr(self.train_sample, slot).shape[1] - parts[slot].shape[1]
                unknown = ((0, 0), (width, 0))
                parts[slot] = np.pad(parts[slot], unknown, constant_values=np.nan)
        if self.uses_static_covariates and series.static_covariates is not None:
            static = series.static_covariates_values(copy=False)
            self._check_range("static_covariates", 0, static)
            parts["static_covariates"] = static
        for slot in optional:
            trained = getattr(self.train_sample, slot)
            if trained is not None and slot not in parts:
                parts[slot] = np.full((len(index), trained.shape[1]), np.nan)
                if slot == "static_covariates":
                    parts[slot] = np.full_like(trained, np.nan)
        parts = {name: values.astype(self._dtype) for name, values in parts.items()}
        # darts looks for the part of the future covariates that lies ahead
        sample = TorchInferenceSample(
            **parts, future_covariates=parts.get("historic_future_covariates")
        )
        # darts' own check of what is there and of how many components it has
        self._validate_predict_ds_output(self.train_sample, sample)
        return sample

    def _blank(
        self,
        num_steps: int,
        covariates: TimeSeries | None,
        static_covariates: pd.DataFrame | None,
    ) -> TimeSeries:
        """Return a blank series like those of training, from the start of covariates."""
        sizes = self.train_sample.past_target.shape[1]
        example = self._example
        if example is None:
            example = TimeSeries.from_values(np.empty((1, sizes), dtype=self._dtype))
        times = example if covariates is None else covariates
        freq = times.freq if self._example is None else example.freq
        index = generate_index(times.start_time(), length=num_steps, freq=freq)
        if static_covariates is None and self.training_series is not None:
            static_covariates = example.static_covariates
        return TimeSeries(
            times=index,
            values=np.full((num_steps, sizes, 1), np.nan, dtype=self._dtype),
            components=example.components,
            static_covariates=static_covariates,
            hierarchy=example.hierarchy,
        )

    def _ask(
        self,
        question: type[Query],
        samples: Sequence[Sample],
        num_samples: int,
        batch_size: int | None,
        verbose: bool | None,
    ) -> list[np.ndarray]:
        """Answer a question for each of the samples, in their order."""
        if batch_size is not None:
            check_positive_integer("batch_size", batch_size)
        batches = list(_batches(samples, batch_size or self.batch_size))
        queries = [
            question(collate([samples[i] for i in places]), num_samples)
            for places in batches
        ]
        answers: list[np.ndarray] = [np.empty(0)] * len(samples)
        for places, answer in zip(batches, self._answers(queries, verbose), strict=True):
            # (S, B, ...) -> B of (S, ...); (B,) -> B of ()
            for i, one in zip(
                places, np.moveaxis(answer, min(1, answer.ndim - 1), 0), strict=True
            ):
                answers[i] = one
        return answers

    def _answers(self, queries: Sequence[Query], verbose: bool | None) -> list[np.ndarray]:
        """Let the module answer on the trainer's device, as it forecasts."""
        self.model.num_solver_steps = self.num_solver_steps
        self.trainer = self._setup_trainer(None, self.model, verbose, self.n_epochs)
        answers = self.trainer.predict(
            self.model, DataLoader(list(queries), batch_size=None)
        )
        # numpy knows no bfloat16
        answers = [a.float() if a.dtype == torch.bfloat16 else a for a in answers]
        return [a.cpu().numpy() for a in answers]
