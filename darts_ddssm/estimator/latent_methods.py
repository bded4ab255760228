"""
The public methods of the latent side: states, likelihood, gaps, simulation, dynamics.

The last of them makes the draws of all others, and of forecasts, faster.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from abc import ABC
from typing import Self

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel
from darts.utils.torch import random_method

from darts_ddssm.estimator.data_checks import (
    check_covariates,
    check_fitted,
    check_training_scale,
)
from darts_ddssm.estimator.distillation import distil_transition
from darts_ddssm.estimator.questions import (
    answers,
    ask,
    ask_by_window,
    ask_filtered,
    ask_predicted,
    histories_of,
    transition_question,
)
from darts_ddssm.estimator.sequences import (
    Series,
    blank_series,
    sample_of,
    whole_series,
)
from darts_ddssm.estimator.spans import (
    check_is_predicted,
    is_as_in_training,
    predicted_values,
)
from darts_ddssm.series.inference import (
    Imputation,
    LogLikelihood,
    PredictiveLogDensities,
    ProbabilityTransforms,
    Simulation,
    SmoothedStates,
)
from darts_ddssm.ssm.distillation import PLACES
from darts_ddssm.ssm.transition import DiffusionTransition
from darts_ddssm.validation import (
    check,
    check_bool,
    check_positive_integer,
)


def _after_nan(x: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Put as many NaN before values as an axis of a length needs."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (length - x.shape[axis], 0)
    return np.pad(x, widths, constant_values=np.nan)


class LatentMethods(MixedCovariatesTorchModel, ABC):
    """Methods of a darts model that has a latent state."""

    @random_method
    def infer_latents(
        self,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_samples: int = 100,
        filtering: bool = False,
        batch_size: int | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> Series:
        """Draw the latent states behind a series.

        Smoothing: each sample is one joint path of the states given the whole series.
        With ``filtering=True``, each state is drawn independently, given the input chunk
        that ends at its step, and the samples are no joint paths.

        States have no units and no order, and another training bends them. Compare them
        with known quantities through a regression, with each other within one model.

        With ``use_reversible_instance_norm``, or a covariate that rises or falls as time
        goes on, which is seen relative to an input chunk, a long series is cut into
        overlapping windows of the length of a training window, and samples are joint paths
        within each.

        In a gap of the series, paths follow the learned dynamics, and those that meet the
        observations after it are kept [1]_. Where several ways lead through a gap, they
        take each of them. A warning says where hardly one arrived and the paths of the
        encoder, which may be too sure, were taken.

        Parameters
        ----------
        series
            One or several series of at least ``input_chunk_length`` steps, longer than a
            training window if you like, with NaN where a value is missing. ``None`` for
            the training series, if there was only one.
        past_covariates
            As in training. Where they end before the series, they are unknown.
        future_covariates
            As in training. They must cover the series.
        num_samples
            Number of samples of the states.
        filtering
            Whether to condition each state on the past alone: on the last
            ``input_chunk_length`` steps, as a forecast does.
        batch_size
            Number of series that are treated at once; with ``filtering``, of their pasts.
            The training batch size by default.
        verbose
            Whether to show progress.
        random_state
            Seed of the samples.

        Returns
        -------
        TimeSeries or list of TimeSeries
            States of each series on its time index: components ``"z_0"``, ``"z_1"``, ...
            with ``num_samples`` samples. With ``patch_length`` above 1, the smoothed state
            of a patch is given at its last step, and the last patch ends with the series.

        Raises
        ------
        ValueError
            If the model is not fitted, a series is shorter than ``input_chunk_length``,
            or the covariates do not fit.

        References
        ----------
        .. [1] Chopin and Papaspiliopoulos, "An Introduction to Sequential Monte Carlo",
               Springer 2020.
        .. [2] Ruder and Wojnowicz, arXiv 2606.21036: the posterior that training fits.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> quiet = {"enable_progress_bar": False}
        >>> model = DDSSMModel(
        ...     12, 6, latent_dim=2, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet
        ... )
        >>> latents = model.fit(series).infer_latents(num_samples=20)
        >>> latents.components.to_list(), latents.n_timesteps, latents.n_samples
        (['z_0', 'z_1'], 60, 20)
        """
        check_positive_integer("num_samples", num_samples)
        check_bool("filtering", filtering)
        sequence, samples, single = whole_series(
            self, "infer_latents", series, past_covariates, future_covariates
        )
        every, how = 1, (num_samples, batch_size, verbose)
        if filtering:
            states = ask_filtered(self, samples, *how)
        else:
            # a smoothed state stands for the patch that ends with its step
            every = self.model.patch_length
            states = ask_by_window(self, SmoothedStates, samples, every, *how)
        names = [f"z_{i}" for i in range(states[0].shape[-1])]
        latents = [
            # (S, T, D) -> (T, D, S)
            TimeSeries(
                times=one.time_index[(len(one) - 1) % every :: every],
                values=z.transpose(1, 2, 0),
                components=names,
            )
            for one, z in zip(sequence, states, strict=True)
        ]
        return latents[0] if single else latents

    @random_method
    def log_likelihood(
        self,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_samples: int = 32,
        by_step: bool = False,
        batch_size: int | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> float | list[float] | Series:
        """Log-density of a series under the model, in nats per value or step by step.

        Use it to choose between models, on series that none of them was fitted to, and to
        find anomalies: the value of an unusual series is low. Densities are those of the
        data in its own units, so that a change of units by a factor shifts all values by
        its logarithm. Models can be compared that have the same ``input_chunk_length`` and
        ``use_reversible_instance_norm``, see below; a fitted model says what it has chosen.

        It is an importance-weighted estimate [1]_ over ``num_samples`` paths: of the
        posterior for a complete series of one or two training windows, and of a particle
        filter [2]_ for others. Gaps may be crossed in several ways, and along a long series
        the filter drops paths that have gone astray. On average the estimate does not
        exceed the true value, and it rises towards it with ``num_samples``. Densities of a
        diffusion transition are those of its probability flow [3]_, at a noise of 0.005 of
        the latent's scale.

        With ``by_step=True`` it is a series of the log-densities of each step given the
        steps before it, by the particle filter. A low value marks an anomaly where it
        happens. The filter goes step by step, which takes longer for a few series; the sum
        over its steps estimates the log-density of the series as well.

        With ``use_reversible_instance_norm``, the first values of a window set its scale
        and have no density. The log-density is then that of all that follows the first
        input chunk, given the chunk. It is by the particle filter, in stretches of an
        output chunk, each in the scale of the input chunk before it. With a covariate that
        rises or falls as time goes on, too, each of the stretches that follow a first
        window is given the input chunk before it alone.

        Parameters
        ----------
        series
            As for :meth:`infer_latents`. Missing values are integrated out.
        past_covariates, future_covariates
            As for :meth:`infer_latents`.
        num_samples
            Number of paths.
        by_step
            Whether to return the log-density of each step.
        batch_size, verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        float, TimeSeries or list of them
            Log-density of each series, divided by its number of observed values. With
            ``by_step``, those of its steps in nats, component ``"log_density"``, NaN where
            nothing is observed. With ``patch_length`` above 1, that of a patch is given at
            its last step. With ``use_reversible_instance_norm``, the values of the first
            input chunk do not count, and its steps are NaN.

        Raises
        ------
        ValueError
            As for :meth:`infer_latents`, and for a model with
            ``use_reversible_instance_norm`` if nothing is observed after the first input
            chunk of a series.

        Notes
        -----
        Above 16 latent dimensions the divergence of the flow is estimated by random
        probes (Hutchinson). Each log-density is then unbiased but noisy, and the noise
        raises the average over more than one path.

        References
        ----------
        .. [1] Burda et al., "Importance Weighted Autoencoders", ICLR 2016.
        .. [2] Chopin and Papaspiliopoulos, "An Introduction to Sequential Monte Carlo",
               Springer 2020.
        .. [3] Song et al., "Score-Based Generative Modeling through Stochastic
               Differential Equations", ICLR 2021.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> quiet = {"enable_progress_bar": False}
        >>> model = DDSSMModel(
        ...     12, 6, latent_dim=2, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet
        ... )
        >>> model = model.fit(series)
        >>> usual, unusual = model.log_likelihood([series, series * 5], num_samples=4)
        >>> usual > unusual
        True
        >>> by_step = model.log_likelihood(series, num_samples=4, by_step=True)
        >>> by_step.n_timesteps, by_step.components.to_list()
        (60, ['log_density'])
        """
        check_positive_integer("num_samples", num_samples)
        check_bool("by_step", by_step)
        sequence, samples, single = whole_series(
            self, "log_likelihood", series, past_covariates, future_covariates
        )
        check_is_predicted(self, samples)
        how = num_samples, batch_size, verbose
        every = self.model.patch_length
        if by_step:
            # (1, M) for each series
            found = ask_predicted(self, PredictiveLogDensities, samples, every, *how)
            of_steps = [
                self._by_step(one, x[0], np.any(predicted_values(self, sample), axis=1))
                for one, x, sample in zip(sequence, found, samples, strict=True)
            ]
            return of_steps[0] if single else of_steps
        # The posterior knows one way through a gap, and is too sure of less data than it
        # was trained on. Over a long series, hardly one of its paths has a weight.
        suits = np.array([is_as_in_training(self, sample) for sample in samples])
        suits &= not self.model.has_instance_scale
        totals = np.empty(len(samples))
        if suits.any():
            asked = [samples[i] for i in suits.nonzero()[0]]
            totals[suits] = ask(self, LogLikelihood, asked, *how)
        if not suits.all():
            asked = [samples[i] for i in (~suits).nonzero()[0]]
            found = ask_predicted(self, PredictiveLogDensities, asked, every, *how)
            # (1, M) -> ()
            totals[~suits] = [x.sum() for x in found]
        counts = [np.count_nonzero(predicted_values(self, one)) for one in samples]
        means = (totals / counts).tolist()
        return means[0] if single else means

    def _by_step(
        self, series: TimeSeries, log_densities: np.ndarray, is_predicted: np.ndarray
    ) -> TimeSeries:
        """Return log-densities of the last patches as a series on their last steps.

        NaN where nothing is predicted, which is told of each step, (T,).
        """
        every = self.model.patch_length
        num_patches = -(-len(series) // every)
        is_predicted = np.pad(is_predicted, (num_patches * every - len(series), 0))
        # (T,) -> (M, L)
        is_predicted = np.any(is_predicted.reshape(num_patches, every), axis=1)
        values = _after_nan(log_densities, num_patches, axis=0)
        return TimeSeries(
            times=series.time_index[(len(series) - 1) % every :: every],
            values=np.where(is_predicted, values, np.nan)[:, None, None],
            components=["log_density"],
        )

    @random_method
    def probability_integral_transform(
        self,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_samples: int = 100,
        batch_size: int | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> Series:
        """Where each value lies in its predictive distribution, between 0 and 1.

        It is the probability, given the steps before, of no more than what was observed
        [1]_. Of a calibrated model, the transforms of a series that it was not fitted to
        are uniform and independent: a histogram of them that is high at both ends tells of
        forecasts that are too narrow, one that is high in the middle of forecasts that are
        too wide, and one that leans of a bias.

        They are by the particle filter of :meth:`log_likelihood` with ``by_step=True``. Of
        counts and other values with a probability of their own, the transform is between
        those of less and of no more than the value.

        Parameters
        ----------
        series, past_covariates, future_covariates
            As for :meth:`infer_latents`.
        num_samples
            Number of paths.
        batch_size, verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        TimeSeries or list of TimeSeries
            Transforms of all values of each series, NaN where a value is missing. With
            ``patch_length`` above 1, those of a patch are given the steps before it. With
            ``use_reversible_instance_norm``, those of the first input chunk are NaN.

        Raises
        ------
        ValueError
            As for :meth:`log_likelihood`.

        References
        ----------
        .. [1] Dawid, "Statistical Theory: The Prequential Approach", Journal of the Royal
               Statistical Society A, 1984.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> quiet = {"enable_progress_bar": False}
        >>> model = DDSSMModel(
        ...     12, 6, latent_dim=2, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet
        ... )
        >>> transform = model.fit(series).probability_integral_transform(num_samples=10)
        >>> bool(((transform.values() >= 0) & (transform.values() <= 1)).all())
        True
        """
        check_positive_integer("num_samples", num_samples)
        sequence, samples, single = whole_series(
            self,
            "probability_integral_transform",
            series,
            past_covariates,
            future_covariates,
        )
        check_is_predicted(self, samples)
        how = num_samples, batch_size, verbose
        found = ask_predicted(self, ProbabilityTransforms, samples, 1, *how)
        transforms = [
            # (1, T, C) -> (T, C, 1)
            one.with_values(_after_nan(x, len(one), axis=1).transpose(1, 2, 0))
            for one, x in zip(sequence, found, strict=True)
        ]
        return transforms[0] if single else transforms

    @random_method
    def impute(
        self,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_samples: int = 100,
        batch_size: int | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> Series:
        """Fill the gaps of a series with samples given all that is observed.

        Each sample is one joint path over all time steps and components, given what is
        observed before, after and beside a gap. Inside a gap future covariates are used
        and past covariates are not.

        A gap is filled along the states of :meth:`infer_latents`: where several ways lead
        through it, each sample takes one of them. Long gaps may take seconds a series.

        A series may go on beyond its end: values that are given there, with NaN between,
        are a scenario, which conditions the whole path before and after them.

        Parameters
        ----------
        series, past_covariates, future_covariates
            As for :meth:`infer_latents`.
        num_samples
            Number of samples.
        batch_size, verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        TimeSeries or list of TimeSeries
            Each series with ``num_samples`` samples. Observed values are the same in all.

        Raises
        ------
        ValueError
            As for :meth:`infer_latents`.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> values = series.values(copy=True)
        >>> values[20:24] = float("nan")
        >>> gappy = series.with_values(values)
        >>> quiet = {"enable_progress_bar": False}
        >>> model = DDSSMModel(
        ...     12, 6, latent_dim=2, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet
        ... )
        >>> filled = model.fit(gappy).impute(num_samples=20)
        >>> spread = filled.quantile(0.9).values() - filled.quantile(0.1).values()
        >>> (spread[19:25, 0] > 0).tolist()
        [False, True, True, True, True, False]
        """
        check_positive_integer("num_samples", num_samples)
        sequence, samples, single = whole_series(
            self, "impute", series, past_covariates, future_covariates
        )
        how = num_samples, batch_size, verbose
        drawn = ask_by_window(self, Imputation, samples, 1, *how)
        filled = [
            # (S, T, C) -> (T, C, S)
            one.with_values(
                np.where(
                    np.isnan(one.all_values(copy=False)),
                    x.transpose(1, 2, 0),
                    one.all_values(copy=False),
                )
            )
            for one, x in zip(sequence, drawn, strict=True)
        ]
        return filled[0] if single else filled

    @random_method
    def simulate(
        self,
        n: int,
        num_samples: int = 100,
        future_covariates: TimeSeries | None = None,
        past_covariates: TimeSeries | None = None,
        static_covariates: pd.DataFrame | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> TimeSeries:
        """Draw series from scratch, from the first state on.

        They start as training windows do, which may be anywhere in a season. A covariate
        that rises or falls as time goes on is seen relative to the first input chunk, and
        has hardly an effect beyond the length of a training window.

        Parameters
        ----------
        n
            Number of time steps.
        num_samples
            Number of series.
        future_covariates
            As in training, if the model was trained with any; the simulated series start
            with them. Otherwise they start with the training series.
        past_covariates
            Optionally, as in training; unknown otherwise.
        static_covariates
            As those of the training series, if the model uses them.
        verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        TimeSeries
            The simulated series, one per sample.

        Raises
        ------
        ValueError
            If the model is not fitted, covariates are missing or do not fit, or the model
            has ``use_reversible_instance_norm`` and thus no scale without a given series.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> quiet = {"enable_progress_bar": False}
        >>> model = DDSSMModel(
        ...     12, 6, latent_dim=2, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet
        ... )
        >>> simulated = model.fit(series).simulate(n=30, num_samples=10)
        >>> simulated.n_timesteps, simulated.n_samples
        (30, 10)
        """
        check_positive_integer("n", n)
        check_positive_integer("num_samples", num_samples)
        check_training_scale(self, "simulate")
        check_covariates(past_covariates, future_covariates)
        blank = blank_series(self, n, future_covariates, static_covariates)
        sample = sample_of(
            self,
            "simulate",
            blank,
            past_covariates,
            future_covariates,
            ("past_covariates",),
        )
        (x,) = ask(self, Simulation, [sample], num_samples, None, verbose)
        # (S, n, C) -> (n, C, S)
        return blank.with_values(x.transpose(1, 2, 0))

    @random_method
    def sample_transition(
        self,
        state: np.ndarray | TimeSeries,
        num_samples: int = 100,
        future_covariates: TimeSeries | None = None,
        past_covariates: TimeSeries | None = None,
        static_covariates: pd.DataFrame | None = None,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> np.ndarray:
        """Draw the state that follows a given one, to look at the learned dynamics.

        With ``patch_length`` above 1 a state, given or drawn, is that of a patch of steps.

        Parameters
        ----------
        state
            One state, (D,); a history of T states, oldest first, (T, D); N histories,
            (N, T, D), or what :meth:`infer_latents` returns, N samples of T states. The
            transition sees the last ``transition_order`` of them, or all if it is ``None``;
            those of an input chunk, if a covariate rises or falls as time goes on.
        num_samples
            Number of draws, S, from each.
        future_covariates
            Optionally, as in training. Their last value is that of the step that is
            drawn. Unknown otherwise. One that rises or falls as time goes on is seen
            relative to the ``input_chunk_length`` steps before: pass these, too.
        past_covariates
            Optionally, as in training. Their last value is that of the last given state.
        static_covariates
            As those of the training series, if the model uses them.
        verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        numpy.ndarray
            States of the next step, (S, D), or (S, N, D) for N histories.

        Raises
        ------
        ValueError
            If the model is not fitted, or ``state`` is not finite or of another shape.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> quiet = {"enable_progress_bar": False}
        >>> model = DDSSMModel(
        ...     12, 6, latent_dim=2, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet
        ... )
        >>> model.fit(series).sample_transition([0.0, 0.0], num_samples=50).shape
        (50, 2)
        """
        check_positive_integer("num_samples", num_samples)
        check_fitted(self, "sample_transition")
        check_covariates(past_covariates, future_covariates)
        histories, several = histories_of(self, state)
        question = transition_question(
            self,
            histories,
            num_samples,
            past_covariates,
            future_covariates,
            static_covariates,
        )
        (draws,) = answers(self, [question], verbose)
        return draws if several else draws[:, 0]

    @random_method
    def distill(
        self,
        num_evaluations: int | None = 1,
        series: Series | None = None,
        past_covariates: Series | None = None,
        future_covariates: Series | None = None,
        num_updates: int = 2000,
        verbose: bool | None = None,
        random_state: int | None = None,
    ) -> Self:
        """Train a sampler that draws from the transition in one or few evaluations.

        A diffusion transition draws a state in ``num_solver_steps`` network evaluations,
        one after another. The way of its solver from noise to the state is a function,
        which a network can learn [1]_. Forecasts and all other draws of this model are then
        made by that network, and many paths take a third of the time or less. Densities
        (:meth:`log_likelihood`) stay those of the full transition.

        Drawing the states of the past is then most of the work of a forecast. Where the
        past is complete, four samples of a series therefore share one draw of it, but for
        its last two states, which each has for itself.

        It is logged how far the sampler's draws are off those of the solver from the same
        noise, with advice where that is much. The sampler is saved with the model. Fitting
        again drops it, since the transition changes, and so does ``distill(None)``: draws
        are then the solver's again.

        Parameters
        ----------
        num_evaluations
            Number of network evaluations that draw a state, from 1 to 4, each of a network
            of its own, or ``None`` for the full solver.
        series
            Series like those that are to be forecast, one of them at least as long as a
            training window. The sampler is trained along their states and along forecasts
            of them. ``None`` for the training series, if there was only one.
        past_covariates, future_covariates
            As for :meth:`infer_latents`.
        num_updates
            Number of updates of the training, each on 1,024 states. With 2,000 it takes one
            to three minutes on one core for a model with default arguments.
        verbose, random_state
            As for :meth:`infer_latents`.

        Returns
        -------
        DDSSMModel
            This model.

        Raises
        ------
        ValueError
            If the model is not fitted or has a Gaussian transition, no series has the
            length of a training window, or as for :meth:`infer_latents`.

        References
        ----------
        .. [1] Luhman and Luhman, "Knowledge Distillation in Iterative Generative Models for
               Improved Sampling Speed", arXiv 2101.02388.

        Examples
        --------
        >>> from darts.utils.timeseries_generation import sine_timeseries
        >>> from darts_ddssm import DDSSMModel
        >>> series = sine_timeseries(length=60, value_frequency=1 / 12)
        >>> quiet = {"enable_progress_bar": False}
        >>> model = DDSSMModel(
        ...     12, 6, latent_dim=2, n_epochs=1, random_state=0, pl_trainer_kwargs=quiet
        ... )
        >>> model = model.fit(series).distill(num_updates=20)
        >>> model.predict(6, num_samples=10).n_samples
        10
        """
        if num_evaluations is not None:
            check_positive_integer("num_evaluations", num_evaluations)
            check(
                num_evaluations in PLACES,
                f"`num_evaluations` must be at most {max(PLACES)}, got {num_evaluations}.",
            )
        check_positive_integer("num_updates", num_updates)
        check_fitted(self, "distill")
        transition = self.model.ssm.transition
        check(
            isinstance(transition, DiffusionTransition),
            '`distill()` must be called on a model with `transition="diffusion"`: a '
            "Gaussian transition draws a state in one evaluation as it is.",
        )
        if num_evaluations is None:
            transition.sampler = None
            return self
        _, samples, _ = whole_series(
            self, "distill", series, past_covariates, future_covariates
        )
        distil_transition(self, samples, num_evaluations, num_updates, verbose)
        return self
