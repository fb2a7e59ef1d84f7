"""Importing the tokenizer of a Hugging Face folder: ids are transformers' own, symbols have their roles."""

import json

import json_models
import pytest

from minillm.errors import InputError
from minillm.tokenizer.hf import import_tokenizer

TEXTS = ["The cat  sat.", "", " ", "\tÉ 汉字 😀 e\u0301\x00\n", "Ｆｕｌｌ ½ ﬁ", "x" * 120]


def write(folder, **files):
    """Write files; `tokenizer_json` is tokenizer.json, and a dictionary becomes JSON."""
    for name, value in files.items():
        stem, _, ending = name.rpartition("_")
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / f"{stem}.{ending}").write_bytes(data)


def check_against_transformers(folder, tokenizer, **settings):
    """Compare ids, without the frame, with those of AutoTokenizer on the same folder."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, **settings)
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    for role in ("bos", "eos", "pad", "mask", "cls", "sep"):
        assert getattr(tokenizer.specials, role) == getattr(theirs, f"{role}_token_id"), role


def test_a_real_wordpiece(minilm):
    """all-MiniLM-L6-v2's vocabulary of 30,522 pieces; its file asks for rows of 128."""
    tokenizer = import_tokenizer(minilm)
    assert tokenizer is not None and tokenizer.vocab_size == 30522
    assert tokenizer.specials.ids() == [100, 0, 103, 101, 102]
    check_against_transformers(minilm, tokenizer)


def test_a_real_vocabulary_file(minilm, tmp_path):
    """vocab.txt alone gives what tokenizer.json gives."""
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    plain, whole = import_tokenizer(tmp_path), import_tokenizer(minilm)
    assert plain is not None and whole is not None and plain.specials == whole.specials
    for text in [*TEXTS, "[MASK] [mask] naïve Façade"]:
        assert plain.encode(text) == whole.encode(text)


def test_a_byte_level_one(tmp_path, samples):
    """RoBERTa's symbols, out of tokenizer_config.json."""
    made = json_models.byte_level(samples, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    names = {f"{role}_token": name for role, name in json_models.ROBERTA.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    write(tmp_path, tokenizer_json=json_models.content(made), tokenizer_config_json=config)
    check_against_transformers(tmp_path, import_tokenizer(tmp_path))


def test_vocabulary_and_merges(tmp_path, samples):
    """GPT-2's two files give the ids of the tokenizer.json that they come from."""
    made = json_models.byte_level(samples, ["<|endoftext|>"])
    model = json.loads(made.to_str())["model"]
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"
    write(tmp_path, vocab_json=model["vocab"], merges_txt=merges.encode())
    tokenizer = import_tokenizer(tmp_path)
    assert tokenizer is not None and (tokenizer.specials.bos, tokenizer.specials.eos) == (0, 0)
    for text in [*TEXTS, *samples]:
        assert tokenizer.encode(text) == made.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("as_object", [False, True], ids=["name", "object"])
def test_roles_are_read_from_either_file(tmp_path, samples, as_object):
    """special_tokens_map.json counts, tokenizer_config.json more; a name may be an object with settings."""

    def written(name):
        return {"content": name, "lstrip": True} if as_object else name

    write(
        tmp_path,
        tokenizer_json=json_models.content(json_models.wordpiece(samples)),
        special_tokens_map_json={"mask_token": written("[MASK]"), "pad_token": written("[SEP]")},
        tokenizer_config_json={"pad_token": written("[PAD]"), "eos_token": None, "bos_token": "<no such token>"},
    )
    specials = import_tokenizer(tmp_path).specials
    assert (specials.mask, specials.pad, specials.eos, specials.bos, specials.cls) == (2, 1, None, None, None)


@pytest.mark.parametrize(
    "made, names",
    [
        pytest.param(json_models.wordpiece, json_models.BERT, id="BERT"),
        pytest.param(json_models.unigram, json_models.ROBERTA, id="RoBERTa"),
    ],
)
def test_usual_names_where_nothing_is_said(tmp_path, samples, made, names):
    """tokenizer.json alone: roles go by the names that everyone uses."""
    backend = made(samples)
    write(tmp_path, tokenizer_json=json_models.content(backend))
    specials = import_tokenizer(tmp_path).specials
    for role in ("unk", "bos", "eos", "pad", "mask", "cls", "sep"):
        wanted = backend.token_to_id(names[role]) if role in names else None
        assert getattr(specials, role) == wanted, role


def test_the_advice_about_another_tokenizer_model(tmp_path, samples):
    """What the message says makes a tokenizer.json, whose ids are transformers' own."""
    import sentencepiece
    from transformers import AutoTokenizer

    with (tmp_path / "tokenizer.model").open("wb") as file:  # sentencepiece's own settings, and a space before all
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter("\n".join(samples).splitlines()),
            model_writer=file,
            vocab_size=400,
            model_type="bpe",
            byte_fallback=True,
            minloglevel=2,
        )
    write(tmp_path, tokenizer_config_json={"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(InputError, match=r"AutoTokenizer.from_pretrained\(folder\).save_pretrained\(folder\)"):
        import_tokenizer(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    check_against_transformers(tmp_path, import_tokenizer(tmp_path))


def test_no_tokenizer(tmp_path):
    """A folder without one has None."""
    assert import_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    "files, match",
    [
        pytest.param({"tokenizer_json": b"{"}, "cannot be used", id="half a tokenizer.json"),
        pytest.param(
            {"tokenizer_json": b"{}", "tokenizer_config_json": b"["}, "tokenizer_config.json is damaged", id="config"
        ),
        pytest.param(
            {"tokenizer_json": b"{}", "tokenizer_config_json": b"[]"}, "no JSON object", id="config is a list"
        ),
        pytest.param({"tokenizer_model": b"garbage"}, "AutoTokenizer", id="tokenizer.model"),
        pytest.param({"vocab_txt": b"\xff"}, "cannot be used", id="vocab.txt"),
        pytest.param({"vocab_txt": b"a\nb\n"}, "cannot be used", id="vocab.txt without the unknown token"),
        pytest.param({"vocab_json": b"{}", "merges_txt": b""}, "cannot be used", id="vocab.json"),
    ],
)
def test_bad_files(tmp_path, files, match):
    """One line each."""
    write(tmp_path, **files)
    with pytest.raises(InputError, match=match):
        import_tokenizer(tmp_path)
