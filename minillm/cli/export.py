"""`minillm export RUN --format hf --out DIR`: a run becomes a folder that transformers opens as its own class.

`--format peft` writes the adapter of a fine-tuning run by itself, and the model without it beside it.

Read next: `minillm/exporting.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from minillm.cli.arguments import Parser, print_json, say
from minillm.errors import InputError

GIGABYTE = 10**9


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(prog="minillm export", description="Write a run's model in a format that others read.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--format",
        choices=("hf", "peft"),
        default="hf",
        help="hf: a Hugging Face model folder, with an adapter merged into it (default); peft: two folders, adapter in"
        " the format of the PEFT library, and base without it",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder, which is made")
    parser.checkpoint_option()
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="write it as bert, roberta, distilbert, modernbert, gpt2, llama, mistral or qwen3"
        " (default: as what it was imported, or the first one that fits)",
    )
    parser.add_argument(
        "--shard-gigabytes", type=float, default=5.0, metavar="N", help="largest safetensors file (default 5)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model folder that stands in --out")
    parser.json_option()
    arguments = parser.parse(argv)

    if not 0 < arguments.shard_gigabytes * GIGABYTE < math.inf:
        raise InputError(
            f"--shard-gigabytes takes a number above 0, got {arguments.shard_gigabytes}; leave it out for 5"
        )
    if arguments.format == "peft":
        from minillm.exporting_adapter import export_adapter as export
    else:
        from minillm.exporting import export_run as export
    made = export(
        arguments.run,
        arguments.out,
        which=arguments.checkpoint,
        family=arguments.family,
        overwrite=arguments.overwrite,
        shard_bytes=max(1, int(arguments.shard_gigabytes * GIGABYTE)),
    )
    for note in made.notes:
        say(note)
    if arguments.json:
        print_json(
            {
                "run": str(arguments.run),
                "out": str(made.folder),
                "model_type": made.model_type,
                "architecture": made.architecture,
                "tensors": made.tensors,
                "parameters": made.parameters,
            }
        )
        return
    print(f"{made.folder}: {made.architecture} with {made.parameters:,} parameters in {made.tensors} tensors")
