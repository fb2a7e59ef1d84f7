"""How tests end a run without a word, as a lost machine does, and go on with it."""

import pytest


class Killed(BaseException):
    """Stands for a process that is gone at once: nothing handles it."""


def kill_at(step):
    """Return a hook for a trainer's `after_step` that raises it after one step; with None after none."""

    def hook(trainer):
        if trainer.state.step == step:
            raise Killed

    return hook


def train_until_killed(trainer, step):
    """Train until a step is done, and no further."""
    trainer.after_step.append(kill_at(step))
    with pytest.raises(Killed):
        trainer.fit()


def gone_on(trainer, step):
    """Return a trainer that found the checkpoint of a step in its folder, and has trained from there to the end."""
    assert trainer.resume() == step
    trainer.fit()
    return trainer
