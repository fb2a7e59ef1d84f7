"""Candidates for a hole are the model's own probabilities there, and a text cannot bring control symbols along."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minillm.errors import InputError
from minillm.fill import fill, tokens_with_holes
from minillm.model.config import ModelConfig
from minillm.model.transformer import Encoder, build_model
from minillm.tokenizer.base import ALL_SPECIALS, Specials, Tokenizer
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.character import CharacterTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

LETTERS = CharacterTokenizer("abc []MASKCLSEP<>s/.")
CLS, SEP, MASK = ALL_SPECIALS.cls, ALL_SPECIALS.sep, ALL_SPECIALS.mask


def encoder(vocab_size: int = LETTERS.vocab_size, **choices: Any) -> Encoder:
    """Return a tiny encoder whose guesses are far from alike."""
    torch.manual_seed(5)
    shape: dict[str, Any] = {"context": 32, "num_layers": 2, "width": 16, "num_heads": 2, "init_std": 0.5}
    model = build_model(ModelConfig(kind="encoder", vocab_size=vocab_size, **(shape | choices)))
    assert isinstance(model, Encoder)
    return model.eval()


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """Return a BPE tokenizer of a few words."""
    text = ["the cat sat on the mat. the dog sat on the log.\n"] * 20
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300, threads=1), text)


@pytest.mark.parametrize("head", ["linear", "transform"])
@pytest.mark.parametrize("text", ["a[MASK]c", "[MASK]", "[MASK][MASK] b [MASK]"], ids=["middle", "alone", "several"])
def test_probabilities_are_the_softmax_at_the_hole(text, head):
    """Each candidate has its share of softmax over all V logits; control symbols keep theirs: less than 1 is left."""
    model = encoder(head=head, vocab_size=LETTERS.vocab_size + 3)  # three rows stand for no token
    tokens, holes = [CLS], []
    for n, part in enumerate(text.split("[MASK]")):
        if n:
            holes.append(len(tokens))
            tokens.append(MASK)
        tokens += LETTERS.encode(part)
    with torch.no_grad():
        truth = model.logits(torch.tensor([[*tokens, SEP]]))[0].double().softmax(-1)  # (T, V)
    filled = fill(model, LETTERS, text, top_k=1000)
    assert len(filled.holes) == len(holes) == text.count("[MASK]")
    for hole, candidates in zip(holes, filled.holes, strict=True):
        expected = {LETTERS.alphabet[i]: float(truth[hole, 7 + i]) for i in range(len(LETTERS.alphabet))}
        found = {candidate.piece: candidate.probability for candidate in candidates}
        assert found == pytest.approx(expected, rel=1e-5)  # float32 logits of size 10
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert 0 < sum(found.values()) < 1
    best = iter([candidates[0].piece for candidates in filled.holes])
    assert filled.text == "".join(next(best) if part == "\0" else part for part in text.replace("[MASK]", "\0"))


@pytest.mark.parametrize("top_k, count", [(1, 1), (3, 3), (5, 5), (100, len(LETTERS.alphabet))])
def test_as_many_candidates_as_asked_for_and_no_control_symbol(top_k, count):
    """However many are asked for, only pieces of text come."""
    (hole,) = fill(encoder(), LETTERS, "ab[MASK]", top_k=top_k).holes
    assert len(hole) == count
    assert {candidate.piece for candidate in hole} <= set(LETTERS.alphabet)


def test_a_control_symbol_without_a_role_is_no_candidate(monkeypatch):
    """As an imported file may have some: none of `Specials`, but symbols all the same."""
    one, *rest = LETTERS.alphabet
    monkeypatch.setattr(LETTERS, "control_ids", lambda: {*ALL_SPECIALS.ids(), *LETTERS.encode(one)})
    (hole,) = fill(encoder(), LETTERS, "ab[MASK]", top_k=1000).holes
    assert sorted(candidate.piece for candidate in hole) == sorted(rest)


def test_a_piece_of_vanishing_probability_still_comes_before_a_control_symbol():
    """Shares that are rounded to 0 in float32 do not let control symbols in."""
    model = encoder(head_bias=True)
    assert model.output_bias is not None
    with torch.no_grad():
        model.output_bias[7:] = -1000.0
    (hole,) = fill(model, LETTERS, "[MASK]", top_k=100).holes
    assert {(c.piece, c.probability) for c in hole} == {(letter, 0.0) for letter in LETTERS.alphabet}


@pytest.mark.parametrize("name", ["[CLS]", "[SEP]", "<s>", "</s>", "[ MASK]", "[MASK", "MASK]"])
@pytest.mark.parametrize(
    "make", [lambda _: LETTERS, lambda _: ByteTokenizer(), lambda w: w], ids=["char", "byte", "bpe"]
)
def test_text_cannot_bring_control_symbols(make, name, words):
    """The names of control symbols in a text are characters; only [MASK] itself is a hole."""
    tokenizer = make(words)
    tokens, holes = tokens_with_holes(tokenizer, f"a{name}b[MASK]c")
    control = [(at, token) for at, token in enumerate(tokens) if token in ALL_SPECIALS.ids() and token != 0]
    assert control == [(0, CLS), (holes[0], MASK), (len(tokens) - 1, SEP)]
    assert tokenizer.decode(tokens[: holes[0]]) == f"a{name}b"


def test_the_space_before_a_hole_belongs_to_its_piece(words):
    """With pieces that begin with their space, the tokens around the hole are those of the text with the word in it."""
    whole = [CLS, *words.encode("the cat sat."), SEP]
    for text in ("the [MASK] sat.", "the[MASK] sat."):
        tokens, (hole,) = tokens_with_holes(words, text)
        assert words.piece(whole[hole]) == " cat"
        assert tokens == [*whole[:hole], MASK, *whole[hole + 1 :]]
    tokens, (hole,) = tokens_with_holes(LETTERS, "a [MASK] b")  # characters have no space of their own
    assert tokens == [CLS, *LETTERS.encode("a "), MASK, *LETTERS.encode(" b"), SEP]


def test_a_tokenizer_without_cls_and_sep_adds_none():
    """What the tokenizer does not have is left out."""
    tokenizer = CharacterTokenizer("ab")
    tokenizer.specials = Specials(mask=4)
    assert tokens_with_holes(tokenizer, "a[MASK]b") == ([7, 4, 8], [1])


def test_mode_and_random_state_stay():
    """Dropout is off for the pass, and the model is in training mode again afterwards."""
    model, state = encoder(dropout=0.5).train(), torch.get_rng_state()
    assert fill(model, LETTERS, "a[MASK]") == fill(model, LETTERS, "a[MASK]")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def diverged() -> Encoder:
    """Return an encoder with a NaN among its weights."""
    model = encoder()
    with torch.no_grad():
        model.output_weight[9, 0] = torch.nan
    return model


def decoder():
    """Return a tiny decoder."""
    return build_model(ModelConfig(vocab_size=LETTERS.vocab_size, context=8, num_layers=1, width=4, num_heads=1))


def without_mask() -> CharacterTokenizer:
    """Return a tokenizer that has no mask symbol."""
    tokenizer = CharacterTokenizer("ab")
    tokenizer.specials = Specials(bos=1)
    return tokenizer


@pytest.mark.parametrize(
    "ask, message",
    [
        pytest.param(lambda: fill(decoder(), LETTERS, "[MASK]"), "^fill needs an encoder.*use generate", id="decoder"),
        pytest.param(lambda: fill(encoder(), LETTERS, "abc"), r"^the text has no \[MASK\]; write", id="no-hole"),
        pytest.param(lambda: fill(encoder(), LETTERS, ""), r"^the text has no \[MASK\]", id="empty"),
        pytest.param(
            lambda: fill(encoder(context=8), LETTERS, "abcabc[MASK]"),
            "^the text has 9 tokens, the model's context is 8; shorten it$",
            id="beyond-context",
        ),
        pytest.param(
            lambda: fill(encoder(), LETTERS, "[MASK]", top_k=0), "^top_k must be at least 1, got 0", id="top-k-0"
        ),
        pytest.param(
            lambda: fill(encoder(), without_mask(), "[MASK]"), "^fill needs a tokenizer with a mask", id="no-mask"
        ),
        pytest.param(lambda: fill(diverged(), LETTERS, "[MASK]"), "^the model gives NaN", id="nan"),
    ],
)
def test_what_cannot_be_filled_is_refused_in_one_line(ask, message):
    """The line says what came and what to do."""
    with pytest.raises(InputError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)
