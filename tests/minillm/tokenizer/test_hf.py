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
@pytest.mark.parametrize("decoder", [{}, {"added_tokens_decoder": {}}], ids=["map", "no map"])
def test_roles_are_read_from_either_file(tmp_path, samples, as_object, decoder):
    """special_tokens_map.json counts more, unless `added_tokens_decoder` is there; a name may be an object."""

    def written(name):
        return {"content": name, "lstrip": True} if as_object else name

    write(
        tmp_path,
        tokenizer_json=json_models.content(json_models.wordpiece(samples)),
        special_tokens_map_json={"mask_token": "[MASK]", "pad_token": "[SEP]"},
        tokenizer_config_json={"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
        | {"cls_token": "[CLS]", "sep_token": None, "unk_token": "[UNK]"}
        | decoder,
    )
    check_against_transformers(tmp_path, import_tokenizer(tmp_path))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": written("[PAD]")}
    write(tmp_path, tokenizer_config_json=settings)
    assert import_tokenizer(tmp_path).specials.pad == (1 if decoder else 4)


STATED = [
    pytest.param(json_models.wordpiece, "BertTokenizer", {"mask_token": "[MASK]"}, id="BERT, one stated"),
    pytest.param(json_models.wordpiece, "BertTokenizerFast", {"sep_token": None}, id="BERT, one is none"),
    pytest.param(json_models.wordpiece, "DistilBertTokenizer", {"pad_token": "[PAD]"}, id="DistilBERT"),
    pytest.param(json_models.wordpiece, "PreTrainedTokenizerFast", {"cls_token": "[CLS]"}, id="no names of its own"),
    pytest.param("roberta", "RobertaTokenizer", {"unk_token": "<unk>"}, id="RoBERTa"),
    pytest.param("roberta", "RobertaTokenizer", {"mask_token": None, "pad_token": None}, id="RoBERTa, two are none"),
    pytest.param("gpt2", "GPT2Tokenizer", {"bos_token": None}, id="GPT-2"),
    pytest.param("gpt2", "Qwen2Tokenizer", {"unk_token": None}, id="Qwen-2"),
    pytest.param("gpt2", "GPT2Tokenizer", {}, id="GPT-2, nothing stated"),
]


def trained(made, samples):
    """Return a tokenizer of the `tokenizers` library: by its function, or of RoBERTa's or GPT-2's symbols."""
    if callable(made):
        return made(samples)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if made == "roberta" else ["<|endoftext|>"]
    return json_models.byte_level(samples, special)


@pytest.mark.parametrize("made, name, stated", STATED)
def test_a_role_that_is_not_stated_has_the_name_of_the_class(tmp_path, samples, made, name, stated):
    """Each role by itself, as in transformers; null is no symbol."""
    from transformers import AutoTokenizer

    write(tmp_path, tokenizer_json=json_models.content(trained(made, samples)))
    write(tmp_path, tokenizer_config_json={"tokenizer_class": name} | stated)
    ours, theirs = import_tokenizer(tmp_path).specials, AutoTokenizer.from_pretrained(tmp_path)
    for role in ("bos", "eos", "pad", "mask", "cls", "sep"):
        assert getattr(ours, role) == getattr(theirs, f"{role}_token_id"), role


ADDED = [*TEXTS, "<think> a", "a<think>b", "a <think>b", "<pad>", "x <end> y"]


def test_tokens_that_only_added_tokens_json_has(tmp_path, samples):
    """Beside GPT-2's two files: numbered as it says; a role among them."""
    from transformers import AutoTokenizer

    model = json.loads(json_models.byte_level(samples, ["<|endoftext|>"]).to_str())["model"]
    size = len(model["vocab"])
    write(tmp_path, vocab_json=model["vocab"], merges_txt="".join(f"{' '.join(p)}\n" for p in model["merges"]).encode())
    write(tmp_path, added_tokens_json={"<pad>": size, "<think>": size + 1})
    write(tmp_path, tokenizer_config_json={"tokenizer_class": "GPT2Tokenizer", "pad_token": "<pad>"})
    ours, theirs = import_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.specials.pad == theirs.pad_token_id == size and ours.vocab_size == len(theirs) == size + 2
    for text in ADDED:
        wanted = theirs(text, add_special_tokens=False, split_special_tokens=text == "<pad>")["input_ids"]
        assert ours.encode(text) == wanted, text


def test_tokens_that_only_the_settings_have(tmp_path, samples):
    """`added_tokens_decoder` beside a tokenizer.json without them."""
    from transformers import AutoTokenizer

    plain = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    added = {"500": {"content": "<think>", "special": False, **plain}, "501": {"content": "<end>", **plain}}
    added["501"] |= {"special": True, "lstrip": True}
    write(tmp_path, tokenizer_json=json_models.content(json_models.byte_level(samples, ["<|endoftext|>"])))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<end>"}
    write(tmp_path, tokenizer_config_json=config | {"added_tokens_decoder": added})
    ours, theirs = import_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.specials.pad == theirs.pad_token_id == 501
    for text in ADDED[:-2]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert 501 not in ours.encode("x <end> y")
    config["added_tokens_decoder"] = {"502": added["500"]}
    write(tmp_path, tokenizer_config_json=config)
    with pytest.raises(InputError, match="'<think>' is number 502, and 500 is the next one"):
        import_tokenizer(tmp_path)


def test_a_role_whose_token_is_not_special(tmp_path, samples):
    """A <pad> that was added as a word is a control symbol all the same: text does not produce it."""
    from transformers import AutoTokenizer

    made = json_models.byte_level(samples, ["<|endoftext|>"])
    made.add_tokens(["<pad>"])
    names = {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    write(tmp_path, tokenizer_json=json_models.content(made))
    write(tmp_path, tokenizer_config_json={"tokenizer_class": "PreTrainedTokenizerFast"} | names)
    ours, theirs = import_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.specials.pad == theirs.pad_token_id == 500
    for text in [*TEXTS, "a<pad>b", " <pad> "]:
        wanted = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == wanted, text


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
        pytest.param({"tokenizer_json": b"[" * 100_000}, "cannot be used", id="deep tokenizer.json"),
        pytest.param(
            {"tokenizer_json": b"{}", "tokenizer_config_json": b"[" * 100_000}, "is damaged", id="deep config"
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
