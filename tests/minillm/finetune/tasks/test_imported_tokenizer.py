"""Tagging and question answering with a WordPiece tokenizer from elsewhere: it drops characters and lowers the case."""

from __future__ import annotations

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.finetune.config import TaskConfig, TaskFacts, TextConfig
from minillm.finetune.encoding import TextEncoder
from minillm.finetune.table import Columns, Table
from minillm.finetune.tasks.prompt_answer import PromptAnswer
from minillm.finetune.tasks.question_answering import QuestionAnswering, covering_tokens
from minillm.finetune.tasks.single_label import SingleLabel
from minillm.finetune.tasks.tagging import word_pieces
from minillm.model.config import ModelConfig
from minillm.tokenizer.frame import frame_of_file
from minillm.tokenizer.hf import import_tokenizer


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return import_tokenizer(minilm)


def test_a_word_has_its_pieces(tokenizer):
    """What stands before it is no token of its own."""
    pieces = word_pieces(tokenizer, 9, "  ", "Zürich-West")
    assert [tokenizer.piece(token) for token in pieces.tokens] == ["zurich", "-", "west"]
    assert (pieces.first, pieces.last, pieces.lost) == (0, 2, 0)


@pytest.mark.parametrize("word", ["\u200b", "\x00"], ids=["zero width", "NUL"])
def test_a_word_that_is_dropped_is_unknown(tokenizer, word):
    """It keeps its place and its tag."""
    assert word_pieces(tokenizer, 9, " ", word).tokens == (tokenizer.specials.unk,)


def test_without_an_unknown_token(tokenizer, monkeypatch):
    """The word is named."""
    monkeypatch.setattr(tokenizer, "specials", type(tokenizer.specials)())
    with pytest.raises(InputError, match="no token for the word"):
        word_pieces(tokenizer, 9, " ", "\u200b")


def test_an_answer_has_its_tokens(tokenizer):
    """Those that cover the characters of the original text, accents and all."""
    context = "She lives in  Zürich, by the lake."
    ids, spans = tokenizer.encode_with_offsets(context)
    start = context.index("Zürich")
    first, last = covering_tokens(np.array(spans), start, start + len("Zürich"))
    assert [tokenizer.piece(token) for token in ids[first : last + 1]] == ["zurich"]


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "not"])
def test_a_context_that_is_dropped_is_named(tokenizer, labelled):
    """Also among others, and where an answer is said to be in it: nothing of it could be an answer."""
    columns = {"question": ["Where?", "Where?"], "context": ["By the sea.", "\u200b"]}
    columns["answers"] = [[], [{"text": "\u200b", "answer_start": 0}]]
    table = Table(path="faq.jsonl", columns=columns, lines=[1, 2])
    encoder = TextEncoder(tokenizer, ModelConfig(kind="encoder", width=8, num_heads=1, token_types=2), TextConfig())
    task = QuestionAnswering(TaskConfig(), TaskFacts(name="question_answering", pairs=True))
    with pytest.raises(InputError, match="faq.jsonl line 2: the tokenizer leaves nothing of the context"):
        task.encode(table, Columns(text="question", pair="context", label="answers"), encoder, labelled=labelled)


@pytest.mark.parametrize(
    "task, column",
    [
        pytest.param(SingleLabel(TaskConfig(), TaskFacts(name="single_label", labels=("a", "b"))), "text", id="text"),
        pytest.param(PromptAnswer(TaskConfig(), TaskFacts(name="prompt_answer", separator="")), "prompt", id="prompt"),
    ],
)
def test_a_text_that_is_dropped_and_has_no_frame_is_named(tokenizer, monkeypatch, task, column):
    """A decoder without a symbol before a text would be given no token at all; with one it reads that."""
    table = Table(path="texts.txt", columns={column: ["By the sea.", "\u200b"]}, lines=[1, 2])
    decoder = ModelConfig(kind="decoder", width=8, num_heads=1)
    framed = task.encode(table, Columns(text=column), TextEncoder(tokenizer, decoder, TextConfig()), labelled=False)
    assert framed.lengths.min() > 0
    monkeypatch.setattr(tokenizer, "frame", lambda reader, *, pair=False: frame_of_file(None, pair=pair))
    with pytest.raises(InputError, match=f"texts.txt line 2: the tokenizer leaves nothing of the {column} '.u200b'"):
        task.encode(table, Columns(text=column), TextEncoder(tokenizer, decoder, TextConfig()), labelled=False)


def test_a_text_is_framed_as_bert_was_trained(tokenizer):
    """[CLS] A [SEP] B [SEP], as transformers' tokenizer gives it."""
    encoder = TextEncoder(tokenizer, ModelConfig(kind="encoder", width=8, num_heads=1, token_types=2), TextConfig())
    sequences = encoder.sequences(["The cat."], ["A dog."])
    assert [tokenizer.piece(token) for token in sequences.tokens] == "[CLS] the cat . [SEP] a dog . [SEP]".split()
    assert sequences.token_types.tolist() == [0] * 5 + [1] * 4
