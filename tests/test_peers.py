"The table of peers, cell by cell: what timm, torchvision and segmentation_models.pytorch do with the same weights"
import pytest, timm, torch, torchvision
from copy import deepcopy
from functools import partial
from fastai.vision.all import create_body
from fastai_dilation.all import create_timm_model, grid_error, pool_over, set_output_stride
from util import alive, grid_diff, randomize, with_weights

def off(theirs, native, x, T=8):
    "How far the peer's map is from the native one, on the native grid, as a part of the largest feature"
    with torch.no_grad(): return grid_diff(forward(with_weights(theirs,native).eval(), x), forward(native.eval(), x), T)

def forward(m, x):
    "The last map of `m`"
    if hasattr(m,'forward_features'): return m.forward_features(x)
    y = m(x)
    return y[-1] if isinstance(y,list) else y

xs = [torch.randn(2,3,*sz) for sz in ((128,160),(97,131))]
slow = partial(pytest.param, marks=pytest.mark.slow)

def of_timm(name):
    "How far timm's and ours are off, at two sizes of image"
    native = alive(timm.create_model(name))
    return [off(timm.create_model(name,output_stride=8), native, x) for x in xs],[grid_error(native,8,x) for x in xs]

@pytest.mark.parametrize('name', [slow('resnet18'),slow('resnet34')])
def test_plain_resnet(name):
    "Exact here and in timm"
    theirs,ours = of_timm(name)
    assert max(*theirs,*ours)<1e-5
    dilated,native = timm.create_model(name, output_stride=8),timm.create_model(name)
    assert list(dilated.state_dict())==list(native.state_dict())

@pytest.mark.slow
def test_resnet50_of_torchvision():
    "Exact here and there"
    native = randomize(torchvision.models.resnet50())
    x,d = xs[1],torchvision.models.resnet50(replace_stride_with_dilation=[False,True,True])
    assert off(create_body(d,cut=-2), create_body(deepcopy(native),cut=-2), x)<1e-5 and grid_error(native,8,x)<1e-5

@pytest.mark.parametrize('name', ['resnet18d',slow('resnet34d'),slow('resnet50d')])
def test_shortcut_with_a_pool(name):
    "Exact here, off in timm"
    theirs,ours = of_timm(name)
    assert max(ours)<1e-5 and .03<min(theirs)<=max(theirs)<.4, theirs

@pytest.mark.parametrize('name', ['test_convnext',slow('convnext_atto')])
def test_convnext(name):
    "Exact here, off in timm"
    theirs,ours = of_timm(name)
    assert max(ours)<1e-5 and .1<min(theirs)<=max(theirs)<.5, theirs

def test_peers_stop_at_8():
    "timm and torchvision stop at 8; a basic block of torchvision's cannot be dilated"
    for T in (4,2,1):
        with pytest.raises(AssertionError): timm.create_model('resnet18', output_stride=T)
    set_output_stride(timm.create_model('test_resnet'), 1)
    with pytest.raises(NotImplementedError): torchvision.models.resnet18(replace_stride_with_dilation=[False,True,True])

@pytest.mark.slow
def test_by_name():
    "fastai hands `output_stride` on to timm, and some networks do not take it"
    with pytest.raises(TypeError): timm.create_model('densenet121', output_stride=8)
    create_timm_model('densenet121', 2, pretrained=False, output_stride=8)

@pytest.mark.slow
def test_segmentation_models():
    "Its ResNets are off; strides are 8 and 16 (`pip install -e '.[bench]'`)"
    smp = pytest.importorskip('segmentation_models_pytorch')
    def enc(name, **kw): return smp.encoders.get_encoder(name, weights=None, **kw)
    for name in ('resnet34','resnet50'):
        native = randomize(enc(name))
        theirs = [off(enc(name,output_stride=8), native, x) for x in xs]
        assert .1<min(theirs)<=max(theirs)<.5 and grid_error(native,8,xs[1])<1e-5
    for name in ('tu-resnet34d','tu-convnext_atto'):   # timm's, by timm's rule
        native = alive(enc(name))
        assert min(off(enc(name,output_stride=8), native, x) for x in xs)>.03
    with pytest.raises(ValueError): smp.DeepLabV3('resnet18', encoder_weights=None, encoder_output_stride=4)

@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_efficientnet'])
def test_timms_own_pool_stays_one(name):
    "It has a `pool_type` of its own, which comes back, and which a new head asks for"
    m = timm.create_model(name).eval()
    before = repr(m)
    assert repr(pool_over(pool_over(m,'grid'),'all'))==before
    pool_over(set_output_stride(m,8), 'grid').reset_classifier(5)
    assert m(torch.randn(1,3,96,96)).shape==(1,5)
