"""
The model in sktime, which needs sktime and skpro: the extra ``sktime``.
"""

# pickles name `_Trained` here
from darts_ddssm.sktime.forecaster import DDSSMForecaster, _Trained

__all__ = ["DDSSMForecaster", "_Trained"]
