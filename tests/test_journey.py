"""One gradient, hop by hop: from backward() to the wire and back to optimizer.step()."""

import torch
from torch import nn

from laconic import attach
from laconic.compress import Compressor, error_feedback, topk
from laconic.exchange import Exchange, everyone
from laconic.links import memory
from laconic.packet import message_nbytes, to_bytes
from laconic.sync import Sync, every_step

INPUTS = [torch.tensor([[1.0, 2.0], [0.0, 5.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])]


def test_a_gradient_goes_from_backward_through_sync_exchange_compressor_packet_and_link_to_the_optimizer():
    def work(link):
        hops = []

        def compress(x, state):
            packet, after = inner.compress(x, state)
            hops.append(("compress", x.clone(), packet))
            return packet, after

        def decompress(packet):
            hops.append(("decompress", packet))
            return inner.decompress(packet)

        def run(tensors, state, link):
            hops.append(("exchange", [t.clone() for t in tensors]))
            combined, after = talk.run(tensors, state, link)
            hops.append(("combined", [t.clone() for t in combined]))
            return combined, after

        def after_backward(grads, state, link):
            hops.append(("sync", [g.clone() for g in grads]))
            return whole.after_backward(grads, state, link)

        plain_gather = link.all_gather

        def all_gather(message):
            hops.append(("link", message))
            return plain_gather(message)

        inner: Compressor = error_feedback(topk(0.25))  # one of four entries
        talk: Exchange = everyone(inner._replace(compress=compress, decompress=decompress, add=None))
        whole: Sync = every_step(talk._replace(run=run))
        net = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            net.weight.zero_()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        sync = attach(net, optimizer, whole._replace(after_backward=after_backward), link)
        link.all_gather = all_gather
        hops.clear()  # of the rehearsal
        before = link.meter.bytes_out

        (net.weight * INPUTS[link.rank]).sum().backward()  # 1. backward: the gradient is the input
        sync.step()
        return hops, net.weight.detach().clone(), net.weight.grad.clone(), link.meter.bytes_out - before, sync

    (one, two) = memory.run(2, work)
    for rank, (hops, weight, grad, nbytes, sync) in enumerate((one, two)):
        mine = INPUTS[rank]
        names = [hop[0] for hop in hops]
        # 2. attach hands it to the sync, 3. the sync to the exchange, 4. the exchange to the compressor,
        # 5. the packet to the link; 6. both packets come back, 7. are decompressed, 8. averaged.
        # Error feedback looks at its own packet through topk itself, so the two decompressions are the receiver's.
        assert names == ["sync", "exchange", "compress", "link", "decompress", "decompress", "combined"]
        by_name = dict(zip(names, hops, strict=True))
        assert torch.equal(by_name["sync"][1][0], mine)
        assert torch.equal(by_name["exchange"][1][0], mine)
        assert torch.equal(by_name["compress"][1], mine)
        packet = by_name["compress"][2]
        assert by_name["link"][1] == [packet]
        assert packet.tensors["values"].tolist() == [mine.max()]
        assert nbytes == message_nbytes([packet]) == to_bytes([packet]).numel()
        received = [hop[1] for hop in hops if hop[0] == "decompress"]
        assert [p.tensors["values"].item() for p in received] == [5.0, 3.0]
        mean = torch.tensor([[1.5, 0.0], [0.0, 2.5]])
        assert torch.equal(by_name["combined"][1][0], mean)
        assert torch.equal(grad, mean)  # 9. p.grad
        assert torch.equal(weight, -0.5 * mean)  # 10. optimizer.step()
        (residual,) = [t for name, t in sync.state_dict()["tensors"].items() if name.endswith("residual")]
        sent = torch.where(mine == mine.max(), mine, 0.0)
        assert torch.equal(residual, mine - sent)  # nothing is lost, only late
    assert torch.equal(one[1], two[1])
