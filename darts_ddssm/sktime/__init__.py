"""
The model in sktime, installed by ``darts-ddssm[sktime]``.
"""

# pickles name `_Trained` here
from darts_ddssm.sktime.forecaster import DDSSMForecaster, _Trained

__all__ = ["DDSSMForecaster", "_Trained"]
