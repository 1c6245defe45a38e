"DeepLabV3+: both maps exact, values at their pixels, the level found by its stride; the learner and its files"
import pytest, torch, torchvision
from hypothesis import given, settings, strategies as st
from fastai.vision.all import foreground_acc, nn
from fastai_dilation.all import create_deeplab_model, deeplab_learner, get_output_stride, grid_error
from fastai_dilation.all import set_output_stride, vision_learner
from fastai_dilation.deeplab import ToPixels
from seg_checks import says_the_same_compiled_and_exported
from seg_data import make_files, seg_dls
from util import alive, close, randomize, said, same, small, tensors

def slow(*args): return pytest.param(*args, marks=pytest.mark.slow)
def name_of(o): return getattr(o,'__name__',o)
archs = [small]
archs += [slow(o) for o in ('test_efficientnet','resnet18d','efficientnet_lite0','seresnet50','convnext_atto')]
archs += [slow(getattr(torchvision.models,o)) for o in ('mobilenet_v3_small','densenet121','resnet50')]
one_rate = dict(pretrained=False, rates=(1,2), skip=4)

@pytest.mark.parametrize('arch', archs, ids=name_of)
def test_both_maps_are_exact(arch):
    "On the native grid the head's map and the early one are native; names and weights stay; all comes back bit for bit"
    m = alive(create_deeplab_model(arch, 5, output_stride=32, **one_rate)).double()
    x,ts = torch.randn(2,3,65,98).double(),tensors(m)
    def maps():
        high,low = m[0](x)
        return m[1](high),low
    with torch.no_grad():
        (high,low),whole = maps(),m(x)
        assert whole.shape==(2,5,65,98)
        for T in (16,8):
            assert said(set_output_stride, m, T)==[] and get_output_stride(m)==T
            d,(high_T,low_T) = 32//T,maps()
            close(high_T[...,::d,::d], high, 1e-9), close(low_T, low, 1e-9)
            assert same(m, ts) and m(x).shape==whole.shape
        assert set_output_stride(m, 32)(x).equal(whole)

def test_the_body_keeps_the_names_of_deeplabv3():
    "So weights go from one to the other"
    for arch in (small, 'test_resnet'):
        plus,plain = [create_deeplab_model(arch, 5, pretrained=False, rates=(1,), skip=o)[0] for o in (4,None)]
        assert [*plus.state_dict()]==[*plain.state_dict()]
        plus.load_state_dict(plain.state_dict())

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_stay_at_their_pixels(data):
    "A map that says where its values stand, resized to a level of any stride, says where the level's values stand"
    built,T,level = [2**data.draw(st.integers(lo,5)) for lo in (1,0,1)]
    offset,side = (built-1)/2,512
    resize = ToPixels(32, built, level)
    resize.spacing = 32//T
    ramp = T*torch.arange(side//T)+offset
    step = min(level, T) # at a finer stride than its own, the level's map is finer too
    y = resize(ramp[None,None,None], (1,side//step))[0,0,0]
    want = step*torch.arange(side//step)+(level-1)/2
    inside = (want>=ramp[0])&(want<=ramp[-1])
    assert torch.allclose(y[inside], want[inside], atol=1e-3)

@pytest.mark.parametrize('skip,T', [slow(2,2),slow(4,2),(8,4)])
def test_every_level_is_exact(skip, T):
    "Also where the output stride gets smaller than the level's"
    m = alive(create_deeplab_model(small, 4, pretrained=False, output_stride=16, rates=(1,), skip=skip)).double()
    errors = grid_error(m, T, levels=True)
    assert {2,4,8,16,32}<=errors.keys() and max(errors.values())<1e-9
    set_output_stride(m, T)
    with torch.no_grad(): assert m(torch.randn(1,3,65,98).double()).shape==(1,4,65,98)

refused = [(dict(skip=5),r'one of \[2, 4, 8\] at output_stride=16, not 5'), (dict(skip=16),r'one of \[2, 4, 8\]'),
    (dict(skip='4'),r'one of \[2, 4, 8\]'), (dict(skip=4,output_stride=4),r'one of \[2\]'),
    (dict(skip=1,arch='resnet18d'),r'one of \[2, 4, 8\]')]
@pytest.mark.parametrize('kw,words', refused)
def test_deeplab_plus_refuses_in_words(kw, words):
    "In words that say what there is"
    kw = {'arch':small, 'n_out':3, 'pretrained':False, **kw}
    with pytest.raises(ValueError, match=words): create_deeplab_model(**kw)

@pytest.mark.parametrize('n_in,separable', [(1,True),(4,False),(12,True)])
def test_bands(n_in, separable):
    "One image of any number of bands, in training too"
    m = create_deeplab_model(small, 3, n_in=n_in, separable=separable, **one_rate).train()
    m(torch.randn(1,n_in,75,98)).mean().backward()
    assert all(p.grad is not None for p in m.parameters())

def test_without_rates():
    "A 1x1 conv in the place of the pyramid"
    m = create_deeplab_model(small, 3, pretrained=False, rates=(), skip=4)
    assert m(torch.randn(2,3,64,96)).shape==(2,3,64,96)
    assert not any(max(o.dilation)>2 for o in m[1].modules() if isinstance(o,nn.Conv2d))

@pytest.fixture
def dls(tmp_path): return seg_dls(make_files(tmp_path))

@pytest.mark.parametrize('arch', [small, slow('resnet18d')], ids=name_of)
def test_a_deeplab_plus_learner_trains(dls, arch, tmp_path):
    "Groups as `vision_learner` has them; fit, a change of stride, save, load"
    kw = dict(pretrained=False, rates=(1,), skip=4, path=tmp_path)
    learn = deeplab_learner(dls, arch, output_stride=16, metrics=foreground_acc, **kw)
    groups,theirs = [l.splitter(l.model) for l in (learn, vision_learner(dls,arch,pretrained=False,n_out=2))]
    assert [len(g) for g in groups[:-1]]==[len(g) for g in theirs[:-1]]
    assert len(groups[-1])==len([*learn.model[1:].parameters()])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        learn.set_output_stride(8)
        learn.save('x')
        want = learn.get_preds()[0]
        again = deeplab_learner(dls, arch, output_stride=16, **kw).load('x').set_output_stride(8)
        with again.no_bar(): close(again.get_preds()[0], want)

def test_freeze(dls):
    "The body's weights stay as they are, and the head's and the decoder's learn"
    learn = deeplab_learner(dls, small, pretrained=False, rates=(1,), skip=4)
    learn.freeze()
    frozen = [p for o in learn.model[0].modules() if isinstance(o,nn.Conv2d) for p in o.parameters()]
    assert not any(p.requires_grad for p in frozen) and all(p.requires_grad for p in learn.model[1:].parameters())

@pytest.mark.slow
def test_deeplab_plus_compiled_exported_and_as_onnx(tmp_path):
    "In one graph, with free sides, and as ONNX"
    m = randomize(create_deeplab_model('efficientnet_lite0', 3, output_stride=8, **one_rate))
    says_the_same_compiled_and_exported(m, tmp_path)
