"""The Transformer by hand: encoder and decoder from the same blocks.

Read next: `config.py`, `layers.py`, `transformer.py`.
"""
