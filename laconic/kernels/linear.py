"""Blocks of values to linear codes, sixteen values at a time: :func:`laconic.kernels.blocks.linear` for blocks of a
multiple of sixteen, whose scale is their largest magnitude, and codes of 8 or 4 bits.

A block is read twice, the second time from the first cache; what is left of it is written once. The arithmetic is that
of the plain form, operation by operation: nothing is fused or put in another order.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from laconic.compress.noise import FIRST, SECOND
from laconic.kernels.simd import LINE, WIDTH, fence

TINY = np.finfo(np.float32).tiny

_F, _I, _B = (ir.VectorType(kind, WIDTH) for kind in (ir.FloatType(), ir.IntType(32), ir.IntType(8)))
_NUMBER = ir.IntType(32)


def _many(kind, value):
    return ir.Constant(kind, [value] * WIDTH)


def _every(builder, value):
    """A vector of one value, sixteen times."""
    kind = ir.VectorType(value.type, WIDTH)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_NUMBER, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_I, [0] * WIDTH))


def _call(builder, name, result, *arguments):
    module = builder.module
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(module.globals.get(name) or ir.Function(module, kind, name), arguments)


def _place(context, builder, kind, array, index, pointed):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointed.as_pointer())


def _read(context, builder, kind, array, index):
    loaded = builder.load(_place(context, builder, kind, array, index, _F))
    loaded.align = 4
    return loaded


def _given(kind):
    """Whether an argument of a loop is there: each choice of what is, is compiled by itself, and kept on disk."""
    return not isinstance(kind, types.NoneType)


@intrinsic
def _top(typing_context, x, residual, start, vectors):
    """The largest magnitude, as bits, of ``vectors`` times sixteen values from ``start``."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        best = cgutils.alloca_once_value(builder, _many(_I, 0))
        with cgutils.for_range(builder, args[3]) as loop:
            at = builder.add(args[2], builder.mul(loop.index, ir.Constant(loop.index.type, WIDTH)))
            v = _read(context, builder, kinds[0], args[0], at)
            if _given(kinds[1]):
                v = builder.fadd(v, _read(context, builder, kinds[1], args[1], at))
            bits = builder.and_(builder.bitcast(v, _I), _many(_I, 0x7FFFFFFF))
            before = builder.load(best)
            builder.store(builder.select(builder.icmp_signed(">", bits, before), bits, before), best)
        return _call(builder, f"llvm.vector.reduce.smax.v{WIDTH}i32", _NUMBER, builder.load(best))

    return types.int32(x, residual, types.intp, types.intp), generate


def _noise(builder, place, low, high):
    """:func:`laconic.compress.noise.uniform` of sixteen places from ``place``."""
    h = builder.add(_every(builder, builder.trunc(place, _NUMBER)), ir.Constant(_I, list(range(WIDTH))))
    h = builder.add(h, _every(builder, low))
    h = builder.xor(h, builder.lshr(h, _many(_I, 16)))
    h = builder.mul(h, _many(_I, FIRST))
    h = builder.xor(h, _every(builder, high))
    h = builder.xor(h, builder.lshr(h, _many(_I, 15)))
    h = builder.mul(h, _many(_I, SECOND))
    h = builder.xor(h, builder.lshr(h, _many(_I, 16)))
    return builder.fmul(builder.sitofp(builder.lshr(h, _many(_I, 8)), _F), _many(_F, 2.0**-24))


@intrinsic
def _codes(typing_context, x, residual, left, out, start, vectors, factor, scale, low, high, four, past):
    """The codes of ``vectors`` times sixteen values from ``start``, and what they leave."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        fed, random, bits = _given(kinds[1]), _given(kinds[8]), 4 if _given(kinds[10]) else 8
        around_cache, most = _given(kinds[11]), (1 << (bits - 1)) - 1
        factor, scale = _every(builder, args[6]), _every(builder, args[7])
        with cgutils.for_range(builder, args[5]) as loop:
            at = builder.add(args[4], builder.mul(loop.index, ir.Constant(loop.index.type, WIDTH)))
            v = _read(context, builder, kinds[0], args[0], at)
            if fed:
                v = builder.fadd(v, _read(context, builder, kinds[1], args[1], at))
            level = builder.fmul(v, factor)
            if random:
                level = builder.fadd(level, _noise(builder, at, args[8], args[9]))
            level = _call(builder, f"llvm.{'floor' if random else 'rint'}.v{WIDTH}f32", _F, level)
            for bound, worse in ((most, ">"), (-most, "<")):
                limit = _many(_F, float(bound))
                level = builder.select(builder.fcmp_ordered(worse, level, limit), limit, level)
            code = builder.fptosi(level, _I)
            if fed:
                told = builder.fmul(builder.sitofp(code, _F), scale)  # not of the level, which may be -0.0
                store = builder.store(
                    builder.fsub(v, told),
                    _place(context, builder, kinds[2], args[2], at, _F),
                )
                store.align = LINE if around_cache else 4
                if around_cache:
                    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_NUMBER, 1)]))
            if bits == 8:
                where = _place(context, builder, kinds[3], args[3], at, _B)
                code = builder.trunc(code, _B)
            else:
                half = WIDTH // 2
                nothing = ir.Constant(_I, ir.Undefined)
                lanes = ir.VectorType(_NUMBER, half)
                first, second = (
                    builder.and_(
                        builder.shuffle_vector(code, nothing, ir.Constant(lanes, list(range(odd, WIDTH, 2)))),
                        ir.Constant(lanes, [15] * half),
                    )
                    for odd in (0, 1)
                )
                pair = builder.or_(first, builder.shl(second, ir.Constant(lanes, [4] * half)))
                packed = ir.VectorType(ir.IntType(8), half)
                code = builder.trunc(pair, packed)
                where = _place(context, builder, kinds[3], args[3], builder.lshr(at, ir.Constant(at.type, 1)), packed)
            builder.store(code, where).align = 1
        return context.get_dummy_value()

    arguments = (x, residual, left, out, types.intp, types.intp, types.float32, types.float32)
    return types.void(*arguments, low, high, four, past), generate


@njit(nogil=True, cache=True)
def encode(x, residual, left, out, scales, block, levels, low, high, four, past, start, stop):
    """Codes of whole blocks from ``start``, of 4 bits with ``four`` and else of 8; ``left`` where there is a residual.

    ``low`` and ``high`` are the words of the noise's key, None to round to nearest; with ``past`` what is left is
    stored around the cache.
    """
    vectors = block // WIDTH
    one = np.empty(1, np.int32)
    top = one.view(np.float32)
    for b in range(start // block, stop // block):
        one[0] = _top(x, residual, b * block, vectors)
        scale = top[0] / levels
        factor = np.float32(1) / scale if scale >= TINY else np.float32(0)
        scales[b] = scale
        _codes(x, residual, left, out, b * block, vectors, factor, scale, low, high, four, past)
    fence()


@intrinsic
def _values(typing_context, codes, out, start, vectors, scale, weight, four):
    """Values of ``vectors`` times sixteen codes from ``start``, or ``weight`` times them added."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        added, bits, scale = _given(kinds[5]), 4 if _given(kinds[6]) else 8, _every(builder, args[4])
        with cgutils.for_range(builder, args[3]) as loop:
            at = builder.add(args[2], builder.mul(loop.index, ir.Constant(loop.index.type, WIDTH)))
            if bits == 8:
                raw = builder.load(_place(context, builder, kinds[0], args[0], at, _B))
                raw.align = 1
                code = builder.sext(raw, _I)
            else:
                half = WIDTH // 2
                packed = ir.VectorType(ir.IntType(8), half)
                byte = builder.lshr(at, ir.Constant(at.type, 1))
                raw = builder.load(_place(context, builder, kinds[0], args[0], byte, packed))
                raw.align = 1
                pair = builder.zext(raw, ir.VectorType(_NUMBER, half))
                twice = [i // 2 for i in range(WIDTH)]
                both = builder.shuffle_vector(pair, ir.Constant(pair.type, ir.Undefined), ir.Constant(_I, twice))
                # The lower half of a byte for even places, the upper for odd ones, moved to the top and back down.
                code = builder.shl(both, ir.Constant(_I, [28, 24] * (WIDTH // 2)))
                code = builder.ashr(code, _many(_I, 28))
            v = builder.fmul(builder.sitofp(code, _F), scale)
            if added:
                v = builder.fadd(
                    _read(context, builder, kinds[1], args[1], at), builder.fmul(v, _every(builder, args[5]))
                )
            builder.store(v, _place(context, builder, kinds[1], args[1], at, _F)).align = 4
        return context.get_dummy_value()

    return types.void(codes, out, types.intp, types.intp, types.float32, weight, four), generate


@njit(nogil=True, cache=True)
def decode(codes, scales, out, block, weight, four, start, stop):
    """Values of whole blocks from ``start``, or ``weight`` times them added where it is not None."""
    for b in range(start // block, stop // block):
        _values(codes, out, b * block, block // WIDTH, scales[b], weight, four)
