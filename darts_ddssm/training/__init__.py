"""
Training with Lightning: schedules, averaged weights and the Lightning module.

- ``schedule``: what changes in the course of training;
- ``weight_averaging``: the average of the weights that forecasts use;
- ``lightning_module``: darts' module, which trains a
  :class:`~darts_ddssm.series.model.SeriesModel` and lets it forecast.
"""
