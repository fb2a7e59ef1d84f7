"""`minillm tokenizer train|encode|decode`: the tokenizer alone.

Read next: `minillm/tokenizer/base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minillm.cli.arguments import Parser, add_settings, override_settings, print_json, say, say_notice
from minillm.config import build, nearest
from minillm.errors import InputError
from minillm.tokenizer.config import TokenizerConfig

USAGE = """usage: minillm tokenizer train --data.input PATH|NAME --out DIR [--kind KIND] [--vocab_size N] ...
       minillm tokenizer encode RUN|DIR --text TEXT
       minillm tokenizer decode RUN|DIR --tokens "5 17 3"
"""


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    actions = {"train": train, "encode": encode, "decode": decode}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if argv[0] not in actions:
        raise InputError(f"no command 'tokenizer {argv[0]}'{nearest(argv[0], actions)}")
    actions[argv[0]](argv[1:])


def train(argv: Sequence[str]) -> None:
    """Train a tokenizer on a corpus and save it."""
    parser = Parser(prog="minillm tokenizer train", description="Train a tokenizer on text and save it.")
    parser.add_argument("--data.input", dest="input", required=True, metavar="PATH|NAME", help="text, as in pretrain")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the tokenizer goes")
    parser.json_option()
    add_settings(parser, TokenizerConfig)
    arguments = parser.parse(argv)
    table: dict[str, object] = {}
    override_settings(table, arguments, TokenizerConfig)
    config = build(TokenizerConfig, table, source="the command line")

    from minillm.checkpoint.run_folder import RunFolder
    from minillm.data.config import DataConfig
    from minillm.data.corpora import open_corpus
    from minillm.tokenizer.training import train_tokenizer

    if arguments.out.is_file():
        raise InputError(f"--out {arguments.out} is a file; name a folder")
    place = arguments.out.resolve()
    around = RunFolder(place.parent)
    if place == around.tokenizer_path:
        around.check_tokenizer_free()
    corpus = open_corpus(arguments.input, valid_fraction=DataConfig().valid_fraction)
    say_notice(corpus)
    tokenizer = train_tokenizer(config, corpus.texts("train"))
    say_notice(tokenizer)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(arguments.out)
    num_tokens = sum(len(tokenizer.encode(text)) for text in corpus.texts("valid"))
    bytes_per_token = corpus.num_bytes("valid") / max(num_tokens, 1)
    if arguments.json:
        print_json(
            {
                "tokenizer": str(arguments.out),
                "kind": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "bytes_per_token": bytes_per_token,
            }
        )
        return
    say(
        f"{tokenizer.kind} with {tokenizer.vocab_size:,} tokens, {bytes_per_token:.2f} bytes a token on held-out text: "
        f"{arguments.out}"
    )


def encode(argv: Sequence[str]) -> None:
    """Print the tokens of a text, with their pieces."""
    parser = Parser(prog="minillm tokenizer encode", description="Show the tokens of a text.")
    parser.add_argument(
        "folder", type=Path, metavar="RUN|DIR", help="a run, a tokenizer's own or a Hugging Face folder"
    )
    parser.add_argument("--text", required=True, metavar="TEXT", help="what to encode")
    parser.json_option()
    arguments = parser.parse(argv)

    from minillm.loading import tokenizer_at

    tokenizer = tokenizer_at(arguments.folder)
    tokens = tokenizer.encode(arguments.text)
    pieces = [tokenizer.piece(token) for token in tokens]
    if arguments.json:
        print_json({"tokens": tokens, "pieces": pieces})
        return
    print(" ".join(map(str, tokens)))
    print(" ".join(repr(piece) for piece in pieces))


def decode(argv: Sequence[str]) -> None:
    """Print the text of tokens."""
    parser = Parser(prog="minillm tokenizer decode", description="Turn tokens into text.")
    parser.add_argument(
        "folder", type=Path, metavar="RUN|DIR", help="a run, a tokenizer's own or a Hugging Face folder"
    )
    parser.add_argument("--tokens", required=True, metavar="IDS", help="numbers with spaces or commas between them")
    parser.json_option()
    arguments = parser.parse(argv)

    from minillm.loading import tokenizer_at

    tokenizer = tokenizer_at(arguments.folder)
    words = arguments.tokens.replace(",", " ").split()
    for word in words:
        if not word.isdecimal() or len(word) > 18 or int(word) >= tokenizer.vocab_size:
            raise InputError(f"a token is a number from 0 to {tokenizer.vocab_size - 1}, got {word!r}")
    text = tokenizer.decode([int(word) for word in words])
    if arguments.json:
        print_json({"text": text})
        return
    print(text)
