r"""
Simulated series with known dynamics, to see what a model has learned.

Each series is drawn from a *process*: a Markov state :math:`z_t` and an observation
:math:`x_t` that depends on the state alone. The process comes with the series and is
their oracle: it continues any true state, and says in closed form what it can.

=========================  ===========================================================
function                   what a model must learn
=========================  ===========================================================
`bimodal_random_walk`      a transition with two modes, which no Gaussian can represent
`switching_signs`          16 modes in four latent dimensions, seen through a nonlinear
                           map to eight components
`linear_gaussian`          a linear Gaussian system, whose exact forecast, likelihood and
                           posterior the Kalman filter gives
=========================  ===========================================================

Letters: N series, T steps, C observed components, D state components, S samples.

References
----------
.. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.
.. [2] Särkkä and Svensson, "Bayesian Filtering and Smoothing", 2nd edition, Cambridge
       University Press, 2023.
"""

from darts_ddssm.datasets.bimodal import (
    BimodalRandomWalk,
    StatePaths,
    bimodal_random_walk,
)
from darts_ddssm.datasets.linear import (
    KalmanMoments,
    LinearGaussian,
    linear_gaussian,
)
from darts_ddssm.datasets.process import Process, SimulatedSeries
from darts_ddssm.datasets.switching import SwitchingSigns, switching_signs

__all__ = [
    "BimodalRandomWalk",
    "KalmanMoments",
    "LinearGaussian",
    "Process",
    "SimulatedSeries",
    "StatePaths",
    "SwitchingSigns",
    "bimodal_random_walk",
    "linear_gaussian",
    "switching_signs",
]
