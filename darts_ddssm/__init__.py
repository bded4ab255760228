"""
Diffusion-Driven State Space Models for darts.

Importing this package registers :class:`DDSSMModel` with darts' safe loader, so that
saved models, and ensembles that hold one, can be loaded.
"""

from darts.utils.serialization import add_safe_globals

from darts_ddssm.model import DDSSMModel

__all__ = ["DDSSMModel"]

__version__ = "0.2.0"

add_safe_globals([DDSSMModel])
