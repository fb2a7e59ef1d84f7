"""Run by the interpreter that has llama-cpp-python: questions as JSON in, llama.cpp's answers as JSON out.

{"model": FILE, "adapter": FILE or null, "texts": [...], "prompt": [...], "encoder": bool, "overrides": {...}}
-> {"ids": [...], "with_symbols": [...], "logits": [[...]], "version": "..."}
"""

import json
import sys

import llama_cpp
from llama_cpp import Llama

asked = json.load(sys.stdin)
settings = {"n_ctx": 512, "n_batch": 512, "n_ubatch": 512, "n_threads": 2, "verbose": False}
if asked["encoder"]:
    settings |= {"embedding": True, "pooling_type": llama_cpp.LLAMA_POOLING_TYPE_NONE}
else:  # the cache of keys and values is in float16 unless told otherwise
    settings |= {"logits_all": True, "type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    settings |= {"lora_path": asked["adapter"], "kv_overrides": asked["overrides"] or None}
model = Llama(asked["model"], **settings)
said = {
    "version": llama_cpp.__version__,
    "ids": [model.tokenize(text.encode(), add_bos=True, special=False) for text in asked["texts"]],
    "with_symbols": [model.tokenize(text.encode(), add_bos=True, special=True) for text in asked["texts"][:20]],
}
if asked["encoder"]:
    said["logits"] = [model.embed(text, normalize=False) for text in asked["prompt"]]
else:
    model.eval(asked["prompt"])
    said["logits"] = [[float(x) for x in row] for row in model.scores[: len(asked["prompt"])]]
json.dump(said, sys.stdout)
