"""
The face to darts: :class:`DDSSMModel`.
"""

from collections.abc import Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.logging import get_logger, raise_log
from darts.models.forecasting.torch_forecasting_model import (
    MixedCovariatesTorchModel,
)
from darts.utils.data import (
    SequentialTorchInferenceDataset,
    TorchInferenceDataset,
    TorchTrainingDataset,
)
from darts.utils.data.torch_datasets.utils import TorchTrainingSample
from darts.utils.likelihood_models.torch import (
    GaussianLikelihood,
    QuantileRegression,
    TorchLikelihood,
)

from darts_ddssm.checks import (
    check,
    check_positive_integer,
    check_positive_number,
    check_share,
)
from darts_ddssm.density import in_support
from darts_ddssm.latents import LatentStateModel
from darts_ddssm.module import _DDSSMModule
from darts_ddssm.scaling import LOCATION_SCALE_FAMILIES, max_input
from darts_ddssm.ssm.patches import automatic_patch_length
from darts_ddssm.whole_series import prolonged

logger = get_logger(__name__)

TRANSITIONS = ("diffusion", "gaussian")

# Arguments that may differ from those of the weights that are loaded.
FREE_PARAMS = (
    "num_solver_steps",
    "peak_kl_weight",
    "overshooting_weight",
    "gap_practice",
)


class DDSSMModel(LatentStateModel):
    # of models that were saved before there were patches
    patch_length: int | None = 1

    def __init__(
        self,
        input_chunk_length: int,
        output_chunk_length: int,
        output_chunk_shift: int = 0,
        latent_dim: int = 8,
        transition_order: int | None = None,
        transition: str = "diffusion",
        hidden_size: int = 64,
        num_solver_steps: int = 12,
        peak_kl_weight: float = 1.0,
        overshooting_weight: float = 1.0,
        gap_practice: float = 0.25,
        patch_length: int | None = None,
        likelihood: TorchLikelihood | None = None,
        use_static_covariates: bool = True,
        use_reversible_instance_norm: bool | dict | None = None,
        **kwargs: Any,
    ) -> None:
        """A Diffusion-Driven State Space Model (DDSSM), after [1]_.

        A state-space model explains a series by a latent state that moves from step to
        step. Here the density of the next state given the past ones is a diffusion
        model, so that it can have several modes, be skewed or heavy-tailed, where the
        usual deep state-space model has a Gaussian. The state is inferred by a
        recurrent encoder; both are trained together by the evidence lower bound, with
        the divergence to the diffusion model estimated by explicit score matching.

        A forecast draws the present state from its posterior, moves it forward step by
        step and emits an observation at each: each sample is one joint path over all
        time steps and components. The model never reads its own forecasts, so a horizon
        beyond ``output_chunk_length`` costs no accuracy by itself.

        This model supports past, future and static covariates, univariate and
        multivariate, single and multiple series, probabilistic forecasts, and missing
        values: NaN in the target or in a covariate means "not observed".

        Beyond forecasts it shows what lies beneath a series: :meth:`infer_latents`,
        :meth:`log_likelihood`, :meth:`impute`, :meth:`simulate`,
        :meth:`sample_transition`.

        The target needs no scaling: the model takes its mean and standard deviation from
        the training set. Covariates should be scaled, e.g. by darts' :class:`Scaler`.

        Parameters
        ----------
        input_chunk_length
            Number of time steps of the past that a forecast is conditioned on.
        output_chunk_length
            Number of time steps that follow the input chunk in a training window. A
            window of ``input_chunk_length + output_chunk_length`` steps is treated as
            one sequence. ``predict()`` takes any horizon `n`.
        output_chunk_shift
            Optionally, the number of steps between the input chunk and the output
            chunk. The latent state is rolled through them as through missing values.
            As for all of darts' torch models, `n` is then limited to
            ``output_chunk_length``.
        latent_dim
            Dimension of the latent state.
        transition_order
            Number of past states that the next one depends on. ``None`` for all of
            them, through a recurrent network.
        transition
            ``"diffusion"``, or ``"gaussian"`` for the deep state-space model with a
            Gaussian transition, the baseline to compare with.
        hidden_size
            Width of the hidden layers of all networks.
        num_solver_steps
            Number of network evaluations that draw one time step of a forecast. More of
            them follow the learned density more closely. May be changed after
            training, by ``model.num_solver_steps = ...``.
        peak_kl_weight
            Weight of the divergence in the training loss midway in training; it starts
            low and is 1 at the end, which makes the loss the evidence bound. Above 1 it
            favours a latent that follows its own dynamics over one that follows the
            data, noise and all, which the bound itself hardly tells apart: try 2 where
            the dynamics are sharp and the observations noisy.
        overshooting_weight
            Weight of a second term in the training loss, from 30 % of the updates on: the
            CRPS, in standard deviations of the training set, of forecasts of the output
            chunk of 16 windows of each batch. The bound alone trains single steps, whose
            errors add up over a long horizon. ``0`` for the bound alone, which is faster;
            no effect if the output chunk has one step, or with likelihoods other than the
            Gaussian, Laplace and Gumbel ones.
        gap_practice
            Share of each training batch in which some values are hidden, from which the
            encoder alone learns. It prepares the encoder for gaps even where the training
            series have none, and costs some sharpness of the transition: try 0 where no
            series has gaps and the dynamics have distinct modes.
        patch_length
            Number of time steps that share one latent state. Long windows are then short
            sequences of states, which trains and forecasts that much faster and carries
            further; within such a patch observations are independent given its state, and
            what is said of time steps of the state, as in ``transition_order`` or
            :meth:`infer_latents`, holds for patches. ``1`` is a state at each step.
            ``None`` leaves windows of up to 48 steps at that and cuts longer ones into
            about 12 patches, none longer than the output chunk.
        likelihood
            The density of an observation given the state: any of darts' torch
            :meth:`likelihoods <darts.utils.likelihood_models.torch.TorchLikelihood>`
            with a density, so not ``QuantileRegression``. ``None`` for
            ``GaussianLikelihood()``.
        use_static_covariates
            Whether to use the static covariates of the target `series`, if there are
            any when the model is fitted.
        use_reversible_instance_norm
            Whether each window is normalised by the observed values of its input chunk,
            a dictionary of arguments of darts' :class:`RINorm`, or ``None`` to have it
            so where the training series drift: where, in their last third, the mean and
            spread of the input chunk say more of the output chunk than those of the
            first two thirds of the series do. It takes forecasts beyond the
            range of the training set, but then :meth:`log_likelihood` and
            :meth:`simulate` are not defined. For likelihoods with a location and a scale.
        **kwargs
            Optional arguments of the Lightning module, the trainer, and darts'
            :class:`TorchForecastingModel`, such as ``batch_size``, ``n_epochs``,
            ``optimizer_cls``, ``optimizer_kwargs``, ``lr_scheduler_cls``,
            ``lr_scheduler_kwargs``, ``torch_metrics``, ``model_name``, ``work_dir``,
            ``save_checkpoints``, ``force_reset``, ``add_encoders``, ``random_state``
            and ``pl_trainer_kwargs``. They mean what they mean in
            `TiDEModel <https://unit8co.github.io/darts/generated_api/darts.models.forecasting.tide_model.html>`__,
            except that

            - ``loss_fn`` has no effect: the loss is the evidence bound;
            - the gradient's norm is clipped at 1 unless ``pl_trainer_kwargs`` has a
              ``gradient_clip_val`` (``0`` for no clipping);
            - validation, checkpoints and forecasts use an exponential average of the
              weights;
            - ``gridsearch()`` compares forecasts of many samples, where darts draws one;
            - ``to_onnx()`` is not supported;
            - ``roll_size`` and ``mc_dropout`` have no effect in ``predict()``: nothing is
              fed back and there is no dropout.

        Raises
        ------
        ValueError
            If an argument is outside its range, unknown, or ``likelihood`` has no
            density.

        Notes
        -----
        ``train_loss`` is the negative evidence bound in nats a value; the weight of its
        divergence is 0.05 for the first 20 % of the updates and 1 from 40 % on.
        ``val_loss`` is the mean CRPS of forecasts of the output chunk, in the scale in
        which the model sees the target, beside ``val_negative_elbo``, with a weight of 1.
        Where forecasts of several steps are not trained (see ``overshooting_weight``),
        ``val_loss`` is the latter.

        References
        ----------
        .. [1] E. Ruder and M. Wojnowicz, "Diffusion-Driven State Space Models",
                https://arxiv.org/abs/2606.21036

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=120, value_frequency=1 / 12)
        >>> model = DDSSMModel(
        ...     input_chunk_length=24,
        ...     output_chunk_length=12,
        ...     n_epochs=2,
        ...     random_state=0,
        ...     pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
        ... )
        >>> forecast = model.fit(series).predict(n=18, num_samples=50)
        >>> forecast.n_timesteps, forecast.n_samples
        (18, 50)
        """
        for name, value in (
            ("latent_dim", latent_dim),
            ("hidden_size", hidden_size),
            ("num_solver_steps", num_solver_steps),
        ):
            check_positive_integer(name, value)
        if transition_order is not None:
            check_positive_integer("transition_order", transition_order)
        check_positive_number("peak_kl_weight", peak_kl_weight)
        check_positive_number("overshooting_weight", overshooting_weight, or_zero=True)
        check_share("gap_practice", gap_practice)
        if patch_length is not None:
            check_positive_integer("patch_length", patch_length)
            check(
                patch_length <= input_chunk_length,
                "`patch_length` must be at most `input_chunk_length`, "
                f"{input_chunk_length}, got {patch_length}.",
            )
        if transition not in TRANSITIONS:
            raise_log(
                ValueError(
                    f"`transition` must be one of {TRANSITIONS}, got `{transition!r}`."
                )
            )
        if isinstance(likelihood, QuantileRegression):
            raise_log(
                ValueError(
                    "`likelihood` must be a density, got `QuantileRegression`, which is "
                    "not one. Use e.g. `GaussianLikelihood()`: the quantiles of a "
                    "forecast are read off its samples (`forecast.quantile(0.9)`)."
                )
            )
        if likelihood is not None and not isinstance(likelihood, TorchLikelihood):
            raise_log(
                ValueError(
                    "`likelihood` must be one of darts' torch likelihoods or `None`, "
                    f"got `{likelihood!r}`."
                )
            )
        likelihood = likelihood or GaussianLikelihood()
        if use_reversible_instance_norm and not isinstance(
            likelihood, LOCATION_SCALE_FAMILIES
        ):
            raise_log(
                ValueError(
                    "`use_reversible_instance_norm` must be `False` for a likelihood "
                    "without a location and a scale on the whole real line, got "
                    f"`{likelihood}`."
                )
            )
        super().__init__(**self._extract_torch_model_params(**self.model_params))

        self.pl_module_params = self._extract_pl_module_params(**self.model_params)
        self.pl_module_params["likelihood"] = likelihood

        self.latent_dim = latent_dim
        self.transition_order = transition_order
        self.transition = transition
        self.hidden_size = hidden_size
        self.peak_kl_weight = peak_kl_weight
        self.overshooting_weight = overshooting_weight
        self.gap_practice = gap_practice
        self.patch_length = patch_length
        self._num_solver_steps = num_solver_steps
        self._considers_static_covariates = use_static_covariates

    @property
    def num_solver_steps(self) -> int:
        """Number of network evaluations that draw one time step of a forecast."""
        return self._num_solver_steps

    @num_solver_steps.setter
    def num_solver_steps(self, value: int) -> None:
        check_positive_integer("num_solver_steps", value)
        self._num_solver_steps = value

    @property
    def supports_static_covariates(self) -> bool:
        return True

    @property
    def _steps_of_a_state(self) -> int:
        """`patch_length`, or what is chosen where there is none."""
        if self.patch_length is not None:
            return self.patch_length
        return automatic_patch_length(self._window_length, self.output_chunk_length)

    @property
    def _ckpt_skipped_params(self) -> list[str]:
        # of the length of patches it is asked below what became of `None`
        return [*super()._ckpt_skipped_params, *FREE_PARAMS, "patch_length"]

    def _check_ckpt_parameters(self, tfm_save: "DDSSMModel") -> None:
        super()._check_ckpt_parameters(tfm_save)
        own, saved = self._steps_of_a_state, tfm_save._steps_of_a_state
        check(
            own == saved,
            f"`patch_length` must be that of the loaded checkpoint, {saved}, got {own}.",
        )

    def _create_model(self, train_sample: TorchTrainingSample) -> _DDSSMModule:
        sizes = train_sample.component_dims()
        static = train_sample.static_covariates
        # a value and a flag of each
        input_size = 2 * (sizes["future_covariates"] or 0)
        input_size += 2 * (static.size if static is not None else 0)
        if self.patch_length is None and self._steps_of_a_state > 1:
            logger.info(
                f"A window of {self._window_length} steps is modelled in patches of "
                f"{self._steps_of_a_state} steps, with a latent state each. Set "
                "`patch_length` to decide it yourself."
            )
        return _DDSSMModule(
            num_components=sizes["past_target"],
            num_parameters=self.likelihood.num_parameters,
            input_size=input_size,
            past_size=2 * (sizes["past_covariates"] or 0),
            latent_dim=self.latent_dim,
            transition_order=self.transition_order,
            transition=self.transition,
            hidden_size=self.hidden_size,
            num_solver_steps=self.num_solver_steps,
            peak_kl_weight=self.peak_kl_weight,
            overshooting_weight=self.overshooting_weight,
            gap_practice=self.gap_practice,
            patch_length=self._steps_of_a_state,
            **self.pl_module_params,
        )

    def _setup_for_train(
        self, train_dataset: TorchTrainingDataset, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        is_new = self.model is None
        params = super()._setup_for_train(train_dataset, *args, **kwargs)
        if is_new:
            if self.trainer_params["precision"] == "64-true":
                # Lightning would cast it later, the scale already rounded.
                params["model"].double()
            params["model"].set_scale(train_dataset)
        return params

    def _build_train_dataset(
        self,
        series: Sequence[TimeSeries],
        past_covariates: Sequence[TimeSeries] | None,
        future_covariates: Sequence[TimeSeries] | None,
        sample_weight: Sequence[TimeSeries] | str | None,
        max_samples_per_ts: int | None,
        stride: int = 1,
    ) -> TorchTrainingDataset:
        self._check_values(series, past_covariates, future_covariates)
        if self._example is None:
            first = series[0][:1]
            self._example = first.with_values(np.full(first.shape[:2], np.nan))
        return super()._build_train_dataset(
            series=series,
            past_covariates=past_covariates,
            future_covariates=future_covariates,
            sample_weight=sample_weight,
            max_samples_per_ts=max_samples_per_ts,
            stride=stride,
        )

    def _build_inference_dataset(
        self,
        n: int,
        series: Sequence[TimeSeries],
        past_covariates: Sequence[TimeSeries] | None,
        future_covariates: Sequence[TimeSeries] | None,
        stride: int = 0,
        bounds: np.ndarray | None = None,
    ) -> TorchInferenceDataset:
        self._check_values(series, past_covariates, future_covariates)
        # Nothing is fed back, so that past covariates are not needed beyond the end of
        # the series: to the dataset the horizon is one output chunk. With a shift, darts
        # refuses a longer horizon, and so do we.
        length = self.output_chunk_length
        if not self.output_chunk_shift:
            length = max(n, length)
        return SequentialTorchInferenceDataset(
            series=series,
            past_covariates=past_covariates,
            future_covariates=future_covariates,
            n=n,
            stride=stride,
            bounds=bounds,
            input_chunk_length=(self.min_input_chunk_length, self.input_chunk_length),
            output_chunk_length=length,
            output_chunk_shift=self.output_chunk_shift,
            use_static_covariates=self.uses_static_covariates,
        )

    @wraps(MixedCovariatesTorchModel.historical_forecasts)  # darts reads its signature
    def historical_forecasts(
        self,
        series: TimeSeries | Sequence[TimeSeries],
        past_covariates: TimeSeries | Sequence[TimeSeries] | None = None,
        future_covariates: TimeSeries | Sequence[TimeSeries] | None = None,
        forecast_horizon: int = 1,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # darts starts no forecast whose past covariates end before its last output
        # chunk. As in `predict()`, they are not needed: to darts they go on, unknown.
        extra = forecast_horizon - self.output_chunk_length
        if isinstance(past_covariates, TimeSeries) and extra > 0:
            past_covariates = prolonged(past_covariates, extra)
        elif past_covariates is not None and extra > 0:
            past_covariates = [prolonged(one, extra) for one in past_covariates]
        return super().historical_forecasts(
            series,
            past_covariates,
            future_covariates,
            forecast_horizon,
            *args,
            **kwargs,
        )

    def _setup_for_predict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.model.num_solver_steps = self.num_solver_steps
        return super()._setup_for_predict(*args, **kwargs)

    def save(self, path: str | None = None, clean: bool = False) -> None:
        trainer, model = self.trainer, self.model
        if trainer is not None and model is not None:
            # darts asks the trainer, which may hold other weights than the model: the
            # last ones after `load_best`, the fitted ones after `load_weights`.
            if trainer.lightning_module is not model:
                model.take_over(trainer)
        super().save(path, clean)

    def to_onnx(self, path: str | None = None, **kwargs: Any) -> None:
        """Refuse: a forecast of this model cannot be one graph for darts' ONNX runner.

        Raises
        ------
        NotImplementedError
            Always. darts' runner wants a graph that maps the input chunk to parameters
            of the forecast's density. Those of this model are known only by drawing
            latent paths.
        """
        raise_log(
            NotImplementedError(
                "`to_onnx()` is not supported by `DDSSMModel`: darts' ONNX runner takes a "
                "graph without randomness that gives the parameters of the forecast's "
                "density, and a forecast of this model is known by its samples alone. "
                "Use `save()` and `load()`, on a machine without an accelerator with "
                '`load(path, map_location="cpu")`.'
            )
        )

    @classmethod
    def gridsearch(
        model_class,  # as darts names it
        parameters: dict[str, Sequence[Any]],
        series: TimeSeries,
        *args: Any,
        num_samples: int = 100,
        random_state: int | None = 0,
        **kwargs: Any,
    ) -> tuple["DDSSMModel", dict[str, Any], float]:
        """Find the best of a grid of arguments, by forecasts of many samples.

        As in all of darts' models, but that each forecast has ``num_samples`` samples.
        darts draws one, which measures noise as much as skill. A metric for points
        (such as the default, ``mape``) then takes the median; one for samples, such as
        :func:`darts.metrics.mcrps`, sees all of them.

        The training of the candidates is random too: give all of them one seed with
        ``"random_state": [0]`` in ``parameters``.

        Parameters
        ----------
        parameters
            A list of values for each argument of the model.
        series
            The target.
        *args, **kwargs
            As in darts, see :meth:`ForecastingModel.gridsearch
            <darts.models.forecasting.forecasting_model.ForecastingModel.gridsearch>`.
        num_samples
            Number of samples of each forecast.
        random_state
            Seed of the samples, the same for every candidate.

        Returns
        -------
        tuple
            An untrained model of the best arguments, these arguments, and their score.

        Raises
        ------
        ValueError
            If ``num_samples`` is not a positive integer, and as in darts.
        """
        check_positive_integer("num_samples", num_samples)

        class Candidate(model_class):  # type: ignore[misc, valid-type]
            def backtest(self, *args: Any, **kwargs: Any) -> Any:
                return super().backtest(*args, **kwargs | {"num_samples": num_samples})

            def _predict_wrapper(self, *args: Any, **kwargs: Any) -> Any:
                kwargs["num_samples"] = num_samples
                return super()._predict_wrapper(*args, **kwargs)

        # darts names the class in its messages
        Candidate.__name__ = Candidate.__qualname__ = model_class.__name__
        search = super(DDSSMModel, Candidate).gridsearch
        _, best, score = search(
            parameters, series, *args, random_state=random_state, **kwargs
        )
        return model_class(**best), best, score

    def _check_values(
        self,
        series: Sequence[TimeSeries],
        past_covariates: Sequence[TimeSeries] | None,
        future_covariates: Sequence[TimeSeries] | None,
    ) -> None:
        """Refuse what would become NaN later: infinities, extremes, out of support."""
        for name, sequence in (
            ("series", series),
            ("past_covariates", past_covariates),
            ("future_covariates", future_covariates),
        ):
            for i, one in enumerate(sequence or []):
                self._check_range(name, i, one.all_values(copy=False))
        for i, one in enumerate(series):
            if self.uses_static_covariates and one.has_static_covariates:
                # darts refuses those that are no numbers
                numbers = one.static_covariates.select_dtypes("number")
                self._check_range("static_covariates", i, numbers.to_numpy(one.dtype))
            values = one.all_values(copy=False)
            if np.isnan(values).all():
                raise_log(
                    ValueError(
                        "`series` must have observed values, got a series of missing "
                        f"values only (at sequence index `{i}`)."
                    )
                )
            # (T, C, samples) -> (T * samples, C)
            rows = values.swapaxes(1, 2).reshape(-1, one.n_components)
            outside = ~in_support(self.likelihood, torch.tensor(rows)).numpy()
            if outside.any():
                raise_log(
                    ValueError(
                        f"`series` must lie in the support of `{self.likelihood}`, got "
                        f"`{rows[outside][0]}` (at sequence index `{i}`)."
                    )
                )

    def _check_range(self, name: str, i: int, values: np.ndarray) -> None:
        """Refuse infinities, and what is too large for the networks."""
        if np.isinf(values).any():
            raise_log(
                ValueError(
                    f"`{name}` must be finite or NaN (missing), got infinite values (at "
                    f"sequence index `{i}`)."
                )
            )
        limit, origin, distance = max_input(values.dtype), "of zero", values
        if name == "series":
            # The networks see it in the scale of the training set, once there is one.
            if self.model is None or values.shape[1] != len(self.model.target_shift):
                return
            origin = "standard deviations of the training mean"
            # (T, C, samples), in double precision, as it might overflow
            shift, spread = self.model.target_shift, self.model.target_spread
            distance = values - shift.cpu().double().numpy()[:, None]
            distance /= spread.cpu().double().numpy()[:, None]
        too_far = np.abs(distance) > limit
        if too_far.any():
            raise_log(
                ValueError(
                    f"`{name}` must be within {limit:.0e} {origin}, got "
                    f"`{values[too_far][0]}` (at sequence index `{i}`)."
                )
            )
