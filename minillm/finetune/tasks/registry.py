"""The tasks by the names that settings and checkpoints have for them.

Read next: `../run.py`.
"""

from __future__ import annotations

from minillm.finetune.tasks.base import Task
from minillm.finetune.tasks.multi_label import MultiLabel
from minillm.finetune.tasks.prompt_answer import PromptAnswer
from minillm.finetune.tasks.question_answering import QuestionAnswering
from minillm.finetune.tasks.regression import Regression
from minillm.finetune.tasks.single_label import SingleLabel
from minillm.finetune.tasks.tagging import Tagging

CLASSES: tuple[type[Task], ...] = (SingleLabel, MultiLabel, Regression, Tagging, QuestionAnswering, PromptAnswer)
TASKS = {task.name: task for task in CLASSES}
