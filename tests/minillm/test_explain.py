"""Attributions against closed forms, differences by hand and symmetries, and that sums are checked aloud."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minillm.errors import InputError
from minillm.evaluate import evaluating
from minillm.explain import (
    LEAST,
    Attribution,
    Question,
    attribute,
    empty_symbol,
    explain,
    gradient_x_input,
    integrated_gradients,
    occlusion,
    score_of,
)
from minillm.finetune.config import HeadConfig, TaskConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.encoding import TextEncoder
from minillm.finetune.predict import Finetuned
from minillm.finetune.table import text_table
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.registry import TASKS
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.tokenizer.base import ALL_SPECIALS, Specials
from minillm.tokenizer.character import CharacterTokenizer

LETTERS = CharacterTokenizer("abcdefgh ")
CLS, SEP, MASK, PAD = ALL_SPECIALS.cls, ALL_SPECIALS.sep, ALL_SPECIALS.mask, ALL_SPECIALS.pad
FIRST = score_of(TaskFacts(name="multi_label", labels=("x", "y")), 0)  # the first output as it is


class Rows(nn.Module):
    """An embedding table and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens]


class Summing(nn.Module):
    """One output: bend(sum over tokens of w . e_t)."""

    def __init__(self, bend: Any = lambda z: z) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.embeddings = Rows()
        self.w = nn.Parameter(torch.randn(6, generator=torch.Generator().manual_seed(2)))
        self.bend = bend

    def forward(self, tokens: Tensor, **inputs: Any) -> Tensor:
        return self.bend((self.backbone.embeddings(tokens) @ self.w).sum(dim=1, keepdim=True))


def question(model: Any, tokens: list[int], baseline: list[int]) -> Question:
    """Return what the first output of a model is made of."""
    return Question(
        model=model, tokens=torch.tensor([tokens]), baseline=torch.tensor([baseline]), score=lambda z: z[:, 0]
    )


def finetuned(task: str = "single_label", *, pairs: bool = False, **shape: Any) -> Finetuned:
    """Return a small model of random weights that are far from alike, as a run would load it."""
    torch.manual_seed(0)
    labels = () if task == "regression" else ("bad", "good", "odd")
    facts = TaskFacts(name=task, labels=labels, pairs=pairs, center=3.0, scale=2.0)  # pyright: ignore
    chosen = {"kind": "encoder", "num_layers": 2, "width": 16, "num_heads": 2, "init_std": 0.4, "head": "none"}
    backbone = ModelConfig(**(chosen | {"vocab_size": LETTERS.vocab_size, "context": 24, "dropout": 0.2} | shape))
    made = TASKS[task](TaskConfig(), facts)
    head = HeadConfig()
    config = TaskModelConfig(task=facts, text=TextConfig(), backbone=backbone, head=head)
    model = TaskModel(config, build_model(backbone), made.make_head(head, backbone))  # pyright: ignore
    encoder = TextEncoder(LETTERS, backbone, TextConfig())
    return Finetuned(
        models=[model.eval()], task=made, tokenizer=LETTERS, encoder=encoder, calibration={"temperature": 1.5}
    )


def asked(loaded: Finetuned, text: str, answer: int = 1) -> Question:
    """Return the question about a text's log-odds of a label."""
    tokens = torch.tensor([[CLS, *LETTERS.encode(text), SEP]])
    baseline = torch.tensor([[CLS, *[MASK] * len(text), SEP]])
    return Question(model=loaded.models[0], tokens=tokens, baseline=baseline, score=score_of(loaded.task.facts, answer))


@pytest.mark.parametrize("method", [integrated_gradients, gradient_x_input, occlusion])
def test_on_a_linear_model_every_method_gives_the_closed_form(method):
    model = Summing()
    found = method(question(model, [3, 7, 7, 1], [0, 0, 0, 1]))
    w, e = model.w.detach().double(), model.backbone.embeddings.weight.detach().double()
    away = e[[0, 0, 0, 1]] if method is not gradient_x_input else 0.0
    truth = (e[[3, 7, 7, 1]] - away) @ w
    assert found.scores == pytest.approx(truth.numpy(), abs=1e-5)
    assert found.value == pytest.approx(float(e[[3, 7, 7, 1]].sum(dim=0) @ w), abs=1e-5)


def test_on_a_linear_model_the_sum_is_complete_at_the_first_try():
    found = integrated_gradients(question(Summing(), [3, 7, 5, 1], [0, 0, 0, 1]))
    assert found.steps == 16 and found.gap == pytest.approx(0.0, abs=1e-5) and found.complete(1e-4)


def test_on_a_bent_model_the_scores_are_the_slopes_mean_times_the_way():
    """f = z^2: the mean slope between z' and z is z + z', so each token has (z + z') w . (e_t - e'_t)."""
    model = Summing(torch.square)
    found = integrated_gradients(question(model, [3, 7, 7, 1], [0, 0, 0, 1]))
    w, e = model.w.detach().double(), model.backbone.embeddings.weight.detach().double()
    z, rest = e[[3, 7, 7, 1]] @ w, e[[0, 0, 0, 1]] @ w
    assert found.scores == pytest.approx(((z.sum() + rest.sum()) * (z - rest)).numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_scores_of_a_transformer_sum_to_what_the_text_adds(kind, task):
    loaded = finetuned(task, kind=kind)
    found = explain(loaded, "fed bag hfg").attribution
    assert found.complete() and found.gap is not None and found.baseline_value is not None
    assert abs(found.value - found.baseline_value) > LEAST  # there is something to be explained
    assert found.scores.sum() == pytest.approx(found.value - found.baseline_value, rel=0.011)


def test_integrated_gradients_are_the_riemann_sum_in_float64():
    """Against 4,000 midpoints of the path, with gradients that autograd takes of the embedding output by itself."""
    loaded = finetuned()
    ask = asked(loaded, "ab cab hfg")
    found = integrated_gradients(ask, tolerance=1e-4)
    end, start = (ask.embedded(tokens).double() for tokens in (ask.tokens, ask.baseline))
    total = torch.zeros(len(end), dtype=torch.float64)
    for part in ((torch.arange(4000) + 0.5) / 4000).double().split(250):
        _, gradient = ask.at((start + part[:, None, None] * (end - start)).float())
        total += (gradient.double() * (end - start)).sum(dim=(0, 2)) / 4000
    assert found.scores == pytest.approx(total.numpy(), abs=2e-3 * float(total.abs().max()))


def test_steps_are_raised_until_the_sum_is_met_and_not_beyond():
    """A steep bend: 16 nodes miss it, and what is returned is the first number of nodes that does not."""
    ask = question(Summing(lambda z: torch.tanh(40 * z)), [3, 7, 5, 1], [0, 0, 0, 1])
    found = integrated_gradients(ask)
    assert found.steps is not None and found.steps > 16 and found.complete()
    assert not integrated_gradients(ask, most_steps=found.steps // 2).complete()


def test_a_sum_that_is_not_met_is_told():
    found = integrated_gradients(
        question(Summing(lambda z: torch.tanh(4e4 * z)), [3, 7, 5, 1], [0, 0, 0, 1]), most_steps=16
    )
    assert found.steps == 16 and not found.complete()


def test_where_f_hardly_moves_the_gap_is_judged_by_itself():
    """1% of nothing cannot be met: a thousandth of a nat is enough."""
    found = Attribution(
        method="integrated_gradients", scores=np.array([0.0009]), value=1.0, baseline_value=1.0, steps=16
    )
    assert found.complete() and not dataclasses.replace(found, scores=np.array([0.0011])).complete()


def test_occlusion_is_the_difference_that_predict_makes():
    """Each piece by hand: the log-odds that predict gives for both texts."""
    loaded = finetuned()
    ask = asked(loaded, "abc h")
    found = occlusion(ask)

    def log_odds(tokens: list[int]) -> float:
        with torch.no_grad():
            p = loaded.models[0](torch.tensor([tokens])).double().softmax(-1)[0, 1]
        return float(torch.log(p / (1 - p)))

    tokens = ask.tokens[0].tolist()
    for place in range(1, len(tokens) - 1):
        without = [*tokens[:place], MASK, *tokens[place + 1 :]]
        assert found.scores[place] == pytest.approx(log_odds(tokens) - log_odds(without), abs=1e-4)
    assert found.scores[0] == found.scores[-1] == 0.0
    assert found.gap is None and found.complete()


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_x_input", "occlusion"])
def test_equal_pieces_get_equal_scores_where_order_does_not_count(method):
    """Without positions an encoder sees a bag of pieces."""
    found = attribute(asked(finetuned(position="none"), "abcabca"), method)
    scores = dict(zip(range(1, 8), found.scores[1:-1], strict=True))
    for letter in "abc":
        same = [scores[place + 1] for place, other in enumerate("abcabca") if other == letter]
        assert same == pytest.approx([same[0]] * len(same), rel=1e-3, abs=1e-5)
    assert abs(scores[1] - scores[2]) > 1e-3


def test_control_symbols_add_nothing_to_the_integrated_gradients():
    found = integrated_gradients(asked(finetuned(), "abc"))
    assert found.scores[0] == found.scores[-1] == 0.0


def test_f_is_the_log_odds_of_the_probability():
    z = torch.tensor([[0.3, -2.0, 1.1]])
    p = z.double().softmax(-1)[0, 2]
    single = score_of(TaskFacts(name="single_label", labels=("a", "b", "c")), 2)(z)
    assert float(single) == pytest.approx(float(torch.log(p / (1 - p))), rel=1e-6)
    q = z.double().sigmoid()[0, 1]
    multi = score_of(TaskFacts(name="multi_label", labels=("a", "b", "c")), 1)(z)
    assert float(multi) == pytest.approx(float(torch.log(q / (1 - q))), rel=1e-6)


def test_a_number_is_explained_in_its_own_unit():
    loaded = finetuned("regression")
    found = explain(loaded, "abc")
    (answer,) = loaded.predict(text_table(["abc"]))
    assert found.attribution.value == pytest.approx(answer["value"], rel=1e-5)
    assert (found.label, found.probability) == (None, None)


def test_the_likeliest_label_is_explained_or_the_one_that_is_named():
    loaded = finetuned()
    (answer,) = loaded.predict(text_table(["abc"]))
    found = explain(loaded, "abc")
    assert (found.label, found.probability) == (answer["label"], pytest.approx(answer["probabilities"][found.label]))
    other = explain(loaded, "abc", label="odd" if answer["label"] != "odd" else "bad")
    assert other.label != found.label and other.attribution.value != found.attribution.value


def test_pieces_stand_as_the_model_reads_them():
    found = explain(finetuned(), "ab c", method="occlusion")
    assert found.reading.pieces == ("[CLS]", "a", "b", " ", "c", "[SEP]")
    assert found.reading.tokens.tolist() == [[CLS, *LETTERS.encode("ab c"), SEP]]


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_x_input", "occlusion"])
def test_an_unknown_character_is_a_piece_and_no_control_symbol(method):
    """It is scored by itself: its tokens are not those of the baseline, and their sum says something."""
    found = explain(finetuned(), "日本語", method=method)
    assert found.reading.pieces[1:-1] == ("<unk>",) * 3
    assert np.abs(found.attribution.scores[1:-1]).min() > 0 and found.attribution.complete()
    if found.attribution.baseline_value is not None:
        assert abs(found.attribution.value - found.attribution.baseline_value) > LEAST


def test_a_frame_of_the_unknown_symbol_stays(monkeypatch):
    """GPT-2 has one symbol for all: what frames the text then is not taken for a piece."""
    monkeypatch.setattr(LETTERS, "specials", dataclasses.replace(ALL_SPECIALS, unk=ALL_SPECIALS.eos))
    scores = explain(finetuned(kind="decoder"), "ab", method="occlusion").attribution.scores
    assert scores[0] == scores[-1] == 0.0 and np.abs(scores[1:-1]).min() > 0


def test_pairs_are_read_with_their_types():
    loaded = finetuned(pairs=True, token_types=2)
    found = explain(loaded, "ab", "cd")
    assert found.reading.pieces == ("[CLS]", "a", "b", "[SEP]", "c", "d", "[SEP]")
    assert found.reading.inputs["token_types"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert found.attribution.complete()
    with torch.no_grad():
        z = loaded.models[0](found.reading.tokens, **found.reading.inputs)
    assert found.attribution.value == pytest.approx(float(score_of(loaded.task.facts, int(z.argmax()))(z)), rel=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_x_input", "occlusion"])
def test_nothing_of_the_model_changes(method):
    """Mode, gradients and random state stay; dropout is off; and it works where gradients are off."""
    loaded = finetuned()
    loaded.models[0].train()
    ask, state = asked(loaded, "abc h"), torch.get_rng_state()
    with torch.no_grad():
        first, again = attribute(ask, method), attribute(ask, method)
    assert (first.scores == again.scores).all() and np.abs(first.scores).max() > 0
    assert loaded.models[0].training
    assert all(p.grad is None for p in loaded.models[0].parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mode_comes_back_after_a_failure():
    loaded = finetuned()
    loaded.models[0].train()
    with pytest.raises(ZeroDivisionError), evaluating(loaded.models[0]):
        raise ZeroDivisionError
    assert loaded.models[0].training


@pytest.mark.parametrize("what", ["frozen", "bfloat16"])
def test_frozen_weights_and_bfloat16_are_explained_too(what):
    loaded = finetuned(num_layers=1)
    truth = attribute(asked(loaded, "abc h"), "integrated_gradients").scores
    if what == "frozen":
        loaded.models[0].requires_grad_(False)
    else:
        loaded.models[0].compute_in(torch.bfloat16)
    found = integrated_gradients(asked(loaded, "abc h"), most_steps=64)
    allowed = 1e-5 if what == "frozen" else 0.05  # 8 bits of a number
    assert found.scores == pytest.approx(truth, abs=allowed * np.abs(truth).max())


@pytest.mark.parametrize(
    "specials, kind, token",
    [
        (ALL_SPECIALS, "encoder", MASK),
        (ALL_SPECIALS, "decoder", PAD),
        (Specials(unk=9), "encoder", 9),
        (Specials(mask=4, unk=9), "decoder", 9),
    ],
)
def test_the_empty_symbol_is_one_that_the_model_met(specials, kind, token):
    assert empty_symbol(specials, kind) == token


def diverged() -> Finetuned:
    loaded = finetuned()
    with torch.no_grad():
        loaded.models[0].head.dense.weight[0, 0] = torch.nan  # pyright: ignore
    return loaded


def seeds() -> Finetuned:
    loaded = finetuned()
    return dataclasses.replace(loaded, models=[*loaded.models, *loaded.models])


def windowed() -> Finetuned:
    loaded = finetuned()
    encoder = TextEncoder(LETTERS, loaded.models[0].config.backbone, TextConfig(long_texts="windows", overlap=2))
    return dataclasses.replace(loaded, encoder=encoder)


@pytest.mark.parametrize(
    "ask, words",
    [
        (
            lambda: explain(finetuned(), "a", label="god"),
            "--label 'god' is none of this run's; it knows bad, good, odd",
        ),
        (lambda: explain(finetuned("regression"), "a", label="x"), "it knows no labels: it predicts a number"),
        (lambda: explain(finetuned(pairs=True), "a"), "the run reads pairs of texts: give --pair"),
        (lambda: explain(finetuned(), "a", "b"), "the run reads single texts: leave out --pair"),
        (lambda: explain(windowed(), "abcd" * 10), "explain reads one window, and the text takes 2"),
        (lambda: explain(seeds(), "a"), "this run holds 2 seeds; give RUN/seed-N"),
        (lambda: score_of(TaskFacts(name="tagging"), 0), "explain attributes one answer a text.*this run is tagging"),
        (lambda: explain(diverged(), "abc"), "NaN or infinite"),
        (lambda: empty_symbol(Specials(), "encoder"), "the tokenizer has none"),
    ],
    ids=["label", "number", "pair", "single", "windows", "seeds", "task", "nan", "empty"],
)
def test_what_cannot_be_explained_is_refused_in_one_line(ask, words):
    with pytest.raises(InputError, match=words):
        ask()
