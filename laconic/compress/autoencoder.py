"""A linear autoencoder for activations: every row as a short code, by directions learned from the rows before."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import FLOATS, Compressor, counts, finite, promised, share, whole
from laconic.compress.low_rank import orthonormal
from laconic.errors import ConfigError, NotANumber
from laconic.packet import Packet, need
from laconic.state import checkpointed

FAINT = 1e-30  # so that directions in which nothing was seen yet stay what they are


@checkpointed
class AutoencoderState(NamedTuple):
    """``decoder`` (width x code): orthonormal directions, of which the encoder is the transpose.

    ``seen``, of the same shape: the rows' covariance times them, a fading sum over all tensors; ``step`` counts these.
    """

    step: int
    decoder: Tensor
    seen: Tensor


def autoencoder(code: int = 64, every: int = 1, decay: float = 0.9, seed: int = 0) -> Compressor:
    """Send each row (the last dimension, hidden units say) as ``code`` numbers: its part along learned directions.

    In the paper's letters: ``Z = X E^T`` is sent and ``Z D^T`` is received. Here E is the transpose of D, whose columns
    are orthonormal, and they are not trained by back-propagation but follow the rows' principal directions, one step of
    subspace iteration every ``every`` tensors, on a covariance that fades by ``decay``. The first tensors are sent by
    random directions. A row's code depends on no other row of its tensor. The decoder travels in every packet, so that
    a packet is read alone; it counts, and the code pays where a tensor has many more rows than columns. One that would
    not shrink is sent as it is.

    Wire:   ``code (rows + columns)`` values in the tensor's dtype.
    Law:    linear: with one decoder, ``sum of D E x = D E (sum of x)``; a code as wide as the rows changes nothing.
            Rows of at most ``code`` dimensions are learned exactly.
    Error:  ``|x - decompress(compress(x))|^2 <= |x|^2``, and as small as the rows are alike.
    Raises: ConfigError unless ``code >= 1``, ``every >= 1`` and ``0 < decay <= 1``; NotANumber if the tensor holds NaN
            or infinity, or a code is beyond the range of its dtype (float16).
    Source: MCBench, arXiv:2301.02654 (MLSys 2024), its learning-based category; the training is ours.
    """
    counts("autoencoder", code=code, every=every, seed=seed)
    if code < 1 or every < 1:
        raise ConfigError(f"autoencoder: code and every must be at least 1, got {code} and {every}")
    share("autoencoder", decay, "decay")

    def init(like: Tensor) -> AutoencoderState:
        width = like.shape[-1] if like.dim() else 1
        narrow = min(code, width)
        dtype = torch.promote_types(like.dtype, torch.float32)
        if like.device.type == "meta":
            drawn = like.new_empty(width, narrow, dtype=dtype)
        else:
            key = random.Random(f"autoencoder/{seed}/{width}").getrandbits(63)
            drawn = torch.randn(width, narrow, generator=torch.Generator().manual_seed(key), dtype=dtype)
            drawn = orthonormal(drawn.to(like.device)) if width else drawn.to(like.device)
        return AutoencoderState(0, drawn, torch.zeros_like(drawn))

    def compress(x: Float[Tensor, "*shape"], state: AutoencoderState) -> tuple[Packet, AutoencoderState]:
        header = {"shape": list(x.shape)}
        width, narrow = state.decoder.shape
        if not _shrinks(tuple(x.shape), narrow):
            values = x.detach().reshape(-1)
            finite("autoencoder", values)
            return Packet({"values": values}, header | {"code": 0}), state._replace(step=state.step + 1)
        rows = x.detach().contiguous().reshape(-1, width).to(state.decoder.dtype)
        # The encoder is that of the decoder as it travels, rounded to the tensor's dtype.
        decoder = state.decoder.to(x.dtype)
        codes = rows @ decoder.to(rows.dtype)
        sent = codes.to(x.dtype)
        try:
            finite("autoencoder", sent)
        except NotANumber:
            finite("autoencoder", x)
            raise NotANumber(f"autoencoder: a code is beyond the range of {x.dtype}; use bfloat16 or float32") from None
        after = state._replace(step=state.step + 1)
        if state.step % every == 0:
            after = _learn(after, rows, codes, decay)
        tensors = {"codes": sent.reshape(-1), "decoder": decoder.reshape(-1)}
        return Packet(tensors, header | {"code": narrow}), after

    return Compressor(init, compress, _decompress, name="autoencoder", sparse=True)


def _learn(state: AutoencoderState, rows: Tensor, codes: Tensor, decay: float) -> AutoencoderState:
    seen = decay * state.seen + rows.T @ codes
    finite("autoencoder", seen)
    decoder = orthonormal(seen + FAINT * state.decoder)
    # In terms of the new directions: as if the covariance were nothing outside of the old ones.
    return state._replace(decoder=decoder, seen=seen @ (state.decoder.T @ decoder))


def _shrinks(shape: tuple[int, ...], code: int) -> bool:
    """Whether codes and decoder are smaller than the rows."""
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return bool(shape) and code * (rows + shape[-1]) < rows * shape[-1]


def _decompress(packet: Packet) -> Float[Tensor, "*shape"]:
    shape, numel = promised(packet)
    width = shape[-1] if shape else 1
    code = whole(packet, "code", 0, max(1, width))
    if not code:
        return need(packet, "values", FLOATS, numel).reshape(shape)
    rows = numel // width if width else 0
    codes = need(packet, "codes", FLOATS, rows * code)
    decoder = need(packet, "decoder", (codes.dtype,), width * code)
    dtype = torch.promote_types(codes.dtype, torch.float32)
    product = codes.to(dtype).reshape(rows, code) @ decoder.to(dtype).reshape(width, code).T
    return product.add_(0.0).to(codes.dtype).reshape(shape)  # no -0
