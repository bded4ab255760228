"""
What :class:`~darts_ddssm.model.DDSSMModel` is made of beside its constructor and hooks.

- ``automatic``: what the model decides by itself: its scale and the length of patches;
- ``data_checks``: what series and covariates must be;
- ``sequences``: whole series as samples, with their covariates;
- ``questions``: samples to the Lightning module and answers back;
- ``latent_methods``: the public methods of the latent side.
"""
