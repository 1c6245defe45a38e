"One of two processes that share a batch, on a net with phased modules: test_phased_nets.py runs it"
import sys, torch
from pathlib import Path
from torch import distributed, nn
from fastai.vision.models.xresnet import xse_resnet18
from fastai_dilation.all import set_output_stride
from util import alive

def network():
    "The same in both processes"
    torch.manual_seed(0)
    return alive(xse_resnet18(n_out=3, widen=.25)).double()

def images():
    "Four images and their classes, the same in both processes"
    torch.manual_seed(0)
    return torch.randn(4, 3, 65, 48).double(),torch.arange(4)%3

def gradients(m, x, y):
    "Of a step, for each parameter"
    m.zero_grad()
    nn.functional.cross_entropy(m(x), y).backward()
    return [p.grad.clone() for p in m.parameters()]

def main(rank, out):
    "Save this process's gradients in `out`, for a change of stride before the network is wrapped and after"
    distributed.init_process_group('gloo', init_method=f'file://{out}/store', rank=rank, world_size=2)
    mine = [o[2*rank:2*rank+2] for o in images()]
    changed_before = nn.parallel.DistributedDataParallel(set_output_stride(network(), 8))
    changed_after = set_output_stride(nn.parallel.DistributedDataParallel(network()), 8)
    torch.save([gradients(m, *mine) for m in (changed_before,changed_after)], out/f'gradients{rank}.pt')
    distributed.destroy_process_group()

if __name__=='__main__': main(int(sys.argv[1]), Path(sys.argv[2]))
