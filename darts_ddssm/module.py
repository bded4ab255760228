"""
The bridge: the state-space model as a Lightning module of darts.

Letters: B batch, S samples, T time steps, n steps ahead, C components, K parameters.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from darts.logging import get_logger, raise_log
from darts.models.components.layer_norm_variants import RINorm
from darts.models.forecasting.pl_forecasting_module import PLForecastingModule
from darts.utils.data import TorchTrainingDataset
from darts.utils.data.torch_datasets.utils import (
    ModuleStage,
    PLModuleInput,
    PLModuleOutput,
    TorchInferenceBatch,
    TorchTrainingBatch,
)
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor
from torchmetrics import MetricCollection

from darts_ddssm.density import (
    bounded,
    has_marginal,
    has_prior,
    marginal_parameters,
    negative_log_likelihood,
)
from darts_ddssm.overshooting import OVERSHOOTING_FAMILIES, forecast_score
from darts_ddssm.queries import Query
from darts_ddssm.scaling import (
    LOCATION_SCALE_FAMILIES,
    Scale,
    dataset_scale,
    instance_scale,
    prefers_instance_scale,
)
from darts_ddssm.ssm.patches import Patches
from darts_ddssm.ssm.state_space import StateSpaceModel, Window
from darts_ddssm.window import (
    context_window,
    inputs_ahead,
    training_window,
    with_gaps,
)

logger = get_logger(__name__)

# The weight of the divergence stays at the first value up to the first share of the
# updates, is 1 at the second, at its peak from the third to the fourth, and 1 from the
# last on. Under a weight near 1 from early on, with few updates or a slowly rising
# learning rate, the latent may never come to carry anything.
KL_WEIGHT_START = 0.05
KL_WEIGHT_SHARES = (0.2, 0.4, 0.5, 0.7, 0.9)
# Where the number of updates has no limit, this many count as all.
UNLIMITED_UPDATES = 3000

# Share of the updates after which forecasts of several steps are trained too.
OVERSHOOTING_START = 0.3

# Latent paths over which the moments of a predictive marginal are taken.
NUM_MOMENT_PATHS = 500

GRADIENT_CLIP_NORM = 1.0
WEIGHT_AVERAGE_DECAY = 0.999


@torch.no_grad()
def _update_average(averaged: list[Tensor], current: list[Tensor], count: Tensor):
    """Exponential average whose window grows with the number of updates at first."""
    rate = max(1 - WEIGHT_AVERAGE_DECAY, 9 / (10 + int(count)))
    torch._foreach_lerp_(averaged, current, rate)


class _AveragedWeights(WeightAveraging):
    """Exponential average of the weights, of the precision that the trainer sets.

    Validation, checkpoints and the fitted model use the average; Lightning keeps the
    running weights beside it, so that training can be resumed. Buffers are copied.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=_update_average)

    def _match_precision(self, pl_module: LightningModule) -> None:
        # Lightning copies the module before it casts it.
        if self._average_model is not None:
            self._average_model.to(pl_module.dtype)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._match_precision(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._match_precision(pl_module)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)


class _DDSSMModule(PLForecastingModule):
    """Trains a state-space model by its evidence bound and draws its forecasts.

    Parameters
    ----------
    num_components, num_parameters, input_size, past_size
        Sizes C, K, U and P of the state-space model.
    latent_dim, transition_order, transition, hidden_size
        As for the state-space model.
    num_solver_steps
        Network evaluations a forecast step.
    peak_kl_weight
        Weight of the divergence midway in training.
    overshooting_weight
        Weight of the score of forecasts of several steps.
    gap_practice
        Share of a training batch on which the encoder practises gaps. Without practice it
        is lost where a value is missing, as it will be in the series of `impute`.
    patch_length
        Number of time steps that a latent state stands for.
    use_reversible_instance_norm
        As for darts' module, or None to decide it by the training set.
    **kwargs
        Arguments of darts' :class:`PLForecastingModule`.
    """

    progress: Tensor
    by_instance: Tensor
    target_shift: Tensor
    target_spread: Tensor

    def __init__(
        self,
        num_components: int,
        num_parameters: int,
        input_size: int,
        past_size: int,
        latent_dim: int,
        transition_order: int | None,
        transition: str,
        hidden_size: int,
        num_solver_steps: int,
        peak_kl_weight: float,
        overshooting_weight: float,
        gap_practice: float = 0.25,
        patch_length: int = 1,
        use_reversible_instance_norm: bool | dict | None = None,
        **kwargs: Any,
    ) -> None:
        decided = use_reversible_instance_norm is not None
        super().__init__(
            use_reversible_instance_norm=use_reversible_instance_norm or False, **kwargs
        )
        if not decided and self.has_location:
            self.rin = RINorm(input_dim=self.n_targets, affine=False)
        self.num_solver_steps = num_solver_steps
        self.peak_kl_weight = peak_kl_weight
        self.overshooting_weight = overshooting_weight
        self.gap_practice = gap_practice
        self.patch_length = patch_length
        chunks = self.training_patches
        # to the state-space model a patch is one step
        self.ssm = StateSpaceModel(
            num_components=patch_length * num_components,
            num_parameters=num_parameters,
            input_size=patch_length * input_size,
            past_size=patch_length * past_size,
            latent_dim=latent_dim,
            transition_order=transition_order,
            transition=transition,
            hidden_size=hidden_size,
            reach=chunks.before + chunks.after,
        )
        # Share of the updates done. Saved with the weights and never falling: training
        # that is resumed goes on where it was, and a fitted model that is fitted again
        # keeps the weight that it ended with.
        self.register_buffer("progress", torch.zeros(()))
        # Whether each window has its own scale: as the user says, or by the training set.
        self.register_buffer("by_instance", torch.tensor(decided and self.rin is not None))
        self.decides_scale = not decided and self.rin is not None
        # Scale of the training set, saved with the weights: see `set_scale`.
        self.register_buffer("target_shift", torch.zeros(num_components))
        self.register_buffer("target_spread", torch.ones(num_components))

    @property
    def supports_probabilistic_prediction(self) -> bool:
        return True

    def patches(self, num_before: int, num_after: int = 0) -> Patches:
        """Return how a window of so many steps before and after an origin is cut."""
        return Patches(self.patch_length, num_before, num_after)

    @property
    def training_patches(self) -> Patches:
        """How a training window is cut."""
        num_after = self.output_chunk_shift + self.output_chunk_length
        return self.patches(self.input_chunk_length, num_after)

    # --- training ---------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Average the weights, whoever makes the trainer."""
        if self.trainer.state.fn != "fit":
            return []
        return [_AveragedWeights()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if "callbacks" in checkpoint:
            return
        # Lightning asks no callback where it saves the weights alone.
        for callback in self.trainer.callbacks:
            if isinstance(callback, _AveragedWeights):
                callback.on_save_checkpoint(self.trainer, self, checkpoint)
                for name in ("current_model_state", "averaging_state"):
                    checkpoint.pop(name, None)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient at 1 where the trainer does not say otherwise."""
        if gradient_clip_val is None:
            gradient_clip_val = GRADIENT_CLIP_NORM
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def take_over(self, trainer: Trainer) -> None:
        """Become the module of a trainer that has trained another one."""
        for callback in trainer.callbacks:
            if isinstance(callback, _AveragedWeights):
                callback._average_model = None
        self.trainer = trainer
        trainer.strategy.connect(self)

    def on_train_batch_start(self, batch: TorchTrainingBatch, batch_idx: int) -> None:
        num_updates = self.trainer.estimated_stepping_batches
        if num_updates == float("inf"):
            num_updates = UNLIMITED_UPDATES
        self.progress.clamp_(min=min(self.trainer.global_step / num_updates, 1.0))

    @property
    def kl_weight(self) -> float:
        """Weight of the divergence in the training loss at this point of training."""
        peak = self.peak_kl_weight
        weights = (KL_WEIGHT_START, 1.0, peak, peak, 1.0)
        return float(np.interp(self.progress.item(), KL_WEIGHT_SHARES, weights))

    def set_scale(self, dataset: TorchTrainingDataset) -> None:
        """Take the scale of the target from a training set."""
        shift, spread = (torch.as_tensor(x) for x in dataset_scale(dataset))
        self.target_shift.copy_(shift)
        self.target_spread.copy_(spread)
        if self.decides_scale:
            chunks = self.input_chunk_length, self.output_chunk_shift
            series = getattr(dataset, "series", [])
            self.by_instance.fill_(
                prefers_instance_scale(series, *chunks, self.output_chunk_length)
            )
            if self.by_instance:
                logger.info(
                    "The training series drift: each window is normalised by its input "
                    "chunk. Set `use_reversible_instance_norm` to `False` or `True` to "
                    "decide it yourself."
                )

    def normalise(self, window: Window) -> tuple[Window, Scale]:
        """Bring a window to the scale of the training set and then, maybe, its own."""
        scale = Scale(self.target_shift, self.target_spread)
        x = scale.normalise(window.x)
        if self.rin is not None and self.by_instance:
            rows = slice(0, self.input_chunk_length)
            instance = instance_scale(self.rin, x[:, rows], window.observed[:, rows])
            x, scale = instance.normalise(x), scale.after(instance)
        return window._replace(x=x), scale

    @property
    def has_location(self) -> bool:
        """Whether the likelihood works on normalised values."""
        return isinstance(self.likelihood, LOCATION_SCALE_FAMILIES)

    def negative_elbo(
        self, window: Window, kl_weight: float, num_practice: int = 0
    ) -> Tensor:
        """Negative evidence bound of a window in nats a value, a scalar.

        Parameters
        ----------
        window
            The data, in its own units.
        kl_weight
            Weight of the divergence.
        num_practice
            Number of first rows on which the encoder practises gaps.
        """
        normalised, scale = self.normalise(window)
        normalised = with_gaps(normalised, num_practice)
        patches = self.training_patches
        folded = patches.window(normalised)
        raw, kl = self.ssm.elbo(folded, num_practice)
        raw = patches.unfold(raw)
        x, weight = window.x, window.weight * normalised.observed
        change = x.new_zeros(())
        if self.has_location and not has_prior(self.likelihood):
            # The density of the normalised values, and the change of variables.
            x, change = normalised.x, (weight * scale.spread.log()).mean()
        elif self.has_location:
            # A prior is one of the data's parameters.
            raw = scale.parameters_to_data(raw)
        nll = negative_log_likelihood(self.likelihood, raw, x, weight) + change
        # (B, N): one divergence for all values of a patch
        kl = kl * folded.weight.mean(-1)
        return nll + kl_weight * kl.sum() / x.numel()

    @property
    def scores_forecasts(self) -> bool:
        """Whether forecasts of several steps count in training and in validation."""
        # the bound trains a forecast of one step
        return (
            self.overshooting_weight > 0
            and self.output_chunk_length + self.output_chunk_shift > 1
            and isinstance(self.likelihood, OVERSHOOTING_FAMILIES)
        )

    def forecast_score(self, window: Window) -> Tensor:
        """CRPS of forecasts of the output chunk in units of the normalised target."""
        normalised, _ = self.normalise(window)
        chunks = self.training_patches, self.output_chunk_length
        return forecast_score(self.ssm, self.likelihood, normalised, *chunks)

    def _train_val_step(
        self,
        batch: TorchTrainingBatch,
        stage: ModuleStage,
        criterion: torch.nn.Module,
        metrics: Any,
    ) -> Tensor:
        """Return the training loss, or what says how good the model is by now.

        In training it is the negative evidence bound, with the score of forecasts of
        several steps in time. In validation it is that score or, where there is none, the
        bound; the bound is logged anyway.
        """
        window = training_window(batch, self.output_chunk_shift, self.patch_length)
        is_training = stage is ModuleStage.TRAIN
        if is_training:
            num_practice = int(self.gap_practice * len(window.x))
            loss = total = self.negative_elbo(window, self.kl_weight, num_practice)
            if self.scores_forecasts and self.progress >= OVERSHOOTING_START:
                total = loss + self.overshooting_weight * self.forecast_score(window)
        else:
            loss = total = self.negative_elbo(window, 1.0)
            if self.scores_forecasts:
                self._log("val_negative_elbo", loss, batch)
                loss = total = self.forecast_score(window)
        if is_training and not total.isfinite():
            raise_log(
                RuntimeError(
                    f"The training loss became non-finite (`{total.item()}`). Check that "
                    "the covariates are scaled (e.g. with darts' `Scaler`), and the series "
                    "where the likelihood is that of positive numbers, then try a "
                    "smaller learning rate (`optimizer_kwargs`) or a smaller "
                    "`gradient_clip_val` (`pl_trainer_kwargs`). Checkpoints saved "
                    "before this update are intact."
                )
            )
        self._log(f"{stage.value}_loss", loss, batch, prog_bar=True)
        if len(metrics):
            self._update_metrics_with_sample(batch, metrics)
        return total

    def _log(
        self, name: str, value: Tensor, batch: TorchTrainingBatch, prog_bar: bool = False
    ) -> None:
        num_rows = len(batch.past_target)
        self.log(name, value, prog_bar, batch_size=num_rows, sync_dist=True)

    @torch.no_grad()
    def _update_metrics_with_sample(
        self, batch: TorchTrainingBatch, metrics: MetricCollection
    ) -> None:
        """Compare one sample of the forecast, from the input chunk alone, with the data.

        Steps with a missing value are left out.
        """
        emit, scale = self._forecaster(batch, self.output_chunk_length)
        sample = self.draw(emit(1), scale)[0]
        # (B, n, C) -> (B * n, C)
        sample, target = sample.flatten(0, 1), batch.future_target.flatten(0, 1)
        complete = ~target.isnan().any(-1)
        if complete.any():
            metrics.update(sample[complete], target[complete])

    # --- forecasts --------------------------------------------------------------------

    def forward(self, x_in: PLModuleInput) -> PLModuleOutput:
        """Raw parameters of the output chunk along a mean path: (B, n, C, K)."""
        # Not darts' `io_processor`: it knows neither gaps nor likelihood parameters.
        emit, scale = self._forecaster(x_in, self.output_chunk_length)
        raw = emit(1, mean=True)[0]
        if self.has_location:
            raw = scale.parameters_to_data(raw)
        return PLModuleOutput(prediction=raw)

    def _forecaster(
        self, batch: PLModuleInput | TorchInferenceBatch | TorchTrainingBatch, n: int
    ) -> tuple[Callable[..., Tensor], Scale]:
        """Encode each series once, for any number of paths.

        Returns
        -------
        Callable
            Function of a number of samples (and ``mean``) that draws latent paths and
            decodes them after the gap: raw parameters, (S, B, n, C, K).
        Scale
            Where to take the values from there.
        """
        window, scale = self.normalise(context_window(batch, self.patch_length))
        window = self.patches(window.x.shape[1]).window(window)
        projection = self.ssm.encode(window)
        gap = self.output_chunk_shift
        ahead = self.patches(0, gap + n)
        parts = inputs_ahead(batch, gap, n, self.patch_length)
        u, past = (ahead.fold(x) for x in parts)
        inputs = torch.cat([u, past], dim=-1)

        def emit(num_samples: int, mean: bool = False) -> Tensor:
            num_solver_steps = self.num_solver_steps
            history = self.ssm.posterior(
                projection, window, num_samples, num_solver_steps, mean=mean
            )
            repeats = (num_samples, 1, 1)
            z = self.ssm.roll_out(
                history, inputs.repeat(repeats), num_solver_steps, mean=mean
            )
            raw = ahead.unfold(self.ssm.decoder(z, u.repeat(repeats)))[:, gap:]
            # (S * B, n, ...) -> (S, B, n, ...)
            return raw.unflatten(0, (num_samples, len(window.x)))

        return emit, scale

    def draw(self, raw: Tensor, scale: Scale) -> Tensor:
        """Draw an observation from each density: (S, B, n, C, K) -> (S, B, n, C)."""
        # (S, B, n, ...) -> (S * B, n, ...) and back
        flat = bounded(self.likelihood, raw.flatten(0, 1))
        sample = self.likelihood.sample(flat).unflatten(0, raw.shape[:2])
        return scale.to_data(sample) if self.has_location else sample

    def predict_step(
        self,
        batch: TorchInferenceBatch | Query,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> tuple[Tensor, Any, Any] | Tensor:
        """Draw joint sample paths, (S, B, n, C), or answer a query."""
        if isinstance(batch, Query):
            # densities take derivatives, which Lightning's inference mode forbids
            with torch.inference_mode(False), torch.no_grad():
                return batch.answer(self)
        if self.predict_likelihood_parameters:
            prediction = self._marginal_parameters(batch)
        else:
            prediction = self._draw(batch, self.pred_n, self.pred_num_samples)
        return prediction, batch.series_schema, batch.pred_time

    def _groups(self, batch: TorchInferenceBatch, num_samples: int) -> Iterator[int]:
        """Sizes of groups of paths that take no more memory than a training batch."""
        num_series, length, _ = batch.past_target.shape
        num_paths = self.pred_batch_size * (length + self.output_chunk_length)
        group = max(num_paths // num_series, 1)
        return (min(group, num_samples - i) for i in range(0, num_samples, group))

    def _draw(self, batch: TorchInferenceBatch, n: int, num_samples: int) -> Tensor:
        """Draw joint sample paths: (S, B, n, C)."""
        emit, scale = self._forecaster(batch, n)
        sizes = self._groups(batch, num_samples)
        return torch.cat([self.draw(emit(size), scale) for size in sizes])

    def _marginal_parameters(self, batch: TorchInferenceBatch) -> Tensor:
        """Parameters of the predictive marginal: (1, B, n, C * K)."""
        if not has_marginal(self.likelihood):
            raise_log(
                ValueError(
                    "`predict_likelihood_parameters` must be `False` for "
                    f"`{self.likelihood}`: over the latent paths the forecast is a "
                    "mixture, which has no parameters of that family. Use "
                    "`num_samples`. `GaussianLikelihood` gives the mixture's moments."
                )
            )
        emit, scale = self._forecaster(batch, self.pred_n)
        raw = torch.cat([emit(size) for size in self._groups(batch, NUM_MOMENT_PATHS)])
        parameters = marginal_parameters(self.likelihood, raw)
        if self.has_location:
            mean, std = parameters
            parameters = scale.to_data(mean), std * scale.spread
        # (B, n, C, K) -> (1, B, n, C * K)
        return torch.stack(parameters, dim=-1).flatten(2)[None]
