"""`minillm import DIR --out RUN`: a Hugging Face model folder becomes a run.

Read next: `minillm/importing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minillm.cli.arguments import Parser, print_json, say


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(
        prog="minillm import",
        description="Make a run of a Hugging Face model folder: BERT, RoBERTa, DistilBERT, ModernBERT, GPT-2, Llama, "
        "Mistral or Qwen-3, as safetensors.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with config.json and model.safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run folder, which is made")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="DIR holds an adapter of PEFT's, and this is the model that it is for"
    )
    parser.json_option()
    arguments = parser.parse(argv)

    if arguments.base is None:
        from minillm.importing import import_folder

        made = import_folder(arguments.folder, arguments.out)
    else:
        from minillm.importing_adapter import import_adapter

        made = import_adapter(arguments.folder, arguments.base, arguments.out)
    for note in made.notes:
        say(note)
    if arguments.json:
        print_json(
            {
                "run": str(made.run),
                "model_type": made.model_type,
                "architecture": made.architecture,
                "parameters": made.parameters,
                "tokenizer": made.tokenizer,
            }
        )
        return
    words = "no tokenizer" if made.tokenizer is None else f"a {made.tokenizer} tokenizer"
    print(f"{made.run}: {made.architecture} with {made.parameters:,} parameters, {words}")
