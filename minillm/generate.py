"""Prompts in, continuations out: one left-padded batch, a key-value cache, text streamed as it becomes complete.

    tokens   pad pad bos  p    p   | new ...      row of a short prompt: starts = 2
             bos  p   p   p    p   | new ...      row of the longest: starts = 0

Left padding puts the last token of every prompt, whose logits come next, in the last column.

Read next: `sampling.py`, then `fill.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minillm.config import setting
from minillm.errors import InputError
from minillm.evaluate import check_finite, inference
from minillm.model.transformer import Decoder, Encoder
from minillm.sampling import SamplingConfig, choose, row_generators
from minillm.tokenizer.base import Tokenizer

Stop = Literal["eos", "stop", "length", "context"]
INCOMPLETE = "\ufffd"  # what bytes that are no UTF-8 yet, or never will be, are decoded to


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """How text is continued: the choice of each token (`SamplingConfig`), and when to end."""

    max_tokens: int = setting(200, "new tokens at most, per prompt")
    stop: tuple[str, ...] = setting((), "texts that end a continuation; they are left out of it")
    seed: int = setting(0, "of the draws; the same seed and prompt give the same text, alone or in a batch")
    use_cache: bool = setting(True, "keep keys and values of earlier tokens; false: compute them again at each step")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if "" in self.stop:
            raise InputError("a stop text must not be empty; leave it out to stop at the end of a document only")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One continuation.

    text: without the prompt, the stop text and control symbols.
    tokens: how many were drawn, with the end-of-document symbol and those of the stop text.
    stop: why it ended: eos (end of document), stop (a stop text), length (max_tokens), context (the model's is full).
    """

    text: str
    tokens: int
    stop: Stop


def generate(
    model: Decoder | Encoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: GenerateConfig | None = None,
    *,
    ends: Collection[int] = (),
    on_text: Callable[[int, str], object] | None = None,
) -> list[Generation]:
    """Continue each prompt, all of them as one batch.

    A prompt is read as the beginning of a document: after the tokenizer's bos where it has one, or after what an
    imported tokenizer's file puts before a text, which may be nothing. Control symbols that do not end a text are never
    drawn. A sequence of n prompt tokens in a context of M gets M - n + 1 new ones at most: the last of them needs no
    place, since nothing is predicted from it.

    Args:
        model: a decoder; its mode and device stay as they are, its compute dtype is used.
        tokenizer: the one that the model was trained with.
        prompts: any number, of unequal length; empty ones need a tokenizer with bos or eos.
        config: None: `GenerateConfig()`.
        ends: tokens that end a text as the tokenizer's eos does: `Loaded.ends` of an imported model.
        on_text: called with (number of the prompt, new text) as soon as text is complete: never with a cut UTF-8
            character, nor with the beginning of a stop text. The pieces of a prompt add up to its `Generation.text`.
    Returns:
        one Generation per prompt, in order.
    Raises:
        InputError: an encoder, a prompt longer than the model's context, an empty prompt without a symbol to begin
            with, or a model whose logits are not finite.

    Cost: one pass over the prompts, then one token per prompt and step; without the cache each step passes over all.
    """
    config = GenerateConfig() if config is None else config
    if not isinstance(model, Decoder):
        raise InputError("generate needs a decoder, this model is an encoder; use fill, with [MASK] in the text")
    rows = [
        _Row(number, _prompt_tokens(tokenizer, prompt, model.config.context), model.config.context, tokenizer, config)
        for number, prompt in enumerate(prompts)
    ]
    ending = frozenset(ends) | {token for token in (tokenizer.specials.eos,) if token is not None}
    if rows:
        with inference(model):
            never = _never_drawn(model, tokenizer, ending)
            _run(model, rows, never, ending, config, row_generators(config.seed, prompts), on_text)
    return [Generation(text=row.stream.text, tokens=row.count, stop=row.ended or "length") for row in rows]


def _run(
    model: Decoder,
    rows: Sequence[_Row],
    never: Tensor,
    ending: frozenset[int],
    config: GenerateConfig,
    generators: Sequence[torch.Generator],
    on_text: Callable[[int, str], object] | None,
) -> None:
    """Draw tokens until every row has ended."""
    B, longest, context = len(rows), max(len(row.prompt) for row in rows), model.config.context
    steps = max(row.limit for row in rows)
    device = model.output_weight.device
    padding = [longest - len(row.prompt) for row in rows]
    # Without padding the model needs no mask, and counts positions itself: rows of one length never pass the context.
    starts = torch.tensor(padding, device=device) if any(padding) else None  # (B,)
    tokens = torch.tensor([[0] * n + row.prompt for n, row in zip(padding, rows, strict=True)], device=device)  # (B, T)
    seen = torch.zeros(B, model.output_weight.shape[0], dtype=torch.bool, device=device)  # (B, V)
    for row, mask in zip(rows, seen, strict=True):
        mask[row.prompt] = True
    cache = model.new_cache(B, longest + steps - 1) if config.use_cache else None
    fed = tokens  # (B, T) at first; with a cache (B, 1) from then on
    for step in range(steps):
        positions = None
        if starts is not None:
            index = torch.arange(longest + step - fed.shape[1], longest + step, device=device)  # (T,)
            # A row that has ended runs on in its column; the upper clamp keeps it inside the table of positions.
            positions = (index - starts[:, None]).clamp(0, context - 1)  # (B, T)
        hidden = model(fed, starts=starts, positions=positions, cache=cache)  # (B, T, C)
        logits = model.project(hidden[:, -1]).float()  # (B, V)
        check_finite(logits)
        new = choose(logits.masked_fill(never, -torch.inf), seen, config, generators)  # (B,) on the CPU
        for row, token in zip(rows, new.tolist(), strict=True):
            fresh = row.take(token, ends=token in ending)
            if fresh and on_text is not None:
                on_text(row.number, fresh)
        if all(row.ended for row in rows):
            return
        new = new.to(device)[:, None]  # (B, 1)
        seen.scatter_(1, new, True)
        tokens = torch.cat([tokens, new], dim=1)
        fed = new if config.use_cache else tokens


def _prompt_tokens(tokenizer: Tokenizer, prompt: str, context: int) -> list[int]:
    """Return a prompt after what stands before a text; what stands after one would end it."""
    specials = tokenizer.specials
    tokens = [*tokenizer.frame("decoder").before, *tokenizer.encode(prompt)]
    if not tokens:  # the end of a document is what stood before the next one
        tokens = [token for token in (specials.bos, specials.eos) if token is not None][:1]
    if not tokens:
        raise InputError("an empty prompt needs a tokenizer with bos or eos, this one has neither; begin with a letter")
    if len(tokens) > context:
        raise InputError(f"the prompt has {len(tokens)} tokens, the model's context is {context}; shorten the prompt")
    return tokens


def _never_drawn(model: Decoder, tokenizer: Tokenizer, ending: frozenset[int]) -> Tensor:
    """Return (V,) bool: control symbols that end no text, and rows of the output weight that stand for no token."""
    never = torch.zeros(model.output_weight.shape[0], dtype=torch.bool)
    never[tokenizer.vocab_size :] = True
    never[sorted(tokenizer.control_ids() - ending)] = True
    return never.to(model.output_weight.device)


class _Row:
    """One prompt and its continuation so far."""

    def __init__(
        self, number: int, prompt: list[int], context: int, tokenizer: Tokenizer, config: GenerateConfig
    ) -> None:
        self.number = number
        self.prompt = prompt
        self.room = context - len(prompt) + 1
        self.limit = min(config.max_tokens, self.room)
        self.stream = TextStream(tokenizer, prompt, config.stop)
        self.count = 0
        self.ended: Stop | None = None

    def take(self, token: int, *, ends: bool) -> str:
        """Add a token, which may end the text, and return what became complete; nothing once the row has ended."""
        if self.ended:
            return ""
        self.count += 1
        fresh = ""
        if ends:
            self.ended = "eos"
        else:
            fresh = self.stream.push(token)
            if self.stream.stopped:
                self.ended = "stop"
            elif self.count == self.limit:
                self.ended = "context" if self.limit == self.room else "length"
        return fresh + self.stream.finish() if self.ended else fresh


class TextStream:
    """Tokens to text, piece by piece, such that what was given out never has to be taken back.

    Two things are held back until the next token decides: bytes that may be the beginning of a UTF-8 character, and
    text that may be the beginning of a stop text. Tokens without a text of their own wait, too: alone before the next
    one they would stand for the beginning of the text, where a piece loses its space.

    Args:
        tokenizer: whose `decode` is called.
        context: tokens before the first one pushed; they decide whether that one brings a space.
        stop: texts that end the stream.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.text = ""  # all of it, without a stop text; the first `given` characters were given out
        self.given = 0
        self.stopped = False
        self.before = list(context)  # decoded text before the pending tokens, kept short
        self.pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain, often none."""
        self.pending.append(token)
        fresh = self._decode_pending()
        if not fresh or fresh.endswith(INCOMPLETE):
            return ""
        self.before, self.pending = self.pending, []
        return self._give(fresh, final=False)

    def finish(self) -> str:
        """Return what was held back: nothing more will come."""
        fresh, self.pending = self._decode_pending(), []
        return self._give("" if self.stopped else fresh, final=True)

    def _decode_pending(self) -> str:
        """Return the text of the pending tokens, decoded after those before them: a first piece may lose its space."""
        return self.tokenizer.decode(self.before + self.pending)[len(self.tokenizer.decode(self.before)) :]

    def _give(self, fresh: str, *, final: bool) -> str:
        """Append text, look for the stop text that is complete first, and return what is certain.

        First by its end: where one stop text lies in another, the result does not depend on where tokens begin.
        """
        self.text += fresh
        if not self.stopped:
            found = [(at + len(s), at) for s in self.stop if (at := self.text.find(s, self.given)) >= 0]
            if found:
                self.text, self.stopped = self.text[: min(found)[1]], True
        certain = len(self.text) if final or self.stopped else len(self.text) - self._undecided()
        out, self.given = self.text[self.given : certain], certain
        return out

    def _undecided(self) -> int:
        """Return how many characters at the end, not given out yet, may begin a stop text."""
        return max(
            (
                n
                for s in self.stop
                for n in range(1, min(len(s) - 1, len(self.text) - self.given) + 1)
                if self.text.endswith(s[:n])
            ),
            default=0,
        )
