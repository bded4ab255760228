"""
The distribution of a series in its own units: scale, patches, state space, likelihood.

Pure PyTorch beside darts' likelihood classes, its batches and its ``RINorm``. The files,
from the inside out:

- ``likelihoods``: what each family of darts' likelihoods can do;
- ``scaling``: from data to normalised values and back;
- ``batches``: from darts' batches to windows;
- ``masking``: hiding values at random, so that the encoder learns what a gap is;
- ``model``: :class:`SeriesModel`, which has the ELBO, forecasts and draws;
- ``forecast_loss``: the CRPS of forecasts, a part of the training loss;
- ``inference``: what else can be asked of the model: smoothing, filtering, likelihood,
  imputation, simulation, draws of the transition.
"""
