"""docs/several-machines.md, word for word: its commands run, two machines being two torchruns on this one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ROOT, SMALL
from test_torchrun import ENVIRONMENT, free_port

from minillm.config import build
from minillm.training.distributed_config import DistributedConfig
from minillm.training.records import read_columns

PAGE = (ROOT / "docs/several-machines.md").read_text(encoding="utf-8")
ONE, TWO, SLURM = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
TOOLS = {  # of slurm, for two machines that are this one
    "scontrol": "#!/bin/sh\necho 127.0.0.1\necho 127.0.0.2\n",
    "srun": '#!/bin/sh\n"$@" & "$@" & wait %1 && wait %2\n',
}


@pytest.fixture
def here(tmp_path, text):
    """A folder with run.toml and slurm's tools, and what runs a script in it."""
    sections: dict[str, list[str]] = {}
    for name, value in (SMALL | {"train.max_steps": 4}).items():
        section, key = name.split(".")
        sections.setdefault(section, []).append(f"{key} = {value!r}".replace("'", '"'))
    sections["data"] = [f'input = "{text}"']
    sections["tokenizer"].append('kind = "bpe"')
    lines = [line for section, keys in sections.items() for line in (f"[{section}]", *keys)]
    (tmp_path / "run.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, content in TOOLS.items():
        (tools / name).write_text(content, encoding="utf-8")
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": path, "HEAD": "127.0.0.1", "GPUS": "1", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    settings |= {"SLURM_JOB_ID": "12"}

    def start(script):
        return subprocess.Popen(
            ["bash", "-ec", script],
            cwd=tmp_path,
            env=os.environ | ENVIRONMENT | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return tmp_path, start


def finished(*runs):
    """Return what runs said on standard error; all must have ended well."""
    said = [run.communicate(timeout=150)[1] for run in runs]
    for run, text in zip(runs, said, strict=True):
        assert run.returncode == 0, text
    return "".join(said)


def port_changed(script):
    """Return a script that meets at a port that is free here."""
    assert ":29500" in script
    return script.replace(":29500", f":{free_port()}")


def test_the_settings_of_the_page_are_settings():
    import tomllib

    (block,) = re.findall(r"^```toml\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    config = build(DistributedConfig, tomllib.loads(block)["distributed"])
    assert config.strategy == "hybrid" and config.timeout == 600


@pytest.mark.slow
def test_several_processes_on_one_machine(here):
    folder, start = here
    assert "4 processes (ddp) on cpu" in finished(start(ONE))
    assert read_columns(folder / "runs/four/metrics.csv")["step"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_machines_by_hand(here):
    folder, start = here
    script = port_changed(TWO)
    assert finished(start(script), start(script)).count("2 processes (ddp) on cpu") == 1
    assert read_columns(folder / "runs/two/metrics.csv")["step"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_machines_by_slurm_and_the_job_after_it_goes_on(here):
    folder, start = here
    assert finished(start(port_changed(SLURM))).count("2 processes (ddp) on cpu") == 1
    (folder / "run.toml").unlink()  # the second job does not begin anew
    script = port_changed(SLURM).replace("$BEGIN", "$BEGIN --train.max_steps 6")
    assert finished(start(script)).count("2 processes (ddp) on cpu") == 1
    assert read_columns(folder / "runs/slurm/metrics.csv")["step"] == [1, 2, 3, 4, 5, 6]
