"""Benchmarks of the kernels beside references and peers: python -m benchmarks, or make bench.

    ops/         what is measured: one registration per op, with its inputs, its counted bytes and operations, its peers
    check.py     the error of every provider against float64, without which no speed-up is printed
    timing.py    how time is taken
    ceilings.py  what the device reaches at best: copying, and multiplying matrices
    worker.py    a process that measures; one that dies takes one case with it, not the run
    sections.py  what a run consists of, each part with its time budget
    report.py    JSON, Markdown and plots; --compare

and of models: masking.py asks which masking an encoder learns best from, recipes/ has runs with known figures.

Read next: `ops/registration.py`.
"""
