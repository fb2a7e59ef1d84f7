r"""attention, forward, in the shape that a Hopper GPU (sm_90) wants: the maths of `forward.py`, (15) to (19), in Gluon.

`forward.py` says what a program computes and leaves to Triton who does it when. Here that is said: which warps copy,
which multiply, and what each waits for. Two things of Hopper make it worth while. A copy between global and shared
memory (TMA) and a product of a warpgroup, 128 threads, (wgmma) are both *ordered* by one instruction and then happen by
themselves; and a program may be split into partitions of warps that run different code with different numbers of
registers. A program owns 128 queries of one head:

    the producer     1 warp, 24 registers a thread: orders copies of tiles of K and V into a ring of STAGES places each
    consumer 0, 1    4 warps, 240 registers a thread: 64 queries each, and all keys that any of the 128 queries sees

**The ring.** Each place has two mbarriers. `ready` completes when the bytes that the producer announced have arrived;
`empty` when both consumers have arrived there, each once it has read the place. The phases of an mbarrier have parity
0, 1, 0, ...; a wait with parity x returns when the latest phase to have ended has parity x, and before the first has
ended that is 1. Tile n is the (n // STAGES)-th in its place: its `ready` is awaited with parity (n // STAGES) & 1, and
`empty`, by the producer, with the other one, which a place has that nobody has used yet.

**Overlap in a consumer.** Of (17) and (18), with P_n the exponentials of tile n: scores of a tile need no softmax, and
the product P_n V_n needs only its own. So the consumer orders the scores of tile n and, behind them, P_(n-1) V_(n-1);
while the latter is computed it takes the softmax of tile n. One turn of the loop, time to the right:

    tensor cores     S_n = Q K_n'   |  O += P_(n-1) V_(n-1)          |  S_(n+1) = ...
    other units      waiting        |  m, P_n, w by (16) and (17)    |  O *= factor of (18)

so that o is brought to the new maximum one product later than in `forward.py`, by the same factor: the sum is the same.
Places are given back as early as may be: K_n when its scores are there, V_(n-1) when its product is.

**Ping-pong between the consumers.** In one cycle a multiprocessor computes 16 exponentials, or 4096 operations of the
tensor cores: at D = 128 a tile's exponentials take half as long as its two products, at D = 64 as long as them. If both
consumers multiply at once, both take their softmax at once, and the tensor cores idle. With PING_PONG a consumer orders
products only in its turn, and passes the turn on when both are ordered:

    consumer 0       S, PV ordered  |  softmax                       |  S, PV ordered  |  ...
    consumer 1       softmax        |  S, PV ordered                 |  softmax        |  ...

Consumer 0 has the first turn. Both walk the same number of tiles, even where under causality the first 64 queries see
nothing of the last one: the turns and the arrivals at `empty` then always match. There is always one tile, and it may
be hidden whole: a row that sees nothing ends as in `forward.py`, with y = 0 and lse = +inf.

Tiles are walked from the last to the first. Those that can hide a pair, at the end of the keys and on the diagonal,
come first then, and the rest is a loop that tests nothing. What TMA reads past a tensor's end is 0, along each axis by
itself: rows after the last query and columns past D need no mask, and no batch reads its neighbour's rows.

What holds of this file: it has been compiled for sm_90 by Triton 3.6.0 and 3.7.1 (`../../COMPILE_REPORT.md`), and run
on a CPU by `tests/kernels/gluon_emulator.py`, with copies and products as late as the barriers allow. On an H200 the
first 46 of its compiled tests passed; it takes 431 us for 64 x 1024 causal tokens of 12 heads of 64, and 314 us for
4 x 4096, where the kernel of `forward.py` takes 333 and 276 (bfloat16, 2026-11-28, Triton 3.6.0). So it has to be asked
for: `hopper_launcher.py`.

Source: Shah et al. (2024), FlashAttention-3, arXiv:2407.08608.

Read next: `hopper_launcher.py`.
"""

# Gluon's annotations are those of values while a kernel is compiled: as Python, what the kernel says does not fit them.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

ROWS = gl.constexpr(64)  # queries of a consumer: the rows of a warpgroup's product
LOG2E = gl.constexpr(1.4426950408889634)


@gluon.constexpr_function
def in_registers(width):
    """Return how a warpgroup holds a product (64, width)."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, width, 16])


@gluon.jit
def tile_bounds(first, rows, stop, shift, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """Return how many tiles of keys the queries first, ..., first + rows - 1 walk, and how many hide no pair."""
    full_stop = stop
    if CAUSAL:
        stop = gl.minimum(stop, gl.maximum(first + rows + shift, 0))
        full_stop = gl.minimum(full_stop, gl.maximum(first + 1 + shift, 0))
    return gl.maximum((stop + BLOCK_N - 1) // BLOCK_N, 1), full_stop // BLOCK_N


@gluon.jit
def load_tile(
    n,                         # of the tiles in the order of the walk: 0, 1, ...
    num_tiles,
    desc,
    tiles,
    ready,
    empty,
    batch,
    key_head,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Order the copy of a tile of K or V into its place, once that is empty."""
    place, parity = n % STAGES, (n // STAGES) & 1
    mbarrier.wait(empty.index(place), parity ^ 1)
    mbarrier.expect(ready.index(place), desc.block_type.nbytes)
    start = [batch, (num_tiles - 1 - n) * BLOCK_N, key_head, 0]
    tma.async_copy_global_to_shared(desc, start, ready.index(place), tiles.index(place))


@gluon.jit
def load_tiles(
    q_desc,
    k_desc,
    v_desc,
    queries,                   # q_tiles, q_ready
    ring,                      # k_tiles, v_tiles, k_ready, v_ready, k_empty, v_empty
    batch,
    head,
    key_head,
    first_query,
    num_tiles,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """The producer."""
    q_tiles, q_ready = queries
    k_tiles, v_tiles, k_ready, v_ready, k_empty, v_empty = ring
    for consumer in gl.static_range(2):
        start = [batch, first_query + consumer * ROWS, head, 0]
        mbarrier.expect(q_ready.index(consumer), q_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, start, q_ready.index(consumer), q_tiles.index(consumer))
    load_tile(0, num_tiles, k_desc, k_tiles, k_ready, k_empty, batch, key_head, BLOCK_N, STAGES)
    for n in range(1, num_tiles):  # in the order in which they are used, and places become empty
        load_tile(n, num_tiles, k_desc, k_tiles, k_ready, k_empty, batch, key_head, BLOCK_N, STAGES)
        load_tile(n - 1, num_tiles, v_desc, v_tiles, v_ready, v_empty, batch, key_head, BLOCK_N, STAGES)
    load_tile(num_tiles - 1, num_tiles, v_desc, v_tiles, v_ready, v_empty, batch, key_head, BLOCK_N, STAGES)


@gluon.jit
def softmax_tile(
    s,                         # (64, BLOCK_N) raw products
    m,                         # (64,) of (16), as w
    w,
    unit,                      # scale * log2(e): s * unit is a
    i,                         # (64,) which queries
    start,                     # the first key
    stop,
    shift,
    BLOCK_N: gl.constexpr,
    CAUSAL: gl.constexpr,
    MASKED: gl.constexpr,      # whether pairs of this tile may be hidden
):  # fmt: skip
    """Return p, m', w' of (17), and the factor by which (18) moves o to m'."""
    if MASKED:
        j = start + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, in_registers(BLOCK_N)))[None, :]
        seen = j < stop
        if CAUSAL:
            seen = seen & (j <= i[:, None] + shift)
        s = gl.where(seen, s, float("-inf"))
    m_new = gl.maximum(m, gl.max(s, axis=1) * unit)
    subtracted = m_new
    if MASKED:
        subtracted = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(s * unit - subtracted[:, None])
    factor = gl.exp2(m - subtracted)
    w = w * factor + gl.sum(p, axis=1)  # (17)
    return p, m_new, w, factor


@gluon.jit
def next_tile(
    n,                         # of the tiles in the order of the walk: 1, 2, ...
    num_tiles,
    sums,                      # m and w with tile n - 1, o without it
    p,                         # (64, BLOCK_N) of tile n - 1, in the dtype of v
    q,                         # (64, BLOCK_D) in shared memory
    ring,
    turn,
    unit,
    i,
    stop,
    shift,
    CONSUMER: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_D: gl.constexpr,
    CAUSAL: gl.constexpr,
    STAGES: gl.constexpr,
    PING_PONG: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """Order the scores of tile n and the product of tile n - 1, and return sums and p of tile n."""
    m, w, o = sums
    k_tiles, v_tiles, k_ready, v_ready, k_empty, v_empty = ring
    place, before, after = n % STAGES, (n - 1) % STAGES, (n + 1) % STAGES
    k = k_tiles.index(place).reshape([BLOCK_N, BLOCK_D])
    v = v_tiles.index(before).reshape([BLOCK_N, BLOCK_D])
    if PING_PONG:
        mbarrier.wait(turn.index(CONSUMER), (n + CONSUMER) & 1)
    nothing = gl.full([ROWS, BLOCK_N], 0.0, gl.float32, layout=in_registers(BLOCK_N))
    s = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
    mbarrier.wait(v_ready.index(before), ((n - 1) // STAGES) & 1)
    o = warpgroup_mma(p, v, o, is_async=True)  # (18)
    if PING_PONG:
        mbarrier.arrive(turn.index(1 - CONSUMER), count=1)

    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_empty.index(place), count=1)
    start = (num_tiles - 1 - n) * BLOCK_N
    weights, m, w, factor = softmax_tile(s, m, w, unit, i, start, stop, shift, BLOCK_N, CAUSAL, MASKED)
    # ptxas would put the exponentials behind the next wait for a product, which ends the overlap, but it moves nothing
    # over a loop, as a wait for an mbarrier is one; and the compiler before it moves nothing over what waits for it.
    mbarrier.wait(k_ready.index(after), ((n + 1) // STAGES) & 1, pred=n + 1 < num_tiles)
    o, weights, w, factor = warpgroup_mma_wait(0, deps=[o, weights, w, factor])
    mbarrier.arrive(v_empty.index(before), count=1)
    o = o * gl.convert_layout(factor, gl.SliceLayout(1, in_registers(BLOCK_D)), assert_trivial=True)[:, None]
    return (m, w, o), as_operand(weights, p.dtype, BLOCK_D)


@gluon.jit
def as_operand(weights, dtype: gl.constexpr, BLOCK_D: gl.constexpr):
    """Return p as the left operand of the product with v: it stays in the registers where the scores were."""
    return gl.convert_layout(weights.to(dtype), gl.DotOperandLayout(0, in_registers(BLOCK_D), k_width=2))


@gluon.jit
def attend(
    y_desc,
    lse_row,                   # pointer to lse of query 0
    queries,
    ring,
    turn,
    unit,
    batch,
    head,
    first_query,
    num_queries,
    num_tiles,
    stop,                      # keys before it are seen
    shift,                     # query i stands at key position i + shift
    CONSUMER: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_D: gl.constexpr,
    CAUSAL: gl.constexpr,
    STAGES: gl.constexpr,
    PING_PONG: gl.constexpr,
):  # fmt: skip
    """A consumer."""
    q_tiles, q_ready = queries
    k_tiles, v_tiles, k_ready, v_ready, k_empty, _v_empty = ring
    mine = first_query + CONSUMER * ROWS
    _, num_full = tile_bounds(mine, ROWS, stop, shift, BLOCK_N, CAUSAL)
    num_masked = gl.maximum(num_tiles - num_full, 1)
    i = mine + gl.arange(0, ROWS, layout=gl.SliceLayout(1, in_registers(BLOCK_N)))
    m = gl.full([ROWS], float("-inf"), gl.float32, layout=gl.SliceLayout(1, in_registers(BLOCK_N)))
    w = gl.full([ROWS], 0.0, gl.float32, layout=gl.SliceLayout(1, in_registers(BLOCK_N)))
    o = gl.full([ROWS, BLOCK_D], 0.0, gl.float32, layout=in_registers(BLOCK_D))
    nothing = gl.full([ROWS, BLOCK_N], 0.0, gl.float32, layout=in_registers(BLOCK_N))

    # tile 0: there is no product yet to order with it
    q = q_tiles.index(CONSUMER).reshape([ROWS, BLOCK_D])
    k = k_tiles.index(0).reshape([BLOCK_N, BLOCK_D])
    mbarrier.wait(q_ready.index(CONSUMER), 0)
    mbarrier.wait(k_ready.index(0), 0)
    s = warpgroup_mma(q, k.permute((1, 0)), nothing, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    mbarrier.arrive(k_empty.index(0), count=1)
    start = (num_tiles - 1) * BLOCK_N
    weights, m, w, _ = softmax_tile(s, m, w, unit, i, start, stop, shift, BLOCK_N, CAUSAL, MASKED=True)
    p = as_operand(weights, y_desc.dtype, BLOCK_D)
    mbarrier.wait(k_ready.index(1 % STAGES), (1 // STAGES) & 1, pred=num_tiles > 1)

    sums = (m, w, o)
    for n in range(1, num_masked):
        sums, p = next_tile(
            n, num_tiles, sums, p, q, ring, turn, unit, i, stop, shift,
            CONSUMER, BLOCK_N, BLOCK_D, CAUSAL, STAGES, PING_PONG, MASKED=True,
        )  # fmt: skip
    for n in range(num_masked, num_tiles):
        sums, p = next_tile(
            n, num_tiles, sums, p, q, ring, turn, unit, i, stop, shift,
            CONSUMER, BLOCK_N, BLOCK_D, CAUSAL, STAGES, PING_PONG, MASKED=False,
        )  # fmt: skip
    m, w, o = sums

    last = num_tiles - 1  # its product is left
    v = v_tiles.index(last % STAGES).reshape([BLOCK_N, BLOCK_D])
    mbarrier.wait(v_ready.index(last % STAGES), (last // STAGES) & 1)
    o = warpgroup_mma(p, v, o, is_async=True)
    o = warpgroup_mma_wait(0, deps=[o])

    empty = w == 0.0
    factor = 1.0 / gl.where(empty, 1.0, w)
    y = o * gl.convert_layout(factor, gl.SliceLayout(1, in_registers(BLOCK_D)), assert_trivial=True)[:, None]  # (19)
    q.store(y.to(y_desc.dtype))  # its queries are not needed any more; the copy leaves out what is past T and D
    fence_async_shared()
    tma.async_copy_shared_to_global(y_desc, [batch, mine, head, 0], q_tiles.index(CONSUMER))
    lse = gl.where(empty, float("inf"), m + gl.log2(gl.where(empty, 1.0, w)))  # (19)
    gl.store(lse_row + i, lse, mask=i < num_queries)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_queries", "num_keys", "num_heads", "group"])
def _attention_forward_hopper_kernel(
    q_desc,                    # in   (B, T, H, D), in tiles (1, 64, 1, BLOCK_D)
    k_desc,                    # in   (B, S, Hkv, D), in tiles (1, BLOCK_N, 1, BLOCK_D)
    v_desc,                    # in   (B, S, Hkv, D), as k
    y_desc,                    # out  (B, T, H, D), as q
    lse_ptr,                   # out  (B, H, T) float32, in units of log2(e)
    key_stop_ptr,              # in   (B,) integers: keys before it are seen; None: all are
    scale,                     # above 0
    num_queries,
    num_keys,                  # above 0
    num_heads,
    group,                     # query heads that read one key head
    BLOCK_N: gl.constexpr,     # keys of a tile
    BLOCK_D: gl.constexpr,     # power of two >= D
    CAUSAL: gl.constexpr,
    STAGES: gl.constexpr,      # places of a ring
    PING_PONG: gl.constexpr,
):  # fmt: skip
    num_blocks = (num_queries + 2 * ROWS - 1) // (2 * ROWS)
    block = gl.program_id(0) % num_blocks
    row = gl.program_id(0) // num_blocks
    batch, head = row // num_heads, row % num_heads
    if CAUSAL:
        block = num_blocks - 1 - block  # the longest first
    first_query = block * (2 * ROWS)
    stop, shift = num_keys, num_keys - num_queries
    if key_stop_ptr is not None:
        stop = gl.cast(gl.minimum(gl.maximum(gl.load(key_stop_ptr + batch), 0), num_keys), gl.int32)
    num_tiles, _ = tile_bounds(first_query, 2 * ROWS, stop, shift, BLOCK_N, CAUSAL)

    q_tiles = gl.allocate_shared_memory(q_desc.dtype, [2, 1, ROWS, 1, BLOCK_D], q_desc.layout)
    k_tiles = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, BLOCK_N, 1, BLOCK_D], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, BLOCK_N, 1, BLOCK_D], v_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for consumer in gl.static_range(2):
        mbarrier.init(q_ready.index(consumer), count=1)
        mbarrier.init(turn.index(consumer), count=1)
    for place in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(place), count=1)
        mbarrier.init(v_ready.index(place), count=1)
        mbarrier.init(k_empty.index(place), count=2)  # a partition arrives as one, whatever its number of threads
        mbarrier.init(v_empty.index(place), count=2)
    fence_async_shared()

    queries = (q_tiles, q_ready)
    ring = (k_tiles, v_tiles, k_ready, v_ready, k_empty, v_empty)
    lse_row = lse_ptr + gl.cast(row, gl.int64) * num_queries
    unit = scale * LOG2E
    # 65536 registers are 168 for each of 3 * 128 threads: a warp comes with three more, so that its warpgroup is whole
    gl.warp_specialize(
        [
            (attend, (y_desc, lse_row, queries, ring, turn, unit, batch, head, first_query, num_queries, num_tiles,
                      stop, shift, 0, BLOCK_N, BLOCK_D, CAUSAL, STAGES, PING_PONG)),
            (attend, (y_desc, lse_row, queries, ring, turn, unit, batch, head, first_query, num_queries, num_tiles,
                      stop, shift, 1, BLOCK_N, BLOCK_D, CAUSAL, STAGES, PING_PONG)),
            (load_tiles, (q_desc, k_desc, v_desc, queries, ring, batch, head, head // group, first_query, num_tiles,
                          BLOCK_N, STAGES)),
        ],
        worker_num_warps=[4, 1],
        worker_num_regs=[240, 24],
    )  # fmt: skip
