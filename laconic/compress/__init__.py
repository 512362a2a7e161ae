"""What the bytes are: one compressor a file. A name in ``__all__`` is public and has a spelling in recipes."""

from laconic.compress.autoencoder import autoencoder
from laconic.compress.base import Compressor
from laconic.compress.block_topk import block_topk
from laconic.compress.chain import chain
from laconic.compress.chunked_topk import chunked_topk
from laconic.compress.count_sketch import count_sketch
from laconic.compress.damped import damped
from laconic.compress.dct import dct
from laconic.compress.dct_topk import dct_topk
from laconic.compress.e3m0 import e3m0
from laconic.compress.econtrol import econtrol
from laconic.compress.ef21 import ef21, ef21_sgdm
from laconic.compress.error_feedback import error_feedback
from laconic.compress.fp8 import fp8
from laconic.compress.half import half
from laconic.compress.identity import identity
from laconic.compress.int4 import int4
from laconic.compress.int8 import int8
from laconic.compress.log_byte import log_byte
from laconic.compress.low_rank import low_rank
from laconic.compress.momentum_correction import momentum_correction
from laconic.compress.natural import natural
from laconic.compress.qsgd import qsgd
from laconic.compress.random_k import random_k
from laconic.compress.sign import sign
from laconic.compress.ternary import ternary
from laconic.compress.threshold import threshold
from laconic.compress.topk import topk
from laconic.compress.warm_up import warm_up

__all__ = [
    "Compressor",
    "autoencoder",
    "block_topk",
    "chain",
    "chunked_topk",
    "count_sketch",
    "damped",
    "dct",
    "dct_topk",
    "e3m0",
    "econtrol",
    "ef21",
    "ef21_sgdm",
    "error_feedback",
    "fp8",
    "half",
    "identity",
    "int4",
    "int8",
    "log_byte",
    "low_rank",
    "momentum_correction",
    "natural",
    "qsgd",
    "random_k",
    "sign",
    "ternary",
    "threshold",
    "topk",
    "warm_up",
]
