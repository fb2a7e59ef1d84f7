"""In by a folder of transformers', trained or tuned here, and out again: commands and Python."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil

import pytest
import torch

import minillm
from minillm.cli import main
from minillm.config import read_toml
from minillm.errors import InputError
from minillm.exporting import export_run
from minillm.finetune.source import open_source
from minillm.importing import import_folder

CLOSE = 1e-5
LETTERS = [chr(ord("a") + n) for n in range(26)]
CONTROL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
PIECES = [*CONTROL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


@pytest.fixture
def theirs(tmp_path, request):
    """A small folder of transformers', with a WordPiece vocabulary; BERT unless the test says otherwise."""
    import transformers

    name = getattr(request, "param", "bert")
    sizes = {"vocab_size": len(PIECES), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 32, "pad_token_id": 0}
    torch.manual_seed(0)
    if name == "bert":
        config = transformers.BertConfig(**sizes)
        model = transformers.BertForMaskedLM(config)
    else:
        config = transformers.LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path / "theirs"


@pytest.fixture
def tables(tmp_path):
    """Words about a or about z, 60 rows to learn from and 20 to judge by; one in eight has the wrong label."""
    draw = random.Random(0)
    for name, rows in (("train", 60), ("valid", 20)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for _ in range(rows):
                label = draw.choice(["first", "last"])
                letters = "abcd" if (label == "first") ^ (draw.random() < 1 / 8) else "wxyz"
                words = " ".join("".join(draw.choices(letters, k=3)) for _ in range(draw.randint(1, 5)))
                writer.writerow([words, label])
    return {name: str(tmp_path / f"{name}.csv") for name in ("train", "valid")}


def tuned(start, tables, out, *options) -> None:
    """Fine-tune for two passes on the command line."""
    words = ["finetune", str(start), "--train", tables["train"], "--valid", tables["valid"], "--out", str(out)]
    words += ["--train.epochs", "2", "--optim.learning_rate", "1e-2", "--train.device", "cpu", "--quiet"]
    words += ["--train.compute_dtype", "float32"]
    assert main([*words, *options]) == 0


@pytest.mark.parametrize(
    "theirs, options, architecture",
    [
        pytest.param("bert", ["--head.pooling", "pooler"], "BertForSequenceClassification", id="bert"),
        pytest.param("bert", ["--head.pooling", "pooler", "--adapter.kind", "lora"], "BertFor.*", id="bert-lora"),
        pytest.param("llama", [], "LlamaForSequenceClassification", id="llama"),
    ],
    indirect=["theirs"],
)
def test_what_was_fine_tuned_here_says_the_same_there(theirs, tables, options, architecture, tmp_path, capsys) -> None:
    """The pipeline of transformers gives the labels and the calibrated probabilities of `minillm predict`."""
    import transformers

    tuned(theirs, tables, tmp_path / "run", *options)
    path = tmp_path / "run/calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 1.7}))
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures == [made.architecture]
    texts = ["aa bcd", "zz zyx wx", "hello you"]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *(word for text in texts for word in ("--text", text))]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    for text, answer in zip(texts, answers, strict=True):
        ids = framed(tmp_path / "out", text)
        with torch.no_grad():
            shares = model(ids).logits[0].softmax(-1)
        assert model.config.id2label == {0: "first", 1: "last"}
        for number, name in model.config.id2label.items():
            assert answer["probabilities"][name] == pytest.approx(float(shares[number]), abs=CLOSE)


def framed(folder, text) -> torch.Tensor:
    """Return the tokens that transformers gives for a text, (1, T), with the control symbols that frame it."""
    import transformers

    return torch.tensor([transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]])


def test_a_head_that_the_family_has_not_is_refused(theirs, tables, tmp_path, capsys) -> None:
    """The mean of all tokens is no BertForSequenceClassification; the line says which setting would be."""
    tuned(theirs, tables, tmp_path / "run", "--train.max_steps", "1")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "BertForSequenceClassification: head.pooling is mean, not pooler" in line
    assert not (tmp_path / "out").exists()


def test_a_classifier_of_theirs_is_begun_with_as_the_run_that_it_was_exported_from(theirs, tables, tmp_path) -> None:
    """With its backbone: the head is of the labels that it was trained on."""
    tuned(theirs, tables, tmp_path / "run", "--train.max_steps", "1", "--head.pooling", "pooler")
    export_run(tmp_path / "run", tmp_path / "out")
    run, folder = (open_source(tmp_path / name, random=False).tensors for name in ("run", "out"))
    assert run is not None and folder is not None and run.keys() == folder.keys()
    assert all(torch.equal(tensor, folder[name]) for name, tensor in run.items())


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["fill", "theirs", "--text", "ab [MASK]"], id="fill"),
        pytest.param(["pretrain", "--preset", "tiny-encoder", "--init", "theirs", "--out", "run"], id="pretrain"),
        pytest.param(["finetune", "theirs", "--train", "a.csv", "--valid", "b.csv", "--out", "run"], id="finetune"),
    ],
)
def test_a_folder_without_a_tokenizer_is_asked_for_its_file(theirs, words, tmp_path, monkeypatch, capsys) -> None:
    """A run is asked for a folder that was left where it was trained; nobody trained this one."""
    (theirs / "vocab.txt").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "minillm: theirs has no tokenizer, and text needs one; bring its tokenizer.json"


def test_pretraining_goes_on_from_a_folder(theirs, tmp_path) -> None:
    """`pretrain --init DIR` takes its architecture, weights and tokenizer."""
    (tmp_path / "text.txt").write_text("abc def ghi\n\n" * 400)
    words = ["pretrain", "--preset", "tiny-encoder", "--init", str(theirs), "--data.input", str(tmp_path / "text.txt")]
    words += ["--out", str(tmp_path / "run"), "--train.max_steps", "1", "--optim.learning_rate", "1e-30"]
    words += ["--optim.adamw_learning_rate", "1e-30", "--optim.weight_decay", "0", "--train.device", "cpu", "--quiet"]
    assert main(words) == 0
    old, new = minillm.load(theirs).model, minillm.load(tmp_path / "run").model
    moved = [(tensor - new.state_dict()[name]).abs().max() for name, tensor in old.state_dict().items()]
    assert max(moved) < 1e-20  # the rate of learning, where a bias was 0
    assert minillm.load(tmp_path / "run").origin.settings == minillm.load(theirs).origin.settings
    for more in (
        ["--resume", str(tmp_path / "run")],
        ["--init", str(tmp_path / "run"), "--out", str(tmp_path / "next")],
    ):
        assert "tokenizer" not in read_toml(tmp_path / "run/config.toml")  # nobody here knows how it was trained
        assert main(["pretrain", *more, "--quiet"]) == 0
    for run in ("run", "next"):
        assert "tokenizer" not in read_toml(tmp_path / run / "config.toml")


def test_export_of_a_folder_says_to_import_it(theirs, tmp_path, capsys) -> None:
    assert main(["export", str(theirs), "--out", str(tmp_path / "out")]) == 2
    assert (
        f"already; to write it in another way make a run of it first: minillm import {theirs}"
        in capsys.readouterr().err
    )


def test_init_without_settings_says_what_to_add(theirs, capsys) -> None:
    """A folder of transformers' does not say how to train."""
    assert main(["pretrain", "--init", str(theirs)]) == 2
    assert "does not say how to train; give CONFIG.toml or --preset NAME" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["run", "hf"])
def test_a_model_that_was_changed_is_saved_as_it_is(theirs, format, tmp_path) -> None:
    """By both formats, the tokenizer with it."""
    loaded = minillm.load(theirs)
    with torch.no_grad():
        loaded.model.embeddings.tokens.weight.add_(1.0)
    loaded.save(tmp_path / "mine", format=format)
    again = minillm.load(tmp_path / "mine")
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in loaded.model.state_dict().items())
    assert again.require_tokenizer().encode("abc") == loaded.require_tokenizer().encode("abc")
    with pytest.raises(InputError, match="already holds a"):
        loaded.save(tmp_path / "mine", format=format)


def test_a_run_of_ours_is_saved_and_loaded(tiny_runs, tmp_path) -> None:
    """And it goes to transformers, where its family has one."""
    loaded = minillm.load(tiny_runs["decoder"])
    loaded.save(tmp_path / "run")
    loaded.save(tmp_path / "theirs", format="hf")
    tokens = torch.arange(10, 20)[None]
    for place in ("run", "theirs"):
        again = minillm.load(tmp_path / place)
        assert torch.equal(again.model.logits(tokens), loaded.model.logits(tokens))
        assert again.require_tokenizer().encode("Dear Ellen") == loaded.require_tokenizer().encode("Dear Ellen")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_export_of_a_run_replaces_nothing_of_somebodys_own(tiny_runs, overwrite, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    with pytest.raises(InputError, match="mine is not empty and holds no export to replace"):
        export_run(tiny_runs["decoder"], tmp_path / "mine", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_run_is_exported_without_what_only_training_needs(tiny_runs, tmp_path) -> None:
    shutil.copytree(tiny_runs["decoder"], tmp_path / "run")
    for optimiser in (tmp_path / "run").rglob("optimiser.safetensors"):
        optimiser.unlink()
    export_run(tmp_path / "run", tmp_path / "theirs")
    tokens = torch.arange(10, 20)[None]
    here, there = (minillm.load(path).model.logits(tokens) for path in (tiny_runs["decoder"], tmp_path / "theirs"))
    assert torch.equal(here, there)


@pytest.mark.parametrize("theirs", ["bert", "llama"], indirect=True)
def test_an_imported_model_is_judged_on_a_text(theirs, tmp_path, capsys) -> None:
    """It has no text of its own, so that one must be named; the folder itself stays as it was."""
    before = sorted(path.name for path in theirs.iterdir())
    assert main(["evaluate", str(theirs)]) == 2
    assert "name a text with --data.input" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("abc def ghi\n\n" * 400)
    assert main(["evaluate", str(theirs), "--data.input", str(tmp_path / "text.txt"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert abs(figures["loss"] - math.log(len(PIECES))) < 0.5  # it knows nothing
    assert figures["anchors"]
    assert sorted(path.name for path in theirs.iterdir()) == before


def test_a_regression_has_its_unit_there(theirs, tmp_path, capsys) -> None:
    """The mean and deviation of the targets are in the exported layer."""
    import transformers

    rows = [("ab c", 1010.0), ("xyz", 990.0), ("k", 1003.0), ("lm no", 999.0)]
    table = tmp_path / "numbers.csv"
    table.write_text("text,label\n" + "".join(f"{text},{number}\n" for text, number in rows))
    tables = {"train": str(table), "valid": str(table)}
    tuned(theirs, tables, tmp_path / "run", "--task.name", "regression", "--head.pooling", "pooler")
    export_run(tmp_path / "run", tmp_path / "out")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--text", "ab c"]) == 0
    ours = json.loads(capsys.readouterr().out)["value"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = framed(tmp_path / "out", "ab c")
    with torch.no_grad():
        assert float(model(ids).logits) == pytest.approx(ours, abs=1e-2) and 980 < ours < 1020
    assert model.config.problem_type == "regression"


@pytest.mark.parametrize("theirs", ["llama"], indirect=True)
@pytest.mark.parametrize("symbols", [["zz", "[CLS]"], ["zz", "</s>"]], ids=["no padding", "padding that ends texts"])
def test_a_decoder_without_padding_reads_one_text_at_a_time_there(theirs, tables, symbols, tmp_path, capsys) -> None:
    """transformers finds the last token by what is no padding: with eos as padding it would read another one."""
    import transformers

    (theirs / "vocab.txt").write_text("\n".join([*symbols, *PIECES[2:]]) + "\n")
    names = {"eos_token": symbols[1], "pad_token": symbols[1]} if symbols[1] == "</s>" else {}
    (theirs / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"} | names)
    )
    tuned(theirs, tables, tmp_path / "run", "--train.max_steps", "3")
    made = export_run(tmp_path / "run", tmp_path / "out")
    assert any("one text at a time" in note for note in made.notes)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--text", "aa bcd"]) == 0
    answer = json.loads(capsys.readouterr().out)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = framed(tmp_path / "out", "aa bcd")
    with torch.no_grad():
        shares = model(ids).logits[0].softmax(-1)
    assert answer["probabilities"]["first"] == pytest.approx(float(shares[0]), abs=CLOSE)


def test_an_export_says_what_transformers_does_otherwise_with_long_texts(theirs, tables, tmp_path) -> None:
    options = ["--text.max_length", "8", "--text.long_texts", "windows", "--text.overlap", "2"]
    tuned(theirs, tables, tmp_path / "run", "--train.max_steps", "1", "--head.pooling", "pooler", *options)
    notes = export_run(tmp_path / "run", tmp_path / "out").notes
    assert any("truncation=True, max_length=8" in note for note in notes) and any(
        "no windows" in note for note in notes
    )


def test_several_seeds_are_exported_one_by_one(theirs, tables, tmp_path, capsys) -> None:
    """The line names the first of them."""
    tuned(theirs, tables, tmp_path / "run", "--seeds", "2", "--train.max_steps", "1", "--head.pooling", "pooler")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert "holds 2 seeds of one run; export one of them, such as" in capsys.readouterr().err
    first = min(tmp_path.glob("run/seed-*"))
    assert main(["export", str(first), "--out", str(tmp_path / "out")]) == 0


def test_an_import_does_not_replace_a_run(theirs, tiny_runs, tmp_path) -> None:
    """Nor anything else."""
    with pytest.raises(InputError, match="already holds a run"):
        import_folder(theirs, tiny_runs["decoder"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and not a run: it has thesis.txt"):
        import_folder(theirs, tmp_path / "mine")


@pytest.mark.parametrize(
    "words, status, answer",
    [
        (["fill", "{}", "--text", "ab [MASK] cd", "--json"], 0, "masks"),
        (["predict", "{}", "--text", "ab"], 2, "is a BertForMaskedLM and knows no labels; fine-tune it first"),
        (["generate", "{}", "--prompt", "ab"], 2, "this model is an encoder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_take_the_folder_itself(theirs, words, status, answer, capsys) -> None:
    """They do their work, or say what is wrong, as with a run."""
    assert main([word.format(theirs) for word in words]) == status
    said = capsys.readouterr()
    assert answer in said.out + said.err


def test_a_command_that_is_said_of_a_folder_can_be_copied(theirs, tmp_path, capsys) -> None:
    shutil.copytree(theirs, tmp_path / "my model")
    assert main(["predict", str(tmp_path / "my model"), "--text", "ab"]) == 2
    assert f"minillm finetune '{tmp_path / 'my model'}'\n" in capsys.readouterr().err


def test_config_json_names_the_control_symbols_of_the_tokenizer(tiny_runs, tmp_path) -> None:
    """transformers' generate stops at its eos_token_id and fills rows with its pad_token_id."""
    export_run(tiny_runs["decoder"], tmp_path / "out")
    came = json.loads((tmp_path / "out/config.json").read_text())
    wanted = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}  # as in every tokenizer that is trained here
    assert {name: came[name] for name in wanted} == wanted
