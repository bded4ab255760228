"""
Training with Lightning: losses, schedules, averaged weights and the Lightning module.

- ``losses``: what an update minimises, and by what validation chooses;
- ``schedule``: what changes in the course of training;
- ``soap``: the optimizer;
- ``weight_averaging``: the average of the weights that forecasts use;
- ``lightning_module``: darts' module, which trains a
  :class:`~darts_ddssm.series.model.SeriesModel` and lets it forecast.
"""
