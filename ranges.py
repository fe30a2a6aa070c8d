"""Checks of numbers that frozen dataclasses make when they are constructed."""

from __future__ import annotations

from .errors import InputError


def require_at_least(options: object, least: float, *fields: str, option: bool = False, fix: str | None = None) -> None:
    """Check that fields of a dataclass are not smaller than a bound; a field that is None is left out.

    Args:
        options: The dataclass instance.
        least: The smallest value that is allowed.
        fields: Names of the fields to check.
        option: Whether the fields are options of a command, which the error then names as `--field`.
        fix: The next step that the error suggests; "Raise FIELD." when left out.

    Raises:
        InputError: A field is smaller than `least`, or not a number.
    """
    for field in fields:
        value = getattr(options, field)
        if value is not None and not value >= least:
            _refuse(field, value, f"{least:g} or more", option=option, fix=fix or "Raise {}.")


def require_above(options: object, bound: float, *fields: str, option: bool = False, fix: str | None = None) -> None:
    """Check that fields of a dataclass are greater than a bound; a field that is None is left out.

    Args:
        options: The dataclass instance.
        bound: Values have to be greater than this.
        fields: Names of the fields to check.
        option: Whether the fields are options of a command, which the error then names as `--field`.
        fix: The next step that the error suggests; "Raise FIELD." when left out.

    Raises:
        InputError: A field is not greater than `bound`, or not a number.
    """
    for field in fields:
        value = getattr(options, field)
        if value is not None and not value > bound:
            _refuse(field, value, f"above {bound:g}", option=option, fix=fix or "Raise {}.")


def _refuse(field: str, value: object, expected: str, *, option: bool, fix: str) -> None:
    named = f"--{field.replace('_', '-')}" if option else field
    raise InputError(named, got=value, expected=expected, fix=fix.format(named))
