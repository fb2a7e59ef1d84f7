"""lm-evaluation-harness itself on an exported folder: the log-likelihoods that it reports are ours, text by text.

`make test-interop` installs it into .venv-lm-eval and runs this: the task and the command of docs/huggingface.md, word
for word, on texts of its own. With MINILLM_RECORD=1 in the environment what it says is written to `recorded/`, which
`make test` checks `minillm.evaluate` against.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rolling import evaluated, log_likelihood, texts

from minillm.exporting import export_model
from minillm.model.transformer import Transformer
from minillm.tokenizer.base import Tokenizer

pytestmark = pytest.mark.interop
ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-lm-eval/bin"
PAGE = (ROOT / "docs/huggingface.md").read_text(encoding="utf-8")
FOLDER = "runs/weather-hf"  # of the page
CLOSE = 1e-5  # relative: sums of float32, added in another order
CHOICES = [
    {"prompt": "The lamp was lit at", "choices": ["dusk.", "noon, not later", "汉字"], "label": 0},
    {"prompt": "  two  spaces\n\tand a tab ", "choices": ["</s>", "a"], "label": 1},
    {"prompt": "😀", "choices": ["e\u0301", "x", "two words", "."], "label": 3},
]
CHOOSING = """
task: choosing
dataset_path: json
dataset_kwargs: {data_files: {test: choosing.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}]
"""


def from_page() -> tuple[str, str]:
    """Return the page's task and its command."""
    (task,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^lm_eval .*$", PAGE, flags=re.MULTILINE)
    return task, command


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tiny.tokenizer()


@pytest.fixture(params=["llama", "qwen3"])
def name(request: pytest.FixtureRequest) -> str:
    """Both kinds of decoder that are pretrained here as a rule."""
    return request.param


@pytest.fixture
def model(name: str) -> Transformer:
    return tiny.model(name)


@pytest.fixture
def place(model: Transformer, bpe: Tokenizer, tmp_path: Path) -> Path:
    """A folder with the exported model, two tasks and their texts."""
    export_model(model, tmp_path / FOLDER, tokenizer=bpe)
    tables = {"sea": [{"text": text} for text in texts()], "choosing": CHOICES}
    for name, rows in tables.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "sea.yaml").write_text(from_page()[0])
    (tmp_path / "choosing.yaml").write_text(CHOOSING)
    return tmp_path


def harness(place: Path, command: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the results of a command of lm_eval, by task, and the responses to each text of the tasks."""
    out = place / "said"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place / "cache")}
    words = [*shlex.split(command), "--output_path", str(out), "--log_samples"]
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=place,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.rglob("results_*.json")
    said: dict[str, list[Any]] = {}
    for samples in out.rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in samples.read_text().split("\n") if line]  # texts have other line ends
        said[samples.name.split("_")[1]] = [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return json.loads(path.read_text())["results"], said


def record(came: list[float], bits_per_byte: float, apart: float) -> None:
    """Write what the harness said of the tiny Llama, for `make test`."""
    names = ("lm_eval", "torch", "transformers", "datasets")
    asking = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    versions = subprocess.run([str(BIN / "python"), "-c", asking], capture_output=True, text=True, check=True).stdout
    table = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": json.loads(versions),
        "largest_relative_difference": apart,
        "bits_per_byte": bits_per_byte,
        "log_likelihoods": came,
    }
    (tiny.RECORDED / "lm_eval.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def test_the_command_of_the_page(place: Path, name: str, model: Transformer, bpe: Tokenizer) -> None:
    """Each text's log-likelihood, and bits per byte of all, are those of `minillm.evaluate`."""
    results, said = harness(place, from_page()[1])
    ids = [bpe.encode(text) for text in texts()]
    assert max(map(len, ids)) > 2 * model.config.context
    came = [float(response) for ((response,),) in said["sea"]]
    wanted = [log_likelihood(model, text, bpe.specials.bos) for text in ids]
    assert came == pytest.approx(wanted, rel=CLOSE)
    whole = evaluated(model, ids, bpe.specials.bos, num_bytes=sum(len(text.encode()) for text in texts()))
    assert whole.bits_per_byte is not None
    assert results["sea"]["bits_per_byte,none"] == pytest.approx(whole.bits_per_byte, rel=CLOSE)
    assert results["sea"]["byte_perplexity,none"] == pytest.approx(2**whole.bits_per_byte, rel=CLOSE)
    if name == "llama" and os.environ.get("MINILLM_RECORD"):
        apart = max(abs(c - w) / abs(w) for c, w in zip(came, wanted, strict=True))
        record(came, results["sea"]["bits_per_byte,none"], apart)


@torch.no_grad()
def test_choices_and_what_a_second_symbol_does(place: Path, model: Transformer, bpe: Tokenizer) -> None:
    """Without `add_bos_token` prompts begin with one symbol, as here; whole texts with two, the second asked for."""
    results, said = harness(
        place, f"lm_eval --model hf --model_args pretrained={FOLDER} --tasks sea.yaml,choosing.yaml"
    )
    bos, hits = bpe.specials.bos, 0
    for row, responses in zip(CHOICES, said["choosing"], strict=True):
        prompt = len(bpe.encode(row["prompt"].rstrip()))
        wanted = []
        for choice in row["choices"]:
            ids = torch.tensor([bos, *bpe.encode(f"{row['prompt']} {choice}")])
            logs = model.logits(ids[None, :-1])[0].log_softmax(-1)
            wanted.append(float(logs.gather(1, ids[1:, None])[prompt:].sum()))
        assert [float(response[0]) for (response,) in responses] == pytest.approx(wanted, rel=CLOSE)
        hits += wanted.index(max(wanted)) == row["label"]
    assert math.isclose(results["choosing"]["acc,none"], hits / len(CHOICES))
    twice = [log_likelihood(model, [bos, *bpe.encode(text)], bos) for text in texts()]
    assert [float(response) for ((response,),) in said["sea"]] == pytest.approx(twice, rel=CLOSE)
