"""
The Lightning module: schedules, logging, averaged weights and clipping.

What is computed of a batch is asked of a
:class:`~darts_ddssm.series.model.SeriesModel`.

A training update and a forecast of complete series never wait for the device: what Python
has to know is looked at before the batch goes there, or now and then.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import inspect
from typing import Any

import torch
from darts.logging import raise_log
from darts.models.components.layer_norm_variants import RINorm
from darts.models.forecasting.pl_forecasting_module import PLForecastingModule
from darts.utils.data.torch_datasets.utils import (
    ModuleStage,
    PLModuleInput,
    PLModuleOutput,
    TorchInferenceBatch,
    TorchTrainingBatch,
)
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchmetrics import MetricCollection

from darts_ddssm.series.batches import (
    context_window,
    horizon_window,
    observed_values,
    rolled_on,
    training_window,
    values_of_covariates,
)
from darts_ddssm.series.inference import Question
from darts_ddssm.series.likelihoods import family_of
from darts_ddssm.series.model import SeriesModel, group_sizes
from darts_ddssm.series.scaling import (
    CovariateScale,
    InstanceFloor,
    LocalPattern,
    Scale,
    TrainingScales,
)
from darts_ddssm.ssm.patches import Patches
from darts_ddssm.ssm.state_space import StateSpaceModel
from darts_ddssm.ssm.window import Window
from darts_ddssm.training.losses import training_loss, validation_score
from darts_ddssm.training.schedule import (
    FORECAST_LOSS_START,
    SEARCH_SHARE,
    callbacks_of,
    forecast_loss_share,
    input_noise,
    kl_weight,
    learning_rate_share,
    progress,
    searches_learning_rate,
)
from darts_ddssm.training.soap import SOAP
from darts_ddssm.training.weight_averaging import _AveragedWeights

# Latent paths over which the moments of a predictive marginal are taken.
NUM_MOMENT_PATHS = 500

GRADIENT_CLIP_NORM = 1.0

# Updates after which the loss is looked at, to see whether it is still finite.
CHECK_PERIOD = 16

# The buffers of which values tell level and trend of an input chunk.
LOCAL_PATTERN = LocalPattern._fields

# The kinds of covariates, and the buffers of the scale of each.
COVARIATES = TrainingScales._fields[1:]
OF_COVARIATES = CovariateScale._fields[:-1]

# The buffers whose values decide what Python does.
LOOKED_AT = (
    "progress",
    "by_instance",
    "is_unit_free",
    *LOCAL_PATTERN,
    *(f"{kind}_is_local" for kind in COVARIATES),
)

# Whoever passes one of these has a recipe of their own.
OPTIMIZER_ARGUMENTS = ("optimizer_cls", "optimizer_kwargs", "lr_scheduler_cls")


def arguments_of(function: Any, available: dict[str, Any]) -> dict[str, Any]:
    """Return those of some arguments that a function has a parameter for, by name."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in available.items() if name in names}


def _with_scales(
    module: "_DDSSMModule", state: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """Add to loaded weights what those of earlier versions do not have.

    They knew no scale of covariates, or no range of them, and no trend of an input chunk,
    its level was the mean of all of it, and its least spread was a share of the training
    set's. What they say of counts is in units of the data.
    """
    for kind in COVARIATES:
        for part in OF_COVARIATES:
            name = f"{kind}_{part}"
            state.setdefault(prefix + name, module.get_buffer(name))
    for name in ("largest_input", "floor_spread", "floor_ratio", *LOCAL_PATTERN):
        state.setdefault(prefix + name, module.get_buffer(name))
    state.setdefault(prefix + "is_unit_free", torch.tensor(False))
    floor = prefix + "floor_spread"
    if module.rin is not None and not state[floor].any():
        spread = state[prefix + "target_spread"]
        state[floor] = module.rin.eps**0.5 * spread
    state.setdefault(prefix + "floor_zeros", state[floor])


class _DDSSMModule(PLForecastingModule):
    """Trains a state-space model by its ELBO and draws its forecasts.

    Parameters
    ----------
    num_components, num_parameters, input_size, past_size
        Sizes C, K, U and P of one time step.
    num_solver_steps
        Network evaluations for each state of a forecast.
    peak_kl_weight
        Weight of the KL midway in training.
    overshooting_weight
        Weight of the loss of forecasts.
    gap_augmentation
        Share of the windows of a training batch of which a copy with randomly masked
        values is added. From these copies the encoder alone learns, which is else lost
        where a value is missing, or takes a wrong way through a gap.
    patch_length
        Number L of time steps that a latent state stands for.
    static_size
        How many of the U inputs are static covariates and their flags. ``None`` for models
        of earlier versions, which scale no covariates.
    use_reversible_instance_norm
        As for darts' module, or None if :meth:`set_scales` decides it.
    **kwargs
        Arguments of :class:`StateSpaceModel` and of darts' :class:`PLForecastingModule`.
    """

    largest_input: Tensor

    def __init__(
        self,
        num_components: int,
        num_parameters: int,
        input_size: int,
        past_size: int,
        num_solver_steps: int,
        peak_kl_weight: float,
        overshooting_weight: float,
        gap_augmentation: float = 0.25,
        patch_length: int = 1,
        static_size: int | None = None,
        use_reversible_instance_norm: bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # its name in models that earlier versions saved
        gap_augmentation = kwargs.pop("gap_practice", gap_augmentation)
        decided = use_reversible_instance_norm is not None
        # set before each training, by its windows
        self.peak_learning_rate, self.input_noise, self.covariate_noise = 1e-3, 0.0, 0.0
        self.trend_augmentation, self.reflects = 0.0, False
        self.has_own_recipe = not any(kwargs.get(name) for name in OPTIMIZER_ARGUMENTS)
        of_ssm = arguments_of(StateSpaceModel, kwargs)
        super().__init__(
            use_reversible_instance_norm=use_reversible_instance_norm or False,
            **{name: kwargs[name] for name in kwargs if name not in of_ssm},
        )
        if self.has_own_recipe:
            # else darts' defaults would be saved as if the user had passed them
            for name in OPTIMIZER_ARGUMENTS:
                self.hparams.pop(name, None)
        if not decided and family_of(self.likelihood).has_unit:
            self.rin = RINorm(input_dim=self.n_targets, affine=False)
        self.num_solver_steps = num_solver_steps
        self.peak_kl_weight = peak_kl_weight
        self.overshooting_weight = overshooting_weight
        self.gap_augmentation = gap_augmentation
        self.patch_length = patch_length
        num_after = self.output_chunk_shift + self.output_chunk_length
        cut = Patches(patch_length, self.input_chunk_length, num_after)
        # to the state-space model a patch is one step
        self.ssm = StateSpaceModel(
            num_components=patch_length * num_components,
            num_parameters=num_parameters,
            input_size=patch_length * input_size,
            past_size=patch_length * past_size,
            reach=cut.before + cut.after,
            num_context=cut.before,
            lagged=values_of_covariates(input_size, past_size, static_size, patch_length),
            **of_ssm,
        )
        # Share of the training done. Saved with the weights and never falling: training
        # that is resumed goes on where it was, and a fitted model that is fitted again
        # keeps the weight that it ended with.
        self.register_buffer("progress", torch.zeros(()))
        # Values of the buffers in LOOKED_AT, where a look waits for no device. Empty until
        # they are looked at.
        self._values: dict[str, Any] = {}
        # The last loss or the first one that was not finite.
        self._loss: Tensor | None = None
        # What is observed in the batch that comes next, on the CPU.
        self._observed: Tensor | None = None
        # Whether each window has its own scale: as the user says, or by `set_scales`.
        self.register_buffer("by_instance", torch.tensor(decided and self.rin is not None))
        # Whether the decoder knows nothing of the unit of values that are not negative.
        self.register_buffer("is_unit_free", torch.tensor(True))
        # Which last values of an input chunk tell its level and its trend.
        for name, value in LocalPattern(self.input_chunk_length)._asdict().items():
            self.register_buffer(name, torch.tensor(value))
        self.decides_scale = not decided and self.rin is not None
        # Scales of the training set, saved with the weights.
        self.register_buffer("target_shift", torch.zeros(num_components))
        self.register_buffer("target_spread", torch.ones(num_components))
        sizes = dict.fromkeys(COVARIATES, 1)
        if static_size is not None:
            sizes["past"] = past_size // 2
            sizes["future"] = (input_size - static_size) // 2
            sizes["static"] = static_size // 2
        for kind, size in sizes.items():
            as_it_is = CovariateScale.unit(size)
            for part in OF_COVARIATES:
                self.register_buffer(f"{kind}_{part}", getattr(as_it_is, part))
        self.register_buffer("largest_input", torch.full((num_components,), torch.inf))
        self.register_buffer("floor_spread", torch.zeros(num_components))
        self.register_buffer("floor_ratio", torch.zeros(num_components))
        self.register_buffer("floor_zeros", torch.zeros(num_components))
        self.register_load_state_dict_pre_hook(_with_scales)

    @property
    def supports_probabilistic_prediction(self) -> bool:
        return True

    @property
    def series_model(self) -> SeriesModel:
        """The distribution that this module trains, with the weights as they are now."""
        return SeriesModel(
            ssm=self.ssm,
            likelihood=self.likelihood,
            scales=self.scales,
            instance_norm=self.rin if self.has_instance_scale else None,
            instance_floor=self.instance_floor,
            local_pattern=self.local_pattern,
            patch_length=self.patch_length,
            input_chunk_length=self.input_chunk_length,
            output_chunk_shift=self.output_chunk_shift,
            output_chunk_length=self.output_chunk_length,
            largest_input=self.largest_input,
            is_unit_free=self._value_of("is_unit_free"),
        )

    @property
    def has_instance_scale(self) -> bool:
        """Whether each window is normalised by its input chunk."""
        return bool(self._value_of("by_instance"))

    @property
    def local_pattern(self) -> LocalPattern:
        """Which last values of an input chunk tell its level and its trend."""
        return LocalPattern(**{name: self._value_of(name) for name in LOCAL_PATTERN})

    @property
    def local_covariates(self) -> list[str]:
        """The kinds of covariates of which some are relative to the input chunk."""
        return [kind for kind in COVARIATES if any(self._value_of(f"{kind}_is_local"))]

    @property
    def share_done(self) -> float:
        """Share of the training that is done."""
        return float(self._value_of("progress"))

    def _value_of(self, name: str) -> Any:
        """Value of one of the buffers that Python looks at."""
        if not self._values:
            self._look_at_buffers()
        return self._values[name]

    def _look_at_buffers(self) -> None:
        """Note their values, which waits for the device."""
        self._values = {name: self.get_buffer(name).cpu().tolist() for name in LOOKED_AT}

    def _set(self, name: str, value: float) -> None:
        """Set one of these buffers."""
        self.get_buffer(name).fill_(value)
        if self._values:
            self._values[name] = value

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._values.clear()

    @property
    def scales(self) -> TrainingScales:
        """The scales of the training set."""
        of_covariates = (
            CovariateScale(
                **{part: self.get_buffer(f"{kind}_{part}") for part in OF_COVARIATES},
                input_length=self.input_chunk_length,
            )
            for kind in COVARIATES
        )
        return TrainingScales(
            Scale(self.get_buffer("target_shift"), self.get_buffer("target_spread")),
            *of_covariates,
        )

    @property
    def instance_floor(self) -> InstanceFloor:
        """What an input chunk is divided by at least."""
        return InstanceFloor(self.floor_spread, self.floor_ratio, self.floor_zeros)

    @property
    def all_scales(self) -> tuple[TrainingScales, InstanceFloor, LocalPattern | None]:
        """What :meth:`set_scales` sets."""
        local_pattern = self.local_pattern if self.has_instance_scale else None
        return self.scales, self.instance_floor, local_pattern

    def set_scales(
        self,
        scales: TrainingScales,
        floor: InstanceFloor,
        local_pattern: LocalPattern | None,
    ) -> None:
        """Set the scales of the training set, before training.

        Parameters
        ----------
        scales
            Mean and standard deviation of target and covariates.
        floor
            Least spread of an input chunk.
        local_pattern
            Which last values of an input chunk tell the level and the trend of a window.
            ``None`` where windows have the scale of the training set, unless the user has
            decided that.
        """
        for own, new in zip(self.scales, scales, strict=True):
            for part, value in zip(own, new, strict=True):
                if isinstance(part, Tensor) and isinstance(value, Tensor):
                    part.copy_(value)
        for part, value in zip(self.instance_floor, floor, strict=True):
            part.copy_(value)
        self._values.clear()
        if self.decides_scale:
            self._set("by_instance", local_pattern is not None)
        if local_pattern is not None:
            for name, value in local_pattern._asdict().items():
                self._set(name, value)

    # --- Lightning --------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Average the weights, whoever makes the trainer."""
        return [_AveragedWeights()] if self.trainer.state.fn == "fit" else []

    def configure_optimizers(self) -> Any:
        """Return the optimizer and schedule that the user asks for, or our own."""
        if not self.has_own_recipe:
            return super().configure_optimizers()
        optimizer = SOAP(self.parameters(), lr=self.peak_learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda _: learning_rate_share(progress(self.trainer))
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_loss()
        super().on_save_checkpoint(checkpoint)
        # Lightning asks no callback where it saves the weights alone.
        if "callbacks" not in checkpoint:
            for callback in callbacks_of(self.trainer, _AveragedWeights):
                callback.save_with_weights(self.trainer, self, checkpoint)

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
        if self._loss is not None:
            # until the loss is looked at, the weights must stay finite
            lost = ~self._loss.isfinite()
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(lost, 0.0)

    def take_over(self, trainer: Trainer) -> None:
        """Become the module of a trainer that has trained another one."""
        for callback in callbacks_of(trainer, _AveragedWeights):
            callback.forget()
        self.trainer = trainer
        trainer.strategy.connect(self)

    def on_train_start(self) -> None:
        # now, since the weights may be those of a checkpoint, and no update has to wait
        self._look_at_buffers()
        self._loss = None

    def on_train_batch_start(self, batch: TorchTrainingBatch, batch_idx: int) -> None:
        if searches_learning_rate(self.trainer):
            # after the search, the share that is done comes back with the weights
            self._set("progress", SEARCH_SHARE)
        else:
            self._set("progress", max(self.share_done, progress(self.trainer)))
        if self.trainer.global_step % CHECK_PERIOD == 0:
            self._check_loss()

    def on_validation_start(self) -> None:
        self._check_loss()

    def on_train_epoch_end(self) -> None:
        self._check_loss()
        super().on_train_epoch_end()

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Look where values are missing before the batch goes to a device."""
        # The hook of this name without the underscore draws a warning from Lightning, since
        # darts trains from a data module.
        if isinstance(batch, TorchTrainingBatch | TorchInferenceBatch):
            self._observed = observed_values(batch, self.output_chunk_shift).cpu()
        return super()._on_before_batch_transfer(batch, dataloader_idx)

    def _take_observed(self) -> Tensor | None:
        """Return what was seen of the batch, once: no other batch may be taken for it."""
        observed, self._observed = self._observed, None
        return observed

    def _log(
        self,
        name: str,
        value: Tensor,
        batch: TorchTrainingBatch,
        prog_bar: bool = False,
    ) -> None:
        num_rows = len(batch.past_target)
        self.log(name, value, prog_bar, batch_size=num_rows, sync_dist=True)

    # --- training ---------------------------------------------------------------------

    def _train_val_step(
        self,
        batch: TorchTrainingBatch,
        stage: ModuleStage,
        criterion: torch.nn.Module,
        metrics: MetricCollection,
    ) -> Tensor:
        """Return the training loss or the validation score of a batch, and log it."""
        is_training = stage is ModuleStage.TRAIN
        window = training_window(
            batch,
            self.output_chunk_shift,
            self.patch_length,
            self.scales,
            self.covariate_noise if is_training else 0.0,
        )
        observed = self._take_observed()
        if is_training:
            loss, logged = self._training_loss(window, observed)
        else:
            loss, elbo = validation_score(
                self.series_model, window, self._has_forecast_loss
            )
            logged = loss
            if elbo is not None:
                self._log("val_negative_elbo", elbo, batch)
        self._log(f"{stage.value}_loss", logged, batch, prog_bar=True)
        if is_training:
            # which tells the phase of the training, beside the losses
            # made on the device: Lightning copies a number there, and waits
            weight = loss.new_full((), self._kl_weight)
            self._log("kl_weight", weight, batch, prog_bar=True)
        if len(metrics):
            self._update_metrics_with_sample(batch, metrics, observed)
        return loss

    @property
    def _kl_weight(self) -> float:
        """Weight of the KL in the training loss by now."""
        return kl_weight(self.share_done, self.peak_kl_weight)

    @property
    def _has_forecast_loss(self) -> bool:
        """Whether forecasts count in training and in validation."""
        return self.overshooting_weight > 0 and family_of(self.likelihood).reparametrised

    def _training_loss(
        self, window: Window, observed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the training loss of windows, and the part of it that is logged.

        The latter is the negative ELBO, with the weight that the KL has by now. In time
        the loss of forecasts is added to it.
        """
        forecast_weight = 0.0
        if self._has_forecast_loss and self.share_done >= FORECAST_LOSS_START:
            forecast_weight = self.overshooting_weight * forecast_loss_share(
                self.trainer.global_step
            )
        loss, negative_elbo = training_loss(
            self.series_model,
            window,
            observed,
            self._kl_weight,
            forecast_weight,
            self.gap_augmentation,
            input_noise(self.share_done, self.input_noise),
            self.trend_augmentation,
            self.reflects,
        )
        self._watch(loss)
        return loss, negative_elbo

    def _watch(self, loss: Tensor) -> None:
        """Keep a loss to be checked, of all processes of this training."""
        loss = loss.detach().clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # a process that stopped alone would leave the others waiting
            finite = loss.isfinite().to(loss.dtype)
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
            loss = loss.where((finite > 0) | ~loss.isfinite(), torch.nan)
        if self._loss is not None:
            loss = loss.where(self._loss.isfinite(), self._loss)
        self._loss = loss

    def _check_loss(self) -> None:
        """Raise an error if a loss was not finite.

        Looking at it waits for the device. It is done now and then, and before anything is
        saved or compared. Until then the weights stay finite.
        """
        loss, self._loss = self._loss, None
        if loss is not None and not loss.isfinite():
            raise_log(
                RuntimeError(
                    f"The training loss became non-finite (`{loss.item()}`). Try a "
                    "smaller learning rate (`optimizer_kwargs`) or a smaller "
                    "`gradient_clip_val` (`pl_trainer_kwargs`). Checkpoints saved before "
                    "this update are intact."
                )
            )

    @torch.no_grad()
    def _update_metrics_with_sample(
        self,
        batch: TorchTrainingBatch,
        metrics: MetricCollection,
        observed: Tensor | None,
    ) -> None:
        """Compare one sample of the forecast, from the input chunk alone, with the data.

        Steps with a missing value are left out.
        """
        given = self._split_at_origin(batch, self.output_chunk_length)
        target = batch.future_target
        if observed is None:
            observed = observed_values(batch, self.output_chunk_shift).cpu()
        how = 1, self.num_solver_steps, len(target)
        before = observed[:, : self.input_chunk_length]
        (sample,) = self.series_model.forecast(*given, *how, before)
        complete = observed[:, -target.shape[1] :].all(-1).flatten()
        # (B, n, C) -> (B * n, C)
        sample, target = sample.flatten(0, 1), target.flatten(0, 1)
        if not complete.all():
            rows = complete.nonzero().squeeze(-1).to(target.device, non_blocking=True)
            sample, target = sample[rows], target[rows]
        if len(target) > 0:
            metrics.update(sample, target)

    # --- forecasts --------------------------------------------------------------------

    def _split_at_origin(
        self, batch: PLModuleInput | TorchInferenceBatch | TorchTrainingBatch, n: int
    ) -> tuple[Window, Window, int]:
        """Return what a forecast of n steps is given: context, horizon and n."""
        lag, scales = self.patch_length, self.scales
        horizon = horizon_window(batch, self.output_chunk_shift, n, lag, scales)
        return context_window(batch, lag, scales), horizon, n

    def forward(self, x_in: PLModuleInput) -> PLModuleOutput:
        """Raw parameters of the output chunk along a mean path: (B, n, C, K)."""
        # Not darts' `io_processor`: it knows neither gaps nor likelihood parameters.
        raw = self.series_model.mean_path_parameters(
            *self._split_at_origin(x_in, self.output_chunk_length), self.num_solver_steps
        )
        return PLModuleOutput(prediction=raw)

    def predict_step(
        self,
        batch: TorchInferenceBatch | Question,
        batch_idx: int,
        dataloader_idx: int | None = None,
    ) -> tuple[Tensor, Any, Any] | Tensor:
        """Draw joint sample paths, (S, B, n, C), or answer a question."""
        # densities take derivatives, which Lightning's inference mode forbids
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(batch, Question):
                return batch.answer(self.series_model)
            return self._forecast(batch)

    def _forecast(self, batch: TorchInferenceBatch) -> tuple[Tensor, Any, Any]:
        model, n = self.series_model, self.pred_n
        # no more memory than a training batch takes
        length = batch.past_target.shape[1] + self.output_chunk_length
        max_paths = self.pred_batch_size * length
        how = self.num_solver_steps, max_paths, self._take_observed()
        if self.predict_likelihood_parameters:
            self._check_has_marginal()
            given = self._split_at_origin(batch, n)
            parameters = model.marginal_parameters(*given, NUM_MOMENT_PATHS, *how)
            # (B, n, C, K) -> (1, B, n, C * K)
            prediction = parameters.flatten(2).unsqueeze(0)
        else:
            rolls_on = self.has_instance_scale or "future" in self.local_covariates
            num_first = min(n, self.output_chunk_length) if rolls_on else n
            given = self._split_at_origin(batch, num_first)
            prediction = model.forecast(*given, self.pred_num_samples, *how)
            if num_first < n:
                own = self.has_instance_scale
                scale = model.normalise(given[0]).scale if own else None
                prediction = self._roll_on(batch, prediction, scale, max_paths)
        return prediction, batch.series_schema, batch.pred_time

    def _roll_on(
        self,
        batch: TorchInferenceBatch,
        paths: Tensor,
        scale: Scale | None,
        max_paths: int,
    ) -> Tensor:
        """Go on from each path of the output chunk, chunk by chunk: (S, B, n, C).

        The states know how far a level walks within a window, not beyond, and covariates
        that drift are far from an input chunk that is long past. So each chunk that follows
        is that of a window whose input chunk are the last values of the path.

        Parameters
        ----------
        batch
            A batch of B series.
        paths
            Their output chunks, (S, B, n', C).
        scale
            The scale of their input chunks. ``None`` where all have that of the training
            set.
        max_paths
            The most paths of all series that are drawn at a time.
        """
        model, (_, num_series, num_first, _) = self.series_model, paths.shape
        groups = []
        for group in paths.split(max(max_paths // num_series, 1)):
            following = batch
            origin = None if scale is None else scale.repeat(len(group))
            # (S', B, n, C) -> (S' * B, n, C)
            chunks = [group.flatten(0, 1)]
            for n in group_sizes(self.pred_n - num_first, self.output_chunk_length):
                following = rolled_on(following, chunks[-1])
                if origin is not None:
                    origin = origin.later(chunks[-1].shape[1])
                # the way through a gap is left to the encoder, which needs no particles
                observed = torch.ones(following.past_target.shape)
                drawn = model.forecast(
                    *self._split_at_origin(following, n),
                    num_samples=1,
                    num_solver_steps=self.num_solver_steps,
                    max_paths=max_paths,
                    observed=observed,
                    origin=origin,
                )
                chunks.append(drawn.squeeze(0))
            # (S' * B, n, C) -> (S', B, n, C)
            groups.append(torch.cat(chunks, dim=1).unflatten(0, (-1, num_series)))
        return torch.cat(groups)

    def _check_has_marginal(self) -> None:
        if not family_of(self.likelihood).marginal:
            raise_log(
                ValueError(
                    "`predict_likelihood_parameters` must be `False` for "
                    f"`{self.likelihood}`: over the latent paths the forecast is a "
                    "mixture, which has no parameters of that family. Use "
                    "`num_samples`. `GaussianLikelihood` gives the mixture's moments."
                )
            )
