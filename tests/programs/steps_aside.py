"On a fastai that has the pull request, its blocks are its own, and networks, learners and live changes do more"
import inspect
from fastai.vision.all import *
from fastai.vision.models.xresnet import XResNet

theirs = [ResBlock.__init__,ConvLayer.__init__]
native_init = XResNet.__init__
pr = xresnet18(output_stride=8).eval()
from fastai_dilation.all import *
from fastcore.test import *
import torchvision.models as tvm

assert theirs==[ResBlock.__init__,ConvLayer.__init__] and XResNet._orig___init__ is native_init
assert 'DilatedAvgPool' in repr(pr) and 'DilatedPool' not in repr(pr)

x,m = torch.randn(1,3,97,75),xresnet18()
def body(m): return nn.Sequential(*list(m)[:-4]).eval()
for o in m.modules():
    if isinstance(o,nn.BatchNorm2d): nn.init.uniform_(o.weight,.5,1.5)
native = body(m)(x)
def check(m, T): test_close(body(m)(x)[...,::32//T,::32//T], native, eps=1e-5*native.max().item())

for T in (16,8,4,2,1):
    check(set_output_stride(m,T), T)
    n = xresnet18(output_stride=T)
    n.load_state_dict(m.state_dict())
    check(n, T)
    assert 'DilatedAvgPool' not in repr(n)
assert body(set_output_stride(m,32))(x).equal(native)

# what fastai built itself: it has the stride of 8 natively, and is dilated further
pr.load_state_dict(m.state_dict())
assert get_output_stride(pr)==8
check(pr, 8)
for T in (4,2,8): check(set_output_stride(pr,T), T)
with expect_fail(ValueError, 'can be one of [1, 2, 4, 8], not 16'): set_output_stride(pr, 16)

def takes_it(f): return 'output_stride' in inspect.signature(f).parameters
assert all(map(takes_it, (vision_learner,cnn_learner,unet_learner,create_vision_model,create_unet_model)))
for arch in (xresnet18, tvm.resnet18):
    for T in (8,2):
        assert create_vision_model(arch, 2, pretrained=False, output_stride=T)[0](x).shape[-1]==-(-75//T)
        assert get_output_stride(create_unet_model(arch, 2, (64,64), pretrained=False, output_stride=T))==T
assert ResBlock(1,8,8,dilation=2)(torch.randn(2,8,9,9)).shape[-1]==9
print('ok')
