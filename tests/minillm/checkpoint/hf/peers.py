"""What tests beside transformers' models share: which class has a family's language model, and how near is near."""

from typing import Any

from torch import Tensor

from minillm.exporting import export_model

ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
CLOSE = 1e-5  # of the largest number: float32, summed in another order


def language_model(name: str) -> str:
    """Return the ending of a family's language-model class."""
    return "MaskedLM" if name in ENCODERS else "CausalLM"


def far(came: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    assert came.shape == wanted.shape
    return float((came - wanted).abs().max() / wanted.abs().max())


def export(loaded: Any, out: Any, **options: Any) -> Any:
    """Export what was loaded."""
    return export_model(loaded.model, out, tokenizer=loaded.tokenizer, origin=loaded.origin, **options)
