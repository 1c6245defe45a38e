"""Networks drawn at random of parts that people write, and images of sizes drawn too: is each accepted one exact?

A network is a line of Python that is drawn, and then evaluated: what is printed of it can be copied."""
import ast, copy, faulthandler, multiprocessing, os, random, re, resource, signal, sys, time, warnings
import torch, torch.nn.functional as F
from collections import Counter,namedtuple
from dataclasses import dataclass,is_dataclass
from torch import nn
from torch.utils.checkpoint import checkpoint,checkpoint_sequential
from torchvision.ops import DeformConv2d,deform_conv2d
from fastai_dilation.all import CannotDilate, InexactWarning, output_strides, set_output_stride
from fastai_dilation.layers import own_strides, phases_of
from fastcore.script import call_parse

# Where a position is: functions that make two channels of a map's size

def _over(x, i, j): return torch.stack(torch.meshgrid(i,j,indexing='ij')).to(x.dtype).expand(len(x),-1,-1,-1)
def _numbers(x): return [torch.arange(n,device=x.device) for n in x.shape[2:]]
def linspace(x): return _over(x, *[torch.linspace(-1,1,n,device=x.device) for n in x.shape[2:]])
def arange(x): return _over(x, *_numbers(x)).mul(.7).sin()
def fractions(x): return _over(x, *[(i+.5)/len(i) for i in _numbers(x)])
def numbered(x): return torch.arange(x[0,0].numel(),device=x.device).to(x.dtype).view(x.shape[2:]).mul(.3).sin().expand(len(x),2,-1,-1)

# Functions of a map that make one of its size

def mean(x): return x*x.mean((2,3),keepdim=True).sigmoid()
def amax(x): return x-x.amax((2,3),True)
def amin(x): return x-x.amin((2,3),True)
# not the unbiased one, which is NaN of a single value: a deformable conv behind it would end the process natively
def std(x): return x/(1+x.std((2,3),keepdim=True,correction=0))
def adaptive(x): return x*F.adaptive_avg_pool2d(x,1).sigmoid()
def l2(x): return x/(x.norm(dim=(2,3),keepdim=True)+1e-6)
def over_positions(x): return x+x*x.flatten(2).softmax(-1).view_as(x)
def grn(x): return x+x*x.norm(dim=(2,3),keepdim=True)/(1+x.norm(dim=(2,3),keepdim=True).mean(1,keepdim=True))
def softmin(x): return x*x.mul(-x).exp().sum((2,3),keepdim=True).sigmoid()
def nanmean(x): return x-x.flatten(2).nanmean(-1)[...,None,None]
def finite_mean(x): return x-x.nan_to_num(0.,0.,0.).mean((2,3),keepdim=True)
def sort(x): return x+x.flatten(2).sort(-1)[0].view_as(x)
def cumsum(x): return x+x.cumsum(3)/x.shape[3]
def flip(x): return x+x.flip(3)
def fft(x): return x+torch.fft.fft2(x).real/x[0,0].numel()
def pick(x): return x+x.flatten(2).gather(2, x.flatten(2).argmax(-1,keepdim=True))[...,None]
def svd(x): return x/torch.linalg.svdvals(x.flatten(2))[...,:1,None,None]
def histogram(x): return x*torch.stack([torch.histc(o,7,-2,2) for o in x])[...,None,None]/x[0].numel()
def unpool(x):
    "Of each window of 2x2 the largest, where it was"
    # after a ReLU many are equal, and rounding must not decide between them
    i,j = [.01*(o%2) for o in _numbers(x)]
    y,at = F.max_pool2d(x+2*i[:,None]+j, 2, return_indices=True)
    return x+F.max_unpool2d(y, at, 2, output_size=x.shape[2:])
def pyramid(x, n): return x+F.interpolate(F.adaptive_avg_pool2d(x,n), x.shape[2:], mode='bilinear')

def moved(x, mode):
    "By a part of the map"
    theta = torch.tensor([[1,0,.12],[0,1,.07]], dtype=x.dtype, device=x.device).expand(len(x),2,3)
    return F.grid_sample(x, F.affine_grid(theta,x.shape,align_corners=False), mode, align_corners=False)

def roll(x, d): return x+x.roll(d, 3)
def roll_both(x, d): return x+x.roll((d,-d), (2,3))
def behind(x, d): return x+F.pad(x,(d,0,d,0))[...,:-d,:-d]
def ahead(x, d): return x-F.pad(x,(0,0,0,d))[...,d:,:]
def unfold(x, d): return x+F.unfold(x,3,dilation=d,padding=d).view(len(x),8,9,*x.shape[2:])[:,:,[0,5,7]].sum(2)
def avg(x, ks): return x-F.avg_pool2d(x, ks, 1, ks//2)
def largest(x, ks): return x+F.max_pool2d(x, ks, 1, ks//2)
def replicated(x): return F.avg_pool2d(F.pad(x,(1,1,1,1),mode='replicate'), 3, 1)

def attend(x):
    "Each position asks all"
    q = x.flatten(2).transpose(1,2)
    return x+F.scaled_dot_product_attention(q,q,q).transpose(1,2).reshape(x.shape)
def rows(x):
    "Each position asks its row"
    q = x.permute(0,2,3,1)
    return x+F.scaled_dot_product_attention(q,q,q).permute(0,3,1,2)

def _windows(x, w):
    "Windows of `w` x `w` behind each other, of a map that is padded to whole ones"
    x = F.pad(x, (0,-x.shape[3]%w,0,-x.shape[2]%w))
    return x.unflatten(3,(-1,w)).unflatten(2,(-1,w)).permute(0,2,4,3,5,1),x
def _map(t, x): return t.permute(0,5,1,3,2,4).flatten(4,5).flatten(2,3)[...,:x.shape[2],:x.shape[3]]
def window_means(x, w):
    t,_ = _windows(x, w)
    return x+_map(t.mean((3,4),keepdim=True).expand_as(t), x)
def window_attention(x, w):
    t,_ = _windows(x, w)
    q = t.flatten(3,4)
    return x+_map(F.scaled_dot_product_attention(q,q,q).view(t.shape), x)
def large_windows(x): return window_means(x,8) if max(x.shape[2:])>16 else x
def shifted_windows(x, w): return window_attention(x.roll((-(w//2),-(w//2)),(2,3)), w).roll((w//2,w//2),(2,3))

# Modules

class Call(nn.Module):
    "`f(x, *args)`"
    def __init__(self, f, *args):
        super().__init__()
        self.f,self.args = f,args
    def forward(self, x): return self.f(x, *self.args)

class Beside(nn.Module):
    "A 1x1 conv of a map and of what `f` makes of it"
    def __init__(self, f):
        super().__init__()
        self.f,self.conv = f,nn.Conv2d(10,8,1)
    def forward(self, x): return self.conv(torch.cat([x,self.f(x)],1))

class Gated(nn.Module):
    "A map, its channels weighted by two `layers` on the `pool` of it"
    def __init__(self, pool):
        super().__init__()
        self.pool,self.layers = pool,nn.Sequential(nn.Conv2d(8,4,1), nn.ReLU(), nn.Conv2d(4,8,1), nn.Sigmoid())
    def forward(self, x): return x*self.layers(self.pool(x))
class Excited(nn.Module):
    "The same without a module that pools"
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8,8)
    def forward(self, x): return x*self.lin(x.mean((2,3))).sigmoid()[...,None,None]

class Heads(nn.Module):
    "Attention of all positions by `nn.MultiheadAttention`, on a map that `reduce` has made smaller"
    def __init__(self, reduce):
        super().__init__()
        self.reduce,self.attn = reduce,nn.MultiheadAttention(8, 2, batch_first=True)
    def forward(self, x):
        kv = self.reduce(x).flatten(2).transpose(1,2)
        return x+self.attn(x.flatten(2).transpose(1,2), kv, kv, need_weights=False)[0].transpose(1,2).reshape(x.shape)

class Rates(nn.Module):
    "One weight at several `rates`, by a function"
    def __init__(self, *rates):
        super().__init__()
        self.rates,self.weight = rates,nn.Parameter(torch.randn(8,8,3,3))
    def forward(self, x): return sum([F.conv2d(x,self.weight,padding=d,dilation=d) for d in self.rates], x)

class Padded(nn.Module):
    "`m` on a map that a function pads"
    def __init__(self, m, mode, pad=(1,1,1,1)):
        super().__init__()
        self.m,self.mode,self.pad = m,mode,pad
    def forward(self, x): return self.m(F.pad(x, self.pad, mode=self.mode))

class SameConv(nn.Conv2d):
    "As TensorFlow pads: by the size of the map. Its stride is a list"
    def __init__(self, ks, stride, **kwargs):
        super().__init__(8, 8, ks, stride, **kwargs)
        self.stride = [stride]*2
    def forward(self, x):
        def pad(n, ks, s, d): return max((-(-n//s)-1)*s+(ks-1)*d+1-n, 0)
        ph,pw = [pad(*o) for o in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation)]
        x = F.pad(x, (pw//2,pw-pw//2,ph//2,ph-ph//2))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
class StdConv(nn.Conv2d):
    "Its weight is normed at each call"
    def forward(self, x):
        w = (self.weight-self.weight.mean((1,2,3),keepdim=True))/self.weight.std((1,2,3),keepdim=True)
        return F.conv2d(x, w/8, self.bias, self.stride, self.padding, self.dilation, self.groups)
class FixedConv(nn.Conv2d):
    "It pads by 1, and does not look at its settings"
    def forward(self, x): return F.conv2d(x, self.weight, self.bias, self.stride, 1)

class Blur(nn.Module):
    "A fixed filter on a map padded by reflection"
    def __init__(self, stride):
        super().__init__()
        self.stride = stride
        self.register_buffer('filt', torch.tensor([1.,2,1])[:,None].mul(torch.tensor([1.,2,1])).div(16).repeat(8,1,1,1))
    def forward(self, x): return F.conv2d(F.pad(x,(1,1,1,1),mode='reflect'), self.filt, stride=self.stride, groups=8)

class SpaceToDepth(nn.Module):
    "Each window of 2x2 becomes channels; odd sides are padded"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32,8,1)
    def forward(self, x):
        x = F.pad(x, (0,x.shape[3]%2,0,x.shape[2]%2))
        return self.conv(torch.cat([x[...,i::2,j::2] for i in (0,1) for j in (0,1)],1))
class Even(nn.Module):
    "`m` on a map that is padded to even sides"
    def __init__(self, m):
        super().__init__()
        self.m = m
    def forward(self, x): return self.m(F.pad(x, (0,x.shape[3]%2,0,x.shape[2]%2)))

class Warp(nn.Module):
    "Each position is read a pixel or so further on, as a conv says"
    def __init__(self, mode, corners):
        super().__init__()
        self.mode,self.corners,self.conv = mode,corners,nn.Conv2d(8,2,3,padding=1)
    def forward(self, x):
        size = torch.tensor([x.shape[3],x.shape[2]], dtype=x.dtype, device=x.device)
        eye = torch.eye(2,3,dtype=x.dtype,device=x.device).expand(len(x),2,3)
        grid = F.affine_grid(eye, x.shape, align_corners=self.corners) + 3*self.conv(x).tanh().permute(0,2,3,1)/size
        return F.grid_sample(x, grid, self.mode, align_corners=self.corners)
class Turned(nn.Module):
    "All of the map is turned, as its mean says"
    def __init__(self, mode):
        super().__init__()
        self.mode,self.lin = mode,nn.Linear(8,6)
    def forward(self, x):
        theta = torch.eye(2,3,dtype=x.dtype,device=x.device)+.3*self.lin(x.mean((2,3))).tanh().view(-1,2,3)
        return F.grid_sample(x, F.affine_grid(theta,x.shape,align_corners=False), self.mode, align_corners=False)

class Deformed(nn.Module):
    "A deformable conv, torchvision's module or function"
    def __init__(self, stride=1, masked=False, by_function=False):
        super().__init__()
        self.masked,self.by_function = masked,by_function
        self.offset,self.mask = [nn.Conv2d(8,n,3,stride,1) for n in (18,9)]
        self.conv = DeformConv2d(8, 8, 3, stride, 1)
    def forward(self, x):
        offset,mask = self.offset(x),self.mask(x).sigmoid() if self.masked else None
        if not self.by_function: return self.conv(x, offset, mask)
        return deform_conv2d(x, offset, self.conv.weight, self.conv.bias, self.conv.stride, self.conv.padding, mask=mask)

class Add(nn.Module):
    "Reads a map and a map of positions that is the same for all images"
    def __init__(self, mixes):
        super().__init__()
        self.mixes,self.conv = mixes,nn.Conv2d(8,8,1)
    def forward(self, x, pos):
        if self.mixes: x = x-x.mean((2,3),keepdim=True)
        return self.conv(x+pos)
class Placed(nn.Module):
    "Makes a map of positions, or resizes the one that was learned, and gives both to a module"
    def __init__(self, mixes, learned):
        super().__init__()
        self.add,self.pos = Add(mixes),nn.Parameter(torch.randn(1,8,5,5)) if learned else None
    def forward(self, x):
        pos = linspace(x[:1]).repeat(1,4,1,1) if self.pos is None else F.interpolate(self.pos, x.shape[2:], mode='bicubic')
        return self.add(x, pos)

class Residual(nn.Module):
    def __init__(self, f, shortcut=nn.Identity()):
        super().__init__()
        self.f,self.shortcut = f,copy.deepcopy(shortcut)
    def forward(self, x): return (self.f(x)+self.shortcut(x)).relu()
class Every(nn.Module):
    "Every second position"
    def forward(self, x): return x[...,::2,::2]
class Branches(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)
    def forward(self, x): return torch.cat([o(x) for o in self.branches],1)
class Sum(Branches):
    def forward(self, x): return sum(o(x) for o in self.branches)
class Hourglass(nn.Module):
    "Goes down by itself, and comes back"
    def __init__(self, *ms):
        super().__init__()
        self.down = nn.Sequential(nn.MaxPool2d(2,2,ceil_mode=True), *ms)
    def forward(self, x): return x+F.interpolate(self.down(x), x.shape[2:])

def given(m, **settings):
    "`m` with `settings` as somebody sets them afterwards"
    for k,v in settings.items(): setattr(m, k, v)
    return m
def hooked(m, f):
    "`m` with a hook that does more"
    m.register_forward_hook(lambda m,args,y: f(y))
    return m

# Modules that call several in a row

class Chain(nn.Sequential): "A name for a stage"
class OwnChain(nn.Sequential):
    "A loop over itself, in its own words"
    def forward(self, x):
        for o in self: x = o(x)
        return x
class Loop(nn.Module):
    "A loop over its children"
    def __init__(self, *ms):
        super().__init__()
        for i,o in enumerate(ms): self.add_module(f'block{i}', o)
    def forward(self, x):
        for o in self.children(): x = o(x)
        return x
class Listed(nn.Module):
    "A loop over a list"
    def __init__(self, *ms):
        super().__init__()
        self.blocks = nn.ModuleList(ms)
    def forward(self, x):
        for o in self.blocks: x = o(x)
        return x
class Stage(nn.Module):
    "With gradients it calls its blocks one by one, and checkpoints each"
    def __init__(self, *ms):
        super().__init__()
        self.blocks = nn.Sequential(*ms)
    def forward(self, x):
        if not torch.is_grad_enabled(): return self.blocks(x)
        for o in self.blocks: x = checkpoint(o, x, use_reentrant=False)
        return x
class Segments(Stage):
    "In training it checkpoints two halves of the blocks of all its stages"
    def forward(self, x):
        if not self.training: return self.blocks(x)
        blocks = [o for stage in self.blocks for o in (stage if isinstance(stage,nn.Sequential) else [stage])]
        return checkpoint_sequential(blocks, min(2,len(blocks)), x, use_reentrant=False)

class Ending(Stage):
    "Does `f` itself, behind its blocks"
    def __init__(self, f, *ms):
        super().__init__(*ms)
        self.f = f
    def forward(self, x): return self.f(self.blocks(x))
@dataclass
class Output:
    last:torch.Tensor
    middle:torch.Tensor=None
class Answer(Ending):
    "Answers with an object"
    def forward(self, x):
        n = (len(self.blocks)+1)//2
        middle = self.blocks[:n](x)
        return Output(self.f(self.blocks[n:](middle)), middle)
class Levels(Listed):
    "Answers with all maps, by name"
    def forward(self, x):
        res = {}
        for i,o in enumerate(self.blocks): res[f'level{i}'] = x = o(x)
        return res
class Tapped(Stage):
    "Answers with what a hook has seen, too: the first conv of the last block, or the block"
    def __init__(self, *ms):
        super().__init__(*ms)
        self.seen = []
        inside = [o for o in self.blocks[-1].modules() if isinstance(o,(nn.Conv2d,nn.GroupNorm,nn.ReLU))]
        (inside or [self.blocks[-1]])[0].register_forward_hook(lambda m,args,y: self.seen.append(y))
    def forward(self, x):
        self.seen.clear()
        y = self.blocks(x)
        return [*self.seen,y]
class Aux(Stage):
    "In training there is a head more, in the middle"
    def __init__(self, head, *ms):
        super().__init__(*ms)
        self.head = head
    def forward(self, x):
        n = (len(self.blocks)+1)//2
        middle = self.blocks[:n](x)
        y = self.blocks[n:](middle)
        return (y,self.head(middle)) if self.training else y
class Positioned(Stage):
    "Takes the positions of the pixels the same way as the image, and adds both maps in a module"
    def __init__(self, *ms):
        super().__init__(*ms)
        self.of_positions,self.add = copy.deepcopy(self.blocks),Add(True)
    def forward(self, x):
        pos = linspace(x[:1])
        return self.add(self.blocks(x), self.of_positions(torch.cat([pos,pos.prod(1,keepdim=True)],1)))
class Masked(Stage):
    "Reads an image and a mask of it; the mask is resized to the last map"
    def forward(self, x, mask):
        y = self.blocks(x)
        return y*F.interpolate(mask.to(y.dtype), y.shape[2:])

# What is drawn: of `{a|b}` one, of `@` a part that keeps the size of the map

def parts(text):
    "By name, what stands behind it in its line and in the lines below"
    res = {}
    for line in text.strip().split('\n'):
        name,template = line[:15].strip(),line[15:]
        if name: res[name] = []
        [*res.values()][-1].append(template)
    return res

reducing = parts("""
conv           nn.Conv2d(8,8,{2|3|3|5},{2|2|3},{0|1|2})
               nn.Conv2d(8,8,{1|2|4},{2|4})
               nn.Conv2d(8,8,{(3,1)|(1,3)|(3,5)},2,1)
dilated_conv   nn.Conv2d(8,8,3,2,{0|1|2},dilation={2|3})
padding_mode   nn.Conv2d(8,8,3,2,1,padding_mode='{reflect|circular|replicate}')
depthwise      nn.Conv2d(8,8,{3|5},2,{1|2},groups={8|8|2})
               Sum(nn.Conv2d(8,8,1,2,groups=8),nn.Conv2d(8,8,3,2,1,groups=8))
given          given(nn.Conv2d(8,8,3,2,1),stride={2|[2,2]},padding={1|[1,1]})
               given(nn.Conv2d(8,8,2,2),stride={2|[2,2]},dilation={1|[1,1]})
same_conv      SameConv({2|3|5},2,groups={1|8})
own_conv       StdConv(8,8,3,2,1)
               FixedConv(8,8,3,2)
               nn.utils.parametrizations.weight_norm(nn.Conv2d(8,8,3,2,1,groups={1|2|8}))
pad_function   Padded(nn.Conv2d(8,8,3,2),'{replicate|reflect|circular|constant}')
               Padded({nn.MaxPool2d(2,2)|nn.AvgPool2d(3,2)},'{replicate|reflect}')
pad_module     nn.Sequential(nn.{Zero|Replication|Reflection|Circular}Pad2d({(0,1,0,1)|1|(1,0,1,0)}),nn.Conv2d(8,8,3,2))
               nn.Sequential(nn.ZeroPad2d((0,1,0,1)),nn.MaxPool2d({2|3},2))
max_pool       nn.MaxPool2d({2|3},{2|2|3},{0|1},ceil_mode={True|False})
               nn.MaxPool2d(3,2,{0|1},2,ceil_mode={True|False})
avg_pool       nn.AvgPool2d({2|3},{2|2|3},{0|1},{True|False},{True|False},{None|None|3})
lp_pool        nn.LPPool2d(2,{2|3},2,ceil_mode={True|False})
blur           Blur(2)
space_to_depth SpaceToDepth()
               nn.Sequential(Even(nn.PixelUnshuffle(2)),nn.Conv2d(32,8,1))
               nn.Sequential(nn.PixelUnshuffle(2),nn.Conv2d(32,8,1))
branches       Branches(nn.Conv2d(8,4,3,2),nn.Sequential(nn.MaxPool2d(3,2),nn.Conv2d(8,4,1)))
               Branches(nn.Sequential(@,nn.Conv2d(8,4,3,2,1)),nn.Sequential(nn.AvgPool2d(3,2,1),nn.Conv2d(8,4,1)))
shortcut       Residual(nn.Sequential(nn.Conv2d(8,8,3,2,1),nn.ReLU(),@),{nn.Conv2d(8,8,1,2)|nn.MaxPool2d(1,2)|Every()})
               Residual(nn.Sequential(@,nn.Conv2d(8,8,3,2,1)),nn.Sequential(nn.AvgPool2d(2,2,0,True,False),nn.Conv2d(8,8,1)))
deformed       Deformed(2,{True|False},{True|False})
stage          {nn.Sequential|Chain|OwnChain|Loop|Listed|Stage|Segments}(nn.Conv2d(8,8,3,2,1),@,@)""")

same = parts("""
conv           nn.Conv2d(8,8,{1|3,1,1|5,1,2|3,1,'same'|2,1,'same'})
dilated_conv   nn.Conv2d(8,8,3,1,{2,2|3,3|'same',2})
padding_mode   nn.Conv2d(8,8,3,1,{1|'same'},padding_mode='{reflect|circular|replicate}')
               nn.Conv2d(8,8,3,1,2,2,padding_mode='{reflect|circular}')
depthwise      nn.Conv2d(8,8,{3,1,1|5,1,2|7,1,3|1},groups={8|8|2})
               Sum(nn.Identity(),nn.Conv2d(8,8,1,groups=8),nn.Conv2d(8,8,3,1,1,groups=8))
given          given(nn.Conv2d(8,8,3,1,1),stride={1|[1,1]},padding={1|[1,1]})
same_conv      SameConv({2|3|5},1,groups={1|8})
own_conv       StdConv(8,8,3,1,1)
               FixedConv(8,8,3)
               nn.utils.parametrizations.weight_norm(nn.Conv2d(8,8,3,1,1,groups={1|2|8},padding_mode='{zeros|reflect}'))
pad_function   Padded(nn.Conv2d(8,8,3),'{replicate|reflect|circular|constant}')
               Call(replicated)
pad_module     nn.Sequential(nn.{Zero|Replication|Reflection|Circular}Pad2d(1),nn.Conv2d(8,8,3))
max_pool       nn.MaxPool2d({3,1,1|5,1,2|3,1,2,2})
               Call(largest,{3|5})
avg_pool       nn.AvgPool2d(3,1,1,count_include_pad={True|False})
               Call(avg,{3|5})
blur           Blur(1)
branches       Branches(nn.Sequential(@,nn.Conv2d(8,4,1)),nn.Sequential(nn.MaxPool2d(3,1,1),nn.Conv2d(8,4,1)))
residual       Residual(nn.Sequential(@,nn.ReLU(),@))
               Residual(@)
coordinates    Beside({linspace|linspace|fractions})
numbers        Beside({arange|arange|numbered})
windows        Call({window_means|window_attention|shifted_windows},{2|3|4})
               Call(large_windows)
gate           Gated({nn.AdaptiveAvgPool2d(1)|nn.AdaptiveMaxPool2d(1)})
               Excited()
               Call({mean|adaptive})
attention      Call({attend|rows})
               Heads({nn.Identity()|nn.AvgPool2d(2,2,ceil_mode=True)|nn.Conv2d(8,8,2,2,1)})
group_norm     nn.GroupNorm({1|2|4},8)
instance_norm  nn.InstanceNorm2d(8,affine=True)
l2             Call({l2|grn|std})
over_positions Call({over_positions|amax|amin|softmin})
order          Call({sort|cumsum|flip|fft|pick})
no_nan         Call({svd|histogram})
swallows_nan   Call({nanmean|finite_mean})
unpool         Call(unpool)
pyramid        Call(pyramid,{1|2|3})
rates          Rates({1|2|6|12|18|1,6,12|6,12,18})
unfold         Call(unfold,{1|2|3|6|12|18})
shift          Call({roll|roll_both|behind|ahead},{1|2|3|6|12|18})
grid_sample    Warp('{bilinear|nearest}',{True|False})
               Turned('{bilinear|nearest}')
               Call(moved,'{bilinear|nearest|nearest}')
deformed       Deformed(1,{True|False},{True|False})
placed         Placed({True|False},{True|False})
hourglass      Hourglass(@)
hook           hooked(nn.Conv2d(8,8,3,1,1),mean)
stage          {nn.Sequential|Chain|OwnChain|Loop|Listed|Stage|Segments}(@,@)""")

# around the parts, which are `...`
frames = parts("""
sequential     nn.Sequential(...)
chain          {Chain|OwnChain}(...)
loop           {Loop|Listed}(...)
checkpointed   {Stage|Segments}(...)
ending         Ending({mean|amax|amin|std|l2|grn|softmin|nanmean},...)
answer         Answer({mean|amax|torch.relu|torch.sigmoid},...)
levels         Levels(...)
tapped         Tapped(...)
aux            Aux({nn.Conv2d(8,8,3,1,1)|@},...)
positioned     Positioned(...)
masked         Masked(...)""")
stems = parts("""
stem           nn.Conv2d(3,8,{3,2,1|3,2,1|3,2|3,1,1|7,2,3|7,2|11,4,2|4,4})
               nn.Conv2d(3,8,3,2,1)
               nn.Sequential(nn.Conv2d(3,8,{3|7},2,{0|1}),nn.MaxPool2d(3,2,{0|1},ceil_mode={True|False}))""")['stem']

Drawn = namedtuple('Drawn', 'program parts') # the line of Python, and the names of what is in it

class Draw:
    "Draws a network by the random numbers `R`, with the part `only` in it, if one is given, and none of `without`"
    def __init__(self, R, only='', without=()): self.R,self.only,self.without = R,only,without

    def filled(self, template):
        "Choose one of each `{a|b}` of `template`, and a part for each `@`"
        while found := re.search(r'\{([^{}]*)\}', template):
            template = template[:found.start()] + self.R.choice(found[1].split('|')) + template[found.end():]
        while '@' in template: template = template.replace('@', self.part(same), 1)
        return template

    def part(self, table, name=None):
        "One of `table`"
        # on a large map not every position can ask all others
        left_out = [*self.without,'attention'] if self.stride<4 else self.without
        name = name or self.R.choice([o for o in table if o not in left_out])
        self.parts.add(name)
        return self.filled(self.R.choice(table[name]))

    def row(self):
        "Lines of a network, which come behind each other"
        R,n = self.R,self.R.randrange(3,8)
        res,forced = [self.filled(R.choice(stems))],R.randrange(n) if self.only else None
        self.stride = 1 if '3,1,1' in res[0] else 2
        for i in range(n):
            name = self.only if i==forced and self.only not in frames else None
            tables = [o for o in (reducing,same) if name is None or name in o]
            reduces = tables[0] is reducing and self.stride<16 and R.random()<.45 or tables==[reducing]
            res.append(self.part(reducing if reduces else same, name))
            if reduces: self.stride *= 2
            if R.random()<.3: res.append('nn.BatchNorm2d(8)')
            if R.random()<.3: res.append(R.choice(['nn.ReLU()','nn.SiLU()']))
        return res

    def __call__(self):
        # many are plain, since a frame of another kind has faults of its own
        names = [o for o in frames if o not in self.without]
        frame = self.only if self.only in frames else self.R.choice(names+['sequential']*4)
        self.parts,self.stride = {frame},2 # until its row is drawn
        row = ', '.join(self.row())
        return Drawn(self.filled(frames[frame][0]).replace('...', row), sorted(self.parts))

def made(program, seed):
    "The network of `program`, with weights and statistics none of which is near 0"
    torch.manual_seed(seed)
    m = eval(program, globals()).double().eval()
    def uniform(t, lo, hi): return torch.rand(t.shape,dtype=t.dtype)*(hi-lo)+lo
    with torch.no_grad():
        for o in m.modules():
            if not isinstance(o, nn.modules.batchnorm._BatchNorm): continue
            o.running_mean.copy_(uniform(o.running_mean,-.3,.3)), o.running_var.copy_(uniform(o.running_var,.5,1.5))
        for t in m.parameters():
            sign = torch.rand(t.shape).gt(.5).to(t.dtype)*2-1
            is_norm_s = t.ndim==1 and bool(t.eq(1).all())
            size = 1 if is_norm_s else .3 if t.ndim==1 else t[0].numel()**-.5
            t.copy_(size*uniform(t,.5,1.5)*(1 if is_norm_s else sign))
    return m

def images(program, n, h, w, seed):
    "What a network reads: `n` images, and their masks if it asks for them"
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, h, w, dtype=torch.double, generator=gen)
    return (x,x.mean(1,keepdim=True)>0) if program.startswith('Masked') else (x,)

def maps(y):
    "The maps in what a network answers"
    if isinstance(y, torch.Tensor): return [y] if y.ndim==4 else []
    if is_dataclass(y): y = vars(y)
    return [t for o in (y.values() if isinstance(y,dict) else y) for t in maps(o)]

def drawn(seed, only='', without=()):
    "The network of `seed`: one that runs"
    draw = Draw(random.Random(f'{only}{seed}'), only, without)
    for _ in range(1000):
        res = draw()
        try:
            with torch.no_grad(): ys = maps(made(res.program,seed)(*images(res.program,1,96,96,0)))
        except Exception: continue
        if ys and all(y.isfinite().all() for y in ys): return res
    raise ValueError(f'no network with {only} runs')

# How a network is used: as a whole, block by block, in training

def whole(m, xs):
    with torch.no_grad(): return maps(m(*xs))
def by_hand(m, xs, chains):
    "Call what is in plain containers one by one"
    def run(o, x):
        if id(o) not in chains: return o(x)
        for c in o.children(): x = run(c, x)
        return x
    with torch.no_grad(): return maps(run(m,*xs))
def in_training(m, xs, backward=False):
    "With gradients, in training mode; norms are not"
    m.train()
    for o in m.modules():
        if isinstance(o, nn.modules.batchnorm._BatchNorm): o.eval()
    try:
        ys = maps(m(*xs))
        total = sum(y.sum() for y in ys)
        if backward and total.requires_grad: total.backward()
    finally: m.eval()
    return [y.detach() for y in ys]

def difference(a, b, T, S):
    "How far map `a` at output stride `T` is off the native map `b`, of stride `S`, as a part of its largest value"
    every = S//min(S,T)
    a = a[...,::every,::every]
    if a.shape!=b.shape: return float('inf')
    if a.equal(b): return 0.
    largest = b.abs().max().clamp(min=1e-3) # where all is 0 but for a rounding error, there is no part of it
    err = ((a-b).abs().max()/largest).item()
    return err if err==err else float('inf')

Outcome = namedtuple('Outcome', 'verdict detail', defaults=['']) # and what there is to say of it

class Case:
    "A network, and what it makes natively of images"
    def __init__(self, program, seed):
        self.program,self.R,self.m = program,random.Random(seed),made(program, seed)
        self.chains = {id(o) for o in self.m.modules() if type(o).forward is nn.Sequential.forward}
        self.Ss,self.training_Ss = self.strides(whole),self.strides(in_training)

    def run_natively(self, n_sizes):
        "Note what the network makes of images of `n_sizes` sizes"
        self.data = []
        for i in range(n_sizes):
            n,h,w = self.R.choice([1,2,3]),self.R.randrange(20,131),self.R.randrange(20,131)
            xs = images(self.program, n, h, w, self.R.randrange(999))
            # a few of the images are enough for what it makes in training
            try: ys = whole(self.m,xs),in_training(self.m,xs) if i%5==0 else None
            except Exception: continue
            if all(y.isfinite().all() for o in ys if o for y in o): self.data.append((xs,*ys))

    def strides(self, use):
        "Those of the maps that it answers with, by the sizes of two images"
        has_3 = any(s%3==0 for o in self.m.modules() for s in own_strides(o))
        side = 192 if not has_3 else 8*27 if 'attend' in self.program else 16*27
        small,large = [use(self.m,images(self.program,1,px,px,0)) for px in (side,2*side)]
        return [side//(b.shape[3]-a.shape[3]) if b.shape[3]>a.shape[3] else None for a,b in zip(small,large)]

    def compare(self, T):
        "By each way of use, what is off: errors, and sizes of image"
        off,seen = {},Counter()
        Ss = {use:self.Ss for use in ('whole','by hand')} | {'in training':self.training_Ss}
        # all of it by phases may be 1,024 passes for one
        data = self.data[::8] if phases_of(self.m) else self.data
        for i,(xs,native,trained) in enumerate(data):
            uses = dict(whole=(lambda: whole(self.m,xs),native))
            if id(self.m) in self.chains and i%3==0: uses['by hand'] = lambda: by_hand(self.m,xs,self.chains),native
            if trained is not None: uses['in training'] = lambda: in_training(self.m,xs,backward=True),trained
            for name,(use,right) in uses.items():
                seen[name] += 1
                try: ys = use()
                except Exception as e: off.setdefault(name,[]).append(f'{type(e).__name__}: {e}'.split('\n')[0][:150])
                else:
                    errs = [difference(a,b,T,S) for a,b,S in zip(ys,right,Ss[name]) if S]
                    err = max(errs, default=0.) if len(ys)==len(right) else float('inf')
                    if err>1e-9: off.setdefault(name,[]).append(err)
        return off,seen

def outcome(program, seed, n_sizes=30, T=None):
    "What becomes of the network at a possible output stride, a drawn one or `T`"
    try: case = Case(program, seed)
    except Exception as e: return Outcome('nothing to trade', f'it does not run: {e}')
    m,sample = case.m,images(program,1,64,64,0) if program.startswith('Masked') else None
    try: Ts = output_strides(m, sample)
    except CannotDilate as e: return Outcome('not followed', str(e))
    if len(Ts)<2: return Outcome('nothing to trade')
    T = T or case.R.choice(Ts[:-1])
    if T not in Ts[:-1]: return Outcome('nothing to trade')
    case.run_natively(n_sizes)
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        try: set_output_stride(m, T, sample)
        except CannotDilate as e: return Outcome('refused', f'{Ts[-1]} to {T}: {e}')
    if said := [str(o.message) for o in ws if issubclass(o.category,InexactWarning)]: return Outcome('warned', said[0])
    off,seen = case.compare(T)
    if not off: return Outcome('exact', f'{Ts[-1]} to {T}')
    def told(name):
        errors = [o for o in off[name] if isinstance(o,str)]
        values = [o for o in off[name] if not isinstance(o,str)]
        how = f' by up to {max(values):.1g}' if values else ''
        return f'{name} at {len(off[name])} of {seen[name]} sizes{how}{f" ({errors[0]})" if errors else ""}'
    values = [o for v in off.values() for o in v if not isinstance(o,str)]
    return Outcome('SILENT' if values else 'crash', f'{Ts[-1]} to {T}: '+', '.join(map(told,off)))

# Each network in a process of its own: one that dies is a line, too

def _child(conn, f, args, secs):
    # seconds of the processor, so that it makes no difference what else runs on the machine
    resource.setrlimit(resource.RLIMIT_CPU, (secs,secs+1))
    torch.set_num_threads(1), warnings.simplefilter('ignore')
    faulthandler.disable() # pytest's would tell of a process that dies as it should
    # libraries complain of NaN by themselves
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    try: conn.send(f(*args))
    except Exception as e: conn.send(Outcome('crash', f'{type(e).__name__}: {e}'.split('\n')[0][:200]))

def apart(f, *args, secs=180):
    "What `f(*args)` returns in a process of its own, or what became of it"
    mp = multiprocessing.get_context('fork')
    here,there = mp.Pipe(duplex=False)
    p = mp.Process(target=_child, args=(there,f,args,secs))
    p.start(), there.close()
    too_slow = Outcome('crash', f'it takes more than {secs} seconds')
    if not here.poll(10*secs):
        p.kill(), p.join()
        return too_slow
    try: return here.recv()
    except EOFError:
        p.join()
        return too_slow if p.exitcode==-signal.SIGXCPU else Outcome('crash', f'the process dies, signal {-p.exitcode}')
    finally: p.join()

def tried(seed, sizes=30, only='', without=()):
    "The network of `seed`, and its outcome"
    net = drawn(seed, only, without)
    return net,apart(outcome, net.program, seed, sizes)

# The smallest network that fails as well

_rows = 'nn.Sequential Chain OwnChain Loop Listed Stage Segments Ending Answer Levels Tapped Aux Positioned Masked'.split()
def simpler(program):
    "Programs with one part less, a part in the place of a row of them, or a plain row"
    def calls(tree): return [o for o in ast.walk(tree) if isinstance(o,ast.Call)]
    for i,call in enumerate(calls(ast.parse(program, mode='eval'))):
        def edited(f):
            tree = ast.parse(program, mode='eval')
            f(calls(tree)[i])
            return ast.unparse(tree)
        name = ast.unparse(call.func)
        if name in _rows:
            if name!='nn.Sequential' and name not in ('Ending','Answer','Aux','Positioned','Masked'):
                yield edited(lambda o: setattr(o, 'func', ast.parse('nn.Sequential',mode='eval').body))
            for j in range(len(call.args)): yield edited(lambda o: o.args.pop(j))
        if name in [*_rows,'Residual','Hourglass','Branches','Sum']:
            def become(j):
                def f(o):
                    new = o.args[j]
                    o.func,o.args,o.keywords = new.func,new.args,new.keywords
                return f
            for j,arg in enumerate(call.args):
                is_whole = i==0 or name in ('Branches','Sum')
                if isinstance(arg,ast.Call) and not is_whole: yield edited(become(j))

def at_any_stride(program, seed, sizes, verdict):
    "The first outcome with that `verdict`"
    found = (outcome(program, seed, sizes, T) for T in (8,4,2,1,16))
    return next((o for o in found if o.verdict==verdict), Outcome('exact'))

def reduced(program, seed, sizes, verdict, secs=60):
    "A smaller network with that `verdict`, at any of its output strides"
    def still(p):
        o = apart(at_any_stride, p, seed, sizes, verdict)
        return o if o.verdict==verdict else None
    started,best = time.time(),None
    while time.time()-started<secs:
        for p in simpler(program):
            if o := still(p):
                program,best = p,o
                break
        else: break
    return program,best

def told(net):
    "A network in several lines"
    call = ast.parse(net, mode='eval').body
    lines = ''.join(f'\n    {ast.unparse(o)},' for o in call.args)
    return f'{ast.unparse(call.func)}({lines[:-1]})'

bugs = 'SILENT','crash'
verdicts = ['exact','warned','refused','not followed','nothing to trade',*bugs]
def table(rows):
    "`rows` of a name and outcomes, counted, as Markdown"
    lines = [['part','networks',*verdicts], ['---']*(len(verdicts)+2)]
    lines += [[name,found.total(),*[found[o] for o in verdicts]] for name,found in rows]
    return '\n'.join(f"| {' | '.join(map(str,o))} |" for o in lines)

@call_parse
def main(
    first:int=0,        # the first seed
    last:int=1000,      # the seed behind the last one
    sizes:int=30,       # sizes of image for each network
    only:str='',        # only networks with this part
    without:str='',     # only networks without these parts, with commas between them
    reduce:bool=False,  # look for a smaller network that fails as well?
    show:bool=False,    # print all networks, and not only those that fail?
):
    "Print what becomes of networks, in all and by part. It ends with 1 if one is changed in silence, or crashes"
    torch.set_num_threads(1), warnings.simplefilter('ignore')
    faulthandler.disable() # pytest's would tell of a process that dies as it should
    total,by_part,started = Counter(),{},time.time()
    for seed in range(first, last):
        net,o = tried(seed, sizes, only, without.split(','))
        total[o.verdict] += 1
        for name in net.parts: by_part.setdefault(name,Counter())[o.verdict] += 1
        is_bug = o.verdict in bugs
        if not (is_bug or show): continue
        print(f'{seed}: {o.verdict}, {o.detail}\n{told(net.program)}', flush=True)
        if not (reduce and is_bug): continue
        program,o = reduced(net.program, seed, min(sizes,12), o.verdict)
        if o: print(f'  smaller: {program}\n  {o.detail}', flush=True)
    print(f'\n{last-first} networks in {time.time()-started:.0f} seconds\n{table([*sorted(by_part.items()),("all",total)])}')
    if any(total[o] for o in bugs): sys.exit(1)
