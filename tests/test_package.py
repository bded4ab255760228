"""What the package says of itself."""

from importlib.metadata import version

import darts_ddssm


def test_version_is_that_of_the_installed_package():
    assert darts_ddssm.__version__ == version("darts-ddssm")
