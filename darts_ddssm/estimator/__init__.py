"""
What :class:`~darts_ddssm.model.DDSSMModel` is made of beside its constructor and hooks.

- ``recipe``: how a training goes, by what the following ones choose;
- ``automatic``: numbers that follow from sizes: of states and patches, updates, rates;
- ``cross_validation``: simple forecasts of the training set, and the noise they suit;
- ``scales``, ``instance_scale``, ``local_pattern``: the scale of the training set, whether
  windows have one of their own, and which last values tell their level;
- ``windows``, ``covariates``: what all of these look at;
- ``data_checks``: what series and covariates must be;
- ``sequences``: whole series as samples, with their covariates;
- ``spans``: how a long series is cut where it is asked about part by part;
- ``questions``: samples to the Lightning module and answers back;
- ``distillation``: a faster sampler for the transition;
- ``latent_methods``: the public methods of the latent side.
"""
