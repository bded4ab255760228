"""Checks of arguments, one for each kind."""

from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np
from darts.logging import raise_log


def check(condition: bool, message: str) -> None:
    """Raise a `ValueError` with the message unless the condition holds."""
    if not condition:
        raise_log(ValueError(message))


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise a `ValueError` that names a value which is no integer from ``least`` on."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    in_range = is_integer and value >= least
    check(in_range, f"`{name}` must be an integer >= {least}, got `{value!r}`.")


def check_positive_integer(name: str, value: Any) -> None:
    """Raise a `ValueError` that names a value which is no integer above zero."""
    check_integer(name, value, least=1)


def check_bool(name: str, value: Any) -> None:
    """Raise a `ValueError` that names a value which is not `True` or `False`."""
    check(isinstance(value, bool), f"`{name}` must be `True` or `False`, got `{value!r}`.")


def check_positive_number(name: str, value: Any, or_zero: bool = False) -> None:
    """Raise a `ValueError` that names a value which is no finite number above zero."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    in_range = is_number and isfinite(value) and (value > 0 or (or_zero and value == 0))
    kind = "a number >= 0" if or_zero else "a positive number"
    check(in_range, f"`{name}` must be {kind}, got `{value!r}`.")


def check_share(name: str, value: Any) -> None:
    """Raise a `ValueError` that names a value which is no number from 0 to below 1."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    in_range = is_number and 0 <= value < 1
    check(in_range, f"`{name}` must be a number >= 0 and < 1, got `{value!r}`.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a `ValueError` that names a value which is none of the choices."""
    check(value in choices, f"`{name}` must be one of {choices}, got `{value!r}`.")


def as_python(value: Any) -> Any:
    """Return a scalar of numpy, or those in a dictionary, as Python's own number."""
    if isinstance(value, dict):
        return {name: as_python(part) for name, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value
