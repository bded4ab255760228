"""
The recipe of one training: all that the model chooses by its training set.

What an argument of the user's says is taken as it is. Each choice is said in a message.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from darts import TimeSeries
from darts.logging import get_logger
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel
from darts.utils.data import TorchTrainingDataset
from darts.utils.data.torch_datasets.utils import TorchTrainingSample
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import move_data_to_device

from darts_ddssm.estimator.automatic import (
    automatic_learning_rate,
    automatic_n_epochs,
    automatic_num_updates,
    automatic_trend_augmentation,
    may_reflect,
    say_once,
)
from darts_ddssm.estimator.covariates import TrainingCovariates
from darts_ddssm.estimator.cross_validation import (
    ForecastErrors,
    automatic_covariate_noise,
    automatic_input_noise,
    each_step_tells,
    forecast_errors,
    is_predictable,
    may_be_delayed,
    may_be_walk,
    mirror_images_mislead,
)
from darts_ddssm.estimator.data_checks import chunk_lengths, training_series
from darts_ddssm.estimator.instance_scale import instance_floor, prefers_instance_scale
from darts_ddssm.estimator.local_pattern import (
    automatic_local_pattern,
    may_have_season,
)
from darts_ddssm.estimator.scales import is_other_scale, training_scales
from darts_ddssm.estimator.windows import num_observed_steps, windows_of
from darts_ddssm.series.likelihoods import family_of
from darts_ddssm.series.scaling import InstanceFloor, LocalPattern, TrainingScales
from darts_ddssm.training.lightning_module import _DDSSMModule

logger = get_logger(__name__)

# Share of zeros from which counts are told to have likelihoods of their own.
MANY_ZEROS = 0.2

# More epochs than any training has, for one that ends by its steps.
NO_LIMIT = 1_000_000


class TrainingRecipe:
    """How a model is trained on a training set.

    What takes time to find is looked for once, and only if it is asked for.

    Parameters
    ----------
    model
        A :class:`~darts_ddssm.DDSSMModel`, fitted or not.
    dataset
        The training set, which has a window.
    """

    def __init__(
        self, model: MixedCovariatesTorchModel, dataset: TorchTrainingDataset
    ) -> None:
        self._params: dict[str, Any] = model.model_params
        self._fitted: _DDSSMModule | None = model.model
        self._family = family_of(model.likelihood)
        self._lengths = chunk_lengths(model)
        self._dataset = dataset
        self._sample: TorchTrainingSample = dataset[0]
        self._series: Sequence[TimeSeries] = training_series(dataset)
        self.num_windows = len(dataset)

    # --- scales -----------------------------------------------------------------------

    @cached_property
    def scales(self) -> tuple[TrainingScales, InstanceFloor, LocalPattern | None]:
        """Scales of target and covariates, and least spread of an input chunk.

        The last value is ``None`` where no window is normalised by its input chunk. Else it
        says which last values of the chunk tell its level, its trend and its season. A
        fitted model keeps the scales of its first training set.
        """
        if self._fitted is None:
            return self._new_scales()
        # where the windows are that are normalised by them
        kept = move_data_to_device(self._fitted.all_scales, "cpu")
        scales, _, local_pattern = kept
        if local_pattern is None:
            self._warn_of_other_scale(scales)
        return kept

    @property
    def _local_pattern(self) -> LocalPattern | None:
        """Which last values of an input chunk tell its level, if it has its own scale."""
        *_, local_pattern = self.scales
        return local_pattern

    def _new_scales(self) -> tuple[TrainingScales, InstanceFloor, LocalPattern | None]:
        """Take the scales from the training set."""
        input_length = self._lengths.input
        scales = training_scales(self._dataset, input_length)
        own = self._params["use_reversible_instance_norm"]

        def floor_of(local_pattern: LocalPattern) -> InstanceFloor:
            how = input_length, scales.target, local_pattern
            floor = instance_floor(self._series, *how)
            if isinstance(own, dict) and "eps" in own:
                # in darts the least variance, of values in the scale of the training set
                least = own["eps"] ** 0.5 * scales.target.spread
                floor = floor._replace(spread=floor.spread.maximum(least))
            return floor

        may_be_own = self._family.has_unit and (own is None or own)
        if not may_be_own:
            return scales, floor_of(LocalPattern(input_length)), None
        local_pattern = automatic_local_pattern(
            self._series, self._lengths, num_windows=self.num_windows
        )
        by_instance = own is not None or prefers_instance_scale(
            self._series, self._lengths, scales.target, local_pattern
        )
        if by_instance:
            reason = (
                ", since the training series drift or differ in scale. Pass "
                "`use_reversible_instance_norm=False` or `True` to decide it yourself."
            )
            say_once(
                "`DDSSMModel` normalises each window by its input chunk, "
                f"{_described(local_pattern)}{reason if own is None else '.'}"
            )
        return scales, floor_of(local_pattern), local_pattern if by_instance else None

    def _warn_of_other_scale(self, scales: TrainingScales) -> None:
        """Say where a training set is far from the first one, whose scale is kept."""
        input_length = self._lengths.input
        new, old = training_scales(self._dataset, input_length).target, scales.target
        if is_other_scale(new, old):
            first, second = (
                f"{scale.shift.mean().item():.3g} +- {scale.spread.mean().item():.3g}"
                for scale in (old, new)
            )
            logger.warning(
                "`DDSSMModel` keeps the scale of its first training set, values of about "
                f"{first}. This one has values of about {second}, of which it will learn "
                "little: fit a new model."
            )

    def advise_on_counts(self) -> None:
        """Name likelihoods that suit counts with many zeros, if none was passed."""
        if self._params["likelihood"] is not None or self._fitted is not None:
            return
        found = windows_of(self._series, self._lengths.window)
        values = [x[~x.isnan()] for x in (windows.x for windows in found)]
        x = torch.cat([*values, torch.zeros(0, dtype=torch.float64)])
        are_counts = len(x) > 0 and x.min() == 0 and x.max() > 1 and (x == x.round()).all()
        share = (x == 0).to(x.dtype).mean().item()
        if are_counts and share >= MANY_ZEROS:
            say_once(
                f"`DDSSMModel` takes its training series, counts of which {share:.0%} are "
                "zero, for Gaussian. Pass `likelihood=PoissonLikelihood()` or "
                "`NegativeBinomialLikelihood()` for forecasts that are counts."
            )

    # --- what simple forecasts say ----------------------------------------------------

    @cached_property
    def _errors(self) -> ForecastErrors | None:
        """Errors of simple forecasts of the training set, by cross-validation."""
        scales, floor, local_pattern = self.scales
        covariates = None
        past, future = (
            getattr(self._dataset, f"{kind}_covariates", None)
            for kind in ("past", "future")
        )
        if self._series and (past is not None or future is not None):
            covariates = TrainingCovariates(
                self._series,
                past,
                future,
                scales.past,
                scales.future,
                self._lengths,
            )
        return forecast_errors(
            self._series,
            self._lengths,
            scale=scales.target,
            floor=floor,
            local_pattern=local_pattern,
            covariates=covariates,
        )

    @property
    def input_noise(self) -> float:
        """`input_noise`, or what is chosen where there is none."""
        level = self._params["input_noise"]
        if level is not None:
            return float(level)
        num_components = self._sample.past_target.shape[-1]
        level = automatic_input_noise(self._errors, self.num_windows, num_components)
        say_once(
            f"`DDSSMModel` trains with noise of about {level:.1g} on its input, by "
            "cross-validation. Pass `input_noise` to decide it yourself."
        )
        return level

    @property
    def covariate_noise(self) -> float:
        """`covariate_noise`, or what is chosen where there is none."""
        level = self._params["covariate_noise"]
        if level is not None:
            return float(level)
        level = automatic_covariate_noise(self._errors)
        if level > 0:
            say_once(
                f"`DDSSMModel` trains with noise of about {level:.1g} on its covariates, "
                "by cross-validation. Pass `covariate_noise` to decide it yourself."
            )
        return level

    @property
    def sees_lags(self) -> bool:
        """Whether the transition learns delayed effects of covariates."""
        inputs = self._sample.past_covariates, self._sample.future_covariates
        if all(part is None for part in inputs):
            return False
        # what a fitted transition sees stays, and one of some order sees its last steps
        if self._fitted is not None or self._params["transition_order"] is not None:
            return False
        found = may_be_delayed(self._errors)
        if found:
            say_once(
                "`DDSSMModel` learns delayed effects of its covariates, since they help a "
                "linear forecast by cross-validation."
            )
        return found

    # --- augmentation -----------------------------------------------------------------

    @property
    def augmentation(self) -> tuple[float, bool]:
        """`trend_augmentation`, or what is chosen, and whether windows are turned over."""
        own = self._params["trend_augmentation"]
        if not self._family.location_scale:
            # a count with a trend added is none
            return 0.0, False
        if self._local_pattern is None:
            # windows in the scale of the training set keep their level, and have no trend
            return float(own or 0.0), False
        if own == 0:
            return 0.0, False
        reflects = self._reflects(self._local_pattern)
        share_left = 1 - self._local_pattern.trend_share
        trend = automatic_trend_augmentation(self.num_windows, share_left)
        trend = trend if own is None else float(own)
        chosen = []
        if trend > 0 and own is None:
            chosen.append(
                f"adds random trends of about {trend:.2g} to its training windows"
            )
        if reflects:
            chosen.append("turns half of its training windows upside down")
        if chosen:
            say_once(
                f"`DDSSMModel` {' and '.join(chosen)}, since they are few and drift. Pass "
                "`trend_augmentation` to decide on the trends yourself, 0 for neither."
            )
        return trend, reflects

    def _reflects(self, local_pattern: LocalPattern) -> bool:
        """Whether windows are those of a walk, which may as well fall as rise."""
        sample = self._sample
        inputs = sample.past_covariates, sample.future_covariates, sample.static_covariates
        ends_at_level = local_pattern.level_steps == 1 and local_pattern.season_length == 0
        has_inputs = any(part is not None for part in inputs)
        if not may_reflect(self.num_windows, ends_at_level, has_inputs):
            return False
        if not may_be_walk(self._errors):
            return False
        data = self._series, self._lengths
        scales, floor, _ = self.scales
        return not (
            may_have_season(*data, local_pattern)
            or mirror_images_mislead(*data, scales.target, floor, local_pattern)
        )

    # --- rate and length --------------------------------------------------------------

    @property
    def learning_rate(self) -> float:
        """Peak of the learning rate."""
        rate = automatic_learning_rate(self.num_windows)
        say_once(
            f"`DDSSMModel` trains with a learning rate of up to {rate:.1g}, by the number "
            "of training windows. Pass `optimizer_kwargs` to decide it yourself."
        )
        return rate

    def num_epochs(self, trainer: Trainer, num_batches: int) -> int:
        """Return the number of epochs of a training whose length is left open.

        Parameters
        ----------
        trainer
            The trainer. One with a number of steps ends by it.
        num_batches
            Batches of an epoch.
        """
        if trainer.max_steps >= 0:
            return NO_LIMIT
        season_is_known = bool(self._local_pattern and self._local_pattern.season_length)
        counts, predictable = each_step_tells(self._errors), is_predictable(self._errors)
        sizes = self._sizes
        wanted = automatic_num_updates(*sizes, counts, predictable, season_is_known)
        per_update = trainer.accumulate_grad_batches
        number = automatic_n_epochs(wanted, num_batches, per_update)
        num_updates = number * math.ceil(num_batches / per_update)
        reason = ""
        if wanted < automatic_num_updates(*sizes, True, True, season_is_known):
            reason = ", since the past says little of what follows"
        elif season_is_known:
            reason = ", since the season is taken out and needs no learning"
        say_once(
            f"`DDSSMModel` trains for {number} epochs, about {num_updates} "
            f"updates{reason}. Pass `n_epochs` to decide it yourself."
        )
        return number

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Numbers of windows, observed steps and series of the training set."""
        if not self._series:
            # windows of one series start a step apart
            return self.num_windows, self.num_windows, 1
        num_steps = self.num_windows * self._lengths.window
        num_steps = min(num_observed_steps(self._series), num_steps)
        return self.num_windows, num_steps, len(self._series)


def _described(local_pattern: LocalPattern) -> str:
    """Say which last values of an input chunk tell its level, its trend and its season."""

    def last(number: int) -> str:
        return "last value" if number == 1 else f"last {number} values"

    level = f"whose level is that of its {last(local_pattern.level_steps)}"
    if local_pattern.season_length > 0:
        cycles = f"last {local_pattern.season_cycles} cycles"
        steps = f"of {local_pattern.season_length} steps"
        return f"{level} and whose season is the mean of its {cycles} {steps}"
    if local_pattern.trend_values == 0:
        return level
    part = "" if local_pattern.trend_share == 1 else f"{local_pattern.trend_share:.0%} of "
    return f"{level}, with {part}the trend of its {last(2 * local_pattern.trend_values)}"
