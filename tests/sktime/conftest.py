"""
The forecaster of the tests.
"""

import pytest

from darts_ddssm.sktime import DDSSMForecaster


@pytest.fixture
def forecaster():
    """Return a maker of forecasters that train in a moment; arguments are overridden."""

    def make(trainer: dict | None = None, **kwargs) -> DDSSMForecaster:
        arguments = DDSSMForecaster.get_test_params()[0]
        trainer = arguments.pop("pl_trainer_kwargs") | (trainer or {})
        return DDSSMForecaster(**arguments | kwargs, pl_trainer_kwargs=trainer)

    return make
