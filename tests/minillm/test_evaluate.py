"""Figures on held-out text: those of a float64 computation by hand, whatever the batches, and honest beside anchors."""

import math

import pytest
import torch

from minillm import evaluate as module
from minillm.anchors import Anchor
from minillm.data.batch import Batch
from minillm.errors import InputError
from minillm.evaluate import Evaluation, check_finite, compare, evaluate, inference
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.objectives.config import ObjectiveConfig
from minillm.objectives.masked_lm import MaskedLM

V, T = 23, 6


class AsItIs:
    """An objective whose batches come prepared."""

    def prepare(self, batch):
        """Return the batch."""
        return batch


def model_of(kind):
    """A small model with weights large enough to have opinions."""
    torch.manual_seed(1)
    model = build_model(
        ModelConfig(kind=kind, vocab_size=V, context=T, num_layers=1, width=16, num_heads=2, dropout=0.3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def data(rows=7, asked=0.5):
    """One batch with targets at some places."""
    torch.manual_seed(2)
    tokens, targets = torch.randint(V, (rows, T)), torch.randint(V, (rows, T))
    return Batch(tokens=tokens, targets=targets.masked_fill(torch.rand(rows, T) > asked, -100), seed=3)


def by_hand(model, batch):
    """(summed loss, right guesses, targets), in float64, one token after the other."""
    model = model_copy(model)
    logits = model.logits(batch.tokens)
    loss, right, count = 0.0, 0, 0
    for row in range(len(batch.tokens)):
        for place in range(T):
            if (target := int(batch.targets[row, place])) != -100:
                shares = torch.exp(logits[row, place]) / torch.exp(logits[row, place]).sum()
                loss -= math.log(float(shares[target]))
                right += int(shares.argmax()) == target
                count += 1
    return loss, right, count


def model_copy(model):
    """The same weights in float64."""
    import copy

    double = copy.deepcopy(model).double().eval()
    double.compute_in(torch.float64)
    return double


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@torch.no_grad()
def test_figures_are_those_by_hand(kind):
    """Loss, perplexity, bits per byte for decoders and accuracy for encoders."""
    model, batch = model_of(kind), data()
    batch.targets[:2] = model_copy(model).logits(batch.tokens[:2]).argmax(dim=-1)  # some guesses are right
    loss, right, count = by_hand(model, batch)
    assert 2 * T <= right < count
    found = evaluate(model, AsItIs(), [batch], num_bytes=100)
    assert found.targets == count
    assert found.loss == pytest.approx(loss / count, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss / count), rel=1e-4)
    if kind == "decoder":
        assert found.bits_per_byte == pytest.approx(loss / math.log(2) / 100, rel=1e-5)
        assert found.masked_accuracy is None
    else:
        assert found.masked_accuracy == right / count
        assert found.bits_per_byte is None


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 100])
def test_batches_play_no_part(monkeypatch, rows):
    """Cut into batches, into rows at once and into logits at once: the same, though targets are spread unevenly."""
    model, batch = model_of("decoder"), data()
    batch.targets[3] = -100  # a row without a target
    whole = evaluate(model, AsItIs(), [batch], num_bytes=100)
    in_batches = evaluate(model, AsItIs(), [batch.rows(i, i + rows) for i in range(0, 7, rows)], num_bytes=100)
    in_rows = evaluate(model, AsItIs(), [batch], num_bytes=100, rows=rows)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", rows * V)
    for other in (in_batches, in_rows, evaluate(model, AsItIs(), [batch], num_bytes=100)):
        assert other.targets == whole.targets
        assert other.loss == pytest.approx(whole.loss, rel=1e-6)
        assert other.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_masks_do_not_depend_on_what_fits_at_once(rows):
    """A masked LM is asked for the same tokens whether one sequence or all of them fit on the device."""
    objective = MaskedLM(ObjectiveConfig(name="masked_lm"), vocab_size=V, mask_token=4, control_tokens=range(5))
    torch.manual_seed(0)
    batch = Batch(tokens=torch.randint(5, V, (16, T)), seed=9)
    whole = evaluate(model_of("encoder"), objective, [batch])
    parts = evaluate(model_of("encoder"), objective, [batch], rows=rows)
    assert (parts.targets, parts.masked_accuracy) == (whole.targets, whole.masked_accuracy)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_look_at_the_first_batches():
    """max_batches stops early, and says nothing of the text as a whole."""
    model, batch = model_of("decoder"), data()
    batches = [batch.rows(i, i + 1) for i in range(7)]
    looked = evaluate(model, AsItIs(), batches, max_batches=2)
    assert looked == evaluate(model, AsItIs(), batches[:2])
    assert looked.bits_per_byte is None
    with pytest.raises(ValueError, match="num_bytes"):
        evaluate(model, AsItIs(), batches, max_batches=2, num_bytes=5)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(training):
    """Mode, random state, gradients and weights stay as they are; dropout is off meanwhile."""
    model, batch = model_of("decoder").train(training), data()
    state, weights = torch.get_rng_state(), [parameter.clone() for parameter in model.parameters()]
    assert evaluate(model, AsItIs(), [batch]) == evaluate(model, AsItIs(), [batch])
    assert model.training is training and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_the_mode_comes_back_after_an_error():
    """Also where the block ends in an exception."""
    model = model_of("decoder").train()
    with pytest.raises(KeyError), inference(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and torch.is_grad_enabled()


def test_nothing_to_evaluate_on():
    """No batch, or batches without a target: the user's text is too short."""
    model = model_of("decoder")
    for batches in ([], [data(asked=0.0)]):
        with pytest.raises(InputError, match="too short"):
            evaluate(model, AsItIs(), batches)
    with pytest.raises(ValueError, match="without targets"):
        evaluate(model, AsItIs(), [Batch(tokens=torch.zeros(1, T, dtype=torch.int64))])


def test_a_hopeless_loss_has_a_perplexity():
    """exp overflows above 709 nats: infinity, not an exception."""
    model = model_of("decoder")
    with torch.no_grad():
        model.output_weight.mul_(1e5)
    assert evaluate(model, AsItIs(), [data()]).perplexity == math.inf


def test_check_finite():
    """NaN and infinity mean a run that diverged."""
    check_finite(torch.zeros(3))
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="diverged"):
            check_finite(torch.tensor([0.0, bad]))


def figures(**given):
    """An evaluation with some figures."""
    return Evaluation(
        **{"loss": 1.5, "perplexity": 4.5, "bits_per_byte": None, "masked_accuracy": None, "targets": 9} | given
    )


def test_table_of_a_decoder():
    """Best first, by bits per byte; the last line says in words what is beaten; a draw is not."""
    anchors = [
        Anchor(name=n, bits_per_byte=b) for n, b in (("uniform", 8.0), ("5-gram", 2.0), ("xz", 2.5), ("xz primed", 1.9))
    ]
    lines = compare(figures(bits_per_byte=2.0), anchors)
    order = [line.lstrip(" >").split(maxsplit=1)[1] for line in lines[1:-1]]
    assert order[0] == "xz primed" and order[3:] == ["xz", "uniform"] and set(order[1:3]) == {"5-gram", "this model"}
    assert lines[-1] == "The model beats uniform, xz; not 5-gram, xz primed."


def test_table_of_an_encoder():
    """By nats per masked token, with the shares of right guesses."""
    anchors = [
        Anchor(name="uniform", loss=3.0, masked_accuracy=0.1),
        Anchor(name="2-gram", loss=1.0, masked_accuracy=0.5),
    ]
    lines = compare(figures(masked_accuracy=0.25), anchors)
    assert "25.0 %" in lines[2] and "this model" in lines[2]
    assert lines[-1] == "The model beats uniform; not 2-gram."


def test_table_when_nothing_is_beaten():
    """Said as it is."""
    assert compare(figures(bits_per_byte=9.0), [Anchor(name="uniform", bits_per_byte=8.0)])[-1] == (
        "The model beats nothing; not uniform."
    )


def test_anchors_of_another_task():
    """Figures in another unit are not compared."""
    with pytest.raises(ValueError, match="another task"):
        compare(figures(bits_per_byte=2.0), [Anchor(name="uniform", loss=3.0)])
