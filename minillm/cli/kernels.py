"""`minillm kernels`: per op, the backend that computes it on this machine, and why.

Read next: `kernels/minillm_kernels/dispatch.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from minillm.cli.arguments import Parser, print_json


def main(argv: Sequence[str]) -> None:
    """Run the command on the words after its name."""
    parser = Parser(prog="minillm kernels", description="Say for every op which backend computes it here, and why.")
    parser.device_option()
    parser.json_option()
    arguments = parser.parse(argv)

    from minillm_kernels import explain_dispatch

    from minillm.training.precision import choose_device

    device = choose_device(arguments.device, setting="--device")
    decisions = explain_dispatch(device)
    if arguments.json:
        print_json({"device": str(device), "ops": [dataclasses.asdict(d) for d in decisions]})
        return
    width = max(len(d.op) for d in decisions)
    print(f"on {device}:")
    for decision in decisions:
        print(f"  {decision.op:<{width}}  {decision.backend:<9}  {decision.reason}")
