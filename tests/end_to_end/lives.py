"""`minillm` in processes that begin in milliseconds, to be killed: children of one that has imported everything.

    python lives.py     a line on standard input, ["pretrain", ...]   -> a line with the child's number
                        the child ends                                -> a line with its exit status; killed: -9

Forking is safe here because the parent has no second thread: it imports, and computes nothing.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Lives:
    """The parent, seen from the tests."""

    def __init__(self, log):
        """Begin it; what its children say on standard error goes to the file `log`."""
        self.log = open(log, "w+b")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=ROOT,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
            text=True,
        )

    def begin(self, *words):
        """Let a child run the words, and return its number."""
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self):
        """Wait for the child and return its exit status, minus the signal that ended it."""
        return int(self.process.stdout.readline())

    def told(self):
        """Return all that the children said on standard error so far."""
        self.log.seek(0)
        return self.log.read().decode()

    def close(self):
        """End the parent."""
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.log.close()


def wait_for(found, seconds):
    """Wait until `found()` is true, at most so many seconds; look every half millisecond."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not found():
        time.sleep(0.0005)


def serve():
    """Be the parent."""
    import matplotlib.pyplot  # noqa: F401  heavy imports, before any child
    import torch._dynamo  # noqa: F401  every optimiser imports it

    import minillm.pretrain
    import minillm.training.progress  # noqa: F401
    from minillm.cli import main

    assert len(os.listdir("/proc/self/task")) == 1, "a thread was begun: forking is no longer safe"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            random.seed()  # as in a new process: nothing may depend on what the parent had
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            status = 1
            try:
                status = main(json.loads(line))
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
