"ImageNet weights on photos that come with packages: exact at each stride, the same classes, a learner that exports"
from functools import partial
import pytest, torch
from fastai.vision.all import F
from fastai_dilation.all import class_maps, grid_error, pool_over, set_output_stride, vision_learner
from fastai_dilation.demo import lite0, real_photos
from seg_data import class_dls, make_files
from util import close

ims = real_photos()

@pytest.fixture(scope='module')
def net(): return lite0()

def prepared(im):
    "The middle of a photo as the weights want it"
    n = min(im.shape[:2])
    top,left = [(o-n)//2 for o in im.shape[:2]]
    x = torch.tensor(im[top:top+n,left:left+n].copy()).permute(2,0,1)[None]/127.5-1
    return F.interpolate(x, (224,224), mode='bicubic', antialias=True)

slow = partial(pytest.param, marks=pytest.mark.slow)

@pytest.mark.parametrize('sides,strides', [((65,97),[16]), slow((224,224),(16,8)), slow((225,225),(16,8,4))], ids=str)
def test_real_weights_are_exact_on_a_photo(net, sides, strides):
    "In double precision, on a real photo"
    x = F.interpolate(prepared(ims['cat']), sides).double()
    net.double()
    try:
        for T in strides: assert grid_error(net, T, x)<1e-9
    finally: net.float()

def test_sees_what_it_was_trained_for(net):
    "The weights are in their places: it knows an espresso, a tabby, tiger or Egyptian cat, and a missile or projectile"
    with torch.no_grad(): top = {k:net(prepared(ims[k])).topk(3).indices[0].tolist() for k in ('cup','cat','rocket')}
    assert 967 in top['cup'] and {281,282,285} & {*top['cat']} and {657,744} & {*top['rocket']}

@pytest.mark.parametrize('name,strides', [slow(o,[16,8] if i==0 else [8]) for i,o in enumerate(ims)])
def test_same_class(net, name, strides):
    "With the grid pool, its answer at 16 and 8 is the native one"
    x = prepared(ims[name])
    with torch.no_grad():
        native = net(x)
        for T in strides:
            y = set_output_stride(pool_over(net), T)(x)
            set_output_stride(pool_over(net,'all'), 32)
            assert y.argmax()==native.argmax() and (y-native).abs().max()<1e-4*native.abs().max()
        T = strides[-1]
        assert class_maps(net, x, T)[...,::32//T,::32//T].mean((2,3)).argmax()==native.argmax()

def test_a_learner_with_real_weights(net, tmp_path):
    "A learner on this body has its features on the native grid"
    kw = dict(pretrained=False, output_stride=8)
    learn = vision_learner(class_dls(make_files(tmp_path)), 'tf_efficientnet_lite0', **kw)
    body = learn.model[0].eval()
    body.model.load_state_dict({k:v for k,v in net.state_dict().items() if k in body.model.state_dict()})
    x = prepared(ims['cat'])
    with torch.no_grad(): close(body(x)[...,::4,::4], net.forward_features(x), 1e-4)
