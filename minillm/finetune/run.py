"""From a pretrained model and a table to a fine-tuned model in a run folder: the one place where all parts meet.

    RUN -> source -> tokenizer, backbone          tables -> material -> task, sequences, batches
    backbone + head -> trainer -> the best checkpoint, by the validation table -> both judged once more, then the test

Read next: `predict.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.checkpoint.files import explained, write_text
from minillm.checkpoint.native import put_tensors
from minillm.checkpoint.run_folder import RunFolder, read_json
from minillm.config import build, read_toml, to_table, toml_text
from minillm.errors import InputError
from minillm.finetune.adapters.adalora import RankAllocator, WithOrthogonality
from minillm.finetune.adapters.config import AdaLoRAConfig
from minillm.finetune.baselines import Examples, majority, tfidf
from minillm.finetune.config import FinetuneConfig
from minillm.finetune.learning_rate import with_learning_rate
from minillm.finetune.material import Material, check_unchanged, gather
from minillm.finetune.predictions import Predictions
from minillm.finetune.regularisers.config import regularised
from minillm.finetune.report import Contender, Figures, Report, calibrate, count_parameters, write_report
from minillm.finetune.scope import rate_scales, unfreeze_gradually
from minillm.finetune.source import Source, bare_task_model, initial_model, prepared, shape_in, source_of
from minillm.finetune.task_model import ADAPTER, TaskModel
from minillm.finetune.tasks.tagging import Tagging
from minillm.finetune.tasks.texts import TextTask
from minillm.pretrain_config import rehearsal
from minillm.tokenizer.base import load_tokenizer
from minillm.training.changeable import change, changeable
from minillm.training.distributed import Processes
from minillm.training.distributed_config import is_first
from minillm.training.gradient import Objective
from minillm.training.launch import began, goes_on, joined, put_in_place
from minillm.training.plots import draw_plots
from minillm.training.precision import choose_compute_dtype, choose_device
from minillm.training.progress import Mute, Progress
from minillm.training.state import Summary
from minillm.training.trainer import Trainer

THIS, FROM_RANDOM = "this model", "from random weights"
TWIN = "random"  # folder, inside a run's, of the same run from random weights


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run.

    run: its folder. summary: what the trainer says. step: of the chosen checkpoint.
    contenders: this model, the baselines and, on request, the same from random weights, with what each says of "valid"
        and "test"; report: what was written of them. Empty and none where Ctrl-C ended the run, or its twin, early.
    examples_per_second: of training, evaluation and saving left out.
    """

    run: Path
    summary: Summary
    step: int
    contenders: Sequence[Contender] = ()
    report: Report | None = None
    examples_per_second: float

    def json(self) -> dict[str, Any]:
        """Return the figures under the names of the command line's contract."""
        figures = {c.name: {split: dict(c.figures(split)) for split in c.splits} for c in self.contenders}
        own = figures.pop(THIS, {})
        return {
            "run": str(self.run),
            "steps": self.summary.steps,
            "best_step": self.step,
            "seconds": self.summary.seconds,
            "examples_per_second": self.examples_per_second,
            "valid": own.get("valid"),
            "test": own.get("test"),
            "baselines": figures,
        }


def finetune(
    config: FinetuneConfig,
    out: Path,
    *,
    overwrite: bool = False,
    in_place: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Fine-tune a model from its beginning, and leave a run folder.

    Args:
        config: all settings; of `seeds` only the first. QUICK=1 in the environment cuts the steps; see
            `minillm.pretrain_config.rehearsal`.
        out: the run folder.
        overwrite: replace the run that stands in `out`.
        in_place: called when the new run stands there, before its first step; None: nothing is.
        progress: None: say nothing.
    Raises:
        InputError: a setting, a table or a folder that does not do; nothing half-written stays behind.
    """
    progress = progress or Progress(quiet=True)
    config.check()
    folder = RunFolder(out)
    with joined(config.distributed, choose_device(config.train.device)) as processes:
        if goes_on(folder, overwrite, processes):
            return resume(out, {}, progress=progress)
        processes.agree(to_table(config))
        progress = progress if processes.is_first else Mute()
        with began(folder, overwrite, processes) as draft, progress.shown():
            config, _, material, model = processes.first_then_rest(
                lambda: _begun(config, draft, progress), lambda: prepared_run(config, progress)
            )
            trainer = _trainer(config, folder, material, model, processes, progress)
            # not before all of that is known to do: a run that stands here is removed
            put_in_place(folder, draft, processes)
            if in_place is not None:
                in_place()
            return _train(trainer, material, config, progress)


def _begun(
    config: FinetuneConfig, draft: RunFolder, progress: Progress
) -> tuple[FinetuneConfig, Source, Material, TaskModel]:
    """Return what `prepared_run` does, and write what a run folder holds of it; the first process does."""
    config, source, material, model = prepared_run(config, progress)
    with explained(draft.tokenizer_path):
        source.tokenizer.save(draft.tokenizer_path)
    if source.origin is not None:
        source.origin.write(draft.path)
    write_text(draft.config_path, toml_text(config))
    write_text(draft.corpus_path, json.dumps(material.card(), indent=1) + "\n")
    return config, source, material, model


def prepared_run(config: FinetuneConfig, progress: Progress) -> tuple[FinetuneConfig, Source, Material, TaskModel]:
    """Return all that a run begins with, its settings with every number of steps; nothing is written.

    Raises:
        InputError: a setting or a table that does not do.
    """
    choose_device(config.train.device)
    source = source_of(config)
    material = gather(config, source.tokenizer, source.model, progress)
    config = config.resolved(len(material.splits["train"].sequences), material.task.best_metric)
    config = rehearsal(config, progress.note)
    model = initial_model(config, material.task, source)
    return with_learning_rate(config, model), source, material, model


def resume(
    run: Path,
    overrides: Mapping[str, Any],
    *,
    in_place: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Go on with a run from its latest checkpoint as if it had never stopped.

    Args:
        run: the run folder.
        overrides: nested table of settings to change, of those that leave the run's past as it was.
        in_place: called when all is known to do, before the first step; None: nothing is.
        progress: None: say nothing.
    Raises:
        InputError: no such run, a setting that cannot change, or a table that is not what it was.
    """
    progress = progress or Progress(quiet=True)
    folder = RunFolder(run)
    folder.check()
    with folder.held() if is_first() else nullcontext(), progress.shown():
        checkpoint = folder.load()
        kept = changed(folder, overrides)
        if not folder.corpus_path.exists():
            raise InputError(
                f"{folder} has no corpus.json, as what was imported, and so no tables to go on with; begin a run with "
                f"it: minillm finetune {folder.quoted}"
            )
        check_unchanged(kept.data, read_json(folder.corpus_path), folder)
        shape = shape_in(checkpoint)
        with joined(kept.distributed, choose_device(kept.train.device)) as processes:
            processes.agree(to_table(kept))
            progress = progress if processes.is_first else Mute()
            material = gather(kept, load_tokenizer(folder.tokenizer_path), shape.backbone, progress)
            # a change to 0 is resolved as in a new run; [optim] is not resolved again, its warm-up has been
            sequences, best = len(material.splits["train"].sequences), material.task.best_metric
            kept = dataclasses.replace(kept, train=kept.train.resolved(sequences, best))
            config = rehearsal(kept, progress.note, done=checkpoint.step)
            model = prepared(bare_task_model(shape, material.task), config.scope)
            trainer = _trainer(config, folder, material, model, processes, progress)
            trainer.resume(checkpoint.step)
            if processes.is_first:
                write_text(folder.config_path, toml_text(kept), safe=folder.safe())  # not as a rehearsal shortens it
                folder.calibration_path.unlink(missing_ok=True)  # of a best checkpoint that may soon be another one
            if in_place is not None:
                in_place()
            return _train(trainer, material, config, progress)


def changed(folder: RunFolder, overrides: Mapping[str, Any]) -> FinetuneConfig:
    """Return the configuration of a run, with some of its settings changed.

    Raises:
        InputError: a setting that cannot change, or a run of another kind.
    """
    folder.check()
    table = read_toml(folder.config_path)
    if "task" not in table:
        raise InputError(f"{folder} is a pretraining run; go on with minillm pretrain --resume {folder.quoted}")
    change(table, overrides)
    return build(FinetuneConfig, table, source=str(folder.config_path))


def _trainer(
    config: FinetuneConfig,
    folder: RunFolder,
    material: Material,
    model: TaskModel,
    processes: Processes,
    progress: Progress,
) -> Trainer:
    """Return the trainer of a run."""
    device = processes.device
    check_sharded(config, processes)
    choice = choose_compute_dtype(config.train.compute_dtype, device, width=model.config.backbone.width)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    progress.note(
        f"{material.task.name}: {learning:,} parameters learn, {model.config.backbone.kind} and head, on {processes} "
        f"in {str(choice.dtype).removeprefix('torch.')} ({choice.reason}); {config.train.max_steps:,} steps of "
        f"{config.train.batch_size} sequences, learning rate {config.optim.learning_rate:g}"
    )
    objective: Objective = regularised(material.task, config.regulariser)
    if isinstance(config.adapter, AdaLoRAConfig):
        objective = WithOrthogonality(objective, ADAPTER)
    trainer = Trainer(
        model,
        objective,
        material.splits["train"].loader,
        train=config.train,
        optim=config.optim,
        folder=folder,
        evaluate=material.figures,
        figures=material.task.figure_names,
        device=device,
        compute_dtype=choice.dtype,
        progress=progress,
        resume_command=f"minillm finetune --resume {folder.quoted}",
        rate_scales=rate_scales(model, config.scope),
        processes=processes,
    )
    unfreeze_gradually(model, config.scope, trainer)
    if isinstance(config.adapter, AdaLoRAConfig):
        RankAllocator(model, ADAPTER, steps=config.train.max_steps).connect(trainer)
    return trainer


def check_sharded(config: FinetuneConfig, processes: Processes) -> None:
    """Raise InputError where a setting needs whole weights and gradients, and each process has a share of them."""
    if not processes.gathers or config.distributed.strategy == "ddp":
        return
    for asked, name in (
        (config.scope.unfreeze_every, "scope.unfreeze_every"),
        (isinstance(config.adapter, AdaLoRAConfig), "adapter.kind = adalora"),
        (config.regulariser.adversarial, "regulariser.adversarial"),
    ):
        if asked:
            raise InputError(f"{name} goes with distributed.strategy = ddp, not with {config.distributed.strategy}")


def _train(trainer: Trainer, material: Material, config: FinetuneConfig, progress: Progress) -> Result:
    """Train, restore the best checkpoint, judge it, the test table now for once, and write the report."""
    summary = trainer.fit()
    folder, model, task, processes = trainer.folder, trainer.model, material.task, trainer.processes
    rate = summary.steps_per_second * config.train.batch_size
    result = Result(run=folder.path, summary=summary, step=summary.steps, examples_per_second=rate)
    if processes.is_first:
        draw_plots(folder)
    if summary.stopped_early:
        return result
    best = processes.first_then_rest(*[lambda: folder.load("best", to_use=True)] * 2)
    put_tensors(model, best.model_tensors(), source=best.folder / "model.safetensors")
    predictions = {name: material.predict(model, name) for name in judged(material)}
    contenders = [Contender(name=THIS, note=_origin(config), splits=said(material, predictions))]
    if processes.is_first:
        contenders += baselines(material)
        write_calibration(folder, contenders[0].splits["valid"])
    if config.against_random and not (config.random or config.preset):
        twin = _from_random(config, folder, progress)
        if twin.summary.stopped_early:
            progress.warn(
                f"its twin from random weights is not done; go on with: minillm finetune --resume {folder.quoted}"
            )
            stopped = dataclasses.replace(summary, stopped_early=True, signal=twin.summary.signal)
            return dataclasses.replace(result, summary=stopped, step=best.step)
        alike = config.optim.random_learning_rate == config.optim.learning_rate
        note = "nothing pretrained, all else alike" + ("" if alike else " but the learning rate")
        contenders.append(dataclasses.replace(twin.contenders[0], name=FROM_RANDOM, note=note))
    result = dataclasses.replace(result, step=best.step, contenders=contenders)
    if not processes.is_first:
        return result
    report = Report(
        name=folder.path.resolve().name,
        task=task.name,
        best_by=config.train.best_by,
        contenders=contenders,
        step=best.step,
        classes=task.classes(predictions[judged(material)[-1]]) if isinstance(task, Tagging) else (),
        data=material.counts(),
        trained=count_parameters(model),
        notes=material.notes,
    )
    put_report(folder.path, report, progress)
    return dataclasses.replace(result, report=report)


def write_calibration(folder: RunFolder, valid: Predictions | Figures) -> None:
    """Fit what `predict` needs for its probabilities on the validation table, and keep it beside the checkpoints."""
    if isinstance(valid, Predictions) and (calibration := calibrate(valid)) is not None:
        write_text(folder.calibration_path, json.dumps(calibration.table(), indent=1) + "\n")


def said(material: Material, predictions: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model said about splits: predictions of whole texts, of other tasks their figures."""
    answers: dict[str, Any] = {}
    for name, found in predictions.items():
        if isinstance(found, Predictions):
            answers[name] = dataclasses.replace(found, texts=tuple(material.splits[name].texts))
        else:
            answers[name] = material.task.figures(found)
    return answers


def judged(material: Material) -> list[str]:
    """Return the splits that a model is judged on."""
    return [name for name in ("valid", "test") if name in material.splits]


def put_report(run: Path, report: Report, progress: Progress) -> None:
    """Write a report, and note its figures and where it is."""
    written, *_ = write_report(run, report)
    for line in (*table_lines(report.contenders), f"report: {written}"):
        progress.note(line)


def baselines(material: Material) -> list[Contender]:
    """Return the simple models that learnt from the same rows: two of whole texts, one of tags, of other tasks none."""
    task = material.task
    if isinstance(task, Tagging):
        learnt = material.splits["train"].sequences
        said = {name: task.most_frequent(learnt, material.splits[name].sequences) for name in judged(material)}
        figures = {name: task.figures(predictions) for name, predictions in said.items()}
        return [Contender(name="most frequent tag", note="of each word in training", splits=figures)]
    if not isinstance(task, TextTask):
        return []
    rows = {
        name: Examples(texts=split.texts, targets=task.targets(split.table, split.columns.label or ""))
        for name, split in material.splits.items()
    }
    labels = task.facts.labels
    fitted = majority(task.name, rows["train"], labels), tfidf(task.name, rows["train"], rows["valid"], labels)
    scale = task.facts.scale
    return [
        Contender(
            name=b.name,
            note=b.note,
            splits={n: dataclasses.replace(b.predict(rows[n]), scale=scale) for n in judged(material)},
        )
        for b in fitted
    ]


def _from_random(config: FinetuneConfig, folder: RunFolder, progress: Progress) -> Result:
    """Return what came of the same model, trained alike from random weights in a folder inside the run's.

    Its learning rate is its own where none was given: what suits large weights does not suit small ones.
    """
    progress.note("the same from random weights")
    optim = dataclasses.replace(config.optim, learning_rate=config.optim.random_learning_rate)
    twin = dataclasses.replace(config, random=True, against_random=False, optim=optim)
    place = folder.path / TWIN
    if RunFolder(place).steps():
        return resume(place, changeable(config), progress=progress)  # a run that was resumed may have changed them
    return finetune(twin, place, progress=progress)


def _origin(config: FinetuneConfig) -> str:
    """Return what a run began with, for the report."""
    if config.preset:
        return f"shape of {config.preset}, random weights"
    return f"{'shape of' if config.random else 'from'} {Path(config.init).name}{', random weights' * config.random}"


def table_lines(contenders: Sequence[Contender]) -> list[str]:
    """Return the figures on the last split that was judged, a line a contender."""
    split = list(contenders[0].splits)[-1]
    rows = [(contender.name, contender.figures(split)) for contender in contenders]
    names = list(rows[0][1])
    width, column = max(len(name) for name, _ in rows), max(13, *(len(name) + 2 for name in names))
    lines = [f"{split:<{width + 3}}" + "".join(f"{name:>{column}}" for name in names)]
    for name, figures in rows:
        cells = ("-" if figures.get(n) is None else f"{figures[n]:.4f}" for n in names)
        lines.append(
            f" {'>' if name == THIS else ' '} {name:<{width}}" + "".join(f"{cell:>{column}}" for cell in cells)
        )
    return lines
