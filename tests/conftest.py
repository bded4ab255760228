"""
Fixtures of all tests.
"""

import logging
import warnings

import pytest
import torch

from darts_ddssm.ssm import particles
from tests.helpers import tiny_model

# More threads only wait for each other on models this small.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet():
    """Keep Lightning's notes on hardware out of the output."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        yield


@pytest.fixture
def short_flows(monkeypatch):
    """Densities of a few evaluations, for tests that ask for anything but accuracy."""
    monkeypatch.setattr(particles, "FLOW_STEPS", 4)


@pytest.fixture
def tiny():
    """Return a maker of models that train in a second; arguments are overridden."""
    return tiny_model
