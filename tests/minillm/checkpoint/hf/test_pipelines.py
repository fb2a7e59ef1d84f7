"""transformers' pipelines on exported folders say what our own commands say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import minillm
from minillm.cli import main
from minillm.exporting import export_run
from minillm.fill import fill
from minillm.finetune.predict import load_finetuned
from minillm.finetune.table import text_table
from minillm.importing import import_folder
from minillm.pretrain import pretrain

CLOSE = 1e-5
BERT = {"norm": "layer_norm", "norm_position": "post", "norm_eps": 1e-12, "position": "learned", "activation": "gelu"}
BERT |= {"bias": True, "qk_norm": False, "embedding_norm": True, "token_types": 2, "context": 32, "init_std": 0.2}

TEXTS = [("I like the warm garden", "glad"), ("The rain is cold", "sad"), ("A kind letter came", "glad")] * 6
TEXTS += [("No letter came", "sad")]
MOODS = [json.dumps({"text": text, "label": label}) + "\n" for text, label in TEXTS]


@pytest.fixture(scope="module")
def encoder(tiny_config, tmp_path_factory) -> Path:
    """The run of a small BERT of ours."""
    run = tmp_path_factory.mktemp("bert") / "run"
    pretrain(tiny_config("encoder", model=BERT, train={"max_steps": 2, "compute_dtype": "float32"}), run)
    return run


def pipeline(task: str, folder: Path):
    """Return a pipeline on the CPU."""
    import transformers

    return transformers.pipeline(task, model=str(folder), device="cpu")


def test_fill_mask(encoder, tmp_path) -> None:
    """The likeliest pieces of a hole and their probabilities, control symbols apart."""
    export_run(encoder, tmp_path / "out")
    loaded = minillm.load(encoder, "best")
    tokenizer = loaded.require_tokenizer()
    text = "Dear Ellen, the [MASK] is warm."
    (ours,) = fill(loaded.model, tokenizer, text, top_k=3).holes
    said = pipeline("fill-mask", tmp_path / "out")(text, top_k=20)  # control symbols are among these
    theirs = {tokenizer.piece(answer["token"]): answer["score"] for answer in said}
    for candidate in ours:
        assert theirs[candidate.piece] == pytest.approx(candidate.probability, abs=CLOSE)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_fill_mask_of_what_was_imported(peer, with_tokenizer, name, tmp_path) -> None:
    """By way of a run, with the vocabulary that it came with."""
    import_folder(with_tokenizer(peer(name, "MaskedLM").folder, name), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    loaded = minillm.load(tmp_path / "run")
    text = "a fine [MASK], no?"
    (ours,) = fill(loaded.model, loaded.require_tokenizer(), text, top_k=5).holes
    said = pipeline("fill-mask", tmp_path / "out")(text, top_k=20)
    theirs = {loaded.require_tokenizer().piece(answer["token"]): answer["score"] for answer in said}
    for candidate in ours:
        assert theirs[candidate.piece] == pytest.approx(candidate.probability, abs=CLOSE)


def test_text_generation(tiny_runs, tmp_path, capsys) -> None:
    """Greedy, token for token."""
    export_run(tiny_runs["decoder"], tmp_path / "out", which="latest")
    words = ["generate", str(tiny_runs["decoder"]), "--prompt", "Dear Ellen", "--checkpoint", "latest", "--json"]
    assert main([*words, "--temperature", "0", "--max-tokens", "5"]) == 0
    (ours,) = json.loads(capsys.readouterr().out)["results"]
    (theirs,) = pipeline("text-generation", tmp_path / "out")("Dear Ellen", max_new_tokens=5, do_sample=False)
    assert theirs["generated_text"] == "Dear Ellen" + ours["text"]


def tuned(encoder: Path, folder: Path, lines: list[str], suffix: str, *options: str) -> Path:
    """Fine-tune for a few steps; return the run."""
    for name in ("train", "valid"):
        (folder / f"{name}{suffix}").write_text("".join(lines))
    words = ["finetune", str(encoder), "--train", str(folder / f"train{suffix}"), "--out", str(folder / "run")]
    words += ["--valid", str(folder / f"valid{suffix}"), "--train.max_steps", "8", "--optim.learning_rate", "1e-2"]
    words += ["--train.device", "cpu", "--train.compute_dtype", "float32", "--quiet", *options]
    assert main(words) == 0
    return folder / "run"


def test_text_classification(encoder, tmp_path) -> None:
    """The label and its probability."""
    run = tuned(encoder, tmp_path, MOODS, ".jsonl", "--head.pooling", "pooler")
    export_run(run, tmp_path / "out")
    texts = ["A warm letter", "cold  rain </s> [MASK]", "Grüße"]
    ours = list(load_finetuned(run).predict(text_table(texts)))
    for answer, said in zip(ours, pipeline("text-classification", tmp_path / "out")(texts), strict=True):
        assert said["label"] == answer["label"]
        assert said["score"] == pytest.approx(answer["probabilities"][answer["label"]], abs=CLOSE)


def test_long_texts_are_read_as_far_as_here(encoder, tmp_path) -> None:
    """text.max_length goes along: to transformers where it is asked to cut, and to ourselves."""
    run = tuned(encoder, tmp_path, MOODS, ".jsonl", "--head.pooling", "pooler", "--text.max_length", "8")
    export_run(run, tmp_path / "out")
    import_folder(tmp_path / "out", tmp_path / "again")
    texts = ["A warm letter came in the rain", "cold"]
    ours = list(load_finetuned(run).predict(text_table(texts)))
    for place in ("out", "again"):
        for answer, said in zip(ours, load_finetuned(tmp_path / place).predict(text_table(texts)), strict=True):
            assert said["probabilities"] == pytest.approx(answer["probabilities"], abs=CLOSE)
    for answer, said in zip(
        ours, pipeline("text-classification", tmp_path / "out")(texts, truncation=True), strict=True
    ):
        assert said["score"] == pytest.approx(answer["probabilities"][said["label"]], abs=CLOSE)


def test_token_classification(encoder, tmp_path) -> None:
    """The tag of every piece, and its probability."""
    rows = ["Dear O\nEllen B-PER\nthe O\nrain O\ncame O\n\n", "Tom B-PER\nis O\nwarm O\n\n"] * 6
    run = tuned(encoder, tmp_path, rows, ".conll", "--task.name", "tagging")
    export_run(run, tmp_path / "out")
    loaded = load_finetuned(run)
    (model,) = loaded.models
    text = "Dear Tom, the rain came"
    sequence = loaded.encoder.sequences([text]).tokens
    with torch.no_grad():
        shares = model(torch.from_numpy(sequence)[None].long())[0].softmax(-1)[1:-1]  # (pieces, tags)
    tagger = pipeline("token-classification", tmp_path / "out")
    said = tagger(text, ignore_labels=[])
    names = loaded.task.facts.labels
    assert [answer["entity"] for answer in said] == [names[int(row.argmax())] for row in shares]
    assert [answer["score"] for answer in said] == pytest.approx([float(row.max()) for row in shares], abs=CLOSE)
    assert {answer["entity"] for answer in said} <= set(names) and len(names) == 3


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_decoder_with_a_head_reads_what_it_read_here(tiny_runs, task, tmp_path) -> None:
    """<s> before a text and </s> after it, whose logits a classifier answers from."""
    if task == "text-classification":
        rows = [("I like the warm garden", "glad"), ("The rain is cold", "sad"), ("A kind letter came", "glad")] * 6
        lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in [*rows, ("No letter", "sad")]]
        run = tuned(tiny_runs["decoder"], tmp_path, lines, ".jsonl")
    else:
        lines = ["Dear O\nEllen B-PER\nthe O\nrain O\ncame O\n\n", "Tom B-PER\nis O\nwarm O\n\n"] * 6
        run = tuned(tiny_runs["decoder"], tmp_path, lines, ".conll", "--task.name", "tagging")
    export_run(run, tmp_path / "out")
    loaded, there = load_finetuned(run), pipeline(task, tmp_path / "out")
    texts = ["A  letter", "cold</s>", "ü"]
    for text in texts:
        assert there.tokenizer(text, truncation=True)["input_ids"] == loaded.encoder.sequences([text]).tokens.tolist()
        both = loaded.encoder.sequences([text], ["and more"]).tokens.tolist()
        assert there.tokenizer(text, "and more", truncation=True)["input_ids"] == both
    if task == "text-classification":
        for answer, said in zip(loaded.predict(text_table(texts)), there(texts), strict=True):
            assert said["label"] == answer["label"]
            assert said["score"] == pytest.approx(answer["probabilities"][answer["label"]], abs=CLOSE)


GPT2 = {"norm": "layer_norm", "position": "learned", "activation": "gelu_tanh", "bias": True, "qk_norm": False}


@pytest.mark.parametrize("model", [GPT2, {}], ids=["gpt2", "qwen3"])
def test_texts_of_a_batch_are_classified_as_alone(tiny_config, model, tmp_path) -> None:
    """Of different lengths: padding moves no text, whose positions GPT-2 counts from the first column."""
    settings = model | {"context": 32, "init_std": 0.2}
    pretrain(tiny_config(model=settings, train={"max_steps": 2, "compute_dtype": "float32"}), tmp_path / "decoder")
    rows = [("I like the warm garden", "glad"), ("The rain is cold", "sad"), ("A kind letter came", "glad")] * 6
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in [*rows, ("No letter", "sad")]]
    run = tuned(tmp_path / "decoder", tmp_path, lines, ".jsonl")
    export_run(run, tmp_path / "out")
    texts = ["A warm letter", "cold", "The rain came in"]
    said = pipeline("text-classification", tmp_path / "out")(texts, batch_size=3)
    for answer, there in zip(load_finetuned(run).predict(text_table(texts)), said, strict=True):
        assert there["score"] == pytest.approx(answer["probabilities"][there["label"]], abs=CLOSE)
