"""Text to token ids and back: sentencepiece (BPE, unigram), bytes, characters.

Read next: `config.py`, then `base.py`.
"""
