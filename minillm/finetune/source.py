"""Where a fine-tuning run begins: the model and tokenizer of a run folder, or only their shape.

    Hugging Face's     as a run of either kind: its head says of which
    pretrained run     embeddings.*, blocks.*, ...   -> backbone.*;  pooler.* -> head.pooler.* where the head has one
    fine-tuned run     backbone.*                    -> backbone.*;  its head was another task's and stays behind, its
                                                        adapter is merged into the weights
    preset             none: random weights, and a tokenizer that learns from the texts of the training table

Read next: `run.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minillm.checkpoint.hf.family import BACKBONE, TASK_PURPOSES
from minillm.checkpoint.hf.folder import ModelFolder, is_model_folder, open_folder
from minillm.checkpoint.hf.origin import Origin
from minillm.checkpoint.native import put_tensors, tensors_of
from minillm.checkpoint.run_folder import Checkpoint, RunFolder
from minillm.config import build
from minillm.errors import InputError
from minillm.finetune.adapters.attach import attach, detach, merge
from minillm.finetune.config import FinetuneConfig, HeadConfig, TaskConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.scope import prepare
from minillm.finetune.scope_config import ScopeConfig
from minillm.finetune.table import find_columns, read_table
from minillm.finetune.task_model import ADAPTER, TaskModel
from minillm.finetune.tasks.base import Task
from minillm.finetune.tasks.registry import TASKS
from minillm.loading import no_tokenizer, tokenizer_of
from minillm.model.config import ModelConfig
from minillm.model.init import Undrawn
from minillm.model.transformer import build_model
from minillm.pretrain_config import preset_table
from minillm.tokenizer.base import Tokenizer, load_tokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer
from minillm.training.failures import size_explained
from minillm.training.random_state import seed_random

HEAD, POOLER = "lm_head.", "pooler."


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to begin with.

    name: its folder, or the preset's name. tokenizer, model: its own. tensors: its weights by name; None: they are
        drawn at random. origin: what a Hugging Face folder said of it, for the way back; None: it came from none.
    """

    name: str
    tokenizer: Tokenizer
    model: ModelConfig
    tensors: Mapping[str, Tensor] | None
    origin: Origin | None = None


def source_of(config: FinetuneConfig) -> Source:
    """Return what a configuration says to begin with.

    Raises:
        InputError: as in `open_source`, no such preset, or a training table without texts.
    """
    if not config.preset:
        return open_source(Path(config.init), random=config.random)
    table = {name: section for name, section in preset_table(config.preset).items() if name in ("model", "tokenizer")}
    model: ModelConfig = build(ModelConfig, table["model"], source=f"preset {config.preset}", prefix="model.")
    wanted: TokenizerConfig = build(TokenizerConfig, table["tokenizer"], source=f"preset {config.preset}")
    kind = TASKS[config.task.name]
    rows = read_table(config.data.train, config.data, kind.column_names, kind.readers)
    columns = find_columns(rows, config.data, kind.column_names, labelled=False)
    names = [name for name in (columns.text, columns.pair) if name is not None]
    values = [value for name in names for value in rows.columns[name]]  # what is no text is refused by its row, later
    texts = [" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
    tokenizer = train_tokenizer(wanted, texts)
    model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    return Source(name=config.preset, tokenizer=tokenizer, model=model, tensors=None)


def open_source(folder: Path, *, random: bool) -> Source:
    """Return the model of a run folder's best checkpoint or of a Hugging Face folder, or its shape alone.

    Raises:
        InputError: neither kind of folder, a damaged one, or one without a tokenizer.
    """
    if is_model_folder(folder):
        return _opened(open_folder(folder), random=random)
    run = RunFolder(folder)
    checkpoint = run.load("best", to_use=True)
    tokenizer = load_tokenizer(run.tokenizer_path)
    if "backbone" in checkpoint.model_config:
        shape = shape_in(checkpoint)
        model, tensors = shape.backbone, None if random else _merged(shape, checkpoint)
    else:
        path = str(checkpoint.folder / "config.json")
        model = build(ModelConfig, checkpoint.model_config, source=path, prefix="model.")
        tensors = None if random else checkpoint.model_tensors()
    return Source(name=str(run), tokenizer=tokenizer, model=model, tensors=tensors, origin=Origin.read(run.path))


def _opened(folder: ModelFolder, *, random: bool) -> Source:
    """Return the model of a Hugging Face folder, of a task's model its backbone."""
    tokenizer = text_tokenizer(folder)
    if folder.purpose in TASK_PURPOSES:
        shape = shape_of(folder)
        with Undrawn():
            whole = bare_task_model(shape, TASKS[shape.task.name](TaskConfig(name=shape.task.name), shape.task))
        tensors = _of_backbone(folder.own_tensors(whole.state_dict()))
    else:
        with size_explained(), Undrawn():
            shapes = build_model(folder.model).state_dict()
        tensors = folder.own_tensors(shapes)
    return Source(
        name=str(folder.path),
        tokenizer=tokenizer,
        model=folder.model,
        tensors=None if random else tensors,
        origin=Origin.of(folder),
    )


def text_tokenizer(folder: ModelFolder) -> Tokenizer:
    """Return the tokenizer of a Hugging Face folder.

    Raises:
        InputError: it has none, or one that cannot be used.
    """
    tokenizer = tokenizer_of(folder)
    if tokenizer is None:
        raise no_tokenizer(folder.path)
    return tokenizer


def shape_of(folder: ModelFolder) -> TaskModelConfig:
    """Return what a Hugging Face folder with a task's head says of the whole model.

    Raises:
        InputError: a head or labels that do not do.
    """
    path = str(folder.path / "config.json")
    return TaskModelConfig(
        task=build(TaskFacts, folder.task(), source=path),
        text=build(TextConfig, folder.text(), source=path, prefix="text."),
        backbone=folder.model,
        head=build(HeadConfig, folder.head(), source=path),
    )


def shape_in(checkpoint: Checkpoint) -> TaskModelConfig:
    """Return what the checkpoint of a fine-tuned run says of the whole model."""
    return build(TaskModelConfig, checkpoint.model_config, source=str(checkpoint.folder / "config.json"))


def _merged(shape: TaskModelConfig, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Return the weights of a fine-tuned model's backbone, its adapter merged into them.

    Raises:
        InputError: an adapter that no weights can take in.
    """
    tensors = _of_backbone(checkpoint.model_tensors())
    if shape.adapter is None:
        return tensors
    backbone = build_model(shape.backbone)
    attach(backbone, shape.adapter, name=ADAPTER)
    put_tensors(backbone, tensors, source=checkpoint.folder / "model.safetensors")
    merge(backbone)
    detach(backbone)
    return tensors_of(backbone)


def _of_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those tensors of a task model that are of its backbone, by their names there."""
    return {name.removeprefix(BACKBONE): t for name, t in tensors.items() if name.startswith(BACKBONE)}


def initial_model(config: FinetuneConfig, task: Task, source: Source) -> TaskModel:
    """Return the model at its first step: the source's weights, and a head that `train.seed` draws.

    Raises:
        InputError: weights that do not fit, a head that does not fit the backbone, or a model without the output weight
            that the task needs.
    """
    seed_random(config.train.seed)
    shape = backbone_config(config.backbone.applied(source.model), task, source.name)
    whole = TaskModelConfig(task=task.facts, text=config.text, backbone=shape, head=config.head, adapter=config.adapter)
    model = bare_task_model(whole, task)
    if source.tensors is not None:
        dropped = (POOLER,) if task.needs_output_weight else (POOLER, HEAD)
        wanted = {name: tensor for name, tensor in source.tensors.items() if not name.startswith(dropped)}
        put_tensors(model.backbone, wanted, source=source.name)
        pooler = {n.removeprefix(POOLER): t for n, t in source.tensors.items() if n.startswith(POOLER)}
        if pooler and (own := getattr(model.head, "pooler", None)) is not None:
            put_tensors(own, pooler, source=source.name)
    return prepared(model, config.scope)


def prepared(model: TaskModel, scope: ScopeConfig) -> TaskModel:
    """Return a bare model with its adapter, and with gradients where its run has any; fresh layers are drawn."""
    prepare(model, scope)
    if model.config.adapter is not None:
        with size_explained("the adapter", "adapter.rank, adapter.width, adapter.length or adapter.mlp_width"):
            attach(model, model.config.adapter, name=ADAPTER)
    return model


def backbone_config(model: ModelConfig, task: Task, name: str) -> ModelConfig:
    """Return the configuration without what the task has no use for: a parameter would go without a gradient."""
    if not task.needs_output_weight:
        return dataclasses.replace(model, head="none", head_bias=False, tied_embeddings=True, pooler=False)
    if model.head == "none":
        raise InputError(f"{task.name} needs a model that writes, and {name} has no output weight; take another one")
    return dataclasses.replace(model, pooler=False)


def build_task_model(config: TaskModelConfig, task: Task) -> TaskModel:
    """Return the model of a configuration with its adapter, all weights drawn: those of a checkpoint then come in."""
    return prepared(bare_task_model(config, task), ScopeConfig())


def bare_task_model(config: TaskModelConfig, task: Task) -> TaskModel:
    """Return the model of a configuration without its adapter, its weights drawn from PyTorch's default generator.

    Raises:
        InputError: a head that does not fit the backbone, or a model that does not fit into memory.
    """
    with size_explained():
        backbone = build_model(config.backbone)
    try:
        head = task.make_head(config.head, config.backbone)
    except ValueError as error:  # such as a pooling that this kind of backbone has not
        raise InputError(str(error)) from error
    return TaskModel(config, backbone, head)
