"""Specifications: frozen dataclasses that are validated on construction and read JSON strictly, without torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
import typing
from typing import Self

import numpy as np

from ...errors import InputError, unknown_name


@dataclasses.dataclass(frozen=True)
class Specification:
    """A frozen dataclass with type checks and validation on construction, and with strict JSON.

    Attributes:
        missing_fix: The fix of errors about a file that lacks this specification or a part of it.
    """

    missing_fix: typing.ClassVar[str] = "Restore the original file, or write it again."

    def __post_init__(self) -> None:
        for name, hint in _type_hints(type(self)).items():
            object.__setattr__(self, name, _convert(getattr(self, name), hint, f"{type(self).__name__}.{name}"))
        self._validate()

    def _validate(self) -> None:
        """Raise InputError for the first field with an invalid value."""

    def _field_error(self, field: str, *, got: object, expected: str, fix: str = "") -> InputError:
        """Return the error for a field of this specification; the default fix is to set the field."""
        return _field_error(f"{type(self).__name__}.{field}", got, expected, fix)

    def to_json(self) -> str:
        """Return the specification as readable JSON: one key per line, a row of numbers on one line."""
        return _format_json(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "") -> Self:
        """Read what `to_json` wrote.

        Args:
            text: The JSON.
            source: The name of the text in errors.

        Raises:
            InputError: A key is unknown, missing or repeated, a type is wrong, or a number is not finite; the error
                names the dotted field.
        """
        source = source or cls.__name__.lower()
        try:
            value = json.loads(text, object_pairs_hook=functools.partial(_refuse_repeated_keys, source))
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise _field_error(
                source, f"text that is no JSON ({error})", "JSON", "Restore the file: it is damaged."
            ) from None
        return _convert(value, cls, source)


@functools.cache
def _type_hints(kind: type) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _field_error(what: str, got: object, expected: str, fix: str = "") -> InputError:
    return InputError(what, got=got, expected=expected, fix=fix or f"Set {what} to {expected}.")


def _refuse_repeated_keys(source: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise _field_error(f"{source}: key {repeated[0]}", "the key twice", "it once", "Remove one of the two.")
    return dict(pairs)


def _convert(value: typing.Any, hint: typing.Any, where: str) -> typing.Any:
    """Convert `value` to the annotation `hint`: lists and arrays to tuples, objects to specifications.

    Raises InputError that names `where` for any other type, an empty name or a number that is not finite.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(value, typing.get_args(hint)[0], where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise _field_error(where, _short_repr(value), "a list")
        return tuple(_convert(item, typing.get_args(hint)[0], f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, Specification):
        return value if isinstance(value, hint) else _build(value, hint, where)
    if hint is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise _field_error(where, value, "a finite number")
        return float(value)
    if type(value) is not hint or value == "":
        names = {float: "a number", int: "a whole number", bool: "true or false", str: "a name"}
        raise _field_error(where, _short_repr(value), names[hint])
    return value


def _build(value: object, kind: type[Specification], where: str) -> Specification:
    hints = _type_hints(kind)
    if not isinstance(value, dict):
        raise _field_error(where, _short_repr(value), f"an object with {', '.join(hints)}", kind.missing_fix)
    for key in value:
        if key not in hints:
            raise unknown_name(f"{where}.{key}: unknown key", key, hints)
    for name, hint in hints.items():
        if name not in value:
            raise _field_error(
                f"{where}.{name}", "nothing", "it to be there", getattr(hint, "missing_fix", kind.missing_fix)
            )
    typed = {name: _convert(value[name], hint, f"{where}.{name}") for name, hint in hints.items()}
    try:
        return kind(**typed)
    except InputError as error:
        # The constructor names its own field (`CameraSpec.height`); the reader needs the location in the file.
        what, fix = (text.replace(f"{kind.__name__}.", f"{where}.") for text in (error.what, error.fix))
        raise InputError(what, got=error.got, expected=error.expected, fix=fix) from None


def _short_repr(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _format_json(value: object, indent: str = "") -> str:
    inner = f"{indent}  "
    if isinstance(value, dict):
        rows = [f"{inner}{json.dumps(key)}: {_format_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_format_json(item, inner)}" for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
