"""What a run learns from: texts that change anew in every epoch, in training alone, and the seed of their order."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from minillm.finetune.augmentation import Augmenter
from minillm.finetune.material import overlaps
from minillm.finetune.run import prepared_run
from minillm.training.progress import Progress

QUIET = Progress(quiet=True)


def test_training_texts_are_those_of_their_epoch_and_keep_their_labels(settings):
    """Row by row what the augmenter says of row and epoch, in the tokenizer's words; nothing else is changed."""
    config, source, material, _ = prepared_run(settings(augmentation__share=1.0, augmentation__swap=0.9), QUIET)
    train = material.splits["train"]
    augmenter = Augmenter(config.augmentation, train.texts, seed=config.train.seed)
    places, epochs = np.array([5, 2, 5]), np.array([0, 3, 1])
    frame = source.tokenizer.frame("encoder")
    found = train.loader.varied(places, epochs)
    for number, (row, epoch) in enumerate(zip(places.tolist(), epochs.tolist(), strict=True)):
        text = augmenter.text(train.texts[row], epoch=epoch, row=row)
        tokens = found.tokens[found.bounds[number] : found.bounds[number + 1]].tolist()
        assert tokens == [*frame.before, *source.tokenizer.encode(text), *frame.after]
    assert found.targets.tolist() == train.sequences.targets[places].tolist()
    assert all(material.splits[name].loader.varied is None for name in ("valid", "test"))


@pytest.mark.parametrize("seed", [0, 3])
def test_the_order_of_rows_and_their_dropout_come_from_the_seed_of_the_run(settings, seed):
    """Two runs of a seed have the same batches, and a run of another seed has others."""
    first, same, other = (
        prepared_run(settings(train__seed=s), QUIET)[2].splits["train"].loader.batch(0) for s in (seed, seed, seed + 1)
    )
    assert torch.equal(first.tokens, same.tokens) and first.seed == same.seed
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)
    assert first.seed != other.seed


def test_rows_that_stand_in_two_splits_are_counted_and_no_others():
    """Twice the same text counts twice: so often it is asked; splits that share nothing are not spoken of."""

    def split(name: str, *texts: str) -> Any:
        return SimpleNamespace(keys=lambda: list(texts), table=SimpleNamespace(path=f"{name}.csv"))

    splits = {
        "train": split("train", "a", "b", "c"),
        "valid": split("valid", "a", "x", "a"),
        "test": split("test", "y"),
    }
    assert overlaps(splits) == ["warning: 2 of 3 rows of valid.csv stand in train.csv too; its figures flatter"]
