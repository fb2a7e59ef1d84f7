"""What a folder says beside the model itself survives the way through a run: the type of its numbers, its training."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm.checkpoint.hf.origin import DTYPES, Origin
from minillm.errors import InputError
from minillm.exporting import export_model, export_run
from minillm.finetune import predict
from minillm.importing import import_folder
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model


@pytest.fixture
def half(peer, family, head, tmp_path):
    """A folder in bfloat16 and its run; of RoBERTa the rows that no pass reads are in it, too."""
    copy.deepcopy(peer(family, head).model).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "run")
    return tmp_path / "theirs", tmp_path / "run"


def test_half_precision_goes_out_byte_for_byte(half, family, tmp_path) -> None:
    """By way of the run, and straight from the folder that is loaded."""
    theirs, run = half
    export_run(run, tmp_path / "out")
    minillm.load(theirs).save(tmp_path / "straight", format="hf")
    for out in ("out", "straight"):
        assert (tmp_path / out / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert json.loads((tmp_path / out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_number_that_half_precision_has_not_goes_out_in_float32(half, family, tmp_path) -> None:
    """All of the model then: nothing is rounded."""
    loaded = minillm.load(half[1])
    with torch.no_grad():
        loaded.model.embeddings.tokens.weight[7, 3] = 1 + 2**-20
    loaded.save(tmp_path / "out", format="hf")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"
    assert minillm.load(tmp_path / "out").model.embeddings.tokens.weight[7, 3] == 1 + 2**-20


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_damaged_table_of_types(half) -> None:
    """The file is named."""
    path = half[1] / "imported" / DTYPES
    path.write_text(json.dumps({"bert.x": "int8"}))
    with pytest.raises(InputError, match=f"{DTYPES} is damaged: it names another type than float16, bfloat16"):
        Origin.read(half[1])


@pytest.mark.parametrize(
    "changed, hint",
    [
        ({"model_type": ["bert"]}, "config.json is damaged: its model_type is none of bert"),
        ({"hidden_size": 7}, r"does not go together: model.num_heads \(4\) must divide model.width \(7\)"),
    ],
    ids=["model_type", "hidden_size"],
)
@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_damaged_settings_of_the_folder_that_it_came_from(half, changed, hint, tmp_path) -> None:
    """One line; nothing is written."""
    path = half[1] / "imported/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=hint):
        export_run(half[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


TRAINING: dict[str, dict[str, Any]] = {
    "bert": {"initializer_range": 0.05, "hidden_dropout_prob": 0.3, "classifier_dropout": 0.4},
    "roberta": {"initializer_range": 0.05, "attention_probs_dropout_prob": 0.2, "classifier_dropout": 0.4},
    "distilbert": {"initializer_range": 0.05, "seq_classif_dropout": 0.5, "qa_dropout": 0.4, "dropout": 0.3},
    "modernbert": {"initializer_range": 0.05, "embedding_dropout": 0.5, "mlp_dropout": 0.2, "classifier_dropout": 0.3}
    | {"initializer_cutoff_factor": 3.0},
    "gpt2": {"initializer_range": 0.05, "embd_pdrop": 0.5, "resid_pdrop": 0.2, "reorder_and_upcast_attn": True}
    | {"summary_first_dropout": 0.4},
    "llama": {"initializer_range": 0.05, "attention_dropout": 0.2},
    "mistral": {"initializer_range": 0.05, "attention_dropout": 0.2},
    "qwen3": {"initializer_range": 0.05, "attention_dropout": 0.2},
}


def test_training_settings_go_out_as_they_came(peer, family, head, tmp_path) -> None:
    """Those that our model has, and those that it has no place for."""
    there = peer(family, head, **TRAINING[family])
    import_folder(there.folder, tmp_path / "run")
    assert minillm.load(tmp_path / "run").model.config.init_std == 0.05
    export_run(tmp_path / "run", tmp_path / "out")
    old, new = (json.loads((path / "config.json").read_text()) for path in (there.folder, tmp_path / "out"))
    written = TRAINING[family].keys() & old.keys()
    assert {key: new[key] for key in written} == {key: old[key] for key in written} and len(written) >= 2


def test_a_setting_that_was_changed_here_is_written_as_it_is(peer, tmp_path) -> None:
    """And not as it came; what hung together with it does not stay either."""
    loaded = minillm.load(peer("gpt2", "CausalLM", **TRAINING["gpt2"]).folder)
    model = build_model(dataclasses.replace(loaded.model.config, dropout=0.05))
    export_model(model, tmp_path / "out", tokenizer=None, origin=loaded.origin)
    table = json.loads((tmp_path / "out/config.json").read_text())
    assert table["resid_pdrop"] == table["embd_pdrop"] == 0.05 and table["attn_pdrop"] == 0.1
    assert "summary_first_dropout" not in table


LLAMA: dict[str, Any] = {"norm": "rms_norm", "position": "rotary", "activation": "swiglu", "bias": False}


@pytest.mark.parametrize("dropout, notes", [(0.3, ["the dropout of 0.3 is left out: Llama has none"]), (0.0, [])])
def test_a_dropout_that_the_family_has_not_is_told_of(dropout, notes, tmp_path) -> None:
    """Attention's is another one, which it has."""
    config = ModelConfig(vocab_size=61, context=24, num_layers=2, width=32, num_heads=4, **LLAMA, dropout=dropout)
    made = export_model(build_model(config), tmp_path / "out", tokenizer=None)
    assert [note.partition(" outside")[0] for note in made.notes if "dropout" in note] == notes


def test_a_family_of_several_that_fit(tmp_path) -> None:
    """A Llama is a Mistral without a window."""
    config = ModelConfig(vocab_size=61, context=24, num_layers=2, width=32, num_heads=4, **LLAMA)
    made = export_model(build_model(config), tmp_path / "out", tokenizer=None, family="mistral")
    assert made.architecture == "MistralForCausalLM"


def test_a_folder_is_opened_once(peer, with_tokenizer, tmp_path, monkeypatch) -> None:
    """Also where it has a task's head: what `predict` is given is open."""
    folder = with_tokenizer(peer("bert", "SequenceClassification", num_labels=3).folder, "bert")
    monkeypatch.delattr(predict, "open_folder")
    import_folder(folder, tmp_path / "run")
