"""Single labels, several labels and numbers: losses by their formulae, gradients, padding, windows, saved weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from minillm_kernels import backend
from torch.nn import functional as F

from minillm.checkpoint.native import put_tensors, tensors_of
from minillm.data.batch import Batch
from minillm.errors import InputError
from minillm.finetune.config import HeadConfig, TaskConfig, TaskFacts, TaskModelConfig, TextConfig
from minillm.finetune.heads import TextHead, pool
from minillm.finetune.loader import collate
from minillm.finetune.predictions import Predictions
from minillm.finetune.table import Columns, Table
from minillm.finetune.task_model import TaskModel
from minillm.finetune.tasks.multi_label import MultiLabel
from minillm.finetune.tasks.regression import Regression
from minillm.finetune.tasks.single_label import SingleLabel
from minillm.model.config import ModelConfig
from minillm.model.transformer import build_model
from minillm.training.gradient import add_gradient, targets_in

TEXTS = ["a", "the cat", "rain fell all day", "no", "in the evening", "the dog slept by the fire"]
LABELS = {
    "single_label": ["b", "a", "b", "c", "b", "b"],
    "multi_label": [["a"], [], ["a", "b"], ["c"], ["b"], ["a", "c"]],
    "regression": [1.0, 2.5, -3.0, 0.0, 7.0, -100.0],  # -100 is a number like any other
}
TASKS = {task.name: task for task in (SingleLabel, MultiLabel, Regression)}
COLUMNS = Columns(text="text", label="label")
PLACES = np.arange(len(TEXTS))
CASES = [
    pytest.param("single_label", "encoder", {}, {}, id="single-mean"),
    pytest.param("single_label", "encoder", {"pooling": "cls"}, {"label_smoothing": 0.1}, id="single-cls-smoothed"),
    pytest.param("single_label", "encoder", {"pooling": "pooler"}, {"class_weights": "balanced"}, id="single-pooler"),
    pytest.param("single_label", "decoder", {}, {"class_weights": "balanced"}, id="single-last"),
    pytest.param("single_label", "decoder", {"pooling": "mean"}, {}, id="single-decoder-mean"),
    pytest.param("multi_label", "encoder", {}, {"class_weights": "balanced"}, id="multi-mean"),
    pytest.param("multi_label", "decoder", {}, {"label_smoothing": 0.2}, id="multi-last"),
    pytest.param("regression", "encoder", {"pooling": "last"}, {}, id="regression-encoder-last"),
    pytest.param("regression", "decoder", {}, {}, id="regression-last"),
]


def table(name, texts=TEXTS, labels=None):
    columns = {"text": list(texts), "label": labels or LABELS[name][: len(texts)]}
    return Table(path="some.jsonl", columns=columns, lines=range(1, len(texts) + 1))


@pytest.fixture
def parts(task_model):
    """Return a function: name, kind, head, settings of the task -> (task, model in float64, its sequences)."""

    def make(name, kind="encoder", head=None, choices=None, **shape):
        task = TASKS[name].learn(TaskConfig(name=name, **(choices or {})), table(name), COLUMNS)
        model, encoder = task_model(task, kind, context=32, **shape)
        torch.manual_seed(1)
        settings = HeadConfig(**({"dropout": 0.0} | (head or {})))
        model.head = task.make_head(settings, model.config.backbone).double()
        return task, model, task.encode(table(name), COLUMNS, encoder, labelled=True)

    return make


def gradient(model):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def truth(task, logits, targets, choices):
    """Return the mean loss as PyTorch has it."""
    smoothing, balanced = choices.get("label_smoothing", 0.0), choices.get("class_weights") == "balanced"
    if task.name == "regression":
        numbers = targets.double()
        return F.mse_loss(logits[:, 0], (numbers - numbers.mean()) / numbers.std(correction=0))
    if task.name == "single_label":
        counts = torch.bincount(targets)
        weights = len(targets) / (len(counts) * counts.double()) if balanced else None
        return F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
    yes = targets.double()
    wanted = yes * (1 - smoothing) + smoothing / 2
    share = yes.mean(dim=0)
    weights = torch.where(targets == 1, 0.5 / share, 0.5 / (1 - share)) if balanced else torch.ones_like(yes)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("name, kind, head, choices", CASES)
def test_micro_batches_give_the_gradient_of_the_mean(parts, name, kind, head, choices):
    """The mean loss of the whole batch by PyTorch, weights and all, for every way of cutting it."""
    task, model, sequences = parts(name, kind, head, choices)
    batch = task.prepare(collate(sequences, PLACES, seed=1))
    expected_loss = truth(task, task.outputs(model.train(), batch), batch.targets, choices)
    expected_loss.backward()
    expected = gradient(model)
    assert all(p.grad is not None for p in model.head.parameters())
    for k in (1, 2, 3, 6):
        model.zero_grad()
        count = targets_in(batch)
        loss, excess = add_gradient(model, task, batch, count=count, micro_batches=k, device=torch.device("cpu"))
        assert (gradient(model) - expected).abs().max() < 1e-6 * expected.abs().max(), f"{k} micro-batches"
        assert abs(loss - expected_loss) < 1e-6 * expected_loss and abs(excess) < 1e-5 * count


@pytest.mark.parametrize("name", LABELS)
def test_the_loss_of_an_evaluation_is_that_of_training(parts, name):
    """On the same rows, so that the two curves of a run can be held against each other; in a regression too."""
    task, model, sequences = parts(name)
    batch = collate(sequences, PLACES)
    with torch.no_grad():
        loss = task.step(model.eval(), batch)
    figures = task.figures(task.predict(model, [(PLACES, batch)], sequences))
    assert figures["loss"] == pytest.approx(float(loss.total / loss.count), rel=1e-5)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name, kind, head, choices", CASES)
@torch.no_grad()
def test_padding_moves_no_logit(parts, name, kind, head, choices, left):
    """Each text alone and among longer ones, padded on either side, with whatever token."""
    task, model, sequences = parts(name, kind, head, choices)
    model.eval()
    for pad in (0, 3):
        together = task.outputs(model, collate(sequences, PLACES, pad=pad, left=left))
        for row in PLACES:
            alone = task.outputs(model, collate(sequences, np.array([row])))
            assert (alone[0] - together[row]).abs().max() < 1e-9


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("how", ["cls", "mean", "last", "pooler"])
def test_pooling_is_what_its_formula_says(how, left):
    """In NumPy's words, with NaN in the padding."""
    lengths = torch.tensor([1, 4, 3])
    starts = 4 - lengths if left else torch.zeros(3, dtype=torch.int64)
    hidden = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    columns = torch.arange(4)
    real = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
    hidden[~real] = torch.nan
    rows = [row[keep].numpy() for row, keep in zip(hidden, real, strict=True)]
    expected = {"mean": lambda r: r.mean(axis=0), "last": lambda r: r[-1]}.get(how, lambda r: r[0])
    found = pool(hidden, how, starts if left else None, lengths)
    np.testing.assert_allclose(found.numpy(), np.stack([expected(row) for row in rows]), rtol=1e-6)


def test_a_decoders_first_token_is_no_summary():
    decoder = ModelConfig(vocab_size=9, context=4, width=4, num_heads=1, num_layers=1)
    for pooling in ("cls", "pooler"):
        with pytest.raises(ValueError, match="first token of a decoder has seen no other; take last or mean"):
            TextHead(HeadConfig(pooling=pooling), decoder, 2)


def test_dropout_of_the_head_is_a_function_of_the_seed():
    """The same seed the same logits, another one others; none in evaluation mode."""
    config = ModelConfig(kind="encoder", vocab_size=9, context=4, width=32, num_heads=1, num_layers=1, init_std=0.5)
    task = SingleLabel(TaskConfig(), TaskFacts(labels=("a", "b")))
    head = HeadConfig(dropout=0.5)
    whole = TaskModelConfig(task=task.facts, text=TextConfig(), backbone=config, head=head)
    model = TaskModel(whole, build_model(config), task.make_head(head, config))
    tokens = torch.arange(8).view(2, 4)
    first, same, other = (model.train()(tokens, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(model.eval()(tokens, seed=5), model(tokens, seed=6))


def test_the_fused_backend_gives_the_same_on_a_small_model(parts):
    """Kernels in Triton's interpreter: loss and gradients within float32's rounding."""
    found = []
    for which in ("reference", "fused"):
        task, model, sequences = parts("single_label", "encoder", {"pooling": "pooler"}, {}, num_layers=1)
        model.float().compute_in(torch.float32)
        batch = task.prepare(collate(sequences, PLACES[:2], seed=1))
        with backend(which):
            loss = task.step(model.train(), batch)
            loss.total.backward()
        found.append((loss.total.detach(), gradient(model)))
    (a, da), (b, db) = found
    assert abs(a - b) < 1e-5 * abs(a) and (da - db).abs().max() < 1e-4 * da.abs().max()


def test_labels_are_sorted_whatever_their_order():
    """By code points, or as numbers where all are; the order of rows does not matter."""
    for names in (["b", "a", "c", "a", "b"], ["c", "b", "a", "a", "b"]):
        task = SingleLabel.learn(TaskConfig(), table("single_label", TEXTS[:5], names), COLUMNS)
        assert task.facts.labels == ("a", "b", "c")
        assert task.targets(table("single_label", TEXTS[:5], names), "label").tolist() == [
            "abc".index(n) for n in names
        ]
    numbers = SingleLabel.learn(TaskConfig(), table("single_label", TEXTS[:3], ["10", "9", "-1"]), COLUMNS)
    assert numbers.facts.labels == ("-1", "9", "10")
    longer = ["1" * 5000, "9", "10"]  # more digits than Python reads as a number
    assert SingleLabel.learn(TaskConfig(), table("single_label", TEXTS[:3], longer), COLUMNS).facts.labels[0] == "10"


def test_a_task_of_a_checkpoint_is_the_same(parts):
    """Windows, a pooler and all: tensors and facts alone give the same predictions."""
    for name in LABELS:
        task, model, sequences = parts(name, "encoder", {"pooling": "pooler"}, {})
        _, other, _ = parts(name, "encoder", {"pooling": "pooler"}, {})
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5).add_(0.1)
        put_tensors(other, tensors_of(model), source="a test")
        again = TASKS[name](TaskConfig(name=name), task.facts)
        batches = [(PLACES, collate(sequences, PLACES))]
        said, repeated = (t.predict(m, batches, sequences) for t, m in ((task, model), (again, other)))
        assert np.array_equal(said.logits, repeated.logits)
        assert list(task.answers(said)) == list(again.answers(repeated))


@pytest.mark.parametrize("name", LABELS)
def test_windows_of_a_text_become_one_answer(task_model, name):
    """Probabilities (numbers, in a regression) of its windows, each run by itself, averaged; short texts stay."""
    texts = ["short", "a text that is so long that it needs several windows " * 2, "end"]
    rows = table(name, texts)
    task = TASKS[name].learn(TaskConfig(name=name), table(name), COLUMNS)
    model, encoder = task_model(task, context=24, text={"long_texts": "windows", "overlap": 4})
    sequences = task.encode(rows, COLUMNS, encoder, labelled=True)
    assert len(sequences) > 4 and sequences.weights is not None
    said = task.predict(model, [(np.arange(len(sequences)), collate(sequences, np.arange(len(sequences))))], sequences)
    assert said.logits.shape == (3, task.outputs_per_text) and len(said.targets) == 3
    with torch.no_grad():
        each = [task.outputs(model.eval(), collate(sequences, np.array([s]))) for s in range(len(sequences))]
    outputs = torch.cat(each).double()
    shares = {"single_label": outputs.softmax(-1), "multi_label": outputs.sigmoid()}.get(name, outputs)
    for row in range(3):
        expected = shares[torch.from_numpy(sequences.rows == row)].mean(dim=0).numpy()
        if name == "regression":
            found = (said.logits[row] - task.facts.center) / task.facts.scale
        else:
            found = said.probabilities()[row]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "balanced, smoothing", [(False, 0.0), (True, 0.0), (True, 0.2)], ids=["plain", "balanced", "balanced-smoothed"]
)
@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_windows_count_once_a_text(task_model, name, balanced, smoothing):
    """A text of many windows beside one of one: each text's mean, then their mean, weighed by the labels' weights."""
    texts = ["short", "a text that is so long that it needs several windows " * 2]
    choices = TaskConfig(name=name, class_weights="balanced" if balanced else "none", label_smoothing=smoothing)
    task = TASKS[name].learn(choices, table(name), COLUMNS)
    model, encoder = task_model(task, context=24, text={"long_texts": "windows", "overlap": 4})
    sequences = task.encode(table(name, texts), COLUMNS, encoder, labelled=True)
    batch = task.prepare(collate(sequences, np.arange(len(sequences))))
    loss = task.step(model, batch)
    outputs, targets = task.outputs(model, batch).double(), batch.targets
    if name == "single_label":  # of six rows are one "a", four "b", one "c"
        losses = F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)
        weights = torch.tensor([2.0, 0.5, 2.0])[targets]
    else:  # and of the three labels are three, two, two
        wanted = targets.double() * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        yes, no = torch.tensor([1.0, 1.5, 1.5]), torch.tensor([1.0, 0.75, 0.75])
        weights = torch.where(targets == 1, yes, no)
    weights = weights if balanced else torch.ones_like(weights)
    assert len(sequences) > 3 and (not balanced or len(weights.unique()) > 1)
    total = (losses * weights)[0].sum() + (losses * weights)[1:].mean(dim=0).sum()
    count = weights[0].sum() + weights[1].sum()
    assert loss.count.item() == pytest.approx(count.item())
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-6)


def test_rows_without_a_target_count_nothing():
    """-100, or NaN in a regression."""
    single = SingleLabel(TaskConfig(), TaskFacts(labels=("a", "b")))
    batch = Batch(tokens=torch.zeros(3, 1, dtype=torch.int64), targets=torch.tensor([1, -100, 0]))
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    loss = single.loss(logits, batch)
    assert loss.count == 2 == targets_in(batch)
    assert loss.total == pytest.approx(F.cross_entropy(logits[[0, 2]], torch.tensor([1, 0]), reduction="sum").item())
    numbers = dataclasses.replace(batch, targets=torch.tensor([1.0, torch.nan, -100.0]))
    regression = Regression(TaskConfig(name="regression"), TaskFacts(name="regression"))
    loss = regression.loss(logits[:, :1], numbers)
    assert loss.count == 2 == targets_in(numbers)
    assert loss.total == pytest.approx(float((logits[0, 0] - 1) ** 2 + (logits[2, 0] + 100) ** 2))


def test_answers():
    """Labels by their likelihood, several at 0.5 or above, a number in the unit of the table."""
    logits = np.log(np.array([[0.2, 0.7, 0.1]], dtype=np.float32))
    single = SingleLabel(TaskConfig(), TaskFacts(labels=("a", "b", "c")))
    said = Predictions(task="single_label", logits=logits, targets=None, label_names=("a", "b", "c"))
    (answer,) = single.answers(said)
    assert answer["label"] == "b" and list(answer["probabilities"]) == ["b", "a", "c"]
    assert answer["probabilities"]["b"] == pytest.approx(0.7)
    (cooler,) = single.answers(said, temperature=2.0)
    assert cooler["probabilities"]["b"] == pytest.approx(0.7**0.5 / (0.2**0.5 + 0.7**0.5 + 0.1**0.5))
    multi = MultiLabel(TaskConfig(name="multi_label"), TaskFacts(name="multi_label", labels=("a", "b", "c")))
    said = dataclasses.replace(said, task="multi_label", logits=np.array([[1.0, -1.0, 0.0]], dtype=np.float32))
    assert next(multi.answers(said))["label"] == ["a", "c"]
    (cooler,) = multi.answers(said, temperature=2.0, thresholds=[0.63, 0.63, 0.5])  # 1 / (1 + exp(-1/2)) is 0.622
    assert cooler["probabilities"]["a"] == pytest.approx(1 / (1 + np.exp(-0.5))) and cooler["label"] == ["c"]
    regression = Regression(TaskConfig(name="regression"), TaskFacts(name="regression", center=3.0, scale=2.0))
    assert regression.in_unit(np.array([[0.5]], dtype=np.float32)).tolist() == [[4.0]]


def test_a_label_is_there_by_its_threshold_and_not_by_that_in_float32():
    """The threshold that the report decides by lies between 0.75 and the next number, and would be rounded to 0.75."""
    task = MultiLabel(TaskConfig(name="multi_label"), TaskFacts(name="multi_label", labels=("a",)))
    logits = np.log(np.array([[3.0]], dtype=np.float32))
    said = Predictions(task="multi_label", logits=logits, targets=None, label_names=("a",))
    above = (0.75 + float(np.nextafter(np.float32(0.75), np.float32(1)))) / 2
    assert next(task.answers(said, thresholds=[0.75]))["label"] == ["a"]
    assert next(task.answers(said, thresholds=[above]))["label"] == []


WRONG = [
    ("single_label", ["a"] * 6, "one class only: label is 'a' in all 6 rows"),
    ("single_label", ["a", "b", None, "a", "a", "b"], "line 3: label takes the name of a label, got None"),
    ("multi_label", [[]] * 6, "names no label"),
    ("multi_label", [["a"], 0.5, [], [], [], []], "line 2: label takes names of labels, got 0.5"),
    ("regression", [1.0] * 6, "label is 1 in all rows"),
    ("regression", [1.7e9, 1.7e9 + 4] * 3, "label is 1700000002 give or take 2, and float32 rounds"),
    ("regression", [1e-50, 2e-50, 3e-50] * 2, "float32 rounds such differences away"),
    ("regression", [1, 2, "three", 4, 5, 6], "line 3: label takes a number, got 'three'"),
    ("regression", [1, 2, float("inf"), 4, 5, 6], "line 3: label takes a number, got inf"),
    ("regression", [1, 2, "-1e308", 4, 5, 6], "line 3: label is '-1e308'; numbers go up to 1e.18"),
]


@pytest.mark.parametrize("name, labels, hint", WRONG)
def test_tables_that_pose_no_task(name, labels, hint):
    with pytest.raises(InputError, match=hint):
        TASKS[name].learn(TaskConfig(name=name), table(name, labels=labels), COLUMNS)


def test_a_column_of_texts_taken_for_labels():
    """As many labels as rows: the line says so before any training."""
    texts = [f"text {n}" for n in range(50)]
    rows = Table(path="a.csv", columns={"text": ["x"] * 50, "label": texts}, lines=range(50))
    with pytest.raises(InputError, match="50 different labels in 50 rows: is label the label's column"):
        SingleLabel.learn(TaskConfig(), rows, COLUMNS)


@pytest.mark.parametrize("name, seen, unseen", [("single_label", "a", "d"), ("multi_label", ["a"], ["b", "d"])])
def test_an_unseen_label_is_an_error_with_its_place(name, seen, unseen):
    task = TASKS[name].learn(TaskConfig(name=name), table(name), COLUMNS)
    rows = Table(path="dev.csv", columns={"text": ["x", "y"], "label": [seen, unseen]}, lines=[4, 6])
    with pytest.raises(
        InputError, match="dev.csv line 6: label is 'd', which is no label of the training table.* a, b, c"
    ):
        task.targets(rows, "label")


def test_a_cell_with_several_labels():
    rows = Table(path="a.csv", columns={"text": ["x", "y", "z"], "label": ["a|b", "", "c | a"]}, lines=[1, 2, 3])
    task = MultiLabel.learn(TaskConfig(name="multi_label"), rows, COLUMNS)
    assert task.facts.labels == ("a", "b", "c")
    assert task.targets(rows, "label").tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_a_pair_where_one_text_was_learnt_and_the_other_way_round(task_model):
    """A second text is left alone where the task has none, and asked for where it has."""
    rows = Table(path="a.csv", columns={"text": ["x"], "pair": ["y"], "label": ["a"]}, lines=[1])
    pair = Columns(text="text", pair="pair", label="label")
    alone = SingleLabel(TaskConfig(), TaskFacts(labels=("a", "b")))
    both = SingleLabel(TaskConfig(), TaskFacts(labels=("a", "b"), pairs=True))
    _, encoder = task_model(alone, token_types=2)
    assert alone.encode(rows, pair, encoder, labelled=False).lengths.tolist() == [3]
    assert both.encode(rows, pair, encoder, labelled=False).lengths.tolist() == [5]
    with pytest.raises(InputError, match="reads two texts at once, and a.csv has only text"):
        both.encode(rows, COLUMNS, encoder, labelled=False)
