"""Two tiny runs, a decoder and an encoder, that the end-to-end tests look at; and the command line, in this process."""

import shutil

import pytest
from small_runs import options

from minillm import cli

SENTENCES = (
    "The cat sat on the mat and looked at the door.",
    "A dog came in, and the cat went out of the window.",
    "Rain fell all day; nobody saw the cat again until the evening.",
    "In the evening the dog slept by the fire, and the cat sat on the mat.",
)


@pytest.fixture
def minillm(capsys):
    """Return a function: words -> (exit status, standard output, standard error)."""

    def run(*words):
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text file of a few kilobytes."""
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("\n".join(SENTENCES[n % 4].replace("cat", f"cat{n % 7}") for n in range(120)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory, text):
    """A folder with two finished runs, `decoder` and `encoder`."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("decoder", "encoder"):
        words = ["pretrain", "--preset", f"tiny-{kind}", "--data.input", text, "--out", folder / kind, "--quiet"]
        assert cli.main([*map(str, words), *options()]) == 0
    return folder


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the decoder's run, which a test may spoil."""
    return shutil.copytree(runs / "decoder", tmp_path / "run")
