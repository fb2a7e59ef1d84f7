"""Run folders: tensors as safetensors, all else as JSON or CSV, every file written whole or not at all.

Read next: `files.py`, `native.py`, `run_folder.py`; for Hugging Face's folders `hf/__init__.py`.
"""
