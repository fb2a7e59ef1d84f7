"""Triton's interpreter as kernels need it on a CPU: right in bfloat16, and a third quicker.

NumPy has no bfloat16, so that the interpreter holds a tile of it as uint16. It loads, moves and stores that well, but
computes with the bits as if they were integers: `tl.dot` multiplies them, `+` adds them, `<` takes every negative
number for a large one, and float32 is cut to bfloat16 where a GPU rounds to the nearest, ties to even (Triton 3.6.0 and
3.7.1). Here each such operation becomes what a GPU does:

    operation(a, b) in bfloat16  =  round(operation(widen(a), widen(b)) in float32)

A product of two bfloat16 numbers is exact in float32, and `tl.dot` adds in float32 on a GPU too. Functions such as
`tl.exp` need nothing, as Triton refuses bfloat16 there. A reduction or scan rounds its result once, where a GPU rounds
each sum on the way. Atomics on bfloat16 stay wrong; no kernel here has one.

The time goes into replacing the language's functions by interpreted ones, anew at each call of a device function; once
a launch is enough (12 steps of a small encoder, forward and backward: 0.66 of the time).

Read next: `launching.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

# what computes with bfloat16; Triton itself widens it for the rest, and other operations move bits, integers, addresses
ARITHMETIC = ("fadd", "fsub", "fmul", "fdiv", "fma", "dot")
COMPARISONS = tuple(f"fcmp{ordered}{relation}" for ordered in "OU" for relation in ("LT", "GT", "LE", "GE", "EQ", "NE"))
CONVERSIONS = ("cast_impl", "create_fp_to_fp")
_installed = False


def widen(bits: Any) -> Any:
    """Return as float32 the numbers whose bfloat16 is `bits`, uint16: the upper half of a float32 is a bfloat16.

    >>> import numpy
    >>> widen(numpy.array([0x3F80, 0xC000], "uint16"))
    array([ 1., -2.], dtype=float32)
    """
    return (bits.astype("uint32") << 16).view("float32")


def rounded(numbers: Any) -> Any:
    """Return the uint16 bits of the bfloat16 nearest to each number, of two that are as near the even one.

    Adding 0x7FFF to the half that goes, and one more where the half that stays is odd, carries exactly when the number
    is to go up. In a NaN that could carry as far as the sign: it keeps its upper bits and is made quiet.

    >>> import numpy
    >>> [hex(bits) for bits in rounded(numpy.array([1 + 2**-8, 1 + 3 * 2**-8, numpy.nan]))]
    ['0x3f80', '0x3f82', '0x7fc0']
    """
    is_nan = numbers != numbers
    bits = numbers.astype("float32").view("uint32")
    nearest = bits + 0x7FFF + (bits >> 16 & 1)
    return ((nearest * ~is_nan + (bits | 0x400000) * is_nan) >> 16).astype("uint16")


def install() -> None:
    """Change the interpreter of this process; a second call changes nothing.

    Raises:
        RuntimeError: this release of Triton has no interpreter of the form that is known here.
    """
    global _installed
    if _installed:
        return
    builder = interpreter.InterpreterBuilder
    names = [f"create_{name}" for name in (*ARITHMETIC, *COMPARISONS)]
    missing = [name for name in (*names, *CONVERSIONS) if not hasattr(builder, name)]
    if missing or hasattr(builder, "get_bf16"):
        what = f"no {missing[0]}" if missing else "get_bf16"
        raise RuntimeError(f"Triton's interpreter has {what}, so that bfloat16 may be wrong; try triton==3.7.1")
    _installed = True
    for name in names:
        setattr(builder, name, _widening(getattr(builder, name), rounds=not name.startswith("create_fcmp")))
    for name in CONVERSIONS:
        setattr(builder, name, _converting(getattr(builder, name)))
    builder.get_bf16 = _constant  # pyright: ignore[reportAttributeAccessIssue]
    for operation in (interpreter.ReduceOps, interpreter.ScanOps):
        operation.apply_impl = _reducing(operation.apply_impl)
    interpreter._patch_lang = _once_a_launch(interpreter._patch_lang)


def _handle(data: Any, dtype: tl.dtype) -> Any:
    return interpreter.TensorHandle(data, dtype)


def _constant(self: Any, number: float) -> Any:
    return _handle(rounded(self.get_fp32(number).data), tl.bfloat16)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, interpreter.TensorHandle) and value.dtype.scalar == tl.bfloat16


def _widening(operation: Callable[..., Any], *, rounds: bool) -> Callable[..., Any]:
    """Return `operation` with bfloat16 operands as float32; if it rounds, the result of bfloat16 alone is bfloat16.

    `tl.dot` has a third operand, the float32 to which it adds: its result stays float32.
    """

    @functools.wraps(operation)
    def widened(self: Any, *operands: Any, **options: Any) -> Any:
        tiles = [operand for operand in operands if isinstance(operand, interpreter.TensorHandle)]
        if not any(map(_is_bfloat16, tiles)):
            return operation(self, *operands, **options)
        wide = [_handle(widen(operand.data), tl.float32) if _is_bfloat16(operand) else operand for operand in operands]
        result = operation(self, *wide, **options)
        return _handle(rounded(result.data), tl.bfloat16) if rounds and all(map(_is_bfloat16, tiles)) else result

    return widened


def _converting(conversion: Callable[..., Any]) -> Callable[..., Any]:
    """Return `conversion` that widens what comes from bfloat16 and rounds what goes to it."""

    @functools.wraps(conversion)
    def converted(self: Any, source: Any, target: Any, *rounding: Any) -> Any:
        if target.scalar == tl.bfloat16:
            return source if _is_bfloat16(source) else _handle(rounded(source.data), tl.bfloat16)
        if _is_bfloat16(source):
            source = _handle(widen(source.data), tl.float32)
            if target.scalar == tl.float32:
                return source
        return conversion(self, source, target, *rounding)

    return converted


def _reducing(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reduction or scan that widens tensors in bfloat16, and rounds what comes of them."""

    @functools.wraps(operation)
    def reduced(self: Any, tensors: Any) -> Any:
        low = [tensor.dtype.scalar == tl.bfloat16 for tensor in tensors]
        if not any(low):
            return operation(self, tensors)
        wide = [
            self.to_tensor(widen(t.handle.data), tl.float32) if is_low else t
            for t, is_low in zip(tensors, low, strict=True)
        ]
        found = operation(self, tuple(wide))
        several = isinstance(found, (list, tuple))
        results = list(found) if several else [found]
        for i, (result, is_low) in enumerate(zip(results, low, strict=False)):
            if is_low and result.dtype.scalar == tl.float32:
                bits = rounded(result.handle.data)
                results[i] = self.to_tensor(bits if result.type.is_block() else bits.item(), tl.bfloat16)
        return results if several else results[0]

    return reduced


def _once_a_launch(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `patch`, which gives a function the interpreted language, doing nothing where a launch has done it.

    The language is two modules, `triton.language` and its `core`, of which a function sees one or both.
    """
    patched: set[int] = set()

    def patch_once(function: Any) -> Any:
        seen = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if seen and seen <= patched:
            return interpreter._LangPatchScope()  # nothing to restore
        scope = patch(function)
        patched.update(seen)
        restore = scope.restore

        def restore_and_forget() -> None:
            restore()
            patched.clear()

        scope.restore = restore_and_forget
        return scope

    return patch_once
