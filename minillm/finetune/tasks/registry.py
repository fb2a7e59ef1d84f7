"""The tasks by the names that settings and checkpoints have for them.

Read next: `../run.py`.
"""

from __future__ import annotations

from minillm.finetune.tasks.multi_label import MultiLabel
from minillm.finetune.tasks.protocol import Task
from minillm.finetune.tasks.regression import Regression
from minillm.finetune.tasks.single_label import SingleLabel

CLASSES: tuple[type[Task], ...] = (SingleLabel, MultiLabel, Regression)
TASKS = {task.name: task for task in CLASSES}
