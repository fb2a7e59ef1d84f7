r"""Token tagging: a tag for every word, such as names of persons and places (NER), or parts of speech.

    words    Ada   Lovelace   wrote   .            a row: a list of words, or at prediction a text that is split here
    pieces   Ada   Love lace  wrote   .            each word is encoded by itself, with the space before it
    target    1     2   -100    6     6            a word has one target, at one of its pieces
    loss     - sum over words of log p(tag)

The target stands at a word's first piece in an encoder. In a decoder it stands at the last one, since there the first
has not seen the rest of its own word. What a decoder cannot have is what comes behind the word: "Washington" is tagged
before "Post" is seen. Take an encoder where there is one.

A sentence above the model's length goes through windows of whole words that share `text.overlap` tokens, half a window
at most. Each word is learnt and predicted once: of the words that two windows share, an encoder's first half belongs to
the first window; a decoder's all do, where more stands before them. (`text.long_texts` is of other tasks.)

Tags of entities are learnt and predicted as BIO, whatever scheme the table has; `tags.py` has the one rule, which also
repairs what the model predicts. Other tags are classes of words, without entities.

Read next: `question_answering.py`.
"""

from __future__ import annotations

import functools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from minillm_kernels import cross_entropy
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm.data.batch import IGNORED, Batch
from minillm.errors import InputError
from minillm.evaluate import inference
from minillm.finetune.config import HeadConfig, TaskConfig, TaskFacts, TaskName
from minillm.finetune.conll import read_conll
from minillm.finetune.encoding import Sequences, TextEncoder
from minillm.finetune.heads import TokenHead
from minillm.finetune.metrics import ClassFigures, class_figures
from minillm.finetune.table import Columns, Table, name_of
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.base import Task
from minillm.finetune.tasks.labels import sorted_names, unseen
from minillm.finetune.tasks.tags import (
    OUTSIDE,
    entities,
    entity_classes,
    entity_figures,
    means_entities,
    require_seqeval,
    to_bio,
)
from minillm.finetune.tasks.words import join_words, split_words
from minillm.model.config import ModelConfig
from minillm.objectives.loss import Loss
from minillm.tokenizer.base import Span, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A row: its text, where its words are in it, and their tags; None where the table has none."""

    text: str
    words: Sequence[Span]
    tags: Sequence[str] | None = None

    def spelt(self) -> list[str]:
        """Return the words."""
        return [self.text[start:stop] for start, stop in self.words]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which words each sequence answers for: `Sequences.details` of this task.

    sentences: of the rows.
    first: (S,) the first of its words.
    columns: (S) arrays, the place in the sequence at which each of its words is predicted.
    """

    sentences: Sequence[Sentence]
    first: Sequence[int]
    columns: Sequence[NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class TagPredictions:
    """What a model says about N sentences.

    guesses: a tag a word; tags of entities are faultless BIO.
    probabilities: of each word's likeliest tag, before the repair.
    loss: nats per word; None where the table has no tags, or who tagged has no probabilities.
    """

    sentences: Sequence[Sentence]
    guesses: Sequence[Sequence[str]]
    probabilities: Sequence[NDArray[np.float32]]
    loss: float | None


class Tagging(Task):
    """A tag for every word; `minillm.finetune.tasks.base.Task` says what each method is for."""

    name: ClassVar[TaskName] = "tagging"
    figure_names: tuple[str, ...] = ("accuracy", "macro_f1")
    best_metric: str = "accuracy"
    column_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("tokens", "words", "text", "sentence"),
        "label": ("tags", "ner_tags", "ner", "pos_tags", "labels"),
    }
    readers: ClassVar[Mapping[str, Callable[[Path], Table]]] = dict.fromkeys(
        (".conll", ".tsv", ".bio", ".iob", ".iob2"), read_conll
    )

    def __init__(self, config: TaskConfig, facts: TaskFacts) -> None:
        """Take the names of the tags, which say whether they mark entities.

        Raises:
            InputError: they do, and seqeval is not installed.
        """
        super().__init__(config, facts)
        self.of_entities = means_entities(facts.labels)
        if self.of_entities:
            require_seqeval()
            self.figure_names, self.best_metric = ("accuracy", "f1", "precision", "recall", "macro_f1"), "f1"

    @classmethod
    def learn(cls, config: TaskConfig, table: Table, columns: Columns) -> Self:
        """Return the task with the tags of the training table, sorted; a type of entity has both B- and I-."""
        if config.class_weights != "none":
            raise InputError("task.class_weights is of single_label; leave it out for tagging")
        found = {tag for sentence in read_sentences(table, columns, labelled=True) for tag in sentence.tags or ()}
        if means_entities(list(found)):
            types = {tag[2:] for tag in found if tag != OUTSIDE}
            found = {OUTSIDE, *(f"{prefix}-{kind}" for prefix in "BI" for kind in types)}
        if len(found) < 2:
            raise InputError(f"{table.path} has one tag only, {next(iter(found))!r}; give sentences with two at least")
        return cls(config, TaskFacts(name=cls.name, labels=sorted_names(found)))

    def make_head(self, config: HeadConfig, backbone: ModelConfig) -> nn.Module:
        """Return a new head with a number for each tag and token."""
        return TokenHead(config, backbone, len(self.facts.labels))

    def encode(self, table: Table, columns: Columns, encoder: TextEncoder, *, labelled: bool) -> Sequences:
        """Return the sentences as token sequences, one or several (windows) each, with a target a word if labelled."""
        sentences = read_sentences(table, columns, labelled=labelled)
        numbers = {tag: number for number, tag in enumerate(self.facts.labels)}
        room, left_only = encoder.room(pair=False), encoder.causal
        before = encoder.single.before
        pieces_of = functools.lru_cache(maxsize=2**16)(functools.partial(word_pieces, encoder.tokenizer, room))
        sequences: list[list[int]] = []
        targets: list[int] = []
        rows, lost, firsts, places = [], [], [], []
        for row, sentence in enumerate(sentences):
            unknown = [tag for tag in sentence.tags or () if tag not in numbers]
            if unknown:
                assert columns.label is not None
                raise unseen(table, [row], unknown[0], self.facts.labels, columns.label)
            edges = [0, *(stop for _, stop in sentence.words)]
            pieces = [
                pieces_of(sentence.text[edge:start], sentence.text[start:stop])
                for edge, (start, stop) in zip(edges, sentence.words, strict=False)
            ]
            lost.append(sum(word.lost for word in pieces))
            sizes = [len(word.tokens) for word in pieces]
            for window in word_windows(sizes, room, min(encoder.config.overlap, room // 2), left_only=left_only):
                within = pieces[window.first : window.stop]
                begins = np.cumsum([len(before), *(len(word.tokens) for word in within)])[:-1]
                wanted = np.array([word.last if left_only else word.first for word in within])
                own = slice(window.own_first - window.first, window.own_stop - window.first)
                column = (begins + wanted)[own]  # of the words that are predicted here
                sequence = [*before, *(token for word in within for token in word.tokens), *encoder.single.after]
                target = np.full(len(sequence), IGNORED)
                if sentence.tags is not None:
                    target[column] = [numbers[tag] for tag in sentence.tags[window.own_first : window.own_stop]]
                sequences.append(sequence)
                targets += target.tolist()
                rows.append(row)
                firsts.append(window.own_first)
                places.append(column)
        return Sequences.of(
            sequences,
            rows,
            lost,
            token_targets=np.array(targets, dtype=np.int64) if labelled else None,
            details=Windows(sentences=sentences, first=firsts, columns=places),
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Loss:
        """Return the summed cross-entropy over words, in nats, and their number."""
        assert batch.targets is not None
        logits, targets = outputs.flatten(0, 1), batch.targets.flatten()  # (B T, K), (B T,)
        total = cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing, reduction="sum")
        return Loss(total=total, count=(targets != IGNORED).sum())

    def predict(
        self, model: TaskModel, batches: Iterable[tuple[NDArray[np.int64], Batch]], sequences: Sequences
    ) -> TagPredictions:
        """Return the likeliest tag of every word; a number and a probability a word are held."""
        windows: Windows = sequences.details
        tags = [np.empty(len(sentence.words), dtype=np.int64) for sentence in windows.sentences]
        shares = [np.empty(len(sentence.words), dtype=np.float32) for sentence in windows.sentences]
        total, count = 0.0, 0
        with inference(model):
            for places, batch in batches:
                batch = batch.to(model.device)
                logits = self.outputs(model, batch)  # (B, T, K)
                if batch.targets is not None:
                    total += float(cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"))
                    count += int((batch.targets != IGNORED).sum())
                best = logits.softmax(dim=-1).max(dim=-1)
                share, tag = best.values.cpu().numpy(), best.indices.cpu().numpy()  # (B, T)
                for line, place in enumerate(places):
                    row, first, columns = sequences.rows[place], windows.first[place], windows.columns[place]
                    tags[row][first : first + len(columns)] = tag[line, columns]
                    shares[row][first : first + len(columns)] = share[line, columns]
        guesses = [[self.facts.labels[number] for number in row] for row in tags]
        return TagPredictions(
            sentences=windows.sentences,
            guesses=self._mended(guesses),
            probabilities=shares,
            loss=total / count if count else None,
        )

    def figures(self, predictions: TagPredictions) -> Mapping[str, float | None]:
        """Return the loss in nats, the accuracy of words and, by whole entities, F1, precision, recall and macro-F1.

        Tags without entities have `macro_f1` over the tags in place of these.
        """
        truth = [list(sentence.tags or ()) for sentence in predictions.sentences]
        pairs = [pair for rows in zip(truth, predictions.guesses, strict=True) for pair in zip(*rows, strict=True)]
        figures: dict[str, float | None] = {"loss": predictions.loss}
        figures["accuracy"] = sum(tag == guess for tag, guess in pairs) / len(pairs)
        if self.of_entities:
            return figures | entity_figures(truth, predictions.guesses)
        known = [row.f1 for row in self.classes(predictions) if row.f1 is not None]
        return figures | {"macro_f1": statistics.fmean(known)}

    def classes(self, predictions: TagPredictions) -> Sequence[ClassFigures]:
        """Return the figures of each type of entity, or where there are none of each tag."""
        truth = [list(sentence.tags or ()) for sentence in predictions.sentences]
        if self.of_entities:
            return entity_classes(truth, predictions.guesses)
        labels = self.facts.labels
        number = {tag: place for place, tag in enumerate(labels)}
        true, guessed = (
            np.array([number[tag] for row in rows for tag in row]) for rows in (truth, predictions.guesses)
        )
        return class_figures(true, guessed, labels)

    def most_frequent(self, learnt: Sequences, asked: Sequences) -> TagPredictions:
        """Return the tags of a simple model: each word's most frequent one in training, or if unseen that of all words.

        Args:
            learnt, asked: what `encode` made of two tables with tags.
        """
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sentence in learnt.details.sentences:
            for word, tag in zip(sentence.spelt(), sentence.tags, strict=True):
                counts[word][tag] += 1
        usual = sum(counts.values(), Counter[str]()).most_common(1)[0][0]
        tags = {word: found.most_common(1)[0][0] for word, found in counts.items()}
        guesses = [[tags.get(word, usual) for word in sentence.spelt()] for sentence in asked.details.sentences]
        return TagPredictions(
            sentences=asked.details.sentences, guesses=self._mended(guesses), probabilities=(), loss=None
        )

    def _mended(self, guesses: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
        """Return tags, those of entities as faultless BIO."""
        return [to_bio(row) for row in guesses] if self.of_entities else guesses

    def answers(self, predictions: TagPredictions, temperature: float = 1.0) -> Iterator[dict[str, Any]]:
        """Yield `words`, their `tags` and, where tags mark them, the `entities`, each with its place in `text`.

        An entity is text[start:stop]; its `probability` is the lowest of its words' tags. Tags have no temperature.
        """
        for sentence, tags, shares in zip(
            predictions.sentences, predictions.guesses, predictions.probabilities, strict=True
        ):
            answer: dict[str, Any] = {
                "text": sentence.text,
                "words": sentence.spelt(),
                "tags": list(tags),
            }
            if self.of_entities:
                answer["entities"] = [
                    {
                        "type": found.type,
                        "text": sentence.text[sentence.words[found.first][0] : sentence.words[found.stop - 1][1]],
                        "start": sentence.words[found.first][0],
                        "stop": sentence.words[found.stop - 1][1],
                        "probability": float(shares[found.first : found.stop].min()),
                    }
                    for found in entities(tags)
                ]
            yield answer


@dataclass(frozen=True, kw_only=True)
class WordPieces:
    """The tokens of one word with the space before it; first, last: those of the word itself; lost: what was cut."""

    tokens: tuple[int, ...]
    first: int
    last: int
    lost: int = 0


def word_pieces(tokenizer: Tokenizer, room: int, gap: str, word: str) -> WordPieces:
    """Return the tokens of a word, `room` of them at most; of white space before it, what there is room for.

    A word of which an imported tokenizer leaves nothing (a zero-width space, say) is unknown: it has a tag all the
    same.

    >>> from minillm.tokenizer.byte import ByteTokenizer
    >>> word_pieces(ByteTokenizer(), 9, " ", "ab")
    WordPieces(tokens=(39, 104, 105), first=1, last=2, lost=0)
    """
    tokens, spans = tokenizer.encode_with_offsets(gap + word)
    if not spans and tokenizer.specials.unk is not None:
        tokens, spans = [tokenizer.specials.unk], [(0, len(gap + word))]
    first = next((place for place, (_, stop) in enumerate(spans) if stop > len(gap)), None)
    if first is None:
        raise InputError(f"the tokenizer has no token for the word {word!r}; take the word out")
    drop = min(first, max(0, len(tokens) - room))  # white space gives way before the word does
    kept = tokens[drop : drop + room]
    lost = len(tokens) - drop - len(kept)
    return WordPieces(tokens=tuple(kept), first=first - drop, last=len(kept) - 1, lost=lost)


@dataclass(frozen=True, kw_only=True)
class WordWindow:
    """Words first .. stop - 1 of a sentence, of which own_first .. own_stop - 1 are predicted here."""

    first: int
    stop: int
    own_first: int
    own_stop: int


def word_windows(sizes: Sequence[int], room: int, overlap: int, *, left_only: bool) -> list[WordWindow]:
    """Return windows of whole words over a sentence such that every word is predicted in one of them.

    Args:
        sizes: tokens of each word, from 1 to `room`.
        room: tokens of a window.
        overlap: tokens that two windows share at most, below `room`.
        left_only: the model sees only what stands before: a shared word is predicted where it comes later in a window.

    >>> for window in word_windows([2, 2, 2, 2, 2], room=6, overlap=4, left_only=False):
    ...     print(window)
    WordWindow(first=0, stop=3, own_first=0, own_stop=2)
    WordWindow(first=1, stop=4, own_first=2, own_stop=3)
    WordWindow(first=2, stop=5, own_first=3, own_stop=5)
    """
    edges = np.concatenate([[0], np.cumsum(sizes)])  # of the words, in tokens
    windows: list[WordWindow] = []
    first = own_first = stop = 0
    while stop < len(sizes):
        stop = int(np.searchsorted(edges, edges[first] + room, side="right")) - 1
        following = own_stop = stop
        if stop < len(sizes):
            most = min(overlap, room - sizes[stop])  # with its next word the next window must not be full
            following = max(first + 1, int(np.searchsorted(edges, edges[stop] - most)))
            if not left_only:
                middle = (edges[following] + edges[stop]) / 2
                own_stop = max(own_first, int(np.searchsorted(edges, middle)))
        windows.append(WordWindow(first=first, stop=stop, own_first=own_first, own_stop=own_stop))
        first, own_first = following, own_stop
    return windows


def read_sentences(table: Table, columns: Columns, *, labelled: bool) -> list[Sentence]:
    """Return the sentences of a table, tags of entities as BIO.

    Raises:
        InputError: no list of words (a text does where nothing is labelled), no words, an empty word, as many tags as
            there are not words, or a tag that is none; the text names the place.
    """
    values = list(table.columns[columns.text])
    if not labelled and all(isinstance(value, str) for value in values):
        return [Sentence(text=text, words=split_words(text)) for text in table.texts(columns.text)]
    tagged = list(table.columns[columns.label]) if labelled and columns.label is not None else [None] * len(values)
    lists = [row for row in tagged if isinstance(row, list)]  # of what is none, `_checked_tags` says so
    of_entities = means_entities([tag for row in lists for tag in row if isinstance(tag, str)])
    sentences = []
    for row, (words, tags) in enumerate(zip(values, tagged, strict=True)):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            hint = '; write them as ["Ada", "wrote"], or one a line in a .conll file'
            raise InputError(f"{table.place(row)}: {columns.text} takes a list of words, got {words!r:.60}{hint}")
        if not words or not all(word.strip() for word in words):
            what = (
                "has no words" if not words else f"has an empty word, number {[w.strip() for w in words].index('') + 1}"
            )
            raise InputError(f"{table.place(row)}: {columns.text} {what}; remove it")
        text, spans = join_words(words)
        if labelled:
            tags = _checked_tags(table, columns, row, len(words), of_entities)
        sentences.append(Sentence(text=text, words=spans, tags=tags))
    return sentences


def _checked_tags(table: Table, columns: Columns, row: int, count: int, of_entities: bool) -> list[str]:
    """Return the tags of a row's `count` words, those of entities as BIO."""
    assert columns.label is not None
    tags = table.columns[columns.label][row]
    if not isinstance(tags, list) or not all(isinstance(tag, str) and name_of(tag) for tag in tags):
        raise InputError(
            f"{table.place(row)}: {columns.label} takes a list of tags' names, got {tags!r:.60}; write them as "
            '["B-PER", "O"]'
        )
    if len(tags) != count:
        raise InputError(f"{table.place(row)}: {count} words, but {len(tags)} tags; give each word one")
    try:
        return to_bio(tags) if of_entities else tags
    except ValueError as error:
        raise InputError(f"{table.place(row)}: {error}") from error
