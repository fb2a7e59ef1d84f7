"""A folder that is damaged, of another kind or a trap: one line that names the file, the key or the tensor."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillm
from minillm.checkpoint.hf.folder import INDEX, WHOLE, open_folder
from minillm.cli import main
from minillm.errors import InputError


@pytest.fixture
def bert(peer, tmp_path) -> Path:
    """A copy of a small BERT's folder, to be changed."""
    shutil.copytree(peer("bert", "MaskedLM").folder, tmp_path / "bert")
    return tmp_path / "bert"


def change(folder: Path, **settings: Any) -> None:
    """Change settings in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def sharded(folder: Path, weight_map: Any = None) -> None:
    """Put the tensors into two files with an index, or with the one that is given."""
    tensors = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    places = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": places if weight_map is None else places | weight_map}))


def test_one_line_and_status_two_on_the_command_line(bert, tmp_path, capsys) -> None:
    """Every command that takes a folder says it alike, and import leaves nothing behind."""
    (bert / WHOLE).write_bytes((bert / WHOLE).read_bytes()[:-10])
    for words in (["import", str(bert), "--out", str(tmp_path / "run")], ["fill", str(bert), "--text", "[MASK]"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"minillm: cannot read {bert / WHOLE}: ") and line.endswith("fetch it again")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1])
def test_a_truncated_file(bert, size) -> None:
    """Wherever it ends."""
    (bert / WHOLE).write_bytes((bert / WHOLE).read_bytes()[:size])
    with pytest.raises(InputError, match="damaged, fetch it again"):
        minillm.load(bert)


def test_flipped_bytes_of_the_header_raise_nothing_else(bert) -> None:
    """200 times one to three bytes: a line, or a file that still says the same."""
    whole, draw = (bert / WHOLE).read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(200):
        bytes_ = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            bytes_[draw.randrange(header)] = draw.randrange(256)
        (bert / WHOLE).write_bytes(bytes_)
        try:
            open_folder(bert)
            minillm.load(bert)
        except InputError as error:
            assert str(bert) in str(error)
            refused += 1
    assert refused > 150


BIAS = "bert.encoder.layer.1.attention.self.query.bias"
TENSORS = [
    pytest.param(lambda t: t.pop(BIAS), rf"has no tensor {BIAS} \(32,\)", id="missing"),
    pytest.param(
        lambda t: t.update({BIAS: torch.zeros(31)}), rf"asks for {BIAS} \(32,\), the file has \(31,\)", id="misshapen"
    ),
    pytest.param(lambda t: t.update({"bert.extra": torch.zeros(2, 3)}), r"a tensor bert.extra \(2, 3\)", id="extra"),
    pytest.param(lambda t: t.update({BIAS: torch.zeros(32, dtype=torch.int8)}), "int8, a quantised", id="quantised"),
    pytest.param(
        lambda t: t.update({BIAS: torch.zeros(32, dtype=torch.float8_e4m3fn)}), "float8_e4m3fn, a quant", id="float8"
    ),
    pytest.param(
        lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(61, 32)}),
        "decoder.weight is not bert.embeddings.word_embeddings.weight",
        id="a copy that differs",
    ),
]


@pytest.mark.parametrize("spoil, hint", TENSORS)
def test_a_tensor_that_does_not_fit_is_named(bert, spoil, hint) -> None:
    """With both shapes where there are two."""
    tensors = load_file(bert / WHOLE)
    spoil(tensors)
    save_file(tensors, bert / WHOLE)
    with pytest.raises(InputError, match=hint):
        minillm.load(bert)


def test_what_older_files_have_besides(peer, bert) -> None:
    """Buffers and copies are read past, gamma and beta are weight and bias, and heads that are left out are told of."""
    tensors = load_file(bert / WHOLE)
    tensors["bert.embeddings.position_ids"] = torch.arange(24)[None]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {name: next((name.replace(a, b) for a, b in ends.items() if a in name), name) for name in tensors}
    save_file({old[name]: tensor for name, tensor in tensors.items()}, bert / WHOLE)
    (note,) = open_folder(bert).notes
    assert note.endswith("nothing here reads it: cls.seq_relationship.weight")
    came, wanted = minillm.load(bert).model, minillm.load(peer("bert", "MaskedLM").folder).model
    assert all(torch.equal(t, wanted.state_dict()[name]) for name, t in came.state_dict().items())


PLACES = ["../bert/a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "a.bin", "", 7, None, "a.safetensors\n"]


@pytest.mark.parametrize("place", PLACES, ids=repr)
def test_an_index_leads_nowhere_else(bert, place) -> None:
    """Files in the folder itself, and no others, are opened."""
    sharded(bert, {"cls.predictions.bias": place})
    with pytest.raises(InputError, match="which is no safetensors file in the folder; not opened"):
        minillm.load(bert)


@pytest.mark.parametrize(
    "places, hint",
    [
        pytest.param({"cls.predictions.bias": "c.safetensors"}, "c.safetensors is missing", id="no such file"),
        pytest.param({"more": "a.safetensors"}, "a.safetensors has no tensor more", id="no such tensor"),
        pytest.param({"cls.predictions.bias": "a.safetensors"}, "does not place there", id="in the other file"),
    ],
)
def test_an_index_that_is_wrong(bert, places, hint) -> None:
    """The file or the tensor is named."""
    tensors = sorted(load_file(bert / WHOLE))
    assert tensors.index("cls.predictions.bias") >= 20
    sharded(bert, places)
    with pytest.raises(InputError, match=hint):
        minillm.load(bert)


def test_a_tensor_under_its_old_name_and_its_new_one(bert) -> None:
    """Neither is taken: they may differ."""
    tensors = load_file(bert / WHOLE)
    tensors["bert.embeddings.LayerNorm.gamma"] = torch.full((32,), 7.0)
    save_file(tensors, bert / WHOLE)
    with pytest.raises(InputError, match=r"has both bert.embeddings.LayerNorm.gamma and bert.embeddings.LayerNorm.wei"):
        minillm.load(bert)


def test_an_index_in_order(peer, bert) -> None:
    """The same weights as from one file."""
    sharded(bert)
    came, wanted = minillm.load(bert).model, minillm.load(peer("bert", "MaskedLM").folder).model
    assert all(torch.equal(t, wanted.state_dict()[name]) for name, t in came.state_dict().items())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_a_pickle_is_not_opened(bert, name) -> None:
    """The line says how to convert it."""
    (bert / WHOLE).unlink()
    (bert / name).write_bytes(b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(InputError, match=f"as {name}, a pickle.*from_pretrained.DIR..save_pretrained"):
        minillm.load(bert)


def test_float64_is_narrowed_and_told_of(bert) -> None:
    """The first three tensors are named."""
    save_file({name: tensor.double() for name, tensor in load_file(bert / WHOLE).items()}, bert / WHOLE)
    (note,) = open_folder(bert).notes
    assert note.startswith("tensors in float64 are narrowed to float32: bert.") and note.endswith(", ...")
    assert {p.dtype for p in minillm.load(bert).model.parameters()} == {torch.float32}


def test_pickles_of_a_training_run_are_not_taken_for_weights(bert) -> None:
    """The weights are named, also where another pickle comes first; and they are missed where there are none."""
    (bert / WHOLE).unlink()
    for name in ("optimizer.pt", "training_args.bin", "scheduler.pt", "all.bin"):
        (bert / name).write_bytes(b"x")
    (bert / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="has its weights as pytorch_model-00001-of-00002.bin, a pickle"):
        minillm.load(bert)
    for name in ("pytorch_model-00001-of-00002.bin", "all.bin"):
        (bert / name).unlink()
    with pytest.raises(InputError, match=f"has no {WHOLE} and no {INDEX}"):
        minillm.load(bert)


@pytest.mark.parametrize(
    "content, hint",
    [
        pytest.param("{", "config.json is damaged", id="no JSON"),
        pytest.param("[1]", "no table in it", id="a list"),
        pytest.param("[" * 100_000, "config.json is damaged", id="deep"),
        pytest.param(b"\xff\xfe", "config.json is damaged", id="no text"),
        pytest.param("{}", "model_type None is not supported; known are bert, roberta", id="empty"),
        pytest.param('{"model_type": "t5"}', "model_type 't5' is not supported; known are bert, ", id="another family"),
        pytest.param('{"model_type": ["bert"]}', "is not supported", id="no word"),
        pytest.param('{"model_type": "bert"}', "architectures", id="no class"),
    ],
)
def test_a_damaged_config(bert, content, hint) -> None:
    """The file is named."""
    (bert / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=hint):
        minillm.load(bert)


def test_a_folder_without_weights(bert) -> None:
    """And one that is not there, and a checkpoint inside a run."""
    (bert / WHOLE).unlink()
    with pytest.raises(InputError, match=f"has no {WHOLE} and no {INDEX}"):
        minillm.load(bert)
    with pytest.raises(InputError, match="no folder"):
        open_folder(bert / "nowhere")


def test_a_checkpoint_inside_a_run(tiny_runs) -> None:
    """Its config.json is ours; the line says which folder to give."""
    with pytest.raises(InputError, match="is of a checkpoint inside a run; give the run's folder"):
        minillm.load(tiny_runs["decoder"] / "checkpoints/step-000004")


REFUSED = [
    ("bert", {"hidden_act": "silu"}, "hidden_act"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("bert", {"add_cross_attention": True}, "add_cross_attention"),
    ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("bert", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("bert", {"num_attention_heads": 5}, "not go together: [^;]*num_heads .5. must [^;]*; fetch it again$"),
    ("bert", {"num_attention_heads": 4.0}, "num_attention_heads takes a whole number"),
    ("bert", {"hidden_size": True}, "hidden_size takes a whole number"),
    ("bert", {"hidden_size": 10**12}, "hidden_size takes a whole number"),
    ("bert", {"vocab_size": 2**31 - 1}, "word_embeddings.weight .2147483647, 32.|does not fit into memory"),
    ("bert", {"layer_norm_eps": "1e-12"}, "layer_norm_eps takes a number"),
    ("bert", {"layer_norm_eps": float("nan")}, "layer_norm_eps takes a number"),
    ("bert", {"hidden_dropout_prob": 1.5}, "hidden_dropout_prob takes a number in"),
    ("bert", {"num_hidden_layers": 300}, "asks for 300 layers, and there are"),
    ("bert", {"vocab_size": None}, "has no vocab_size"),
    ("roberta", {"hidden_act": "relu"}, "hidden_act"),
    ("roberta", {"pad_token_id": 0}, "pad_token_id"),
    ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings"),
    ("distilbert", {"activation": "silu"}, "activation"),
    ("modernbert", {"hidden_activation": "relu"}, "hidden_activation"),
    ("modernbert", {"norm_bias": True}, "norm_bias"),
    ("modernbert", {"norm_bias": 0}, "norm_bias = 0 is not supported: only false is"),
    ("modernbert", {"attention_bias": True}, "attention_bias"),
    ("modernbert", {"mlp_bias": True}, "mlp_bias"),
    ("modernbert", {"decoder_bias": False}, "decoder_bias"),
    ("modernbert", {"classifier_activation": "relu"}, "classifier_activation"),
    ("modernbert", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3}, "layer_types"),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2}}}, "rope_parameters"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"activation_function": "silu"}, "activation_function"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "rope_parameters"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"attention_bias": True}, "mlp_bias"),
    ("llama", {"max_position_embeddings": 2**31 - 1}, "max_position_embeddings"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, "use_sliding_window"),
    ("qwen3", {"use_sliding_window": True, "sliding_window": None} | {"layer_types": ["sliding_attention"] * 3},
     "sliding_window = None"),
    ("qwen3", {"num_hidden_layers": 2**31 - 1, "layer_types": None}, "num_hidden_layers takes at most 10,000"),
    ("modernbert", {"num_hidden_layers": 2**31 - 1, "layer_types": None}, "num_hidden_layers takes at most 10,000"),
    ("qwen3", {"use_sliding_window": True, "layer_types": None, "sliding_window": 4} | {"max_window_layers": 2},
     "layer_types"),
]  # fmt: skip


@pytest.mark.parametrize("name, changed, hint", REFUSED, ids=lambda value: str(value)[:50])
def test_a_setting_that_cannot_be_built_is_refused_by_name(peer, name, changed, hint, tmp_path) -> None:
    """Never ignored: the model would compute something else."""
    ending = "MaskedLM" if name in ("bert", "roberta", "distilbert", "modernbert") else "CausalLM"
    shutil.copytree(peer(name, ending).folder, tmp_path / "theirs")
    change(tmp_path / "theirs", **changed)
    with pytest.raises(InputError, match=hint):
        minillm.load(tmp_path / "theirs")


def test_a_setting_that_nobody_knows_is_told_of(bert) -> None:
    """transformers does not read it either."""
    change(bert, flux_capacitor=1.21)
    (note,) = open_folder(bert).notes
    assert note.endswith("that BERT does not have, ignored: flux_capacitor")


def test_an_export_does_not_replace_what_is_no_export(bert, tiny_runs, tmp_path, capsys) -> None:
    """Nor an export, unless it is told to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    words = ["export", str(tiny_runs["decoder"]), "--out"]
    assert main([*words, str(tmp_path / "mine"), "--overwrite"]) == 2
    assert "is not empty and holds no export to replace: it has no config.json" in capsys.readouterr().err
    assert main([*words, str(bert)]) == 2
    assert "already holds an export; choose another --out or add --overwrite" in capsys.readouterr().err
    assert main([*words, str(bert), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "Qwen3ForCausalLM"
    assert (tmp_path / "mine/thesis.txt").exists()


def test_a_run_that_no_family_has_is_refused_on_the_command_line(tiny_runs, tmp_path, capsys) -> None:
    """What stands in the way is named, and nothing is written."""
    assert main(["export", str(tiny_runs["encoder"]), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.norm is rms_norm, not layer_norm" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["nan", "inf", "1e300", "-1", "0"])
def test_files_of_no_size_are_refused(tiny_runs, tmp_path, capsys, size) -> None:
    """One line; nothing is written."""
    words = ["export", str(tiny_runs["decoder"]), "--out", str(tmp_path / "out"), f"--shard-gigabytes={size}"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--shard-gigabytes takes a number above 0, got" in line and not (tmp_path / "out").exists()
