"What a user of learners, DeepLab, reports and class maps reads, and what does as he is told"
from collections import OrderedDict
from functools import partial
import pytest, timm, torch, torchvision.models as tvm
from fastai.vision.all import CrossEntropyLossFlat, Learner, models, nn, vision_learner, xresnet18
from fastai_dilation.all import (CannotDilate, class_maps, create_deeplab_model, create_timm_model, create_unet_model,
    create_vision_model, get_output_stride, grid_error, output_stride_report, pool_over, set_output_stride, to_pixels)
from fastai_dilation.__main__ import _by_name
from seg_data import class_dls, make_files
from util import alive, close, said

def small(pretrained=False, **kwargs): return xresnet18(widen=.25, **kwargs)

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    dls = class_dls(make_files(tmp_path_factory.mktemp('data')))
    return Learner(dls, small(n_out=10), loss_func=CrossEntropyLossFlat())

def test_report_of_one_stride(learn):
    "A number is one output stride"
    df = output_stride_report(learn, 8, n=2)
    assert list(df.index)==[8] and df.notna().all().all()

def test_report_of_a_network(learn):
    with pytest.raises(TypeError, match='`learn` has to be a `Learner`.*not a XResNet.*`grid_error`'): output_stride_report(learn.model)

@pytest.mark.parametrize('shape,sides', [((2,3,7,5),(20,20)), ((3,7,5),(20,20)), ((2,3,4,5,3),(20,20,20))], ids=str)
def test_to_pixels_of_a_square(shape, sides):
    "One number for the size is the side of a square, or of a cube where there is a batch of volumes"
    x = torch.randn(shape)
    assert to_pixels(x, 20, 4).equal(to_pixels(x, sides, 4))

make = [partial(create_timm_model,n_out=2), partial(create_unet_model,n_out=2,img_size=(64,64)), partial(create_deeplab_model,n_out=2)]
@pytest.mark.parametrize('f', make)
def test_a_typo_in_a_name(f):
    "A name that timm does not know is answered with similar ones, one of fastai's or torchvision's with the function"
    with pytest.raises(ValueError, match="^'resnet50dd' is the name of no timm network: did you mean resnet50d or"): f('resnet50dd')
    for name in ('xresnet34','squeezenet1_1'):
        with pytest.raises(ValueError, match=f"^timm has no '{name}'.*`{name}`, without quotes"): f(name)

def test_a_typo_in_a_learner(learn):
    with pytest.raises(ValueError, match="^'resnet50dd' is the name of no timm network"): vision_learner(learn.dls, 'resnet50dd')

def test_tags_are_names():
    "A name with the tag of its weights is known"
    assert create_timm_model('resnet18d.ra2_in1k', 2, pretrained=False, output_stride=16)[1]['tag']=='ra2_in1k'

@pytest.mark.parametrize('f,who', [(lambda T: create_vision_model(small,2,False,output_stride=T),'small'),
    (lambda T: create_vision_model(partial(xresnet18,widen=.25),2,False,output_stride=T),'xresnet18'),
    (lambda T: create_timm_model('resnet18d',2,pretrained=False,output_stride=T),'resnet18d'),
    (lambda T: create_unet_model(small,2,(64,64),False,output_stride=T),'small'),
    (lambda T: create_unet_model('resnet18d',2,(64,64),False,output_stride=T),'resnet18d'),
    (lambda T: create_deeplab_model('resnet18d',2,False,output_stride=T),'resnet18d')])
def test_refusals_have_the_name_that_was_given(f, who):
    "Not that of a class which fastai has made of it"
    with pytest.raises(CannotDilate, match=f'`output_stride` of this {who} can be one of .*, not 12'): f(12)

def test_a_learner_refuses_by_name(learn):
    new = vision_learner(learn.dls, 'resnet18d', pretrained=False, output_stride=16)
    with pytest.raises(CannotDilate, match='of this resnet18d can be one of'): new.set_output_stride(12)
    assert get_output_stride(new)==16

class Resizes(nn.Module):
    "Resizes its map to the image in its own `forward`"
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(*[nn.Conv2d(i,8,3,2,1) for i in (3,8,8,8)])
    def forward(self, x): return nn.functional.interpolate(self.convs(x), x.shape[2:], mode='bicubic')

def test_a_warning_has_the_name_that_was_given(learn):
    "Once, and of the same category"
    new = Learner(learn.dls, Resizes())
    new.arch = 'finest'
    words, = said(new.set_output_stride, 8)
    assert words.startswith('At output_stride=8 this finest is not exact') and get_output_stride(new)==8

swin = 'swin_tiny_patch4_window7_224',dict(strict_img_size=False)
mambaout = 'mambaout_femto',dict(dims=(8,16,24,32))
nets = [(*mambaout,None), pytest.param(*mambaout,4,marks=pytest.mark.slow), *[pytest.param(*swin,o,marks=pytest.mark.slow) for o in (None,4)]]
@pytest.mark.parametrize('name,kw,skip', nets)
def test_deeplab_on_a_body_with_its_channels_last(name, kw, skip):
    "It is exact, and keeps the names of the body's weights"
    torch.manual_seed(0)
    depths = dict(depths=(1,1,1,1), **kw)
    m = alive(create_deeplab_model(name, 3, pretrained=False, output_stride=16, rates=(1,), skip=skip, **depths)).double()
    assert m(torch.randn(1,3,64,96).double()).shape==(1,3,64,96)
    assert grid_error(m, 8, torch.randn(1,3,96,128).double())<1e-9
    theirs = timm.create_model(name, num_classes=0, **depths)
    assert [f'model.{k}' for k in theirs.state_dict()]==list(m[0].state_dict())

def test_deeplab_refuses_what_is_no_map_of_two_sides():
    words = r"xresnet18's body makes a map with its sides at the axes \(2, 3, 4\)"
    with pytest.raises(ValueError, match=words): create_deeplab_model(partial(xresnet18,ndim=3,widen=.125), 2, pretrained=False)

@pytest.mark.parametrize('kw', [{},dict(dynamic_img_size=True),dict(img_size=(160,192))], ids=['one_size','all_sizes','another_size'])
def test_deeplab_on_a_vit(kw):
    "Exact, and it keeps the names of the body's weights"
    m = create_deeplab_model('vit_tiny_patch16_224', 2, pretrained=False, output_stride=8, rates=(1,), depth=2, **kw).eval()
    x = torch.randn(1, 3, *kw.get('img_size',(224,224)))
    assert m(x).shape==(1,2,*x.shape[2:]) and m[0](x).shape[2:]==tuple(side//8 for side in x.shape[2:])
    assert grid_error(m.double(), 8, x.double())<1e-9
    theirs = timm.create_model('vit_tiny_patch16_224', num_classes=0, depth=2, **kw)
    assert [f'model.{k}' for k in theirs.state_dict()]==list(m[0].state_dict())

def test_class_maps_of_a_unet():
    "With pools in its gates, and without"
    for arch in (small, lambda pretrained: models.xresnet.xse_resnet18(widen=.25)):
        m = create_unet_model(arch, 2, (64,64), pretrained=False)
        with pytest.raises(ValueError, match='U-Net answers for each pixel, and needs no'): class_maps(m, torch.randn(1,3,64,64), 8)

def test_class_maps_of_a_map():
    "A network of convs alone"
    with pytest.raises(ValueError, match='and what it makes is a map'): class_maps(Resizes(), torch.randn(1,3,64,64), 8)

def with_pool(m, *between):
    "What `class_maps` and `pool_over` advise, word for word"
    *body,head = m.named_children()
    return nn.Sequential(OrderedDict([*body, *between, ('pool',nn.AdaptiveAvgPool2d(1)), ('flat',nn.Flatten()), head]))

relu = ('relu',nn.ReLU())
@pytest.mark.parametrize('arch,between', [(lambda: tvm.DenseNet(8,(2,2,2,2),16,num_classes=5),[relu]),
    (lambda: tvm.MobileNetV2(5,.25,[(1,16,1,1),*[(6,32,1,2)]*4]),[]), (lambda: tvm.MNASNet(.1,5),[]),
    (lambda: tvm.ShuffleNetV2([1,1,1],[24,24,48,96,96],5),[])], ids=['densenet','mobilenet_v2','mnasnet','shufflenet_v2'])
def test_what_class_maps_advises_does(arch, between):
    "A network of the parts has the same weights under the same names, says the same, and can be asked"
    m,x = alive(arch()).double(),torch.randn(1,3,97,65).double()
    recipe = r"\*body,head = m.named_children\(\).*nn.Sequential\(OrderedDict\(\[\*body, \('pool',nn.AdaptiveAvgPool2d\(1\)\)"
    with pytest.raises(ValueError, match=recipe): class_maps(m, x, 8)
    with pytest.raises(ValueError, match=recipe): pool_over(m)
    parts = with_pool(m, *between).eval()
    assert list(parts.state_dict())==list(m.state_dict())
    with torch.no_grad():
        native = m(x)
        close(parts(x), native, 1e-12)
        close(class_maps(parts, x, 8)[...,::4,::4].mean((2,3)), native, 1e-12)
        close(pool_over(set_output_stride(parts,8),'grid')(x), native, 1e-12)

def test_the_command_knows_detectors_and_segmenters():
    "Names of torchvision's, without a download"
    assert type(_by_name('lraspp_mobilenet_v3_large')).__name__=='LRASPP'
    with pytest.raises(SystemExit, match='did you mean fasterrcnn_resnet50_fpn'): _by_name('fasterrcnn_resnet50_fpnn')
