"""What may be attached to a model: one section per kind of adapter; `[adapter] kind = "lora"` chooses. No torch here.

    kind       what it adds                                       trains of a block of width C, 4C inside
    lora       a product of two thin matrices beside a weight     2 r (in + out) for each pair of targets
    adalora    the same as a singular value decomposition,        r (in + out + 1) for each target
               whose rank moves to where it is needed
    houlsby    a bottleneck after both sub-layers, and norms      2 (2 m C + m + C), and the norms
    pfeiffer   a bottleneck after the feed-forward part           2 m C + m + C
    prefix     keys and values before those of the text           2 P times the width of the keys
    ia3        a gain on keys, values and the inside of the       2 times the width of the keys, 4 C
               feed-forward part
    bitfit     nothing: the biases alone learn                    11 C

Read next: `places.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.config import setting

TARGETS = "last parts of the names of linear layers (q, k, v, output, up, gate, down), or all for those of the blocks"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Two thin matrices beside each target; see `lora.py` and, for the option, `dora.py`."""

    kind: Literal["lora"] = setting("lora", "the kind of adapter")
    targets: tuple[str, ...] = setting(("q", "v"), TARGETS)
    rank: int = setting(8, "rank of the update, r")
    alpha: float = setting(16.0, "the update is scaled by alpha / r")
    rank_stabilised: bool = setting(False, "scale by alpha / sqrt(r) instead (rsLoRA)")
    dropout: float = setting(0.0, "probability of dropping an element of what enters the update")
    dora: bool = setting(False, "learn the length of each row of the weight apart from its direction (DoRA)")

    def __post_init__(self) -> None:
        _check_low_rank(self)


@dataclass(frozen=True, kw_only=True)
class AdaLoRAConfig:
    """LoRA whose rank is shared out between the targets while it trains; see `adalora.py`."""

    kind: Literal["adalora"] = setting("adalora", "the kind of adapter")
    targets: tuple[str, ...] = setting(("all",), TARGETS)
    rank: int = setting(12, "rank of each update at the start")
    target_rank: int = setting(8, "mean rank of the updates at the end, at most rank")
    alpha: float = setting(16.0, "the update is scaled by alpha / r")
    dropout: float = setting(0.0, "probability of dropping an element of what enters the update")
    orthogonality: float = setting(0.1, "weight of the penalty that keeps singular vectors orthonormal, lambda")
    initial_fraction: float = setting(0.1, "share of the run's steps before the first singular value is pruned")
    final_fraction: float = setting(0.3, "share of the run's steps, at the end, in which the ranks stay")
    prune_every: int = setting(10, "steps between prunings")
    beta1: float = setting(0.85, "decay of the running mean of the sensitivity")
    beta2: float = setting(0.85, "decay of the running mean of its uncertainty")

    def __post_init__(self) -> None:
        _check_low_rank(self)
        if not 1 <= self.target_rank <= self.rank:
            raise ValueError(
                f"adapter.target_rank must be from 1 to adapter.rank ({self.rank}), got {self.target_rank}"
            )
        for name in ("initial_fraction", "final_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"adapter.{name} must be in [0, 1], got {getattr(self, name)}")
        if self.initial_fraction + self.final_fraction > 1.0:
            raise ValueError(
                f"adapter.initial_fraction ({self.initial_fraction}) and adapter.final_fraction "
                f"({self.final_fraction}) are more than the whole run; lower one"
            )
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"adapter.{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0.0 <= self.orthogonality < float("inf"):
            raise ValueError(f"adapter.orthogonality must be 0 or above, got {self.orthogonality}")
        _check_counts(self, "prune_every")


@dataclass(frozen=True, kw_only=True)
class HoulsbyConfig:
    """A bottleneck after attention and one after the feed-forward part, and the norms; see `bottleneck.py`."""

    kind: Literal["houlsby"] = setting("houlsby", "the kind of adapter")
    width: int = setting(64, "hidden size of the bottleneck, m")

    def __post_init__(self) -> None:
        _check_counts(self, "width")


@dataclass(frozen=True, kw_only=True)
class PfeifferConfig:
    """A bottleneck after the feed-forward part alone; see `bottleneck.py`."""

    kind: Literal["pfeiffer"] = setting("pfeiffer", "the kind of adapter")
    width: int = setting(64, "hidden size of the bottleneck, m")

    def __post_init__(self) -> None:
        _check_counts(self, "width")


@dataclass(frozen=True, kw_only=True)
class PrefixConfig:
    """Learned keys and values before those of the text, in every layer; see `prefix.py`."""

    kind: Literal["prefix"] = setting("prefix", "the kind of adapter")
    length: int = setting(16, "number of learned keys in a layer, P; the text's positions stay as they are")
    mlp_width: int | None = setting(
        None, "hidden size of the network that makes keys and values while they are trained; none: no such network"
    )

    def __post_init__(self) -> None:
        _check_counts(self, "length")
        if self.mlp_width is not None:
            _check_counts(self, "mlp_width")


@dataclass(frozen=True, kw_only=True)
class IA3Config:
    """Gains on the outputs of some linear layers and on the inputs of others; see `ia3.py`."""

    kind: Literal["ia3"] = setting("ia3", "the kind of adapter")
    targets: tuple[str, ...] = setting(("k", "v"), f"output is scaled: {TARGETS}")
    input_targets: tuple[str, ...] = setting(("down",), f"input is scaled: {TARGETS}")

    def __post_init__(self) -> None:
        if both := sorted(set(self.targets) & set(self.input_targets)):
            raise ValueError(f"adapter.targets and adapter.input_targets both have {', '.join(both)}; leave out one")
        if not self.targets and not self.input_targets:
            raise ValueError('adapter.targets and adapter.input_targets are empty; take targets = ["k", "v"]')


@dataclass(frozen=True, kw_only=True)
class BitFitConfig:
    """The biases alone; see `bitfit.py`."""

    kind: Literal["bitfit"] = setting("bitfit", "the kind of adapter")


AdapterConfig = LoRAConfig | AdaLoRAConfig | HoulsbyConfig | PfeifferConfig | PrefixConfig | IA3Config | BitFitConfig


def _check_low_rank(config: LoRAConfig | AdaLoRAConfig) -> None:
    """Raise ValueError unless the settings that LoRA and AdaLoRA share hold."""
    if not config.targets:
        raise ValueError('adapter.targets is empty; name linear layers, such as ["q", "v"]')
    _check_counts(config, "rank")
    if not 0.0 < config.alpha < float("inf"):
        raise ValueError(f"adapter.alpha must be above 0, got {config.alpha}")
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"adapter.dropout must be in [0, 1), got {config.dropout}")


def _check_counts(config: AdapterConfig, *names: str) -> None:
    """Raise ValueError unless each of these settings is at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"adapter.{name} must be at least 1, got {getattr(config, name)}")
