"""Adapters on the command line: PEFT's folder and its base become a run, and a run becomes two such folders."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import minillm
from minillm.cli import main
from minillm.finetune.predict import load_finetuned
from minillm.finetune.table import text_table

LETTERS = [chr(ord("a") + n) for n in range(26)]
PIECES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
SIZES: dict[str, Any] = {
    "vocab_size": len(PIECES), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
LABELS = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning"),
]


def stir(model: Any) -> None:
    """Move what learns; the rest too, so that nothing is near zero by chance."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[Path, Path, Any]:
    """A BERT with a head as a folder, an adapter of it as a folder, and PEFT's model of the two."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **LABELS))
    stir(model)
    model.save_pretrained(tmp_path / "classifier")
    (tmp_path / "classifier/vocab.txt").write_text("\n".join(PIECES) + "\n")
    saved = ["classifier", "pooler"]
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=3, modules_to_save=saved)
    config.exclude_modules = ["pooler.dense"]
    trained = peft.get_peft_model(model, config).eval()
    stir(trained)
    trained.save_pretrained(str(tmp_path / "adapter"))
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "classifier")
    return (
        tmp_path / "classifier",
        tmp_path / "adapter",
        peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval(),
    )


def probabilities(model: Any, folder: Path, texts: list[str]) -> list[list[float]]:
    """Return what a pipeline of transformers' would say."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).tolist() for text in texts]


def ours(run: Path, texts: list[str]) -> list[list[float]]:
    answers = load_finetuned(run).predict(text_table(texts))
    return [[answer["probabilities"][label] for label in ("good", "bad")] for answer in answers]


TEXTS = ["a fine film", "no", "zig zag zig"]


def test_a_classifier(classifier: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In: `predict` says what PEFT's model says. Out: so does PEFT with our two folders, and the merged model."""
    base, adapter, trained = classifier
    wanted = torch.tensor(probabilities(trained, base, TEXTS))
    run = tmp_path / "run"
    assert main(["import", str(adapter), "--base", str(base), "--out", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "BertForSequenceClassification"
    torch.testing.assert_close(torch.tensor(ours(run, TEXTS)), wanted, rtol=1e-4, atol=1e-5)

    assert main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "two")]) == 0
    there = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "two/base")
    again = peft.PeftModel.from_pretrained(there, tmp_path / "two/adapter").eval()
    said = torch.tensor(probabilities(again, tmp_path / "two/base", TEXTS))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-5)

    assert main(["export", str(run), "--out", str(tmp_path / "merged")]) == 0
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    said = torch.tensor(probabilities(merged, tmp_path / "merged", TEXTS))
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_tuned_here(classifier: Any, tmp_path: Path) -> None:
    """PEFT with the two folders gives the calibrated probabilities of `minillm predict`."""
    base, run, table = classifier[0], tmp_path / "run", tmp_path / "table.csv"
    rows = [("abc bca cab", "good"), ("zyx xyz yxz", "bad"), ("bac a", "good"), ("x zy", "bad")] * 5
    table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    words = ["finetune", base, "--train", table, "--valid", table, "--out", run, "--head.pooling", "pooler", "--quiet"]
    words += ["--adapter.kind", "lora", "--train.max_steps", 6, "--optim.learning_rate", 1e-2, "--train.device", "cpu"]
    assert main([*map(str, words), "--train.compute_dtype", "float32"]) == 0
    assert main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "two")]) == 0
    there = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "two/base")
    names = [there.config.id2label[i] for i in range(2)]
    again = peft.PeftModel.from_pretrained(there, tmp_path / "two/adapter").eval()
    said = [dict(zip(names, row, strict=True)) for row in probabilities(again, tmp_path / "two/base", TEXTS)]
    for theirs, answer in zip(said, load_finetuned(run).predict(text_table(TEXTS)), strict=True):
        assert theirs == pytest.approx(answer["probabilities"], abs=1e-5)


@pytest.fixture
def language_model(tmp_path: Path) -> tuple[Path, Any]:
    """A Llama as a folder, and in hand."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2))
    stir(model)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base", model


def test_a_language_model(language_model: Any, tmp_path: Path) -> None:
    """The adapter goes into the weights of the run."""
    base, model = language_model
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trained = peft.get_peft_model(model, config).eval()
    trained.save_pretrained(str(tmp_path / "adapter"))
    assert main(["import", str(tmp_path / "adapter"), "--base", str(base), "--out", str(tmp_path / "run")]) == 0
    tokens = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        wanted, came = trained(tokens).logits, minillm.load(tmp_path / "run").model.logits(tokens)
    torch.testing.assert_close(came, wanted, rtol=1e-4, atol=1e-4)


def refused(words: list[Any], match: str, capsys: pytest.CaptureFixture[str], out: Path) -> None:
    """Check for exit status 2, one line, and nothing written."""
    assert main([*map(str, words), "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert match in said and "\n" not in said and not out.exists()


def test_what_is_refused(
    language_model: Any, classifier: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter without its base, on another model, or one that no weights take in; a run without an adapter."""
    base, model = language_model
    adapter, out = classifier[1], tmp_path / "out"
    refused(["import", adapter], "say with --base", capsys, out)
    refused(["import", adapter, "--base", base], "trained for SEQ_CLS, and", capsys, out)
    refused(["import", base, "--base", base], "has no adapter_config.json", capsys, out)
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(model, prefix).save_pretrained(str(tmp_path / "prefix"))
    refused(["import", tmp_path / "prefix", "--base", base], "cannot be merged", capsys, out)
    assert main(["import", str(classifier[0]), "--out", str(tmp_path / "bare")]) == 0
    capsys.readouterr()
    refused(["export", tmp_path / "bare", "--format", "peft"], "without an adapter", capsys, out)


def test_an_adapter_without_the_pooler(classifier: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT saves none unless told to: the base's is taken, and the import says so."""
    base = classifier[0]
    model = transformers.BertForSequenceClassification.from_pretrained(base)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    trained = peft.get_peft_model(model, config).eval()
    trained.save_pretrained(str(tmp_path / "plain"))
    assert main(["import", str(tmp_path / "plain"), "--base", str(base), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert f"has no bert.pooler.dense.weight, bert.pooler.dense.bias: taken from {base}" in said
    wanted = torch.tensor(probabilities(trained, base, TEXTS))
    torch.testing.assert_close(torch.tensor(ours(tmp_path / "run", TEXTS)), wanted, rtol=1e-4, atol=1e-5)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_that_fails_leaves_what_was_there(
    classifier: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that PEFT has not, and a disk that is full at the last file: the earlier export stands."""
    base, adapter, _ = classifier
    run, other, two, table = tmp_path / "run", tmp_path / "other", tmp_path / "two", tmp_path / "table.csv"
    assert main(["import", str(adapter), "--base", str(base), "--out", str(run)]) == 0
    assert main(["export", str(run), "--format", "peft", "--out", str(two)]) == 0
    before = contents(two)
    table.write_text("text,label\nab,good\nyz,bad\n")
    words = [
        "finetune",
        base,
        "--train",
        table,
        "--valid",
        table,
        "--out",
        other,
        "--adapter.kind",
        "houlsby",
        "--quiet",
    ]
    words += ["--head.pooling", "pooler", "--train.max_steps", 1, "--train.device", "cpu"]
    assert main([*map(str, words)]) == 0
    again = ["--format", "peft", "--out", str(two), "--overwrite"]
    assert main(["export", str(other), *again]) == 2
    assert "PEFT has no adapter of the kind houlsby" in capsys.readouterr().err and contents(two) == before

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert main(["export", str(run), *again]) == 2
    assert f"cannot write {two / 'base'}" in capsys.readouterr().err and contents(two) == before
    assert not list(tmp_path.glob(".*"))
    assert main(["export", str(run), *again, "--shard-gigabytes", "1e-5"]) == 0
    assert len(contents(two)) > len(before)


def test_the_base_is_found_from_any_folder(classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT opens the path that the adapter names, wherever it runs, though the export was told a relative one."""
    base, adapter, _ = classifier
    assert main(["import", str(adapter), "--base", str(base), "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", "--format", "peft", "--out", "two"]) == 0
    monkeypatch.chdir("/")
    peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "two/adapter")
