"What a network does in training alone is tried there, without what it drops and draws; or a warning says that it was not"
import copy, pytest, torch, torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential
from fastai_dilation.all import *
from util import said

def placed(x): return torch.cat([x, torch.linspace(-1,1,x.shape[3]).to(x).expand(len(x),1,*x.shape[2:])], 1)

class Placed(nn.Module):
    def forward(self, x): return placed(x)

class Trained(nn.Module):
    "In training it answers with `answer`, if that is not `None`"
    def __init__(self, answer):
        super().__init__()
        self.answer,self.head = answer,Placed()
        self.stem,self.last = nn.Sequential(nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,8,3,2)),nn.Conv2d(8,8,3,2,1)
    def forward(self, x):
        x = self.stem(x)
        y = self.last(x)
        return self.answer(self, x, y) if self.training else y

def in_pairs(m, x):
    "Maps in training, each with its native stride"
    y = m.train()(x)
    return zip(y,(8,4)) if isinstance(y,tuple) else [(y,8)]

def off(answer, T):
    "Warnings, and how far `answer` is off in training at output stride `T`, over odd and even sides"
    torch.manual_seed(0)
    native = Trained(answer).double()
    m = copy.deepcopy(native)
    words,errs = said(set_output_stride,m,T),[]
    for sides in ((33,33),(40,46),(37,38),(50,64)):
        x = torch.randn(2,3,*sides).double()
        for (a,S),(b,_) in zip(in_pairs(m,x), in_pairs(native,x)):
            f = S//min(S,T)
            errs.append((a[...,::f,::f]-b).abs().max().item())
    return words,max(errs)

def gate(m, x, y): return y*x.mean((2,3),keepdim=True).sigmoid()

@pytest.mark.parametrize('T', [2,1])
@pytest.mark.parametrize('answer', [lambda m,x,y: (y,m.head(x)), gate], ids=['a head','a gate'])
def test_what_is_done_in_training_alone_is_exact(answer, T):
    "The map of the head ends at a native position in both images for evaluation: an image in training is asked for too"
    words,err = off(answer, T)
    assert words==[] and err<1e-12

@pytest.mark.parametrize('answer', [lambda m,x,y: (y,placed(x)), lambda m,x,y: placed(x), lambda m,x,y: (y,m.last(y))])
def test_what_a_network_does_itself_in_training_alone_is_warned_of(answer):
    "Its own `forward` takes positions by the size of a map, and calls no module for it"
    words, = said(set_output_stride, Trained(answer), 2)
    assert 'in training it does more' in words

@pytest.mark.parametrize('answer', [
    lambda m,x,y: F.dropout(y, .5),
    lambda m,x,y: y*torch.rand_like(y),
    lambda m,x,y: gate(m, F.dropout2d(x,.5), y+torch.randn(y.shape)*y)])
def test_what_is_drawn_in_training_is_no_difference(answer):
    "It can be compared all the same: nothing is dropped in trials"
    m,state = Trained(answer),torch.get_rng_state()
    assert said(set_output_stride, m, 2)==[]
    assert torch.equal(state, torch.get_rng_state())

def test_a_network_that_does_not_run_in_training_is_warned_of():
    def loss(m, x, y): raise ValueError('no targets')
    words, = said(set_output_stride, Trained(loss), 2)
    assert 'in training it was not tried, since it does not run (no targets)' in words

class Chain(nn.Sequential):
    "A stage in its own words"
    def forward(self, x):
        for o in self: x = o(x)
        return x

class Gate(nn.Module):
    def forward(self, x): return x*x.mean((2,3),keepdim=True).sigmoid()

class Checkpointed(nn.Module):
    "In training it calls the blocks of its stage by itself, in two parts"
    def __init__(self):
        super().__init__()
        self.stem,self.stage = nn.Conv2d(3,8,3,4,1),Chain(Gate(), nn.GroupNorm(2,8))
    def forward(self, x):
        x = self.stem(x)
        return checkpoint_sequential([*self.stage], 2, x, use_reentrant=False) if self.training else self.stage(x)

def test_what_calls_the_insides_of_a_module_in_training_sees_whole_maps():
    "So the module does not run by phases as one, though that would be cheaper"
    native = Checkpointed().double()
    m,x = copy.deepcopy(native),torch.randn(2,3,37,50).double()
    assert said(set_output_stride, m, 2)==[]
    for mode in (True,False): assert (m.train(mode)(x)[...,::2,::2]-native.train(mode)(x)).abs().max()<1e-12
