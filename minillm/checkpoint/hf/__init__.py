"""Hugging Face's formats, both ways.

Read next: `tokenizer_files.py`.
"""
