"""QSGD: each value at random to one of a few levels of its bucket's norm."""

from __future__ import annotations

from laconic.compress.base import Compressor, counts
from laconic.compress.blocks import checked_block, linear, linear_laws, quantiser
from laconic.errors import ConfigError, unknown

NORMS = ("l2", "max")


def qsgd(levels: int = 7, bucket: int = 512, norm: str = "l2", seed: int = 0) -> Compressor:
    """Round to multiples of ``norm / levels`` at random, unbiased, with the norm of every ``bucket`` values.

    ``norm`` is the Euclidean one (``"l2"``, the paper's, for which small values are mostly 0) or the largest magnitude
    (``"max"``: smaller variance in practice). Fewer levels are fewer bits: 1 level takes 2 bits, 3 take 3, 7 take 4.

    Wire:   ``ceil(log2(2 levels + 1)) / 8 + 4/bucket`` bytes an entry, of fixed width: not Elias-coded.
    Error:  unbiased, ``E|x - decompressed|^2 <= min(bucket / (4 levels^2), sqrt(bucket) / levels) |x|^2`` for
            ``"l2"``, which is 2.6 by default: where that is 1 or more, :func:`error_feedback` refuses it.
    Raises: ConfigError unless ``1 <= levels <= 127``, ``bucket`` is a multiple of 8 and the norm is known; NotANumber
            if the tensor holds NaN or infinity.
    Source: Alistarh et al. 2017, arXiv:1610.02132, section 3.1.
    """
    counts("qsgd", levels=levels, bucket=bucket, seed=seed)
    if not 1 <= levels <= 127:
        raise ConfigError(f"qsgd: levels must be in [1, 127], got {levels}; more would take over 8 bits")
    if norm not in NORMS:
        raise unknown("norm of qsgd", norm, NORMS)
    bits = (2 * levels).bit_length()
    form = linear("qsgd", checked_block("qsgd", bucket, 8), levels, bits, norm, told=True)
    laws = linear_laws(bucket, levels, True, norm)
    return quantiser("qsgd", form, seed, {"block": bucket, "bits": bits}, **laws)
