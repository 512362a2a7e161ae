"""laconic in a training loop of one's own: two workers fit a small regression together.

torchrun --nproc-per-node 2 examples/own_loop.py
"""

import torch
from torch import nn

import laconic

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
sync = laconic.attach(model, optimizer, "diloco", every=10)  # the link comes from torchrun's environment

rank = sync.link.rank
data = torch.Generator().manual_seed(1 + rank)  # each worker draws examples of its own
for _ in range(100):
    x = torch.randn(64, 10, generator=data)
    loss = (model(x) - x.sin().sum(dim=1, keepdim=True)).square().mean()
    loss.backward()
    sync.step()
    sync.zero_grad()

with torch.no_grad():  # the weights that the workers agree on, in place of this worker's own
    for name, value in sync.weights().items():
        model.get_parameter(name).copy_(value)
sync.detach()  # from here on an ordinary model
print(f"worker {rank}: loss {loss.item():.3f}, {sync.link.meter.bytes_out:,} bytes sent", flush=True)
sync.link.barrier()  # nobody leaves while another still reads
sync.link.close()
