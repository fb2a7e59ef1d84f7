"""The same fine-tuning run from several seeds: their figures one by one, mean and deviation, and their ensemble.

    OUT/seed-0  OUT/seed-1  ...      a run each; head, order of rows and dropout are others
    OUT/report  OUT/calibration.json of the ensemble, which is what `minillm predict OUT` asks

Read next: `predict.py`.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.checkpoint.files import explained, is_passing, remove_folder, remove_leftovers, write_text
from minillm.checkpoint.run_folder import RunFolder
from minillm.config import toml_text
from minillm.errors import InputError, Stopped
from minillm.finetune.config import FinetuneConfig
from minillm.finetune.ensemble import ensemble
from minillm.finetune.predict import seed_folders
from minillm.finetune.predictions import Predictions
from minillm.finetune.report import Contender, Figures, spread
from minillm.finetune.run import (
    FROM_RANDOM,
    THIS,
    Result,
    changed,
    finetune,
    put_report,
    resume,
    write_calibration,
)
from minillm.training.progress import Progress


@dataclass(frozen=True, kw_only=True)
class SeedsResult:
    """What came of several runs. run: the folder that holds them. results: by seed.

    contenders: the ensemble, or where answers have no mean only their mean figures, and what each run was held against.
    """

    run: Path
    results: Mapping[int, Result]
    contenders: Sequence[Contender]

    def json(self) -> dict[str, Any]:
        """Return the figures under the names of the command line's contract: means, beside deviation and each."""
        each = {str(seed): result.json() for seed, result in self.results.items()}
        means, deviations = means_and_deviations(self.results)
        own = means.pop(THIS, {})
        rates = [result.examples_per_second for result in self.results.values()]
        return {
            "run": str(self.run),
            "steps": sum(result.summary.steps for result in self.results.values()),
            "seconds": sum(result.summary.seconds for result in self.results.values()),
            "examples_per_second": statistics.fmean(rates),
            "valid": own.get("valid"),
            "test": own.get("test"),
            "baselines": means,
            "deviation": {name: splits for name, splits in deviations.items() if name in (THIS, FROM_RANDOM)},
            "ensemble": {c.name: {s: dict(c.figures(s)) for s in c.splits} for c in self.contenders[:1]}.get(ENSEMBLE),
            "seeds": each,
        }


ENSEMBLE = "ensemble of all seeds"


def finetune_seeds(
    config: FinetuneConfig, out: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> SeedsResult:
    """Fine-tune from `config.seeds` seeds, `train.seed` the first, in folders inside `out`.

    Args:
        overwrite: replace the seeds that stand in `out`, when the first new one is ready.
    Raises:
        InputError: as `finetune` does, or the seeds that are to be replaced hold the model that all begin with.
        Stopped: by Ctrl-C or SIGTERM; a line has said how to go on.
    """
    progress = progress or Progress(quiet=True)
    config.check()
    if overwrite and not config.preset and Path(config.init).resolve().is_relative_to(out.resolve()):
        raise InputError(
            f"every seed begins with {config.init}, and --overwrite replaces what lies in {out}; choose another --out"
        )
    new, place = not out.exists(), _folder(out, config.train.seed)
    old = [path for path in _old_seeds(out, overwrite) if path != place]  # `finetune` replaces what stands in `place`

    def settle() -> None:
        # the seeds first, the new configuration last: whatever a kill leaves of the two, --resume finds one run's alone
        with explained(out):
            for path in old:
                remove_folder(path)
            shutil.rmtree(out / "report", ignore_errors=True)
            RunFolder(out).calibration_path.unlink(missing_ok=True)
            remove_leftovers(out)
        locks.close()
        write_text(RunFolder(out).config_path, toml_text(config))

    with ExitStack() as locks:
        for path in old:
            locks.enter_context(RunFolder(path).held())
        try:
            one = _one(config, config.train.seed)
            first = finetune(one, place, overwrite=overwrite, in_place=settle, progress=progress)
        except BaseException:
            if new and not any(RunFolder(path).steps() for path in seed_folders(out)):
                shutil.rmtree(out, ignore_errors=True)
            elif not seed_folders(out):  # then config.toml is this run's, which has come to nothing
                RunFolder(out).config_path.unlink(missing_ok=True)
            raise
    return _all(config, out, {config.train.seed: first}, _beginner(config, out, progress), progress)


def resume_seeds(out: Path, overrides: Mapping[str, Any], *, progress: Progress | None = None) -> SeedsResult:
    """Go on with runs that `finetune_seeds` began: those that ended are judged again, the others go on or begin.

    Args:
        overrides: nested table of settings to change in all of them.
    Raises:
        InputError, Stopped: as `finetune_seeds` does.
    """
    progress = progress or Progress(quiet=True)
    config = changed(RunFolder(out), overrides)
    begin = _beginner(config, out, progress)
    begun = [path for path in seed_folders(out) if RunFolder(path).steps()]
    if overrides:
        _change(out, begun, overrides)

    def forget() -> None:
        RunFolder(out).calibration_path.unlink(missing_ok=True)  # as each run does with its own

    def go_on(seed: int) -> Result:
        place = _folder(out, seed)
        return resume(place, {}, in_place=forget, progress=progress) if place in begun else begin(seed)

    return _all(config, out, {}, go_on, progress)


def _change(out: Path, begun: Sequence[Path], overrides: Mapping[str, Any]) -> None:
    """Write changed settings for all seeds before any goes on, so that a stop in one leaves none behind.

    Raises:
        InputError: a setting that cannot change, or somebody trains in one of them; then nothing is written.
    """
    with ExitStack() as locks:
        for path in begun:
            locks.enter_context(RunFolder(path).held())
        folders = [RunFolder(path) for path in (*begun, out)]
        texts = [toml_text(changed(folder, overrides)) for folder in folders]
        for folder, text in zip(folders, texts, strict=True):
            write_text(folder.config_path, text)


def _all(
    config: FinetuneConfig, out: Path, known: dict[int, Result], run: Callable[[int], Result], progress: Progress
) -> SeedsResult:
    """Return all runs, and write the report on them."""
    for seed in range(config.train.seed, config.train.seed + config.seeds):
        if seed not in known:
            progress.note(f"seed {seed}")
            known[seed] = run(seed)
        if not known[seed].contenders:
            progress.warn(f"the seeds are not all done; go on with: minillm finetune --resume {RunFolder(out).quoted}")
            signal = known[seed].summary.signal
            assert signal is not None  # nothing else ends a run before it is judged
            raise Stopped(128 + signal)
    results = dict(sorted(known.items()))
    contenders = _contenders(results)
    write_calibration(RunFolder(out), contenders[0].splits["valid"])
    any_report = next(iter(results.values())).report
    assert any_report is not None
    report = dataclasses.replace(
        any_report,
        name=out.resolve().name,
        contenders=contenders,
        classes=(),
        step=None,
        seeds={seed: {s: r.contenders[0].figures(s) for s in r.contenders[0].splits} for seed, r in results.items()},
    )
    put_report(out, report, progress)
    return SeedsResult(run=out, results=results, contenders=contenders)


def _contenders(results: Mapping[int, Result]) -> list[Contender]:
    """Return the ensemble where there is one, the mean of the runs, and the means of what they were held against."""
    first, count = next(iter(results.values())).contenders, len(results)
    figures, _ = means_and_deviations(results)
    means = []
    for contender in first:
        name = f"mean of {count} seeds" if contender.name == THIS else contender.name
        means.append(dataclasses.replace(contender, name=name, splits=figures[contender.name]))
    joined: dict[str, Predictions] = {}
    for split in first[0].splits:
        members = [result.contenders[0].splits[split] for result in results.values()]
        whole = [member for member in members if isinstance(member, Predictions)]
        if not whole:
            return means
        joined[split] = ensemble(whole)
    what = "number" if joined["valid"].task == "regression" else "probability"
    return [Contender(name=ENSEMBLE, note=f"mean {what} of {count}", splits=joined), *means]


def means_and_deviations(results: Mapping[int, Result]) -> tuple[dict[str, dict[str, Figures]], ...]:
    """Return contender -> split -> figures: their means over the runs, and their deviations; see `report.spread`."""
    means: dict[str, dict[str, Figures]] = {}
    deviations: dict[str, dict[str, Figures]] = {}
    for each in zip(*(result.contenders for result in results.values()), strict=True):  # one contender, of every run
        name = each[0].name
        found = {split: spread([contender.figures(split) for contender in each]) for split in each[0].splits}
        means[name] = {split: {n: mean for n, (mean, _) in pairs.items()} for split, pairs in found.items()}
        deviations[name] = {split: {n: sd for n, (_, sd) in pairs.items()} for split, pairs in found.items()}
    return means, deviations


def _one(config: FinetuneConfig, seed: int) -> FinetuneConfig:
    """Return the configuration of one of the runs."""
    return dataclasses.replace(config, seeds=1, train=dataclasses.replace(config.train, seed=seed))


def _folder(out: Path, seed: int) -> Path:
    """Return the folder of one of the runs."""
    return out / f"seed-{seed}"


def _beginner(config: FinetuneConfig, out: Path, progress: Progress) -> Callable[[int], Result]:
    """Return what begins the run of a seed."""
    return lambda seed: finetune(_one(config, seed), _folder(out, seed), progress=progress)


def _old_seeds(out: Path, overwrite: bool) -> list[Path]:
    """Return the runs that new seeds in a folder replace; touches nothing.

    Raises:
        InputError: there are such runs and nothing was said, or the folder or one of them holds other things.
    """
    if not out.exists():
        return []
    if not out.is_dir():
        raise InputError(f"{out} is a file, not a folder for runs; choose another --out")
    seeds = seed_folders(out)
    if seeds and not overwrite:
        raise InputError(
            f"{out} already holds {len(seeds)} seeds of a run; choose another --out or use --resume "
            f"{RunFolder(out).quoted}"
        )
    names = {path.name for path in out.iterdir() if not is_passing(path.name)}
    strangers = names - {path.name for path in seeds} - {"report", "config.toml", "calibration.json"}
    if strangers or (names and not seeds):
        raise InputError(
            f"{out} is not empty and holds no seeds: it has {min(strangers or names)}; choose another --out"
        )
    for path in seeds:
        RunFolder(path).check_free(overwrite)
    return seeds
