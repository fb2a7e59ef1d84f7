"""Keys and values of tokens that were seen, so that the next token costs one row and not all of them.

Read next: `../generate.py`, which fills it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Room for the keys and values of `capacity` tokens in every layer, filled from the left.

    length: tokens that are in it; the model raises it after each pass.

    Cost: 2 * L * B * capacity * Hkv * D numbers, all taken at once: nothing is copied when it grows.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, batch, capacity, kv_heads, head_width)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, capacity, Hkv, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values (B, T, Hkv, D) behind those of a layer.

        Returns:
            all keys and all values of the layer, (B, length + T, Hkv, D), as views.
        Raises:
            ValueError: they do not fit.
        """
        stop = self.length + k.shape[1]
        if stop > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens, got {stop}; make it with a larger length")
        self.keys[layer, :, self.length : stop] = k
        self.values[layer, :, self.length : stop] = v
        return self.keys[layer, :, :stop], self.values[layer, :, :stop]
