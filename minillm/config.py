"""TOML and command-line words <-> frozen dataclasses. An unknown key is an error that names the nearest one.

A section is a frozen, keyword-only dataclass whose fields are made by `setting(default, meaning)`; a whole
configuration is a dataclass of sections. Where a section comes in kinds with settings of their own (`[adapter] kind =
"lora"`), its type is a union of dataclasses, each with a field `kind` whose default is its name. Nothing here knows any
section: those live with the code they set (`model/config.py`, `training/config.py`, ...), and `pretrain_config.py` puts
them together.

Read next: `errors.py`, then `model/config.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minillm.errors import InputError

REQUIRED = dataclasses.MISSING


def setting(default: Any, meaning: str) -> Any:
    """Return a dataclass field with its meaning and unit, which `--help` and the documentation print.

    Args:
        default: the value when nothing is said; `REQUIRED` where there is none.
        meaning: one line: what the value is, its unit and its allowed range.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def kinds_of(hint: Any) -> dict[str, type]:
    """Return the sections that a field's type chooses from, by their `kind`; none where it is not a union of sections.

    The union may hold None besides: no section at all, which a user writes as kind = "none".
    """
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return {}
    sections = [typing.cast(type, option) for option in typing.get_args(hint) if dataclasses.is_dataclass(option)]
    return {str(next(f.default for f in dataclasses.fields(s) if f.name == "kind")): s for s in sections}


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield (dotted name, field, resolved type) of every plain value in a configuration class, sections opened.

    Of a section that comes in kinds all settings are there, each once: its meaning begins with the kinds that take it.
    """
    cls = config if isinstance(config, type) else type(config)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from fields_of(kind, f"{prefix}{field.name}.")
        elif kinds := kinds_of(kind):
            none = ("none",) if type(None) in typing.get_args(kind) else ()
            default = "none" if none and field.default is None else REQUIRED
            choice = typing.Literal[*kinds, *none]
            yield f"{prefix}{field.name}.kind", setting(default, "which of the kinds this section is"), choice
            yield from _fields_of_kinds(kinds, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, kind


def _fields_of_kinds(kinds: dict[str, type], prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield what `fields_of` does for all kinds of a section, but for `kind` itself."""
    takers: dict[str, dict[str, tuple[dataclasses.Field[Any], Any]]] = {}
    for kind, cls in kinds.items():
        for name, field, hint in fields_of(cls, prefix):
            takers.setdefault(name, {})[kind] = (field, hint)
    del takers[f"{prefix}kind"]
    for name, taking in takers.items():
        fields = [field for field, _ in taking.values()]
        meanings = {field.metadata["meaning"]: None for field in fields}  # a dict keeps the order
        default = fields[0].default if all(field.default == fields[0].default for field in fields) else REQUIRED
        meaning = f"{', '.join(taking)}: {'; or '.join(meanings)}"
        yield name, setting(default, meaning), next(iter(taking.values()))[1]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the closest known word, or the list of those known when none is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # a key may be right but in the wrong section: look at the last part alone
        tail = word.rpartition(".")[2]
        close = [k for k in known if k.rpartition(".")[2] == tail] or difflib.get_close_matches(
            tail, known, n=1, cutoff=0.5
        )
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def divisors(number: int) -> list[int]:
    """Return the divisors of a number above 0, ascending: the text of an error proposes one of them.

    Cost: a division for each whole number up to the root of `number`.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def type_name(kind: Any) -> str:
    """Return a field's type as a user would say it: `int`, `one of pre, post`, `list of float`, `int or none`."""
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(str(v) for v in typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(type_name(k) for k in typing.get_args(kind))
    if kind is type(None):
        return "none"
    if typing.get_origin(kind) is tuple:
        return f"list of {type_name(typing.get_args(kind)[0])}"
    return kind.__name__


def convert(name: str, kind: Any, value: Any) -> Any:
    """Return `value`, from TOML or as a word of the command line, as the type of its field.

    Raises:
        InputError: if it does not fit; the text names the setting, its type and what came.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none" and type(None) in options):
            return None
        for option in options:
            if option is not type(None):
                try:
                    return convert(name, option, value)
                except InputError:
                    continue
    elif origin is typing.Literal:
        for option in options:
            if value == option or str(value) == str(option):
                return option
    elif origin is tuple:
        items = [v for v in value.split(",") if v] if isinstance(value, str) else value
        if isinstance(items, list | tuple):
            return tuple(convert(name, options[0], item) for item in items)
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif kind in (int, float):
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = kind(value.replace("_", "")) if isinstance(value, str) else kind(value)
            except (ValueError, OverflowError):
                number = None
            if number is not None and kind is int and abs(number) >= 2**63:
                raise InputError(f"{name} must be below 2**63 in size, got {str(value)[:24]}")
            if number is not None and (kind is float or isinstance(value, str) or number == value):
                return number
    elif kind is str and isinstance(value, str):
        if "\0" in value:  # no system has such a name
            raise InputError(f"{name} takes text without the character 0, got {value!r}")
        return value
    raise InputError(f"{name} takes {type_name(kind)}, got {value!r}")


def build(cls: type, values: dict[str, Any], *, source: str = "the configuration", prefix: str = "") -> Any:
    """Return `cls` made from nested tables of values, as `tomllib` gives them.

    Args:
        cls: a section or a dataclass of sections.
        values: table; what is absent takes the field's default.
        source: where the values came from, for the error's text.
        prefix: dotted name of the section, for the error's text.
    Raises:
        InputError: unknown key (the nearest one is named), wrong type, a missing required value, or a cross-check
            of the section that does not hold.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    made: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            candidates = [n for n, _, _ in fields_of(cls, prefix)] + [
                f"{prefix}{k}" for k in known if is_section(hints[k])
            ]
            raise InputError(f"unknown key {name} in {source}{nearest(name, candidates)}")
        if is_section(hints[key]):
            if not isinstance(value, dict):
                raise InputError(f"{name} is a section of {source}; write [{name}], not {name} = {value!r}")
            section = _chosen(hints[key], value, name, source)
            made[key] = None if section is None else build(section, value, source=source, prefix=f"{name}.")
        else:
            made[key] = convert(name, hints[key], value)
    for key, field in known.items():
        if key in made or field.default is not REQUIRED or field.default_factory is not REQUIRED:
            continue
        if dataclasses.is_dataclass(hints[key]):
            made[key] = build(typing.cast(type, hints[key]), {}, source=source, prefix=f"{prefix}{key}.")
        else:
            raise InputError(f"{prefix}{key} is missing in {source}; {field.metadata['meaning']}")
    try:
        return cls(**made)
    except InputError:
        raise
    except ValueError as error:  # a section's own cross-check
        raise InputError(str(error)) from error


def is_section(hint: Any) -> bool:
    """Return whether a field of this type is a section: a dataclass, or one of several by its kind."""
    return dataclasses.is_dataclass(hint) or bool(kinds_of(hint))


def _chosen(hint: Any, table: dict[str, Any], name: str, source: str) -> type | None:
    """Return the dataclass of a section's table, or None for the kind "none"."""
    kinds = kinds_of(hint)
    if not kinds:
        return hint
    kind, none = table.get("kind"), type(None) in typing.get_args(hint)
    known = [*kinds, "none"] if none else list(kinds)
    if kind is None:
        raise InputError(f"{name}.kind is missing in {source}; it is one of {', '.join(known)}")
    if kind not in known:
        raise InputError(f"{name}.kind takes one of {', '.join(known)}, got {kind!r}")
    return kinds.get(kind)


def to_table(config: Any) -> dict[str, Any]:
    """Return the nested table of a configuration: what `build` takes and `tomli_w` writes.

    None is left out, as TOML has no such value; where leaving it out would mean another default it is "none".
    """
    table: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            table[field.name] = to_table(value)
        elif value is not None:
            table[field.name] = list(value) if isinstance(value, tuple) else value
        elif field.default is not None and field.default is not dataclasses.MISSING:
            table[field.name] = "none"
    return table


def dotted(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a nested table by their dotted names.

    >>> dotted({"init": "a", "train": {"seed": 1}, "task": {"text": {"max_length": 8}}})
    {'init': 'a', 'train.seed': 1, 'task.text.max_length': 8}
    """
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": inner for key, inner in dotted(value).items()}
        else:
            found[name] = value
    return found


def override(table: dict[str, Any], name: str, value: Any) -> None:
    """Set the dotted `name` in a nested table, in place."""
    *sections, key = name.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise InputError(f"--{name}: {section} is a value, not a section")
    table[key] = value


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file.

    Raises:
        InputError: no such file, not text, or not TOML; the text names the file and, for a syntax error, the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"no configuration file {path}; give a .toml file, or --preset NAME") from error
    except (ValueError, RecursionError) as error:  # tomllib lets some of Python's own errors through
        raise InputError(f"{path} is not a TOML file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def toml_text(config: Any, *, leave_out: Iterable[str] = ()) -> str:
    """Return a configuration as TOML; `build(type(config), read_toml(path))` makes an equal one of a file with it.

    Args:
        leave_out: sections that say nothing in this case; `build` fills them with defaults.
    """
    import tomli_w

    left = set(leave_out)
    return tomli_w.dumps({name: value for name, value in to_table(config).items() if name not in left})
