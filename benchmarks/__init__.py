"""Benchmarks of kernels and of training beside references and peers: python -m benchmarks, or make bench.

    ops/            what is measured: one registration per op: inputs, counted bytes and operations, peers
    training/       the same for recipes: a model, the contenders that train it, and the processes that take turns
    check.py        the error of every provider against float64, without which no speed-up is printed
    timing.py       how time is taken
    ceilings.py     what the device reaches at best: copying, and multiplying matrices
    child.py        a process that measures; one that dies takes one case with it, not the run
    correctness.py  the kernels' tests on the device at hand, and a sample of them
    knobs.py        the entries of the kernels' launch tables, and explore.py, which looks for faster ones
    sections.py     what a run consists of, each part with its time budget
    report.py       JSON, Markdown and plots; --compare
    parser.py       the options of every command: a mistake is one line
    cpu_defaults.py    is each op's default on a CPU the fastest way to compute it there?
    checkpointing.py   what checkpoints cost a run
    masking.py      which masking an encoder learns best from; recipes/ has runs with known figures

Read next: `ops/registration.py`, then `training/registration.py`.
"""
