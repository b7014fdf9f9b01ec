"""Options: dataclasses whose fields carry their constraints, so that an option is described in one place only."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

Options = TypeVar("Options")


def option(
    default: Any,
    *,
    choices: Sequence[object] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field and what its values must be: one of `choices`, or a number within bounds.

    low and high belong to the range, above does not. A field whose type allows None or a tuple may be None, and each
    number of the tuple must be within the bounds. `check_options` is what looks at them.
    """
    constraint = {"choices": choices, "low": low, "high": high, "above": above}
    return dataclasses.field(default=default, metadata=constraint)


def check_options(instance: Any) -> None:
    """Raise ValueError with one sentence for the first field of a dataclass that is not as its declaration says.

    Types count as well: text in place of a number, or a number in place of True, would do harm silently. An int is a
    float; numbers must be finite.
    """
    wanted = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        _check_type(field, value, wanted[field.name])
        if choices := field.metadata.get("choices"):
            check_choice(field.name, value, choices)
        _check_range(field, value, wanted[field.name])


def changed(options: Options, changes: dict[str, Any]) -> Options:
    """A copy of options with some fields changed; ValueError for an unknown name says which is the nearest."""
    known = [field.name for field in dataclasses.fields(options)]
    for name in changes:
        if name not in known:
            raise ValueError(f"option {name!r} is not known; {nearest(name, known)}")
    return dataclasses.replace(options, **changes) if changes else options


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for someone who wrote `name`: the nearest of the `known` names, or else all of them."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError with one sentence if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {_listed(choices)}")


def _listed(choices: Sequence[object]) -> str:
    return ", ".join(map(repr, choices))


def _check_type(field: dataclasses.Field, value: object, wanted: Any) -> None:
    if _is_a(value, wanted):
        return
    if choices := field.metadata.get("choices"):
        expected = f"choose one of {_listed(choices)}"
    else:
        expected = f"expected {getattr(wanted, '__name__', wanted)}"
    raise ValueError(f"{field.name}={value!r} is a {type(value).__name__}; {expected}")


def _is_a(value: object, wanted: Any) -> bool:
    """Whether a value is of a type as annotations write it: a class, a union, or a tuple of such."""
    parts = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return any(_is_a(value, part) for part in parts)
    if typing.get_origin(wanted) is tuple:
        fits = isinstance(value, (tuple, list)) and len(value) == len(parts)
        return fits and all(map(_is_a, value, parts))
    if isinstance(value, bool):
        return wanted is bool
    if wanted is float:
        return isinstance(value, (int, float))
    return isinstance(value, wanted)


def _check_range(field: dataclasses.Field, value: object, wanted: Any) -> None:
    numbers = value if isinstance(value, (tuple, list)) else [value]
    numbers = [n for n in numbers if isinstance(n, (int, float))]
    if all(_is_within(n, field.metadata) for n in numbers):
        return
    words = {"low": "at least", "above": "above", "high": "at most"}
    bounds = [f"{words[key]} {field.metadata[key]}" for key in words if field.metadata.get(key) is not None]
    if not all(map(math.isfinite, numbers)):
        bounds.append("finite")
    none = "None or " if _is_a(None, wanted) else ""
    raise ValueError(f"{field.name}={value!r} must be {none}{' and '.join(bounds)}")


def _is_within(number: float, bounds: typing.Mapping[str, Any]) -> bool:
    low, high, above = (bounds.get(key) for key in ("low", "high", "above"))
    if not math.isfinite(number):
        return False
    if low is not None and number < low:
        return False
    if high is not None and number > high:
        return False
    return above is None or number > above
