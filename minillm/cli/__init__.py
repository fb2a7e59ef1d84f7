"""The command line: one small file a command, found here by name and imported only when it is asked for.

Read next: `arguments.py` and `../cores.py`, then the commands: `quickstart.py`, `pretrain.py`, `generate.py`,
`fill.py`, `evaluate.py`, `finetune.py`, `predict.py`, `explain.py`, `export.py`, `import_.py`, `data.py`,
`tokenizer.py`, `kernels.py`.
"""

from __future__ import annotations

import importlib
import io
import keyword
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from minillm.config import nearest
from minillm.cores import share_cores
from minillm.errors import InputError, SaidElsewhere, Stopped, disk_trouble
from minillm.training.distributed_config import is_launched

COMMANDS = {  # name -> what it does, in the order in which a newcomer meets them
    "quickstart": "pretrain two small models on Python's documentation, and use them",
    "pretrain": "train an encoder or decoder on text; also resumes a run",
    "generate": "continue a prompt with a decoder",
    "fill": "fill [MASK] in a text with an encoder",
    "evaluate": "loss, perplexity, bits per byte or masked accuracy on held-out text, beside the anchors",
    "finetune": "teach a pretrained model a task from a table of labelled texts",
    "predict": "say which label a text has, with a fine-tuned model",
    "explain": "say which pieces of a text made a fine-tuned model answer so, or what each token attends to",
    "import": "make a run of a Hugging Face model folder",
    "export": "write a run's model as a Hugging Face folder",
    "data": "prepare a corpus as token shards, or show what it holds",
    "tokenizer": "train a tokenizer, or encode and decode with one",
    "kernels": "say for every op which backend computes it here, and why",
}


def usage() -> str:
    """Return the text of `minillm --help`."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(
        [
            "usage: minillm COMMAND ...",
            "",
            "Pretrain small Transformers on your own text, and use them.",
            "",
            *lines,
            "",
            "minillm COMMAND --help says what a command takes. Exit status: 0 done, 2 wrong input (one line says what",
            "to do), 1 a defect.",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status: 0 done, 2 the input is wrong, 130 or 143 stopped by a signal.

    Of several processes one that a signal has stopped returns 0: any other status is a failure to torchrun, which
    --max-restarts answers by starting the run again.

    Args:
        argv: the words after `minillm`.

    A defect raises what it raises: the traceback is for whoever mends it, and Python then exits with 1.
    """
    try:
        _command(argv)
        sys.stdout.flush()  # here, where a failure is answered: at Python's exit it would be status 120
        return 0
    except SaidElsewhere:
        return 2
    except InputError as error:
        print(f"minillm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Stopped as stop:  # all is said already
        return 0 if is_launched() else stop.status
    except BrokenPipeError:  # the reader went away (`| head`): nothing is wrong
        _settle(sys.stdout)
        _settle(sys.stderr)
        return 0
    except OSError as error:
        line = disk_trouble(error)
        if line is None:
            raise
        _settle(sys.stdout)
        print(f"minillm: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minillm: interrupted", file=sys.stderr)
        return 130


def _command(argv: Sequence[str]) -> None:
    """Do what the words say."""
    for word in argv:
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in word):  # Python's sign for a stray byte
            raise InputError(f"{word[:40]!a} is not UTF-8; name files and write texts in UTF-8")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] == "--version":
        from minillm import __version__

        print(f"minillm {__version__}")
        return
    name = argv[0]
    if name not in COMMANDS:
        raise InputError(f"no command {name!r}{nearest(name, COMMANDS)}")
    module = f"{name}_" if keyword.iskeyword(name) else name  # no file can be called import
    command = importlib.import_module(f"minillm.cli.{module}")
    try:
        command.main(list(argv[1:]))
    except SystemExit:  # argparse leaves so after --help; its mistakes are InputErrors
        return


def _settle(stream: TextIO) -> None:
    """Empty a stream's buffer, into nothing where its reader or its disk is gone: Python flushes it again at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run() -> None:
    """Enter from the shell. What the terminal's encoding lacks is written as an escape, such as \\xe9."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed from the start (`>&-`): nothing comes, and nobody reads
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    share_cores()
    sys.exit(main(sys.argv[1:]))
