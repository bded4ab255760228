"""Checks of arguments that several faces share."""

from numbers import Integral
from typing import Any

from darts.logging import raise_log


def check(condition: bool, message: str) -> None:
    """Raise a `ValueError` with the message unless the condition holds."""
    if not condition:
        raise_log(ValueError(message))


def check_positive_integer(name: str, value: Any) -> None:
    """Raise a `ValueError` that names a value which is no integer above zero."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    check(is_integer and value >= 1, f"`{name}` must be an integer >= 1, got `{value!r}`.")
