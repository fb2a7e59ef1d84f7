"""What stands around a text: as in the folder that a model came from, and in an export as in `minillm predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import json_models
import pytest
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline

import minillm
from minillm.cli import main
from minillm.errors import InputError
from minillm.exporting import export_run
from minillm.fill import fill
from minillm.finetune.config import TaskConfig, TextConfig
from minillm.finetune.encoding import TextEncoder
from minillm.finetune.predict import load_finetuned
from minillm.finetune.table import Columns, Table, text_table
from minillm.finetune.tasks.prompt_answer import PromptAnswer
from minillm.importing import import_folder
from minillm.model.config import ModelConfig
from minillm.tokenizer.hf import import_tokenizer

CLOSE = 1e-5
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LLAMA = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
TEXTS = ["The sun is warm", "two  boats, and a letter</s>", "x"]
LLAMA_TEMPLATE = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
)
FRAMES = {
    "RoBERTa": processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
    "BERT": processors.BertProcessing(("</s>", 2), ("<s>", 0)),
    "template": LLAMA_TEMPLATE,
    "template of one type": processors.TemplateProcessing(
        single="<mask> <s> $A </s>",
        pair="<s> $A </s> <mask> $B </s> </s>",
        special_tokens=[("<s>", 0), ("</s>", 2), ("<mask>", 4)],
    ),
    "sequence": processors.Sequence([processors.ByteLevel(trim_offsets=False), LLAMA_TEMPLATE]),
    "byte level": processors.ByteLevel(trim_offsets=True),
    "none": None,
}


@pytest.fixture(scope="module")
def prose(request) -> list[str]:
    """Some text."""
    return [(request.config.rootpath / "data/samples/tales.txt").read_text()]


@pytest.fixture
def tokenizer_folder(prose, tmp_path):
    """Return a function: post-processor, names of roles, folder -> the folder, with a byte-level tokenizer in it."""

    def write(processor, names=json_models.ROBERTA, folder: Path = tmp_path / "words", **settings) -> Path:
        made = json_models.byte_level(prose, SYMBOLS)
        if processor is not None:
            made.post_processor = processor
        roles = {f"{role}_token": name for role, name in names.items()}
        PreTrainedTokenizerFast(tokenizer_object=made, **roles, **settings).save_pretrained(folder)
        if processor is None:
            table = json.loads((folder / "tokenizer.json").read_text())
            (folder / "tokenizer.json").write_text(json.dumps(table | {"post_processor": None}))
        return folder

    return write


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("frame", FRAMES)
def test_texts_and_pairs_of_an_imported_tokenizer(tokenizer_folder, frame, kind) -> None:
    """Ids, types, and what is left of a pair that is cut to 6 tokens are AutoTokenizer's on the same folder."""
    folder = tokenizer_folder(FRAMES[frame])
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), import_tokenizer(folder)
    assert tokenizer is not None
    model = ModelConfig(kind=kind, vocab_size=500, width=8, num_heads=1, context=64, token_types=2)
    room = 6 + tokenizer.frame(kind, pair=True).size
    encoder, short = (TextEncoder(tokenizer, model, TextConfig(max_length=length)) for length in (None, room))
    for text in TEXTS:
        wanted = theirs(text, split_special_tokens=True)["input_ids"]
        assert encoder.sequences([text]).tokens.tolist() == wanted
        for other in TEXTS:
            both = theirs(text, other, return_token_type_ids=True, split_special_tokens=True)
            ours = encoder.sequences([text], [other])
            assert ours.tokens.tolist() == both["input_ids"]
            assert ours.token_types is not None and ours.token_types.tolist() == both["token_type_ids"]
            cut = theirs(text, other, truncation=True, max_length=room, split_special_tokens=True)["input_ids"]
            assert short.sequences([text], [other]).tokens.tolist() == cut


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("eos", [True, False], ids=["eos", "no eos"])
def test_gpt2s_two_files_frame_as_their_settings_ask(prose, bos, eos, tmp_path) -> None:
    """`add_bos_token` and `add_eos_token` count where there is no tokenizer.json."""
    model = json.loads(json_models.byte_level(prose, ["<|endoftext|>"]).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(f"{' '.join(pair)}\n" for pair in model["merges"]))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": bos, "add_eos_token": eos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs, tokenizer = AutoTokenizer.from_pretrained(tmp_path), import_tokenizer(tmp_path)
    assert tokenizer is not None
    encoder = TextEncoder(tokenizer, ModelConfig(vocab_size=500, width=8, num_heads=1, context=64), TextConfig())
    for text in TEXTS:
        assert encoder.sequences([text]).tokens.tolist() == theirs(text)["input_ids"]
        assert encoder.sequences([text], ["a letter"]).tokens.tolist() == theirs(text, "a letter")["input_ids"]


UNKNOWN = [
    pytest.param({"pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "BA"]}, "texts B A, not A B", id="B A"),
    pytest.param({"pair": [{"Sequence": {"id": "A", "type_id": 0}}]}, "texts A, not A B", id="A alone"),
    pytest.param({"type": "Another"}, "is a Another, which is not known", id="another kind"),
    pytest.param({"type": "Sequence", "processors": [{"type": "BertProcessing"}] * 2}, "around frames", id="two"),
    pytest.param({"pair": [{"SpecialToken": {"id": "<x>", "type_id": 0}}]}, "'<x>'", id="symbol without an id"),
]


@pytest.mark.parametrize("changed, hint", UNKNOWN)
def test_a_frame_that_is_not_known_is_refused(tokenizer_folder, changed, hint) -> None:
    """When somebody asks for it: one line says what it is."""
    folder = tokenizer_folder(processors.TemplateProcessing(single="$A", pair="$A $B"))
    table = json.loads((folder / "tokenizer.json").read_text())
    table["post_processor"] |= changed
    (folder / "tokenizer.json").write_text(json.dumps(table))
    tokenizer = import_tokenizer(folder)
    assert tokenizer is not None
    with pytest.raises(InputError, match=hint):
        tokenizer.frame("encoder", pair=True)


CLASSIFIERS = [
    pytest.param("roberta", "RoBERTa", json_models.ROBERTA, id="RoBERTa"),
    pytest.param("bert", "BERT", json_models.ROBERTA, id="BERT"),
    pytest.param("gpt2", "byte level", LLAMA, id="GPT-2"),
    pytest.param("llama", "template", LLAMA, id="Llama"),
    pytest.param("qwen3", "sequence", LLAMA, id="Qwen-3"),
]


@pytest.mark.parametrize("family, frame, names", CLASSIFIERS)
def test_an_imported_classifier_says_what_its_pipeline_says(
    peer, tokenizer_folder, family, frame, names, tmp_path
) -> None:
    """The folder, the run made of it, and the folder exported again: the same probabilities, files and ids."""
    ids = {"vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3}
    folder = tmp_path / "theirs"
    peer(family, "SequenceClassification", **ids).model.save_pretrained(folder)
    tokenizer_folder(FRAMES[frame], names, folder)
    import_folder(folder, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    for place in (folder, tmp_path / "out"):
        said: Any = pipeline("text-classification", str(place), device="cpu", top_k=None)(TEXTS[::2])
        for run in (folder, tmp_path / "run"):
            for answer, wanted in zip(load_finetuned(run).predict(text_table(TEXTS[::2])), said, strict=True):
                scores = {label["label"]: label["score"] for label in wanted}
                assert answer["probabilities"] == pytest.approx(scores, abs=CLOSE)


@pytest.mark.parametrize("frame", ["byte level", "template"])
def test_an_imported_model_goes_on_as_its_pipeline_does(peer, tokenizer_folder, frame, tmp_path, capsys) -> None:
    """Greedy, token for token: GPT-2's own file puts nothing before a text, Llama's puts <s>."""
    family = "gpt2" if frame == "byte level" else "llama"
    ids = {"vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    peer(family, "CausalLM", **ids).model.save_pretrained(tmp_path / "theirs")
    tokenizer_folder(FRAMES[frame], LLAMA, tmp_path / "theirs")
    words = ["generate", str(tmp_path / "theirs"), "--prompt", "the sun", "--json"]
    assert main([*words, "--temperature", "0", "--max-tokens", "8"]) == 0
    (ours,) = json.loads(capsys.readouterr().out)["results"]
    writer = pipeline("text-generation", str(tmp_path / "theirs"), device="cpu")
    (theirs,) = writer("the sun", max_new_tokens=8, do_sample=False, return_full_text=False)
    assert ours["text"] == theirs["generated_text"]


def test_commands_that_need_only_a_tokenizer_take_the_folder(peer, tokenizer_folder, tmp_path, capsys) -> None:
    """Its tokens are transformers'; shards made with it are those that a run which begins from the folder takes."""
    ids = {"vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    theirs, text = tmp_path / "theirs", tmp_path / "text.txt"
    peer("llama", "CausalLM", **ids).model.save_pretrained(theirs)
    tokenizer_folder(LLAMA_TEMPLATE, LLAMA, theirs)
    text.write_text("The sun is warm.\n\nIt rains.\n" * 60)
    tokens = AutoTokenizer.from_pretrained(theirs)("the sun", add_special_tokens=False)["input_ids"]
    capsys.readouterr()
    assert main(["tokenizer", "encode", str(theirs), "--text", "the sun", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == tokens
    assert main(["tokenizer", "decode", str(theirs), "--tokens", " ".join(map(str, tokens))]) == 0
    assert capsys.readouterr().out == "the sun\n"
    shards = tmp_path / "shards"
    words = ["--data.input", str(text), "--out", str(shards), "--tokenizer", str(theirs), "--json"]
    assert main(["data", "prepare", *words]) == 0
    made = json.loads(capsys.readouterr().out)
    before = {path.name: path.stat().st_mtime_ns for path in shards.rglob("*") if path.is_file()}
    run = ["--init", str(theirs), "--data.input", str(text), "--data.cache", str(shards), "--train.max_steps", "1"]
    assert main(["pretrain", "--preset", "tiny-decoder", *run, "--out", str(tmp_path / "run")]) == 0
    assert made["tokens"]["train"] > 0
    assert before and {path.name: path.stat().st_mtime_ns for path in shards.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_an_imported_model_ends_where_its_pipeline_does(peer, tokenizer_folder, where, tmp_path, capsys) -> None:
    """At any of the tokens that its files name, from the folder and from a run that was made of it."""
    ids = {"vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    theirs = tmp_path / "theirs"
    peer("gpt2", "CausalLM", **ids).model.save_pretrained(theirs)
    tokenizer_folder(FRAMES["byte level"], LLAMA, theirs)
    prompt = AutoTokenizer.from_pretrained(theirs)("the sun", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(theirs)
    drawn = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    place = next((i for i, token in enumerate(drawn) if i > 0 and token not in drawn[:i]), 0)  # some draw one alone
    if where == "config.json":
        (theirs / "generation_config.json").unlink()
    table = json.loads((theirs / where).read_text())
    (theirs / where).write_text(json.dumps(table | {"eos_token_id": [2, drawn[place]]}))
    import_folder(theirs, tmp_path / "run")
    (said,) = pipeline("text-generation", str(theirs), device="cpu")(
        "the sun", max_new_tokens=8, do_sample=False, return_full_text=False
    )
    for folder in (theirs, tmp_path / "run"):
        words = ["generate", str(folder), "--prompt", "the sun", "--json", "--temperature", "0", "--max-tokens", "8"]
        assert main(words) == 0
        (ours,) = json.loads(capsys.readouterr().out)["results"]
        assert (ours["tokens"], ours["stop"]) == (place + 1, "eos")
        assert said["generated_text"].startswith(ours["text"])  # theirs shows the last token too, as it is no symbol


@pytest.mark.parametrize(
    "content, told",
    [
        ("{", "generation_config.json is damaged"),
        ("[2]", "generation_config.json is damaged .no JSON object."),
        (
            '{"eos_token_id": "</s>"}',
            "generation_config.json: eos_token_id must be the number of a token, or a list of such, got '</s>'",
        ),
        ('{"eos_token_id": [2, -1]}', "got .2, -1."),
    ],
)
def test_a_generation_config_that_cannot_be_read_is_told_to_who_asks(
    peer, tokenizer_folder, content, told, tmp_path, capsys
) -> None:
    ids = {"vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    peer("gpt2", "CausalLM", **ids).model.save_pretrained(tmp_path / "theirs")
    tokenizer_folder(FRAMES["byte level"], LLAMA, tmp_path / "theirs")
    (tmp_path / "theirs/generation_config.json").write_text(content)
    loaded = minillm.load(tmp_path / "theirs")  # what does not write needs no end
    with pytest.raises(InputError, match=told):
        _ = loaded.ends
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "theirs"), "--prompt", "the sun"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_hole_is_filled_as_its_pipeline_fills_it(peer, tokenizer_folder, tmp_path) -> None:
    """Framed by the file, although no role says which symbols those are."""
    ids = {"vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    theirs = tmp_path / "theirs"
    peer("roberta", "MaskedLM", **ids).model.save_pretrained(theirs)
    tokenizer_folder(FRAMES["RoBERTa"], {"mask": "<mask>", "pad": "<pad>"}, theirs)
    loaded = minillm.load(theirs)
    (ours,) = fill(loaded.model, loaded.require_tokenizer(), "The[MASK] is warm", top_k=3).holes
    said = pipeline("fill-mask", str(theirs), device="cpu")("The<mask> is warm", top_k=20)
    scores = {answer["token"]: answer["score"] for answer in said}
    pieces = {loaded.require_tokenizer().piece(token): score for token, score in scores.items()}
    for candidate in ours:
        assert pieces[candidate.piece] == pytest.approx(candidate.probability, abs=CLOSE)


def test_an_imported_tokenizer_goes_out_with_its_files(peer, tokenizer_folder, tmp_path) -> None:
    """Byte for byte, whether straight or by way of a run; transformers has its settings and its template again."""
    ids = {"vocab_size": 500, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    theirs = tmp_path / "theirs"
    peer("llama", "CausalLM", **ids).model.save_pretrained(theirs)
    settings = {"split_special_tokens": True, "padding_side": "left", "truncation_side": "left"}
    tokenizer_folder(LLAMA_TEMPLATE, LLAMA, theirs, model_max_length=17, clean_up_tokenization_spaces=True, **settings)
    (theirs / "chat_template.jinja").write_text("{{ messages[0].content }}!\n")
    (theirs / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<mask>"]}))
    (theirs / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "do_sample": True}))
    import_folder(theirs, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", which="latest")
    minillm.load(theirs).save(tmp_path / "straight", format="hf")
    for out in (tmp_path / "out", tmp_path / "straight"):
        assert {path.name for path in out.iterdir()} == {path.name for path in theirs.iterdir()}
        for path in theirs.iterdir():
            if path.name != "config.json":
                assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (again.padding_side, again.truncation_side, again.model_max_length) == ("left", "left", 17)
    assert again.split_special_tokens and again.clean_up_tokenization_spaces
    assert again.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi!"


def test_answers_end_although_the_frame_does_not(tokenizer_folder) -> None:
    """prompt_answer on a tokenizer that puts nothing around a text: an answer's last target is the end symbol."""
    tokenizer = import_tokenizer(tokenizer_folder(FRAMES["byte level"], LLAMA))
    assert tokenizer is not None
    columns = Columns(text="text", label="label")
    table = Table(path="some.csv", columns={"text": ["the sun"], "label": ["warm"]}, lines=range(2, 3))
    task = PromptAnswer.learn(TaskConfig(name="prompt_answer"), table, columns)
    model = ModelConfig(vocab_size=500, width=8, num_heads=1, context=64)
    made = task.encode(table, columns, TextEncoder(tokenizer, model, TextConfig()), labelled=True)
    assert made.token_targets is not None and made.token_targets.tolist()[-1] == tokenizer.specials.eos
    assert made.tokens.tolist()[:2] == tokenizer.encode("the sun")[:2]
