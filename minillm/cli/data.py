"""`minillm data show|prepare`: what a corpus holds, and its token shards.

Read next: `minillm/data/corpora.py`, then `minillm/data/shards.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from minillm.cli.arguments import Parser, add_settings, override_settings, print_json, say, say_notice
from minillm.config import build, nearest
from minillm.data.config import DataConfig
from minillm.errors import InputError
from minillm.tokenizer.config import TokenizerConfig

USAGE = """usage: minillm data show --data.input PATH|NAME
       minillm data prepare --data.input PATH|NAME --out DIR [--tokenizer RUN|DIR | --kind KIND --vocab_size N ...]

Embedded corpora: stdlib-docs and stdlib-code, the running Python's own standard library.
"""


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    actions = {"show": show, "prepare": prepare}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if argv[0] not in actions:
        raise InputError(f"no command 'data {argv[0]}'{nearest(argv[0], actions)}")
    actions[argv[0]](argv[1:])


def show(argv: Sequence[str]) -> None:
    """Print what a corpus holds, and how its documents begin."""
    parser = _parser("show", "Show what a corpus holds.")
    arguments = parser.parse(argv)

    from minillm.data.corpora import Split, open_corpus

    corpus = open_corpus(arguments.input, valid_fraction=arguments.valid_fraction)
    say_notice(corpus)
    splits: tuple[Split, ...] = get_args(Split)
    sizes = {split: corpus.num_bytes(split) for split in splits}
    documents = {split: corpus.num_documents(split) for split in splits}
    if arguments.json:
        print_json({"name": corpus.name, "digest": corpus.digest, "bytes": sizes, "documents": documents})
        return
    print(f"{corpus.name}  sha256 {corpus.digest[:16]}")
    for split in splits:
        beginning = next(corpus.parts(split))[0][:60]
        print(f"  {split}  {sizes[split]:>12,} bytes  {documents[split]:>7,} documents  begins {beginning!r}")


def prepare(argv: Sequence[str]) -> None:
    """Write token shards, with a tokenizer that is there or a new one."""
    parser = _parser("prepare", "Turn a corpus into token shards; --data.cache of pretrain takes the folder.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where shards and tokenizer go")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="RUN|DIR",
        help="use this one: of a run, its own or a Hugging Face folder (default: train one)",
    )
    parser.add_argument("--encoder", action="store_true", help="put cls and sep around documents, not bos and eos")
    add_settings(parser, TokenizerConfig)
    arguments = parser.parse(argv)
    table: dict[str, object] = {}
    if override_settings(table, arguments, TokenizerConfig) and arguments.tokenizer is not None:
        raise InputError("--tokenizer takes one as it is; leave out the settings of a new one")
    config = build(TokenizerConfig, table, source="the command line")

    from minillm.checkpoint.run_folder import RunFolder
    from minillm.data.corpora import open_corpus
    from minillm.loading import tokenizer_at
    from minillm.material import token_stores
    from minillm.tokenizer.training import train_tokenizer
    from minillm.training.progress import Progress

    if arguments.out.is_file():
        raise InputError(f"--out {arguments.out} is a file; name a folder")
    if arguments.tokenizer is None:
        RunFolder(arguments.out).check_tokenizer_free()
    corpus = open_corpus(arguments.input, valid_fraction=arguments.valid_fraction)
    say_notice(corpus)
    if arguments.tokenizer is not None:
        tokenizer = tokenizer_at(arguments.tokenizer)
    else:
        tokenizer = train_tokenizer(config, corpus.texts("train"))
        say_notice(tokenizer)
        tokenizer.save(arguments.out / "tokenizer")
    progress = Progress(quiet=arguments.json)
    prefix, suffix = tokenizer.specials.around("encoder" if arguments.encoder else "decoder")
    with progress.shown():
        train, valid = token_stores(
            corpus,
            tokenizer=tokenizer,
            folder=arguments.out,
            prefix=prefix,
            suffix=suffix,
            progress=progress,
        )
    tokens = {"train": len(train.tokens), "valid": len(valid.tokens)}
    if arguments.json:
        print_json({"folder": str(arguments.out), "vocab_size": tokenizer.vocab_size, "tokens": tokens})
        return
    say(f"{tokens['train']:,} tokens to learn from and {tokens['valid']:,} held out: {arguments.out}")


def _parser(name: str, description: str) -> Parser:
    """Return a parser with the options that both commands take."""
    parser = Parser(prog=f"minillm data {name}", description=description)
    parser.add_argument("--data.input", dest="input", required=True, metavar="PATH|NAME", help="text, as in pretrain")
    parser.add_argument(
        "--data.valid_fraction",
        dest="valid_fraction",
        type=float,
        default=DataConfig().valid_fraction,
        metavar="SHARE",
        help="share that is held out",
    )
    parser.json_option()
    return parser
