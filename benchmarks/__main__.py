"""The command: python -m benchmarks, with options that --help lists.

Exit status: 0 done; 1 a test or a check of this run failed; 2 the input is wrong, or the result cannot be written, with
one line that says what to do; 128 and its number after a signal.

Read next: `sections.py`.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.child import SIGNALS
from benchmarks.context import Context, Section
from benchmarks.parser import Parser

Writer = Callable[[dict[str, Any], Path, str], None]  # of a result into a folder, under a name
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
SECTION_NAMES = (  # a test compares them with sections.SECTIONS
    "correctness",
    "ceilings",
    "ops",
    "recipes",
    "launches",
    "scaling",
    "compile",
)


def options() -> Parser:
    made = Parser("benchmarks", "Measure the kernels beside references and peers.")
    made.add_argument(
        "--quick", action="store_true", help="two minutes: the first shape of each op, fewer rounds, no compilers"
    )
    made.add_argument("--only", action="append", choices=SECTION_NAMES, help="this section; may be given again")
    made.add_argument("--tune", action="store_true", help="explore all launch tables of a GPU: 9 minutes, nothing else")
    made.add_argument("--ops", help="these ops only, separated by commas")
    made.add_argument("--skip", default="", help="not these providers, such as torch.compile, separated by commas")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of results (default: benchmarks/results)")
    made.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="say what changed between two results")
    return made


def main(argv: Sequence[str]) -> int:
    """Run the sections and return the exit status."""
    parser = options()
    given = parser.parse_args(argv)
    if given.compare:
        from benchmarks import compare

        return compare.main(*given.compare)
    if str(ROOT / "kernels") not in sys.path:
        sys.path.insert(0, str(ROOT / "kernels"))  # from a checkout alone nothing is installed
    names, skip = None, [n.strip() for n in given.skip.split(",") if n.strip()]
    from benchmarks.ops import BENCHMARKS

    providers = dict.fromkeys(name for b in BENCHMARKS.values() for name in b.timed())
    if given.ops is not None:
        names = [n.strip() for n in given.ops.split(",") if n.strip()]
        if unknown := [n for n in names if n not in BENCHMARKS] or ([] if names else [""]):
            parser.error(f"--ops: no op {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if unknown := [n for n in skip if n not in providers]:
        parser.error(f"--skip: no provider {unknown[0]!r}; there are {', '.join(providers)}")
    parser.folder("--out", given.out)
    chosen = given.only or (("launches",) if given.tune else SECTION_NAMES)
    words = [word for name in given.only or () for word in ("--only", name)]
    words += ["--ops", given.ops] if given.ops else []
    words += ["--skip", given.skip] if given.skip else []
    words += ["--tune"] * given.tune
    return run(chosen, names, skip, given.out, quick=given.quick, tune=given.tune, words=words)


def run(
    chosen: Sequence[str],
    ops: Sequence[str] | None,
    skip: Sequence[str],
    out: Path,
    *,
    quick: bool,
    tune: bool = False,
    words: Sequence[str] = (),
) -> int:
    """Run the chosen sections in their order; the result is written after each part of each.

    Args:
        words: of the command, that say what was chosen; for the page.
    """
    from benchmarks import launches, machine, report, sections

    head = machine.header()
    if not any(s.name in chosen and s.budget(head["kind"], quick) for s in sections.SECTIONS):
        print(f"benchmarks: a quick run has no {' or '.join(chosen)}; leave out --quick", file=sys.stderr)
        return 2
    result = {"header": head, "quick": quick, "words": list(words), "sections": {}}
    folder = out / machine.folder_name(head["device"])
    kinds = [name for name, on in (("quick", quick), ("tune", tune), ("part", words and not tune)) if on]
    stem = "-".join([head["date"][:10], head["commit"], *kinds])  # a part of a run leaves a whole one where it is
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {text}", file=sys.stderr, flush=True)

    def write(how: Writer) -> bool:
        try:
            how(result, folder, stem)
        except OSError as error:  # the disk is full: there may be room again when the next part is written
            say(f"cannot write to {folder}: {error.strerror}; make room, or name another folder with --out")
            return False
        return True

    say(f"{head['device']}, commit {head['commit']}, results in {folder}")
    status, spare, written = 0, 0.0, False
    with stopping():
        try:
            for section in sections.SECTIONS:
                budget = section.budget(head["kind"], quick)
                if tune and section.name == "launches":
                    budget = launches.WIDE_BUDGET
                if section.name in chosen and budget:
                    ends = time.monotonic() + budget + spare  # what a section leaves is the next one's
                    say(f"{section.name}: at most {budget + spare:.0f} s")
                    context = Context(head["kind"], quick, ops, skip, budget + spare, say, tune, chosen)
                    run_section(section, context, result, write)
                    spare = max(0.0, ends - time.monotonic())
        except Stopped as stopped:
            say("stopped; what was measured is kept")
            status = 128 + stopped.number
        try:
            written = write(report.write_json)
            written &= write(report.write_page_with_plots)
        except Stopped as stopped:
            say("stopped; all is written but some of the plots")
            status = 128 + stopped.number
    print(folder / f"{stem}.md")
    return status or (report.status(result) if written else 2)


class Stopped(BaseException):
    """A signal asked for the end: no Exception, which a section would take for a defect of its own."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` inside the block, once, when a signal asks for the end, Ctrl-C or `kill`.

    Python alone would end at once after SIGTERM, and leave its children at work on the GPU. A signal that is ignored,
    as nohup has it of SIGHUP, stays so.
    """
    before = {number: own for number in SIGNALS if (own := signal.getsignal(number)) != signal.SIG_IGN}

    def stop(number: int, frame: object) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C would leave children that are just being ended
        raise Stopped(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_section(section: Section, context: Context, result: dict[str, Any], write: Callable[[Writer], object]) -> None:
    """Run one section; the result is written after each of its parts, and the page when it is done or stopped.

    A defect of the section costs what it had still to say, and no other section.

    Args:
        write: lets a writer write this result where it belongs.
    """
    from benchmarks import report, timing

    began = time.monotonic()
    try:
        for part in section.run(context):
            result["sections"][section.name] = {**part, "took": time.monotonic() - began}
            write(report.write_json)
    except Exception as error:
        result["sections"].setdefault(section.name, {})["defect"] = timing.first_line(error)
        context.say(f"{section.name}: {traceback.format_exc()}")
        write(report.write_json)
    finally:
        write(report.write_page)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
