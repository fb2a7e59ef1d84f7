"""Ctrl-C, numbers that are none, memory and disk that are full: one clear line, and what was saved stays whole."""

import errno
import os
import signal
import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from minillm.checkpoint import files
from minillm.checkpoint.native import read_tensors
from minillm.errors import InputError
from minillm.training.config import OptimConfig, TrainConfig
from minillm.training.failures import memory_explained, size_explained
from minillm.training.interrupt import SIGNALS, Interrupt
from minillm.training.progress import Progress


def press_ctrl_c_at(step, times=1, number=signal.SIGINT):
    def hook(trainer):
        if trainer.state.step == step:
            for _ in range(times):
                signal.raise_signal(number)

    return hook


def rests(folder) -> list[str]:
    """Return the names of whatever is half-written or half-removed in a run."""
    return [p.name for p in folder.path.rglob("*") if p.name.startswith((files.WRITING, files.REMOVING))]


class TestInterrupt:
    """The first Ctrl-C ends the step, saves and stops; the second stops at once."""

    @pytest.fixture(autouse=True)
    def pythons_own_handler(self):
        """Whoever starts the tests in the background has SIGINT ignored, and Python leaves it at that."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
    @pytest.mark.parametrize("quiet", [False, True], ids=["shown", "quiet"])
    def test_saves_stops_and_goes_on_bit_for_bit(self, make_trainer, capsys, number, quiet):
        through = make_trainer("through")
        through.fit()
        first = make_trainer("stopped", progress=Progress(quiet=quiet))
        first.after_step.append(press_ctrl_c_at(6, number=number))
        summary = first.fit()
        assert summary.signal == number
        assert summary.stopped_early and summary.steps == 6 and first.folder.load().step == 6
        told = capsys.readouterr().err
        assert f"stopped after step 6, saved; go on with: minillm pretrain --resume {first.folder}" in told
        second = make_trainer("stopped")
        assert second.resume() == 6
        second.fit()
        assert second.folder.metrics_path.read_bytes() == through.folder.metrics_path.read_bytes()
        for file in ("model.safetensors", "optimiser.safetensors", "state.json"):
            one, two = ((run.folder.folder_of(12) / file).read_bytes() for run in (through, second))
            assert one == two, file

    @pytest.mark.parametrize("step", [1, 4, 12], ids=["first", "at-a-checkpoint", "last"])
    def test_at_any_step(self, make_trainer, step):
        trainer = make_trainer()
        trainer.after_step.append(press_ctrl_c_at(step))
        assert trainer.fit().stopped_early == (step < 12)
        assert trainer.folder.load().step == step and not rests(trainer.folder)

    def test_second_one_stops_at_once(self, make_trainer):
        trainer = make_trainer()
        trainer.after_step.append(press_ctrl_c_at(6, times=2))
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert trainer.folder.load().step == 4

    def test_pythons_own_handler_is_back_afterwards(self, make_trainer):
        before = signal.getsignal(signal.SIGINT)
        for hook in (press_ctrl_c_at(99), press_ctrl_c_at(2)):
            trainer = make_trainer(f"run-{id(hook)}", max_steps=3)
            trainer.after_step.append(hook)
            trainer.fit()
            assert signal.getsignal(signal.SIGINT) is before

    def test_of_several_processes_none_minds_a_second_one_even_afterwards(self, pythons_own_handler):
        """torchrun sends SIGTERM to those that still save; its end is SIGKILL."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            with Interrupt(repeated=True) as interrupt:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                    signal.raise_signal(number)
            assert interrupt.asked == signal.SIGINT
            for number in SIGNALS:
                signal.raise_signal(number)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def test_of_several_processes_that_none_asked_all_handlers_are_back(self):
        before = [signal.getsignal(number) for number in SIGNALS]
        with Interrupt(repeated=True):
            pass
        assert [signal.getsignal(number) for number in SIGNALS] == before

    def test_training_outside_the_main_thread_works(self, make_trainer):
        trainer = make_trainer(max_steps=2)
        thread = threading.Thread(target=trainer.fit)
        thread.start()
        thread.join()
        assert trainer.folder.load().step == 2

    def test_while_saving_leaves_the_earlier_checkpoint(self, make_trainer, monkeypatch):
        trainer = make_trainer()
        real = files.sync_folder

        def interrupted(folder):
            if folder.name == ".writing-step-000008":
                raise KeyboardInterrupt
            real(folder)

        monkeypatch.setattr(files, "sync_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert trainer.folder.load().step == 4 and not rests(trainer.folder)


class TestNotFinite:
    """A run whose numbers are none stops, says so, and never saves them."""

    @pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
    @pytest.mark.parametrize("log_every", [1, 100])
    def test_loss(self, parts, make_trainer, value, log_every):
        class Breaks(parts.Objective):
            def step(self, model, batch):
                loss = super().step(model, batch)
                return replace(loss, total=loss.total * value) if batch.seed == 17 * 5 else loss

        trainer = make_trainer(objective=Breaks(), log_every=log_every)
        words = (
            "the loss is no longer a finite number at step 6; lower optim.learning_rate .* checkpoint of step 4 is safe"
        )
        with pytest.raises(InputError, match=words):
            trainer.fit()
        assert trainer.folder.steps() == [4]
        tensors = read_tensors(trainer.folder.folder_of(4) / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())

    def test_ctrl_c_before_it_was_seen_saves_nothing(self, make_trainer):
        trainer = make_trainer(log_every=100)
        trainer.after_step += [
            press_ctrl_c_at(6),
            lambda t: t.state.step == 5 and t.model.up.bias.data.fill_(float("nan")),
        ]
        with pytest.raises(InputError, match="the loss is no longer a finite number at step 6"):
            trainer.fit()
        assert trainer.folder.steps() == [4]

    def test_gradient(self, make_trainer):
        trainer = make_trainer()
        trainer.model.up.bias.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
        with pytest.raises(
            InputError, match="gradient is not a finite number at step 1; no learning rate .*no checkpoint was"
        ):
            trainer.fit()

    def test_learning_rate_far_too_high(self, make_trainer):
        trainer = make_trainer(optim=OptimConfig(name="sgd", learning_rate=1e30, warmup_steps=0), grad_clip=0.0)
        with pytest.raises(InputError, match="no longer a finite number at step [23]; lower optim.learning_rate"):
            trainer.fit()

    def test_validation_loss(self, make_trainer):
        trainer = make_trainer(evaluate=lambda model: {"loss": float("nan")})
        with pytest.raises(InputError, match="the validation loss is no longer a finite number at step 4"):
            trainer.fit()
        assert trainer.folder.steps() == [] and trainer.model.training


class TestMemory:
    """Running out of memory names a micro-batch to try."""

    @pytest.mark.parametrize(
        "batch, micro, tried", [(12, None, 6), (12, 4, 2), (12, 6, 3), (7, None, 1), (10, 5, 2)], ids=str
    )
    def test_half_of_it_that_divides_the_batch(self, batch, micro, tried):
        train = TrainConfig(batch_size=batch, micro_batch_size=micro)
        with pytest.raises(InputError, match=f"{micro or batch} sequences .* set train.micro_batch_size = {tried} "):
            with memory_explained(train, torch.device("cpu")):
                raise torch.OutOfMemoryError("CUDA out of memory")
        TrainConfig(batch_size=batch, micro_batch_size=tried)

    @pytest.mark.parametrize(
        "recomputing, advice", [(False, "set train.checkpoint_activations"), (True, "lower model")]
    )
    def test_single_sequence(self, recomputing, advice):
        train = TrainConfig(batch_size=4, micro_batch_size=1, checkpoint_activations=recomputing)
        with pytest.raises(InputError, match=f"a single sequence does not fit .*; {advice}.*context, width or num"):
            with memory_explained(train, torch.device("cpu")):
                raise MemoryError

    def test_a_model_too_large_names_its_context_too(self):
        """Learned positions and rotary's tables have a row for each place."""
        with pytest.raises(InputError, match="does not fit into memory; lower .* model.context or"), size_explained():
            torch.nn.Embedding(1 << 60, 16)

    def test_what_pytorchs_cpu_allocator_really_raises(self):
        with pytest.raises(InputError, match="do not fit into the memory of cpu"):
            with memory_explained(TrainConfig(), torch.device("cpu")):
                torch.empty(1 << 60, dtype=torch.uint8)

    def test_other_errors_pass(self):
        with pytest.raises(RuntimeError, match="inconsistent"):
            with memory_explained(TrainConfig(), torch.device("cpu")):
                torch.ones(2) @ torch.ones(3)


class TestFullDisk:
    """The run ends in one line; the checkpoint before loads, and the run goes on from it when there is space again."""

    def check_whole(self, make_trainer, trainer, step, through):
        assert trainer.folder.steps() == [step] and not rests(trainer.folder)
        again = make_trainer("full")
        assert again.resume() == step
        again.fit()
        for file in ("model.safetensors", "optimiser.safetensors", "state.json"):
            one, two = ((run.folder.folder_of(12) / file).read_bytes() for run in (through, again))
            assert one == two, file
        assert again.folder.metrics_path.read_bytes() == through.folder.metrics_path.read_bytes()

    @pytest.mark.parametrize(
        "size, refused",
        [
            # bytes; metrics.csv and model.safetensors stay below
            pytest.param(1000, "step-000012.optimiser.safetensors", id="checkpoint"),
            pytest.param(10, "metrics.csv", id="metrics"),
        ],
    )
    def test_no_file_may_grow(self, make_trainer, file_size_limit, size, refused):
        """The limit is the system's own: it hits safetensors' writer, which is not Python."""
        through, trainer = make_trainer("through"), make_trainer("full")
        through.fit()
        with ExitStack() as limited:

            def fill(trainer):
                if trainer.state.step == 5:
                    trainer.saver.wait()
                    limited.enter_context(file_size_limit(size))

            trainer.after_step.append(fill)
            words = f"cannot write .*{refused}: File too large; the checkpoint of step 4 is safe"
            with pytest.raises(InputError, match=words) as error:
                trainer.fit()
        assert "\n" not in str(error.value)
        self.check_whole(make_trainer, trainer, 4, through)

    @pytest.mark.parametrize("at", ["fsync", "replace", "mkdir"])
    def test_each_call_may_fail(self, make_trainer, monkeypatch, at):
        through, trainer = make_trainer("through"), make_trainer("full")
        through.fit()

        def refuse(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fill(trainer):
            if trainer.state.step == 8:
                trainer.saver.wait()
                monkeypatch.setattr(os, at, refuse)

        trainer.after_step.append(fill)
        with pytest.raises(
            InputError, match="No space left on device; free some space; the checkpoint of step 4 is safe"
        ):
            trainer.fit()
        monkeypatch.undo()
        self.check_whole(make_trainer, trainer, 4, through)

    def test_the_last_row_is_refused_once(self, make_trainer, monkeypatch, capsys):
        """The row of the last step waits when its checkpoint is due: it is tried again first, and the run ends well."""
        through, trainer = make_trainer("through"), make_trainer("full")
        through.fit()
        real, refused = os.write, []

        def refuse_a_row(descriptor, content):
            if "metrics.csv" in os.readlink(f"/proc/self/fd/{descriptor}") and not refused:
                refused.append(content)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, content)

        trainer.after_step.append(
            lambda t: monkeypatch.setattr(os, "write", refuse_a_row) if t.state.step == 12 else None
        )
        assert trainer.fit().steps == 12 and refused
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("training goes on, and the row is tried again with the next one")
        assert trainer.folder.metrics_path.read_bytes() == through.folder.metrics_path.read_bytes()
        assert trainer.folder.load().step == 12

    def test_folder_that_is_gone(self, make_trainer, tmp_path):
        trainer = make_trainer()
        trainer.folder.checkpoints.rmdir()
        trainer.folder.metrics_path.unlink(missing_ok=True)
        trainer.folder.path.rmdir()
        with pytest.raises(InputError, match="cannot write .*run.lock: No such file or directory"):
            trainer.fit()
