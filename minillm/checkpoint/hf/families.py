"""All families, by what their folders call them, and which of them a model of ours is.

Read next: `folder.py`.
"""

from __future__ import annotations

from minillm.checkpoint.hf.bert import BERT
from minillm.checkpoint.hf.distilbert import DISTILBERT
from minillm.checkpoint.hf.family import Family
from minillm.checkpoint.hf.gpt2 import GPT2
from minillm.checkpoint.hf.llama import LLAMA, MISTRAL, QWEN3
from minillm.checkpoint.hf.modernbert import MODERNBERT
from minillm.checkpoint.hf.roberta import ROBERTA
from minillm.errors import InputError
from minillm.model.config import ModelConfig

# In this order a model of ours is tried: RoBERTa's layers are BERT's, and a folder that was RoBERTa says so.
FAMILIES = {
    family.model_type: family for family in (BERT, ROBERTA, DISTILBERT, MODERNBERT, GPT2, LLAMA, MISTRAL, QWEN3)
}


def family_of(model: ModelConfig, wanted: str | None = None) -> Family:
    """Return the family that a model can be written as.

    Args:
        wanted: its `model_type`; None: the first one that fits.
    Raises:
        InputError: none does; what stands in the way of the nearest one is named.
    """
    if wanted is not None and wanted not in FAMILIES:
        raise InputError(f"no family {wanted!r}; known are {', '.join(FAMILIES)}")
    alike = [family for family in FAMILIES.values() if model.kind in (family.settings["kind"] or ())]
    tried = [FAMILIES[wanted]] if wanted else alike
    obstacles = {family.title: family.obstacles(model) for family in tried}
    for family in tried:
        if not obstacles[family.title]:
            return family
    nearest = min(obstacles, key=lambda title: len(obstacles[title]))
    raise InputError(
        f"this model cannot be written as {nearest if wanted else 'any of the families that transformers has'}; "
        f"of {nearest} it differs in: {'; '.join(obstacles[nearest])}"
    )
