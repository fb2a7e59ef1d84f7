"""A fine-tuned model in use: texts in, labels and probabilities out.

    loaded = load_finetuned("runs/reviews")
    for answer in loaded.predict(text_table(["A fine film."])):
        print(answer["label"], answer["probabilities"])

Probabilities are those at the temperature that was fitted on the validation table, where the run has one.

Read next: `../cli/predict.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minillm.checkpoint.hf.family import TASK_PURPOSES
from minillm.checkpoint.hf.folder import ModelFolder, is_model_folder, open_folder
from minillm.checkpoint.native import put_tensors
from minillm.checkpoint.run_folder import RunFolder, read_json
from minillm.config import build, read_toml, to_table
from minillm.errors import InputError, warn
from minillm.finetune.config import FinetuneConfig, TableConfig, TaskConfig, TaskFacts
from minillm.finetune.encoding import TextEncoder
from minillm.finetune.ensemble import ensemble
from minillm.finetune.loader import SequenceLoader
from minillm.finetune.source import bare_task_model, build_task_model, shape_in, shape_of, text_tokenizer
from minillm.finetune.table import Columns, Table, find_columns
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.base import Task
from minillm.finetune.tasks.registry import TASKS
from minillm.finetune.tasks.texts import TextTask
from minillm.loading import checkpoint_name
from minillm.model.init import Undrawn
from minillm.tokenizer.base import Tokenizer, load_tokenizer
from minillm.training.precision import choose_compute_dtype

ROWS = 64  # sequences that the model takes at once


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """A fine-tuned model and what belongs to it.

    models: in evaluation mode, parameters in float32: one, or one a seed, whose answers are averaged.
    encoder: reads texts as in training.
    calibration: `temperature`, which divides the logits before they become probabilities, and of multi_label
        `thresholds`; as `report.calibrate` fitted them.
    """

    models: Sequence[TaskModel]
    task: Task
    tokenizer: Tokenizer
    encoder: TextEncoder
    calibration: Mapping[str, Any]

    def columns(self, table: Table, config: TableConfig | None = None) -> Columns:
        """Return the columns of a table that hold what the model reads.

        Raises:
            InputError: none does.
        """
        return find_columns(table, config or TableConfig(), self.task.column_names, labelled=False)

    def predictions(self, table: Table, columns: Columns, tell: Callable[[str], None] | None = None) -> Any:
        """Return what the model says about the rows of a table, as `Task.predict` does; `tell` hears what was cut."""
        sequences = self.task.encode(table, columns, self.encoder, labelled=False)
        cut = sequences.truncation
        if tell is not None:
            most = self.encoder.max_length
            if cut.rows:
                tell(
                    f"{cut.rows:,} of {len(table):,} rows do not fit {most} tokens: {cut.tokens:,} tokens were not read"
                )
            for note in sequences.notes:
                tell(note)
        loader = SequenceLoader(sequences, batch_size=ROWS, pad=self.tokenizer.specials.pad)
        said = [self.task.predict(model, loader.eval_batches(ROWS), sequences) for model in self.models]
        return said[0] if len(said) == 1 else ensemble(said)

    def predict(
        self, table: Table, columns: Columns | None = None, *, tell: Callable[[str], None] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the answer to each row of a table: for classes `label` and `probabilities`.

        Args:
            tell: is told in a line of texts that were cut; None: nobody is.
        Raises:
            InputError: an empty text, or a column that is missing.
        """
        said = self.predictions(table, columns or self.columns(table), tell)
        yield from self.task.answers(said, **self.calibration)


def load_finetuned(
    folder: Path | str,
    which: str | int = "best",
    *,
    device: torch.device | str = "cpu",
    task: Mapping[str, Any] | None = None,
) -> Finetuned:
    """Return the model of a fine-tuning run.

    Args:
        folder: what `--out` named when it was started; of several seeds this takes all of them together, and says so
            where they are not all done. Or a Hugging Face folder of a model with a task's head.
        which: "best", "latest" or a step that has a checkpoint.
        device: where the model goes.
        task: settings of the section [task] that are others than in the run, such as `no_answer_threshold`.
    Raises:
        InputError: no such run or checkpoint, a damaged one, one of pretraining, a setting that does not do, or several
            seeds of a task whose answers have no mean.

    Cost: reads `model.safetensors` once; PyTorch's random state is left as it was.
    """
    if is_model_folder(Path(folder)):
        return finetuned_from(open_folder(Path(folder)), task or {}, device=device)
    run = RunFolder(folder)
    seeds = [RunFolder(path) for path in seed_folders(run.path)]
    done = (run.path / "report").is_dir() or run.calibration_path.exists()  # they come when all are
    if seeds and not done:
        seeds = [seed for seed in seeds if seed.steps()] or seeds
        warn(
            f"the seeds of {run} are not all done, and {len(seeds)} answer as they are; go on with: "
            f"minillm finetune --resume {run.quoted}"
        )
    members = seeds or [run]
    loaded = [_member(member, which, task or {}, torch.device(device)) for member in members]
    (first, asked, tokenizer), *_ = loaded
    if len(loaded) > 1 and not isinstance(asked, TextTask):
        raise InputError(
            f"{run} holds {len(loaded)} seeds, and answers of {asked.name} have no mean; take {members[0]}"
        )
    fitted = run.calibration_path.exists() or asked.facts.name not in ("single_label", "multi_label")
    begun_here = members[0].corpus_path.exists()  # what was imported cannot go on, and none is fitted for it
    if not fitted and begun_here and (done or not seeds):
        warn(
            f"{run} has no calibration.json: probabilities are as trained, at temperature 1; one is fitted when the "
            f"run ends: minillm finetune --resume {run.quoted}"
        )
    return Finetuned(
        models=[model for model, _, _ in loaded],
        task=asked,
        tokenizer=tokenizer,
        encoder=TextEncoder(tokenizer, first.config.backbone, first.config.text, pairs=asked.facts.pairs),
        calibration=_calibration(run, asked.facts),
    )


def _calibration(run: RunFolder, facts: TaskFacts) -> dict[str, Any]:
    """Return what `calibration.json` says, as keywords of `Task.answers`; nothing where a run has none.

    Raises:
        InputError: it is damaged.
    """
    path = run.calibration_path
    kept = read_json(path) if path.exists() else {}
    found = {name: kept[name] for name in ("temperature", "thresholds") if name in kept}
    temperature, thresholds = found.get("temperature", 1.0), found.get("thresholds", [])
    wanted = len(facts.labels) if facts.name == "multi_label" and "thresholds" in found else 0
    if not (_is_number(temperature) and temperature > 0):
        raise InputError(f"{path} is damaged: temperature is {temperature!r:.40}, no number above 0; remove the file")
    if not (isinstance(thresholds, list) and len(thresholds) == wanted and all(map(_is_number, thresholds))):
        raise InputError(f"{path} is damaged: thresholds are {wanted} numbers, got {thresholds!r:.40}; remove the file")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # JSON has no limit


def finetuned_from(
    folder: ModelFolder, changed: Mapping[str, Any] | None = None, *, device: torch.device | str = "cpu"
) -> Finetuned:
    """Return the model of a Hugging Face folder that is open; it computes in float32.

    Args:
        changed: settings of the section [task], as in `load_finetuned`.
    Raises:
        InputError: it has no task's head or no tokenizer, or its tensors do not fit.
    """
    tokenizer = text_tokenizer(folder)
    model, task = opened_task_model(folder, changed or {})
    return Finetuned(
        models=[model.eval().to(device)],
        task=task,
        tokenizer=tokenizer,
        encoder=TextEncoder(tokenizer, model.config.backbone, model.config.text, pairs=task.facts.pairs),
        calibration={},
    )


def opened_task_model(folder: ModelFolder, changed: Mapping[str, Any]) -> tuple[TaskModel, Task]:
    """Return the model of a Hugging Face folder, and its task with some settings changed.

    Raises:
        InputError: it has no task's head, or its tensors do not fit.
    """
    if folder.purpose not in TASK_PURPOSES:
        raise InputError(
            f"{folder.path} is a {folder.family.class_for(folder.purpose)} and knows no labels; fine-tune it first: "
            f"minillm finetune {RunFolder(folder.path).quoted}"
        )
    shape = shape_of(folder)
    path = str(folder.path / "config.json")
    settings: TaskConfig = build(TaskConfig, {"name": shape.task.name} | {**changed}, source=path)
    task = TASKS[shape.task.name](settings, shape.task)
    with Undrawn():
        model = bare_task_model(shape, task)
    put_tensors(model, folder.own_tensors(model.state_dict()), source=folder.path)
    return model, task


def seed_folders(folder: Path) -> list[Path]:
    """Return the runs inside a folder that holds several seeds of one, by seed; none where it is a run itself."""
    found = [path for path in folder.glob("seed-*") if path.name.removeprefix("seed-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed-")))


def _member(
    run: RunFolder, which: str | int, changed: Mapping[str, Any], device: torch.device
) -> tuple[TaskModel, Task, Tokenizer]:
    """Return the model of one run, its task with some of its settings changed, and its tokenizer.

    It computes in the dtype that it was trained and judged in: what it said then it says again.
    """
    checkpoint = run.load(checkpoint_name(which), to_use=True)
    if "task" not in checkpoint.model_config:
        raise InputError(
            f"{run} is a pretraining run and knows no labels; fine-tune it first: minillm finetune {run.quoted}"
        )
    shape = shape_in(checkpoint)
    config: FinetuneConfig = build(FinetuneConfig, read_toml(run.config_path), source=str(run.config_path))
    settings: TaskConfig = build(TaskConfig, to_table(config.task) | {**changed}, source=str(run.config_path))
    task = TASKS[shape.task.name](settings, shape.task)
    with torch.random.fork_rng(devices=[]), Undrawn():  # an adapter may draw all the same: no one shall notice
        model = build_task_model(shape, task)
    put_tensors(model, checkpoint.model_tensors(), source=checkpoint.folder / "model.safetensors")
    model.compute_in(choose_compute_dtype(config.train.compute_dtype, device, width=shape.backbone.width).dtype)
    return model.eval().to(device), task, load_tokenizer(run.tokenizer_path)
