"""How tests end a run without a word, as a lost machine does."""


class Killed(BaseException):
    """Stands for a process that is gone at once: nothing handles it."""


def kill_at(step):
    """Return a hook for a trainer's `after_step` that raises it after one step; with None after none."""

    def hook(trainer):
        if trainer.state.step == step:
            raise Killed

    return hook
