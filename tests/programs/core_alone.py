"The core brings neither fastai nor what takes seconds; it knows fastai's holders all the same, and patches nothing for them"
import sys, torch
from torch import nn
import fastai_dilation as core

heavy = 'fastai','pandas','matplotlib','torchvision','timm','sklearn','IPython'
assert not [o for o in heavy if o in sys.modules]
def net(): return nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.ReLU(), nn.Conv2d(8,8,3,2,1), nn.AvgPool2d(2), nn.Conv2d(8,4,3,1,1))
m = core.set_output_stride(net(), 2)
assert (core.get_output_stride(m),core.output_strides(m))==(2,[1,2,4,8])
assert core.grid_error(m, 2)<1e-5 and core.to_pixels(m(torch.randn(1,3,32,32)), 32, 2).shape==(1,4,32,32)
layers = core.explain(m, 2)
assert len(layers)==4 and 'stride 2 -> 1' in repr(layers) and '<td>' in layers._repr_html_()
assert not [o for o in heavy if o in sys.modules]

from fastai.learner import Learner
from fastai.data.core import DataLoaders
from fastai.vision import learner
from fastai.vision.models.unet import DynamicUnet
import inspect
dls = DataLoaders.from_dsets([(torch.zeros(3,32,32),0)]*4, [(torch.zeros(3,32,32),0)]*4, bs=2)
learn = core.set_output_stride(Learner(dls, net(), loss_func=nn.MSELoss()), 4)
assert learn.output_stride==core.get_output_stride(learn)==4
unet = DynamicUnet(net()[:3], 2, (32,32)).eval()
try: core.set_output_stride(unet, 2)
except core.CannotDilate as e: assert 'Build the net anew' in str(e)
else: raise AssertionError('a U-Net has to be refused')
assert 'output_stride' not in inspect.signature(learner.vision_learner).parameters
assert core.explain(learn, 2).to_frame().shape==(4,4)
print('ok')
