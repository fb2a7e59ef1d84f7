"""A checkpoint is copied once, straight from the mapped file into the parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillm.exporting import export_model
from minillm.importing import save_run
from minillm.loading import Loaded
from minillm.model.config import ModelConfig
from minillm.model.init import Undrawn
from minillm.model.transformer import build_model

SCRIPT = """
import json, sys, threading, time
import torch
from minillm.loading import load

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)

before = anonymous()
threading.Thread(target=watch).start()
loaded = load(sys.argv[1])
done.set()
size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
print(json.dumps({"size": size, "grown": max(peak, anonymous()) - before}))
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A folder with GPT-2 small, 124 million parameters, as a Hugging Face folder and as a run: zeros do."""
    place = tmp_path_factory.mktemp("gpt2")
    with Undrawn():
        model = build_model(ModelConfig(vocab_size=50257))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    export_model(model, place / "theirs", tokenizer=None)
    save_run(Loaded(model=model, tokenizer=None, config=None, folder=place, step=0), place / "run")
    return place


@pytest.mark.parametrize("kind", ["theirs", "run"])
def test_loading_takes_no_more_memory_than_the_weights(gpt2, kind) -> None:
    """Anonymous memory at its highest, above what stood before; GPT-2 is the family whose weights are transposed."""
    words = [sys.executable, "-c", SCRIPT, str(gpt2 / kind)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["size"] == 4 * 124_439_808
    assert 0.99 * found["size"] < found["grown"] < 1.2 * found["size"]
