"""From a configuration to a pretrained model in a run folder: the one place where all parts meet.

    text -> tokenizer -> token shards -> loader -> objective.step(model, batch) -> trainer -> run folder

Read next: `pretrain_config.py` and `material.py`, then `training/trainer.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.anchors import Anchor
from minillm.checkpoint.files import explained, write_text
from minillm.checkpoint.hf.folder import is_model_folder
from minillm.checkpoint.native import put_tensors, tensors_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import build, read_toml, to_table, toml_text
from minillm.data.corpora import Corpus, open_corpus
from minillm.errors import InputError
from minillm.evaluate import Evaluation, compare
from minillm.loading import Loaded, load, loaded_run
from minillm.material import Material, gather, make_objective
from minillm.model.count import count_parameters, flops_per_token
from minillm.model.transformer import Decoder, Encoder, build_model
from minillm.pretrain_config import PretrainConfig, rehearsal
from minillm.tokenizer.base import Tokenizer, load_tokenizer
from minillm.tokenizer.training import train_tokenizer
from minillm.training.changeable import change
from minillm.training.distributed import Processes
from minillm.training.distributed_config import is_first
from minillm.training.failures import size_explained
from minillm.training.launch import began, goes_on, joined, put_in_place
from minillm.training.plots import draw_plots
from minillm.training.precision import choose_compute_dtype, choose_device
from minillm.training.progress import Mute, Progress
from minillm.training.random_state import seed_random
from minillm.training.state import Summary
from minillm.training.trainer import Trainer

PLOTTED = ("unigram", "3-gram", "6-gram")  # anchors in the plot of the loss: more lines than these cannot be told apart


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run.

    run: its folder. kind: decoder or encoder. summary: what the trainer says.
    evaluation: the last weights on all held-out text; None where Ctrl-C ended the run early.
    table: the model among the anchors, as lines; empty where there is no evaluation.
    """

    run: Path
    kind: str
    summary: Summary
    evaluation: Evaluation | None
    table: list[str]

    def json(self) -> dict[str, Any]:
        """Return the figures under the names of the command line's contract."""
        end = self.evaluation
        return {
            "run": str(self.run),
            "steps": self.summary.steps,
            "tokens": self.summary.tokens,
            "seconds": self.summary.seconds,
            "tokens_per_second": self.summary.tokens_per_second,
            "train_loss": self.summary.train_loss,
            "valid_loss": self.summary.valid_loss if end is None else end.loss,
            "bits_per_byte": None if end is None else end.bits_per_byte,
            "masked_accuracy": None if end is None else end.masked_accuracy,
        }


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    init: Path | None = None,
    overwrite: bool = False,
    own_hand: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Train a model from its beginning, and leave a run folder.

    Args:
        config: all settings; a vocabulary size of 0 becomes the tokenizer's. QUICK=1 in the environment cuts the steps,
            here and in `resume`; see `rehearsal`.
        out: the run folder.
        init: a run, or a Hugging Face folder, whose weights and tokenizer this one begins with; its architecture takes
            the place of [model], and what a run's config.toml says of the tokenizer that of [tokenizer].
        overwrite: replace the run that stands in `out`.
        own_hand: the user named `data.cache`, and not another run's config.toml; see `material.gather`.
        progress: None: say nothing.
    Raises:
        InputError: a setting, a text or a folder that does not do; nothing half-written stays behind.

    Where torchrun started several processes each of them calls this; the first one makes the folder. Where it started
    them again, the run goes on from its latest checkpoint.
    """
    progress = progress or Progress(quiet=True)
    folder = RunFolder(out)
    with joined(config.distributed, choose_device(config.train.device)) as processes:
        if goes_on(folder, overwrite, processes):
            return resume(out, {}, progress=progress)
        processes.agree(to_table(config))
        progress = progress if processes.is_first else Mute()
        with began(folder, overwrite, processes) as draft, progress.shown():
            config, material, model = processes.first_then_rest(
                lambda: _begun(config, draft, init, own_hand, progress), lambda: _followed(draft, own_hand)
            )
            processes.largest(0)  # all have read the draft: it goes where the first process fails
            trainer = _trainer(config, folder, material, model, processes, progress)
            # not before all of that is known to do: a run that stands here is removed
            put_in_place(folder, draft, processes)
            return _train(trainer, material, config, progress)


def _begun(
    config: PretrainConfig, draft: RunFolder, init: Path | None, own_hand: bool, progress: Progress
) -> tuple[PretrainConfig, Material, Decoder | Encoder]:
    """Return all that a run begins with, and write what a run folder holds of it; the first process does."""
    config = rehearsal(config, progress.note)
    corpus = open_corpus(config.data.input, valid_fraction=config.data.valid_fraction)
    corpus.num_bytes("valid")  # reads all of it, also where no tokenizer has to
    if corpus.notice:
        progress.note(corpus.notice)
    given = None if init is None else _given(init)
    if given is None:
        tokenizer = _new_tokenizer(config, corpus, progress)
    else:
        tokenizer, config = given.require_tokenizer(), _with_sections_of(config, given)
    config = dataclasses.replace(config, model=_with_vocabulary(config, tokenizer))
    make_objective(config, tokenizer)  # raises where the two do not go together
    model = _initial_model(config)
    if given is not None:
        put_tensors(model, tensors_of(given.model), source=given.folder)
    with explained(draft.tokenizer_path):
        tokenizer.save(draft.tokenizer_path)
    if given is not None and given.origin is not None:
        given.origin.write(draft.path)
    write_text(draft.config_path, toml_text(config, leave_out=() if _trained_tokenizer(init) else ("tokenizer",)))
    material = gather(config, draft, tokenizer, own_hand=own_hand, progress=progress)
    write_text(draft.corpus_path, json.dumps(_corpus_card(material.corpus), indent=1) + "\n")
    return config, material, model


def _followed(draft: RunFolder, own_hand: bool) -> tuple[PretrainConfig, Material, Decoder | Encoder]:
    """Return what the first process left in the draft of a run; the weights are its own, sent later."""
    config: PretrainConfig = build(PretrainConfig, read_toml(draft.config_path), source=str(draft.config_path))
    material = gather(config, draft, load_tokenizer(draft.tokenizer_path), own_hand=own_hand)
    return config, material, _initial_model(config)


def resume(run: Path, overrides: Mapping[str, Any], *, progress: Progress | None = None) -> Result:
    """Go on with a run from its latest checkpoint as if it had never stopped.

    Args:
        run: the run folder.
        overrides: nested table of settings to change, of those that leave the run's past as it was.
        progress: None: say nothing.
    Raises:
        InputError: no run, a setting that cannot change, or text that is not what it was.
    """
    progress = progress or Progress(quiet=True)
    folder = RunFolder(run)
    folder.check()
    with folder.held() if is_first() else nullcontext(), progress.shown():
        return _resumed(folder, overrides, progress)


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """Return the table in a pretraining run's config.toml.

    Raises:
        InputError: there is none, as in the folder of an imported model, or the run is one of fine-tuning.
    """
    if not folder.config_path.exists() and folder.path.is_dir():
        raise InputError(
            f"{folder} has no config.toml and so does not say how to train; give CONFIG.toml or --preset NAME beside "
            f"--init {folder.quoted}"
        )
    folder.check()
    table = read_toml(folder.config_path)
    if "task" in table:
        raise _of_finetuning(folder)
    return table


def _of_finetuning(folder: RunFolder) -> InputError:
    """Return the error that says how to go on with a fine-tuning run."""
    return InputError(
        f"{folder} is a fine-tuning run; go on with minillm finetune --resume {folder.quoted}, or give --init the "
        f"pretrained model that it began with"
    )


def _resumed(folder: RunFolder, overrides: Mapping[str, Any], progress: Progress) -> Result:
    """Do what `resume` says in a folder that is held."""
    checkpoint = folder.load()  # says what is missing before anything else happens
    done = checkpoint.step
    table = settings_of(folder)
    kept_out = () if "tokenizer" in table else ("tokenizer",)  # as `_begun` has left it
    change(table, overrides, otherwise=f", and --init {folder.quoted} begins a new run with these weights")
    kept: PretrainConfig = build(PretrainConfig, table, source=str(folder.config_path))
    checkpoint.check_model(kept.model)  # before any is built of a config.toml that is not its own
    config = rehearsal(kept, progress.note, done=done)
    with joined(config.distributed, choose_device(config.train.device)) as processes:
        processes.agree(to_table(config))
        progress = progress if processes.is_first else Mute()

        def load() -> Material:
            tokenizer = load_tokenizer(folder.tokenizer_path)
            return gather(config, folder, tokenizer, own_hand=False, progress=progress)

        model, material = _initial_model(config), processes.first_then_rest(load, load)
        trainer = _trainer(config, folder, material, model, processes, progress)
        trainer.resume(done)
        if processes.is_first:
            text = toml_text(kept, leave_out=kept_out)
            write_text(folder.config_path, text, safe=folder.safe())  # a rehearsal shortens no real run
        return _train(trainer, material, config, progress)


def _given(init: Path) -> Loaded:
    """Return what a new run begins with: a Hugging Face folder, or another pretraining run's latest checkpoint."""
    if is_model_folder(init):
        return load(init)
    other = RunFolder(init)
    checkpoint = other.load("latest", to_use=True)
    if "backbone" in checkpoint.model_config:
        raise _of_finetuning(other)
    return loaded_run(other, checkpoint)


def _new_tokenizer(config: PretrainConfig, corpus: Corpus, progress: Progress) -> Tokenizer:
    """Return a tokenizer that is trained on the text."""
    progress.note(f"training a {config.tokenizer.kind} tokenizer on {corpus.name}")
    tokenizer = train_tokenizer(config.tokenizer, corpus.texts("train"))
    if tokenizer.notice:
        progress.note(tokenizer.notice)
    return tokenizer


def _with_sections_of(config: PretrainConfig, given: Loaded) -> PretrainConfig:
    """Return the configuration with the architecture of a model, and the [tokenizer] of the run that it is of.

    Raises:
        InputError: the objective does not fit that kind of model.
    """
    table = to_table(config) | {"model": to_table(given.model.config)}
    if given.config is not None:
        table |= {"tokenizer": to_table(given.config.tokenizer)}
    return build(PretrainConfig, table, source=str(given.folder))


def _trained_tokenizer(init: Path | None) -> bool:
    """Return whether [tokenizer] says how the tokenizer was trained: here, or in the run that this one begins with.

    One that was imported, or that such a run has from an import, was trained elsewhere.
    """
    if init is None:
        return True
    path = RunFolder(init).config_path
    return not is_model_folder(init) and path.exists() and "tokenizer" in read_toml(path)


def _with_vocabulary(config: PretrainConfig, tokenizer: Tokenizer) -> Any:
    """Return the [model] section with room for every token of the tokenizer."""
    size = config.model.vocab_size
    if size and size < tokenizer.vocab_size:
        raise InputError(
            f"model.vocab_size ({size}) is below the tokenizer's {tokenizer.vocab_size} tokens; leave it out, "
            f"or lower tokenizer.vocab_size"
        )
    return dataclasses.replace(config.model, vocab_size=size or tokenizer.vocab_size)


def _corpus_card(corpus: Corpus) -> dict[str, Any]:
    """Return what a run folder keeps of its text."""
    return {
        "name": corpus.name,
        "digest": corpus.digest,
        "bytes": {split: corpus.num_bytes(split) for split in ("train", "valid")},
        "python": platform.python_version(),
    }


def _initial_model(config: PretrainConfig) -> Decoder | Encoder:
    """Return the model at its initial weights, which the run's seed decides."""
    seed_random(config.train.seed)
    with size_explained():
        return build_model(config.model)


def _trainer(
    config: PretrainConfig,
    folder: RunFolder,
    material: Material,
    model: Decoder | Encoder,
    processes: Processes,
    progress: Progress,
) -> Trainer:
    """Return the trainer of a run."""
    device = processes.device
    choice = choose_compute_dtype(config.train.compute_dtype, device, width=config.model.width)
    progress.note(
        f"{config.model.kind} of {count_parameters(model):,} parameters on {processes} in "
        f"{str(choice.dtype).removeprefix('torch.')} ({choice.reason}); "
        f"{len(material.train.tokens):,} tokens to learn from, {len(material.valid.tokens):,} held out"
    )
    head_share = 1.0 if config.model.kind == "decoder" else config.objective.rate
    return Trainer(
        model,
        material.objective,
        material.loader,
        train=config.train,
        optim=config.optim,
        folder=folder,
        evaluate=material.glance,
        device=device,
        compute_dtype=choice.dtype,
        flops_per_token=flops_per_token(model, config.model.context, head_share=head_share),
        progress=progress,
        processes=processes,
    )


def _train(trainer: Trainer, material: Material, config: PretrainConfig, progress: Progress) -> Result:
    """Train, then judge the weights on all held-out text beside the anchors, and draw the plots."""
    summary = trainer.fit()
    folder, writes = trainer.folder, trainer.processes.is_first
    end, table = None, []
    if not summary.stopped_early:
        progress.note("held-out text: this model among simple ones that learnt from the same text")
        with trainer.averaged():
            end = material.evaluate(trainer.model)
    if end is not None and writes:
        anchors = material.anchors(folder.path / "anchors.json")
        draw_plots(folder, anchors=plotted_losses(anchors, end, num_bytes=material.valid.num_bytes))
        table = compare(end, anchors)
        for line in table:
            progress.note(line)
    elif writes:
        draw_plots(folder)
    return Result(run=folder.path, kind=config.model.kind, summary=summary, evaluation=end, table=table)


def plotted_losses(anchors: Sequence[Anchor], evaluation: Evaluation, *, num_bytes: int) -> dict[str, float]:
    """Return the losses of the anchors that the plot of the loss shows, in its unit: nats per target.

        nats per target = bits per byte * log(2) * bytes / targets

    Args:
        anchors: each with a loss, or with bits per byte.
        evaluation: of a model on the same text; its number of targets is taken.
        num_bytes: of that text.
    """
    nats = math.log(2) * num_bytes / evaluation.targets
    losses = {a.name: a.loss if a.loss is not None else (a.bits_per_byte or 0.0) * nats for a in anchors}
    return {name: losses[name] for name in PLOTTED if name in losses}
