"""A character-level GPT on Tiny Shakespeare: next-character prediction, 65 characters.

The first 90 % of the text is learned from, the rest is held out. The training text is cut into windows of
``context`` characters, so each character is predicted by exactly one worker once in a pass; the windows are dealt
to the workers at random. The evaluation takes 24,576 characters spread evenly over the held-out text.

Sizes, with the time of one step (forward, backward, AdamW) on one thread of a 2-core cloud machine at the default
batch of 16 windows of 64 characters:

======  ======  =====  =====  ==========  =============  =======
size    layers  width  heads  parameters  learning rate  step
======  ======  =====  =====  ==========  =============  =======
nano         2     64      2     111,040          0.003    14 ms
micro        4    128      4     812,416         0.0015    80 ms
small        4    256      4   3,197,696          0.001   260 ms
ten          6    384      6  10,696,320         0.0002   810 ms
======  ======  =====  =====  ==========  =============  =======
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from laconic.errors import unknown
from laconic.workloads.shares import deal, positive, stream

OPTIONS = {
    "size": ("micro", "how large the model is: nano (0.1 M parameters), micro (0.8 M), small (3 M) or ten (11 M)"),
    "batch_size": (16, "windows of text in a worker's batch"),
    "context": (64, "characters in a window"),
    "optimizer": ("adamw", "adamw, or sgd with momentum 0.9 (at a rate of 0.4: clip the gradient at 1)"),
}
OPTIMIZERS = ("adamw", "sgd")
SGD_LR = 0.4
EVAL_CHARACTERS = 24_576
EVAL_BATCH = 32

Batch = tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]


class Size(NamedTuple):
    layers: int
    width: int
    heads: int
    lr: float  # from a sweep at the default batch, see docs/workloads.md


SIZES = {
    "nano": Size(layers=2, width=64, heads=2, lr=3e-3),
    "micro": Size(layers=4, width=128, heads=4, lr=1.5e-3),
    "small": Size(layers=4, width=256, heads=4, lr=1e-3),
    "ten": Size(layers=6, width=384, heads=6, lr=2e-4),
}


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """Up to four times the width, GELU, and down again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width)

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A pre-norm transformer without biases or dropout; its layers are ``blocks.0``, ``blocks.1``, ….

    The head is not tied to the token embedding: with 65 characters tying would save 1 % of the parameters, and
    a model split into stages would have to keep one matrix equal on its first and its last machine.

    Source: Radford et al. 2019 (GPT-2): initial weights of deviation 0.02, divided by ``sqrt(2 layers)`` where a
            block writes to the residual path.
    """

    def __init__(self, size: Size, vocabulary: int, context: int) -> None:
        super().__init__()
        self.lr = size.lr
        self.token_embedding = nn.Embedding(vocabulary, size.width)
        self.position_embedding = nn.Embedding(context, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.final_norm = nn.LayerNorm(size.width, bias=False)
        self.head = nn.Linear(size.width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * size.layers) if residual else 0.02)

    def forward(self, characters: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocabulary"]:
        x = self.token_embedding(characters) + self.position_embedding.weight[: characters.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))


@cache
def text() -> tuple[Int[Tensor, "train"], Int[Tensor, "held_out"], str]:
    """The two parts of the text as places in the alphabet, and the alphabet."""
    raw = gzip.decompress((Path(__file__).parent / "data" / "shakespeare.txt.gz").read_bytes())
    alphabet, places = np.unique(np.frombuffer(raw, np.uint8), return_inverse=True)
    characters = torch.from_numpy(places.astype(np.int64))
    train = int(0.9 * len(characters))
    return characters[:train], characters[train:], alphabet.tobytes().decode("ascii")


def make_model(size: str = "micro", context: int = 64) -> GPT:
    """A fresh GPT, its weights drawn from torch's global generator.

    Raises: ConfigError for an unknown size or a context below 1.
    """
    if size not in SIZES:
        raise unknown("size of shakespeare", size, SIZES)
    return GPT(SIZES[size], len(text()[2]), positive("context", context))


def batches(
    split: str, worker: int, workers: int, seed: int, *, batch_size: int = 16, context: int = 64
) -> Iterator[Batch]:
    """Batches of windows and of the same windows one character on.

    Raises: ConfigError for an option out of its range, or more workers than windows.
    """
    positive("batch_size", batch_size)
    train, held_out, _ = text()
    if split == "eval":
        num_windows = max(1, EVAL_CHARACTERS // positive("context", context))
        starts = np.linspace(0, len(held_out) - context - 1, num_windows).astype(np.int64)
        return (_windows(held_out, starts[i : i + EVAL_BATCH], context) for i in range(0, num_windows, EVAL_BATCH))
    share = deal((len(train) - 1) // positive("context", context), worker, workers, seed)
    return (_windows(train, places * context, context) for places in stream(share, batch_size, worker, seed))


def _windows(characters: Int[Tensor, "all"], starts: Int[np.ndarray, "batch"], context: int) -> Batch:
    places = torch.from_numpy(starts)[:, None] + torch.arange(context + 1)
    windows = characters[places]
    return windows[:, :-1], windows[:, 1:]


def loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Cross-entropy in nats a character."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def make_optimizer(model: GPT, *, optimizer: str = "adamw") -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only, at the size's learning rate, or SGD with momentum; at a constant rate.

    There is no schedule, because the number of steps is not known here: runs end at a budget of steps, bytes or
    seconds.

    Raises: ConfigError for another optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer of shakespeare", optimizer, OPTIMIZERS)
    if optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=SGD_LR, momentum=0.9)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=model.lr, betas=(0.9, 0.95))


def tokens(batch: Batch) -> int:
    """Characters predicted."""
    return batch[1].numel()
