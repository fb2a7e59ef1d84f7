"""Tagging: each word has one target and one prediction, whatever tokens and windows it falls into."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minillm.errors import InputError
from minillm.finetune.config import TaskConfig, TaskFacts
from minillm.finetune.encoding import Sequences
from minillm.finetune.loader import SequenceLoader
from minillm.finetune.table import Columns, Table, text_table
from minillm.finetune.tasks.tagging import Tagging, TagPredictions, read_sentences, word_pieces, word_windows
from minillm.finetune.tasks.words import split_words
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.config import TokenizerConfig
from minillm.tokenizer.training import train_tokenizer

COLUMNS = Columns(text="tokens", label="tags")
CONFIG = TaskConfig(name="tagging")
SENTENCES = [
    (["Ada", "Lovelace", "wrote", "to", "New", "York", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]),
    (["Hm"], ["O"]),
    (["我", "爱", "北", "京", "。"], ["O", "O", "B-LOC", "I-LOC", "O"]),
    (["Ada"] * 40, (["B-PER", "O", "I-LOC", "I-LOC"] * 10)),
]


def table(sentences=SENTENCES):
    columns = {"tokens": [list(words) for words, _ in sentences], "tags": [list(tags) for _, tags in sentences]}
    return Table(path="some.jsonl", columns=columns, lines=range(1, len(sentences) + 1))


def evaluate(task, model, sequences: Sequences, rows=3):
    return task.predict(model, SequenceLoader(sequences, batch_size=1, pad=3).eval_batches(rows), sequences)


@pytest.fixture(scope="module")
def pieces():
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), ["Ada Lovelace wrote to New York.\n" * 9])


def test_targets_of_an_encoder_stand_at_first_bytes(task_model):
    """cls A d a _ L ...: -100 at control symbols, at the space before a word and behind its first byte."""
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    _, encoder = task_model(task, "encoder")
    sequences = task.encode(table(SENTENCES[:1]), COLUMNS, encoder, labelled=True)
    text = "Ada Lovelace wrote to New York."
    assert bytes(token - 7 for token in sequences.tokens[1:-1].tolist()).decode() == text
    names = {1 + start: tag for (start, _), tag in zip(split_words(text), SENTENCES[0][1], strict=True)}
    expected = [task.facts.labels.index(names[i]) if i in names else -100 for i in range(len(sequences.tokens))]
    assert sequences.token_targets is not None and sequences.token_targets.tolist() == expected


def test_targets_of_a_decoder_stand_at_last_bytes(task_model):
    """There the whole word has been seen."""
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    _, encoder = task_model(task, "decoder")
    sequences = task.encode(table(SENTENCES[:1]), COLUMNS, encoder, labelled=True)
    places = [stop for _, stop in split_words("Ada Lovelace wrote to New York.")]  # bos stands before
    assert np.flatnonzero(sequences.token_targets != -100).tolist() == places


def test_a_decoder_has_seen_nothing_behind_a_word(task_model):
    """What its causal mask costs: a tag's logits do not change with the words that follow, an encoder's do."""
    changed = {}
    for kind in ("encoder", "decoder"):
        task = Tagging.learn(CONFIG, table(), COLUMNS)
        model, encoder = task_model(task, kind)
        shares = []
        for last in ("sea", "Sea"):
            sentence = text_table([f"Washington {last}"])
            sequences = task.encode(sentence, Columns(text="text"), encoder, labelled=False)
            shares.append(evaluate(task, model, sequences).probabilities[0])
        changed[kind] = abs(shares[0][0] - shares[1][0])
    assert changed["decoder"] == 0 and changed["encoder"] > 1e-6


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("context", [24, 64, 512])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_who_knows_all_tags_gets_all_right(task_model, all_knowing, pieces, kind, context, tokenizer):
    """Through windows and padding and back to words and entities nothing is lost or shifted."""
    tokenizer = ByteTokenizer() if tokenizer == "byte" else pieces
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    model, encoder = task_model(task, kind, context=context, tokenizer=tokenizer)
    sequences = task.encode(table(), COLUMNS, encoder, labelled=True)
    assert int((sequences.token_targets != -100).sum()) == sum(len(words) for words, _ in SENTENCES)
    assert sequences.lengths.max() <= context
    all_knowing(task)
    predictions = evaluate(task, model, sequences)
    figures = task.figures(predictions)
    assert figures["accuracy"] == figures["f1"] == figures["precision"] == figures["recall"] == 1.0
    assert figures["loss"] < 1e-3
    for guess, sentence in zip(predictions.guesses, read_sentences(table(), COLUMNS, labelled=True), strict=True):
        assert list(guess) == sentence.tags


def test_entities_have_places_in_the_text(task_model, all_knowing):
    """text[start:stop] is the entity's text, of given words and of a text that is split here."""
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    model, encoder = task_model(task, context=24)
    sequences = task.encode(table(), COLUMNS, encoder, labelled=True)
    all_knowing(task)
    first, _, third, _ = task.answers(evaluate(task, model, sequences))
    assert [(e["type"], e["text"]) for e in first["entities"]] == [("PER", "Ada Lovelace"), ("LOC", "New York")]
    assert [(e["type"], e["text"]) for e in third["entities"]] == [("LOC", "北京")]
    for answer in (first, third):
        assert all(answer["text"][e["start"] : e["stop"]] == e["text"] for e in answer["entities"])
        assert all(0.9 < e["probability"] <= 1.0 for e in answer["entities"])


def test_an_entity_is_as_likely_as_the_least_likely_of_its_words():
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    sentences = read_sentences(table([(["Ada", "Lovelace", "slept"], ["B-PER", "I-PER", "O"])]), COLUMNS, labelled=True)
    shares = np.array([0.9, 0.6, 0.3], dtype=np.float32)
    said = TagPredictions(sentences=sentences, guesses=[["B-PER", "I-PER", "O"]], probabilities=[shares], loss=None)
    (answer,) = task.answers(said)
    assert [found["probability"] for found in answer["entities"]] == pytest.approx([0.6])


def test_a_text_is_split_where_it_has_no_words(task_model):
    """Unlabelled texts: their own words, in their own spacing."""
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    model, encoder = task_model(task, context=24)
    text = "Ada  Lovelace, (of London)  "
    sequences = task.encode(text_table([text]), Columns(text="text"), encoder, labelled=False)
    (answer,) = task.answers(evaluate(task, model, sequences))
    assert answer["text"] == text
    assert answer["words"] == ["Ada", "Lovelace", ",", "(", "of", "London", ")"]
    assert len(answer["tags"]) == 7


def test_predicted_tags_are_repaired(task_model, monkeypatch):
    """A model that says I-LOC everywhere means one entity a sentence, and its words say B-LOC I-LOC ..."""
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    model, encoder = task_model(task)
    sequences = task.encode(table(SENTENCES[:1]), COLUMNS, encoder, labelled=True)
    plain, number = task.outputs, task.facts.labels.index("I-LOC")

    def outputs(model, batch):
        logits = plain(model, batch) * 0
        logits[..., number] = 9.0
        return logits

    monkeypatch.setattr(task, "outputs", outputs)
    assert evaluate(task, model, sequences).guesses == [["B-LOC", *["I-LOC"] * 6]]


def test_classes_of_words(task_model, all_knowing):
    """Tags that mark no entities: accuracy and macro-F1 over tags, no entities in the answers."""
    tagged = table([(["the", "sea", "sleeps"], ["DET", "NOUN", "VERB"]), (["waves"], ["NOUN"])])
    task = Tagging.learn(CONFIG, tagged, COLUMNS)
    assert task.facts.labels == ("DET", "NOUN", "VERB") and task.best_metric == "accuracy"
    model, encoder = task_model(task)
    sequences = task.encode(tagged, COLUMNS, encoder, labelled=True)
    all_knowing(task)
    predictions = evaluate(task, model, sequences)
    figures = task.figures(predictions)
    assert figures["accuracy"] == figures["macro_f1"] == 1.0 and "f1" not in figures
    assert [answer["tags"] for answer in task.answers(predictions)] == [["DET", "NOUN", "VERB"], ["NOUN"]]
    assert all("entities" not in answer for answer in task.answers(predictions))


def test_a_type_has_both_its_tags():
    """Validation may have a second word of an entity where training had single words only."""
    task = Tagging.learn(CONFIG, table([(["Ada", "slept"], ["S-PER", "O"])]), COLUMNS)
    assert task.facts.labels == ("B-PER", "I-PER", "O")
    assert Tagging(CONFIG, task.facts).facts == TaskFacts(name="tagging", labels=("B-PER", "I-PER", "O"))


@given(
    gap=st.text(" \n", max_size=5),
    word=st.text("aé漢😀", min_size=1, max_size=6),
    room=st.integers(1, 12),
)
def test_pieces_of_a_word(gap, word, room):
    """`room` tokens at most; first and last are the word's own; white space is cut before the word is."""
    found = word_pieces(ByteTokenizer(), room, gap, word)
    size = len(word.encode())
    own = found.tokens[found.first :]
    assert len(found.tokens) <= room and found.last == len(found.tokens) - 1
    assert list(own) == ByteTokenizer().encode(word)[: min(size, room)]
    assert found.lost == max(0, size - room)


@given(
    sizes=st.lists(st.integers(1, 7), max_size=30),
    room=st.integers(7, 20),
    overlap=st.integers(0, 10),
    left_only=st.booleans(),
)
@example(sizes=[4, 3, 5], room=7, overlap=3, left_only=False)  # the last word leaves no room for a shared one
def test_every_word_is_predicted_once(sizes, room, overlap, left_only):
    """In order, in a window that has it; windows fit, and share what they may."""
    overlap = min(overlap, room // 2)
    windows = word_windows(sizes, room, overlap, left_only=left_only)
    owned = [word for window in windows for word in range(window.own_first, window.own_stop)]
    assert owned == list(range(len(sizes)))
    for window in windows:
        assert window.first <= window.own_first <= window.own_stop <= window.stop
        assert sum(sizes[window.first : window.stop]) <= room
    for left, right in zip(windows, windows[1:], strict=False):
        assert left.first < right.first <= left.stop < right.stop
        assert sum(sizes[right.first : left.stop]) <= overlap


def test_a_shared_word_stands_where_it_sees_more():
    """Worked by hand: ten words of a token each, windows of six that share four."""
    both = word_windows([1] * 10, 6, 4, left_only=False)
    assert [(w.first, w.stop, w.own_first, w.own_stop) for w in both] == [(0, 6, 0, 4), (2, 8, 4, 6), (4, 10, 6, 10)]
    left = word_windows([1] * 10, 6, 4, left_only=True)
    assert [(w.own_first, w.own_stop) for w in left] == [(0, 6), (6, 8), (8, 10)]


def test_a_word_above_the_room_is_cut_and_counted(task_model):
    """Its tokens that are in no sequence are reported."""
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    _, encoder = task_model(task, context=12)
    sequences = task.encode(table([(["a", "b" * 30], ["O", "O"])]), COLUMNS, encoder, labelled=True)
    assert (sequences.truncation.rows, sequences.truncation.tokens) == (1, 20)
    assert int((sequences.token_targets != -100).sum()) == 2


@pytest.mark.parametrize(
    "tokens, tags, words",
    [
        pytest.param(["Ada", "wrote"], ["O"], "line 1: 2 words, but 1 tags; give each word one", id="lengths"),
        pytest.param([], [], "line 1: tokens has no words; remove it", id="empty sentence"),
        pytest.param(["Ada", " "], ["O", "O"], "line 1: tokens has an empty word, number 2", id="empty word"),
        pytest.param("Ada wrote", ["O", "O"], "line 1: tokens takes a list of words, got 'Ada wrote'", id="a text"),
        pytest.param(["Ada", 3], ["O", "O"], "takes a list of words", id="a number"),
        pytest.param(["Ada"], [3], r"line 1: tags takes a list of tags' names, got \[3\]", id="numbered tags"),
        pytest.param(["Ada"], 1, "line 1: tags takes a list of tags' names, got 1", id="a number for tags"),
        pytest.param(["Ada"], "O", "line 1: tags takes a list of tags' names, got 'O'", id="a text for tags"),
        pytest.param(["Ada"], None, "takes a list of tags' names, got None", id="no tags"),
        pytest.param(["Ada"], ["\0"], "takes a list of tags' names", id="a tag that no checkpoint can keep"),
        pytest.param(["Ada"], ["PER"], "line 1: 'PER' is no tag of an entity; write O, B-TYPE", id="a type as tag"),
    ],
)
def test_bad_rows(tokens, tags, words):
    """One line that names the row."""
    columns = {"tokens": [tokens, ["Bob"]], "tags": [tags, ["B-PER"]]}
    with pytest.raises(InputError, match=words):
        read_sentences(Table(path="some.jsonl", columns=columns, lines=[1, 2]), COLUMNS, labelled=True)


def test_an_unseen_tag_at_evaluation(task_model):
    """A new class is an error, not a guess; known ones are listed."""
    task = Tagging.learn(CONFIG, table(), COLUMNS)
    _, encoder = task_model(task)
    with pytest.raises(InputError, match=r"line 1: tags is 'B-ORG', which is no label of the training table.*B-LOC"):
        task.encode(table([(["Acme"], ["B-ORG"])]), COLUMNS, encoder, labelled=True)


@pytest.mark.parametrize("tags, words", [(["O", "O"], "has one tag only, 'O'"), (["X", "X"], "has one tag only, 'X'")])
def test_one_tag_only(tags, words):
    """There is nothing to learn."""
    with pytest.raises(InputError, match=words):
        Tagging.learn(CONFIG, table([(["a", "b"], tags)]), COLUMNS)


def test_the_simple_model_by_hand(task_model):
    """Each word's most frequent tag, the most frequent of all for a stranger, repaired; figures have no loss."""
    learnt = table([(["New", "York", "is", "New"], ["B-LOC", "I-LOC", "O", "O"]), (["New", "is"], ["B-LOC", "O"])])
    task = Tagging.learn(CONFIG, learnt, COLUMNS)
    _, encoder = task_model(task)
    asked = table([(["York", "York", "Oslo", "New"], ["B-LOC", "I-LOC", "B-LOC", "O"])])
    encoded = [task.encode(given, COLUMNS, encoder, labelled=True) for given in (learnt, asked)]
    predictions = task.most_frequent(*encoded)
    assert predictions.guesses == [["B-LOC", "I-LOC", "O", "B-LOC"]]
    figures = task.figures(predictions)
    assert figures["loss"] is None and figures["accuracy"] == 2 / 4
    assert (figures["precision"], figures["recall"]) == (1 / 2, 1 / 2)


def test_figures_of_every_tag():
    """Without entities a row a tag, by scikit-learn; a tag that is nowhere has no F1 and is not averaged."""
    tagged = [(["a", "b", "c"], ["X", "X", "Y"]), (["d"], ["Z"])]
    task = Tagging.learn(CONFIG, table(tagged), COLUMNS)
    sentences = read_sentences(table(tagged[:1]), COLUMNS, labelled=True)
    said = TagPredictions(sentences=sentences, guesses=[["X", "Y", "Y"]], probabilities=(), loss=1.0)
    x, y, z = task.classes(said)
    assert (x.name, x.precision, x.recall, x.f1, x.support, x.predicted) == ("X", 1.0, 0.5, pytest.approx(2 / 3), 2, 1)
    assert (y.precision, y.recall, z.f1) == (0.5, 1.0, None)
    assert task.figures(said) == {"loss": 1.0, "accuracy": 2 / 3, "macro_f1": pytest.approx(2 / 3)}


def test_accuracy_counts_words_and_not_sentences():
    """Three of four words are right; of the two sentences one is right and one is wrong."""
    tagged = [(["a", "b", "c"], ["X", "X", "Y"]), (["d"], ["Z"])]
    task = Tagging.learn(CONFIG, table(tagged), COLUMNS)
    sentences = read_sentences(table(tagged), COLUMNS, labelled=True)
    said = TagPredictions(sentences=sentences, guesses=[["X", "X", "Y"], ["X"]], probabilities=(), loss=1.0)
    assert task.figures(said)["accuracy"] == 3 / 4
