"""`minillm evaluate RUN`: how good a model is on held-out text, beside simple models that learnt from the same text.

Read next: `minillm/evaluate.py`, then `minillm/anchors.py`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minillm.cli.arguments import Parser, print_json
from minillm.config import build, to_table
from minillm.errors import InputError
from minillm.model.config import ModelConfig
from minillm.pretrain_config import OBJECTIVE_OF, PretrainConfig


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(
        prog="minillm evaluate",
        description="Judge a model on held-out text, beside simple models. Every encoder is asked for single tokens, "
        "15 % of all, however it was trained, so that figures compare.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--data.input",
        dest="input",
        metavar="PATH|NAME",
        help="another text, all of it (default: what RUN held out); of an imported RUN, which learnt elsewhere, its "
        "last tenth, as the simple models learn from the rest",
    )
    parser.checkpoint_option()
    parser.device_option()
    parser.json_option()
    arguments = parser.parse(argv)

    import minillm
    from minillm.checkpoint.run_folder import RunFolder
    from minillm.evaluate import compare
    from minillm.material import gather
    from minillm.training.precision import choose_device
    from minillm.training.progress import Progress

    device = choose_device(arguments.device, setting="--device")
    loaded = minillm.load(arguments.run, which=arguments.checkpoint, device=device)
    if loaded.config is None and arguments.input is None:
        raise InputError(
            f"{arguments.run} has no config.toml, which says what it learnt from; name a text with --data.input"
        )
    progress = Progress(quiet=arguments.json)
    with tempfile.TemporaryDirectory() as scratch, progress.shown():
        config, folder, held_out = loaded.config, RunFolder(arguments.run), None
        if config is None:
            config, folder = elsewhere(loaded.model.config, arguments.input), RunFolder(scratch)
        elif arguments.input is not None:
            held_out = (arguments.input, Path(scratch))
        config = dataclasses.replace(config, model=loaded.model.config)  # config.toml may have been edited since
        tokenizer = loaded.require_tokenizer()
        material = gather(config, folder, tokenizer, held_out=held_out, own_hand=False, progress=progress)
        figures = material.evaluate(loaded.model)
        anchors = material.anchors(folder.path / "anchors.json")
    if arguments.json:
        print_json(
            {
                "run": str(arguments.run),
                "step": loaded.step,
                "text": material.corpus.name,
                **dataclasses.asdict(figures),
                "anchors": [dataclasses.asdict(anchor) for anchor in anchors],
            }
        )
        return
    print(f"{arguments.run} after {loaded.step:,} steps, on {material.corpus.name}, {figures.targets:,} targets")
    print(f"  loss           {figures.loss:.4f} nats per target")
    print(f"  perplexity     {figures.perplexity:,.2f}")
    if figures.bits_per_byte is not None:
        print(f"  bits per byte  {figures.bits_per_byte:.4f}")
    if figures.masked_accuracy is not None:
        print(f"  accuracy       {figures.masked_accuracy:.1%} of the masked tokens")
    print("\n".join(compare(figures, anchors)))


def elsewhere(model: ModelConfig, text: str) -> PretrainConfig:
    """Return settings by which a model that learnt elsewhere is judged on a text."""
    table = {"model": to_table(model), "objective": {"name": OBJECTIVE_OF[model.kind]}, "data": {"input": text}}
    return build(PretrainConfig, table, source="the command line")
