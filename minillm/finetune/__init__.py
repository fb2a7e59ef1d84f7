"""Fine-tuning: a pretrained model learns a task from a table of labelled texts. Importing this costs nothing.

    table.py         CSV, TSV, JSONL and Parquet -> columns, with the line of each row
    conll.py         tagged sentences, squad.py questions on contexts -> the same
    encoding.py      rows -> token sequences: pairs, truncation, windows
    loader.py        sequences -> batches, padded to their longest and bucketed by length; a pure function of the step
    heads.py         hidden states -> one vector a text -> what a task asks for
    task_model.py    backbone + head, and the configuration that a checkpoint keeps of them
    scope.py         which of its weights learn, and how fast; adapters/ small modules that learn in their place
    tasks/           what a row means, which loss is taken, how answers are read and judged
    regularisers/    R-Drop and adversarial training around any task's loss; augmentation.py changes texts
    predictions.py   what a model says about a split; metrics.py, calibration.py, baselines.py and the report read it
    config.py        all settings of a run
    run.py           all parts put together; predict.py uses what came of it

Read next: `table.py`, then `tasks/base.py`.
"""
