"""Continuations are those of a plain loop over whole sequences, and what is streamed never has to be taken back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.errors import InputError
from minillm.generate import GenerateConfig, Generation, TextStream, generate
from minillm.model.config import ModelConfig
from minillm.model.transformer import Decoder, build_model
from minillm.tokenizer.base import Span, Specials, Tokenizer
from minillm.tokenizer.byte import FIRST, ByteTokenizer

BYTES = ByteTokenizer()
EOS = BYTES.specials.eos
UNEQUAL = ["To be, or", "é", "", "not to be: that"]
SHAPES = [
    pytest.param({"position": "learned"}, id="learned"),
    pytest.param({"position": "rotary", "num_kv_heads": 1}, id="rotary-multi-query"),
    pytest.param({"position": "alibi", "window": 3, "global_every": 2}, id="alibi-window"),
]


class Pieces(Tokenizer):
    """Tokens are the given texts; `encode` knows single characters only. No control symbols unless they are given."""

    kind = "char"

    def __init__(self, pieces: Sequence[str], specials: Specials | None = None, *, drops_space: bool = False) -> None:
        self.pieces = list(pieces)
        self.vocab_size = len(self.pieces)
        self.specials = Specials() if specials is None else specials
        self.drops_space = drops_space

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(character) for character in text]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: Sequence[int]) -> str:
        text = "".join(self.pieces[i] for i in ids if i not in self.specials.ids())
        return text.removeprefix(" ") if self.drops_space else text

    def piece(self, token: int) -> str:
        return self.pieces[token]

    def files(self) -> Mapping[str, bytes]:
        return {}


def decoder(vocab_size: int = BYTES.vocab_size, context: int = 48, **choices: Any) -> Decoder:
    """Return a small decoder in float64 whose guesses differ from place to place.

    float64: its sums differ by 1e-15 with padding or a cache, which never decides between two tokens here.
    """
    torch.manual_seed(3)
    shape: dict[str, Any] = {"num_layers": 2, "width": 16, "num_heads": 2, "init_std": 0.5}
    model = build_model(ModelConfig(vocab_size=vocab_size, context=context, **(shape | choices))).double().eval()
    model.compute_in(torch.float64)
    assert isinstance(model, Decoder)
    return model


class Scripted(Decoder):
    """Gives each row the next token of its script, whatever it sees, and `second` as the next best guess."""

    def __init__(self, scripts: Sequence[Sequence[int]], vocab_size: int, context: int = 256, second: int = 0) -> None:
        super().__init__(ModelConfig(vocab_size=vocab_size, context=context, num_layers=1, width=4, num_heads=1))
        self.scripts, self.second, self.step = scripts, second, 0

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (B, V)."""
        logits = torch.zeros(len(hidden), self.config.vocab_size)
        logits[:, self.second] = 5.0
        for row, script in enumerate(self.scripts):
            logits[row, script[min(self.step, len(script) - 1)]] = 9.0
        self.step += 1
        return logits


def by_hand(model: Decoder, prompt: str, config: GenerateConfig) -> Generation:
    """Return the greedy continuation of one prompt: the whole sequence goes through the model for each token."""
    specials = BYTES.specials
    assert specials.bos is not None
    tokens = [specials.bos, *BYTES.encode(prompt)]
    new: list[int] = []
    while True:
        with torch.no_grad():
            logits = model.logits(torch.tensor([tokens]))[0, -1].float()
        for v in set(tokens):
            logits[v] = (
                logits[v] / config.repetition_penalty if logits[v] > 0 else logits[v] * config.repetition_penalty
            )
        logits[[s for s in specials.ids() if s != specials.eos]] = -torch.inf
        new.append(int(logits.argmax()))
        tokens.append(new[-1])
        ends = {
            "eos": new[-1] == specials.eos,
            "context": len(tokens) > model.config.context,
            "length": len(new) == config.max_tokens,
        }
        for stop, reached in ends.items():
            if reached:
                return Generation(text=BYTES.decode(new), tokens=len(new), stop=stop)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("choices", SHAPES)
def test_greedy_is_the_loop_by_hand(choices, penalty, use_cache):
    """Prompts of unequal length in one batch, up to the end of each one's context, give what the plain loop gives."""
    model = decoder(context=24, **choices)
    config = GenerateConfig(temperature=0.0, repetition_penalty=penalty, max_tokens=20, use_cache=use_cache)
    expected = [by_hand(model, prompt, config) for prompt in UNEQUAL]
    assert {"context", "length"} <= {one.stop for one in expected}  # the long prompts reach the end, the short do not
    assert generate(model, BYTES, UNEQUAL, config) == expected


@pytest.mark.parametrize("choices", SHAPES)
def test_samples_are_alike_alone_and_in_a_batch_with_and_without_cache(choices):
    """The same seed and prompt give the same text in any company, and the cache changes nothing."""
    model = decoder(**choices)
    settings = {"temperature": 1.3, "top_p": 0.95, "max_tokens": 30, "seed": 11}
    together = generate(model, BYTES, UNEQUAL, GenerateConfig(**settings))
    alone = [generate(model, BYTES, [prompt], GenerateConfig(**settings))[0] for prompt in UNEQUAL]
    slow = generate(model, BYTES, UNEQUAL, GenerateConfig(**settings, use_cache=False))
    other = generate(model, BYTES, UNEQUAL, GenerateConfig(**(settings | {"seed": 12})))
    assert together == alone == slow
    assert all(a.text != b.text for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("text", ["abcabd", "aaab", "xbcx"])
@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(("abd",), id="begins-twice"),
        pytest.param(("bca", "c"), id="one-in-the-other"),
        pytest.param(("aab", "aaaa"), id="overlaps-itself"),
        pytest.param(("d", "abd"), id="same-end"),
        pytest.param(("zz", "b"), id="one-never-comes"),
        pytest.param((), id="none"),
    ],
)
def test_stop_texts_are_found_across_all_token_bounds_and_never_shown(text, stop):
    """However the text is cut into tokens, what was given out is at each moment a part of the final text."""
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    cuts = range(1, len(text))
    for chosen in itertools.chain.from_iterable(itertools.combinations(cuts, n) for n in range(len(text))):
        edges = [0, *chosen, len(text)]
        stream = TextStream(Pieces([text[a:b] for a, b in itertools.pairwise(edges)]), [], stop)
        shown = ""
        for token in range(len(edges) - 1):
            shown += stream.push(token)
            assert expected.startswith(shown)
            if stream.stopped:
                break
        shown += stream.finish()
        assert shown == stream.text == expected
        assert stream.stopped == bool(ends)


def test_text_that_cannot_be_a_stop_text_is_given_at_once():
    """Only what may begin a stop text is held back, for as long as it may."""
    stream = TextStream(Pieces(list("abcd")), [], ("bcd",))
    assert [stream.push(token) for token in (0, 1, 2, 0, 3)] == ["a", "", "", "bca", "d"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("aé€😀z".encode(), id="valid"),
        pytest.param("é".encode()[:1] + b"a", id="cut-character"),
        pytest.param(b"\xff\xfe\x80" + "€".encode(), id="never-valid"),
        pytest.param("😀".encode()[:3], id="cut-at-the-end"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_cut_character_is_held_back(data):
    """Bytes come out when they are a character or never can be; the pieces add up to Python's own decoding."""
    stream = TextStream(BYTES, BYTES.encode("before "))
    pieces = [stream.push(FIRST + byte) for byte in data]
    last = stream.finish()
    expected = data.decode(errors="replace")
    assert "".join(pieces) + last == stream.text == expected
    for n in range(len(data) + 1):
        assert expected.startswith("".join(pieces[:n]))
    if "\ufffd" not in expected:
        assert not last
        assert [p for p in pieces if p] == list(expected)


@pytest.mark.parametrize("context, expected", [([], ["the", " cat"]), ([2], [" the", " cat"])], ids=["first", "later"])
def test_only_the_first_piece_of_a_text_loses_its_space(context, expected):
    """A tokenizer that drops the first space does so at the beginning of the prompt, not of each piece."""
    stream = TextStream(Pieces([" the", " cat", "I"], drops_space=True), context)
    assert [stream.push(0), stream.push(1)] == expected


@pytest.mark.parametrize("context", [[], [2]], ids=["first", "later"])
def test_a_token_without_a_text_does_not_begin_the_text_anew(context):
    """Such as a control symbol that only an imported file knows: the piece after it keeps its space."""
    stream = TextStream(Pieces([" the", " cat", "I", ""], drops_space=True), context)
    assert "".join(map(stream.push, (3, 0, 3, 3, 1))) + stream.finish() == ("the cat" if not context else " the cat")


def test_what_is_streamed_is_the_text():
    """For each prompt the pieces add up to its text, a stop text is left out, and a row that has ended stays silent."""
    scripts = [
        [*BYTES.encode("naïve STOP more"), EOS],
        [*BYTES.encode("€ STO"), EOS],  # ends while its last characters could still become a stop text
        BYTES.encode("12345678901234567890"),
    ]
    model = Scripted(scripts, BYTES.vocab_size)
    pieces: list[tuple[int, str]] = []
    config = GenerateConfig(temperature=0.0, stop=("STOP",), max_tokens=20)
    out = generate(model, BYTES, ["a", "bb", ""], config, on_text=lambda *piece: pieces.append(piece))
    assert [(g.text, g.stop) for g in out] == [("naïve ", "stop"), ("€ STO", "eos"), ("12345678901234567890", "length")]
    assert [g.tokens for g in out] == [len("naïve STOP".encode()), len("€ STO".encode()) + 1, 20]
    for number, generation in enumerate(out):
        assert "".join(text for at, text in pieces if at == number) == generation.text
    assert all(text and "\ufffd" not in text for _, text in pieces)


@pytest.mark.parametrize("length, tokens", [(1, 8), (5, 4), (8, 1)], ids=["short", "middle", "full"])
def test_the_end_of_the_context_is_reported(length, tokens):
    """n prompt tokens in a context of M leave M - n + 1 new ones, the last of which needs no place."""
    model = Scripted([BYTES.encode("x")], BYTES.vocab_size, context=8)
    (out,) = generate(model, BYTES, ["y" * (length - 1)], GenerateConfig(max_tokens=100))
    assert (out.tokens, out.stop, out.text) == (tokens, "context", "x" * tokens)


def test_control_symbols_and_rows_without_a_token_are_never_drawn():
    """The likeliest id that stands for text is taken, also where the output weight has more rows than tokens."""
    letter = FIRST + ord("k")
    for banned in [s for s in BYTES.specials.ids() if s != EOS] + [BYTES.vocab_size, BYTES.vocab_size + 1]:
        model = Scripted([[banned]], BYTES.vocab_size + 2, second=letter)
        assert generate(model, BYTES, ["a"], GenerateConfig(temperature=0.0, max_tokens=2))[0].text == "kk"


def test_a_control_symbol_without_a_role_is_drawn_only_where_it_ends_a_text():
    """As an imported file may have some: none of `Specials`, but symbols all the same."""
    tokenizer = Pieces(["a", "b", "<|im_end|>", "</s>"], Specials(eos=3))
    tokenizer.control_ids = lambda: {2, 3}
    config = GenerateConfig(temperature=0.0, max_tokens=3)
    wanted = {(): ("bbb", 3, "length"), (2,): ("b", 2, "eos"), (2, 3): ("b", 2, "eos")}
    for ends, found in wanted.items():
        (out,) = generate(Scripted([[1, 2, 1]], 4, second=1), tokenizer, ["a"], config, ends=ends)
        assert (out.text, out.tokens, out.stop) == found
    (out,) = generate(Scripted([[1, 3, 1]], 4, second=1), tokenizer, ["a"], config, ends=(2,))
    assert (out.text, out.stop) == ("b", "eos")  # the tokenizer's own stays one


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("prompts, padded", [(["ab", "cd"], False), (["ab"], False), (["a", "bcd"], True)])
def test_only_padding_brings_a_mask(prompts, padded, use_cache, monkeypatch):
    """Prompts of one length go through the model without starts, so that attention needs no mask."""
    given = []
    forward = Decoder.forward

    def spy(model: Decoder, tokens: Tensor, **inputs: Any) -> Tensor:
        given.append(inputs["starts"])
        return forward(model, tokens, **inputs)

    monkeypatch.setattr(Decoder, "forward", spy)
    generate(decoder(), BYTES, prompts, GenerateConfig(max_tokens=4, use_cache=use_cache))
    assert len(given) == 4
    assert all((starts is not None) == padded for starts in given)


def test_an_empty_prompt_begins_with_what_the_tokenizer_has():
    """bos, or eos where there is no bos, which is what stood before each document in training."""
    for specials in (Specials(bos=2), Specials(eos=2)):
        tokenizer = Pieces(["a", "b", "</s>"], specials)
        model = decoder(vocab_size=3)
        with torch.no_grad():
            logits = model.logits(torch.tensor([[2]]))[0, -1]
        if specials.eos is None:
            logits[2] = -torch.inf
        (out,) = generate(model, tokenizer, [""], GenerateConfig(temperature=0.0, max_tokens=1))
        assert out.text == tokenizer.decode([int(logits.argmax())])


def test_nothing_else_changes():
    """No prompts give nothing; mode, weights and PyTorch's random state stay as they were."""
    model = decoder(dropout=0.5).train()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    assert generate(model, BYTES, []) == []
    first = generate(model, BYTES, ["ab"], GenerateConfig(max_tokens=5))
    assert first == generate(model, BYTES, ["ab"], GenerateConfig(max_tokens=5))  # dropout is off
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


def broken(value: float) -> Decoder:
    """Return a decoder that has `value` among its weights."""
    model = decoder()
    with torch.no_grad():
        model.output_weight[FIRST + 65, 0] = value
    return model


def encoder():
    """Return a tiny encoder."""
    return build_model(ModelConfig(kind="encoder", vocab_size=300, context=8, num_layers=1, width=4, num_heads=1))


@pytest.mark.parametrize(
    "ask, message",
    [
        pytest.param(
            lambda: generate(decoder(context=8), BYTES, ["a", "too long a prompt"]),
            r"^the prompt has 18 tokens, the model's context is 8; shorten the prompt$",
            id="prompt-beyond-context",
        ),
        pytest.param(
            lambda: generate(decoder(vocab_size=2), Pieces("ab"), ["a", ""]),
            "^an empty prompt needs a tokenizer with bos or eos",
            id="empty-prompt",
        ),
        pytest.param(lambda: generate(encoder(), BYTES, ["a"]), "^generate needs a decoder.*use fill", id="encoder"),
        pytest.param(lambda: GenerateConfig(max_tokens=0), "^max_tokens must be at least 1, got 0$", id="max-tokens-0"),
        pytest.param(lambda: GenerateConfig(stop=("a", "")), "^a stop text must not be empty", id="empty-stop"),
        pytest.param(lambda: generate(broken(torch.nan), BYTES, ["a"]), "^the model gives NaN", id="nan"),
        pytest.param(lambda: generate(broken(torch.inf), BYTES, ["a"]), "^the model gives NaN or inf", id="infinity"),
    ],
)
def test_what_cannot_be_continued_is_refused_in_one_line(ask, message):
    """The line says what came and what to do."""
    with pytest.raises(InputError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)
