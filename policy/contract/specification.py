"""Specifications: frozen dataclasses that check themselves when built and pass through JSON strictly.

Standard library and numpy only, as `contract` needs it.
"""

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
    """A frozen dataclass whose fields are type-checked, then validated, whenever it is built; it reads and writes JSON.

    `when_missing` is the fix that an error gives where a file lacks this specification or a part of it.
    """

    when_missing: typing.ClassVar[str] = "Restore the file that was written, or write it again."

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, _typed(getattr(self, name), hint, f"{type(self).__name__}.{name}"))
        self._validate()

    def _validate(self) -> None:
        """Raise InputError for the first field whose value makes no sense."""

    def _refusal(self, field: str, *, got: object, expected: str, fix: str = "") -> InputError:
        """Return the error for a field of this specification; the fix is to set the field, unless `fix` says better."""
        return _refusal(f"{type(self).__name__}.{field}", got, expected, fix)

    def to_json(self) -> str:
        """Return the specification as JSON for people to read: one key a line, a row of numbers on one line."""
        return _layout(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "") -> Self:
        """Read back what `to_json` wrote; `source` names the text in errors.

        Strict: an unknown, missing or repeated key, a wrong type and a number that is not finite raise InputError with
        the dotted field.
        """
        source = source or cls.__name__.lower()
        try:
            value = json.loads(text, object_pairs_hook=functools.partial(_without_repeats, source))
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            raise _refusal(
                source, f"text that is no JSON ({error})", "JSON", "Restore the file; it is damaged."
            ) from None
        return _typed(value, cls, source)


@functools.cache
def _hints(kind: type) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _refusal(what: str, got: object, expected: str, fix: str = "") -> InputError:
    return InputError(what, got=got, expected=expected, fix=fix or f"Set {what} to {expected}.")


def _without_repeats(source: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise _refusal(f"{source}: key {repeated[0]}", "the key twice", "it once", "Remove one of the two.")
    return dict(pairs)


def _typed(value: typing.Any, hint: typing.Any, where: str) -> typing.Any:
    """Return `value` as the annotation `hint` has it: lists and arrays as tuples, objects as specifications.

    Raises InputError naming `where` for any other type, for an empty name and for a number that is not finite.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(value, typing.get_args(hint)[0], where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise _refusal(where, _shown(value), "a list")
        return tuple(_typed(item, typing.get_args(hint)[0], f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, Specification):
        return value if isinstance(value, hint) else _built(value, hint, where)
    if hint is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise _refusal(where, value, "a finite number")
        return float(value)
    if type(value) is not hint or value == "":
        names = {float: "a number", int: "a whole number", bool: "true or false", str: "a name"}
        raise _refusal(where, _shown(value), names[hint])
    return value


def _built(value: object, kind: type[Specification], where: str) -> Specification:
    hints = _hints(kind)
    if not isinstance(value, dict):
        raise _refusal(where, _shown(value), f"an object with {', '.join(hints)}", kind.when_missing)
    for key in value:
        if key not in hints:
            raise unknown_name(f"{where}.{key}: unknown key", key, hints)
    for name, hint in hints.items():
        if name not in value:
            raise _refusal(
                f"{where}.{name}", "nothing", "it to be there", getattr(hint, "when_missing", kind.when_missing)
            )
    typed = {name: _typed(value[name], hint, f"{where}.{name}") for name, hint in hints.items()}
    try:
        return kind(**typed)
    except InputError as error:
        # A constructor names its own field (`CameraSpec.height`); the reader of a file needs the place in the file.
        what, fix = (text.replace(f"{kind.__name__}.", f"{where}.") for text in (error.what, error.fix))
        raise InputError(what, got=error.got, expected=error.expected, fix=fix) from None


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _layout(value: object, indent: str = "") -> str:
    inner = f"{indent}  "
    if isinstance(value, dict):
        rows = [f"{inner}{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_layout(item, inner)}" for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
