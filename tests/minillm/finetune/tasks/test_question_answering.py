"""Question answering: answers are slices of their contexts, found again through tokens, windows and padding."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import InputError
from minillm.finetune.config import TaskConfig
from minillm.finetune.loader import SequenceLoader, collate
from minillm.finetune.table import Columns, Table
from minillm.finetune.tasks.question_answering import (
    Answer,
    AnswerPredictions,
    Candidate,
    QuestionAnswering,
    best_pairs,
    covering_tokens,
    read_answers,
    trimmed,
)
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.frame import frame_of_file
from minillm.tokenizer.training import train_tokenizer

COLUMNS = Columns(text="question", pair="context", label="answers")
CONTEXT = "Ada Lovelace wrote the first program in 1843, 在 London 。 It was printed  twice — é."


def table(rows):
    """Rows of (question, context, texts of answers that stand there once)."""
    answers = [[{"text": text, "answer_start": context.index(text)} for text in texts] for _, context, texts in rows]
    columns = {"question": [row[0] for row in rows], "context": [row[1] for row in rows], "answers": answers}
    return Table(path="some.json", columns=columns, lines=range(1, len(rows) + 1))


ROWS = [
    ("Who?", CONTEXT, ["Ada Lovelace"]),
    ("When?", CONTEXT, ["1843"]),
    ("Where?", CONTEXT, ["在 London 。"]),
    ("How often?", CONTEXT, ["twice"]),
    ("What comes last?", CONTEXT, ["é."]),
    ("Why?", CONTEXT, []),
    ("Short?", "Yes", ["Yes"]),
]


def config(**choices):
    return TaskConfig(name="question_answering", **choices)


def evaluate(task, model, sequences, rows=3):
    return task.predict(model, SequenceLoader(sequences, batch_size=1, pad=3).eval_batches(rows), sequences)


@pytest.fixture(scope="module")
def pieces():
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=330), [f"{CONTEXT} twice\n" * 9])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("context", [48, 80, 512])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_who_knows_all_places_gets_all_right(task_model, all_knowing, pieces, kind, context, tokenizer):
    """Exact answers from the windows that have them, none from the others, nothing where there is none."""
    tokenizer = ByteTokenizer() if tokenizer == "byte" else pieces
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    model, encoder = task_model(task, kind, context=context, tokenizer=tokenizer, text={"overlap": 20})
    sequences = task.encode(table(ROWS), COLUMNS, encoder, labelled=True)
    assert sequences.lengths.max() <= context and sequences.notes == ()
    assert len(sequences) > len(ROWS) or context > 48
    all_knowing(task)
    predictions = evaluate(task, model, sequences)
    figures = task.figures(predictions)
    assert figures["exact"] == figures["f1"] == figures["no_answer"] == figures["best_f1"] == 1.0
    assert figures["loss"] < 1e-3
    for answer, (_, text, expected) in zip(task.answers(predictions), ROWS, strict=True):
        assert answer["answer"] == (expected[0] if expected else "")
        assert answer["start"] is None or text[answer["start"] : answer["stop"]] == answer["answer"]
        assert answer["probability"] > 0.9
        for candidate in answer["candidates"]:
            assert text[candidate["start"] : candidate["stop"]] == candidate["text"] == candidate["text"].strip() != ""


@pytest.mark.parametrize("kind, none", [("encoder", 0), ("decoder", -1)])
def test_places_of_targets(task_model, kind, none):
    """The first and the last byte of the answer; without one cls, or a decoder's last token, which has seen all."""
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    _, encoder = task_model(task, kind, context=512)
    sequences = task.encode(table(ROWS), COLUMNS, encoder, labelled=True)
    assert sequences.targets is not None
    first = sequences.tokens[: sequences.bounds[1]].tolist()
    begin, end = sequences.targets[0].tolist()
    assert bytes(token - 7 for token in first[begin : end + 1]).decode() == "Ada Lovelace"
    assert sequences.targets[5].tolist() == [none % sequences.lengths[5]] * 2


@pytest.mark.parametrize("context", [48, 512])
def test_no_answer_has_a_place_of_its_own_where_a_decoder_frames_nothing(task_model, all_knowing, monkeypatch, context):
    """As GPT-2's tokenizer: there an eos comes behind the context, whose last token may be an answer."""
    tokenizer = ByteTokenizer()
    monkeypatch.setattr(tokenizer, "frame", lambda reader, *, pair=False: frame_of_file(None, pair=pair))
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    choices = {"context": context, "tokenizer": tokenizer, "token_types": 2}
    model, encoder = task_model(task, "decoder", **choices, text={"overlap": 20})
    sequences = task.encode(table(ROWS), COLUMNS, encoder, labelled=True)
    assert sequences.lengths.max() <= context and len(sequences.token_types) == len(sequences.tokens)
    assert (sequences.tokens[sequences.bounds[1:] - 1] == tokenizer.specials.eos).all()
    assert sequences.targets[-1].tolist() == [6, 8]  # "Short?" and "Yes"
    all_knowing(task)
    figures = task.figures(evaluate(task, model, sequences))
    assert figures["exact"] == figures["no_answer"] == 1.0


def test_two_texts_have_two_types(task_model):
    """0 for cls, question and sep, 1 for the rest; a model without types gets none."""
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    _, encoder = task_model(task, context=512, token_types=2)
    types = task.encode(table(ROWS[6:]), COLUMNS, encoder, labelled=True).token_types
    assert types is not None and types.tolist() == [0] * 8 + [1] * 4
    _, encoder = task_model(task, context=512)
    assert task.encode(table(ROWS[6:]), COLUMNS, encoder, labelled=True).token_types is None


def test_an_answer_inside_a_token_is_counted(task_model, pieces):
    """The tokens around it are learnt, the note says how many there are."""
    rows = [("What?", CONTEXT, ["ovelac"]), ("Who?", CONTEXT, ["Ada Lovelace"])]
    task = QuestionAnswering.learn(config(), table(rows), COLUMNS)
    _, encoder = task_model(task, context=512, tokenizer=pieces)
    sequences = task.encode(table(rows), COLUMNS, encoder, labelled=True)
    assert sequences.notes == (
        "some.json: answers that begin or end inside a token: 1; the tokens around them are learnt",
    )
    begin, end = sequences.targets[0]
    covered = "".join(pieces.piece(int(token)) for token in sequences.tokens[begin : end + 1])
    assert "ovelac" in covered and len(covered) > len("ovelac")


def test_an_answer_longer_than_a_window_is_counted(task_model):
    """It is in no window, so that every window says no answer."""
    rows = [("Who?", "a" * 90, ["a" * 60])]
    task = QuestionAnswering.learn(config(), table(rows), COLUMNS)
    _, encoder = task_model(task, context=40)
    sequences = task.encode(table(rows), COLUMNS, encoder, labelled=True)
    assert "answers that no window has as a whole: 1" in sequences.notes[0]
    assert not sequences.targets.any()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_windows_that_have_the_whole_answer_are_asked_for_it_and_no_others(task_model, kind):
    """A letter is a token, so windows say by their letters what they have: three at every place of a long context."""
    context = "abcdefghijklmnopqrstuvwxyz"
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    _, encoder = task_model(task, kind, context=16, text={"overlap": 1})
    rows = [("?", context, [context[place : place + 3]]) for place in range(len(context) - 2)]
    sequences = task.encode(table(rows), COLUMNS, encoder, labelled=True)
    details, numbers = sequences.details, []
    for number, row in enumerate(sequences.rows):
        (letters,) = rows[row][2]
        window = "".join(context[start:stop] for start, stop in details.spans[number])
        first, last = details.none[number], details.none[number]
        if letters in window:
            first = details.first[number] + window.index(letters)
            last = first + 2
        numbers.append((first, last))
    assert sequences.targets.tolist() == [list(pair) for pair in numbers]
    assert len(sequences) > 2 * len(rows) and "as a whole" in sequences.notes[0]


def test_an_answer_in_several_windows_has_the_best_of_their_scores(task_model, monkeypatch):
    """And no answer the lowest: by hand over all pairs of all windows, whose logits are drawn."""
    context = "abcdefghijklmnopqrstuvwxyz"
    task = QuestionAnswering.learn(config(candidates=999, max_answer_tokens=3), table(ROWS), COLUMNS)
    model, encoder = task_model(task, context=20, text={"overlap": 7})
    sequences = task.encode(table([("?", context, ["abc"])]), COLUMNS, encoder, labelled=True)
    logits = [torch.randn(2, 20, generator=torch.Generator().manual_seed(n)) for n in range(len(sequences))]
    following = iter(logits)
    monkeypatch.setattr(task, "outputs", lambda model, batch: next(following)[None, :, : batch.tokens.shape[1]])
    places = [(np.array([n]), collate(sequences, np.array([n]))) for n in range(len(sequences))]
    said = task.predict(model, places, sequences)
    (found,), (none,) = said.candidates, said.none
    scores, details = {}, sequences.details
    for (start, stop), spans, begin in zip(logits, details.spans, details.first, strict=True):
        for i, j in itertools.product(range(len(spans)), range(len(spans))):
            if i <= j < i + 3:
                text = context[spans[i][0] : spans[j][1]]
                scores[text] = max(scores.get(text, -np.inf), float(start[begin + i] + stop[begin + j]))
    assert len(sequences) == 3 and [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert {c.text: c.score for c in found} == pytest.approx(scores)
    assert none == pytest.approx(min(float(drawn[:, 0].sum()) for drawn in logits))


def test_a_long_question_keeps_half_of_the_room(task_model):
    """The rest is reported as cut; the context keeps its own half."""
    rows = [("q" * 100, "Ada wrote.", ["Ada"])]
    task = QuestionAnswering.learn(config(), table(rows), COLUMNS)
    _, encoder = task_model(task, context=43)  # 40 beside cls, sep, sep
    sequences = task.encode(table(rows), COLUMNS, encoder, labelled=True)
    assert (sequences.truncation.rows, sequences.truncation.tokens) == (1, 80)
    assert sequences.lengths.tolist() == [33]


@given(
    logits=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=12),
    most=st.integers(1, 14),
)
def test_all_pairs_are_looked_at(logits, most):
    """Against the list of all pairs, sorted: valid ones only, each once, the best first."""
    start, stop = (np.array(side, dtype=np.float32) for side in zip(*logits, strict=True))
    found = list(best_pairs(start, stop, most))
    n = len(start)
    pairs = {(i, j): start[i] + stop[j] for i, j in itertools.product(range(n), range(n)) if i <= j < i + most}
    assert {(i, j): score for i, j, score in found} == pairs and len(found) == len(pairs)
    assert [score for *_, score in found] == sorted(pairs.values(), reverse=True)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_tokens_that_cover_an_answer(pieces, tokenizer):
    """The least tokens whose characters have all of it, at a hundred random places."""
    tokenizer = ByteTokenizer() if tokenizer == "byte" else pieces
    spans = np.array(tokenizer.encode_with_offsets(CONTEXT)[1])
    draw = random.Random(0)
    for _ in range(100):
        start, stop = sorted(draw.sample(range(len(CONTEXT) + 1), 2))
        first, last = covering_tokens(spans, start, stop)
        having = [token for token, (a, b) in enumerate(spans) if a < stop and start < b]
        assert (first, last) == (having[0], having[-1])


@given(context=st.text("ab \n\u3000", max_size=12), cut=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_trimmed(context, cut):
    """What str.strip leaves, and where it is."""
    start, stop = min(cut), max(cut)
    span = trimmed(context, start, stop)
    assert (context[slice(*span)] if span else "") == context[start:stop].strip()
    assert span is None or start <= span[0] < span[1] <= stop


def predictions(*rows):
    """Of (candidates' texts and scores, score of no answer, true texts)."""
    candidates = [[Candidate(text=t, start=0, stop=len(t), score=s) for t, s in row[0]] for row in rows]
    return AnswerPredictions(
        candidates=candidates, none=[row[1] for row in rows], truths=[row[2] for row in rows], loss=0.5
    )


def test_figures_by_hand():
    """Four questions: right, half right, wrongly answered, rightly left without."""
    said = predictions(
        ([("the sea", 5.0)], 0.0, ["Sea!"]),
        ([("old harbour", 3.0)], 1.0, ["harbour", "wall"]),
        ([("waves", 2.0)], 1.0, []),
        ([("waves", 1.0)], 4.0, []),
    )
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    figures = task.figures(said)
    assert figures["exact"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert figures["f1"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert figures["no_answer"] == pytest.approx(1 / 2)
    # margins -5, -2, -1, 3: with a threshold of -2 the third one is left without as well
    assert figures["best_threshold"] == -2.0
    assert figures["best_f1"] == pytest.approx((1 + 2 / 3 + 1 + 1) / 4)


def test_no_share_of_questions_that_are_not_there():
    """A split whose questions all have an answer: 0 would say that each was wrongly answered."""
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    figures = task.figures(predictions(([("the sea", 5.0)], 0.0, ["Sea!"])))
    assert figures["no_answer"] is None and figures["exact"] == figures["best_f1"] == 1.0


def test_the_threshold_decides():
    """The same scores, three thresholds; where every question has an answer there is none to be set."""
    said = predictions(([("sea", 2.0)], 3.0, ["sea"]))
    for threshold, text in [(0.0, ""), (0.99, ""), (1.0, "sea")]:
        task = QuestionAnswering.learn(config(no_answer_threshold=threshold), table(ROWS), COLUMNS)
        assert [answer["answer"] for answer in task.answers(said)] == [text]
    task = QuestionAnswering.learn(config(), table(ROWS[:5]), COLUMNS)
    assert not task.facts.unanswerable
    assert [answer["answer"] for answer in task.answers(said)] == ["sea"]
    assert set(task.figures(said)) == {"loss", "exact", "f1"}


def test_probabilities_are_shares_of_what_is_listed():
    """Softmax by hand over candidates and no answer."""
    said = predictions(([("sea", np.log(6.0)), ("bay", np.log(3.0))], 0.0, []))
    task = QuestionAnswering.learn(config(), table(ROWS), COLUMNS)
    (answer,) = task.answers(said)
    assert [c["probability"] for c in answer["candidates"]] == pytest.approx([0.6, 0.3])
    assert answer["answer"] == "sea" and answer["probability"] == pytest.approx(0.6)


def test_answers_of_both_forms():
    """A list of objects, or an object of lists as Hugging Face writes SQuAD."""
    listed = [{"text": "Ada", "answer_start": 0}, {"text": "1843", "answer_start": 40}]
    as_lists = {"text": ["Ada", "1843"], "answer_start": [0, 40]}
    columns = {
        "question": ["?"] * 3,
        "context": [CONTEXT] * 3,
        "answers": [listed, as_lists, {"text": [], "answer_start": []}],
    }
    found = read_answers(Table(path="x", columns=columns, lines=[1, 2, 3]), COLUMNS)
    assert found == [(Answer(text="Ada", start=0), Answer(text="1843", start=40))] * 2 + [()]


@pytest.mark.parametrize(
    "answers, words",
    [
        pytest.param(
            [{"text": "1843", "answer_start": 39}],
            r"row 1: the answer '1843' is not at answer_start 39, where the context has ' 184'; it is at 40",
            id="off by one",
        ),
        pytest.param([{"text": "1844", "answer_start": 40}], "it is nowhere in the context", id="not there"),
        pytest.param([{"text": "Ada", "answer_start": -3}], "is not at answer_start -3", id="negative"),
        pytest.param([{"text": "Ada", "answer_start": 999}], "is not at answer_start 999", id="behind the end"),
        pytest.param("Ada", "row 1: answers takes a list of answers, got 'Ada'", id="a text"),
        pytest.param([{"text": "Ada"}], "takes a list of answers", id="no start"),
        pytest.param([{"text": " ", "answer_start": 3}], "takes a list of answers", id="empty"),
        pytest.param({"text": ["Ada"], "answer_start": []}, "takes a list of answers", id="uneven lists"),
        pytest.param(None, "takes a list of answers, got None", id="nothing"),
    ],
)
def test_bad_answers(answers, words):
    """One line that names the row, what was said and what is there."""
    columns = {"question": ["?"], "context": [CONTEXT], "answers": [answers]}
    with pytest.raises(InputError, match=words):
        read_answers(Table(path="some.json", columns=columns, lines=[1]), COLUMNS)


def test_no_column_of_contexts():
    """Those that are there are listed."""
    given_table = Table(path="some.jsonl", columns={"question": ["?"], "answers": [[]]}, lines=[1])
    with pytest.raises(InputError, match="has no contexts; it has question, answers: name their column with data.pair"):
        QuestionAnswering.learn(config(), given_table, Columns(text="question", label="answers"))


def test_nothing_to_learn():
    """A table without a single answer."""
    with pytest.raises(InputError, match="no question with an answer"):
        QuestionAnswering.learn(config(), table([("Why?", CONTEXT, [])]), COLUMNS)
