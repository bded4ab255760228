"""
The model as a forecaster of sktime: :class:`DDSSMForecaster`.
"""

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from darts.utils.likelihood_models.torch import TorchLikelihood

from darts_ddssm.estimator.sequences import prolonged
from darts_ddssm.model import DDSSMModel
from darts_ddssm.sktime.time_index import (
    Instances,
    Key,
    check_columns,
    check_observed,
    check_rows,
    columns_of,
    frequency,
    grid,
    instances,
    joined,
    merged,
    num_seen,
    steps,
    steps_ahead,
    with_frequency,
)
from darts_ddssm.validation import check, check_positive_integer

try:
    from sktime.forecasting.base import BaseForecaster, ForecastingHorizon
except ModuleNotFoundError as error:
    raise ImportError(
        "`darts_ddssm.sktime` must have sktime and skpro, which are not installed. Install "
        'them in a clone of this repository by `pip install ".[sktime]"`.'
    ) from error

if TYPE_CHECKING:
    from skpro.distributions import Empirical

# Under which a model is saved for a moment.
FILE = "model.pt"


class DDSSMForecaster(BaseForecaster):
    """A Diffusion-Driven State Space Model (DDSSM) for sktime.

    The same model as :class:`darts_ddssm.DDSSMModel`: a state-space model whose latent
    transition is a diffusion model [1]_, which forecasts by joint sample paths. Past and
    static covariates, encoders and a validation set are darts' alone. The index of the
    data is a range, periods, or dates of a regular frequency.

    - ``predict_proba`` returns all ``num_samples`` paths as skpro's ``Empirical``: its
      ``spl`` holds them, and with ``marginal=False`` its ``sample`` draws whole paths.
      ``predict`` is the mean of these paths; quantiles, intervals and variances are
      theirs too. Calls with the same horizon return the same paths.
    - A panel or a hierarchy is fitted by one global model, in which every node is a
      series, totals included; forecasts of a hierarchy do not add up unless sktime's
      ``ReconcilerForecaster`` makes them. For one model per series, use
      ``ForecastByLevel(forecaster, groupby="local")``.
    - A relative horizon counts from the end of each series, an absolute one is the same
      for all. In-sample horizons are not supported.
    - ``X`` is known in the future: it must have a row at each time of ``y`` and of the
      horizon, in ``fit`` or later.
    - NaN in ``y`` or ``X``, and times in between without a row, are missing values: the
      model takes them as not observed.
    - ``update`` with ``update_params=False`` forecasts from the new data with the present
      weights; with ``True``, unless it is pretrained, it fits anew to all data seen, since
      training has a schedule that does not continue.
    - ``pretrain`` trains on a panel; called again, it goes on from its weights. ``fit``
      then trains nothing: it only tells which series to forecast, seen before or not.
    - In a pipeline, transform the target value by value, e.g. by a logarithm. Differences
      are undone by sktime for each quantile alone, as if that were a path.

    Neither ``y`` nor ``X`` needs scaling. Values are taken in float32 unless
    ``pl_trainer_kwargs`` has ``"precision": "64-true"``.

    Parameters
    ----------
    input_chunk_length
        Number of time steps of the past that a forecast is conditioned on. What lies
        before the start of a shorter series is missing.
    output_chunk_length
        Number of time steps that follow the input chunk in a training window. The
        horizon may be longer.
    latent_dim
        Dimension of the latent state. ``None`` to choose it by the number of components.
    transition_order
        Number of past states that the next one depends on. ``None`` for all of them.
    transition
        ``"diffusion"``, or ``"gaussian"`` for the deep state-space model with a Gaussian
        transition.
    hidden_size
        Width of the hidden layers of all networks.
    num_solver_steps
        Number of network evaluations that draw one latent state of a forecast.
    peak_kl_weight
        Weight of the KL in the training loss midway in training.
    overshooting_weight
        Weight of the forecast loss in the training loss.
    gap_augmentation
        Share of the windows of each training batch of which a copy is added, with some
        values masked at random.
    input_noise
        Standard deviation of the noise that is added to what the encoder sees in training,
        in normalised units. ``None`` to choose it by cross-validation.
    covariate_noise
        Standard deviation of the noise that is added to covariates in training, in
        normalised units. ``None`` to choose it by cross-validation.
    trend_augmentation
        Standard deviation of the linear trends that are added at random to half of the
        windows in training. ``None`` to have them where windows are few and drift, and
        some of these windows upside down too. ``0`` for neither.
    patch_length
        Number of time steps that share one latent state. ``None`` for 1 in windows of
        fewer than 36 steps, and for about 1/24 of longer ones, at least three steps, but no
        more than the output chunk has.
    likelihood
        The density of an observation given the state, one of darts' torch likelihoods.
        ``None`` for ``GaussianLikelihood()``.
    use_reversible_instance_norm
        Whether each window is normalised by its input chunk. ``None`` to have it so where
        the training series drift.
    batch_size
        Number of windows in a training batch.
    n_epochs
        Number of passes through the training windows. ``None`` for as many as make
        between 200 and 3,500 updates, one epoch at least, by the training set, unless
        ``pl_trainer_kwargs`` has ``max_steps``.
    optimizer_cls, optimizer_kwargs
        Class and arguments of the optimiser. ``None`` for the model's own.
    lr_scheduler_cls, lr_scheduler_kwargs
        Class and arguments of the learning rate's scheduler. ``None`` for the model's own
        schedule, or a constant rate if the optimiser is given.
    pl_trainer_kwargs
        Arguments of Lightning's trainer, such as
        ``{"accelerator": "cpu", "enable_progress_bar": False}``.
    num_samples
        Number of sample paths of a forecast.
    random_state
        Seed of training and of forecasts. ``None`` for another one at each ``fit``, which
        then holds for all its forecasts.

    Attributes
    ----------
    model_ : DDSSMModel
        The trained darts model, whose steps are numbers instead of times.

    Raises
    ------
    ValueError
        By ``fit``, ``update`` and ``predict``, if an argument is outside its range, an
        index has no regular frequency, a series has infinite or no values, ``X`` does not
        go with ``y``, or columns are in other places than in ``pretrain``.

    See Also
    --------
    darts_ddssm.DDSSMModel : What the arguments do, in full.

    References
    ----------
    .. [1] E. Ruder and M. Wojnowicz, "Diffusion-Driven State Space Models",
            https://arxiv.org/abs/2606.21036

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from darts_ddssm.sktime import DDSSMForecaster
    >>> forecaster = DDSSMForecaster(
    ...     input_chunk_length=24,
    ...     output_chunk_length=12,
    ...     n_epochs=1,
    ...     num_samples=50,
    ...     random_state=0,
    ...     pl_trainer_kwargs={"accelerator": "cpu", "enable_progress_bar": False},
    ... )
    >>> forecaster = forecaster.fit(load_airline())
    >>> forecaster.predict(fh=[1, 12]).index.astype(str).to_list()
    ['1961-01', '1961-12']
    >>> forecaster.predict_proba(fh=[1, 12]).spl.shape  # 50 paths of two steps
    (100, 1)
    """

    _tags = {
        "authors": ["darts-ddssm developers"],
        "maintainers": ["darts-ddssm developers"],
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:categorical_in_X": False,
        "capability:unequal_length": True,
        "capability:update": True,
        "capability:pretrain": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "pretrain:fitted_params": ["pretrained_"],
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "requires-fh-in-fit": False,
    }

    # `update` keeps the data that it needs by itself
    _config = {"remember_data": False}

    def __init__(
        self,
        input_chunk_length: int,
        output_chunk_length: int,
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
        use_reversible_instance_norm: bool | dict | None = None,
        batch_size: int = 32,
        n_epochs: int | None = None,
        optimizer_cls: type[torch.optim.Optimizer] | None = None,
        optimizer_kwargs: dict[str, Any] | None = None,
        lr_scheduler_cls: type[torch.optim.lr_scheduler.LRScheduler] | None = None,
        lr_scheduler_kwargs: dict[str, Any] | None = None,
        pl_trainer_kwargs: dict[str, Any] | None = None,
        num_samples: int = 500,
        random_state: int | None = None,
    ) -> None:
        # sktime finds each argument as an attribute of its name
        own = ("self", "__class__")
        self.__dict__.update({k: v for k, v in locals().items() if k not in own})
        super().__init__()
        # in case the user switches `remember_data` on later
        self._y = self._X = None

    pretrained_: "_Trained"

    def __setstate__(self, state: dict[str, Any]) -> None:
        # of forecasters that earlier versions pickled
        if "gap_practice" in state:
            state["gap_augmentation"] = state.pop("gap_practice")
        state.setdefault("input_noise", None)
        state.setdefault("covariate_noise", None)
        state.setdefault("trend_augmentation", None)
        if "_seen_y" in state and "_freq" not in state:
            state["_freq"] = frequency(rows.index for rows in state["_seen_y"].values())
        self.__dict__.update(state)

    @property
    def model_(self) -> DDSSMModel:
        """The trained darts model, whose steps are numbers instead of times."""
        return self._trained.model

    def _fit(
        self, y: pd.DataFrame, X: pd.DataFrame | None, fh: ForecastingHorizon | None
    ) -> "DDSSMForecaster":
        check_positive_integer("num_samples", self.num_samples)
        self._index_names = y.index.names
        self._seen_y = instances("y", y)
        self._seen_X: Instances | None = None if X is None else instances("X", X)
        self._seed = self.random_state
        if self._seed is None:
            self._seed = int(torch.randint(2**31, ()))
        self._train_unless_pretrained()
        return self

    def _update(
        self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True
    ) -> "DDSSMForecaster":
        new = instances("y", y)
        seen = merged("y", self._seen_y, new)
        # Where the cutoff was set back, as in a backtest, later data are not known yet.
        ends = {key: seen[key].loc[: rows.index[-1]] for key, rows in new.items()}
        self._seen_y, self._seen_X = seen | ends, self._known_X(X)
        if update_params:
            self._train_unless_pretrained()
        return self

    def _pretrain(
        self,
        y: pd.DataFrame,
        X: pd.DataFrame | None = None,
        fh: ForecastingHorizon | None = None,
    ) -> "DDSSMForecaster":
        model = self._untrained_model()
        series = instances("y", y)
        covariates = None if X is None else instances("X", X)
        # called again, it goes on from the weights there are
        if hasattr(self, "pretrained_"):
            self._check_columns(series, covariates)
            self.pretrained_.give_weights(model)
        freq = frequency(rows.index for rows in series.values())
        self._train(model, series, covariates, freq)
        self.pretrained_ = _Trained(model)
        self.pretrained_columns_ = {
            name: columns_of(one)
            for name, one in (("y", series), ("X", covariates))
            if one is not None
        }
        return self

    def _check_columns(self, y: Instances, X: Instances | None) -> None:
        """Refuse columns in other places than in `pretrain`, by which weights know them.

        They may have other names.
        """
        # none are known in forecasters that earlier versions pickled
        known = getattr(self, "pretrained_columns_", {})
        for name, given in (("y", y), ("X", X)):
            if given is not None and name in known:
                columns, expected = columns_of(given), known[name]
                is_moved = any(
                    column in columns and columns.index(column) != i
                    for i, column in enumerate(expected)
                )
                if is_moved or len(columns) != len(expected):
                    check_columns(name, columns, expected, "pretrain")

    def _predict(self, fh: ForecastingHorizon, X: pd.DataFrame | None) -> pd.DataFrame:
        index, columns, paths = self._sample_paths(fh, X)
        return pd.DataFrame(paths.mean(0), index=index, columns=columns)

    def _predict_proba(
        self, fh: ForecastingHorizon, X: pd.DataFrame | None, marginal: bool = True
    ) -> "Empirical":
        from skpro.distributions import Empirical

        index, columns, paths = self._sample_paths(fh, X)
        num_samples, num_rows, _ = paths.shape
        rows = np.tile(np.arange(num_rows), num_samples)
        levels = [index.get_level_values(i)[rows] for i in range(index.nlevels)]
        levels.insert(0, np.repeat(np.arange(num_samples), num_rows))
        return Empirical(
            pd.DataFrame(
                paths.reshape(len(rows), -1),
                index=pd.MultiIndex.from_arrays(levels),
                columns=columns,
            ),
            time_indep=marginal,
            skip_init_sorted=True,  # slow for many series; skpro sorts when it has to
            index=index,
            columns=columns,
        )

    def _train_unless_pretrained(self) -> None:
        self._freq = frequency(rows.index for rows in self._seen_y.values())
        pretrained = getattr(self, "pretrained_", None)
        if pretrained is None:
            model = self._untrained_model()
            self._train(model, self._seen_y, self._seen_X, self._freq)
            self._trained = _Trained(model)
            return
        takes_X = pretrained.model.uses_future_covariates
        check(
            takes_X == (self._seen_X is not None),
            "`X` must be passed to both of `pretrain` and `fit` or to neither, got it in "
            f"`{'pretrain' if takes_X else 'fit'}` alone.",
        )
        self._check_columns(self._seen_y, self._seen_X)
        self._trained = pretrained

    def _untrained_model(self) -> DDSSMModel:
        arguments = self.get_params(deep=False)
        del arguments["num_samples"]
        # None is the default wherever darts takes it. Callbacks in them have a state.
        arguments = {k: deepcopy(v) for k, v in arguments.items() if v is not None}
        return DDSSMModel(**arguments)

    def _train(
        self,
        model: DDSSMModel,
        y: Instances,
        X: Instances | None,
        freq: pd.offsets.BaseOffset | None,
    ) -> None:
        times = {key: rows.index for key, rows in y.items()}
        grids = {key: grid(index, index[-1], freq) for key, index in times.items()}
        targets, covariates = self._series(y, X, grids)
        model.fit(targets, future_covariates=covariates)

    def _series(
        self, y: Instances, X: Instances | None, grids: dict[Key, pd.Index]
    ) -> tuple[list[TimeSeries], list[TimeSeries] | None]:
        """Targets, to the end of each series, and covariates, to that of its grid."""
        precision = str((self.pl_trainer_kwargs or {}).get("precision"))
        dtype = np.float64 if "64" in precision else np.float32
        window = self.input_chunk_length + self.output_chunk_length
        targets, covariates = [], []
        for key, rows in y.items():
            check_observed(key, rows)
            seen = grids[key][: num_seen(rows, grids[key])]
            # what lies before the start of a short series is missing
            before = max(window - len(seen), 0)
            targets.append(steps("y", key, rows, seen, before, dtype))
            if X is not None:
                check_rows(X, key, rows.index)
                covariates.append(steps("X", key, X[key], grids[key], before, dtype))
        return targets, covariates or None

    def _sample_paths(
        self, fh: ForecastingHorizon, X: pd.DataFrame | None
    ) -> tuple[pd.Index, pd.Index, np.ndarray]:
        """Draw joint sample paths, the same ones at each call.

        Returns
        -------
        index
            R rows: the times of the horizon, for each series if there are several.
        columns
            C names.
        paths
            Samples, (S, R, C).
        """
        y, X, freq = self._seen_y, self._known_X(X), self._freq
        horizon = ForecastingHorizon(fh.to_pandas(), fh.is_relative, freq)
        times, grids, chosen = {}, {}, []
        for key, rows in y.items():
            times[key] = horizon.to_absolute_index(with_frequency(rows.index[-1:], freq))
            grids[key] = grid(rows.index, max(times[key].max(), rows.index[-1]), freq)
            chosen.append(steps_ahead(rows, grids[key], times[key]))
            if X is not None:
                check_rows(X, key, times[key])
        n = max(ahead.max() for ahead in chosen)
        targets, covariates = self._series(y, X, grids)
        if covariates is not None:
            # darts asks for whole output chunks, and for the longest horizon of all series
            extra = max(n, self.output_chunk_length)
            covariates = [prolonged(one, extra) for one in covariates]
        forecasts = self.model_.predict(
            n,
            targets,
            future_covariates=covariates,
            num_samples=self.num_samples,
            random_state=self._seed,
        )
        # (n, C, S) -> (S, steps of the horizon, C)
        paths = [
            forecast.all_values()[ahead - 1].transpose(2, 0, 1).astype(np.float64)
            for forecast, ahead in zip(forecasts, chosen, strict=True)
        ]
        index = joined(times, self._index_names)
        return index, next(iter(y.values())).columns, np.concatenate(paths, axis=1)

    def _known_X(self, X: pd.DataFrame | None) -> Instances | None:
        """Rows of X seen so far, and those that are new."""
        if X is None:
            return self._seen_X
        check(
            self._seen_X is not None,
            "`X` must be passed to `fit` if it is to be used later, got it only later.",
        )
        return merged("X", cast(Instances, self._seen_X), instances("X", X))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return settings that train in a moment, for sktime's checks.

        Parameters
        ----------
        parameter_set
            Name of a set of settings; there is one.

        Returns
        -------
        list of dict
            Arguments of two forecasters.
        """
        tiny = {
            "input_chunk_length": 4,
            "output_chunk_length": 2,
            "latent_dim": 2,
            "hidden_size": 4,
            "num_solver_steps": 5,
            "n_epochs": 1,
            "num_samples": 10,
            "random_state": 0,
            "pl_trainer_kwargs": {
                "accelerator": "cpu",
                "enable_model_summary": False,
                "enable_progress_bar": False,
                "logger": False,
                "max_steps": 1,
            },
        }
        other = {"transition": "gaussian", "transition_order": 1, "overshooting_weight": 0}
        return [tiny, tiny | other]


class _Trained:
    """A trained model, whole in pickle and deepcopy; darts' own lose their weights."""

    def __init__(self, model: DDSSMModel) -> None:
        self.model = model

    def give_weights(self, model: DDSSMModel) -> None:
        """Let the weights of a new model be these."""
        with TemporaryDirectory() as folder:
            path = str(Path(folder, FILE))
            self.model.save(path)
            model.load_weights(path)

    def __getstate__(self) -> dict[str, bytes]:
        with TemporaryDirectory() as folder:
            self.model.save(str(Path(folder, FILE)))
            return {file.name: file.read_bytes() for file in Path(folder).iterdir()}

    def __setstate__(self, files: dict[str, bytes]) -> None:
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            # Lightning moves it to where it trains and forecasts
            self.model = DDSSMModel.load(str(Path(folder, FILE)), map_location="cpu")
