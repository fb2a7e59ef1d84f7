"""The recipes: GPT-2 124M, BERT-base and a Llama on a GPU; on a CPU those of benchmarks/recipes, and fine-tuning.

On a CPU the sizes are those of the recipe's file and the architecture is the peer's, biases included, which
transformers' GPT-2 cannot leave out: so that both have the same parameters. The file as it stands is one more
contender, without a peer.

On a GPU the presets are taken with steps of 65,536 tokens, an eighth and less of what they learn from at once, so that
measuring is quick; the optimiser's share of a step is then larger than in the real run. A large GPU takes a step at
once, with which every contender is faster than with the presets' micro-batches, but for those that hold all scores of
attention. GPT-2 goes without dropout, as all published figures of its speed do.

Read next: `build.py`.
"""

from __future__ import annotations

import dataclasses

from minillm_kernels.dispatch import OPS

from benchmarks.training.registration import Contender, Recipe, Table, filed, preset, sizes

ON_CPU = (
    Contender(name="minillm"),
    Contender(name="transformers, float32", peer=True, dtype="float32"),
    Contender(name="transformers, bfloat16", peer=True, dtype="bfloat16"),
    Contender(name="minillm, float32", dtype="float32"),
    Contender(name="minillm, as in the file", as_filed=True),
)
OURS = Contender(name="minillm, compiled", compiled=True)
EAGER = Contender(name="minillm")
ON_GPU = (
    OURS,
    Contender(name="transformers, compiled", peer=True, dtype="bfloat16", compiled=True),
    EAGER,
    Contender(name="transformers", peer=True, dtype="bfloat16"),
)
NORMS = ("rms_norm", "layer_norm")
LOSSES = ("cross_entropy", "linear_cross_entropy")
ATTENTION = ("attention",)


def without(*done: tuple[str, ...]) -> tuple[str, ...]:
    """Return the ops that still go by hand once some have their kernels.

    >>> without(NORMS, ATTENTION, LOSSES)[:3]
    ('relu', 'gelu', 'relu2')
    """
    return tuple(op for op in OPS if not any(op in group for group in done))


LADDER = (
    Contender(name="naive", by_hand=OPS),
    Contender(name="+ norm", by_hand=without(NORMS)),
    Contender(name="+ loss", by_hand=without(NORMS, LOSSES)),
    Contender(name="+ attention", by_hand=without(NORMS, LOSSES, ATTENTION)),
    EAGER,  # + all other ops
    OURS,  # + torch.compile
)

GPT2 = {
    "model": {
        "norm": "layer_norm",
        "position": "learned",
        "activation": "gelu",
    },
    "optim": {"weight_decay": 0.1, "beta2": 0.99},
}
BERT = {
    "model": {
        "norm": "layer_norm",
        "norm_position": "post",
        "norm_eps": 1e-12,
        "position": "learned",
        "activation": "gelu",
        "token_types": 2,
        "embedding_norm": True,
        "head": "transform",
        "head_bias": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    },
    "optim": {"weight_decay": 0.01, "beta2": 0.98},
}


def _on_cpu(name: str, peer: str, vocab_size: int, plain: Table) -> Recipe:
    table = filed(name)
    model = {**plain["model"], "vocab_size": vocab_size}
    return Recipe(
        name=name,
        kind="cpu",
        peer=peer,
        plain=sizes(table, {**plain, "model": model}),
        filed=table,
        contenders=ON_CPU,
    )


def _classifier() -> Recipe:
    """Return the fine-tuning of a BERT of 22.7 million parameters, the shape of MiniLM-L6, on rows of 64 tokens."""
    shape = {"kind": "encoder", "context": 64, "num_layers": 6, "width": 384, "num_heads": 12, "vocab_size": 30522}
    table = {
        "model": {**BERT["model"], **shape},
        "objective": {"name": "masked_lm"},  # what the backbone was pretrained with
        "train": {"batch_size": 32},
        "optim": {"name": "adamw", "weight_decay": 0.01, "beta2": 0.999},
    }
    return Recipe(
        name="classifier",
        kind="cpu",
        peer="BertForSequenceClassification",
        plain=table,
        filed=table,
        contenders=ON_CPU[:-1],  # there is no file
        labels=2,
    )


def _on_gpu(name: str, peer: str, rows: int, changes: Table, ladder: tuple[Contender, ...] = ()) -> Recipe:
    table = preset(name, {"train": {"batch_size": rows}, "data": {"document_mask": False}, **changes})
    return Recipe(name=name, kind="cuda", peer=peer, plain=table, filed=table, contenders=ON_GPU, ladder=ladder)


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name, in the order of measurement."""
    made = (
        _on_cpu("shakespeare-char-small", "GPT2LMHeadModel", 65, GPT2),
        _on_cpu("shakespeare-char", "GPT2LMHeadModel", 65, GPT2),
        _on_cpu("mlm-small", "BertForMaskedLM", filed("mlm-small")["tokenizer"]["vocab_size"], BERT),
        _classifier(),
        _on_gpu(
            "gpt2-124m", "GPT2LMHeadModel", 64, {"model": {"dropout": 0.0, "attention_dropout": 0.0}}, ladder=LADDER
        ),
        # the pooler is next-sentence prediction's; whole words are the tokenizer's to tell, and here there is none
        _on_gpu("bert-base", "BertForMaskedLM", 128, {"model": {"pooler": False}, "objective": {"masking": "token"}}),
        dataclasses.replace(_on_gpu("llama-125m", "LlamaForCausalLM", 32, {}), in_spare_time=True),
    )
    return {recipe.name: recipe for recipe in made}
