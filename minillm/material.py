"""What a run learns from and is judged on: text as tokens, batches, the objective. Made before any weight exists.

Read next: `pretrain.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm.anchors import Anchor, causal_anchors, masked_anchors
from minillm.checkpoint.lock import locked
from minillm.checkpoint.run_folder import RunFolder, read_json
from minillm.data.corpora import Against, Corpus, Split, open_corpus
from minillm.data.loader import Loader
from minillm.data.shards import TokenStore, open_prepared, prepare, remove_leftovers
from minillm.errors import InputError
from minillm.evaluate import Evaluation, evaluate
from minillm.model.transformer import Decoder, Encoder
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.masked_lm import MaskedLM
from minillm.pretrain_config import PretrainConfig
from minillm.tokenizer.base import Tokenizer
from minillm.training.progress import Progress

LOCK = "tokens.lock"  # not that of a run's trainer: `data.cache` may name a run folder
EVAL_BATCH = 64  # held-out sequences whose masks are drawn together: a number of its own, so that figures compare
EVAL_SEED = 0  # of those masks, likewise
EVAL_GLANCE = 8  # such batches looked at during training; the figures at the end are on all of them


@dataclass(frozen=True, kw_only=True)
class Material:
    """A corpus as a model meets it.

    train, valid: tokens of the two splits.
    loader: of training batches. held_out: of batches of the held-out text.
    objective: what is learnt. judge: what is asked on held-out text, the same for every masking, rate and seed.
    rows: sequences that fit on the device at once.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    train: TokenStore
    valid: TokenStore
    loader: Loader
    held_out: Loader
    objective: CausalLM | MaskedLM
    judge: CausalLM | MaskedLM
    rows: int

    def evaluate(self, model: Encoder | Decoder) -> Evaluation:
        """Return the figures of a model on all held-out text."""
        batches = self.held_out.eval_batches(EVAL_BATCH)
        return evaluate(model, self.judge, batches, num_bytes=self.valid.num_bytes, rows=self.rows)

    def glance(self, model: Encoder | Decoder) -> Mapping[str, float]:
        """Return the loss on the first held-out sequences, for a look during training."""
        batches = self.held_out.eval_batches(EVAL_BATCH)
        looked = evaluate(model, self.judge, batches, max_batches=EVAL_GLANCE, rows=self.rows)
        return {"loss": looked.loss}

    def anchors(self, cache: Path | None = None) -> list[Anchor]:
        """Return the simple models that learnt from the same text, on the same held-out text."""
        if isinstance(self.judge, CausalLM):
            return causal_anchors(self.corpus, cache=cache)
        return masked_anchors(
            self.train.tokens,
            self.train.bounds,
            self.held_out.eval_batches(EVAL_BATCH),
            self.judge,
            vocab_size=self.tokenizer.vocab_size,
        )


def gather(
    config: PretrainConfig,
    folder: RunFolder,
    tokenizer: Tokenizer,
    *,
    held_out: tuple[str, Path] | None = None,
    own_hand: bool = True,
    progress: Progress | None = None,
) -> Material:
    """Return the material of a run; text becomes token shards where it is not yet.

    Args:
        config: its sections data, objective, model (context and kind) and train (batch size and seed) are read.
        folder: of the run; shards go into it, or into `data.cache`.
        tokenizer: of the run.
        held_out: another text, all of which is held out in place of the run's own, and a folder for its shards.
        own_hand: the user named `data.cache` just now. False: it is what a run folder says, which somebody else may
            have made; shards that are there are read, and nothing is written outside of the run folder.
        progress: draws a bar while text is encoded; None: nothing.
    Raises:
        InputError: no such text, text that is too short, or text that is not what the run was begun with.
    """
    corpus = _corpus_of(folder, config)
    prefix, suffix = tokenizer.specials.around(config.model.kind)
    stores = functools.partial(token_stores, tokenizer=tokenizer, prefix=prefix, suffix=suffix, progress=progress)

    def loader(store: TokenStore, seed: int) -> Loader:
        return Loader(
            store,
            context=config.model.context,
            batch_size=config.train.batch_size,
            shift=config.model.kind == "decoder",
            document_mask=config.data.document_mask,
            layout=config.data.layout,
            padding_side=config.data.padding_side,
            pad=tokenizer.specials.pad,
            seed=seed,
        )

    cache = None if config.data.cache is None else Path(config.data.cache)
    found = None
    if cache is not None and not own_hand:
        found = open_prepared(corpus, tokenizer, cache, prefix=prefix, suffix=suffix)
    if found is None:
        found = stores(corpus, folder=cache if cache is not None and own_hand else folder.tokens_path)
    train, valid = found
    if held_out is not None:
        corpus = Against(corpus, open_corpus(held_out[0]))
        (valid,) = stores(corpus, folder=held_out[1], splits=("valid",))
    return Material(
        corpus=corpus,
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        loader=loader(train, config.train.seed),
        held_out=loader(valid, EVAL_SEED),
        objective=make_objective(config, tokenizer),
        judge=make_objective(dataclasses.replace(config, objective=config.objective.for_evaluation()), tokenizer),
        rows=config.train.micro_batch_size or config.train.batch_size,
    )


def token_stores(
    corpus: Corpus,
    *,
    tokenizer: Tokenizer,
    folder: Path,
    prefix: Sequence[int],
    suffix: Sequence[int],
    splits: Sequence[Split] = ("train", "valid"),
    progress: Progress | None = None,
) -> list[TokenStore]:
    """Return splits of a corpus as tokens; where their shards are not there yet, one process at a time makes some.

    Args:
        folder: of the shards; another process may want shards of its own in it.
        progress: says for whom is waited, and draws a bar while text is encoded; None: nothing.
        corpus, tokenizer, prefix, suffix, splits: as in `data.shards.prepare`.
    Raises:
        InputError: there is no text.
        OSError: the shards cannot be written.
    """
    stores = open_prepared(corpus, tokenizer, folder, prefix=prefix, suffix=suffix, splits=splits)
    if stores is not None:
        return stores  # no lock: the folder may be one that cannot be written

    def waiting(number: int | None) -> None:
        if progress is not None:
            who = "another process" if number is None else f"process {number}"
            progress.note(f"waiting for {who}, which writes token shards in {folder}")

    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, str(folder), wait=waiting) as held:
        if held:
            remove_leftovers(folder)
        prepare(
            corpus,
            tokenizer,
            folder,
            prefix=prefix,
            suffix=suffix,
            splits=splits,
            on_progress=None if progress is None else functools.partial(progress.share, "encoding"),
        )
        return [TokenStore.open(folder, split) for split in splits]


def make_objective(config: PretrainConfig, tokenizer: Tokenizer) -> CausalLM | MaskedLM:
    """Return the objective of a configuration.

    Raises:
        InputError: masked LM with a tokenizer that has no mask symbol.
    """
    if config.objective.name == "causal_lm":
        return CausalLM(config.objective)
    if tokenizer.specials.mask is None:
        raise InputError("masked_lm needs a tokenizer with a mask symbol, and this one has none; train one of its own")
    return MaskedLM(
        config.objective,
        vocab_size=tokenizer.vocab_size,
        mask_token=tokenizer.specials.mask,
        control_tokens=sorted(tokenizer.control_ids()),
        word_classes=tokenizer.word_classes() if config.objective.masking != "token" else None,
    )


def _corpus_of(folder: RunFolder, config: PretrainConfig) -> Corpus:
    """Return the text of a run.

    Raises:
        InputError: there is none, or the run keeps the digest of another one.
    """
    name, begun = config.data.input, folder.corpus_path.exists()
    try:
        corpus = open_corpus(name, valid_fraction=config.data.valid_fraction)
    except InputError as error:
        if not begun:
            raise
        raise InputError(
            f"the text that {folder} learnt from, data.input in its config.toml, is not here: {error}; go to where the "
            f"run was begun, or bring the text"
        ) from error
    if begun and read_json(folder.corpus_path).get("digest") != corpus.digest:
        raise InputError(
            f"the text of {name} is not what {folder} was begun with (its digest differs); bring the old text back, "
            f"or begin a new run with --init {folder.quoted}"
        )
    return corpus
