"""Text to token ids and back: sentencepiece (BPE, unigram), bytes, characters, and any tokenizer.json from elsewhere.

Read next: `config.py`, then `base.py`.
"""
