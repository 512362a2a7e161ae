"""The same tensor compressed again and again: what its mean and its error are."""

import torch


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def once(compressor, x):
    return compressor.decompress(compressor.compress(x, compressor.init(x))[0])


def often(compressor, x, times):
    """What each of so many steps decompresses to, in float64, one a row."""
    state, rows = compressor.init(x), []
    for _ in range(times):
        packet, state = compressor.compress(x, state)
        rows.append(compressor.decompress(packet).double().reshape(-1))
    return torch.stack(rows)


def is_unbiased(compressor, x, times=1000, wanted=None):
    """Whether the mean is within the standard errors that it should be, entry by entry and summed in many ways.

    An entry is looked at by itself if it went both ways 20 times: of rarer things the standard error is not known.
    The sums are with random signs, and with those of the entries: a compressor that shrinks would fail that one.
    """
    rows, wanted = often(compressor, x, times), (x if wanted is None else wanted).double().reshape(-1)
    moves = (rows != rows.mode(0).values).sum(0) >= 20
    off = (rows.mean(0) - wanted) / (rows.std(0) / times**0.5 + 1e-6 * wanted.abs() + 1e-30)
    signs = torch.randint(0, 2, (40, wanted.numel()), generator=torch.Generator().manual_seed(9)).double() * 2 - 1
    ways = torch.cat([signs, wanted.sign()[None]])
    ways = torch.cat([ways, ways / wanted.abs().clamp(min=1e-30).sqrt()])
    summed, target = rows @ ways.T, wanted @ ways.T
    spread = summed.std(0) / times**0.5 + 1e-6 * (wanted.abs() @ ways.abs().T)
    return bool((off[moves].abs() < 5).all()) and float(((summed.mean(0) - target) / spread).abs().max()) < 4.5


def relative_error(compressor, x, times=1):
    """``E|x - decompressed|^2 / |x|^2`` over so many steps."""
    rows, wanted = often(compressor, x, times), x.double().reshape(-1)
    return float((rows - wanted).square().sum(1).mean() / wanted.square().sum())
