"""minillm: a small, readable Transformer library that pretrains encoders and decoders on its own ops.

    minillm.load(RUN | DIR)    a pretrained model with its tokenizer, of a run or of a Hugging Face folder
    minillm.__version__

Nothing heavy is imported here: `minillm --help` must not wait for torch.

Read next: `config.py`; for the way of the data `pretrain.py`; then a folder at a time, from its `__init__.py`:
`tokenizer`, `data`, `model`, `objectives`, `training`, `checkpoint`, `finetune`, `cli` with `__main__.py`. What a
trained model is for begins with `loading.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.loading import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load`, and with it torch, at its first use (PEP 562)."""
    if name == "load":
        from minillm.loading import load

        return load
    raise AttributeError(f"module 'minillm' has no attribute {name!r}")
