"""Training: one loop for pretraining and fine-tuning, and what it needs around it. Importing this costs nothing.

    config.py       the sections [train] and [optim]
    schedule.py     the learning rate as a function of the step
    muon.py         Muon: matrices move by orthogonal steps
    optim.py        AdamW, Muon and SGD, decay groups, optimiser state by parameter name
    precision.py    device and compute dtype, and why
    gradient.py     the gradient of one batch in k micro-batches
    ema.py          a running mean of the weights
    trainer.py      THE loop
    state.py        its counters and its summary
    failures.py     what can go wrong in it, in one line each
    interrupt.py    Ctrl-C: finish the step, save, stop
    records.py      metrics.csv and timing.csv
    throughput.py   tokens per second, FLOPs, MFU
    host_memory.py  keeps freed CPU memory in the process
    progress.py     the live line
    plots.py        PNGs of a run

Read next: `config.py`.
"""
