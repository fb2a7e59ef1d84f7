"""How long a checkpoint of 124 million parameters takes to load, and in how much memory: python -m benchmarks.loading.

GPT-2 small, as a Hugging Face folder and as a run, by `minillm.load`, and the same folder by transformers. Each load is
one process of its own; imports are over when its clock starts, and the files are in the page cache. Memory is anonymous
memory at its highest, above what stood before, as a multiple of the weights: a mapped file is not in it.

LOADING.json has every load, LOADING.md the medians.

Read next: `minillm/loading.py`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.kept import made_on, write
from benchmarks.machine import header
from benchmarks.parser import Parser
from benchmarks.parts import table

CONTENDERS = {  # name -> what is imported, the call, and which of the two folders it reads
    "minillm.load, Hugging Face folder": ("from minillm.loading import load", "load(path).model", "theirs"),
    "minillm.load, run": ("from minillm.loading import load", "load(path).model", "run"),
    "transformers": ("from transformers import GPT2LMHeadModel as M", "M.from_pretrained(path)", "theirs"),
}
CHILD = """
import json, sys, threading, time
{imports}

path = sys.argv[1]

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)

before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
model = {call}
seconds = time.perf_counter() - start
done.set()
watcher.join()
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({{"seconds": seconds, "memory": max(peak, anonymous()) - before, "weights": weights}}))
"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """One load. seconds: wall clock. memory: bytes above what stood before. weights: bytes of all parameters."""

    name: str
    seconds: float
    memory: int
    weights: int


def save_gpt2(place: Path) -> None:
    """Write GPT-2 small, its weights zeros, as `place`/theirs and `place`/run."""
    import torch

    from minillm.exporting import export_model
    from minillm.importing import save_run
    from minillm.loading import Loaded
    from minillm.model.config import ModelConfig
    from minillm.model.init import Undrawn
    from minillm.model.transformer import build_model

    with Undrawn(), torch.no_grad():
        model = build_model(ModelConfig(vocab_size=50257))
        for parameter in model.parameters():
            parameter.zero_()
    export_model(model, place / "theirs", tokenizer=None)
    save_run(Loaded(model=model, tokenizer=None, config=None, folder=place, step=0), place / "run")


def measure(name: str, place: Path) -> Load:
    """Return one load of what `save_gpt2` wrote, in a process of its own; Linux only."""
    imports, call, folder = CONTENDERS[name]
    words = [sys.executable, "-c", CHILD.format(imports=imports, call=call), str(place / folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return Load(name=name, **json.loads(done.stdout.splitlines()[-1]))


def page(loads: Sequence[Load], head: Mapping[str, Any]) -> str:
    """Return the table of medians."""
    lines = [
        "# Loading a checkpoint of 124 million parameters\n",
        f"{made_on(head)} `python -m benchmarks.loading` made this page.",
        "transformers leaves the weights in the mapped file, from which they are read at their first use.\n",
    ]
    rows = []
    for name in dict.fromkeys(load.name for load in loads):
        own = [load for load in loads if load.name == name]
        seconds = statistics.median(load.seconds for load in own)
        share = statistics.median(load.memory / load.weights for load in own)
        rows.append([name, f"{seconds:.2f}", f"{share:.2f}", str(len(own))])
    heads = ("", "seconds", "memory, times the weights", "loads")
    return "\n".join([*lines, *table(heads, rows, words=1)]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table and return the exit status."""
    parser = Parser("benchmarks.loading", __doc__)
    parser.add_argument("--repeats", type=int, default=5, help="loads of each (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where LOADING.json and .md go")
    given = parser.parse_args(argv)
    parser.at_least(given, repeats=1)
    parser.folder("--out", given.out)
    if find_spec("transformers") is None:
        parser.error("transformers is not installed; install it: pip install transformers")
    with tempfile.TemporaryDirectory() as scratch:
        save_gpt2(Path(scratch))
        loads = [measure(name, Path(scratch)) for _ in range(given.repeats) for name in CONTENDERS]
    head, path = header(), given.out / "LOADING.json"
    write(path, {"header": head}, loads, page(loads, head))
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
