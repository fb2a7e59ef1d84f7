"""Command-line words: argparse with one-line errors, and `--section.key value` for every setting of a configuration.

argparse rather than a larger library: the contract wants one plain line for a mistake, the nearest name for an unknown
option, and help in half a second.

Read next: `pretrain.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from minillm.config import REQUIRED, convert, fields_of, nearest, override, type_name
from minillm.errors import InputError


class Noticed(Protocol):
    """A corpus or a tokenizer: notice is what the user should know about it; empty: nothing."""

    notice: str


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are `InputError`s and whose unknown options name the nearest known one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the mistake instead of printing the usage and leaving."""
        raise InputError(f"{message}; `{self.prog} --help` lists what it takes")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the parsed words.

        Raises:
            InputError: an unknown option (the nearest one is named), a missing or a wrong value.
        """
        known, unknown = self.parse_known_args(list(argv))
        for action in self._actions:  # argparse takes the value of --option=-- for an end of options: none is left
            value = getattr(known, action.dest, None)
            if action.nargs is None and isinstance(value, list) and ([] in value or value == [] != action.default):
                raise InputError(f"{action.option_strings[-1]} takes a value, got '--'")
        if unknown:
            word = unknown[0].partition("=")[0]
            options = [o.lstrip("-") for action in self._actions for o in action.option_strings if o.startswith("--")]
            if word.startswith("--"):
                close = nearest(word[2:], options)
                hint = close.replace("did you mean ", "did you mean --") if "did you mean" in close else ""
                raise InputError(f"unknown option {word}{hint or f'; `{self.prog} --help` lists them'}")
            raise InputError(f"{word!r} is one word too many; quote text that has spaces")
        return known

    def checkpoint_option(self) -> None:
        """Add --checkpoint: which of a run's checkpoints answers."""
        self.add_argument("--checkpoint", default="best", metavar="WHICH", help="best, latest or a step (default best)")

    def device_option(self) -> None:
        """Add --device: where the model runs."""
        self.add_argument(
            "--device", default="auto", metavar="DEVICE", help="cpu, cuda or mps (default: the best one here)"
        )

    def json_option(self) -> None:
        """Add --json: one JSON object, last, on standard output."""
        self.add_argument("--json", action="store_true", help="print the result as one JSON object, last")


class HelpFormatter(argparse.HelpFormatter):
    """Help with room for the dotted names of settings."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def add_settings(parser: argparse.ArgumentParser, config: type, *, skip: Sequence[str] = ()) -> None:
    """Add `--section.key VALUE` for every setting of a configuration class, grouped by section.

    Args:
        parser: what to add to.
        config: a dataclass of sections, or one section (then the options have no dot).
        skip: dotted names to leave out.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field, kind in fields_of(config):
        if name in skip:
            continue
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"[{section}]" if section else "settings")
        default = "" if field.default in (REQUIRED, None) else f" (default {shown(field.default)})"
        groups[section].add_argument(
            f"--{name}",
            dest=name,
            metavar=type_name(kind).upper().replace(" OR NONE", "").replace("ONE OF ", "").replace(", ", "|"),
            default=argparse.SUPPRESS,
            help=(field.metadata["meaning"] + default).replace("%", "%%"),
        )


def shown(value: Any) -> str:
    """Return a default as a user would type it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def override_settings(
    table: dict[str, Any], arguments: argparse.Namespace, config: type, *, skip: Sequence[str] = ()
) -> list[str]:
    """Set in `table` every setting that stood on the command line, and return their dotted names.

    Args:
        skip: dotted names that `add_settings` left out: an option of such a name is another one.
    """
    given = vars(arguments)
    names = []
    for name, _, kind in fields_of(config):
        if name in given and name not in skip:
            override(table, name, convert(f"--{name}", kind, given[name]))
            names.append(name)
    return names


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object, on one line, on standard output; a number that is not finite becomes null."""
    utf8 = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    print(json.dumps(finite(result), ensure_ascii=not utf8), flush=True)


def finite(value: Any) -> Any:
    """Return `value` with every infinity and NaN replaced by None: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def say(text: str) -> None:
    """Print a line of progress on standard error, where it cannot mix with a result."""
    print(text, file=sys.stderr, flush=True)


def say_notice(made: Noticed) -> None:
    """Print what the user should know about a corpus or a tokenizer, where there is anything, on standard error."""
    if made.notice:
        say(made.notice)
