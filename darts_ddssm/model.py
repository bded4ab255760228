"""
The darts model: :class:`DDSSMModel`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from typing import Any, TypeVar, cast

import numpy as np
import torch
from darts import TimeSeries
from darts.logging import get_logger, raise_log
from darts.models.forecasting import forecasting_model
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
from darts.utils.ts_utils import series2seq
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from darts_ddssm.estimator.automatic import (
    automatic_latent_dim,
    automatic_patch_length,
    even_patch_length,
    say_once,
)
from darts_ddssm.estimator.data_checks import (
    check_data,
    check_future_covariates,
    check_instance_norm,
    check_series,
    check_trained,
    check_training_set,
    check_weights,
    chunk_lengths,
    training_series,
)
from darts_ddssm.estimator.distillation import drop_sampler
from darts_ddssm.estimator.latent_methods import LatentMethods
from darts_ddssm.estimator.recipe import TrainingRecipe
from darts_ddssm.estimator.sequences import (
    data_type,
    in_one_type,
    known_until,
    of_type,
    prolonged,
)
from darts_ddssm.estimator.windows import num_without_scale
from darts_ddssm.series.likelihoods import family_of
from darts_ddssm.ssm.diffusion import MIN_SOLVER_STEPS
from darts_ddssm.ssm.state_space import StateSpaceModel
from darts_ddssm.training.lightning_module import _DDSSMModule, arguments_of
from darts_ddssm.validation import (
    as_python,
    check,
    check_bool,
    check_choice,
    check_integer,
    check_positive_integer,
    check_positive_number,
    check_share,
)

logger = get_logger(__name__)

# Arguments that may differ from those of the weights that are loaded.
FREE_PARAMS = (
    "num_solver_steps",
    "peak_kl_weight",
    "overshooting_weight",
    "gap_augmentation",
    "input_noise",
    "covariate_noise",
    "trend_augmentation",
)


Method = TypeVar("Method", bound=Callable[..., Any])


def _like(original: Callable[..., Any]) -> Callable[[Method], Method]:
    """Give a method docstring and signature of another, which darts reads."""

    def decorate(method: Method) -> Method:
        return cast(Method, wraps(original)(method))

    return decorate


@contextmanager
def _without_false_warning() -> Iterator[None]:
    """Let darts not warn that later values of past covariates are used: they are not."""

    def is_true(record: logging.LogRecord) -> bool:
        return "future values of your `past_covariates`" not in record.getMessage()

    source = logging.getLogger(forecasting_model.__name__)
    source.addFilter(is_true)
    try:
        yield
    finally:
        source.removeFilter(is_true)


def _num_batches(trainer: Trainer, loader: DataLoader) -> int:
    """Number of batches that each process of a trainer has in an epoch, at least one."""
    number = math.ceil(len(loader) / trainer.world_size)
    limit = trainer.limit_train_batches
    # a number of them, or a share
    number = min(number, limit) if isinstance(limit, int) else int(limit * number)
    return max(number, 1)


class DDSSMModel(LatentMethods):
    # The first step of the training series, blank: its components, frequency and type.
    _example: TimeSeries | None = None
    model: _DDSSMModule | None
    trainer: Trainer | None

    def __init__(
        self,
        input_chunk_length: int,
        output_chunk_length: int,
        output_chunk_shift: int = 0,
        latent_dim: int | None = None,
        transition_order: int | None = None,
        transition: str = "diffusion",
        hidden_size: int = 64,
        num_solver_steps: int = 12,
        peak_kl_weight: float = 1.0,
        overshooting_weight: float = 1.0,
        gap_augmentation: float = 0.25,
        input_noise: float | None = None,
        covariate_noise: float | None = None,
        trend_augmentation: float | None = None,
        patch_length: int | None = None,
        likelihood: TorchLikelihood | None = None,
        use_static_covariates: bool = True,
        use_reversible_instance_norm: bool | dict | None = None,
        n_epochs: int | None = None,
        **kwargs: Any,
    ) -> None:
        """A Diffusion-Driven State Space Model (DDSSM), after [1]_.

        A state-space model explains a series by a latent state that moves from step to
        step. Here the density of the next state given the past ones is a diffusion
        model, which can have several modes, be skewed or heavy-tailed. The usual deep
        state-space model has a Gaussian in its place. A recurrent encoder infers the
        state. All networks are trained together by the evidence lower bound (ELBO), with
        the KL to the diffusion model estimated by explicit score matching.

        A forecast draws the present state from its posterior, moves it forward step by
        step and draws an observation at each. Each sample is one joint path over all
        time steps and components. Within the output chunk nothing is fed back, and nor is
        it beyond where windows have the scale of the training set. Where each window has
        its own scale, the output chunk of each path is read as the next input chunk.
        However long the horizon is, the transition sees as many past states as a training
        window has.

        This model supports past, future and static covariates, univariate and
        multivariate, single and multiple series, probabilistic forecasts, and missing
        values: NaN in the target or in a covariate means "not observed".

        Beside forecasts it has methods for the latent side: :meth:`infer_latents`,
        :meth:`log_likelihood`, :meth:`impute`, :meth:`simulate` and
        :meth:`sample_transition`. :meth:`distill` makes all draws faster.

        Nothing needs scaling: the model takes the mean and the standard deviation of target
        and covariates from the training set. Series of very different scale may be in one
        training set, see ``use_reversible_instance_norm``. Covariates are clipped to the
        range that they had in training, widened by a tenth on each side. One that left its
        earlier range in the last third of the training series is seen relative to its mean
        in the input chunk.

        Training needs no settings either. The learning rate, the weight of the KL and the
        loss of forecasts follow schedules that end when training does, be that by
        ``n_epochs``, ``max_steps`` or ``max_time``.

        Parameters
        ----------
        input_chunk_length
            Number of time steps of the past that a forecast is conditioned on.
        output_chunk_length
            Number of time steps that follow the input chunk in a training window. A
            window of ``input_chunk_length + output_chunk_length`` steps is treated as
            one sequence. ``predict()`` takes any horizon `n`. Where windows have their own
            scale, each path goes on from its own level after every output chunk, and from
            its own spread where there is no trend.
        output_chunk_shift
            Optionally, the number of steps between the input chunk and the output
            chunk. The model treats them as missing values.
            As for all of darts' torch models, `n` is then limited to
            ``output_chunk_length``.
        latent_dim
            Dimension of the latent state. ``None`` takes 8 for series of one component and
            4 more for each further one, up to 64.
        transition_order
            Number of past states that the next one depends on. ``None`` for all of
            them, through a recurrent network.
        transition
            ``"diffusion"``, or ``"gaussian"`` for the deep state-space model with a
            Gaussian transition, the baseline to compare with.
        hidden_size
            Width of the hidden layers of all networks.
        num_solver_steps
            Number of network evaluations that draw one latent state of a forecast, at
            least 5. With 12, spreads of known densities and weights of their modes are
            right within 2 %, with 7 within 5 %, with 5 within 10 %. May be changed after
            training, by ``model.num_solver_steps = ...``. It has no effect on the draws of
            a sampler made by :meth:`distill`.
        peak_kl_weight
            Weight of the KL in the training loss midway in training. The weight starts
            low and is 1 at the end, where the loss is the negative ELBO. Above 1 it
            favours a latent that follows its own dynamics over one that copies the data
            with their noise, a choice that the ELBO itself leaves nearly open. Try 2
            where the dynamics are sharp and the observations noisy.
        overshooting_weight
            Weight of the forecast loss, a second term of the training loss from 30 % of
            the updates on: the windows of every fourth batch are forecast from their input
            chunks, and the term is the CRPS of these forecasts in normalised units. The
            ELBO alone trains single steps, whose errors add up over a long horizon, by
            states that have seen the whole window. ``0`` for the ELBO alone, which is
            faster. It has no effect with likelihoods other than the Gaussian, Laplace and
            Gumbel ones.
        gap_augmentation
            Share of the windows of each training batch of which a copy is added, with some
            values masked at random. Only the encoder is trained on these copies. They
            prepare it for gaps even where the training series have none. Where a window has
            gaps of its own, as long as a patch, its copy teaches the encoder what it would
            say if the masked values were known [3]_.
        input_noise
            Standard deviation of the noise that is added to what the encoder sees in the
            first 80 % of the training, in normalised units. It keeps the model from
            learning a few windows by heart, and the latent from copying the noise of the
            data. ``None`` takes a fifth of the level that suits a linear forecast by
            cross-validation, for which such noise is a ridge penalty: little where a series
            repeats itself, more where the past hardly tells what follows. Several
            components are forecast together, and C of them have sqrt(C) times as much. For
            more than 100 windows, sqrt(C) times as many of C components, it is less in
            inverse proportion to their number. It starts at 0.2 at least. ``0`` for none.
        covariate_noise
            Standard deviation of the noise that is added to past and future covariates in
            training, in normalised units. It keeps the model from learning by heart which
            training window it is in: by the covariates of a window it could tell. ``None``
            takes none where covariates come round, as those of a calendar do, and else the
            highest level up to 0.3 under which a linear forecast from past and covariates
            loses at most 5 % by cross-validation; up to 1 where covariates make it no
            better; 0.05 where they tell nearly all of what follows, or where the effect of
            future ones is far from linear. ``0`` for none.
        trend_augmentation
            Standard deviation of the linear trends that are added at random to half of the
            windows of each training batch: of their change over an input chunk, in
            normalised units. Forecasts then follow the trend of their past, and do not go
            on with the one that a short training series had. ``None`` takes 1 where each
            window is normalised by its input chunk (see ``use_reversible_instance_norm``)
            and there are at most 150 of them, less where there are more, and none for more
            than 900 or where all of their own trend is taken out. Where at most 900 windows
            are those of a random walk, half of them are also turned upside down: it may as
            well fall as rise. They are where their level is their last value, no linear
            forecast by the past, and none by a season, is better than the level by 10 %,
            ten series or more do not rise in another way than they fall, and there are no
            covariates. ``0`` for neither, as always with likelihoods that have no location
            and scale.
        patch_length
            Number of time steps that share one latent state. A long window then has few
            states, which makes training and forecasts faster and reaches further into the
            past. Within such a patch, observations are independent given its state.
            ``transition_order`` and :meth:`infer_latents` then count patches in place of
            time steps. With ``1`` each step has a state, as the study of the dynamics
            themselves wants. ``None`` means ``1`` for windows of fewer than 36 steps, and
            patches of about 1/24 of the window, or three steps, for longer ones: of such a
            length that they divide the output chunk evenly, and none longer than either
            chunk.
        likelihood
            The density of an observation given the state: any of darts' torch
            :meth:`likelihoods <darts.utils.likelihood_models.torch.TorchLikelihood>`
            with a density, so not ``QuantileRegression``. ``None`` for
            ``GaussianLikelihood()``. Counts and other values that are not negative may have
            any unit: the networks output mean and spread in normalised units.
        use_static_covariates
            Whether to use the static covariates of the target `series`, if there are
            any when the model is fitted.
        use_reversible_instance_norm
            Whether each window is normalised by the observed values of its input chunk, or
            a dictionary of arguments of darts' :class:`RINorm`. It takes forecasts beyond
            the range of the training set and serves series of different scale.
            :meth:`log_likelihood` is then that of what follows the first input chunk, and
            :meth:`simulate`, which would have no scale, is refused. It needs a likelihood
            of values that have a unit: not the Beta, Bernoulli, Dirichlet or continuous
            Bernoulli one. ``None`` switches it on where the training series drift or differ
            in scale, that is, where in their last third the input chunk's mean and spread
            predict the output chunk better than those of all that was known before, or, in
            many windows of series that keep returning to their mean, no worse than a linear
            forecast by the chunk's level. A season that is found is left out of this
            comparison. A chunk that hardly varies is divided by what the narrowest chunks
            of the training set that do vary have. The mean is that of those last steps of
            the chunk that predict the output chunk best: of one for a random walk, of a
            season where there are season and trend, of all steps where none are clearly
            better. Where the last values also tell, by a clear margin, how the level goes
            on, the trend that they have, or half of it, is taken out of the window, and
            forecasts go on with it. So is the season of the chunk, its mean over the last
            cycles, where there are at most 900 windows, a chunk has two cycles at least,
            and forecasts with it are better by 30 %. Its length is found in the training
            series.
        n_epochs
            Number of epochs of training. ``None`` for as many as make about 400 updates, up
            to 3,500 where there are many training windows, or many short series of which
            each step tells something new, and at least one epoch. A long series whose past
            says little of what follows, by simple forecasts, takes fewer updates, and so do
            windows whose season is taken out (see ``use_reversible_instance_norm``). If
            ``pl_trainer_kwargs`` has ``max_steps``, ``None`` leaves the end of training to
            it; ``max_time`` may end it earlier.
        **kwargs
            Optional arguments of the Lightning module, the trainer, and darts'
            :class:`TorchForecastingModel`, such as ``batch_size``,
            ``optimizer_cls``, ``optimizer_kwargs``, ``lr_scheduler_cls``,
            ``lr_scheduler_kwargs``, ``torch_metrics``, ``model_name``, ``work_dir``,
            ``save_checkpoints``, ``force_reset``, ``add_encoders``, ``random_state``
            and ``pl_trainer_kwargs``. They mean what they mean in
            `TiDEModel <https://unit8co.github.io/darts/generated_api/darts.models.forecasting.tide_model.html>`__,
            except that

            - ``loss_fn`` has no effect: the loss is the negative ELBO and that of
              forecasts, see ``overshooting_weight``;
            - without ``optimizer_cls``, ``optimizer_kwargs`` and ``lr_scheduler_cls`` the
              optimiser is SOAP [2]_. Its learning rate rises in the first tenth of the
              training, to 0.002 for few training windows and up to 0.005 for more than 600,
              and then falls to nearly zero along a cosine;
            - the gradient's norm is clipped at 1 unless ``pl_trainer_kwargs`` has a
              ``gradient_clip_val`` (``0`` for no clipping);
            - validation, checkpoints and forecasts use an exponential average of the
              weights.

        The notes below name all that differs.

        Raises
        ------
        ValueError
            If an argument is outside its range, unknown, or ``likelihood`` has no
            density.

        Notes
        -----
        What differs from darts' other torch models:

        - *Losses.* ``train_loss`` is the negative ELBO in nats per value of the data. The
          weight of its KL is 0.05 for the first 20 % of the updates and 1 from 40 % on.
          ``val_loss``, by which ``load_best=True`` and early stopping choose, is the mean
          CRPS of forecasts of the output chunk in normalised units, and
          ``val_negative_elbo`` is logged beside it: forecasts may long have become worse
          while single steps still improve. Without a forecast loss (see
          ``overshooting_weight``) ``val_loss`` is the negative ELBO, with a KL weight of 1.
        - *Past covariates* are inputs of the transition to the next state, which
          remembers earlier ones. They never have to reach beyond the end of the series,
          whatever ``n``.
        - ``predict_likelihood_parameters=True`` gives the parameters of the predictive
          marginal over latent paths: mean and standard deviation for
          ``GaussianLikelihood`` (of the logarithm for ``LogNormalLikelihood``), the
          probability for ``BernoulliLikelihood``. It is an error for other families, whose
          mixtures are not of the family.
        - ``torch_metrics`` compare one sample of the forecast from the input chunk with the
          output chunk.
        - ``gridsearch()`` compares forecasts of ``num_samples=100`` samples with a fixed
          seed, where darts draws one sample.
        - ``to_onnx()`` is an error: darts' ONNX runner takes graphs without randomness.
        - ``roll_size`` and ``mc_dropout`` have no effect in ``predict()``: a path goes on
          by whole output chunks, and there is no dropout.
        - To load a saved model in a new process, ``import darts_ddssm`` first. darts' safe
          loader otherwise says that ``darts_ddssm.model.DDSSMModel`` is not allow-listed.

        References
        ----------
        .. [1] E. Ruder and M. Wojnowicz, "Diffusion-Driven State Space Models",
                https://arxiv.org/abs/2606.21036
        .. [2] N. Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam",
                https://arxiv.org/abs/2409.11321
        .. [3] R. Strauss and J. Oliva, "Posterior Matching for Arbitrary Conditioning",
                NeurIPS 2022.

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
        # neither files nor Lightning take scalars of numpy
        self.model_params.update(as_python(self.model_params))
        check_positive_integer("input_chunk_length", input_chunk_length)
        check_positive_integer("output_chunk_length", output_chunk_length)
        check_integer("output_chunk_shift", output_chunk_shift, least=0)
        if latent_dim is not None:
            check_positive_integer("latent_dim", latent_dim)
        if transition_order is not None:
            check_positive_integer("transition_order", transition_order)
        check_choice("transition", transition, ("diffusion", "gaussian"))
        check_positive_integer("hidden_size", hidden_size)
        check_integer("num_solver_steps", num_solver_steps, least=MIN_SOLVER_STEPS)
        check_positive_number("peak_kl_weight", peak_kl_weight)
        check_positive_number("overshooting_weight", overshooting_weight, or_zero=True)
        check_share("gap_augmentation", gap_augmentation)
        if input_noise is not None:
            check_positive_number("input_noise", input_noise, or_zero=True)
        if covariate_noise is not None:
            check_positive_number("covariate_noise", covariate_noise, or_zero=True)
        if trend_augmentation is not None:
            check_positive_number("trend_augmentation", trend_augmentation, or_zero=True)
        if patch_length is not None:
            check_positive_integer("patch_length", patch_length)
            check(
                patch_length <= input_chunk_length,
                "`patch_length` must be at most `input_chunk_length`, "
                f"{input_chunk_length}, got {patch_length}.",
            )
        check(
            not isinstance(likelihood, QuantileRegression),
            "`likelihood` must be a density, got `QuantileRegression`, which is not one. "
            "Use e.g. `GaussianLikelihood()`: the quantiles of a forecast are read off its "
            "samples (`forecast.quantile(0.9)`).",
        )
        check(
            likelihood is None or isinstance(likelihood, TorchLikelihood),
            "`likelihood` must be one of darts' torch likelihoods or `None`, got "
            f"`{likelihood!r}`.",
        )
        likelihood = likelihood or GaussianLikelihood()
        check_bool("use_static_covariates", use_static_covariates)
        check_instance_norm(use_reversible_instance_norm)
        check_positive_integer("batch_size", kwargs.get("batch_size", 1))
        if n_epochs is not None:
            check_positive_integer("n_epochs", n_epochs)
        check(
            not use_reversible_instance_norm or family_of(likelihood).has_unit,
            "`use_reversible_instance_norm` must be `False` for a likelihood of values "
            f"without a unit, such as shares, got `{likelihood}`.",
        )
        super().__init__(**self._extract_torch_model_params(**self.model_params))

        self.pl_module_params = self._extract_pl_module_params(**self.model_params)
        self.pl_module_params["likelihood"] = likelihood
        self._considers_static_covariates = use_static_covariates
        for name, value in self._hyperparameters.items():
            setattr(self, name, value)
        # what is chosen where there is no `patch_length`
        self._patch_length = self.model_params["patch_length"] or automatic_patch_length(
            chunk_lengths(self)
        )

    @property
    def _hyperparameters(self) -> dict[str, Any]:
        """Arguments for the Lightning module and the state-space model, by name."""
        of_module = arguments_of(_DDSSMModule, self.model_params)
        return of_module | arguments_of(StateSpaceModel, self.model_params)

    @property
    def num_solver_steps(self) -> int:
        """Number of network evaluations that draw one time step of a forecast."""
        return self._num_solver_steps

    @num_solver_steps.setter
    def num_solver_steps(self, value: int) -> None:
        check_integer("num_solver_steps", value, least=MIN_SOLVER_STEPS)
        # an untrained copy of the model has as many
        self._num_solver_steps = self._model_params["num_solver_steps"] = int(value)

    @property
    def supports_static_covariates(self) -> bool:
        return True

    @property
    def _ckpt_skipped_params(self) -> list[str]:
        # the last two are checked below, by what became of `None`
        return [*super()._ckpt_skipped_params, *FREE_PARAMS, "patch_length", "latent_dim"]

    def _check_ckpt_parameters(self, tfm_save: "DDSSMModel") -> None:
        super()._check_ckpt_parameters(tfm_save)
        num_components = tfm_save.train_sample.component_dims()["past_target"]
        dim = self.model_params["latent_dim"] or automatic_latent_dim(num_components)
        for name, own, saved in (
            ("patch_length", self._patch_length, tfm_save._patch_length),
            ("latent_dim", dim, tfm_save.latent_dim),
        ):
            check(
                own == saved,
                f"`{name}` must be that of the loaded checkpoint, {saved}, got {own}.",
            )
        self._example = tfm_save._example

    def __getstate__(self) -> dict[str, Any]:
        # darts leaves the weights out, so that a copy would be fitted and have none
        state: dict[str, Any] = super().__getstate__()
        if self.model is not None:
            # as bytes, which darts' safe loader takes wherever a copy is in a file
            buffer = BytesIO()
            torch.save(self.model.state_dict(), buffer)
            state["weights"] = buffer.getvalue()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = state.pop("weights", None)
        super().__setstate__(state)
        # of models that earlier versions saved
        params = self._model_params
        params.setdefault("patch_length", 1)
        if "_patch_length" not in state:
            # they cut windows of more than 48 steps into about twelve
            length = chunk_lengths(self).window
            longest = length // 12 if length > 48 else 1
            chosen = even_patch_length(self.output_chunk_length, longest)
            self._patch_length = params["patch_length"] or chosen
        params.setdefault("n_epochs", 100)
        params.setdefault("input_noise", None)
        params.setdefault("covariate_noise", None)
        params.setdefault("trend_augmentation", None)
        steps = max(self._num_solver_steps, MIN_SOLVER_STEPS)
        self._num_solver_steps = params["num_solver_steps"] = steps
        if "gap_practice" in params:
            self.gap_augmentation = params["gap_augmentation"] = params.pop("gap_practice")
        if state["_module_path"] == "darts_ddssm.module":
            self._module_path = _DDSSMModule.__module__
        if weights is not None:
            values = torch.load(BytesIO(weights), map_location="cpu", weights_only=True)
            module = self._create_model(self.train_sample)
            module.to(values["target_shift"].dtype).load_state_dict(values)
            self.model = module

    def _create_model(self, train_sample: TorchTrainingSample) -> _DDSSMModule:
        sizes = train_sample.component_dims()
        static = train_sample.static_covariates
        # a value and a flag of each
        static_size = 2 * (static.size if static is not None else 0)
        input_size = 2 * (sizes["future_covariates"] or 0) + static_size
        num_components = sizes["past_target"]
        if self.model_params["latent_dim"] is None:
            self.latent_dim = automatic_latent_dim(num_components)
            if num_components > 1:
                say_once(
                    f"`DDSSMModel` has latent states of {self.latent_dim} dimensions, by "
                    "the number of components. Pass `latent_dim` to decide it yourself."
                )
        if self.model_params["patch_length"] is None and self._patch_length > 1:
            say_once(
                f"`DDSSMModel` cuts a window of {chunk_lengths(self).window} steps into "
                f"patches of {self._patch_length} steps with a latent state each. Pass "
                "`patch_length` to decide it yourself, 1 for a state at each step."
            )
        arguments = (
            self.pl_module_params
            | self._hyperparameters
            | {
                "num_components": num_components,
                "latent_dim": self.latent_dim,
                "num_parameters": self.likelihood.num_parameters,
                "input_size": input_size,
                "past_size": 2 * (sizes["past_covariates"] or 0),
                "static_size": static_size,
                "num_solver_steps": self.num_solver_steps,
                "patch_length": self._patch_length,
            }
        )
        return _DDSSMModule(**arguments)

    @_like(MixedCovariatesTorchModel._setup_trainer)
    def _setup_trainer(
        self,
        trainer: Trainer | None,
        model: _DDSSMModule,
        verbose: bool | None = None,
        epochs: int | None = None,
    ) -> Trainer:
        # a trainer that only forecasts takes any number, and where the length of a training
        # is left open, it is set later
        return super()._setup_trainer(trainer, model, verbose, epochs or 1)

    def _setup_for_train(
        self,
        train_dataset: TorchTrainingDataset,
        val_dataset: TorchTrainingDataset | None = None,
        trainer: Trainer | None = None,
        verbose: bool | None = None,
        epochs: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        self._verify_train_dataset_type(train_dataset)
        check_training_set(self, "train_dataset", train_dataset)
        if val_dataset is not None:
            check_training_set(self, "val_dataset", val_dataset)
        series, is_new = training_series(train_dataset), self.model is None
        if series and (is_new or self._example is None):
            # now, since darts saves the model without its weights in the following call
            first = series[0][:1]
            self._example = first.with_values(np.full(first.shape[:2], np.nan))
        # a trainer of the user's has its own length
        length_is_open = trainer is None and epochs == 0 and self.n_epochs is None
        params = super()._setup_for_train(
            train_dataset, val_dataset, trainer, verbose, epochs, *args, **kwargs
        )
        module, trainer = params["model"], params["trainer"]
        loader = params["datamodule"].train_dataloader()
        check(
            len(loader) > 0,
            f"`dataloader_kwargs` must leave a batch of {len(train_dataset)} training "
            "windows, got none: with `drop_last`, `batch_size` must not be larger.",
        )
        recipe = TrainingRecipe(self, train_dataset)
        recipe.advise_on_counts()
        scales = recipe.scales
        if is_new:
            if self.trainer_params["precision"] == "64-true":
                # Lightning would cast it later, the scale already rounded.
                module.double()
            module.set_scales(*scales)
        module.input_noise = recipe.input_noise
        module.covariate_noise = recipe.covariate_noise
        if recipe.sees_lags:
            module.ssm.transition.context.see_lags()
        module.trend_augmentation, module.reflects = recipe.augmentation
        if length_is_open:
            num_batches = _num_batches(trainer, loader)
            trainer.fit_loop.max_epochs = recipe.num_epochs(trainer, num_batches)
        if module.has_own_recipe:
            module.peak_learning_rate = recipe.learning_rate
        return params

    def _setup_for_fit_from_dataset(self, series: Any, *args: Any, **kwargs: Any) -> Any:
        check_series("series", series)
        for name in ("sample_weight", "val_sample_weight"):
            check_weights(name, kwargs.get(name))
        # the validation set has the type of the training set
        dtype = series2seq(series)[0].dtype
        for name in ("val_series", "val_past_covariates", "val_future_covariates"):
            if kwargs.get(name) is not None:
                kwargs[name] = of_type(series2seq(kwargs[name]), dtype)
        return super()._setup_for_fit_from_dataset(series, *args, **kwargs)

    def _build_train_dataset(
        self,
        series: Sequence[TimeSeries],
        past_covariates: Sequence[TimeSeries] | None,
        future_covariates: Sequence[TimeSeries] | None,
        sample_weight: Sequence[TimeSeries] | str | None,
        max_samples_per_ts: int | None,
        stride: int = 1,
    ) -> TorchTrainingDataset:
        dtype = series[0].dtype if self.train_sample is None else data_type(self)
        # the data are checked with those of any dataset, when training is set up
        series, past_covariates, future_covariates = in_one_type(
            dtype, series, past_covariates, future_covariates
        )
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
        series, past_covariates, future_covariates = in_one_type(
            data_type(self), series, past_covariates, future_covariates
        )
        check_data(self, series, past_covariates, future_covariates)
        if bounds is None and cast(_DDSSMModule, self.model).has_instance_scale:
            number = num_without_scale(series, self.input_chunk_length)
            if number > 0:
                logger.warning(
                    f"`DDSSMModel`: {number} of {len(series)} series have a component "
                    f"without a value in the last {self.input_chunk_length} steps, whose "
                    "level the model takes. Its forecast is at the level of the training "
                    "set. `impute()` a series that goes on with missing values, to start "
                    "from the last value."
                )
        # Past covariates are not needed beyond the end of the series: to the dataset the
        # horizon is one output chunk. With a shift, darts refuses a longer horizon, and so
        # do we.
        length = self.output_chunk_length
        if not self.output_chunk_shift:
            length = max(n, length)
            if future_covariates is not None:
                if bounds is None:
                    check_future_covariates(series, future_covariates, length)
                # to the end of the last patch, as far as they are known
                whole = -(-length // self._patch_length) * self._patch_length
                if bounds is None:
                    future_covariates = [
                        known_until(covariates, one, length, whole)
                        for covariates, one in zip(future_covariates, series, strict=True)
                    ]
                else:
                    # darts has looked where they must reach, which is before their end
                    future_covariates = [
                        prolonged(covariates, whole - length)
                        for covariates in future_covariates
                    ]
                length = whole
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

    @_like(MixedCovariatesTorchModel.predict)
    def predict(
        self,
        n: int,
        series: TimeSeries | Sequence[TimeSeries] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        check_positive_integer("n", n)
        check_positive_integer("num_samples", kwargs.get("num_samples", 1))
        if series is not None:
            check_series("series", series)
        check_trained(self)
        with _without_false_warning():
            return super().predict(n, series, *args, **kwargs)

    @_like(MixedCovariatesTorchModel.historical_forecasts)
    def historical_forecasts(
        self,
        series: TimeSeries | Sequence[TimeSeries],
        past_covariates: TimeSeries | Sequence[TimeSeries] | None = None,
        future_covariates: TimeSeries | Sequence[TimeSeries] | None = None,
        forecast_horizon: int = 1,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        check_series("series", series)
        if past_covariates is not None:
            check_series("past_covariates", past_covariates)
        # darts starts no forecast whose past covariates end before its last output
        # chunk. As in `predict()`, they are not needed: to darts they go on, unknown.
        extra = forecast_horizon - self.output_chunk_length
        if isinstance(past_covariates, TimeSeries) and extra > 0:
            past_covariates = prolonged(past_covariates, extra)
        elif past_covariates is not None and extra > 0:
            past_covariates = [prolonged(one, extra) for one in past_covariates]
        with _without_false_warning():
            return super().historical_forecasts(
                series,
                past_covariates,
                future_covariates,
                forecast_horizon,
                *args,
                **kwargs,
            )

    def _train(
        self, trainer: Trainer, model: _DDSSMModule, *args: Any, **kwargs: Any
    ) -> None:
        drop_sampler(model.ssm.transition)
        try:
            super()._train(trainer, model, *args, **kwargs)
        except BaseException:
            # interrupted: what was learned so far stays usable
            if self.model is None and trainer.global_step > 0:
                self.model, self.trainer = model, trainer
            raise

    def _setup_for_predict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        cast(_DDSSMModule, self.model).num_solver_steps = self.num_solver_steps
        return super()._setup_for_predict(*args, **kwargs)

    def save(self, path: str | None = None, clean: bool = False) -> None:
        model = self.model
        if model is not None:
            # darts asks the trainer for the weights. There is none after loading. It may
            # hold other weights than the model: the last ones after `load_best`, the
            # fitted ones after `load_weights`.
            if self.trainer is None:
                self.trainer = self._setup_trainer(None, model, verbose=False)
            if self.trainer.lightning_module is not model:
                model.take_over(self.trainer)
        # the weights have a file of their own
        self.model = None
        try:
            super().save(path, clean)
        finally:
            self.model = model

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
        search = super(DDSSMModel, Candidate).gridsearch  # type: ignore[misc]
        _, best, score = search(
            parameters, series, *args, random_state=random_state, **kwargs
        )
        return model_class(**best), best, score
