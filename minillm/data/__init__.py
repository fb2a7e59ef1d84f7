"""Text to batches: corpora, token shards, a deterministic sampler, and the loader that puts windows into batches.

Read next: `corpora.py`, then `shards.py`, `sampler.py`, `loader.py`.
"""
