"""Adapters in the format of the PEFT library, both ways: adapter_config.json and adapter_model.safetensors.

LoRA (with rsLoRA and DoRA), AdaLoRA, (IA)^3 and prefixes; the others exist here alone. Folders of PEFT are read and
written without the library.

Read next: `sites.py`, `write.py`, `read.py`, `prefix.py`.
"""

from minillm.finetune.adapters.peft.read import load_peft
from minillm.finetune.adapters.peft.write import save_peft

__all__ = ["load_peft", "save_peft"]
