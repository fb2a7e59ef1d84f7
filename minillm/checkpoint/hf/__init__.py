"""Hugging Face model folders, both ways: config.json and safetensors of BERT, RoBERTa, DistilBERT, ModernBERT, GPT-2,
Llama, Mistral and Qwen-3.

    folder  <--folder.py-->  config.json, tensors  <--FAMILY.py-->  ModelConfig, tensors by our names
    tokenizer files  <--tokenizer_files.py, ../../tokenizer/hf.py-->  Tokenizer

A family is one small file: which of its settings stand for which of ours, and a table of names that is read in both
directions. Whatever a family cannot say here, or we cannot say there, is refused by its name. What acts in training
alone, such as a dropout that no layer here has, is kept in the run for the way back; where there is no place for it
there, a note says so.

Read next: `entries.py`, `bert.py`, then `../../importing.py` and `../../exporting.py`, which put it to use.
"""
