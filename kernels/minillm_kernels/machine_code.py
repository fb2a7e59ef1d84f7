"""What a compiled kernel asks of a device, read from the compilers' own texts: pure functions, no Triton, no GPU.

    Machine               what one multiprocessor has
    ptxas_resources       registers and spills, from the log of `ptxas -v`
    sass_instructions     matrix instructions, copies and widths, from the disassembly by `nvdisasm -c` (sm_*)
    gcn_resources         all of these, from LLVM's assembly (gfx*)
    resident_warps        the occupancy that registers, shared memory and warps leave

All counts are of instructions in the code, not of executions. Read next: `compile_report.py`, which fills a table.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The limits of one multiprocessor (NVIDIA: SM, AMD: compute unit).

    Sources: CUDA C Programming Guide, table "Technical Specifications per Compute Capability"; AMD CDNA 3 ISA Guide,
    and the Instinct MI300 tuning guide.
    """

    warps: int  # resident at most
    blocks: int  # resident at most
    partitions: int  # warps are spread over them, each with its share of the registers
    registers: int  # of 32 bits, for each lane of a partition
    granule: int  # registers a lane are given out in multiples of this
    shared: int  # bytes
    shared_per_block: int  # bytes that one block may ask for
    shared_reserved: int  # bytes that the driver takes from each block
    tensor_memory: int = 0  # columns, of Blackwell's memory for accumulators


_AMPERE = {"warps": 64, "blocks": 32, "partitions": 4, "registers": 512, "granule": 8}
MACHINES = {
    "sm_80": Machine(**_AMPERE, shared=164 << 10, shared_per_block=163 << 10, shared_reserved=1 << 10),
    "sm_90": Machine(**_AMPERE, shared=228 << 10, shared_per_block=227 << 10, shared_reserved=1 << 10),
    "sm_100": Machine(
        **_AMPERE, shared=228 << 10, shared_per_block=227 << 10, shared_reserved=1 << 10, tensor_memory=512
    ),
    "gfx942": Machine(
        warps=32,
        blocks=32,
        partitions=4,
        registers=512,
        granule=8,
        shared=64 << 10,
        shared_per_block=64 << 10,
        shared_reserved=0,
    ),
}


def resident_warps(machine: Machine, registers: int, shared: int, num_warps: int, tensor_memory: int = 0) -> int:
    """Return how many warps of a kernel one multiprocessor holds at once; 0: not even one block fits.

        by_registers = partitions * floor(registers of a partition / registers of a lane, rounded up to the granule)
        blocks = min(by_registers / num_warps, shared / (asked + reserved), warps / num_warps, blocks,
                     tensor_memory / asked), each rounded down
        resident = blocks * num_warps

    Args:
        registers: of one lane. shared: bytes of one block. num_warps: of one block. tensor_memory: columns of one.

    >>> resident_warps(MACHINES["sm_90"], registers=128, shared=48 << 10, num_warps=8)
    16
    """
    if shared > machine.shared_per_block or tensor_memory > machine.tensor_memory:
        return 0
    rounded = -(-max(registers, 1) // machine.granule) * machine.granule
    by_registers = machine.partitions * (machine.registers // rounded)
    by_shared = machine.shared // max(1, shared + machine.shared_reserved)
    blocks = min(by_registers // num_warps, by_shared, machine.warps // num_warps, machine.blocks)
    if tensor_memory:
        blocks = min(blocks, machine.tensor_memory // tensor_memory)
    return blocks * num_warps


def ptxas_resources(log: str) -> dict[str, int]:
    """Return registers a lane and bytes spilled a lane (stored, loaded), as `ptxas -v` prints them.

    >>> ptxas_resources('''ptxas info    : Function properties for f
    ...     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
    ... ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size''')
    {'registers': 255, 'spill_stores': 4, 'spill_loads': 12}
    """
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.findall(r"Used (\d+) registers", log)
    if not spills or not registers:
        raise ValueError(f"this is no log of ptxas -v: {log[:200]!r}")
    return {
        "registers": max(map(int, registers)),
        "spill_stores": sum(int(stores) for stores, _ in spills),
        "spill_loads": sum(int(loads) for _, loads in spills),
    }


_SASS_MATRIX = (  # opcode -> the instruction's name in PTX
    (re.compile(r"UTC\w*MMA"), "tcgen05"),
    (re.compile(r"[HIQB]GMMA"), "wgmma"),
    (re.compile(r"[HIQBDO]MMA"), "mma.sync"),
)
_SASS_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z]\w*)([\w.]*)", re.MULTILINE)


def sass_instructions(text: str) -> dict[str, Any]:
    """Return the counts of matrix instructions, of copies, and of global loads and stores by width in bits.

    A copy to shared memory is a load too.

    >>> sass_instructions("/*0010*/ @P0 LDG.E.128 R4, [R2] ;  /*0020*/ ...".replace(";  ", ";\\n"))["loads"]
    {'128': 1}
    """
    found = _nothing()
    for opcode, suffix in _SASS_LINE.findall(text):
        kind = next((name for pattern, name in _SASS_MATRIX if pattern.fullmatch(opcode)), None)
        if kind:
            found["matrix"][kind] += 1
        elif opcode in ("UBLKCP", "UTMALDG", "UTMASTG", "UTMAREDG"):
            found["copies"]["cp.async.bulk"] += 1
        elif opcode == "LDGSTS":
            found["copies"]["cp.async"] += 1
            found["loads"][_sass_width(suffix)] += 1
        elif opcode == "LDG":
            found["loads"][_sass_width(suffix)] += 1
        elif opcode == "STG":
            found["stores"][_sass_width(suffix)] += 1
    return _plain(found)


def _sass_width(suffix: str) -> int:
    """Return the bits that one lane moves: .128, .64, .U16; 32 where nothing is said."""
    parts = re.findall(r"\.[US]?(8|16|32|64|128|256)(?=\.|$)", suffix)
    return int(parts[-1]) if parts else 32


_GCN_MEMORY = re.compile(
    r"^\s+(global|buffer|scratch)_(load|store)_(?:lds_)?(dwordx[234]|dword|[us]?byte|[us]?short|[bu]\d+)", re.MULTILINE
)
_GCN_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}


def gcn_resources(assembly: str) -> dict[str, Any]:
    """Return registers a lane (vector and accumulation), bytes spilled a lane, and the counts of instructions.

    Spills are the widths of all accesses to scratch memory, which nothing else uses here.
    """
    registers = re.search(r"^\s+\.vgpr_count:\s+(\d+)", assembly, re.MULTILINE)
    if registers is None:
        raise ValueError(f"this is no AMDGPU assembly: {assembly[:200]!r}")
    found = _nothing()
    found["matrix"]["mfma"] = len(re.findall(r"^\s+v_mfma_", assembly, re.MULTILINE))
    spilled = Counter()
    for space, direction, width in _GCN_MEMORY.findall(assembly):
        bits = _GCN_BITS.get(width) or (8 if "byte" in width else 16)
        if space == "scratch":
            spilled[direction] += bits // 8
        else:
            found[direction + "s"][bits] += 1
    return {
        "registers": int(registers[1]),
        "spill_stores": spilled["store"],
        "spill_loads": spilled["load"],
    } | _plain(found)


def _nothing() -> dict[str, Counter[Any]]:
    return {name: Counter() for name in ("matrix", "copies", "loads", "stores")}


def _plain(found: dict[str, Counter[Any]]) -> dict[str, dict[str, int]]:
    """Return dicts that JSON keeps as they are: the widest and the first by name come first, without zeros."""
    return {
        name: {str(key): counter[key] for key in sorted(counter, key=str) if counter[key]}
        if name in ("matrix", "copies")
        else {str(key): counter[key] for key in sorted(counter, reverse=True)}
        for name, counter in found.items()
    }
