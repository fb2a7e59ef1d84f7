"""Text to batches: corpora, token shards, a deterministic sampler, and the loader that puts windows into batches.

Read next: `config.py` and `corpora.py`, then `shards.py`, `sampler.py`, `loader.py`; `batch.py` is what they make.
"""
