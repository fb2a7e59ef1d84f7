"""Run by the interpreter that has llama-cpp-python: questions as JSON in, llama.cpp's answers as JSON out.

{"model": FILE, "adapter": FILE or null, "texts": [...], "prompt": [...], "encoder": bool, "overrides": {...}}
-> {"ids": [...], "with_symbols": [...], "logits": [[...]], "version": "..."}
"""

import json
import sys


def answers(asked: dict) -> dict:
    """Return llama.cpp's ids of the texts, and its logits (of an encoder its hidden states) of the prompt."""
    import llama_cpp

    settings = {"n_ctx": 512, "n_batch": 512, "n_ubatch": 512, "n_threads": 2, "verbose": False}
    if asked["encoder"]:
        settings |= {"embedding": True, "pooling_type": llama_cpp.LLAMA_POOLING_TYPE_NONE}
    else:  # the cache of keys and values is in float16 unless told otherwise
        settings |= {"logits_all": True, "type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        settings |= {"lora_path": asked["adapter"], "kv_overrides": asked["overrides"] or None}
    model = llama_cpp.Llama(asked["model"], **settings)
    said = {
        "version": llama_cpp.__version__,
        "ids": [model.tokenize(text.encode(), add_bos=True, special=False) for text in asked["texts"]],
        "with_symbols": [model.tokenize(text.encode(), add_bos=True, special=True) for text in asked["texts"][:20]],
    }
    if asked["encoder"]:
        return said | {"logits": [model.embed(text, normalize=False) for text in asked["prompt"]]}
    model.eval(asked["prompt"])
    return said | {"logits": [[float(x) for x in row] for row in model.scores[: len(asked["prompt"])]]}


if __name__ == "__main__":
    json.dump(answers(json.load(sys.stdin)), sys.stdout)
