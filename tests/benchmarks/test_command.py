"""The command, as a user starts it: what it takes, what it writes and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import launches, sections
from benchmarks.context import Context

ROOT = Path(__file__).parents[2]


def start(*words, **more):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | more
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_quick_run_of_two_ops_writes_a_result_and_a_page(tmp_path):
    """The compilers are left out of a quick run: they would take most of the time."""
    words = ("--quick", "--only", "ops", "--ops", "relu,rms_norm", "--skip", "SDPA math", "--out", str(tmp_path))
    done = start(*words, PYTHONPATH="")  # from a checkout alone
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.splitlines()[-1])
    result = json.loads(page.with_suffix(".json").read_text())
    rows = result["sections"]["ops"]["rows"]
    assert {r["op"] for r in rows} == {"relu", "rms_norm"}
    assert {r["provider"] for r in rows} == {"fused", "torch", "reference", "F.relu", "F.rms_norm", "Liger", "copy"}
    assert "defect" not in result["sections"]["ops"]
    assert result["sections"]["ops"]["not_run"] == []
    assert result["header"]["commit"] and result["header"]["versions"]["torch"]
    assert "### relu" in page.read_text()
    assert "benchmarks --quick --only ops --ops relu,rms_norm --skip 'SDPA math'`" in page.read_text()
    assert list(page.parent.glob("*-speedup.png"))


@pytest.mark.skipif(shutil.which("make") is None, reason="without make")
@pytest.mark.parametrize("given, after", [("", ""), ("/peers", ":/peers")], ids=["nothing", "a folder of peers"])
def test_make_bench_adds_to_the_pythonpath_that_it_is_given(tmp_path, given, after):
    """So a peer that is not installed, such as unpacked wheels, is found."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -m ] && echo "$PYTHONPATH" "$@"\nexit 0\n')
    python.chmod(0o755)
    words = ["make", "--no-print-directory", "bench", f"PYTHON={python}", "READY=no/such/file", "BENCH=--quick"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ({"PYTHONPATH": given} if given else {})
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f".:kernels{after}", "-m", "benchmarks", "--quick"]


def test_nothing_but_torch_is_needed_to_list_the_sections_and_the_recipes():
    """What only a recipe's own process needs may be missing: its rows then say so."""
    missing = (
        "einops",
        "safetensors",
        "rich",
        "tyro",
        "tomli_w",
        "sentencepiece",
        "transformers",
        "matplotlib",
        "triton",
    )
    program = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    program += "from benchmarks import __main__, sections\nfrom benchmarks.training.recipes import recipes\n"
    program += "print(len(recipes()), len(sections.SECTIONS))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "7"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["--only", "nothing"], "nothing"),
        (["--quick", "--only", "scaling"], "a quick run has no scaling; leave out --quick"),
        (["--ops", "relo"], "relu"),
        (["--ops", ""], "relu"),
        (["--skip", "turbo"], "torch.compile"),
        (["--compare", "no-such-file", "other"], "no-such-file"),
        (["--compare", "README.md", "README.md"], "README.md is not a result"),
        (["--out", "README.md"], "README.md"),
        (["--what"], "--what"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_input_is_one_line_and_status_2(capsys, monkeypatch, words, told):
    monkeypatch.chdir(ROOT)
    try:
        status = command.main(words)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2
    assert said.count("\n") == 1 and told in said


def test_names_of_sections_are_those_there_are():
    assert tuple(s.name for s in sections.SECTIONS) == command.SECTION_NAMES


def test_launch_tables_are_a_gpus_and_a_cpu_says_so():
    (found,) = launches.launches(Context("cpu", False, None, [], 1.0, lambda text: None))
    assert "a GPU's kernels" in found["reason"]
