"""How the attention kernels are compiled: entries of the table of launches, with the switches that change code.

Each mask that a call has or lacks is another specialisation, so there are thousands. Listed are causal float16 for
heads of every width; for widths 64 and 128 dropout, which takes the table's entries for heavy scores, and float32; and
for width 64 on sm_90 each option alone, all at once, and bfloat16, which differs from float16 in names only. Of the
kernel of `hopper.py` are listed all ways for widths 64 and 128 in float16, one for each other width, one in bfloat16.

Read next: `../variant.py`; then `../exponential.py`, which leads on to the next op.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

import torch

from minillm_kernels.attention import configs, hopper_launcher
from minillm_kernels.attention.backward import (
    _attention_dbias_kernel,
    _attention_delta_kernel,
    _attention_dk_dv_kernel,
    _attention_dq_kernel,
)
from minillm_kernels.attention.decode import _attention_combine_kernel, _attention_decode_kernel
from minillm_kernels.attention.forward import _attention_forward_kernel
from minillm_kernels.attention.scores import Dropout, Sizes, Terms, Visibility
from minillm_kernels.variant import Variant

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_STRIDES = ("i32", "i32", "i32", 1)  # of (B, T, H, D), the last axis without gaps
_NOTHING = Visibility(*[None] * 8)
_CAUSAL = _NOTHING._replace(right="i32")  # Triton makes constants of 1 and None, not of 0
_PLAIN = Terms("fp32", 1, *[None] * 7)
_BIAS = {"bias": "*fp32", "bias_b": "i32", "bias_h": "i32", "bias_t": "i32", "bias_s": 1}

# name: masks, terms, dropout; a string is the type of an argument, anything else is a constant to the compiler
SWITCHES: dict[str, tuple[Visibility, Terms, bool]] = {
    "full": (_NOTHING, _PLAIN, False),
    "causal": (_CAUSAL, _PLAIN, False),
    "everything": (
        Visibility("i32", "i32", "*i64", "*i64", "*i64", "*i64", "*i32", "*i32"),
        Terms("fp32", 1, "fp32", "*fp32", **_BIAS),
        True,
    ),
    "grouped": (_CAUSAL, _PLAIN, False),
    "window": (_NOTHING._replace(left="i32", right="i32"), _PLAIN, False),
    "padded": (_NOTHING._replace(key_stop="*i64"), _PLAIN, False),
    "padded causal": (_CAUSAL._replace(key_start="*i64"), _PLAIN, False),
    "segments": (_CAUSAL._replace(segments="*i64", spans="*i32", key_spans="*i32"), _PLAIN, False),
    "packed": (_CAUSAL._replace(spans="*i32", key_spans="*i32"), _PLAIN, False),
    "prefix": (_CAUSAL._replace(prefix="*i64"), _PLAIN, False),
    "alibi": (_CAUSAL, _PLAIN._replace(alibi="*fp32"), False),
    "bias": (_NOTHING, _PLAIN._replace(**_BIAS), False),
    "softcap": (_CAUSAL, _PLAIN._replace(softcap="fp32"), False),
    "dropout": (_CAUSAL, _PLAIN, True),
}
GROUPED = ("grouped", "everything")  # several query heads read one key head
KERNELS: dict[str, Any] = {
    "forward": _attention_forward_kernel,
    "dk_dv": _attention_dk_dv_kernel,
    "dq": _attention_dq_kernel,
    "dbias": _attention_dbias_kernel,
    "decode": _attention_decode_kernel,
    "delta": _attention_delta_kernel,
    "combine": _attention_combine_kernel,
}


def variants() -> Iterator[Variant]:
    """Yield the specialisations that the docstring of this file names, each with the devices that launch it so."""
    for device in configs.DEVICES:
        for dtype in _NAMES:
            for D in configs.WIDTHS:
                for kernel in KERNELS:
                    for switch in _switches(kernel, device, dtype, D):
                        yield variant(kernel, device, dtype, D, switch)
    for D in hopper_launcher.WIDTHS:
        for switch in ("full", "causal", "padded", "padded causal") if D in (64, 128) else ("causal",):
            yield hopper_variant(torch.float16, D, switch)
    yield hopper_variant(torch.bfloat16, 64, "causal")


def hopper_variant(dtype: torch.dtype, D: int, switch: str, launch: hopper_launcher.Launch | None = None) -> Variant:
    """Return one specialisation of the kernel of `hopper.py`; `launch` stands in for its own."""
    from minillm_kernels.attention.hopper import _attention_forward_hopper_kernel as function

    launch = launch or hopper_launcher.launch(D)

    def descriptor(rows: int) -> str:
        shape, layout = hopper_launcher.tile(rows, D)
        return f"tensordesc<{_NAMES[dtype]}{shape},{layout!r}>"

    arguments: dict[str, Any] = {
        "q_desc": descriptor(hopper_launcher.ROWS),
        "k_desc": descriptor(launch.block_n),
        "v_desc": descriptor(launch.block_n),
        "y_desc": descriptor(hopper_launcher.ROWS),
        "lse_ptr": "*fp32",
        "key_stop_ptr": "*i64" if switch.startswith("padded") else None,
        "scale": "fp32",
        "num_queries": "i32",
        "num_keys": "i32",
        "num_heads": "i32",
        "group": "i32",
        "BLOCK_N": launch.block_n,
        "BLOCK_D": configs.padded_width(D),
        "CAUSAL": switch.endswith("causal"),
        "STAGES": launch.stages,
        "PING_PONG": launch.ping_pong,
    }
    signature, constants, aligned = described(arguments)
    return Variant(
        op="attention",
        name=f"forward hopper {_NAMES[dtype]} D={D} {switch}",
        kernel=function,
        signature=signature,
        constants=constants,
        aligned=aligned,
        num_warps=4,
        max_registers=hopper_launcher.REGISTERS,
        targets=("sm_90",),
        matrix_unit=True,
    )


def _switches(kernel: str, device: configs.Device, dtype: torch.dtype, D: int) -> tuple[str, ...]:
    closely, usual = device == "sm_90" and D == 64, D in (64, 128)
    if dtype != torch.float16 and not (closely if dtype == torch.bfloat16 else usual):
        return ()
    if kernel in ("delta", "combine"):
        return ("full",) if usual else ()
    if kernel == "dbias":
        return ("bias", "everything") if closely and dtype == torch.float16 else ("bias",)
    if dtype != torch.float16:
        return ("causal",)
    return tuple(SWITCHES) if closely else ("causal", "dropout") if usual else ("causal",)


def variant(
    kernel: str, device: configs.Device, dtype: torch.dtype, D: int, switch: str, launch: configs.Launch | None = None
) -> Variant:
    """Return one specialisation; `launch` stands in for the table's own."""
    function = KERNELS[kernel]
    see, terms, random = SWITCHES[switch]
    if kernel == "decode":
        see = see._replace(segments=None, spans=None)
    drop = Dropout("fp32", "*i64", "fp32") if random else Dropout(None, None, None)
    entry = kernel if kernel in get_args(configs.Kernel) else "forward"  # the others have no entry of their own
    heavy = configs.is_heavy(see, terms, drop)
    launch = launch or configs.launch(cast(configs.Kernel, entry), device, dtype, D, heavy)
    row = f"*{_NAMES[dtype]}"
    arguments: dict[str, Any] = {name: row for name in function.arg_names if name.endswith("_ptr")}
    arguments |= {name: "*fp32" for name in ("lse_ptr", "delta_ptr", "part_o_ptr", "part_m_ptr", "part_w_ptr")}
    arguments |= {name: _STRIDES for name in function.arg_names if name.endswith("_strides")}
    arguments |= {
        "dbias_ptr": "*fp32",
        "shared": ("i32", 1),
        "see": see,
        "terms": terms,
        "drop": drop,
        "sizes": Sizes("i32", "i32", "i32", "i32" if switch in GROUPED else 1),
        "keys_per_split": "i32",
        "num_splits": "i32",
        "HEAD_DIM": D,
        "BLOCK_D": configs.padded_width(D),
        "BLOCK_M": {"decode": 16, "delta": configs.DELTA_ROWS}.get(kernel, launch.block_m),
        "BLOCK_N": launch.block_n,
    }
    signature, constants, aligned = described({name: arguments[name] for name in function.arg_names})
    return Variant(
        op="attention",
        name=f"{kernel} {_NAMES[dtype]} D={D} {switch}",
        kernel=function,
        signature=signature,
        constants=constants,
        aligned=aligned,
        num_warps={"delta": 4, "combine": 2}.get(kernel, launch.num_warps),
        num_stages=launch.num_stages,
        targets=(device,),
        matrix_unit=dtype != torch.float32 and kernel not in ("delta", "combine"),
    )


def described(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Any, Any], frozenset[Any]]:
    """Return signature, constants and aligned of a `Variant`; an argument is a type, a constant, or a tuple of them.

    Pointers and strides count as divisible by 16, sizes do not.
    """
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    aligned: list[Any] = []

    def walk(value: Any, path: tuple[int, ...], name: str) -> Any:
        if isinstance(value, tuple):
            parts = [walk(part, (*path, i), name) for i, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        key = name if len(path) == 1 else path
        if not isinstance(value, str):
            constants[key] = value
            return "constexpr"
        if value.startswith("*") or name.endswith("_strides"):
            aligned.append(key)
        return value

    for index, (name, value) in enumerate(arguments.items()):
        signature[name] = walk(value, (index,), name)
    return signature, constants, frozenset(aligned)
