"""Prompt and answer: what is asked for, how much of it is left when it is long, and that it can be learnt."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from minillm.data.loader import Loader
from minillm.data.shards import TokenStore
from minillm.errors import InputError
from minillm.finetune.config import TaskConfig
from minillm.finetune.encoding import Truncation
from minillm.finetune.loader import SequenceLoader, collate
from minillm.finetune.scope import prepare
from minillm.finetune.scope_config import ScopeConfig
from minillm.finetune.table import Columns, Table
from minillm.finetune.tasks.prompt_answer import GeneratedAnswers, PromptAnswer, packed, shortened
from minillm.generate import Generation
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

COLUMNS = Columns(text="prompt", label="answer")
BYTES = ByteTokenizer()
BOS, EOS = BYTES.specials.bos, BYTES.specials.eos
ROWS = [("two and two", "four"), ("a", "b"), ("the colour of the sea", "blue, or green"), ("one", "1")]


def table(rows=ROWS):
    columns = {"prompt": [prompt for prompt, _ in rows], "answer": [answer for _, answer in rows]}
    return Table(path="some.csv", columns=columns, lines=range(2, len(rows) + 2))


def make(rows=ROWS, **choices):
    return PromptAnswer.learn(TaskConfig(name="prompt_answer", **choices), table(rows), COLUMNS)


def batch_of(sequences, **choices):
    return collate(sequences, np.arange(len(sequences)), pad=3, **choices)


def test_the_template(task_model):
    """bos, prompt, separator, answer; targets are the answer and eos, each at the place before it."""
    task = make(separator=" = ")
    _, encoder = task_model(task, "decoder")
    sequences = task.encode(table([("ab", "c")]), COLUMNS, encoder, labelled=True)
    a, b, c, space, equals = (7 + ord(character) for character in "abc =")
    assert sequences.tokens.tolist() == [BOS, a, b, space, equals, space, c]
    assert sequences.token_targets.tolist() == [-100] * 5 + [c, EOS]


def test_targets_are_those_of_causal_lm(task_model):
    """The loader of pretraining, given the same document, asks for the same tokens at the same places."""
    task = make()
    _, encoder = task_model(task, "decoder")
    sequences = task.encode(table([ROWS[2]]), COLUMNS, encoder, labelled=True)
    document = np.array([BOS, *BYTES.encode("the colour of the sea\nblue, or green"), EOS], dtype=np.uint16)
    store = TokenStore(tokens=document, bounds=np.array([0, len(document)]), num_bytes=1)
    pretraining = next(Loader(store, context=len(document) - 1, batch_size=1, shift=True).eval_batches(1))
    asked = torch.from_numpy(sequences.token_targets)
    assert torch.equal(pretraining.tokens[0], torch.from_numpy(sequences.tokens).long())
    assert torch.equal(pretraining.targets[0][asked != -100], asked[asked != -100])
    assert int((asked != -100).sum()) == len("blue, or green") + 1


def test_generation_begins_with_the_tokens_of_training(task_model, monkeypatch):
    """What the model has read when the first token of the answer is asked for is what it reads when it writes one."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["the colour of the sea\nblue\n" * 9])
    task = make()
    model, encoder = task_model(task, "decoder", tokenizer=tokenizer)
    sequences = task.encode(table([ROWS[2]]), COLUMNS, encoder, labelled=False)
    read = []
    plain = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda tokens, **rest: read.append(tokens) or plain(tokens, **rest))
    task.predict(model, [], sequences)
    labelled = task.encode(table([ROWS[2]]), COLUMNS, encoder, labelled=True)
    first = int(np.flatnonzero(labelled.token_targets != -100)[0])
    assert read[0][0].tolist() == labelled.tokens[: first + 1].tolist()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_loss_is_the_cross_entropy_of_the_answers(task_model, packing, smoothing):
    """In one pass through the output weight, by the logits, and by PyTorch on each row alone."""
    task = make(packing=packing, label_smoothing=smoothing)
    model, encoder = task_model(task, "decoder")
    batch = batch_of(task.encode(table(), COLUMNS, encoder, labelled=True))
    total, count = 0.0, 0
    for prompt, answer in ROWS:
        whole = [BOS, *BYTES.encode(f"{prompt}\n{answer}"), EOS]
        size = len(answer) + 1
        logits = model.backbone.logits(torch.tensor([whole[:-1]]))[0, -size:]
        total += F.cross_entropy(logits, torch.tensor(whole[-size:]), label_smoothing=smoothing, reduction="sum")
        count += size
    for loss in (task.step(model, batch), task.loss(task.outputs(model, batch), batch)):
        assert int(loss.count) == count
        assert abs(loss.total - total) < 1e-4 * total


def test_packing_saves_rows(task_model):
    """Fewer sequences, none above the model's context, the same targets."""
    plain, dense = make(), make(packing=True)
    _, encoder = task_model(plain, "decoder", context=40)
    apart = plain.encode(table(), COLUMNS, encoder, labelled=True)
    together = dense.encode(table(), COLUMNS, encoder, labelled=True)
    assert len(apart) == 4 and len(together) == 3 and together.lengths.max() <= 40
    assert sorted(apart.token_targets.tolist()) == sorted(together.token_targets.tolist())
    assert together.segments.tolist() == [0] * 17 + [1] * 4 + [0] * 37 + [0] * 6


@given(sizes=st.lists(st.integers(1, 9), max_size=20), room=st.integers(9, 30))
def test_packed_rows(sizes, room):
    """Each row once, in order, and no more than there is room for."""
    rows = packed(sizes, room)
    assert [row for shared in rows for row in shared] == list(range(len(sizes)))
    assert all(sum(sizes[row] for row in shared) <= room for shared in rows)


@pytest.mark.parametrize(
    "prompt, answer, kept_prompt, kept_answer, lost",
    [
        pytest.param("p" * 9, "a" * 9, "p" * 9 + "\n", "a" * 9 + "$", 0, id="just fits"),
        pytest.param("q" + "p" * 9, "a" * 9, "p" * 9 + "\n", "a" * 9 + "$", 1, id="the prompt's beginning"),
        pytest.param("q" * 50 + "p" * 9, "a" * 9, "p" * 9 + "\n", "a" * 9 + "$", 50, id="a long prompt"),
        pytest.param("q" * 50 + "p" * 9, "a" * 30, "p" * 9 + "\n", "a" * 10, 71, id="both long"),
        pytest.param("p", "a" * 30, "p\n", "a" * 18, 13, id="a long answer"),
        pytest.param("p", "a" * 18, "p\n", "a" * 18, 1, id="only eos does not fit"),
    ],
)
def test_what_is_cut(task_model, prompt, answer, kept_prompt, kept_answer, lost):
    """By hand, in a context of 20: bos, 20 more of which the last is only predicted; $ stands for eos."""
    task = make()
    _, encoder = task_model(task, "decoder", context=20)
    sequences = task.encode(table([(prompt, answer)]), COLUMNS, encoder, labelled=True)
    whole = [BOS, *BYTES.encode(kept_prompt), *(EOS if c == "$" else 7 + ord(c) for c in kept_answer)]
    assert sequences.tokens.tolist() == whole[:-1]
    assert sequences.token_targets.tolist() == [-100] * len(kept_prompt) + whole[-len(kept_answer) :]
    assert (sequences.truncation.rows, sequences.truncation.tokens) == (lost > 0, lost)


@given(text=st.text("ab é漢😀", min_size=1, max_size=40), most=st.integers(4, 30))
def test_shortened(text, most):
    """The end of the text, as short as it must be, and not much shorter: a character has four bytes at most."""
    short = shortened(BYTES, text, most)
    size = len(text.encode())
    assert text.endswith(short) and len(short.encode()) <= most
    assert short == text if size <= most else len(short.encode()) > most - 4


def test_a_long_prompt_leaves_room_for_an_answer(task_model):
    """Generation gets as many new tokens as `task.max_new_tokens` says, in a context that the prompt would fill."""
    task = make(max_new_tokens=12)
    model, encoder = task_model(task, "decoder", context=32)
    sequences = task.encode(table([("x" * 90 + "yz", "?")]), COLUMNS, encoder, labelled=False)
    assert sequences.details.asked == ["x" * 16 + "yz\n"]
    (answer,) = task.answers(task.predict(model, [], sequences))
    assert answer["prompt"] == "x" * 90 + "yz"
    assert len(answer["answer"].encode(errors="replace")) >= 1


@pytest.mark.parametrize(
    "labelled, exact_match, said",
    [
        (False, False, "1 of 2 prompts are answered without the first of their tokens, 74 in all: 19 fit beside"),
        (True, True, "1 of 2 prompts are answered without the first of their tokens, 73 in all: 20 fit beside"),
        (True, False, None),
    ],
    ids=["predict", "exact match", "nothing is generated"],
)
def test_what_an_answer_does_not_see_of_its_prompt_is_said(task_model, labelled, exact_match, said):
    """By hand, in a context of 32 with a bos: a prompt of 93 beside 12; the last token of a true answer is not read."""
    task = make(max_new_tokens=12, exact_match=exact_match)
    _, encoder = task_model(task, "decoder", context=32)
    rows = table([("x" * 90 + "yz", "?"), ("x", "?")])
    notes = task.encode(rows, COLUMNS, encoder, labelled=labelled).notes
    assert notes[0].startswith(said) if said else notes == ()


def test_of_prompts_that_are_answered_nothing_is_said_twice(task_model):
    """The note has what generation leaves out; what these sequences have no room for, nobody is answered from."""
    task = make(max_new_tokens=12)
    _, encoder = task_model(task, "decoder", context=32)
    sequences = task.encode(table([("x" * 90 + "yz", "?")]), COLUMNS, encoder, labelled=False)
    assert sequences.truncation == Truncation() and len(sequences.notes) == 1


def test_figures_by_hand():
    """Perplexity, and the share of answers that are the true ones but for white space at the ends."""
    said = [Generation(text=text, tokens=1, stop="eos") for text in (" four", "c", "blue, or green", "")]
    predictions = GeneratedAnswers(
        prompts=[prompt for prompt, _ in ROWS], generations=said, answers=[answer for _, answer in ROWS], loss=0.5
    )
    figures = make().figures(predictions)
    assert figures == {"loss": 0.5, "perplexity": pytest.approx(np.exp(0.5)), "exact_match": 0.5}
    assert set(make().figures(dataclasses.replace(predictions, generations=None))) == {"loss", "perplexity"}


def test_answers_are_learnt(task_model):
    """A tiny decoder learns four answers by heart; generation then writes them, and the evaluation counts them."""
    task = make(exact_match=True, max_new_tokens=20)
    model, encoder = task_model(task, "decoder", width=32)
    model.float()
    model.compute_in(torch.float32)
    sequences = task.encode(table(), COLUMNS, encoder, labelled=True)
    loader = SequenceLoader(sequences, batch_size=4, pad=3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        loss = task.step(model, loader.batch(step))
        (loss.total / loss.count).backward()
        optimiser.step()
        optimiser.zero_grad()
    predictions = task.predict(model, loader.eval_batches(2), sequences)
    assert task.figures(predictions)["exact_match"] == 1.0 and task.figures(predictions)["loss"] < 0.1
    assert [answer["answer"] for answer in task.answers(predictions)] == [answer for _, answer in ROWS]
    assert [answer["stop"] for answer in task.answers(predictions)] == ["eos"] * 4


def test_nothing_is_generated_unasked(task_model):
    """An evaluation costs one pass over the answers; who then wants texts is told what to set."""
    task = make()
    model, encoder = task_model(task, "decoder")
    sequences = task.encode(table(), COLUMNS, encoder, labelled=True)
    predictions = task.predict(model, SequenceLoader(sequences, batch_size=4, pad=3).eval_batches(2), sequences)
    assert predictions.generations is None
    with pytest.raises(ValueError, match="set it"):
        list(task.answers(predictions))


def test_an_encoder_cannot_write(task_model):
    """One line."""
    with pytest.raises(InputError, match="prompt_answer needs a decoder, this model is an encoder"):
        task_model(make(), "encoder")


@pytest.mark.parametrize("scope", [ScopeConfig(top_layers=0), ScopeConfig(unfreeze_every=5)], ids=["head", "gradual"])
def test_there_is_no_head_to_train_alone(task_model, scope):
    """The task has only the model's own head; one layer and more do."""
    model, _ = task_model(make(), "decoder")
    with pytest.raises(InputError, match="the head alone is to train, and this task has none but the model's own"):
        prepare(model, scope)
    prepare(model, ScopeConfig(top_layers=1))
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("rows", [[("", "b")], [("a", " ")]], ids=["prompt", "answer"])
def test_empty_texts(task_model, rows):
    """The row is named."""
    _, encoder = task_model(make(), "decoder")
    with pytest.raises(InputError, match="some.csv line 2: .* is empty"):
        make().encode(table(rows), COLUMNS, encoder, labelled=True)
