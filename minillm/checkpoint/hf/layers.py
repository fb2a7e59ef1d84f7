"""What several families say of layers and positions in the same words: rotary bases, and which layers have a window.

Read next: `llama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.checkpoint.hf.keys import Keys
from minillm.model.config import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def rotary_theta(keys: Keys, default: float) -> float:
    """Return the base of rotary positions: `rope_parameters`, or `rope_theta` of before.

    transformers reads `rope_scaling`, the name of before, in the place of `rope_parameters` wherever it has any entry.

    Raises:
        InputError: positions that are scaled or turn a part of a head.
    """
    keys.only("partial_rotary_factor", 1.0)
    tables = {name: keys.table_of(name) for name in ("rope_scaling", "rope_parameters")}
    thetas = {name: unscaled(keys, name, table) for name, table in tables.items()}
    plain = keys.positive("rope_theta", default)
    found = thetas["rope_scaling" if tables["rope_scaling"] else "rope_parameters"]
    return plain if found is None else found


def unscaled(keys: Keys, name: str, table: Mapping[str, Any] | None) -> float | None:
    """Return `rope_theta` of a table of rotary settings, None where it has none.

    Raises:
        InputError: it says more than that.
    """
    if table is None:
        return None
    rest = {key: value for key, value in table.items() if key != "rope_theta" and value is not None}
    kind = rest.pop("rope_type", rest.pop("type", "default"))
    rest.pop("type", None)
    if kind != "default" or rest.pop("partial_rotary_factor", 1.0) != 1.0 or rest:
        keys.refuse(name, "positions are neither scaled nor of a part of a head; take a model without")
    theta = table.get("rope_theta")
    if theta is not None and (isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0):
        keys.wrong(name, "a table whose rope_theta is a number above 0")
    return None if theta is None else float(theta)


def alternation(keys: Keys, words: Sequence[str], layers: int) -> int:
    """Return n where layers 0, n, 2n, ... see everything and the others have a window; 0: all have, 1: none has.

    Raises:
        InputError: another pattern.
    """
    full = [word == FULL for word in words]
    every = 0
    if any(full):
        every = next((n for n in range(1, layers) if full[n : n + 1] == [True]), layers)
    pattern = [FULL if every and n % every == 0 else SLIDING for n in range(layers)]
    if list(words) != pattern:
        keys.refuse("layer_types", "layers that see everything are every n-th from the first one on")
    return every


def layer_words(model: ModelConfig) -> list[str]:
    """Return `layer_types` of a model."""
    return [FULL if model.window_of(n) is None else SLIDING for n in range(model.num_layers)]
