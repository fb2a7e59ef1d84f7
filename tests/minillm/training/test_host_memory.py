"""Freed buffers stay in the process: the next ones cost no new pages."""

import platform
import subprocess
import sys

from minillm.training import host_memory

COUNT_FAULTS = """
import resource, torch
from minillm.training.host_memory import keep_freed_memory
if {keep}: assert keep_freed_memory()
def use(times):
    for _ in range(times): torch.ones(10 << 20)  # 40 MiB: above the 32 MiB up to which glibc moves its own bound
counts = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use(8)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts))
"""


def faults(keep: bool) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_on_glibc_no_page_is_paid_for_twice_and_elsewhere_nothing_is_done(monkeypatch):
    if platform.libc_ver()[0] == "glibc":
        # Without it each time 8 times the 10,240 pages of a buffer, or its 20 huge pages. The first time they have to
        # come, and once more where a small object came to lie in between.
        assert faults(keep=True) < 100 < faults(keep=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert host_memory.keep_freed_memory() is False
