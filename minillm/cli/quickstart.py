"""`minillm quickstart`: what `make quickstart` runs once it has set up.

Read next: `minillm/quickstart.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minillm.cli.arguments import Parser


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    Parser(
        prog="minillm quickstart",
        description="Pretrain a small decoder and a small encoder on the documentation of Python's standard library, "
        "and make the encoder a classifier, in about five minutes on two CPU cores; into runs/quickstart.",
    ).parse(argv)

    from minillm import quickstart

    quickstart.main()
