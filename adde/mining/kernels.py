# Inside a kernel, types are Triton's own.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportOperatorIssue=false
"""Mining in Triton kernels: distances stay in registers, never a matrix in global memory.

Columns are in class order (`tiled.Members`), so that an anchor's positives are contiguous. The
first kernel computes the Gram tiles along that block diagonal and stores each anchor's distances to
its positives, which are then sorted. The second kernel computes every Gram tile once. For a
negative n of anchor a at distance d, it searches the sorted positives for those nearer than d. n
can be the answer for the last of them, and for an earlier one only if no negative is nearer. An
atomic minimum therefore writes n into the slot of that one positive, and a running minimum from the
far end of the slots gives every positive its negative. This is exact and O(T M log S). A slot's
value has the distance's bits above the column's number. Integer minima do not depend on the order,
so the result is deterministic and ties go to the lowest column.

Estimate for an H100 (80 GB, 3.3 TB/s, 990 dense bf16 TFLOP/s, 67 fp32 TFLOP/s), for A = 12
attributes of D = 340, V = 10 values each, and the joint label (one group, width A D), forward and
gradient. Gram: 2 B^2 D FLOPs a group, three times (distances, and coefficients against columns
and rows). The joint group costs as much as the others together, or almost nothing if most joint
classes are singletons.

                               B = 4,096              B = 32,768
    FLOPs                      0.82 T                 53 T
    at 67 fp32 / 990 bf16      12 ms / 0.8 ms         0.8 s / 53 ms
    bytes, all in one pass     inputs and gradients 0.4 GB; per pair 28 B (two sorts' traffic
                               included: about 100 B), B^2/10 pairs a group; coefficients 4 B
                               written and read twice, 12 B^2 a group
      pairs                    2.0 GB                 130 GB
      coefficients             2.6 GB                 170 GB
    at 3.3 TB/s                1.5 ms                 91 ms
    search: B^2 log2(B/10) loads from L1 (132 SMs x 32 lanes x 1.7 GHz = 7.2 T/s)
                               0.3 ms                 23 ms
    launches                   4 tiles x about 60: 1 ms
    bound, fp32                about 14 ms            about 0.9 s
    bound, bf16                about 4 ms             about 170 ms

Training mines in fp32 whatever the precision of the backbone. The products are then the bound,
since IEEE fp32 has no tensor cores. For bf16 embeddings memory is the bound; the remaining gain is
in the coefficients, which are written as a tile for one matrix product of the vendor's library.
`make gpu-check` measures tiles and kernels on a real card.
"""

import torch
import torch.nn.functional as F  # noqa: N812
import triton
import triton.language as tl
from torch import Tensor

from adde.mining.tiled import INFINITE_KEY, Chosen, Members, positives

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter on the CPU (TRITON_INTERPRET=1 before import)."""

BLOCK_K = 32  # the same in both kernels, so that they compute bitwise equal distances
CHUNK = 1024  # columns per program; programs of one row block combine by atomics


def _config(rows: int, columns: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": rows, "BLOCK_N": columns}, num_warps=warps, num_stages=stages)


# About 16 distances per thread: with more, registers spill (tests/mining/test_kernels.py compiles
# all of them for an H100). Autotuning may run a kernel again on its own results. That is harmless:
# stores write the same values, and minima stay minima.
_CONFIGS = (
    [_config(16, 16, 4, 1)]
    if INTERPRETED
    else [
        _config(32, 32, 4, 3),
        _config(32, 64, 4, 3),
        _config(64, 64, 8, 3),
    ]
)


@triton.jit
def _distances(
    rows,
    columns,
    row_norms,
    column_norms,
    row,
    column,
    num_rows,
    num_columns,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Compute squared distances (BLOCK_M, BLOCK_N) float32 of numbered rows and columns of a group.

    The width is a multiple of BLOCK_K.
    """
    row_in, column_in = row < num_rows, column < num_columns
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = (rows + row.to(tl.int64) * width)[:, None] + k[None, :]
        x = tl.load(at, mask=row_in[:, None], other=0.0)
        at = (columns + column.to(tl.int64) * width)[None, :] + k[:, None]
        y = tl.load(at, mask=column_in[None, :], other=0.0)
        if INTERPRETED:  # the interpreter's bfloat16 products are wrong
            x, y = x.to(tl.float32), y.to(tl.float32)
        products = tl.dot(x, y, products, input_precision="ieee")
    row_norm = tl.load(row_norms + row, mask=row_in, other=0.0)
    column_norm = tl.load(column_norms + column, mask=column_in, other=0.0)
    return tl.maximum(row_norm[:, None] + column_norm[None, :] - 2.0 * products, 0.0)


# Counts that change with every batch: do not recompile or retune for them.
UNSPECIALISED = ["num_rows", "num_columns", "num_slots"]


@triton.autotune(_CONFIGS, key=["width"])
@triton.jit(do_not_specialize=UNSPECIALISED)
def _positives_kernel(
    rows,
    columns,
    row_norms,
    column_norms,
    class_start,
    class_size,
    keys,
    num_rows,
    num_columns,
    width,
    num_slots,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store keys[g, r, i]: the distance of row r to the i-th column of its class, above i."""
    group = tl.program_id(2).to(tl.int64)  # pointers below are moved to this group
    rows += group * num_rows * width
    columns += group * num_columns * width
    row_norms += group * num_rows
    column_norms += group * num_columns
    class_start += group * num_rows
    class_size += group * num_rows
    keys += group * num_rows * num_slots
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < num_rows
    start = tl.load(class_start + row, mask=row_in, other=0).to(tl.int32)
    size = tl.load(class_size + row, mask=row_in, other=0).to(tl.int32)
    # Rows are in class order too, so their classes span contiguous columns.
    first = tl.min(tl.where(row_in, start, num_columns))
    last = tl.max(start + size)
    chunk = tl.program_id(1) * CHUNK
    first = tl.maximum(chunk, first // BLOCK_N * BLOCK_N)
    for column_start in range(first, tl.minimum(chunk + CHUNK, last), BLOCK_N):
        column = column_start + tl.arange(0, BLOCK_N)
        distance = _distances(
            rows, columns, row_norms, column_norms, row, column, num_rows, num_columns, width,
            BLOCK_M, BLOCK_N, BLOCK_K, INTERPRETED,
        )  # fmt: skip
        slot = column[None, :] - start[:, None]
        key = (distance.to(tl.int32, bitcast=True).to(tl.int64) << 32) | slot
        at = row[:, None] * num_slots + slot
        tl.store(keys + at, key, mask=(slot >= 0) & (slot < size[:, None]))


@triton.autotune(_CONFIGS, key=["width"])
@triton.jit(do_not_specialize=[*UNSPECIALISED, "search_steps"])
def _negatives_kernel(
    rows,
    columns,
    row_norms,
    column_norms,
    column_ids,
    num_known,
    class_start,
    class_size,
    to_positives,
    nearest,
    extreme,
    num_rows,
    num_columns,
    width,
    num_slots,
    search_steps,
    HARDEST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store the nearest and the extreme negatives.

    nearest[g, r, i]: smallest key beyond sorted positive i and not beyond i + 1. extreme[g, r]: the
    farthest negative, with its column complemented (`hardest`: the nearest one's key).
    """
    group = tl.program_id(2).to(tl.int64)  # pointers below are moved to this group
    rows += group * num_rows * width
    columns += group * num_columns * width
    row_norms += group * num_rows
    column_norms += group * num_columns
    column_ids += group * num_columns
    class_start += group * num_rows
    class_size += group * num_rows
    to_positives += group * num_rows * num_slots
    nearest += group * num_rows * num_slots
    extreme += group * num_rows
    known = tl.load(num_known + group).to(tl.int32)  # columns of unknown label come last
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < num_rows
    start = tl.load(class_start + row, mask=row_in, other=0).to(tl.int32)
    size = tl.load(class_size + row, mask=row_in, other=0).to(tl.int32)
    first_slot = row[:, None] * num_slots  # a tile's slots are fewer than 2^31
    chunk = tl.program_id(1) * CHUNK
    for column_start in range(chunk, tl.minimum(chunk + CHUNK, num_columns), BLOCK_N):
        column = column_start + tl.arange(0, BLOCK_N)
        distance = _distances(
            rows, columns, row_norms, column_norms, row, column, num_rows, num_columns, width,
            BLOCK_M, BLOCK_N, BLOCK_K, INTERPRETED,
        )  # fmt: skip
        column_in = column < known
        beside = (column[None, :] < start[:, None]) | (column[None, :] >= (start + size)[:, None])
        negative = row_in[:, None] & column_in[None, :] & beside
        column_id = tl.load(column_ids + column, mask=column_in, other=0).to(tl.int32)[None, :]
        # The row's extreme in this tile: its distance, then the lowest column at that distance.
        if HARDEST:
            best = tl.min(tl.where(negative, distance, float("inf")), 1)
        else:
            best = tl.max(tl.where(negative, distance, -1.0), 1)
        has_best = negative & (distance == best[:, None])
        best_id = tl.min(tl.where(has_best, column_id, 0x7FFFFFFF), 1)
        above = best.to(tl.int32, bitcast=True).to(tl.int64) << 32
        any_here = row_in & (best_id < 0x7FFFFFFF)
        if HARDEST:
            tl.atomic_min(extreme + row, above | best_id, mask=any_here)
        else:
            tl.atomic_max(extreme + row, above | (0x7FFFFFFF - best_id), mask=any_here)
            low = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
            high = tl.where(negative, size[:, None], 0)
            for _ in range(search_steps):
                middle = (low + high) // 2
                there = tl.load(to_positives + first_slot + middle, mask=low < high, other=0.0)
                nearer = (there < distance) & (low < high)
                low = tl.where(nearer, middle + 1, low)
                high = tl.where(nearer, high, tl.minimum(middle, high))
            found = low > 0
            key = (distance.to(tl.int32, bitcast=True).to(tl.int64) << 32) | column_id
            at = nearest + first_slot + low - 1
            # Most keys are not smaller than the stored one, and a load is cheaper than an atomic.
            found &= key < tl.load(at, mask=found, other=0)
            tl.atomic_min(at, key, mask=found)


def choose_in_kernel(
    rows: Tensor,
    columns: Tensor,
    labels: Tensor,
    column_labels: Tensor,
    members: Members,
    slots: int,
    strategy: str,
) -> Chosen:
    """As `tiled.choose_by_sorting`, for float32, bfloat16 or float16; sums in float32."""
    groups, num_rows, width = rows.shape
    in_order = columns.gather(1, members.columns[..., None].expand(-1, -1, width))
    # Rows of 340 numbers are not aligned for 16-byte copies; zero padding changes no product.
    rows, in_order = (F.pad(part, (0, -width % BLOCK_K)).contiguous() for part in (rows, in_order))
    norms = [part.float().square().sum(-1) for part in (rows, in_order)]
    common = (rows, in_order, *norms)
    shape = (num_rows, columns.shape[1], rows.shape[2], slots)
    constants = {"CHUNK": CHUNK, "BLOCK_K": BLOCK_K, "INTERPRETED": INTERPRETED}

    def grid(meta: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(num_rows, meta["BLOCK_M"]), triton.cdiv(columns.shape[1], CHUNK), groups

    keys = members.columns.new_full((groups, num_rows, slots), INFINITE_KEY)
    _positives_kernel[grid](*common, members.start, members.size, keys, *shape, **constants)
    keys = keys.sort(dim=-1).values
    to_positive, slot = _distance(keys), keys & 0xFFFFFFFF
    pair, positive = positives(members, slots, slot)

    hardest = strategy == "hardest"
    nearest = torch.full_like(keys, INFINITE_KEY)
    extreme = keys.new_full((groups, num_rows), INFINITE_KEY if hardest else -1)
    _negatives_kernel[grid](
        *common,
        members.columns,
        members.known,
        members.start,
        members.size,
        to_positive,
        nearest,
        extreme,
        *shape,
        slots.bit_length(),
        HARDEST=hardest,
        **constants,
    )
    if hardest:
        key = extreme[..., None].expand_as(keys)
    else:
        farthest = extreme ^ 0x7FFFFFFF  # undo the complement
        nearest = nearest.flip(-1).cummin(-1).values.flip(-1)
        key = nearest.where(nearest < INFINITE_KEY, farthest[..., None])
    return Chosen(pair, positive, key & 0xFFFFFFFF, to_positive, _distance(key))


def _distance(keys: Tensor) -> Tensor:
    return (keys >> 32).int().view(torch.float32)
