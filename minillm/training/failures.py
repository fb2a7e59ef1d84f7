"""What can go wrong in a step, or while the model is built, each in one line that says what to do.

Read next: `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minillm.errors import InputError
from minillm.training.config import TrainConfig, largest_divisor
from minillm.training.state import RunState

# What PyTorch's CPU allocator says when the system gives it nothing; it raises a bare RuntimeError.
CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator: not enough memory", "DefaultCPUAllocator: can't allocate memory")
TOO_LARGE = (*CPU_OUT_OF_MEMORY, "Storage size calculation overflowed")  # while a model is built
TOO_LARGE += ("cannot be represented as a SymInt",)  # of a size near 2**63

# What torch.compile says on a CPU, and Triton on a GPU, where what they wrote cannot be made into a program.
NO_COMPILER = ("No working C++ compiler found", "Failed to find C compiler")

# A scaler enlarges gradients, and halves its scale at each one that overflows. Below 1 they overflow as they are, or
# are no numbers at all, which no scale mends: each step would change nothing, to the end of the run.
SMALLEST_SCALE = 1.0
NO_SCALE_DOES = (
    "it overflows float16 even at a loss scale of 1; take train.compute_dtype = bfloat16 or float32, or lower "
    "optim.learning_rate"
)


LATER = "lower optim.learning_rate or raise optim.warmup_steps"
AT_FIRST = (  # before any step has changed the weights
    "no learning rate is to blame before the first step; mend the weights or settings that the run began with, of a "
    "new model such as model.init_std, its softcaps or objective.z_loss"
)


@contextmanager
def memory_explained(train: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turn running out of memory inside the block into an InputError that names a micro-batch to try.

    Raises:
        InputError: in place of PyTorch's out-of-memory errors of GPUs and CPUs.
    """
    try:
        yield
    except MemoryError as error:
        raise out_of_memory(train, device) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in CPU_OUT_OF_MEMORY):
            raise out_of_memory(train, device) from error
        raise


@contextmanager
def compiler_explained(on: bool) -> Iterator[None]:
    """Turn the lack of a compiler, which `train.compile` needs, into an InputError.

    Args:
        on: False: change nothing.
    Raises:
        InputError: torch.compile ran inside the block and found none.
    """
    try:
        yield
    except RuntimeError as error:
        if on and any(words in str(error) for words in NO_COMPILER):
            raise InputError(
                "train.compile needs a C++ compiler, and none is here; install one, such as g++, or leave it out"
            ) from error
        raise


@contextmanager
def size_explained(
    what: str = "the model", smaller: str = "model.width, model.num_layers, model.context or model.vocab_size"
) -> Iterator[None]:
    """Turn a model that does not fit into memory, built inside the block, into an InputError.

    Args:
        what, smaller: what is built, and the settings that make it smaller.
    Raises:
        InputError: in place of what PyTorch's CPU allocator raises.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in TOO_LARGE):
            raise InputError(f"{what} does not fit into memory; lower {smaller}") from error
        raise


def out_of_memory(train: TrainConfig, device: torch.device) -> InputError:
    """Return the error for a micro-batch that does not fit: try half of it, which changes no more than dropout."""
    size = train.batch_size // train.micro_batches
    if size == 1:
        first = "lower" if train.checkpoint_activations else "set train.checkpoint_activations = true, or lower"
        return InputError(
            f"a single sequence does not fit into the memory of {device}; {first} model.context, width or num_layers"
        )
    smaller = largest_divisor(train.batch_size, size // 2)
    return InputError(
        f"{size} sequences at once do not fit into the memory of {device}; set train.micro_batch_size = {smaller} "
        f"(train.batch_size stays {train.batch_size}, and but for dropout the gradient the same)"
    )


def not_finite(what: str, step: int, safe: str, *, where: str = "", advice: str = "") -> InputError:
    """Return the error for a loss or gradient that is infinite or not a number.

    Args:
        what: "the loss", "the gradient" or "the validation loss".
        step: the optimiser step at which it became so, counted from 1.
        safe: what of the run is on the disk.
        where: from which places of the text or table the batch came; empty: not known.
        advice: what to do; empty: the usual.
    """
    first = step == 1 and what != "the validation loss"  # which is that of weights after the step
    return InputError(
        f"{what} is {'not' if first else 'no longer'} a finite number at step {step}{f' ({where})' if where else ''}; "
        f"{advice or (AT_FIRST if first else LATER)}; {safe}"
    )


def too_many_skipped(train: TrainConfig, state: RunState) -> str | None:
    """Return what to do where more steps were skipped than `train` allows; None where they are within bounds."""
    if state.skipped_in_a_row > train.max_skips_in_a_row:
        return f"{state.skipped_in_a_row} steps in a row were (train.max_skips_in_a_row is {train.max_skips_in_a_row})"
    if state.skipped_steps > train.max_skips:
        return f"{state.skipped_steps} steps of the run were (train.max_skips is {train.max_skips})"
    return None
