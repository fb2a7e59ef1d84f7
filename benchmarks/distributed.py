"""What sharding costs where there is nothing to share: python -m benchmarks.distributed [--strategy fsdp] [--batch 8].

The model of recipes/shakespeare-char.toml (6 layers, width 384) is trained on random tokens by two trainers in turns in
one process: one knows of no other process, the other one is spread over a group of one. What the second takes more is
the price of FSDP2's hooks, copies and collectives, without any traffic. Both take the same steps of the same weights.

Under torchrun the same command times the group of all its processes, without the plain trainer.

Read next: `minillm/training/shards.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import header
from benchmarks.parser import Parser
from benchmarks.parts import table
from benchmarks.report import write_whole
from benchmarks.training.build import make_loader, make_objective, trainer_of
from minillm.config import build, read_toml
from minillm.errors import InputError
from minillm.model.transformer import build_model
from minillm.pretrain_config import PretrainConfig
from minillm.training.distributed import Processes
from minillm.training.distributed_config import LAUNCHED, DistributedConfig, is_launched
from minillm.training.launch import joined
from minillm.training.precision import choose_device
from minillm.training.trainer import Trainer

RECIPE = Path(__file__).parent / "recipes/shakespeare-char.toml"
VOCABULARY = 65  # characters of tinyshakespeare
BATCH = {"cpu": 8, "cuda": 64}
ALLOWED = 0.05  # of a plain step, that FSDP2 on one process may cost


def alone_in_a_group() -> None:
    """Set what torchrun would have set for a group of one, unless it did."""
    if is_launched():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= dict(zip(LAUNCHED, ("0", "1", "0", "127.0.0.1", str(port)), strict=True))
    os.environ |= {"LOCAL_WORLD_SIZE": "1"}


def ready(config: PretrainConfig, processes: Processes) -> Trainer:
    """Return a trainer on random tokens."""
    torch.manual_seed(config.train.seed)
    model, objective, batches = build_model(config.model), make_objective(config), make_loader(config)
    trainer = trainer_of(config, model, objective, batches, processes.device, processes=processes)
    trainer.model.train()
    return trainer


def seconds_a_step(trainer: Trainer, steps: int) -> float:
    """Return the mean time of some steps, the device's work included."""
    began = time.perf_counter()
    figures = [trainer.take_step() for _ in range(steps)]
    assert figures[-1] is not None
    figures[-1].tolist()  # waits for the device
    return (time.perf_counter() - began) / steps


def measure(trainers: Mapping[str, Trainer], turns: int, steps: int) -> dict[str, list[float]]:
    """Return seconds a step, one mean for each turn; the trainers take turns, and who begins changes."""
    for trainer in trainers.values():
        seconds_a_step(trainer, 2)  # memory is allocated, kernels are compiled
    found: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(turns):
        for name in list(trainers)[:: 1 if turn % 2 else -1]:
            found[name].append(seconds_a_step(trainers[name], steps))
    return found


def page(result: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    head, seconds = result["header"], result["seconds"]
    lines = [
        "# Sharding where there is nothing to share\n",
        f"{result['strategy']} on {result['processes']} process(es), {result['layers']} layers of width "
        f"{result['width']}, {result['batch']} sequences of {result['context']} tokens in {result['dtype']}, on "
        f"{head['device']} with {head['threads']} threads,",
        f"PyTorch {head['versions']['torch']}, commit {head['commit']}, {head['date'][:10]}. "
        "`python -m benchmarks.distributed` made this page.\n",
    ]
    rows = [
        [name, *(f"{1000 * value:.2f}" for value in (statistics.median(each), min(each), max(each)))]
        for name, each in seconds.items()
    ]
    lines += table(("trainer", "ms a step, median of turns", "fastest", "slowest"), rows, words=1)
    if "plain" in seconds:
        costs = cost(seconds["plain"], seconds[result["strategy"]])
        lines += [
            "",
            f"{result['strategy']} costs {100 * statistics.median(costs):+.1f} % of a plain step (median of "
            f"{len(costs)} turns, from {100 * min(costs):+.1f} % to {100 * max(costs):+.1f} %; allowed are "
            f"{100 * ALLOWED:.0f} %).",
        ]
    return "\n".join(lines) + "\n"


def cost(plain: Sequence[float], spread: Sequence[float]) -> list[float]:
    """Return what a spread step takes more than a plain one, as a share of it, turn by turn.

    >>> cost([2.0, 4.0], [2.5, 4.0])
    [0.25, 0.0]
    """
    return [other / one - 1 for one, other in zip(plain, spread, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write DISTRIBUTED.json and .md, and return the exit status: 0 where the cost is allowed, else 1."""
    parser = Parser("benchmarks.distributed", __doc__)
    parser.add_argument("--strategy", choices=("fsdp", "ddp"), default="fsdp", help="beside plain (default fsdp)")
    parser.add_argument("--batch", type=int, help="sequences a step (default: 8 on a CPU, 64 on a GPU)")
    parser.add_argument("--turns", type=int, default=10, help="of each trainer (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="in a turn (default %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="of the model (default %(default)s)")
    parser.add_argument("--width", type=int, default=384, help="of the model, a multiple of 6 (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where DISTRIBUTED.json and .md go")
    given = parser.parse_args(argv)
    parser.at_least(given, turns=1, steps=1)
    parser.folder("--out", given.out)
    device = choose_device("auto")
    batch = BATCH.get(device.type, BATCH["cpu"]) if given.batch is None else given.batch
    settings = read_toml(RECIPE)
    settings["model"] |= {"vocab_size": VOCABULARY, "num_layers": given.layers, "width": given.width}
    settings["train"] = {"batch_size": batch}
    try:
        config: PretrainConfig = build(PretrainConfig, settings, source=str(RECIPE))
    except InputError as error:
        parser.error(str(error))
    together = is_launched()
    alone_in_a_group()
    with joined(DistributedConfig(strategy=given.strategy), device) as processes:
        trainers = {} if together else {"plain": ready(config, Processes(device=processes.device))}
        trainers[given.strategy] = ready(config, processes)
        seconds = measure(trainers, given.turns, given.steps)
    if not processes.is_first:
        return 0
    result = {
        "header": header(),
        "strategy": given.strategy,
        "processes": processes.size,
        "layers": config.model.num_layers,
        "width": config.model.width,
        "context": config.model.context,
        "batch": batch,
        "dtype": str(trainers[given.strategy].compute_dtype).removeprefix("torch."),
        "distributed": dataclasses.asdict(processes.config),
        "seconds": seconds,
    }
    text = page(result)
    write_whole(given.out / "DISTRIBUTED.json", json.dumps(result, indent=1) + "\n")
    write_whole(given.out / "DISTRIBUTED.md", text)
    print(text)
    return 0 if together or statistics.median(cost(seconds["plain"], seconds[given.strategy])) <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
