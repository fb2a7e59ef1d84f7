"""Training: one loop for pretraining and fine-tuning, and what it needs around it. Importing this costs nothing.

    config.py       the sections [train] and [optim]
    changeable.py   which of them a run that has begun may change
    schedule.py     the learning rate as a function of the step
    muon.py         Muon: matrices move by orthogonal steps; muon_sharded.py, where they are cut over processes
    optim.py        AdamW, Muon and SGD, decay groups, optimiser state by parameter name
    precision.py    device and compute dtype, and why
    gradient.py     the gradient of one batch in k micro-batches
    ema.py          a running mean of the weights
    trainer.py      THE loop
    state.py        its counters and its summary
    snapshot.py     a moment of it, taken and put back; saving.py writes it off the training path
    judge.py        evaluates now and then, and knows what was best
    figures.py      what steps said about themselves; deviation.py: how unusual that is
    failures.py     what can go wrong in it, in one line each
    determinism.py  the same bits from ops that have a faster way
    random_state.py states of random generators
    interrupt.py    Ctrl-C and SIGTERM: finish the step, save, stop
    records.py      metrics.csv and timing.csv
    throughput.py   tokens per second, FLOPs, MFU
    host_memory.py  keeps freed CPU memory in the process
    progress.py     the live line
    plots.py        PNGs of a run

    distributed.py  several processes as one of them sees them; distributed_config.py: the section [distributed]
    launch.py       how torchrun's processes become those of a run
    replicas.py     every process has the whole model: gradients are summed
    shards.py       every process has a share of it: FSDP2
    watch.py        names the process that holds up the others

Read next: `config.py`, and so on down the list.
"""
