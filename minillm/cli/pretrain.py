"""`minillm pretrain`: train an encoder or decoder on text, or go on with a run.

Read next: `minillm/pretrain.py`; `minillm/quickstart.py` runs it twice.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm.cli.arguments import Parser, add_settings, override_settings, print_json, say
from minillm.config import build, read_toml
from minillm.errors import InputError, Stopped
from minillm.pretrain_config import PretrainConfig, preset_names, preset_table
from minillm.training.distributed_config import is_first


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(
        prog="minillm pretrain",
        description="Train an encoder or decoder on text. Settings come from a file or a preset, then from options.",
        epilog="QUICK=1 in the environment ends every run after 20 more steps: a rehearsal.",
    )
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="a file with the settings")
    parser.add_argument("--preset", metavar="NAME", help=f"in place of a file: {', '.join(preset_names())}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default: runs/ and the file's name)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that stands in --out")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run from its latest checkpoint")
    parser.add_argument("--init", type=Path, metavar="RUN", help="begin with the weights and tokenizer of another run")
    parser.add_argument("--quiet", action="store_true", help="no live line and no notes")
    parser.json_option()
    add_settings(parser, PretrainConfig)
    arguments = parser.parse(argv)
    _check_sources(arguments)

    from minillm import pretrain  # imports torch: after the words were found right
    from minillm.training.progress import Progress

    progress = Progress(quiet=arguments.quiet or not is_first())
    if arguments.resume is not None:
        overrides: dict[str, Any] = {}
        override_settings(overrides, arguments, PretrainConfig)
        result = pretrain.resume(arguments.resume, overrides, progress=progress)
    else:
        config, stem, own_hand = _config(arguments)
        result = pretrain.pretrain(
            config,
            arguments.out or Path("runs") / stem,
            init=arguments.init,
            overwrite=arguments.overwrite,
            own_hand=own_hand,
            progress=progress,
        )
    if arguments.json and is_first():
        print_json(result.json())
    if result.summary.signal is not None:
        raise Stopped(128 + result.summary.signal)
    if not arguments.json and not arguments.quiet and is_first():
        say(_next_command(result))


def _check_sources(arguments: argparse.Namespace) -> None:
    """Raise InputError unless the words say in exactly one way what is to be trained."""
    given = [
        word
        for word, value in (
            ("CONFIG.toml", arguments.config),
            ("--preset", arguments.preset),
            ("--resume", arguments.resume),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise InputError(f"minillm pretrain takes one of CONFIG.toml, --preset and --resume, got {' and '.join(given)}")
    if not given and arguments.init is None:
        raise InputError("minillm pretrain needs CONFIG.toml, --preset NAME or --resume RUN; try --preset tiny-decoder")
    if arguments.resume is not None:
        for word in ("out", "init", "overwrite"):
            if getattr(arguments, word):
                raise InputError(f"--resume goes on in the run folder itself; leave out --{word}")


def _config(arguments: argparse.Namespace) -> tuple[PretrainConfig, str, bool]:
    """Return the settings of a new run, the name that they have, and whether `data.cache` is of the user's own hand."""
    own_hand = True
    if arguments.config is not None:
        table, source, stem = read_toml(arguments.config), str(arguments.config), arguments.config.stem
    elif arguments.preset is not None:
        table, source, stem = preset_table(arguments.preset), f"preset {arguments.preset}", arguments.preset
    else:
        from minillm.checkpoint.run_folder import RunFolder
        from minillm.pretrain import settings_of

        run = RunFolder(arguments.init)
        table, source, stem = settings_of(run), str(run.config_path), f"{run.path.name}-continued"
        own_hand = False
    names = override_settings(table, arguments, PretrainConfig)
    taken = [f"--{name}" for name in names if name.startswith(("model.", "tokenizer."))]
    if arguments.init is not None and taken:
        raise InputError(
            f"--init takes architecture and tokenizer of {arguments.init} as they are; leave out {', '.join(taken)}"
        )
    return build(PretrainConfig, table, source=source), stem, own_hand or "data.cache" in names


def _next_command(result: Any) -> str:
    """Return what to do with the run now."""
    if result.kind == "decoder":
        return f'next: minillm generate {shlex.quote(str(result.run))} --prompt "..."'
    return f'next: minillm fill {shlex.quote(str(result.run))} --text "... [MASK] ..."'
