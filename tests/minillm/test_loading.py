"""`minillm.load`: the checkpoint that was asked for, ready to use, or one line that says what is wrong."""

import json
import shutil

import pytest
import torch

import minillm
from minillm.checkpoint.manifest import renew_manifest, write_manifest
from minillm.checkpoint.native import read_tensors
from minillm.errors import InputError
from minillm.tokenizer.byte import ByteTokenizer


def weights_of(loaded):
    """The model's tensors by name."""
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


@pytest.fixture
def run(tiny_runs, tmp_path):
    """A copy of the decoder's run, to be changed."""
    shutil.copytree(tiny_runs["decoder"], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_ready_to_use(tiny_runs, kind):
    """Evaluation mode, float32, logits of every token; tokenizer and configuration are the run's."""
    loaded = minillm.load(tiny_runs[kind])
    assert not loaded.model.training and loaded.step == 4 and loaded.folder == tiny_runs[kind]
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    tokens = torch.tensor([loaded.require_tokenizer().encode("Dear Ellen")])
    assert loaded.model.logits(tokens).shape == (1, tokens.shape[1], 320)
    assert loaded.config.model.kind == kind


def test_latest_best_and_step(run):
    """Each names its checkpoint; a step goes as a number or as digits."""
    saved = {step: read_tensors(run / f"checkpoints/step-00000{step}/model.safetensors") for step in (2, 4)}
    (run / "checkpoints/best").write_text("step-000002\n")
    for which, step in (("latest", 4), ("best", 2), (2, 2), ("2", 2), ("000004", 4)):
        loaded = minillm.load(run, which)
        assert loaded.step == step
        found = weights_of(loaded)
        assert all(torch.equal(found[name], tensor) for name, tensor in saved[step].items())


@pytest.mark.parametrize(
    "which, hint", [(3, "no checkpoint of step 3; it has 2, 4"), ("newest", "'newest'"), ("-1", "'-1'")]
)
def test_no_such_checkpoint(run, which, hint):
    """What there is, or what can be said, is in the line."""
    with pytest.raises(InputError, match=hint):
        minillm.load(run, which)


def test_random_state_is_left_alone(run):
    """Loading draws no number that anyone would notice."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    minillm.load(run)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_tokenizer(run):
    """Loads; text cannot be used, and the line says why."""
    shutil.rmtree(run / "tokenizer")
    loaded = minillm.load(run)
    assert loaded.tokenizer is None
    with pytest.raises(InputError, match="has no tokenizer folder"):
        loaded.require_tokenizer()


def test_without_a_configuration(run):
    """A folder of checkpoints alone loads."""
    (run / "config.toml").unlink()
    assert minillm.load(run).config is None


def test_a_larger_tokenizer_of_another_run(run):
    """Ids that the model does not know are refused at once, with both numbers."""
    for folder in (run / "checkpoints").glob("step-*"):
        write_manifest(folder, {"tokenizer": None})  # as saved where no tokenizer was
    ByteTokenizer().save(run / "tokenizer")
    minillm.load(run)  # 263 tokens fit into 320
    (run / "tokenizer/tokenizer.toml").write_text(
        'kind = "char"\nalphabet = ' + json.dumps([f"{0x4E00 + i:x}" for i in range(400)])
    )
    with pytest.raises(InputError, match="of another run: it has 407 tokens, the model knows 320"):
        minillm.load(run)


def test_a_foreign_tokenizer_of_the_same_size(run):
    """It would say other words for the same ids: its digest tells, and which folder is meant."""
    path = next((run / "tokenizer").glob("*.model"))
    content = bytearray(path.read_bytes())
    content[content.index(b"the")] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="tokenizer is of another run, or damaged: .*step-000004 was trained with"):
        minillm.load(run)


@pytest.mark.parametrize(
    "change, hint",
    [
        pytest.param({"vocab_size": 0}, "vocab_size is 0", id="no vocabulary"),
        pytest.param({"width": 32}, "model.safetensors", id="other width"),
        pytest.param({"num_layers": 2}, "model.safetensors", id="more layers"),
        pytest.param({"norm": "batch_norm"}, "model.norm", id="unknown choice"),
        pytest.param({"widht": 3}, "model.width", id="unknown key"),
    ],
)
def test_another_architecture(run, change, hint):
    """config.json and weights that do not go together are named."""
    config = run / "checkpoints/step-000004/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    renew_manifest(config.parent)
    with pytest.raises(InputError, match=hint):
        minillm.load(run)


def test_device(run):
    """The model goes where it is asked to."""
    assert minillm.load(run, device="meta").model.output_weight.device.type == "meta"
