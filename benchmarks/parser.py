"""The options of every command here: a mistake is one line that says what to do, and exit status 2.

Read next: `machine.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse without the usage before a mistake, and with the checks that several commands make."""

    def __init__(self, module: str, about: str | None) -> None:
        """Take the first line of `about` for what python -m MODULE does."""
        super().__init__(prog=f"python -m {module}", description=(about or "").partition("\n")[0])

    def error(self, message: str) -> NoReturn:
        to_do = "" if "; " in message else f"; {self.prog} --help lists the options"
        print(f"{self.prog.removeprefix('python -m ')}: {message}{to_do}", file=sys.stderr)
        raise SystemExit(2)

    def at_least(self, given: argparse.Namespace, **least: int) -> None:
        """Refuse a number below the least of its option."""
        for name, number in least.items():
            if (value := getattr(given, name)) < number:
                self.error(f"--{name} must be at least {number}, got {value}")

    def folder(self, option: str, path: Path) -> None:
        """Make a folder where there is none, and try to write there: else what is measured would be lost."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            self.error(f"{option} {path}: {error.strerror}; name a folder that can be written")
