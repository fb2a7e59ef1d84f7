"""The settings of a config.json, each asked for by name. What was not asked for is known to mean nothing, or reported.

    keys.whole("hidden_size")                     a number that must be there
    keys.fraction("layer_norm_eps", 1e-12)        what transformers takes where it is not
    keys.only("position_embedding_type", "absolute")    any other value is refused: it would be another model
    keys.strangers()                              what nobody asked for

Read next: `family.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from minillm.errors import InputError

REQUIRED = object()
LARGEST = 2**31  # of any whole number: a damaged file shall not ask for more memory than there is
MOST_LAYERS = 10_000

# Keys that change no number of a forward pass: names, ids for the tokenizer and generation, training, bookkeeping.
MEANINGLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cls_token_id decoder_start_token_id directionality diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_cutoff_factor initializer_range label2id
    length_penalty max_length min_length minillm model_type n_ctx no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type prefix
    pretraining_tp problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tie_encoder_decoder tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)


class Keys:
    """The table of a config.json.

    table: all of it. source: the file, for the error's text.
    """

    def __init__(self, table: Mapping[str, Any], source: Any) -> None:
        self.table, self.source = table, source
        self._asked: set[str] = set(MEANINGLESS)

    def _value(self, name: str, default: Any) -> Any:
        """Return a value; where it is missing or null, the default."""
        self._asked.add(name)
        value = self.table.get(name)
        if value is None:
            if default is REQUIRED:
                raise InputError(f"{self.source} has no {name}; the folder is not whole")
            return default
        return value

    def wrong(self, name: str, wanted: str) -> NoReturn:
        """Raise InputError for a value of another type or range."""
        raise InputError(f"{self.source}: {name} takes {wanted}, got {self.table.get(name)!r:.80}")

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise InputError for a value that makes it a model which cannot be built here."""
        raise InputError(f"{self.source}: {name} = {self.table.get(name)!r:.80} is not supported: {why}")

    def whole(self, name: str, default: Any = REQUIRED, *, least: int = 1) -> Any:
        """Return a whole number, 1 or more unless `least` says otherwise; a default may be None."""
        value = self._value(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < LARGEST:
            self.wrong(name, f"a whole number from {least} to {LARGEST - 1}")
        return value

    def layers(self, name: str) -> int:
        """Return the number of layers, of which lists are made."""
        count = self.whole(name)
        if count > MOST_LAYERS:
            self.wrong(name, f"at most {MOST_LAYERS:,}")
        return count

    def fraction(self, name: str, default: Any = REQUIRED) -> float:
        """Return a number, 0 or more."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            self.wrong(name, "a number, 0 or more")
        return float(value)

    def share(self, name: str, default: Any = REQUIRED) -> float:
        """Return a probability of dropout, in [0, 1)."""
        value = self.fraction(name, default)
        if value >= 1:
            self.wrong(name, "a number in [0, 1)")
        return value

    def positive(self, name: str, default: Any = REQUIRED) -> float:
        """Return a number above 0."""
        value = self.fraction(name, default)
        if value == 0:
            self.wrong(name, "a number above 0")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.wrong(name, "true or false")
        return value

    def choice(self, name: str, meanings: Mapping[str, Any], default: str) -> Any:
        """Return what a word means.

        Raises:
            InputError: a word that has no meaning here.
        """
        value = self._value(name, default)
        if not isinstance(value, str) or value not in meanings:
            self.refuse(name, f"it is one of {', '.join(meanings)}")
        return meanings[value]

    def only(self, name: str, value: Any) -> None:
        """Raise InputError where a setting is there and has not the one value that can be built here."""
        came = self._value(name, value)
        if came != value or type(came) is not type(value):
            self.refuse(name, f"only {str(value).lower() if isinstance(value, bool) else value} is")

    def ignore(self, name: str) -> None:
        """Let a setting be what it will."""
        self._asked.add(name)

    def absent(self, name: str) -> None:
        """Raise InputError where a setting is there and not null."""
        if self._value(name, None) is not None:
            self.refuse(name, "leave it out")

    def table_of(self, name: str) -> Mapping[str, Any] | None:
        """Return a table, None where it is missing."""
        value = self._value(name, None)
        if value is not None and not isinstance(value, dict):
            self.wrong(name, "a table")
        return value

    def words(self, name: str) -> list[str] | None:
        """Return a list of words, None where it is missing."""
        value = self._value(name, None)
        if value is not None and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
            self.wrong(name, "a list of words")
        return value

    def strangers(self) -> list[str]:
        """Return the keys that nobody asked for: transformers does not know them for this model either."""
        return sorted(self.table.keys() - self._asked)
