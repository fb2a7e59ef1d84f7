"""The running mean of the weights is the one of the formula, stands in for them, and leaves them as they were."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

import minillm
from minillm.checkpoint.native import read_tensors, tensors_of
from minillm.checkpoint.run_folder import RunFolder
from minillm.errors import InputError
from minillm.material import gather
from minillm.pretrain import pretrain
from minillm.training.config import OptimConfig
from minillm.training.ema import EMA


def linear(rows=3, columns=5, dtype=torch.float32):
    """A layer whose bias is frozen."""
    layer = nn.Linear(columns, rows).to(dtype)
    layer.bias.requires_grad_(False)
    return layer


def after_constant_steps(decay, steps, dtype=torch.float32):
    """(weights at the start, weights now, mean now) of a layer that each step moves by -0.5."""
    layer = linear(dtype=dtype)
    start, ema = layer.weight.detach().clone(), EMA(layer, decay)
    for step in range(1, steps + 1):
        with torch.no_grad():
            layer.weight -= 0.5
        ema.update(step)
    return start, layer.weight.detach(), ema.tensors()["weight"]


@pytest.mark.parametrize("decay, steps", [(0.1, 1), (0.1, 7), (0.18, 50)])
def test_behind_a_constant_gradient_by_the_decay(decay, steps):
    """Below the warm-up's first value: mean = w_t + 0.5 d (1 - d^t) / (1 - d), the sum of a geometric series."""
    _, now, mean = after_constant_steps(decay, steps)
    torch.testing.assert_close(mean, now + 0.5 * decay * (1 - decay**steps) / (1 - decay))


@pytest.mark.parametrize("steps", [1, 2, 30, 400])
def test_behind_a_constant_gradient_by_a_tenth_of_the_steps(steps):
    """In the warm-up lag_t = d_t (lag_{t-1} + 1) has the solution (t + 1) / 10 - (t + 1)! 10! / (10 (t + 10)!)."""
    _, now, mean = after_constant_steps(0.999, steps)
    share = Fraction(math.factorial(steps + 1) * math.factorial(10), math.factorial(steps + 10))
    lag = float(Fraction(steps + 1, 10) - share / 10)
    torch.testing.assert_close(mean, now + 0.5 * lag, rtol=1e-5, atol=1e-4)


def test_decay_ends_the_warm_up():
    """(1 + t) / (10 + t) reaches 0.5 at t = 8; by then the lag is 0.9 less a share, then it tends to 1 step."""
    _, now, mean = after_constant_steps(0.5, 60)
    torch.testing.assert_close(mean, now + 0.5)


def test_a_mean_of_bfloat16_weights_is_kept_in_float32():
    """Steps too small for bfloat16 to add up one by one do so in the mean."""
    layer = linear(dtype=torch.bfloat16)
    nn.init.zeros_(layer.weight)
    ema = EMA(layer, 0.999)
    nn.init.ones_(layer.weight)
    truth = 0.0
    for step in range(1000, 3000):
        ema.update(step)
        share = 1 - min(0.999, (1 + step) / (10 + step))
        truth += share * (1 - truth)
    mean = ema.tensors()["weight"]
    assert mean.dtype == torch.float32 and 0.99 < truth < 1
    torch.testing.assert_close(mean, torch.full_like(mean, truth), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_swapped_in_and_out(dtype):
    """The model computes with the mean inside, has its own bits outside, after an error too; frozen weights stay."""
    layer, x = linear(dtype=dtype), torch.randn(2, 5).to(dtype)
    ema = EMA(layer, 0.999)
    with torch.no_grad():
        layer.weight.mul_(3.7)
    before, frozen = layer.weight.detach().clone(), layer.bias.detach().clone()
    ema.update(1)
    mean = ema.tensors()["weight"].clone()
    with pytest.raises(KeyError), ema.swapped_in():
        assert torch.equal(layer(x), nn.functional.linear(x, mean.to(dtype), frozen))
        assert layer.weight.requires_grad and not torch.equal(layer.weight, before)
        raise KeyError
    assert torch.equal(layer.weight, before) and torch.equal(layer.bias, frozen)
    assert torch.equal(ema.tensors()["weight"], mean) and ema.tensors().keys() == {"weight"}


def test_what_does_not_fit_is_one_line():
    """Another name or shape; the means stay."""
    ema = EMA(linear(), 0.9)
    before = ema.tensors()["weight"].clone()
    for tensors in ({}, {"weight": torch.zeros(2, 5)}, {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)}):
        with pytest.raises(InputError, match="x.safetensors is of another architecture: the model asks for"):
            ema.put(tensors, source="x.safetensors")
    assert torch.equal(ema.tensors()["weight"], before)


def test_the_trainer_keeps_judges_and_saves_the_mean(parts, make_trainer):
    """Against a mean taken by hand in float64; the weights themselves learn as they would without it."""
    seen, judged = [], []

    def evaluate(model):
        judged.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"loss": 1.0}

    plain, trainer = make_trainer("plain"), make_trainer(ema_decay=0.6, evaluate=evaluate)
    mean = {name: p.detach().double().clone() for name, p in trainer.model.named_parameters()}
    trainer.after_step.append(lambda t: seen.append({n: p.detach().double() for n, p in t.model.named_parameters()}))
    plain.fit()
    trainer.fit()
    means = []
    for step, weights in enumerate(seen, start=1):
        share = 1 - min(0.6, (1 + step) / (10 + step))
        mean = {name: value + share * (weights[name] - value) for name, value in mean.items()}
        means.append(mean)
    saved = read_tensors(trainer.folder.folder_of(12) / "model.safetensors")
    own = read_tensors(trainer.folder.folder_of(12) / "unaveraged.safetensors")
    untouched = tensors_of(plain.model)
    for name, truth in mean.items():
        torch.testing.assert_close(saved[name].double(), truth, rtol=1e-5, atol=1e-6)
        assert not torch.equal(saved[name], own[name])
        assert torch.equal(own[name], untouched[name]) and torch.equal(trainer.model.get_parameter(name), own[name])
        assert torch.equal(judged[-1][name], saved[name])  # after step 12
        torch.testing.assert_close(judged[0][name].double(), means[3][name], rtol=1e-5, atol=1e-6)
    assert saved.keys() == untouched.keys()  # buffers too
    assert not (plain.folder.folder_of(12) / "unaveraged.safetensors").exists()


def test_a_step_without_targets_leaves_the_mean(parts, make_trainer):
    """No new weights, nothing to take in: the mean stays behind them as it was, however many such steps come."""

    class Ends(parts.Objective):
        def prepare(self, batch):
            batch = super().prepare(batch)
            return batch if batch.seed < 3 * 17 else replace(batch, targets=torch.full_like(batch.targets, -100))

    given = {"optim": OptimConfig(learning_rate=0.1, warmup_steps=0, schedule="constant"), "ema_decay": 0.9}
    three, six = (make_trainer(f"{n}", objective=Ends(), max_steps=n, **given) for n in (3, 6))
    for trainer in (three, six):
        trainer.fit()
    assert six.state.empty_steps == 3
    for name, mean in three.ema.tensors().items():
        assert torch.equal(mean, six.ema.tensors()[name])
        assert not torch.equal(mean, six.model.get_parameter(name))  # else nothing could move it


def test_whoever_uses_the_run_gets_the_mean(tiny_config, tmp_path):
    """`load`, the evaluation at the end and a run that begins with --init."""
    result = pretrain(tiny_config(train={"ema_decay": 0.9, "compute_dtype": "float32"}), tmp_path / "run")
    folder = tmp_path / "run/checkpoints/step-000004"
    mean, own = (read_tensors(folder / f"{name}.safetensors") for name in ("model", "unaveraged"))
    loaded = minillm.load(tmp_path / "run")
    found = dict(loaded.model.named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in mean.items())
    assert any(not torch.equal(own[name], tensor) for name, tensor in mean.items())
    material = gather(loaded.config, RunFolder(tmp_path / "run"), loaded.require_tokenizer())
    assert material.evaluate(loaded.model).loss == pytest.approx(result.evaluation.loss, rel=1e-6)
    nothing = {"learning_rate": 1e-30, "adamw_learning_rate": 1e-30, "weight_decay": 0.0}
    pretrain(tiny_config(train={"max_steps": 1}, optim=nothing), tmp_path / "next", init=tmp_path / "run")
    begun = read_tensors(tmp_path / "next/checkpoints/step-000001/model.safetensors")
    assert all(torch.equal(begun[name], tensor) for name, tensor in mean.items())


def test_another_decay_is_refused(make_trainer):
    """The mean's past is that of the decay that it was kept with."""
    make_trainer(max_steps=1, ema_decay=0.9).fit()
    for decay, words in ((0.99, "ema_decay 0.9, asked for is 0.99"), (None, "0.9, asked for is none")):
        with pytest.raises(InputError, match=f"{words}; resume with what it was trained with"):
            make_trainer(ema_decay=decay).resume()
    make_trainer("plain", max_steps=1, optim=OptimConfig()).fit()
    with pytest.raises(InputError, match="ema_decay none, asked for is 0.5"):
        make_trainer("plain", ema_decay=0.5).resume()
