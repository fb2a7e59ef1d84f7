"""The command line: one small file a command, found here by name and imported only when it is asked for.

Read next: `pretrain.py`.
"""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

from minillm.config import nearest
from minillm.errors import InputError

COMMANDS = {  # name -> what it does, in the order in which a newcomer meets them
    "pretrain": "train an encoder or decoder on text; also resumes a run",
    "generate": "continue a prompt with a decoder",
    "fill": "fill [MASK] in a text with an encoder",
    "evaluate": "loss, perplexity, bits per byte or masked accuracy on held-out text, beside the anchors",
    "data": "prepare a corpus as token shards, or show what it holds",
    "tokenizer": "train a tokenizer, or encode and decode with one",
    "kernels": "say for every op which backend computes it here, and why",
}

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
NO_ROOM = (*FULL_DISK, errno.EFBIG)  # what a write can fail with that does not know its file's name


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
    """Run one command and return the exit status: 0 done, 2 the input is wrong, 130 interrupted.

    Args:
        argv: the words after `minillm`.

    A defect raises what it raises: the traceback is for whoever mends it, and Python then exits with 1.
    """
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(usage())
            return 0
        if argv[0] == "--version":
            from minillm import __version__

            print(f"minillm {__version__}")
            return 0
        name = argv[0]
        if name not in COMMANDS:
            raise InputError(f"no command {name!r}{nearest(name, COMMANDS)}")
        command = importlib.import_module(f"minillm.cli.{name}")
        command.main(list(argv[1:]))
        return 0
    except InputError as error:
        print(f"minillm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader went away (`| head`): nothing is wrong
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            raise
        reason = "the disk is full; free some space and run again" if error.errno in FULL_DISK else error.strerror
        print(f"minillm: {error.filename or 'writing'}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minillm: interrupted", file=sys.stderr)
        return 130


def run() -> None:
    """Enter from the shell."""
    sys.exit(main(sys.argv[1:]))
