"""What a fine-tuning run leaves in its folder, to compare two of them bit for bit."""

import json


def weights(folder, step):
    return (folder / f"checkpoints/step-{step:06d}/model.safetensors").read_bytes()


def left_by(folder, step=8):
    """Return all that a run leaves but clock readings: the last checkpoint, metrics, the report."""
    names = ("metrics.csv", "checkpoints/best", "checkpoints/latest", "calibration.json")
    last = [folder / f"checkpoints/step-{step:06d}" / name for name in ("optimiser.safetensors", "state.json")]
    report = json.loads((folder / "report/report.json").read_text()) | {"run": ""}
    return [weights(folder, step), *(path.read_bytes() for path in (*last, *(folder / n for n in names))), report]
