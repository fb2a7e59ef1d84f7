"""`minillm generate RUN --prompt TEXT`: continue one or several prompts, streamed as they come.

Read next: `minillm/generate.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from minillm.cli.arguments import Parser, print_json
from minillm.errors import InputError


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(prog="minillm generate", description="Continue a prompt with a pretrained decoder.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="text to continue; give it again for several")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a file with one prompt a line")
    parser.checkpoint_option()
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N", help="new tokens at most (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: greedy (default 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the fewest tokens that hold mass P")
    parser.add_argument("--min-p", type=float, metavar="P", help="drop tokens under P times the likeliest one's")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: repeat less")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default 0)")
    parser.add_argument("--no-cache", action="store_true", help="recompute everything at each token (to compare)")
    parser.json_option()
    arguments = parser.parse(argv)

    import minillm
    from minillm.generate import GenerateConfig, generate

    settings = GenerateConfig(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        stop=tuple(arguments.stop),
        seed=arguments.seed,
        use_cache=not arguments.no_cache,
    )
    prompts = read_prompts(arguments.prompt, arguments.prompts)
    loaded = minillm.load(arguments.run, which=arguments.checkpoint)
    stream = len(prompts) == 1 and not arguments.json
    untold = list(prompts)  # printed with the first new text: what cannot be continued prints nothing

    def write(_: int, text: str) -> None:
        print("".join(untold) + text, end="", flush=True)
        untold.clear()

    tokenizer = loaded.require_tokenizer()
    results = generate(loaded.model, tokenizer, prompts, settings, ends=loaded.ends, on_text=write if stream else None)
    if arguments.json:
        shown = [{"prompt": p, **dataclasses.asdict(r)} for p, r in zip(prompts, results, strict=True)]
        print_json({"run": str(arguments.run), "results": shown})
    elif stream:
        print("".join(untold))
    else:
        for number, (prompt, result) in enumerate(zip(prompts, results, strict=True), start=1):
            print(f"--- {number} ({result.tokens} tokens, {result.stop})\n{prompt}{result.text}")


def read_prompts(words: list[str] | None, file: Path | None) -> list[str]:
    """Return the prompts from the command line and from a file, in this order; one empty prompt when there are none.

    Other characters than a newline that Unicode calls line ends belong to a prompt.
    """
    prompts = list(words or [])
    if file is not None:
        try:
            prompts += [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line]
        except UnicodeDecodeError as error:
            raise InputError(f"--prompts {file} is not UTF-8 text: byte {error.start}") from error
        if not prompts:
            raise InputError(f"--prompts {file} holds no prompt; write one a line")
    return prompts or [""]
