"""The vectorised Witten-Bell model is the one of dictionaries, and a distribution over its vocabulary."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from minillm.ngram import NGram


def by_dictionary(documents: list[list[int]], vocab_size: int, order: int):
    """Return P(token, context, k): Witten-Bell by the textbook, tuples in dictionaries."""
    count: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for document in documents:
        for i, token in enumerate(document):
            for k in range(1, order + 1):
                if i >= k - 1:
                    count[tuple(document[i - k + 1 : i])][token] += 1

    def probability(token: int, context: tuple[int, ...], k: int) -> float:
        if k == 0:
            return 1.0 / vocab_size
        if len(context) >= k:
            context = context[len(context) - k + 1 :]
        if len(context) < k - 1 or not count[context]:
            return probability(token, context, k - 1)
        after = count[context]
        total, distinct = sum(after.values()), len(after)
        return (after[token] + distinct * probability(token, context[1:], k - 1)) / (total + distinct)

    return probability


def random_documents(seed: int, lengths: list[int], vocab_size: int) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Return documents with repeats in them, the same joined, and their bounds."""
    rng = np.random.default_rng(seed)
    documents = [(rng.integers(0, vocab_size, n) ** 2 % vocab_size).tolist() for n in lengths]
    return documents, np.concatenate([np.array(d, np.int64) for d in documents]), np.cumsum([0, *lengths])


CASES = [
    pytest.param([400], [60], 5, 6, id="one-document"),
    pytest.param([90, 1, 40, 3], [7, 1, 20], 3, 4, id="ragged-documents"),
    pytest.param([200], [50], 100, 3, id="most-tokens-unseen"),
    pytest.param([1], [2], 1, 1, id="one-token"),
    pytest.param([2, 1], [5], 2, 6, id="order-beyond-the-text"),
]


@pytest.mark.parametrize("train_lengths, valid_lengths, vocab_size, order", CASES)
def test_losses_are_those_of_the_dictionary_model(train_lengths, valid_lengths, vocab_size, order):
    """Every order's probability of every held-out token is the textbook's; the only tolerance is rounding."""
    train, joined, bounds = random_documents(1, train_lengths, vocab_size)
    valid, held_out, held_out_bounds = random_documents(2, valid_lengths, vocab_size)
    model = NGram(joined, bounds, vocab_size=vocab_size, order=order)
    assert model.order == min(order, max(train_lengths))
    truth = by_dictionary(train, vocab_size, model.order)
    expected = [
        [-np.log(truth(token, tuple(document[:i]), k)) for document in valid for i, token in enumerate(document)]
        for k in range(model.order + 1)
    ]
    np.testing.assert_allclose(model.losses(held_out, held_out_bounds), expected, rtol=1e-12)


@pytest.mark.parametrize("train_lengths, valid_lengths, vocab_size, order", CASES)
def test_best_is_the_highest_of_the_whole_distribution(train_lengths, valid_lengths, vocab_size, order):
    """The guess has the highest probability that any token of the vocabulary has at that place."""
    train, joined, bounds = random_documents(3, train_lengths, vocab_size)
    valid, held_out, held_out_bounds = random_documents(4, valid_lengths, vocab_size)
    model = NGram(joined, bounds, vocab_size=vocab_size, order=order)
    truth = by_dictionary(train, vocab_size, model.order)
    contexts = [tuple(document[:i]) for document in valid for i in range(len(document))]
    for k, row in enumerate(model.best(held_out, held_out_bounds), 1):
        for context, guess in zip(contexts, row, strict=True):
            highest = max(truth(token, context, k) for token in range(vocab_size))
            assert truth(int(guess), context, k) == pytest.approx(highest, rel=1e-12)


def test_probabilities_sum_to_one():
    """After a seen, a half-seen and an unseen context, the probabilities of all V tokens add up to 1."""
    V = 7
    _, joined, _ = random_documents(5, [300], V - 1)  # one token never occurs
    model = NGram(joined, vocab_size=V, order=4)
    for context in ([0, 1, 4], [5, 5, 5], [6, 6, 6], [4]):
        rows = np.array([[*context, token] for token in range(V)]).ravel()
        bounds = np.arange(0, len(rows) + 1, len(context) + 1)
        last = np.exp(-model.losses(rows, bounds))[:, len(context) :: len(context) + 1]
        np.testing.assert_allclose(last.sum(axis=1), 1.0, rtol=1e-12)


def test_no_context_reaches_across_documents():
    """Documents scored together give what each gives alone."""
    _, joined, bounds = random_documents(6, [150, 80], 4)
    model = NGram(joined, bounds, vocab_size=4, order=5)
    together = model.losses(joined, bounds)
    apart = [model.losses(joined[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    np.testing.assert_array_equal(together, np.concatenate(apart, axis=1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64], ids=["u8", "u16", "i64"])
def test_any_integer_dtype_gives_the_same(dtype):
    """Keys are computed in int64, so small dtypes do not overflow."""
    _, joined, _ = random_documents(7, [500], 250)
    expected = NGram(joined, vocab_size=250, order=3).losses(joined)
    np.testing.assert_array_equal(
        NGram(joined.astype(dtype), vocab_size=250, order=3).losses(joined.astype(dtype)), expected
    )


@pytest.mark.parametrize(
    "tokens, order, message",
    [
        pytest.param([0, 5], 2, "in 0 .. 4, got 0 .. 5", id="beyond-vocabulary"),
        pytest.param([-1, 0], 2, "in 0 .. 4, got -1 .. 0", id="negative"),
        pytest.param([], 2, "at least one training token", id="empty"),
        pytest.param([0], 0, "order must be at least 1, got 0", id="order-0"),
    ],
)
def test_misuse_is_refused(tokens, order, message):
    """Tokens outside the vocabulary, no tokens and no order are errors that show what came."""
    with pytest.raises(ValueError, match=message):
        NGram(np.array(tokens, np.int64), vocab_size=5, order=order)
