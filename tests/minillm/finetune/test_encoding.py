"""Texts as sequences: frames, truncation as transformers does it, windows that see everything."""

import itertools

import numpy as np
import pytest
import tokenizers

from minillm.errors import InputError
from minillm.finetune.config import TextConfig
from minillm.finetune.encoding import TextEncoder, longest_first, window_starts
from minillm.model.config import ModelConfig
from minillm.tokenizer.byte import ByteTokenizer

BYTES = ByteTokenizer()
SPECIALS = BYTES.specials


def encoder(kind="encoder", context=12, types=2, pairs=True, **settings):
    model = ModelConfig(
        kind=kind, vocab_size=BYTES.vocab_size, context=context, width=8, num_heads=1, token_types=types
    )
    return TextEncoder(BYTES, model, TextConfig(**settings), pairs=pairs)


def split(sequences):
    """Return each sequence as a list of tokens."""
    return [list(part) for part in np.split(sequences.tokens, sequences.bounds[1:-1])]


def tokens(text):
    return BYTES.encode(text)


def test_frames_of_encoder_and_decoder():
    """As documents are framed in pretraining; a pair has its types where the model has any."""
    cls, sep, bos, eos = SPECIALS.cls, SPECIALS.sep, SPECIALS.bos, SPECIALS.eos
    assert split(encoder().sequences(["ab"])) == [[cls, *tokens("ab"), sep]]
    assert split(encoder("decoder").sequences(["ab"])) == [[bos, *tokens("ab"), eos]]
    pair = encoder().sequences(["ab"], ["c"])
    assert split(pair) == [[cls, *tokens("ab"), sep, *tokens("c"), sep]]
    assert pair.token_types is not None and pair.token_types.tolist() == [0, 0, 0, 0, 1, 1]
    assert encoder(types=0).sequences(["ab"], ["c"]).token_types is None
    assert encoder().sequences(["ab"]).token_types is None


@pytest.mark.parametrize("room", range(2, 9))
def test_longest_first_is_token_after_token(room):
    """The closed form keeps what the loop keeps."""
    for first, second in itertools.product(range(0, 12), range(0, 12)):
        a, b = first, second
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        assert longest_first(first, second, room) == (a, b), (first, second)


def test_pairs_are_cut_as_transformers_cuts_them():
    """Ids of a fast tokenizer's `longest_first` on the same lengths."""
    words = {f"w{n}": n for n in range(40)}
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    other.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    for first, second, room in itertools.product((1, 4, 9, 15), (1, 5, 8, 15), (4, 7, 10)):
        other.enable_truncation(room, strategy="longest_first")
        names = [" ".join(f"w{n}" for n in range(start, start + count)) for start, count in ((0, first), (20, second))]
        kept = other.encode(*names).type_ids
        assert sorted(longest_first(first, second, room)) == sorted((kept.count(0), kept.count(1)))


def test_truncation_is_counted_in_rows_and_tokens():
    """A text of 20 bytes and one of 3 in sequences of 12 with two control symbols."""
    sequences = encoder().sequences(["x" * 20, "abc"])
    assert sequences.lengths.tolist() == [12, 5]
    assert (sequences.truncation.rows, sequences.truncation.tokens) == (1, 10)
    pair = encoder().sequences(["x" * 20], ["y" * 3])
    assert split(pair)[0][1:7] == tokens("x" * 6) and (pair.truncation.rows, pair.truncation.tokens) == (1, 14)
    both = encoder().sequences(["x" * 20], ["y" * 20]).truncation  # 9 tokens of 40 are left
    assert (both.rows, both.tokens) == (1, 31)
    assert encoder().sequences(["x" * 10]).truncation.rows == 0


@pytest.mark.parametrize("length", [0, 1, 10, 11, 16, 17, 40])
@pytest.mark.parametrize("pair", [False, True], ids=["one", "pair"])
def test_windows_see_every_token(length, pair):
    """All of a text, in order; neighbours share the overlap at least, and weights of a row's windows sum to one."""
    text = "".join(chr(65 + n) for n in range(length)) or "z"
    framing = encoder(long_texts="windows", overlap=2)
    sequences = framing.sequences(*([["ab"], [text]] if pair else [[text]]))
    heads = 4 if pair else 1
    windows = [tokens_of[heads:-1] for tokens_of in split(sequences)]
    whole, seen = tokens(text), []
    for window in windows:
        start = next(s for s in range(len(whole)) if whole[s : s + len(window)] == window)
        assert start <= len(seen) - (2 if seen else 0)
        seen = whole[: start + len(window)]
    assert seen == whole and sequences.truncation.tokens == 0
    weights = np.ones(1) if sequences.weights is None else sequences.weights
    assert weights.sum() == pytest.approx(1.0) and (len(weights) == len(windows) or len(windows) == 1)
    assert set(sequences.rows.tolist()) == {0}


def test_windows_of_a_pair_keep_half_of_the_first_text():
    """Then the cut is counted."""
    sequences = encoder(long_texts="windows", overlap=1).sequences(["x" * 9], ["y" * 9])
    assert all(part[1:5] == tokens("xxxx") for part in split(sequences))
    assert (sequences.truncation.rows, sequences.truncation.tokens) == (1, 5)


def test_windows_leave_the_first_text_what_a_short_second_one_does_not_need():
    """With room for 9 tokens, B of 2 leaves 7 to A's 9, and there is one sequence."""
    sequences = encoder(long_texts="windows", overlap=1).sequences(["x" * 9], ["yy"])
    (part,) = split(sequences)
    assert part[1:8] == tokens("x" * 7) and part[9:11] == tokens("yy")
    assert (sequences.truncation.rows, sequences.truncation.tokens) == (1, 2)


def test_window_starts_do_not_repeat():
    for length, room in itertools.product(range(1, 40), range(3, 9)):
        starts = window_starts(length, room, overlap=2)
        assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] == max(length - room, 0)


@pytest.mark.parametrize(
    "settings, hint",
    [
        ({"max_length": 13}, "max_length .13. is above the model's context of 12"),
        ({"max_length": 4}, "no room for two texts; take 5"),
        ({"long_texts": "windows", "overlap": 9}, "text.overlap .9. must be below half"),
    ],
)
def test_settings_that_leave_no_room(settings, hint):
    with pytest.raises(InputError, match=hint):
        encoder(**settings)


def test_single_texts_need_room_for_one():
    """Of sequences of 4 tokens the control symbols take 2 and, of pairs, 3; half of 10 is 5 and, of pairs, of 9 4."""
    assert encoder(pairs=False, max_length=4).sequences(["abc"]).lengths.tolist() == [4]
    assert len(encoder(pairs=False, long_texts="windows", overlap=4).sequences(["x" * 11])) == 2
    with pytest.raises(InputError, match="text.overlap .5. must be below half"):
        encoder(pairs=False, long_texts="windows", overlap=5)
    with pytest.raises(InputError, match="text.max_length .2. leaves no room for a text; take 3 or more"):
        encoder(pairs=False, context=2)
