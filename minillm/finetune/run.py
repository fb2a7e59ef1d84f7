"""From a pretrained model and a table to a fine-tuned model in a run folder: the one place where all parts meet.

    RUN -> source -> tokenizer, backbone          tables -> material -> task, sequences, batches
    backbone + head -> trainer -> the best checkpoint, by the validation table -> both judged once more, then the test

Read next: `predict.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.checkpoint.files import write_text
from minillm.checkpoint.native import put_tensors
from minillm.checkpoint.run_folder import RunFolder, read_json
from minillm.config import build, override, read_toml, toml_text
from minillm.errors import InputError
from minillm.finetune.config import FinetuneConfig, TaskModelConfig
from minillm.finetune.material import Material, check_unchanged, gather
from minillm.finetune.source import build_task_model, initial_model, open_source
from minillm.finetune.task_model import TaskModel
from minillm.pretrain_config import rehearsal
from minillm.tokenizer.base import load_tokenizer
from minillm.training.plots import draw_plots
from minillm.training.precision import choose_compute_dtype, choose_device
from minillm.training.progress import Progress
from minillm.training.state import Summary
from minillm.training.trainer import Trainer

CHANGEABLE = ("train.max_steps", "train.patience", "train.keep_checkpoints", "train.log_every")
CHANGEABLE += ("train.eval_every", "train.checkpoint_every", "train.micro_batch_size")
CHANGEABLE += ("train.device", "train.compute_dtype", "train.compile", "train.threads")

Figures = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run.

    run: its folder. summary: what the trainer says. step: of the chosen checkpoint.
    valid, test: its figures; None where Ctrl-C ended the run early, and where there is no test table.
    examples_per_second: of training, evaluation and saving left out.
    """

    run: Path
    summary: Summary
    step: int
    valid: Figures | None
    test: Figures | None
    examples_per_second: float

    def json(self) -> dict[str, Any]:
        """Return the figures under the names of the command line's contract."""
        return {
            "run": str(self.run),
            "steps": self.summary.steps,
            "best_step": self.step,
            "seconds": self.summary.seconds,
            "examples_per_second": self.examples_per_second,
            "valid": self.valid,
            "test": self.test,
        }


def finetune(config: FinetuneConfig, out: Path, *, overwrite: bool = False, progress: Progress | None = None) -> Result:
    """Fine-tune a model from its beginning, and leave a run folder.

    Args:
        config: all settings. QUICK=1 in the environment cuts the steps; see `minillm.pretrain_config.rehearsal`.
        out: the run folder.
        overwrite: replace the run that stands in `out`.
        progress: None: say nothing.
    Raises:
        InputError: a setting, a table or a folder that does not do; nothing half-written stays behind.
    """
    progress = progress or Progress(quiet=True)
    config.check()
    folder = RunFolder(out)
    with folder.gone_if_unused(), progress.shown():
        folder.check_free(overwrite)
        choose_device(config.train.device)
        source = open_source(Path(config.init), random=config.random)
        material = gather(config, source.tokenizer, source.model, progress=progress)
        config = config.resolved(len(material.splits["train"].sequences), material.task.best_metric)
        config = rehearsal(config, progress.note)
        model = initial_model(config, material.task, source)
        folder.create(overwrite)  # not before all of that is known to do: a run that stands here is removed
        source.tokenizer.save(folder.tokenizer_path)
        write_text(folder.config_path, toml_text(config))
        write_text(folder.corpus_path, json.dumps(material.card(), indent=1) + "\n")
        return _train(_trainer(config, folder, material, model, progress), material, progress)


def resume(run: Path, overrides: Mapping[str, Any], *, progress: Progress | None = None) -> Result:
    """Go on with a run from its latest checkpoint as if it had never stopped.

    Args:
        run: the run folder.
        overrides: nested table of settings to change, of those that leave the run's past as it was.
        progress: None: say nothing.
    Raises:
        InputError: no such run, a setting that cannot change, or a table that is not what it was.
    """
    progress = progress or Progress(quiet=True)
    folder = RunFolder(run)
    with progress.shown():
        checkpoint = folder.load()
        config = rehearsal(_changed(folder, overrides), progress.note, done=checkpoint.step)
        check_unchanged(config.data, read_json(folder.corpus_path), folder)
        path = str(checkpoint.folder / "config.json")
        shape: TaskModelConfig = build(TaskModelConfig, checkpoint.model_config, source=path)
        material = gather(config, load_tokenizer(folder.tokenizer_path), shape.backbone, progress=progress)
        model = build_task_model(shape, material.task)
        trainer = _trainer(config, folder, material, model, progress)
        trainer.resume()
        write_text(folder.config_path, toml_text(config), safe=folder.safe())
        return _train(trainer, material, progress)


def _changed(folder: RunFolder, overrides: Mapping[str, Any]) -> FinetuneConfig:
    """Return the configuration of a run, with some of its settings changed.

    Raises:
        InputError: a setting that cannot change, or a run of another kind.
    """
    table = read_toml(folder.config_path)
    if "task" not in table:
        raise InputError(f"{folder} is a pretraining run; go on with minillm pretrain --resume {folder}")
    for section, settings in overrides.items():
        for key, value in settings.items() if isinstance(settings, dict) else ((None, settings),):
            name = section if key is None else f"{section}.{key}"
            if name not in CHANGEABLE:
                raise InputError(
                    f"{name} cannot change in a run that has begun; --resume takes {', '.join(CHANGEABLE)}"
                )
            override(table, name, value)
    return build(FinetuneConfig, table, source=str(folder.config_path))


def _trainer(
    config: FinetuneConfig, folder: RunFolder, material: Material, model: TaskModel, progress: Progress
) -> Trainer:
    """Return the trainer of a run."""
    device = choose_device(config.train.device)
    choice = choose_compute_dtype(config.train.compute_dtype, device)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    progress.note(
        f"{material.task.name}: {learning:,} parameters learn, {model.config.backbone.kind} and head, on {device} in "
        f"{str(choice.dtype).removeprefix('torch.')} ({choice.reason}); {config.train.max_steps:,} steps of "
        f"{config.train.batch_size} sequences"
    )
    return Trainer(
        model,
        material.task,
        material.splits["train"].loader,
        train=config.train,
        optim=config.optim,
        folder=folder,
        evaluate=material.figures,
        figures=material.task.figure_names,
        device=device,
        compute_dtype=choice.dtype,
        progress=progress,
        resume_command=f"minillm finetune --resume {folder}",
    )


def _train(trainer: Trainer, material: Material, progress: Progress) -> Result:
    """Train, restore the best checkpoint, and judge it: on the validation table, and now for once on the test table."""
    summary = trainer.fit()
    folder, model = trainer.folder, trainer.model
    rate = summary.steps_per_second * trainer.train.batch_size
    draw_plots(folder)
    if summary.stopped_early:
        step = summary.steps
        return Result(run=folder.path, summary=summary, step=step, valid=None, test=None, examples_per_second=rate)
    best = folder.load("best")
    put_tensors(model, best.model_tensors(), source=best.folder / "model.safetensors")
    valid = material.figures(model, "valid")
    test = material.figures(model, "test") if "test" in material.splits else None
    for name, figures in (("valid", valid), ("test", test)):
        if figures is not None:
            progress.note(f"{name:<5}  {shown(figures)}")
    return Result(run=folder.path, summary=summary, step=best.step, valid=valid, test=test, examples_per_second=rate)


def shown(figures: Figures) -> str:
    """Return figures on one line.

    >>> shown({"loss": 0.25, "mcc": None})
    'loss 0.2500  mcc -'
    """
    return "  ".join(f"{name} {'-' if value is None else format(value, '.4f')}" for name, value in figures.items())
