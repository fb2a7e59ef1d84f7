"""The folder of a run: what lies where, and checkpoints that are whole or not there.

    config.toml  corpus.json  tokenizer/  tokens/  metrics.csv  timing.csv  anchors.json  *.png
    report/  calibration.json  random/, of fine-tuning; imported/, of a model from elsewhere, see hf/origin.py
    checkpoints/step-000250/   model.safetensors config.json (of the model) optimiser.safetensors state.json
                               random.safetensors, states of random generators; manifest.json, see manifest.py
                               unaveraged.safetensors, in a run with train.ema_decay: model.safetensors then has the
                               means of the weights, for whoever uses the model, and this file what training steps
    checkpoints/latest         one line, "step-000250"; `best` likewise: the best so far, by train.best_by
    lock                       while somebody trains in it, see lock.py

Read next: `manifest.py`, `lock.py` and `beginning.py`, then `../training/trainer.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from minillm.checkpoint import files
from minillm.checkpoint.lock import LOCK, holder, locked
from minillm.checkpoint.manifest import Damaged, check_files, read_manifest, write_manifest
from minillm.checkpoint.native import read_tensors, write_tensors
from minillm.checkpoint.sharded import move_shards, read_shards, shard_files
from minillm.config import build, to_table
from minillm.errors import InputError, warn

STEP_NAME = re.compile(r"step-(\d{6,})")  # a marker with anything else is not followed
MARKERS = ("latest", "best")
PLOTS = ("loss.png", "learning_rate.png", "throughput.png")
OURS = {"config.toml", "corpus.json", "tokenizer", "tokens", "metrics.csv", "timing.csv", "anchors.json", "checkpoints"}
OURS |= {"report", "calibration.json", "random"}  # of fine-tuning
OURS |= {"imported"}  # of the folder that a model came from; see hf/origin.py
OURS |= {LOCK}
TO_USE = ("model.safetensors", "config.json", "state.json")  # what using a model reads; to go on takes all files


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One saved moment of a run. Tensors are read when asked for: to generate needs no optimiser.

    folder: where it lies.
    step: optimiser steps done.
    model_config: table of the model's configuration, for `minillm.config.build`.
    state: what the trainer keeps beside tensors; see `Trainer`.
    """

    folder: Path
    step: int
    model_config: dict[str, Any]
    state: dict[str, Any]

    def model_tensors(self) -> dict[str, Tensor]:
        """Return the model's tensors by name, on the CPU."""
        return read_tensors(self.folder / "model.safetensors")

    def unaveraged_tensors(self) -> dict[str, Tensor]:
        """Return the weights whose means `model_tensors` has, by name, on the CPU."""
        return read_tensors(self.folder / "unaveraged.safetensors")

    def check_model(self, config: Any) -> None:
        """Raise InputError unless this checkpoint's model is of `config`; settings newer than it count as default.

        Tensors alone do not tell: another number of heads has the same shapes.
        """
        path = self.folder / "config.json"
        saved = build(type(config), self.model_config, source=str(path), prefix="model.")
        for field in dataclasses.fields(config):
            asked, came = getattr(config, field.name), getattr(saved, field.name)
            if asked != came:
                raise InputError(
                    f"{path} is of another architecture: model.{field.name} is {came} in it, {asked} was asked for; "
                    f"use the [model] section that it was trained with"
                )

    def optimiser_tensors(self, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the optimiser's tensors by "slot.parameter name", on the CPU.

        Args:
            parameters: of the model by name. From a sharded checkpoint tensors then come spread as these are.
        """
        if shard_files(self.folder):
            return read_shards(self.folder, parameters)
        return read_tensors(self.folder / "optimiser.safetensors")

    def random_tensors(self) -> dict[str, Tensor]:
        """Return the states of the random generators by name, on the CPU."""
        return read_tensors(self.folder / "random.safetensors")


class RunFolder:
    """The paths of a run and its checkpoints. Making the object touches no disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.toml"
        self.tokenizer_path = self.path / "tokenizer"
        self.corpus_path = self.path / "corpus.json"
        self.tokens_path = self.path / "tokens"
        self.metrics_path = self.path / "metrics.csv"
        self.timing_path = self.path / "timing.csv"
        self.calibration_path = self.path / "calibration.json"
        self.checkpoints = self.path / "checkpoints"
        self._held = False
        self._tokenizer: str | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def quoted(self) -> str:
        """The folder as a word of a command line that can be copied into a shell."""
        return shlex.quote(str(self.path))

    def is_run(self) -> bool:
        """Return whether a run was started here."""
        return self.config_path.is_file() or self.checkpoints.is_dir()

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are here, ascending."""
        if not self.checkpoints.is_dir():
            return []
        names = (STEP_NAME.fullmatch(path.name) for path in self.checkpoints.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def check_free(self, overwrite: bool = False) -> None:
        """Raise InputError where `create` would; touches nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a folder for a run; choose another --out")
        with files.explained(self.path):
            if self.steps() and not overwrite:
                raise InputError(
                    f"{self.path} already holds a run, saved at step {self.steps()[-1]}; "
                    f"choose another --out or use --resume {self.quoted}"
                )
            if not self.steps() and self.path.is_dir() and (stranger := self._stranger()):
                raise InputError(f"{self.path} is not empty and not a run: it has {stranger}; choose another --out")

    def _stranger(self) -> str | None:
        """Return what tells this folder from a run that never reached its first checkpoint; None: nothing does.

        One name of ours is not enough: a config.toml or a metrics.csv may be anyone's.
        """
        names = {path.name for path in self.path.iterdir() if not files.is_passing(path.name)} - {LOCK}
        if names and not self.checkpoints.is_dir():
            return f"{min(names)} and no folder checkpoints"
        inside = {path.name for path in self.checkpoints.iterdir()} if names else set()
        strangers = [name for name in names if name not in {*OURS, *PLOTS}]
        strangers += [f"checkpoints/{name}" for name in inside if name not in MARKERS and not files.is_passing(name)]
        return min(strangers, default=None)

    def create(self, overwrite: bool = False) -> None:
        """Make the folder for a new run at once; `beginning.py` does it when the new run is ready.

        Args:
            overwrite: remove the checkpoints, the CSVs and the text's digest of a run that stands here, no more.
        Raises:
            InputError: a run with a checkpoint is here already, the folder holds other things, or it cannot be made.
                A run that never reached its first checkpoint has nothing to lose and is started again in place.
        """
        self.check_free(overwrite)
        with files.explained(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for path in self.replaced():
                files.remove(path)

    def replaced(self) -> list[Path]:
        """Return what of a run that stands here a new one replaces by its mere beginning, there or not."""
        named = [self.checkpoints / marker for marker in MARKERS]  # first: a marker must not outlive its checkpoint
        named += [self.folder_of(step) for step in self.steps()]
        named += [self.metrics_path, self.timing_path, self.corpus_path, self.calibration_path]
        return [*named, *(self.path / name for name in ("report", "random", "imported"))]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other trainers inside the block; blocks of one object may lie in each other.

        Raises:
            InputError: another process trains here; the text has its number.
        """
        if self._held:
            yield
            return
        with locked(self.path / LOCK, str(self.path)):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def trainer(self) -> int | None:
        """Return the number of the process that trains here, None where nobody does. Changes nothing."""
        return holder(self.path / LOCK)

    def check(self) -> None:
        """Raise InputError unless a run stands here."""
        if not self.path.exists():
            raise InputError(f"no run folder {self.path}; give the folder that --out named when the run was started")
        if not self.is_run():
            raise InputError(f"{self.path} is not a run folder: it has neither config.toml nor checkpoints")

    def check_tokenizer_free(self) -> None:
        """Raise InputError where a run stands here: a new tokenizer in place of its own would end the use of it."""
        if self.is_run() and self.tokenizer_path.exists():
            raise InputError(f"{self.path} is a run, whose tokenizer would be replaced; choose another --out")

    def shards_of(self, step: int) -> Path:
        """Return where processes write their shares of a checkpoint before `save` takes them in."""
        return self.checkpoints / f"{files.WRITING}shards-{step:06d}"

    def folder_of(self, step: int) -> Path:
        """Return the place of the checkpoint after `step` optimiser steps."""
        return self.checkpoints / f"step-{step:06d}"

    def safe(self) -> str:
        """Return, for an error's text, what of this run is on the disk."""
        steps = self.steps()
        if not steps:
            return "no checkpoint was saved before"
        return f"the checkpoint of step {steps[-1]} is safe, go on from it with --resume {self.quoted}"

    def save(
        self,
        step: int,
        model_tensors: Mapping[str, Tensor],
        model_config: Any,
        optimiser_tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        best: bool,
        *,
        unaveraged: Mapping[str, Tensor] | None = None,
        random: Mapping[str, Tensor] | None = None,
        score: Sequence[float] | None = None,
        keep: int = 1,
        keep_best: int = 1,
        keep_every: int = 0,
        shards: Path | None = None,
    ) -> Path:
        """Write a checkpoint, point (`best` and) `latest` to it, and remove those no longer kept.

        Checkpoints of later steps go too: the run went back to an earlier one and takes another course.

        Args:
            step: optimiser steps done.
            model_tensors: by name, as `native.tensors_of` gives them.
            model_config: the model's configuration, a dataclass made with `minillm.config.setting`.
            optimiser_tensors: by "slot.parameter name".
            state: numbers, texts, lists and tables, as JSON can hold them.
            best: whether `best` shall point to it. It does too where its score is above that of the checkpoint that is
                marked: a better one may have been judged that the disk did not take.
            unaveraged: the weights whose means `model_tensors` has; None: it has no means.
            random: states of random generators; None: none.
            score: how good an evaluation at this step found it, higher is better, the first number before the next;
                None: there was none.
            shards: folder of the optimiser's tensors as `sharded.write_shards` wrote them, in place of
                `optimiser_tensors`; it is moved. None: they are whole.
            keep, keep_best, keep_every: the newest, the best by score and those of steps that this number divides (0:
                none) stay; the one that `best` names stays besides.
        Raises:
            InputError: a file cannot be written, or differs when it is read back; the earlier checkpoints are then
                untouched, and a marker names a whole one.
        """
        target, safe = self.folder_of(step), self.safe()
        with files.explained(self.checkpoints, safe):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(self.checkpoints, but=shards)
        texts = {"config.json": to_table(model_config), "state.json": dict(state)}
        tensors = {"model.safetensors": model_tensors}
        if shards is None:
            tensors["optimiser.safetensors"] = optimiser_tensors
        if unaveraged is not None:
            tensors["unaveraged.safetensors"] = unaveraged
        if random is not None:
            tensors["random.safetensors"] = random
        with files.new_folder(target, safe=safe) as draft:
            for name, values in tensors.items():
                write_tensors(draft / name, values, named=target / name, safe=safe)
            for name, table in texts.items():
                with files.explained(target / name, safe):
                    files.write_new(draft / name, (json.dumps(table, indent=1) + "\n").encode())
            with files.explained(target, safe):
                if shards is not None:
                    move_shards(shards, draft)
                write_manifest(draft, {"step": step, "score": score, "tokenizer": self._tokenizer_digest()})
        named = self._marked("best")
        if not best and named is not None and named >= step:
            self._mark_best_before(step)
        best = best or self._beats_the_marked(score)
        # `best` first: after a crash between the two the run goes on from the older checkpoint, and comes here again;
        # with `latest` first it would go on after this one, and never say that it was the best
        for marker in ("best", "latest") if best else ("latest",):
            files.write_text(self.checkpoints / marker, f"{target.name}\n", safe=self.safe())
        with files.explained(self.checkpoints, self.safe()):
            self._remove_old(keep, keep_best, keep_every, newest=step)
        return target

    def _tokenizer_digest(self) -> str | None:
        """Return the SHA-256 of the run's tokenizer as it was when first asked for; None where it has none."""
        if self._tokenizer is None and self.tokenizer_path.is_dir():
            self._tokenizer = folder_digest(self.tokenizer_path)
        return self._tokenizer

    def _remove_old(self, keep: int, keep_best: int, keep_every: int, *, newest: int) -> None:
        """Remove all checkpoints but those up to `newest` that `save` was told to keep."""
        before = [step for step in self.steps() if step <= newest]
        kept = {*before[-keep:], self._marked("best"), *self._by_score(before)[:keep_best]}
        kept |= {step for step in before if keep_every and step % keep_every == 0}
        for step in self.steps():
            if step > newest or step not in kept:
                files.remove_folder(self.folder_of(step))

    def _mark_best_before(self, step: int) -> None:
        """Let `best` name the best checkpoint before a step: the one that it names is of a course that was left."""
        found = self._by_score([number for number in self.steps() if number < step])
        if found:
            files.write_text(self.checkpoints / "best", f"{self.folder_of(found[0]).name}\n", safe=self.safe())
            return
        with files.explained(self.checkpoints, self.safe()):
            (self.checkpoints / "best").unlink()

    def _beats_the_marked(self, score: Sequence[float] | None) -> bool:
        """Return whether a score is above that of the checkpoint that `best` names, or `best` names none."""
        if score is None:
            return False
        named = self._marked("best")
        marked = None if named is None else self._score(named)
        return named is None or (marked is not None and list(score) > marked)

    def _by_score(self, steps: list[int]) -> list[int]:
        """Return those of the steps that have a score, the best and of equal ones the earliest first."""
        scores = {step: score for step in steps if (score := self._score(step)) is not None}
        return sorted(sorted(scores), key=scores.__getitem__, reverse=True)

    def _score(self, step: int) -> list[float] | None:
        """Return the score that a checkpoint was saved with; None where it had none or cannot be read."""
        try:
            return read_manifest(self.folder_of(step))["facts"].get("score")
        except InputError:
            return None

    def _marked(self, marker: str) -> int | None:
        """Return the step that a marker names, or None where it is missing or names nothing that is here."""
        try:
            found = STEP_NAME.fullmatch((self.checkpoints / marker).read_text(encoding="utf-8").strip())
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return int(found[1]) if found and self.folder_of(int(found[1])).is_dir() else None

    def load(self, which: Literal["latest", "best"] | int = "latest", *, to_use: bool = False) -> Checkpoint:
        """Return a checkpoint whose files were found to be as they were written.

        Args:
            which: the newest, the best by train.best_by (the newest where none was evaluated), or a step.
                In place of a damaged one the newest sound one is taken, which is said on standard error; a step that
                was asked for by number is not replaced.
            to_use: look only at the files that using the model takes, not at those for going on with its training.
        Raises:
            InputError: there is no run here, no such checkpoint, none that is sound, or the run's tokenizer is not
                that which the checkpoint was trained with.

        Cost: reads the files once, at 1 to 2 GB/s.
        """
        self.check()
        steps = self.steps()
        if not steps:
            inside = sorted(path.parent for path in self.path.glob("seed-*/checkpoints"))  # of a fine-tuning run
            if inside:
                raise InputError(
                    f"{self.path} holds {len(inside)} seeds of a run; give one of them, such as {inside[0]}"
                )
            raise InputError(f"{self.path} has no checkpoint yet; train it first")
        if isinstance(which, int):
            if which not in steps:
                raise InputError(f"{self.path} has no checkpoint of step {which}; it has {', '.join(map(str, steps))}")
            try:
                return self._open(which, to_use)
            except Damaged as error:
                raise InputError(f"{error}; use another checkpoint") from error
        first = self._marked(which)
        first = steps[-1] if first is None else first  # every step folder is whole: the marker is a convenience
        damage: list[str] = []
        for step in (first, *(step for step in reversed(steps) if step != first)):
            try:
                found = self._open(step, to_use)
            except Damaged as error:
                damage.append(str(error))
                continue
            for text in damage:
                warn(f"{text}; the checkpoint of step {step} takes its place")
            return found
        raise InputError("; ".join(damage) + "; no other checkpoint here is sound, use another run")

    def _open(self, step: int, to_use: bool) -> Checkpoint:
        """Return the checkpoint of a step after a look at its files."""
        folder = self.folder_of(step)
        manifest = read_manifest(folder)
        check_files(folder, manifest["files"], TO_USE if to_use else None)
        tokenizer = manifest["facts"].get("tokenizer")
        if tokenizer is not None and self.tokenizer_path.is_dir() and folder_digest(self.tokenizer_path) != tokenizer:
            raise InputError(
                f"{self.tokenizer_path} is of another run, or damaged: it is not the tokenizer that {folder} was "
                f"trained with; copy it from where the run was trained"
            )
        config, state = (read_json(folder / name) for name in ("config.json", "state.json"))
        return Checkpoint(folder=folder, step=step, model_config=config, state=state)


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of the files in a folder, their names included, but for hidden ones.

    Raises:
        InputError: one cannot be read.
    """
    try:
        listed = sorted((path.name, path.read_bytes()) for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read {error.filename or folder}: {files.reason(error)}") from error
    return hashlib.sha256(b"".join(name.encode() + b"\0" + content for name, content in listed)).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the table in a JSON file of a checkpoint.

    Raises:
        InputError: the file is missing or damaged.
    """
    return files.read_table(path, whole="the checkpoint is not whole, use another one", mend="use another checkpoint")
