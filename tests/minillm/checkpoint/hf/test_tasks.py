"""Models with a task's head: what they compute, their labels, and the way in and out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peers import CLOSE, far
from torch import Tensor

from minillm.attention_maps import attention_of
from minillm.checkpoint.hf.folder import open_folder
from minillm.errors import InputError
from minillm.exporting import export_run
from minillm.finetune.heads import TextHead
from minillm.finetune.predict import load_finetuned, opened_task_model
from minillm.finetune.run import resume
from minillm.finetune.table import text_table
from minillm.finetune.task_model import TaskModel
from minillm.importing import import_folder
from minillm.reading import load_any

ENDINGS = ["SequenceClassification", "TokenClassification", "QuestionAnswering"]
LABELS = {0: "zeta", 1: "O", 2: "B-x"}  # not in the order that we would give them


@pytest.fixture(params=ENDINGS)
def ending(request) -> str:
    """Each kind of head in turn."""
    return request.param


@pytest.fixture
def settings(family, ending) -> dict[str, Any]:
    """Labels and, where a family offers it, the pooling that is not the usual one."""
    found: dict[str, Any] = {}
    if ending != "QuestionAnswering":
        found = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    if family == "modernbert" and ending == "SequenceClassification":
        found["classifier_pooling"] = "mean"
    return found


def logits_of(output: Any) -> Tensor:
    """Return the logits of any of transformers' outputs; of question answering (B, T, 2)."""
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], dim=-1)


def packed_logits(model: TaskModel, texts: list[Tensor]) -> Tensor:
    """Return what a model says of texts that stand end to end in one row: (tokens, K), or (texts, K) where it pools."""
    row = torch.cat(texts)[None]
    inside = {
        "segments": torch.cat([torch.full_like(text, number) for number, text in enumerate(texts)])[None],
        "positions": torch.cat([torch.arange(len(text)) for text in texts])[None],
    }
    if not isinstance(model.head, TextHead):
        return model(row, **inside)[0]
    hidden = model.backbone(row, **inside)[0].split([len(text) for text in texts])
    return torch.cat([model.head(part[None], starts=None, lengths=None) for part in hidden])


@torch.no_grad()
def test_logits_are_those_of_transformers(peer, family, ending, settings, texts, padded) -> None:
    """In a padded batch, of token heads at real tokens; and packed end to end, where transformers reads each alone."""
    there = peer(family, ending, **settings)
    model, task = opened_task_model(open_folder(there.folder), {})
    table, lengths = padded
    mask = torch.arange(table.shape[1]) < lengths[:, None]
    wanted = logits_of(there.model(table, attention_mask=mask.long()))
    came = model.eval()(table, lengths=lengths)
    assert came.shape == wanted.shape
    if came.ndim == 3:
        came, wanted = came[mask], wanted[mask]
    assert far(came, wanted) < CLOSE
    if ending != "QuestionAnswering":
        assert task.facts.labels == tuple(LABELS.values())

    alone = torch.cat([logits_of(there.model(text[None])).flatten(0, -2) for text in texts])
    assert far(packed_logits(model, texts), alone) < CLOSE


@torch.no_grad()
def test_heads_on_real_weights(minilm, ending, tmp_path) -> None:
    """A head that transformers puts on all-MiniLM-L6-v2, on sentences of different lengths: padded, and packed."""
    import transformers

    torch.manual_seed(0)
    there = getattr(transformers, f"BertFor{ending}").from_pretrained(minilm).eval()
    there.save_pretrained(tmp_path)
    model, _ = opened_task_model(open_folder(tmp_path), {})
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    sentences = ["A boat on the sea.", "Yes.", "The lamp was lit at dusk, and nobody came; the café was naïve."]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    lengths, mask = batch["attention_mask"].sum(dim=1), batch["attention_mask"].bool()
    wanted, came = logits_of(there(**batch)), model.eval()(batch["input_ids"], lengths=lengths)
    if came.ndim == 3:
        came, wanted = came[mask], wanted[mask]
    assert far(came, wanted) < CLOSE
    rows = [row[:length] for row, length in zip(batch["input_ids"], lengths.tolist(), strict=True)]
    assert far(packed_logits(model, rows), wanted) < CLOSE


def test_a_row_of_several_texts_has_no_single_answer(peer) -> None:
    """A head that pools would make one vector of them all: it is refused, and the line says what to do."""
    model, _ = opened_task_model(open_folder(peer("bert", "SequenceClassification", num_labels=3).folder), {})
    with pytest.raises(ValueError, match="one answer a row; give it a text a row with lengths"):
        model(torch.tensor([[3, 4, 5, 6]]), segments=torch.tensor([[0, 0, 1, 1]]))


def test_the_way_in_and_out(peer, family, ending, settings, with_tokenizer, tmp_path) -> None:
    """By way of a run: the same bytes, and nothing missing or too many in transformers' class of the same name."""
    there = peer(family, ending, **settings)
    import_folder(with_tokenizer(there.folder, family), tmp_path / "run")
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert made.architecture == type(there.model).__name__
    assert (tmp_path / "out/model.safetensors").read_bytes() == (there.folder / "model.safetensors").read_bytes()
    again, information = type(there.model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(information.values()), information
    assert again.config.id2label == there.model.config.id2label
    assert again.config.label2id == there.model.config.label2id


@torch.no_grad()
def test_an_imported_classifier_predicts(peer, with_tokenizer, family, tmp_path, capsys) -> None:
    """`minillm predict` takes the run and the folder itself; probabilities are the softmax of transformers' logits.

    Nothing is said of a temperature: none is fitted for what was trained elsewhere.
    """
    there = peer(family, "SequenceClassification", num_labels=3)
    folder = with_tokenizer(there.folder, family)
    import_folder(folder, tmp_path / "run")
    capsys.readouterr()
    for place in (folder, tmp_path / "run"):
        loaded = load_finetuned(place)
        assert capsys.readouterr().err == ""
        (answer,) = loaded.predict(text_table(["a good day, no?"]))
        tokens = loaded.encoder.sequences(["a good day, no?"]).tokens
        wanted = there.model(torch.from_numpy(tokens)[None].long()).logits[0].softmax(-1)
        came = torch.tensor([answer["probabilities"][f"LABEL_{n}"] for n in range(3)])
        assert (came - wanted).abs().max() < CLOSE


def test_an_imported_classifier_is_begun_with_and_not_gone_on_with(peer, with_tokenizer, tmp_path) -> None:
    """Nobody's tables are known, so there is nothing to resume; the error says what can be done."""
    import_folder(with_tokenizer(peer("bert", "SequenceClassification").folder, "bert"), tmp_path / "run")
    with pytest.raises(InputError, match=r"no tables to go on with; begin a run with it: minillm finetune .*/run$"):
        resume(tmp_path / "run", {})


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification"])
def test_attention_of_a_folder_is_that_of_its_run(peer, with_tokenizer, head, tmp_path) -> None:
    """`explain --attention` takes the folder itself, with a task's head or without."""
    folder = with_tokenizer(peer("bert", head).folder, "bert")
    import_folder(folder, tmp_path / "run")
    came, wanted = (attention_of(load_any(path), "a cab") for path in (folder, tmp_path / "run"))
    assert came.reading.pieces == wanted.reading.pieces and came.maps.keys() == wanted.maps.keys()
    assert all(np.array_equal(came.maps[layer], wanted.maps[layer]) for layer in wanted.maps)


@pytest.mark.parametrize("padding", [[0], {"id": 0}, "[PAD]", None], ids=repr)
def test_padding_that_is_no_number_goes_out_as_none(peer, with_tokenizer, padding, tmp_path) -> None:
    """A decoder's classifier reads one text at a time there."""
    folder = with_tokenizer(peer("llama", "SequenceClassification").folder, "llama")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": padding}))
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("[PAD]", "[NO]"))
    import_folder(folder, tmp_path / "run")
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert any("one text at a time" in note for note in made.notes)
    assert json.loads((tmp_path / "out/config.json").read_text())["pad_token_id"] is None


@pytest.mark.parametrize(
    "problem, number, name",
    [("multi_label_classification", 2, "multi_label"), ("regression", 1, "regression"), (None, 1, "regression")],
)
def test_other_problems_than_one_label(peer, with_tokenizer, problem, number, name, tmp_path) -> None:
    """They are read as our tasks and written as what they were."""
    there = peer("bert", "SequenceClassification", num_labels=number, problem_type=problem)
    folder = with_tokenizer(there.folder, "bert")
    import_folder(folder, tmp_path / "run")
    assert load_finetuned(tmp_path / "run").task.name == name
    export_run(tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["problem_type"] == (problem or "regression") and len(written["id2label"]) == number
    assert (tmp_path / "out/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


BAD = [
    pytest.param({"id2label": {"0": "a", "2": "b", "1": "a"}}, "id2label takes names", id="one name twice"),
    pytest.param({"id2label": {"0": "a", "2": "b"}}, "id2label takes names", id="a number is missing"),
    pytest.param({"id2label": {"0": "a", "1": "b\ud800", "2": "c"}}, "id2label takes names", id="half a character"),
    pytest.param({"problem_type": "ranking"}, "problem_type = 'ranking' is not supported", id="unknown problem"),
    pytest.param({"problem_type": "regression"}, "regression of one number is", id="regression of several"),
    pytest.param({"architectures": ["BertForMultipleChoice"]}, "it names one of BertModel, ", id="unknown head"),
    pytest.param({"architectures": ["BertForMaskedLM"]}, "has no tensor cls.predictions", id="another head"),
]


@pytest.mark.parametrize("changed, hint", BAD)
def test_a_head_that_does_not_do_is_refused(peer, with_tokenizer, changed, hint, tmp_path) -> None:
    """One line names the key or the tensor."""
    folder = with_tokenizer(peer("bert", "SequenceClassification", num_labels=3).folder, "bert")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=hint):
        import_folder(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
