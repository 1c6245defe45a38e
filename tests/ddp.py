"Two processes train a dilated net with fastai's `distrib_ctx`, on the CPU: test_hard_use.py runs it"
import sys, torch
from pathlib import Path
from torch import nn
from fastai.vision.all import Callback, DataLoaders, Learner, SGD
from fastai.data.load import DataLoader
from fastai.distributed import DistributedDL
from fastai.vision.models.xresnet import xresnet18
from fastai_dilation.all import set_output_stride

class FrozenNorms(Callback):
    "Batch statistics of half a batch are others: leave them out of the comparison"
    def before_train(self): [o.eval() for o in self.model.modules() if isinstance(o,nn.BatchNorm2d)]

class Losses(Callback):
    order = 70
    def before_fit(self): self.all = []
    def after_backward(self): self.all.append(self.loss.detach().item())

def learner(bs, order):
    "A dilated net, and 16 random images in this `order`"
    torch.manual_seed(0)
    xs,ys = torch.randn(16,3,48,48),torch.arange(16)%3
    m = set_output_stride(xresnet18(n_out=3, widen=.25), 8)
    data = [(xs[i],ys[i]) for i in order]
    dls = DataLoaders(*[DataLoader(data, bs=bs, num_workers=0) for _ in range(2)])
    return Learner(dls, m, loss_func=nn.CrossEntropyLoss(), opt_func=SGD, lr=.1, cbs=[FrozenNorms(),Losses()])

def launch(n):
    "Arguments of Python for a program in `n` processes on this machine"
    options = f'--multi_gpu --num_processes {n} --num_machines 1 --main_process_port 0 --mixed_precision no --dynamo_backend no'
    return ['-m','accelerate.commands.launch',*options.split()]

def broadcast_on_cpu():
    "fastai sends the order of the images through the GPU: let it do without"
    def _broadcast(self, t, rank):
        torch.distributed.broadcast(t := torch.tensor(t), rank)
        return t.tolist()
    DistributedDL._broadcast = _broadcast

def main(out):
    "Train on half of each batch, and save losses and learner in `out`"
    broadcast_on_cpu()
    learn = learner(4, range(16))
    with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False): learn.fit(2)
    rank = torch.distributed.get_rank()
    torch.save(learn.losses.all, out/f'losses{rank}.pt')
    learn.path = out
    learn.save('there')

if __name__=='__main__': main(Path(sys.argv[1]))
