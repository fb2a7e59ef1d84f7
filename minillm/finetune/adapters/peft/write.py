"""An attached adapter -> a folder that PEFT loads onto transformers' model of the same weights.

Read next: `read.py`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.checkpoint import files
from minillm.checkpoint.hf.entries import write_entries
from minillm.checkpoint.hf.family import TASK_PURPOSES, Family, Purpose
from minillm.checkpoint.native import write_tensors
from minillm.errors import InputError
from minillm.finetune.adapters.adalora import AdaLoRA
from minillm.finetune.adapters.attach import attached, check_attached, task_tensors
from minillm.finetune.adapters.config import AdaLoRAConfig, IA3Config, LoRAConfig, PrefixConfig
from minillm.finetune.adapters.dora import DoRA, row_lengths
from minillm.finetune.adapters.ia3 import InputGain
from minillm.finetune.adapters.lora import LoRA, LoRATable
from minillm.finetune.adapters.peft.prefix import to_prompt
from minillm.finetune.adapters.peft.sites import Site, modules_there, shortest_names, sites_of, sites_with
from minillm.finetune.adapters.places import Part, backbone_of, modules_of, parts_of
from minillm.model.transformer import Transformer

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
TASK_TYPES: Mapping[Purpose, str | None] = {
    "hidden_states": "FEATURE_EXTRACTION",
    "masked_lm": None,  # PEFT has no word for it
    "causal_lm": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "tagging": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}
INSIDE = "base_model.model."  # before a module's path in the file
EPSILON = 1e-5  # PEFT's AdaLoRA divides alpha by r + EPSILON


def save_peft(
    model: nn.Module, folder: Path | str, *, family: Family, purpose: Purpose, name: str = "adapter", base: str = ""
) -> None:
    """Write an attached adapter, and what the model has for its task, as a folder of PEFT's.

    Args:
        model: with the adapter; not merged.
        folder: made anew; one that holds such an adapter, and nothing else, is replaced.
        family, purpose: which class of transformers it is for; `checkpoint.hf.families.family_of` finds the family.
        name: of the adapter here.
        base: what PEFT shall take for the path of the base model, if anything.
    Raises:
        InputError: PEFT has no such adapter, or cannot compute what it does here, or the folder cannot be written.
        ValueError: no adapter of that name.
    """
    folder = Path(folder)
    config, tensors = to_peft(model, name, family, purpose)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder for an adapter; choose another place")
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not empty and holds no adapter of PEFT's; choose another place")
    if folder.exists() and (other := files.other_entry(folder, {CONFIG, TENSORS}.__contains__)):
        raise InputError(f"{folder} has {other} beside an adapter, and would be replaced; choose another place")
    with files.explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(folder) as draft:
        fill_adapter(draft, config | {"base_model_name_or_path": base or None}, tensors, named=folder)


def fill_adapter(draft: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, named: Path) -> None:
    """Write what `to_peft` gives into a folder that is there and empty; `named` as the user knows it.

    Raises:
        InputError: it cannot be written.
    """
    write_tensors(draft / TENSORS, tensors, named=named / TENSORS)
    with files.explained(named / CONFIG):
        (draft / CONFIG).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def to_peft(model: nn.Module, name: str, family: Family, purpose: Purpose) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return adapter_config.json and the tensors of an attached adapter; arguments and errors as in `save_peft`."""
    check_attached(model, name)
    config, backbone, parts = attached(model)[name], backbone_of(model), parts_of(model, name)
    if not isinstance(config, LoRAConfig | AdaLoRAConfig | IA3Config | PrefixConfig):
        raise InputError(
            f"PEFT has no adapter of the kind {config.kind}; it has lora, adalora, ia3 and prefix. "
            "Where it can be merged, export the merged model"
        )
    common = {"task_type": TASK_TYPES[purpose], "inference_mode": True, "peft_version": "0.21.2"}
    if isinstance(config, PrefixConfig):
        written, tensors = to_prompt(backbone, config, parts, family)
        inside = INSIDE.removesuffix("model.")
    else:
        chosen = sites_with(sites_of(family, backbone.config, purpose), parts)
        written, tensors = _to_modules(backbone, config, parts, chosen)
        known = modules_there(family, backbone.config, purpose)
        inputs = written.get("feedforward_modules", [])  # PEFT wants the same words for them in both lists
        outputs = [site.module for site in chosen if site.module not in inputs]
        if config.kind == "ia3":
            written["feedforward_modules"] = shortest_names(inputs, known)
        common["target_modules"] = sorted(shortest_names(outputs, known) + shortest_names(inputs, known))
        common["fan_in_fan_out"] = any(site.transposed for site in chosen)
        tensors = {f"{INSIDE}{key}": tensor for key, tensor in tensors.items()}
        inside = INSIDE
    task = _task(model, family, purpose)
    if not isinstance(config, PrefixConfig):
        common["modules_to_save"] = sorted({_module_to_save(key, family, purpose) for key in task}) or None
    return common | written, tensors | {f"{inside}{key}": tensor for key, tensor in task.items()}


def _task(model: nn.Module, family: Family, purpose: Purpose) -> dict[str, Tensor]:
    """Return what a model has for its task, by transformers' names."""
    own: Mapping[str, Tensor] = task_tensors(model)
    if purpose not in TASK_PURPOSES:
        return {}
    table = list(family.task_names(purpose))
    known = {name for entry in table for name in entry.ours}
    for missing in sorted(known ^ set(own)):
        side = "lacks" if missing in known else "has"
        raise InputError(f"{family.title} has another head for {purpose}: this model {side} {missing}")
    return write_entries(table, own, {})


def _module_to_save(key: str, family: Family, purpose: Purpose) -> str:
    """Return the module that PEFT is to save whole for a tensor of the head.

    bert.pooler.dense.weight -> pooler, classifier.out_proj.bias -> classifier
    """
    return key.removeprefix(family.prefix_for(purpose)).partition(".")[0]


def _to_modules(
    backbone: Transformer,
    config: LoRAConfig | AdaLoRAConfig | IA3Config,
    parts: Mapping[str, Any],
    sites: Sequence[Site],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and tensors of an adapter of linear layers and tables."""
    match config:
        case LoRAConfig():
            return _lora(backbone, config, parts, sites)
        case AdaLoRAConfig():
            return _adalora(config, parts, sites)
        case IA3Config():
            return _ia3(parts, sites)


def stacked(site: Site, parts: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return A stacked (m r, in) and B block-diagonal (n out, m r) of the parts of a site."""
    present = [parts[path] for path in site.parts if path in parts]
    if len(site.parts) == 1:
        return present[0].A.weight, present[0].B.weight
    out, rank = present[0].B.weight.shape
    B = present[0].B.weight.new_zeros(len(site.parts) * out, len(present) * rank)
    for column, part in enumerate(present):
        row = next(i for i, path in enumerate(site.parts) if parts.get(path) is part)
        B[row * out : (row + 1) * out, column * rank : (column + 1) * rank] = part.B.weight
    return torch.cat([part.A.weight for part in present]), B


@torch.no_grad()
def _lora(
    backbone: Transformer, config: LoRAConfig, parts: Mapping[str, LoRA | LoRATable], sites: Sequence[Site]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for site in sites:
        part = parts[site.parts[0]] if len(site.parts) == 1 else None
        if isinstance(part, LoRATable):
            rows = part.A.weight.new_zeros(site.unread, config.rank)
            tensors[f"{site.module}.lora_embedding_A"] = torch.cat([rows, part.A.weight]).T
            tensors[f"{site.module}.lora_embedding_B"] = part.B.weight
            ranks[site.module] = config.rank
            continue
        A, B = stacked(site, parts)
        tensors |= {f"{site.module}.lora_A.weight": A, f"{site.module}.lora_B.weight": B}
        ranks[site.module] = A.shape[0]
        if config.dora:
            tensors[f"{site.module}.lora_magnitude_vector"] = torch.cat(
                [_lengths(backbone, p, parts) for p in site.parts]
            )
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": _alpha(config, usual),
        "rank_pattern": others,
        "alpha_pattern": {module: _alpha(config, rank) for module, rank in others.items()},
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised,
        "use_dora": config.dora,
        "bias": "none",
        "init_lora_weights": True,
    }, tensors


def _alpha(config: LoRAConfig, rank: int) -> float:
    """Return the alpha that scales an update of another rank as this one is: by alpha / r, or alpha / sqrt(r)."""
    factor = rank / config.rank
    return config.alpha * (math.sqrt(factor) if config.rank_stabilised else factor)


def _lengths(backbone: Transformer, path: str, parts: Mapping[str, Any]) -> Tensor:
    """Return the lengths of the rows at a place: learnt ones, or those of the weight where no adapter is."""
    if isinstance(part := parts.get(path), DoRA):
        return part.magnitude
    return row_lengths(dict(modules_of(backbone))[path].get_parameter("weight"))


@torch.no_grad()
def _adalora(
    config: AdaLoRAConfig, parts: Mapping[str, AdaLoRA], sites: Sequence[Site]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All updates of PEFT's have one rank: those of fewer triplets are filled up with empty ones."""
    rank = config.rank * max(sum(path in parts for path in site.parts) for site in sites)
    tensors: dict[str, Tensor] = {}
    for site in sites:
        A, B = stacked(site, parts)
        E = torch.cat([parts[path].E for path in site.parts if path in parts])
        more = rank - len(E)
        tensors[f"{site.module}.lora_A"] = nn.functional.pad(A, (0, 0, 0, more))
        tensors[f"{site.module}.lora_E"] = nn.functional.pad(E, (0, 0, 0, more))
        tensors[f"{site.module}.lora_B"] = nn.functional.pad(B, (0, more))
    return {
        "peft_type": "ADALORA",
        "init_r": rank,
        "target_r": config.target_rank,
        "lora_alpha": config.alpha / config.rank * (rank + EPSILON),
        "lora_dropout": config.dropout,
        "orth_reg_weight": config.orthogonality,
        "beta1": config.beta1,
        "beta2": config.beta2,
        "deltaT": config.prune_every,
        "tinit": 0,
        "tfinal": 0,
        "total_step": 1,  # PEFT wants one; the schedule is over
        "bias": "none",
    }, tensors


@torch.no_grad()
def _ia3(parts: Mapping[str, Part], sites: Sequence[Site]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    inputs = []
    for site in sites:
        present: list[Any] = [parts[path] for path in site.parts if path in parts]
        gains = [part.gain for part in present]
        if isinstance(present[0], InputGain):
            if len(present) < len(site.parts) or any(not torch.equal(gain, gains[0]) for gain in gains):
                raise InputError(f"{site.module} is one module there, whose parts cannot have inputs scaled apart")
            inputs.append(site.module)
            tensors[f"{site.module}.ia3_l"] = gains[0][None, :]
            continue
        if any(isinstance(part, InputGain) for part in present):
            raise InputError(f"{site.module} is one module there, which cannot scale both inputs and outputs")
        plain = torch.ones_like(gains[0])
        given = [getattr(parts[path], "gain", plain) if path in parts else plain for path in site.parts]
        tensors[f"{site.module}.ia3_l"] = torch.cat(given)[:, None]
    return {"peft_type": "IA3", "feedforward_modules": inputs}, tensors
