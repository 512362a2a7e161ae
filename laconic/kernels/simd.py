"""Vector instructions that numba's own loops do not come to: sixteen floats looked at together, as LLVM vectors.

LLVM lowers these to whatever the processor has (AVX2, AVX-512, NEON), so nothing here is for one machine.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WIDTH = 16
LINE = 64  # bytes of a cache line, which a store around the cache fills whole

_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_INTS = ir.VectorType(ir.IntType(32), WIDTH)
_MAGNITUDE = ir.Constant(_INTS, [0x7FFFFFFF] * WIDTH)
_ZEROS = ir.Constant(_FLOATS, [0.0] * WIDTH)


def _at(context, builder, kind, array, index):
    """A pointer to sixteen floats of a flat array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


def _load(context, builder, kind, array, index):
    loaded = builder.load(_at(context, builder, kind, array, index))
    loaded.align = 4
    return loaded


def _store(context, builder, values, kind, array, index, around_cache):
    store = builder.store(values, _at(context, builder, kind, array, index))
    store.align = LINE if around_cache else 4
    if around_cache:
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))


def _reaches(builder, values, threshold):
    """Which magnitudes, as bits, are at least ``threshold``."""
    one = ir.Constant(_INTS, ir.Undefined)
    one = builder.insert_element(one, threshold, ir.Constant(ir.IntType(32), 0))
    every = builder.shuffle_vector(one, ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))
    return builder.icmp_signed(">=", builder.and_(builder.bitcast(values, _INTS), _MAGNITUDE), every)


def _mask(builder, which):
    return builder.zext(builder.bitcast(which, ir.IntType(WIDTH)), ir.IntType(32))


@intrinsic
def large(typing_context, x, index, threshold):
    """A bit for each of the sixteen entries from ``index`` whose magnitude, as bits, reaches ``threshold``."""

    def generate(context, builder, signature, args):
        values = _load(context, builder, signature.args[0], args[0], args[1])
        return _mask(builder, _reaches(builder, values, args[2]))

    return types.int32(x, types.intp, types.int32), generate


def _split(around_cache):
    @intrinsic
    def split(typing_context, x, residual, out, index, threshold):
        """``out = x + residual`` for sixteen entries, 0 where it reaches ``threshold``: a bit for each of these."""

        def generate(context, builder, signature, args):
            kinds = signature.args
            total = builder.fadd(
                _load(context, builder, kinds[0], args[0], args[3]), _load(context, builder, kinds[1], args[1], args[3])
            )
            which = _reaches(builder, total, args[4])
            rest = builder.select(which, _ZEROS, total)
            _store(context, builder, rest, kinds[2], args[2], args[3], around_cache)
            return _mask(builder, which)

        return types.int32(x, residual, out, types.intp, types.int32), generate

    return split


split = _split(around_cache=False)
split_around_cache = _split(around_cache=True)  # ``out`` begins at a cache line, and ``index`` is a multiple of sixteen


def _move(around_cache):
    @intrinsic
    def move(typing_context, values, start, out, index):
        """``out[index:]`` takes sixteen entries of ``values[start:]``."""

        def generate(context, builder, signature, args):
            kinds = signature.args
            moved = _load(context, builder, kinds[0], args[0], args[1])
            _store(context, builder, moved, kinds[2], args[2], args[3], around_cache)
            return context.get_dummy_value()

        return types.void(values, types.intp, out, types.intp), generate

    return move


move = _move(around_cache=False)
move_around_cache = _move(around_cache=True)  # aligned as for :func:`split_around_cache`


@intrinsic
def fence(typing_context):
    """Everything stored, around the cache too, is seen by all threads from here on."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def lowest(typing_context, mask):
    """The place of the lowest set bit of a mask (of up to 64 bits) that is not 0."""

    def generate(context, builder, signature, args):
        place = builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))
        return place if place.type.width == 64 else builder.zext(place, ir.IntType(64))

    return types.int64(mask), generate


@intrinsic
def ahead(typing_context, array, index):
    """Fetch the line of ``array[index]``, to be written soon; where it is outside, nothing happens."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        bytes_ = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [bytes_], fnty=_prefetch(bytes_, number))
        options = [ir.Constant(number, value) for value in (1, 3, 1)]  # to write, to keep, data
        builder.call(fetch, [builder.bitcast(builder.gep(data, [args[1]]), bytes_), *options])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _prefetch(address, number):
    return ir.FunctionType(ir.VoidType(), [address, number, number, number])
