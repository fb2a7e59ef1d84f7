"""What a run learns from: control symbols round documents, the objective that fits, and text that may not change."""

import dataclasses
import threading

import pytest

from minillm.checkpoint.run_folder import RunFolder
from minillm.data.corpora import open_corpus
from minillm.errors import InputError
from minillm.loading import load
from minillm.material import EVAL_BATCH, gather, make_objective
from minillm.objectives.causal_lm import CausalLM
from minillm.objectives.masked_lm import MaskedLM
from minillm.tokenizer.base import Specials
from minillm.tokenizer.byte import ByteTokenizer
from minillm.tokenizer.character import CharacterTokenizer

BYTES = ByteTokenizer()


@pytest.fixture
def text(tmp_path):
    """A folder of two texts, one of which is held out."""
    (tmp_path / "text").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"text/{name}.txt").write_text(f"Text {name} is so short.")
    return {"input": str(tmp_path / "text")}


@pytest.mark.parametrize("kind, before, after", [("decoder", 1, 2), ("encoder", 5, 6)])
def test_documents_stand_between_control_symbols(tiny_config, tmp_path, text, kind, before, after):
    """bos and eos for a decoder, cls and sep for an encoder; the shards lie in the run folder."""
    material = gather(tiny_config(kind, data=text), RunFolder(tmp_path / "run"), BYTES)
    (held_out,) = material.corpus.documents("valid")
    assert material.valid.tokens.tolist() == [before, *BYTES.encode(held_out), after]
    assert material.valid.num_bytes == len(held_out)
    assert (tmp_path / "run/tokens/meta.json").is_file()


def test_a_folder_for_shards(tiny_config, tmp_path, text):
    """data.cache takes them in place of the run folder."""
    gather(tiny_config(data=text | {"cache": str(tmp_path / "cache")}), RunFolder(tmp_path / "run"), BYTES)
    assert (tmp_path / "cache/meta.json").is_file() and not (tmp_path / "run").exists()


def test_runs_that_share_a_folder_for_shards_each_get_their_own_tokens(tiny_config, tmp_path, text):
    """Threads stand for processes, and begin at once. Two tokenizers, as many tokens: counts do not tell them apart."""
    config = tiny_config(data=text | {"cache": str(tmp_path / "cache")})
    (words,) = open_corpus(text["input"]).documents("train")
    tokenizers = [BYTES, CharacterTokenizer("".join(sorted(set(words + "ab"))))] * 3
    begin, found = threading.Barrier(len(tokenizers)), {}

    def run(number):
        begin.wait()
        store = gather(config, RunFolder(tmp_path / f"run{number}"), tokenizers[number]).train
        found[number] = tokenizers[number].decode(store.tokens[1:-1].tolist())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(tokenizers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(len(tokenizers)), words)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        ["meta.json", *(f"{split}.{part}" for split in ("train", "valid") for part in ("tokens", "bounds.npy"))]
    )


def test_a_folder_for_shards_that_is_a_run_being_trained(tiny_config, tmp_path, text):
    """Its trainer's lock is another one: nobody waits for the end of a training."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with folder.held():
        gather(tiny_config(data=text | {"cache": str(folder)}), folder, BYTES)
    assert (folder.path / "meta.json").is_file()


def test_a_run_folder_of_somebody_else_writes_nowhere_else(tiny_config, tmp_path, text):
    """What its config.toml calls the cache is read where whole shards of the text are, and never written."""
    config = tiny_config(data=text | {"cache": str(tmp_path / "cache")})
    gather(config, RunFolder(tmp_path / "run"), BYTES, own_hand=False)
    assert not (tmp_path / "cache").exists() and (tmp_path / "run/tokens/meta.json").is_file()
    gather(config, RunFolder(tmp_path / "run"), BYTES)
    gather(config, RunFolder(tmp_path / "other"), BYTES, own_hand=False)
    assert not (tmp_path / "other").exists()


def test_loader_follows_the_settings(tiny_config, tmp_path, text):
    """Layout, side, context, batch size and seed arrive; only a decoder's targets are shifted."""
    config = tiny_config(
        data=text | {"layout": "padded", "padding_side": "left", "document_mask": False}, train={"seed": 7}
    )
    loader = gather(config, RunFolder(tmp_path / "run"), BYTES).loader
    assert (loader.layout, loader.padding_side, loader.document_mask) == ("padded", "left", False)
    assert (loader.context, loader.batch_size, loader.seed, loader.shift, loader.pad) == (16, 4, 7, True, 3)
    assert not gather(tiny_config("encoder", data=text), RunFolder(tmp_path / "run"), BYTES).loader.shift


def test_another_text_is_held_out_whole(tiny_config, tmp_path, text):
    """`evaluate --data.input`: training text as before, all of the other one asked for."""
    (tmp_path / "other.txt").write_text("Quite another text.")
    config, folder = tiny_config(data=text), RunFolder(tmp_path / "run")
    material = gather(config, folder, BYTES, held_out=(str(tmp_path / "other.txt"), tmp_path / "there"))
    assert BYTES.decode(material.valid.tokens.tolist()) == "Quite another text." and material.valid.num_bytes == 19
    assert material.train.tokens.tolist() == gather(config, folder, BYTES).train.tokens.tolist()
    assert material.corpus.name == "other.txt"


def test_text_that_is_not_what_it_was(tiny_config, tmp_path, text):
    """The digest that the run keeps decides; the line's option can be copied."""
    config, folder = tiny_config(data=text), RunFolder(tmp_path / "my run")
    folder.create()
    folder.corpus_path.write_text(f'{{"digest": "{open_corpus(text["input"]).digest}"}}')
    gather(config, folder, BYTES)
    (tmp_path / "text/c.txt").write_text("A third text.")
    with pytest.raises(InputError, match="its digest differs.* --init '.*/my run'$"):
        gather(config, folder, BYTES)


@pytest.mark.parametrize("other", [False, True], ids=["its own text", "another one"])
def test_text_that_is_not_here(tiny_config, tmp_path, text, monkeypatch, other):
    """A relative path from another folder: the line says whose text it is, where it is named and where to go."""
    (tmp_path / "other.txt").write_text("Quite another text.")
    config, folder = tiny_config(data={"input": "text"}), RunFolder(tmp_path / "run")
    held_out = (str(tmp_path / "other.txt"), tmp_path / "there") if other else None
    monkeypatch.chdir(tmp_path)
    folder.create()
    folder.corpus_path.write_text(f'{{"digest": "{open_corpus("text").digest}"}}')
    gather(config, folder, BYTES, held_out=held_out)
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"run learnt from, data.input in its config.toml, is not here: no text at text.*go"
    ):
        gather(config, folder, BYTES, held_out=held_out)
    with pytest.raises(InputError, match="^no text at text"):  # of a run that only begins nothing is known yet
        gather(config, RunFolder(tmp_path / "new"), BYTES)


def test_objectives(tiny_config):
    """A decoder's and an encoder's; what masks by words gets the tokenizer's word classes."""
    assert isinstance(make_objective(tiny_config(), BYTES), CausalLM)
    masked = make_objective(tiny_config("encoder"), BYTES)
    assert isinstance(masked, MaskedLM) and masked.begins_inside is None and masked.mask_token == 4
    for masking in ("whole_word", "span"):
        by_words = make_objective(tiny_config("encoder", objective={"masking": masking}), BYTES)
        assert isinstance(by_words, MaskedLM) and by_words.begins_inside is not None
        assert by_words.begins_inside.tolist() == BYTES.word_classes()[0].tolist()


def test_no_control_symbol_is_hidden_or_drawn_at_random(tiny_config, monkeypatch):
    """Not one either that has no role, as an imported tokenizer's file may have some."""
    tokenizer = ByteTokenizer()
    control = {*tokenizer.specials.ids(), 100, 262}
    monkeypatch.setattr(tokenizer, "control_ids", lambda: control)
    masked = make_objective(tiny_config("encoder"), tokenizer)
    assert isinstance(masked, MaskedLM)
    assert set(masked.ordinary.tolist()) == set(range(tokenizer.vocab_size)) - control
    assert set((~masked.maskable).nonzero()[:, 0].tolist()) == control


def test_masked_lm_needs_a_mask(tiny_config):
    """A tokenizer without a mask symbol is the user's to replace."""
    bare = ByteTokenizer()
    bare.specials = dataclasses.replace(Specials(), unk=0)
    with pytest.raises(InputError, match="mask symbol"):
        make_objective(tiny_config("encoder"), bare)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_figures_do_not_depend_on_the_micro_batch(tiny_runs, kind):
    """One sequence at a time or all at once: the same targets and figures, of the model and of the anchors."""
    loaded = load(tiny_runs[kind])
    found = []
    for rows in (1, 4, None):
        config = dataclasses.replace(
            loaded.config, train=dataclasses.replace(loaded.config.train, micro_batch_size=rows, batch_size=4)
        )
        material = gather(config, RunFolder(tiny_runs[kind]), loaded.require_tokenizer())
        figures = material.evaluate(loaded.model)
        found.append((figures.targets, figures.loss, material.glance(loaded.model)["loss"], material.anchors()))
    for targets, loss, glance, anchors in found[1:]:
        assert targets == found[0][0] and anchors == found[0][3]
        assert (loss, glance) == pytest.approx(found[0][1:3], rel=1e-6)


def test_figures_do_not_depend_on_what_was_learnt_from(tiny_runs):
    """A model is asked for the same tokens whatever the masking, the rate and the seed of its training."""
    loaded = load(tiny_runs["encoder"])
    found = []
    for seed, changes in enumerate(({}, {"masking": "span", "rate": 0.4}, {"mask_share": 1.0, "random_share": 0.0})):
        config = dataclasses.replace(
            loaded.config,
            objective=dataclasses.replace(loaded.config.objective, **changes),
            train=dataclasses.replace(loaded.config.train, seed=seed),
        )
        material = gather(config, RunFolder(tiny_runs["encoder"]), loaded.require_tokenizer())
        assert material.objective.config == config.objective
        found.append((material.evaluate(loaded.model), material.glance(loaded.model), material.anchors()))
    assert found[0] == found[1] == found[2]
    control = loaded.require_tokenizer().specials.ids()
    rows = [row for batch in material.held_out.eval_batches(EVAL_BATCH) for row in _rows_of(batch)]
    ordinary = [sum(token not in control for token in row) for row in rows]
    assert found[0][0].targets == sum(max(1, round(0.15 * count)) for count in ordinary) > 40


def _rows_of(batch):
    """The tokens of each row, without padding."""
    lengths = [batch.tokens.shape[1]] * len(batch.tokens) if batch.lengths is None else batch.lengths.tolist()
    return [row[:length] for row, length in zip(batch.tokens.tolist(), lengths, strict=True)]


def test_a_glance_is_the_beginning(tiny_runs):
    """A short held-out text is seen whole in training, and so has the loss of the evaluation."""
    loaded = load(tiny_runs["decoder"])
    material = gather(loaded.config, RunFolder(tiny_runs["decoder"]), loaded.require_tokenizer())
    assert len(material.valid.tokens) < EVAL_BATCH * 16
    assert material.glance(loaded.model)["loss"] == pytest.approx(material.evaluate(loaded.model).loss)
