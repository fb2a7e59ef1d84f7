"""Fine-tuning: a pretrained model learns a task.

Read next: `scope.py`, `adapters/__init__.py`.
"""
