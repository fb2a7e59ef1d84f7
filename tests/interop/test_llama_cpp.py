"""llama.cpp itself, on GGUF files that its own converter made of exported folders: the same ids, logits within 1e-3.

`make test-interop` builds llama.cpp into .venv-interop and runs this; with MINILLM_RECORD=1 in the environment what it
says is written to `recorded/`, which `make test` checks the export against.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import minillm
from minillm.checkpoint.hf.families import FAMILIES
from minillm.exporting import export_model
from minillm.finetune.adapters.attach import attach, detach
from minillm.finetune.adapters.config import LoRAConfig
from minillm.finetune.adapters.peft import save_peft

pytestmark = pytest.mark.interop
ROOT = Path(__file__).parents[2]
LLAMA_CPP = ROOT / ".venv-interop/llama_cpp_python/vendor/llama.cpp"
NO_PREFIX = {"tokenizer.ggml.add_space_prefix": False}  # the converter writes it for Llama and Mistral alone


def convert(script: str, *words: Any) -> subprocess.CompletedProcess[str]:
    """Run one of llama.cpp's converters as it is, in this environment."""
    command = [sys.executable, str(LLAMA_CPP / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def to_gguf(folder: Path) -> Path:
    """Return the GGUF file, in float32, of an exported folder."""
    path = folder.with_suffix(".gguf")
    done = convert("convert_hf_to_gguf.py", folder, "--outtype", "f32", "--outfile", path)
    assert done.returncode == 0, done.stderr
    return path


def ask(model: Path, texts: list[str], prompt: list[Any], **options: Any) -> dict[str, Any]:
    """Return what llama.cpp says; see answers.py."""
    question = {
        "model": str(model),
        "texts": texts,
        "prompt": prompt,
        "adapter": None,
        "encoder": False,
        "overrides": {},
    }
    done = subprocess.run(
        [str(ROOT / ".venv-interop/bin/python"), str(Path(__file__).parent / "answers.py")],
        input=json.dumps(question | options),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def bpe() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, bpe: Any) -> Callable[[str], Path]:
    """Return the folder of a tiny model, by name."""
    folder = tmp_path_factory.mktemp("exported")

    def export(name: str) -> Path:
        if not (folder / name).exists():
            export_model(tiny.model(name), folder / name, tokenizer=bpe)
        return folder / name

    return export


def distance(said: dict[str, Any], logits: torch.Tensor) -> float:
    return float(np.abs(np.array(said["logits"]) - logits.numpy()).max())


@pytest.mark.parametrize("name", tiny.MODELS)
def test_ids_and_logits(exported: Any, bpe: Any, name: str) -> None:
    """For every family that llama.cpp reads with our tokenizer; Mistral within its window, which llama.cpp ignores."""
    prompt = tiny.prompt(tiny.MODELS[name].get("window", 48))
    folder = exported(name)
    said = ask(to_gguf(folder), tiny.texts(), prompt, overrides=NO_PREFIX if name == "qwen3" else {})
    assert said["ids"] == [[1, *bpe.encode(text)] for text in tiny.texts()]
    with torch.no_grad():
        logits = tiny.model(name).logits(torch.tensor([prompt]))[0]
    apart = distance(said, logits)
    assert apart < 1e-3
    if name == "llama" and os.environ.get("MINILLM_RECORD"):
        record(folder, said, prompt, apart)


def record(folder: Path, said: dict[str, Any], prompt: list[int], apart: float) -> None:
    """Write what llama.cpp said, and the file that it read, for `make test`."""
    shutil.copyfile(folder.with_suffix(".gguf"), tiny.RECORDED / "llama.gguf")
    packages = ("torch", "transformers", "sentencepiece", "tokenizers")
    table = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"llama-cpp-python": said["version"]}
        | {name: importlib.metadata.version(name) for name in packages},
        "largest_difference_of_logits": apart,
        "prompt": prompt,
        "last_logits": said["logits"][-1],
        "ids": {text: ids for text, ids in zip(tiny.texts(), said["ids"], strict=True) if len(text) < 200},
    }
    (tiny.RECORDED / "llama.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def test_control_symbols_only_when_asked(exported: Any, bpe: Any) -> None:
    """`special=True` makes the symbol of its name; the default does not."""
    said = ask(to_gguf(exported("llama")), ["the</s>", "the</s>", *["a"] * 18], [1])
    assert said["ids"][0] == [1, *bpe.encode("the</s>")]
    assert said["with_symbols"][0] == [1, *bpe.encode("the"), 2]


def test_an_adapter(exported: Any, tmp_path: Path) -> None:
    """A LoRA goes through PEFT's format and llama.cpp's own converter onto the base model."""
    model, prompt = tiny.model("llama"), tiny.prompt(48)
    with torch.no_grad():
        bare = model.logits(torch.tensor([prompt]))[0]
        attach(model, LoRAConfig(rank=4, alpha=8.0, targets=("all",)))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        logits = model.logits(torch.tensor([prompt]))[0]
    save_peft(model, tmp_path / "adapter", family=FAMILIES["llama"], purpose="causal_lm")
    detach(model)
    base, adapter = exported("llama"), tmp_path / "adapter.gguf"
    done = convert(
        "convert_lora_to_gguf.py", tmp_path / "adapter", "--base", base, "--outtype", "f32", "--outfile", adapter
    )
    assert done.returncode == 0, done.stderr
    said = ask(to_gguf(base), [], prompt, adapter=str(adapter))
    assert distance(said, bare) > 0.1 and distance(said, logits) < 1e-3


def test_real_bert(minilm: Path, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, imported and exported: ids, and hidden states within 1e-3 of the largest one.

    llama.cpp's GELU is a table of float16 values, so a BERT's numbers are no nearer than that.
    """
    loaded = minillm.load(minilm)
    texts = ["A fine film, not a bad one.", "The café: naïve, 汉字 😀", *tiny.ODD[3:11]]
    export_model(loaded.model, tmp_path / "minilm", tokenizer=loaded.tokenizer, origin=loaded.origin)
    said = ask(to_gguf(tmp_path / "minilm"), texts, texts, encoder=True)
    tokenizer = loaded.require_tokenizer()
    for text, ids, hidden in zip(texts, said["ids"], said["logits"], strict=True):
        framed = [tokenizer.specials.cls, *tokenizer.encode(text), tokenizer.specials.sep]
        assert ids == framed, text
        with torch.no_grad():
            wanted = loaded.model(torch.tensor([framed]))[0]
        assert distance({"logits": hidden}, wanted) < 1e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("kind", ["unigram", "byte", "char"])
def test_what_the_converter_refuses(kind: Any, tmp_path: Path) -> None:
    """Tokenizers that llama.cpp has not end in its error, and not in a file with other ids."""
    tokenizer = tiny.tokenizer(kind)
    export_model(tiny.model("llama", tokenizer.vocab_size), tmp_path / "model", tokenizer=tokenizer)
    done = convert("convert_hf_to_gguf.py", tmp_path / "model", "--outfile", tmp_path / "model.gguf")
    assert done.returncode != 0 and "pre-tokenizer was not recognized" in done.stderr
    assert not (tmp_path / "model.gguf").exists()
