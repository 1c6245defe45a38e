"What takes numbers for positions, or refuses NaN, is tried without NaN: nothing ends the process, and it is exact"
import pytest, torch
from torch import nn
from torchvision.ops import DeformConv2d, deform_conv2d, roi_align
from fastai_dilation.all import set_output_stride
from fastai_dilation.strides import follow
from fastai_dilation.trial import Natives
from util import close, said

class Deformed(nn.Module):
    "A deformable conv, with a mask or without, as a module or a function"
    def __init__(self, has_mask, stride=1, by_function=False):
        super().__init__()
        self.has_mask,self.by_function = has_mask,by_function
        self.offsets,self.masks = nn.Conv2d(8,18,3,stride,1),nn.Conv2d(8,9,3,stride,1)
        self.conv = DeformConv2d(8, 8, 3, stride, 1)
    def forward(self, x):
        mask = self.masks(x).sigmoid() if self.has_mask else None
        if self.by_function: return deform_conv2d(x, self.offsets(x), self.conv.weight, padding=1, mask=mask)
        return self.conv(x, self.offsets(x), mask)

def stem(): return [nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1)]

deformed = dict(plain=lambda: Deformed(False), masked=lambda: Deformed(True), strided=lambda: Deformed(True,2))
deformed['function'] = lambda: Deformed(True, by_function=True)
@pytest.mark.parametrize('name', deformed)
def test_a_deformable_conv_is_exact(name):
    torch.manual_seed(0)
    net = nn.Sequential(*stem(), deformed[name](), nn.Conv2d(8,8,3,1,1)).double()
    every,x = 8 if name=='strided' else 4,torch.randn(2,3,37,50).double()
    with torch.no_grad():
        native = net(x)
        assert said(set_output_stride, net, 1)==[]
        close(net(x)[...,::every,::every], native, 1e-12)

class Function(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, x): return self.f(x)

def spectrum(x): return x*torch.linalg.svdvals(x.flatten(2)).mean(1)[:,None,None,None]
def histogram(x): return torch.stack([o*torch.histc(o.detach(), 8).max() for o in x])
@pytest.mark.parametrize('f', [spectrum,histogram])
def test_a_function_that_refuses_nan_is_exact_by_phases(f):
    torch.manual_seed(0)
    net,x = nn.Sequential(*stem(), Function(f)).double(),torch.randn(2,3,37,50).double()
    with torch.no_grad():
        native = net(x)
        assert said(set_output_stride, net, 1)==[]
        close(net(x)[...,::4,::4], native, 1e-12)

def gated(x): return x*x.exp().sum((2,3),keepdim=True).sigmoid()
def test_a_sum_that_a_sigmoid_hides_on_all_but_the_smallest_images_is_seen():
    "Behind a deformable conv, where no NaN may be"
    torch.manual_seed(0)
    net = nn.Sequential(*stem(), Deformed(False), Function(gated), nn.Conv2d(8,8,3,1,1)).double()
    x = torch.randn(2,3,3,4).double()
    with torch.no_grad():
        native = net(x)
        assert said(set_output_stride, net, 1)==[]
        close(net(x)[...,::4,::4], native, 1e-12)

def normed(x): return x/(1+x.std((2,3),keepdim=True))
def test_a_foreign_operation_is_never_given_nan():
    "On an image so small that there is no standard deviation natively"
    torch.manual_seed(0)
    net = nn.Sequential(*stem(), Function(normed), Deformed(False), nn.Conv2d(8,8,3,1,1)).double()
    strides,tiny,x = follow(net),torch.randn(1,3,4,4).double(),torch.randn(2,3,13,18).double()
    with pytest.raises(FloatingPointError, match='deform_conv2d is given NaN'): Natives(net, strides, [tiny])
    with torch.no_grad():
        native = net(x)
        assert said(set_output_stride, net, 1)==[]
        close(net(x)[...,::4,::4], native, 1e-12)

def test_a_function_of_the_whole_batch_is_warned_of():
    "It cannot run by phases, which are a batch"
    net = nn.Sequential(*stem(), Function(lambda x: x*torch.histc(x.detach(), 8).max())).double()
    assert len(said(set_output_stride, net, 1))==1

class Pooled(nn.Module):
    "Cuts regions out of a map, of which it says how coarse it is"
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*stem())
    def forward(self, x):
        boxes = torch.tensor([[0,0.,0,16,16]], dtype=x.dtype, device=x.device)
        return roi_align(self.stem(x), boxes, 3, spatial_scale=1/4)

def test_regions_of_a_map_that_has_become_finer_are_told():
    "The scale is a number in the forward of somebody's own"
    words, = said(set_output_stride, Pooled(), 1)
    assert 'roi_align' in words
