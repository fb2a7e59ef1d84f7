"""A folder of PEFT's -> an adapter of ours on a model of the same weights.

Read next: `prefix.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm.checkpoint.hf.entries import read_entries, write_entries
from minillm.checkpoint.hf.family import TASK_PURPOSES, Family, Purpose
from minillm.checkpoint.native import put_by_name, read_tensors
from minillm.checkpoint.run_folder import read_json
from minillm.errors import InputError
from minillm.finetune.adapters.attach import attach, task_tensors
from minillm.finetune.adapters.config import AdaLoRAConfig, AdapterConfig, IA3Config, LoRAConfig, PrefixConfig
from minillm.finetune.adapters.dora import row_lengths
from minillm.finetune.adapters.peft.prefix import KEY, from_prompt
from minillm.finetune.adapters.peft.sites import Site, shortest_names, sites_of
from minillm.finetune.adapters.peft.write import CONFIG, EPSILON, INSIDE, TENSORS
from minillm.finetune.adapters.places import backbone_of, modules_of
from minillm.model.transformer import Transformer

# What would compute something else than the four kinds do here; any other value than these is refused.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    **{key: (False, None) for key in ("lora_bias", "use_qalora", "use_bdlora", "ensure_weight_tying")},
    **{key: (None, {}, []) for key in ("layer_replication", "trainable_token_indices", "target_parameters")},
    **{key: (None, {}, []) for key in ("alora_invocation_tokens", "arrow_config", "corda_config")},
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # the others change the base's weights
}
MODULE_KEY = re.compile(
    r"(?P<module>.+?)\.(?P<kind>lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l)(\.weight)?"
)


def load_peft(
    model: nn.Module,
    folder: Path | str,
    *,
    family: Family,
    purpose: Purpose,
    name: str = "adapter",
    task: bool = True,
    has_head: bool = False,
) -> AdapterConfig:
    """Attach an adapter from a folder of PEFT's to a model, and give the model's head the values that are beside it.

    Args:
        model: with the weights that the adapter was trained on; it alone acts afterwards.
        family, purpose: which class of transformers the adapter was trained on.
        name: to attach it under.
        task: False: leave the model's head as it is.
        has_head: the model's head has the base's values, which stand where the folder has none: PEFT saves the last
            layer, and BERT's pooler and ModernBERT's layer before it only when told to.
    Returns:
        the configuration that it has here.
    Raises:
        InputError: not such a folder, a damaged one, a method or an option that is not known here, or tensors that do
            not fit the model; it is then unchanged.
        ValueError: the name is taken, or adapters are merged.

    Cost: reads the file once; PyTorch's random state is left as it was.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a folder with an adapter of PEFT's: it has no {CONFIG}")
    if not (folder / TENSORS).is_file() and (folder / "adapter_model.bin").is_file():
        raise InputError(
            f"{folder} has its weights in a pickle, adapter_model.bin, which could run any program and is not opened; "
            "load it with peft and save it again: model.save_pretrained(folder)"
        )
    settings, source = read_json(folder / CONFIG), folder / TENSORS
    config, tensors, rest = from_peft(
        settings, read_tensors(source), backbone_of(model), family=family, purpose=purpose, source=folder
    )
    own = task_tensors(model) if task and purpose in TASK_PURPOSES else {}
    table = list(family.task_names(purpose)) if own else []
    given = rest if task else {}
    if has_head:
        given = write_entries(table, {key: tensor.detach() for key, tensor in own.items()}, {}) | given
    came = read_entries(table, given, own, source=source, asker="the model")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten: no one shall notice
        attach(model, config, name=name, tensors=tensors, source=source)
    put_by_name(own, came, source=source)
    return config


def missing_head(folder: Path, family: Family, purpose: Purpose) -> list[str]:
    """Return the tensors of a task's head that a folder of PEFT's does not have, by transformers' names.

    Raises:
        InputError: the file is missing or damaged.
    """
    if purpose not in TASK_PURPOSES:
        return []
    there = read_tensors(folder / TENSORS)
    return [e.theirs for e in family.task_names(purpose) if not any(name.endswith(f".{e.theirs}") for name in there)]


def from_peft(
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    backbone: Transformer,
    *,
    family: Family,
    purpose: Purpose,
    source: Path,
) -> tuple[AdapterConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Return our configuration, our tensors by their names in an adapter, and the head's by transformers' names.

    Args:
        settings: adapter_config.json.
        tensors: adapter_model.safetensors.
        backbone: what the adapter goes onto.
        source: the folder, for the error's text.
    Raises:
        InputError: as in `load_peft`.
    """
    kind = str(settings.get("peft_type"))
    for key, allowed in PLAIN.items():
        if settings.get(key) not in (*allowed, None):
            raise InputError(f"{source / CONFIG} has {key} = {settings[key]!r}, which has no counterpart here")
    if kind == "PREFIX_TUNING":
        if KEY not in tensors:
            raise InputError(f"{source / TENSORS} has no tensor {KEY}")
        table = from_prompt(tensors[KEY], backbone.config, family, source / TENSORS)
        inside = INSIDE.removesuffix("model.")
        rest = {key.removeprefix(inside): tensor for key, tensor in tensors.items() if key != KEY}
        return PrefixConfig(length=len(tensors[KEY])), table, rest
    readers = {"LORA": _lora, "ADALORA": _adalora, "IA3": _ia3}
    if kind not in readers:
        known = ", ".join((*readers, "PREFIX_TUNING"))
        raise InputError(f"{source / CONFIG} is of the method {kind}; known here are {known}")
    modules, rest = _by_module(tensors, family, backbone, purpose, source / TENSORS)
    try:
        config, own = readers[kind](settings, modules, backbone)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, re.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{source} is damaged: {kind} with {type(error).__name__} {error}; take it from where it was made"
        ) from error
    return config, own, rest


@dataclass(frozen=True)
class Module:
    """What a file has for one module: tensors by kind, such as lora_A; `source` for the error's text."""

    site: Site
    tensors: Mapping[str, Tensor]
    source: Path

    def tensor(self, kind: str, *shape: int | None) -> Tensor:
        """Return a tensor in float32, after checking its shape; None is any size.

        Raises:
            InputError: it is missing or of another shape.
        """
        wanted = "(" + ", ".join("r" if size is None else str(size) for size in shape) + ")"
        found = self.tensors.get(kind)
        if found is None:
            raise InputError(f"{self.source} has no tensor {self.site.module}.{kind} {wanted}")
        if len(found.shape) != len(shape) or any(w not in (None, s) for w, s in zip(shape, found.shape, strict=True)):
            raise InputError(
                f"{self.source}: the model asks for {self.site.module}.{kind} {wanted}, the file has "
                f"{tuple(found.shape)}"
            )
        return found.float()


def _by_module(
    tensors: Mapping[str, Tensor], family: Family, backbone: Transformer, purpose: Purpose, source: Path
) -> tuple[list[Module], dict[str, Tensor]]:
    """Return the tensors of each module that has an adapter, and those of the head by transformers' names."""
    sites = sites_of(family, backbone.config, purpose)
    found: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(INSIDE)
        if match := MODULE_KEY.fullmatch(name):
            if match["module"] not in sites:
                raise InputError(f"{source} has an adapter at {match['module']}, which {family.title} here has not")
            found.setdefault(match["module"], {})[match["kind"]] = tensor
        elif not _is_base(name, tensor, sites, backbone):
            rest[name] = tensor
    if not found:
        raise InputError(f"{source} has no adapter's tensors")
    return [Module(site, found[module], source) for module, site in sites.items() if module in found], rest


def _is_base(name: str, tensor: Tensor, sites: Mapping[str, Site], backbone: Transformer) -> bool:
    """Return whether a tensor is the base's own: PEFT saves an embedding that has an adapter with it."""
    site = sites.get(name.removesuffix(".base_layer.weight").removesuffix(".weight"))
    if site is None or len(site.parts) != 1:
        return False
    (path,) = site.parts
    own = _weight(backbone, path)
    return tensor.shape[1:] == own.shape[1:] and torch.equal(tensor[site.unread :].float(), own.float())


def _weight(backbone: Transformer, path: str) -> Tensor:
    """Return the weight of a layer, or of the layer that an adapter stands around."""
    module: Any = dict(modules_of(backbone))[path]
    return module.weight.detach()


@dataclass(frozen=True)
class Update:
    """A low-rank update of one layer of ours: A (r, in), B (out, r), and what scales their product.

    E: of AdaLoRA, (r, 1). magnitude: of DoRA, (out,).
    """

    path: str
    A: Tensor
    B: Tensor
    scale: float
    E: Tensor | None = None
    magnitude: Tensor | None = None


def _columns(site: Site, B: Tensor) -> dict[str, slice]:
    """Return the columns of B that each part of a module needs; see `sites.py`. Parts that B leaves alone are left out.

    B: (n out, r).
    """
    rank = B.shape[1]
    used = {path: rows.ne(0).any(dim=0) for path, rows in zip(site.parts, B.chunk(len(site.parts)), strict=True)}
    present = [path for path in site.parts if used[path].any()] or list(site.parts)
    size, left = divmod(rank, len(present))
    blocks = {path: slice(i * size, (i + 1) * size) for i, path in enumerate(present)}
    if not left and all(used[path].sum() == used[path][block].sum() for path, block in blocks.items()):
        return blocks
    return dict.fromkeys(present, slice(0, rank))


def _updates(module: Module, backbone: Transformer, scale: float) -> Iterator[Update]:
    """Yield the updates of our layers that one of a module is."""
    site = module.site
    weights = [_weight(backbone, path) for path in site.parts]
    out, inputs = weights[0].shape
    A = module.tensor("lora_A", None, inputs)
    B = module.tensor("lora_B", out * len(weights), len(A))
    E = module.tensor("lora_E", len(A), 1) if "lora_E" in module.tensors else None
    if E is not None and len(site.parts) > 1:
        kept = B.ne(0).any(dim=0)  # (r,); an update of fewer parts was filled up with empty triplets
        if kept.any():
            A, B, E = A[kept], B[:, kept], E[kept]
    columns = _columns(site, B)
    rows = dict(zip(site.parts, B.chunk(len(weights)), strict=True))
    lengths: dict[str, Tensor] = {}
    if "lora_magnitude_vector" in module.tensors:
        flat = module.tensors["lora_magnitude_vector"].float().flatten()
        if len(flat) != out * len(weights):
            raise InputError(f"{module.source}: {site.module}.lora_magnitude_vector has {len(flat)} rows, not {len(B)}")
        lengths = dict(zip(site.parts, flat.chunk(len(weights)), strict=True))
        moved = [p for p, w in zip(site.parts, weights, strict=True) if not torch.equal(lengths[p], row_lengths(w))]
        columns |= {path: slice(0, 0) for path in moved if path not in columns}
    for path in (path for path in site.parts if path in columns):
        part = columns[path]
        yield Update(path, A[part], rows[path][:, part], scale, None if E is None else E[part], lengths.get(path))


def _lora(
    settings: Mapping[str, Any], modules: Sequence[Module], backbone: Transformer
) -> tuple[LoRAConfig, dict[str, Tensor]]:
    stabilised, dora = bool(settings.get("use_rslora")), bool(settings.get("use_dora"))
    found: list[Update] = []
    tables: list[str] = []
    for module in modules:
        is_table = "lora_embedding_A" in module.tensors
        A = module.tensors["lora_embedding_A" if is_table else "lora_A"]
        rank = A.shape[0]
        alpha = float(
            _for_module(settings.get("alpha_pattern") or {}, module.site.module, settings.get("lora_alpha", 8))
        )
        scale = alpha / (rank**0.5 if stabilised else rank)
        if is_table:
            rows, width = _weight(backbone, module.site.parts[0]).shape
            A = module.tensor("lora_embedding_A", None, rows + module.site.unread).T[module.site.unread :]
            tables.append(module.site.parts[0])
            found.append(Update(module.site.parts[0], A.T, module.tensor("lora_embedding_B", width, rank), scale))
        else:
            found += _updates(module, backbone, scale)
    rank = max(len(update.A) for update in found)
    scale = found[0].scale
    tensors = {}
    for update in found:
        A, B, _ = _filled(update, rank)
        B = B if update.scale == scale else B * (update.scale / scale)
        tensors[f"{update.path}.adapter.A.weight"] = A.T.contiguous() if update.path in tables else A
        tensors[f"{update.path}.adapter.B.weight"] = B
        if dora and update.magnitude is not None:
            tensors[f"{update.path}.adapter.magnitude"] = update.magnitude
    config = LoRAConfig(
        targets=_targets(backbone, [update.path for update in found]),
        rank=rank,
        alpha=scale * (rank**0.5 if stabilised else rank),
        rank_stabilised=stabilised,
        dropout=float(settings.get("lora_dropout") or 0.0),
        dora=dora,
    )
    return config, tensors


def _adalora(
    settings: Mapping[str, Any], modules: Sequence[Module], backbone: Transformer
) -> tuple[AdaLoRAConfig, dict[str, Tensor]]:
    found: list[Update] = []
    for module in modules:
        rank = module.tensors["lora_A"].shape[0]
        alpha = float(settings.get("lora_alpha", 8))
        found += _updates(module, backbone, (alpha if alpha > 0 else rank) / (rank + EPSILON))
    rank, scale = max(len(update.A) for update in found), found[0].scale
    tensors = {}
    for update in found:
        A, B, E = _filled(update, rank)
        assert E is not None
        tensors[f"{update.path}.adapter.A.weight"] = A
        tensors[f"{update.path}.adapter.E"] = E if update.scale == scale else E * (update.scale / scale)
        tensors[f"{update.path}.adapter.B.weight"] = B
    config = AdaLoRAConfig(
        targets=_targets(backbone, [update.path for update in found]),
        rank=rank,
        target_rank=min(int(settings.get("target_r", rank)), rank),
        alpha=scale * rank,
        dropout=float(settings.get("lora_dropout") or 0.0),
        orthogonality=float(settings.get("orth_reg_weight", 0.5)),
    )
    return config, tensors


def _ia3(
    settings: Mapping[str, Any], modules: Sequence[Module], backbone: Transformer
) -> tuple[IA3Config, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    paths: dict[bool, list[str]] = {False: [], True: []}  # of outputs, of inputs
    for module in modules:
        parts = module.site.parts
        out, inputs = _weight(backbone, parts[0]).shape
        gain = module.tensors["ia3_l"]
        scales_input = tuple(gain.shape) == (1, inputs) != (out * len(parts), 1)
        if scales_input:
            given = dict.fromkeys(parts, module.tensor("ia3_l", 1, inputs)[0])
        else:
            given = dict(zip(parts, module.tensor("ia3_l", out * len(parts), 1)[:, 0].chunk(len(parts)), strict=True))
            moved = {path: gain for path, gain in given.items() if gain.ne(1).any()}
            given = moved or given
        paths[scales_input] += given
        tensors |= {f"{path}.adapter.gain": gain for path, gain in given.items()}
    config = IA3Config(
        targets=_targets(backbone, paths[False]) if paths[False] else (),
        input_targets=_targets(backbone, paths[True]) if paths[True] else (),
    )
    return config, tensors


def _filled(update: Update, rank: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return A, B and E filled up with empty triplets to a rank."""
    more = rank - len(update.A)
    A, B = nn.functional.pad(update.A, (0, 0, 0, more)), nn.functional.pad(update.B, (0, more))
    return A, B, None if update.E is None else nn.functional.pad(update.E, (0, 0, 0, more))


def _targets(backbone: Transformer, paths: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest names that mean these layers and no other."""
    there = [path for path, module in modules_of(backbone) if hasattr(module, "weight")]
    return tuple(shortest_names(paths, there))


def _for_module(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value that PEFT's patterns have for a module: the first whose key is an end of its path."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
