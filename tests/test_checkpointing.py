"Gradient checkpointing saves memory, and changes nothing else"
import copy
import pytest, timm, torch
from functools import partial
from torch import nn
from fastai.vision.all import Learner, MSELossFlat, default_device
from fastai.vision.models import xresnet
from fastai.data.all import DataLoaders
from fastai_dilation.all import GradientCheckpointing, create_deeplab_model, create_unet_model, set_output_stride
from fastai_dilation.evaluate import peak_memory
from util import alive, small

default_device(False)
nets = dict(xresnet18=lambda: xresnet.xresnet18(output_stride=8, n_out=4, widen=.25),
    xse_resnet18=lambda: xresnet.xse_resnet18(output_stride=8, n_out=4, widen=.25),          # blocks by phases, in runs
    efficientnet=lambda: set_output_stride(timm.create_model('test_efficientnet', num_classes=4, drop_rate=.3), 8),
    convnext=lambda: set_output_stride(timm.create_model('test_convnext', num_classes=4, drop_path_rate=.3), 8), # drops blocks at random
    deeplab=lambda: create_deeplab_model(small, 4, pretrained=False, output_stride=8, rates=(1,2), skip=4),
    unet=lambda: create_unet_model(small, 4, (64,64), pretrained=False, output_stride=8))

def step(m, x):
    torch.manual_seed(1)
    m(x).square().mean().backward()

def checkpointed(m):
    "`m` as it is while a learner with the callback trains it"
    learn = Learner(DataLoaders([],[]), m, loss_func=MSELossFlat(), cbs=GradientCheckpointing())
    learn.gradient_checkpointing.before_fit()
    return learn

@pytest.mark.parametrize('name', nets)
def test_gradients_and_statistics_are_the_same_bit_for_bit(name):
    plain = alive(nets[name]()).train()
    saving,x = copy.deepcopy(plain),torch.randn(2,3,64,64)
    learn = checkpointed(saving)
    assert learn.gradient_checkpointing.blocks
    for m in (plain,saving): step(m, x)
    for (k,a),(k2,b) in zip(plain.named_parameters(), saving.named_parameters()):
        assert k==k2 and (a.grad is b.grad is None or a.grad.equal(b.grad)), k
    for (k,a),(k2,b) in zip(plain.named_buffers(), saving.named_buffers()): assert k==k2 and a.equal(b), k
    learn.gradient_checkpointing.after_fit()
    assert not any('forward' in vars(o) for o in saving.modules())

def test_training_takes_less_memory():
    plain,x = nets['xresnet18']().train(),torch.randn(4,3,96,96)
    saving = copy.deepcopy(plain)
    checkpointed(saving)
    for m in (plain,saving): step(m, x) # there are gradients now
    mems = [peak_memory(partial(step, m, x)) for m in (plain,saving)]
    assert mems[1]<.8*mems[0]

def test_nothing_is_made_twice_where_there_is_no_backward_pass():
    m,calls = nets['xresnet18']().eval(),[]
    checkpointed(m)
    m[4][0].convpath.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(): m(torch.randn(1,3,64,64))
    assert calls==[1]

def test_a_block_whose_forward_somebody_else_has_set_is_let_be():
    m = nets['xresnet18']()
    own = m[4][0].forward = partial(nn.Module.__call__, m[4][1])
    learn = checkpointed(m)
    learn.gradient_checkpointing.after_fit()
    assert m[4][0].forward is own

def test_a_fit_that_an_error_has_ended_leaves_nothing_behind_in_the_next_one():
    "fastai does not call `after_fit` then"
    learn = checkpointed(nets['xresnet18']())
    learn.gradient_checkpointing.before_fit() # the next one; the one before was never ended
    assert len(learn.gradient_checkpointing.blocks)==8
    learn.gradient_checkpointing.after_fit()
    assert not any('forward' in vars(o) for o in learn.model.modules())
