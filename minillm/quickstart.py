"""`make quickstart`: pretrain a small decoder and a small encoder on Python's own documentation, and use them.

    runs/quickstart/decoder       tiny-decoder on stdlib-docs; a sample of its writing
    runs/quickstart/encoder       tiny-encoder on stdlib-docs; holes that it fills
    runs/quickstart/classifier    that encoder, fine-tuned to tell which package a docstring comes from

Read next: `pretrain.py`, then `finetune/run.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import minillm
from minillm.config import build
from minillm.data.docstrings import write_docstrings
from minillm.errors import InputError
from minillm.fill import fill
from minillm.finetune import run as finetuning
from minillm.finetune.config import FinetuneConfig
from minillm.generate import GenerateConfig, generate
from minillm.pretrain import Result, pretrain
from minillm.pretrain_config import PretrainConfig, preset_table
from minillm.training.progress import Progress, clock

OUT = Path("runs/quickstart")
PROMPT = "Return a list of"
HOLES = ("Return True if the [MASK] is empty.", "Raise an [MASK] if the file does not exist.")
NEXT = f"""What next:
  .venv/bin/minillm generate {OUT}/decoder --prompt "The file"
  .venv/bin/minillm fill {OUT}/encoder --text "Convert a [MASK] to a string."
  .venv/bin/minillm predict {OUT}/classifier --text "Return the widget that has the focus."
  .venv/bin/minillm evaluate {OUT}/decoder
  .venv/bin/minillm pretrain --preset tiny-decoder --data.input YOUR.txt --out runs/mine
To read: kernels/minillm_kernels/rms_norm/reference.py, minillm/model/layers.py, minillm/model/transformer.py"""


def main() -> None:
    """Train the models, show what they can do, and say what to run next."""
    began = time.perf_counter()
    progress = Progress()
    progress.note("quickstart: small models learn from the documentation in Python's standard library")
    results = {}
    for number, kind in enumerate(("decoder", "encoder"), start=1):
        progress.note(f"\n{number}. {kind}")
        results[kind] = train(kind, progress)
    progress.note("\n3. classifier: which package does a docstring come from?")
    classifier = train_classifier(results["encoder"].run, progress)
    print()
    show_writing(results["decoder"])
    show_holes(results["encoder"])
    show_judgement(classifier)
    for result in results.values():
        print(f"{result.kind}: {result.table[-1]}")
    print(f"plots: {', '.join(f'{result.run}/loss.png' for result in results.values())}")
    print(f"report: {classifier.run}/report/report.md")
    print(f"{clock(time.perf_counter() - began)} in all\n\n{NEXT}")


def train(kind: str, progress: Progress) -> Result:
    """Pretrain the tiny preset of a kind on stdlib-docs; an earlier quickstart is replaced."""
    table = preset_table(f"tiny-{kind}") | {"data": {"input": "stdlib-docs"}}
    config: PretrainConfig = build(PretrainConfig, table, source=f"preset tiny-{kind}")
    result = pretrain(config, OUT / kind, overwrite=True, progress=progress)
    if result.summary.stopped_early:
        raise InputError("quickstart was interrupted; run it again, it begins anew")
    return result


def train_classifier(encoder: Path, progress: Progress) -> finetuning.Result:
    """Fine-tune the encoder on the docstrings of a few packages, and the same from random weights to compare."""
    tables = {split: str(path) for split, path in write_docstrings(OUT / "docstrings").items()}
    settings = {
        "init": str(encoder),
        "against_random": True,
        "data": tables,
        "train": {"epochs": 6.0},
        "optim": {"learning_rate": 3e-3, "random_learning_rate": 1e-3},  # each the best of three on the valid table
    }
    config: FinetuneConfig = build(FinetuneConfig, settings, source="quickstart")
    result = finetuning.finetune(config, OUT / "classifier", overwrite=True, progress=progress)
    if result.summary.stopped_early:
        raise InputError("quickstart was interrupted; run it again, it begins anew")
    return result


def show_writing(result: Result) -> None:
    """Print a sample of the decoder's writing."""
    loaded = minillm.load(result.run)
    settings = GenerateConfig(max_tokens=80, temperature=0.7, top_p=0.9)
    (sample,) = generate(loaded.model, loaded.require_tokenizer(), [PROMPT], settings)
    print(f"The decoder goes on after {PROMPT!r}:\n")
    print("\n".join(f"    {line}" for line in (PROMPT + sample.text).splitlines()), end="\n\n")


def show_holes(result: Result) -> None:
    """Print the encoder's candidates for a few holes."""
    loaded = minillm.load(result.run)
    print("The encoder fills:\n")
    for text in HOLES:
        filled = fill(loaded.model, loaded.require_tokenizer(), text, top_k=4)
        candidates = "  ".join(f"{c.piece.strip()} {c.probability:.0%}" for c in filled.holes[0])
        print(f"    {text}\n        {candidates}")
    print()


def show_judgement(result: finetuning.Result) -> None:
    """Print how often the classifier is right on texts that it has not seen, beside those that it has to beat."""
    print("Which package does a docstring come from? On those held out for the end, right are:\n")
    for contender in result.contenders:
        figures = contender.figures("test")
        print(f"    {figures['accuracy']:6.1%}   {contender.name}")
    print()
