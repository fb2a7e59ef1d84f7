"""`minillm fill RUN --text "... [MASK] ..."`: the likeliest pieces for each mask.

Read next: `minillm/fill.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minillm.cli.arguments import Parser, print_json


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(prog="minillm fill", description="Fill each [MASK] in a text with a pretrained encoder.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--text", required=True, metavar="TEXT", help="text with one or more [MASK]")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="candidates for each mask (default 5)")
    parser.checkpoint_option()
    parser.json_option()
    arguments = parser.parse(argv)

    import minillm
    from minillm.fill import fill

    loaded = minillm.load(arguments.run, which=arguments.checkpoint)
    filled = fill(loaded.model, loaded.require_tokenizer(), arguments.text, top_k=arguments.top_k)
    if arguments.json:
        print_json(
            {
                "run": str(arguments.run),
                "text": filled.text,
                "masks": [[{"piece": c.piece, "probability": c.probability} for c in hole] for hole in filled.holes],
            }
        )
        return
    print(filled.text)
    for number, hole in enumerate(filled.holes, start=1):
        candidates = ", ".join(f"{c.piece!r} {c.probability:.3f}" for c in hole)
        print(f"  [MASK] {number}: {candidates}")
