"""THE loop, for pretraining and fine-tuning alike: it knows no task, only a model, an objective and batches.

    hooks -> batch of this step -> objective.prepare -> gradient (k micro-batches) -> its norm -> hooks -> clip
          -> optimiser -> hooks -> running mean of the weights -> now and then: evaluate, log, save

Several processes run it side by side (`distributed.py`); the first one writes.

All that is random comes from `Batch.seed` and the loader, which are pure functions of the step: two runs from one seed
agree bit for bit on one machine, and so does one that was stopped and resumed. Evaluating, logging and saving change
nothing of what is learnt.

Read next: `schedule.py`, `optim.py`, `records.py`; `__init__.py` lists what else stands around the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from minillm.checkpoint.run_folder import RunFolder
from minillm.data.batch import Batch
from minillm.errors import InputError
from minillm.training.config import OptimConfig, TrainConfig
from minillm.training.determinism import deterministic
from minillm.training.distributed import Processes
from minillm.training.ema import EMA
from minillm.training.failures import (
    NO_SCALE_DOES,
    SMALLEST_SCALE,
    compiler_explained,
    memory_explained,
    not_finite,
    too_many_skipped,
)
from minillm.training.figures import StepFigures
from minillm.training.gradient import Objective, add_gradient, clip_gradients, gradient_norm, targets_in, tokens_in
from minillm.training.host_memory import keep_freed_memory
from minillm.training.interrupt import Interrupt
from minillm.training.judge import Judge
from minillm.training.optim import make_optimiser, set_learning_rate
from minillm.training.precision import make_scaler
from minillm.training.progress import Mute, Progress
from minillm.training.records import Records
from minillm.training.saving import Saver
from minillm.training.schedule import learning_rate_share
from minillm.training.snapshot import put, take
from minillm.training.state import RunState, Summary
from minillm.training.throughput import Stopwatch, Yardstick, yardstick


class Batches(Protocol):
    """Where batches come from: a pure function of the step. It may have a `where(step)` that says from which places."""

    def batch(self, step: int) -> Batch: ...


class Trainer:
    """Trains a model on batches towards an objective, and keeps what comes of it in a run folder.

    before_step: called with the trainer before every step, also one that turns out to have no targets.
    after_backward: called with the trainer once per step, when the whole batch's gradient is there and measured, before
        clipping; it reads the gradient.
    after_step: called with the trainer once per step, when the weights are new. A step without targets, or one that
        `train.on_non_finite` skips, calls neither of these two.
    ema: the running mean of the weights; None without `train.ema_decay`. See `averaged`.
    saver: writes the checkpoints, off the training path. judge: evaluates, and knows what was best.
    state: where the run stands; an `after_step` hook finds the running step counted.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        loader: Batches,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        folder: RunFolder,
        evaluate: Callable[[Any], Mapping[str, float | None]],
        figures: Sequence[str] = (),
        device: torch.device,
        compute_dtype: torch.dtype,
        flops_per_token: float | None = None,
        progress: Progress | None = None,
        resume_command: str | None = None,
        rate_scales: Mapping[str, float] | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Put the model on its device and make the optimiser. Nothing is read or written before `resume` or `fit`.

        Args:
            model: float32; has `config`, a dataclass that goes into each checkpoint, `compute_in(dtype)` and, for
                `train.checkpoint_activations`, `recompute_blocks()`.
            evaluate: model -> figures, "loss" among them; that which `train.best_by` names decides which checkpoint is
                the best (None: not this one). It is called in evaluation mode without gradients.
            figures: names of those beside "loss"; metrics.csv has a column for each.
            flops_per_token: of forward and backward, for MFU; None: it is not shown.
            progress: None: say nothing.
            resume_command: what to tell who pressed Ctrl-C; None: `minillm pretrain --resume` with the folder.
            rate_scales: parameter name -> its share of the peak learning rate; see `optim.make_optimiser`.
            processes: who trains this model together; None: this process alone.
        Raises:
            InputError: `train.best_by` names no figure of the evaluation, or the batch does not go with the processes.
        """
        if train.best_by not in ("loss", *figures):
            raise InputError(f"train.best_by is {train.best_by}; take one of {', '.join(('loss', *figures))}")
        self.processes = processes or Processes(device=device)
        self.processes.check(train, compute_dtype)
        self.micro_batches = self.processes.micro_batches(train)
        if train.threads is not None:
            torch.set_num_threads(train.threads)
        if device.type == "cpu":
            keep_freed_memory()
        self.model: Any = model.to(device)
        self.model.compute_in(compute_dtype)
        if train.checkpoint_activations:
            self.model.recompute_blocks()
        if train.compile:
            self.model.compile()  # in place: names of parameters stay
        self.processes.lay_out(self.model)
        self.objective, self.loader, self.figures = objective, loader, tuple(figures)
        self.train, self.optim, self.folder = train, optim, folder
        self.device, self.compute_dtype = device, compute_dtype
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(self.model, optim, rate_scales)
        self.scaler = make_scaler(device, compute_dtype)
        self.ema = None if train.ema_decay is None else EMA(self.model, train.ema_decay)
        self.progress = progress or (Progress(quiet=True) if self.processes.is_first else Mute())
        self.flops_per_token = flops_per_token
        self.resume_command = resume_command or f"minillm pretrain --resume {folder.quoted}"
        self.before_step: list[Callable[[Trainer], None]] = []
        self.after_backward: list[Callable[[Trainer], None]] = []
        self.after_step: list[Callable[[Trainer], None]] = []
        self.state = RunState()
        self.judge = Judge(evaluate, train.best_by)
        self._figures = StepFigures()
        self.saver = Saver(self._write_failed)
        self._yardstick: Yardstick | None = None

    def fit(self) -> Summary:
        """Train until `train.max_steps`, the end of `train.patience`, Ctrl-C or SIGTERM, and save.

        Raises:
            InputError: another process trains in this folder, the loss is no longer finite, memory or disk is full; the
                text says what of the run is safe.
        """
        was_training, before, asked = self.model.training, (self.state.tokens, self.state.step), 0
        self.model.train()
        try:
            with (
                self.folder.held() if self.processes.is_first else nullcontext(),
                deterministic(self.train.deterministic),
                Interrupt(repeated=self.processes.gathers) as interrupt,
                self._records() as records,
                self.saver,
            ):
                self._announce()
                stopwatch = Stopwatch()
                while not self._done() and not (asked := self._asked_to_stop(interrupt)):
                    self.saver.check()
                    with memory_explained(self.train, self.device), compiler_explained(self.train.compile):
                        figures = self.take_step()
                        stopwatch.tokens, stopwatch.steps = self.state.tokens - before[0], self.state.step - before[1]
                        self._follow_up(figures, records, stopwatch)
                    self.progress.step(self.state.step)
                stopped_early = not self._done()
                missing = self.processes.is_first and self.saver.wait() != self.state.step
                if self.processes.largest(missing):  # not asked for, or not written: then once more
                    self.saver.forget()
                    self.save(records)
                self.saver.finish()
                self.processes.largest(0)  # nobody ends before the last write: torchrun would end the others then
        finally:
            self.progress.stop()
            self.model.train(was_training)
        if self.state.empty_steps:
            self.progress.note(f"{self.state.empty_steps:,} steps had no targets and changed nothing")
        if stopped_early:
            self.progress.warn(f"stopped after step {self.state.step:,}, saved; go on with: {self.resume_command}")
        return Summary(
            steps=self.state.step,
            tokens=self.state.tokens,
            seconds=stopwatch.seconds,
            tokens_per_second=stopwatch.tokens_per_second,
            steps_per_second=stopwatch.steps_per_second,
            train_loss=self.state.train_loss,
            valid_loss=self.state.valid_loss,
            stopped_early=stopped_early,
            signal=asked if stopped_early else None,
            out_of_patience=self._out_of_patience(),
        )

    def _asked_to_stop(self, interrupt: Interrupt) -> int:
        """Return the number of the signal that asked this process, or another one, to stop before the next step."""
        self.processes.at("beginning", self.state.step + 1)
        if number := self.processes.largest(interrupt.asked or 0):
            interrupt.ask(number)
        return number

    def averaged(self) -> AbstractContextManager[None]:
        """Return a block in which the model has the weights by which it is judged: their means, where there are any."""
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def _out_of_patience(self) -> bool:
        """Return whether as many evaluations as `train.patience` came after the best one."""
        return self.train.patience is not None and self.state.since_best >= self.train.patience

    def _done(self) -> bool:
        """Return whether no step is left to take."""
        return self.state.step >= self.train.max_steps or self._out_of_patience()

    def _announce(self) -> None:
        """Say what a reader of the log could stumble over, and begin the live line."""
        if self.flops_per_token is not None and self.processes.is_first:
            self._yardstick = yardstick(self.device, self.compute_dtype)
            self.progress.note(f"MFU is the share of {self._yardstick.name}")
        if self.state.step >= self.train.max_steps:
            self.progress.note(f"all {self.state.step:,} steps are done already; raise train.max_steps to go on")
        elif self._out_of_patience():
            self.progress.note(f"{self.state.since_best} evaluations were no better; raise train.patience to go on")
        elif self.optim.warmup_steps >= self.train.max_steps and self.optim.schedule != "constant":
            self.progress.note("the run ends inside its warm-up: optim.warmup_steps is not below train.max_steps")
        if words := self.processes.smaller_micro_batch(self.train):
            self.progress.note(words)
        self.progress.start(self.state.step, self.train.max_steps)

    def take_step(self) -> Tensor | None:
        """Take one optimiser step, without a look at what came of it; `fit` calls it, and so do benchmarks.

        Returns:
            (3,) float32 on the device: mean loss, gradient norm before clipping, excess of counted targets (see
            `add_gradient`). None where the batch has no target or was skipped: then nothing but the counts changes.
        """
        self.processes.at("preparing the batch")
        for hook in self.before_step:
            hook(self)
        batch = self.objective.prepare(self.loader.batch(self.state.step))
        self.state.tokens += tokens_in(batch)
        count = targets_in(batch)
        if count == 0:
            self._skip_step()
            return None
        self.processes.at("computing")
        loss, excess = add_gradient(
            self.model,
            self.objective,
            batch,
            count=count,
            micro_batches=self.micro_batches,
            device=self.device,
            scaler=self.scaler,
            processes=self.processes,
        )
        norm = self._update_weights(loss)
        if norm is None:
            self._skip_broken()
            return None
        self.state.step, self.state.skipped_in_a_row = self.state.step + 1, 0
        for hook in self.after_step:
            hook(self)
        if self.ema is not None:
            self.ema.update(self.state.step)
        figures = torch.stack([loss, norm, excess]).float()
        self._figures.add(self.state.step, count, figures)
        return figures

    def _update_weights(self, loss: Tensor) -> Tensor | None:
        """Turn the gradient that is there into new weights; return its norm before clipping, None: it was skipped."""
        self.processes.at("updating")
        if self.scaler is not None:
            self.scaler.unscale_(self.optimiser)
        norm = gradient_norm(self.parameters)  # the same on all processes, so that they skip or go on together
        if self.train.on_non_finite == "skip":
            watched = loss if self.scaler is not None else loss + norm  # the scaler's overflows are its daily work
            if not watched.isfinite():
                if self.scaler is not None:
                    self.scaler.update(self.scaler.get_scale())  # as it was: no scale is to blame for such a loss
                self.optimiser.zero_grad(set_to_none=True)
                return None
        for hook in self.after_backward:
            hook(self)
        clip_gradients(self.parameters, norm, self.train.grad_clip)
        set_learning_rate(self.optimiser, learning_rate_share(self.state.step, self.optim, self.train.max_steps))
        if self.scaler is None:
            self.optimiser.step()
        else:  # leaves the weights alone where the gradient overflowed, and adapts the scale
            self.scaler.step(self.optimiser)
            self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    def _skip_step(self) -> None:
        """Count a step without targets; the schedule goes on, weights and optimiser stay."""
        self.state.empty_steps += 1
        self.state.step += 1
        if self.state.empty_steps == 1:
            self.progress.note(f"step {self.state.step:,}: the batch has no targets, so nothing was learnt from it")

    def _skip_broken(self) -> None:
        """Count a step whose loss or gradient was not finite, and say where its batch came from."""
        state = self.state
        state.step, state.skipped_steps = state.step + 1, state.skipped_steps + 1
        state.skipped_in_a_row += 1
        what = "the loss or the gradient"
        if (reason := too_many_skipped(self.train, state)) is not None:
            raise not_finite(what, state.step, self.safe_for_all(), where=self._where(state.step), advice=reason)
        self.progress.warn(
            f"{what} is not a finite number at step {state.step} ({self._where(state.step)}); the step is skipped, "
            f"{state.skipped_steps} so far"
        )

    def _where(self, step: int) -> str:
        """Return from which places the batch of a step came, counted from 1, where the loader knows it."""
        where = getattr(self.loader, "where", None)
        return "" if where is None else where(step - 1)

    def _follow_up(self, figures: Tensor | None, records: Records | None, stopwatch: Stopwatch) -> None:
        """Evaluate, log and save where the step just taken is one for it. None of it changes what is learnt."""
        train, step = self.train, self.state.step
        evaluating = step == train.max_steps or is_due(step, train.eval_every)
        logging = evaluating or step == 1 or is_due(step, train.log_every)
        saving = is_due(step, train.checkpoint_every)
        if not (logging or saving):
            return
        self._read()  # waits for the device, so the clock is right after it
        valid: Mapping[str, float | None] = {}
        if evaluating:
            with stopwatch.paused():
                valid = self.judge.look(self)
        if logging:
            self._log(figures, valid, records, stopwatch)
        if saving or self._done() or (evaluating and self.state.since_best == 0):
            with stopwatch.paused():
                self.save(records)

    def _read(self) -> None:
        """Fetch the figures of all steps since the last call, and stop the run where one is not a finite number."""
        broken = self._figures.read(self.state, scaled=self.scaler is not None)
        if broken is not None:
            raise not_finite(*broken, self.safe_for_all(), where=self._where(broken[1]))
        if self.scaler is not None and self.scaler.get_scale() < SMALLEST_SCALE:
            step = self.state.step
            raise not_finite("the gradient", step, self.safe_for_all(), where=self._where(step), advice=NO_SCALE_DOES)

    def _log(
        self,
        figures: Tensor | None,
        valid: Mapping[str, float | None],
        records: Records | None,
        stopwatch: Stopwatch,
    ) -> None:
        """Write the rows of the step just taken and renew the live line."""
        loss, norm, _ = (None, None, None) if figures is None else figures.tolist()
        step, rate, mfu = self.state.step, stopwatch.lap(), None
        if self._yardstick is not None and self.flops_per_token is not None:
            mfu = rate * self.flops_per_token / (self._yardstick.flops_per_second * self.processes.size)
        if records is not None:
            share = learning_rate_share(step - 1, self.optim, self.train.max_steps)
            records.metrics(
                step=step,
                tokens=self.state.tokens,
                loss=loss,
                learning_rate=self.optim.learning_rate * share,
                grad_norm=norm,
                z=(None, None) if figures is None else self._figures.z,
                valid=valid,
            )
            records.timing(step=step, seconds=stopwatch.seconds, tokens_per_second=rate, mfu=mfu)
        self.progress.values(loss=loss, valid_loss=self.state.valid_loss, tokens_per_second=rate)

    def save(self, records: Records | None) -> None:
        """Begin to write a checkpoint of this moment, from which `resume` goes on as if nothing had happened.

        Args:
            records: what must be on the disk before it; None: another process writes both.
        """
        self.processes.at("saving")
        self._read()  # weights that are not numbers must never become the newest checkpoint
        self.saver.wait()
        if records is not None:
            records.flush()
        try:
            snapshot = take(self)
        except InputError as error:  # of several processes one could not write its share
            self.saver.fail(error)
            return
        if records is None:
            return

        def write() -> None:
            records.sync()
            snapshot.write(self.folder, self.train)

        self.saver.begin(snapshot.step, write)

    def _records(self) -> AbstractContextManager[Records | None]:
        """Return the CSV files of the run, cut back to where it stands; None where another process writes them."""
        if not self.processes.is_first:
            return nullcontext()
        return Records(
            self.folder,
            step=self.state.step,
            figures=self.figures,
            on_failure=lambda error: self._write_failed(error, "the row is tried again with the next one"),
            safe=self.safe,
        )

    def safe(self) -> str:
        """Return, for an error's text, what of this run is on the disk, the write in flight awaited."""
        self.saver.wait()
        return self.folder.safe()

    def safe_for_all(self) -> str:
        """Return what `safe` does where all processes end alike; the others wait for the write of the first one too."""
        return self.processes.first_then_rest(self.safe, self.safe)

    def _write_failed(self, error: InputError, further: str = "the next checkpoint is tried as usual") -> None:
        """Do what `train.on_failed_write` says about what could not be written amid the run."""
        if self.train.on_failed_write == "stop":
            raise error
        self.progress.warn(f"{error}; training goes on, and {further}")

    def resume(self, which: Literal["latest", "best"] | int = "latest") -> int:
        """Take over weights, optimiser and counters of a checkpoint in the run folder; `fit` then goes on from there.

        Returns:
            the number of optimiser steps that it has behind it.
        Raises:
            InputError: there is no checkpoint, it is damaged, or its model or optimiser is another one.
        """
        put(self, self.folder.load(which))
        self.saver.saved_step = self.state.step
        return self.state.step


def is_due(step: int, every: int) -> bool:
    """Return whether something that happens every so many steps, or never (0), happens after `step` steps."""
    return every > 0 and step % every == 0
