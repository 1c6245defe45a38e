"`unet_learner` by timm's names: levels, weights, groups, files, refusals"
import pytest, timm, torch
from fastai.vision.all import NormType, Normalize, TensorImage, Transform, nn
from fastai_dilation.all import create_unet_model, get_output_stride, unet_learner
from safetensors.torch import save_file
from seg_data import make_files, seg_dls
from util import alive, close, randomize, slow_if

names = ['test_resnet', 'test_convnext', 'resnet18d', 'efficientnet_lite0', 'convnext_atto', 'densenet121', 'regnety_002']
names += ['mobilenetv3_small_050', 'vgg11_bn']

class FourBands(Transform):
    def encodes(self, x:TensorImage): return torch.cat([x,x[:,:1]], 1)

@pytest.fixture
def path(tmp_path): return make_files(tmp_path)

@pytest.mark.parametrize('name', slow_if(names, *[o for o in names if not o.startswith('test_')]))
def test_the_encoder_is_the_network(name):
    "Its last map is timm's, natively, and on its grid at 16; the U-Net has a level for each stride"
    torch.manual_seed(0)
    theirs,x = alive(timm.create_model(name,num_classes=0)).double(),torch.randn(1,3,97,130).double()
    want = theirs.forward_features(x).detach()
    for T in (32,16):
        m = create_unet_model(name, 3, (64,96), pretrained=False, output_stride=T).double().eval()
        weights = list(theirs.state_dict().values())[:len(m[0].state_dict())]
        m[0].load_state_dict(dict(zip(m[0].state_dict(), weights)))
        with torch.no_grad(): close(m[0](x)[...,::32//T,::32//T], want, 1e-9)
        assert get_output_stride(m)==T
        assert m(torch.randn(1,3,64,96).double()).shape==(1,3,64,96)

def test_levels_are_those_of_torchvisions_net():
    "A decoder of the same modules, for a ResNet that both have, with a stride and without"
    from torchvision.models import resnet18
    for kw in ({}, dict(output_stride=8)):
        a,b = [create_unet_model(o, 3, (64,64), pretrained=False, **kw) for o in ('resnet18',resnet18)]
        assert [str(o) for o in list(a.layers)[1:]]==[str(o) for o in list(b.layers)[1:]]

unet_kws = [dict(n_in=4), dict(n_in=1), dict(blur=True), dict(self_attention=True), dict(norm_type=NormType.Weight),
    dict(y_range=(0,1)), dict(cut=-1), dict(cut=lambda m: m[:-1]), dict(drop_path_rate=.1)]
@pytest.mark.parametrize('kw', unet_kws, ids=lambda o: '-'.join(o))
def test_options_of_a_unet_of_timm(kw):
    "`DynamicUnet`'s, fastai's and timm's"
    m = create_unet_model('test_resnet', 2, (64,64), pretrained=False, output_stride=16, **kw)
    m(torch.randn(2,kw.get('n_in',3),64,64)).mean().backward()
    assert get_output_stride(m)==16

@pytest.mark.parametrize('kw', [{}, dict(output_stride=16)], ids=['native','16'])
@pytest.mark.parametrize('n_in', [4, pytest.param(3,marks=pytest.mark.slow)])
def test_a_unet_has_timms_weights(path, tmp_path, kw, n_in):
    "Weights are timm's, also for other channels; the encoder is frozen, and the images are normalised as timm says, if they have three"
    torch.manual_seed(1)
    theirs = randomize(timm.create_model('resnet18d'))
    save_file(theirs.state_dict(), tmp_path/'w.safetensors')
    dls = seg_dls(path)
    if n_in==4: dls.add_tfms([FourBands()], 'after_batch')
    overlay = dict(file=str(tmp_path/'w.safetensors'))
    learn = unet_learner(dls, 'resnet18d', n_in=n_in, pretrained_cfg_overlay=overlay, **kw)
    ours = [*learn.model[0].state_dict().values()]
    assert all(a.equal(b) for a,b in list(zip(ours, theirs.state_dict().values()))[1:])
    assert sum(isinstance(o,Normalize) for o in dls.after_batch.fs)==(n_in==3)
    groups = learn.splitter(learn.model)
    assert [len(o) for o in groups]==[len([*learn.model[0].parameters()]), len([*learn.model[1:].parameters()])]
    convs = [o.weight for o in learn.model[0].modules() if isinstance(o,nn.Conv2d)]
    assert not any(o.requires_grad for o in convs)
    learn.unfreeze()
    assert all(o.requires_grad for o in convs)

@pytest.mark.parametrize('kw', [dict(output_stride=16), pytest.param({}, marks=pytest.mark.slow)], ids=['16','native'])
def test_a_unet_of_timm_trains(path, tmp_path, kw):
    "Fit, save, load; not normalised without weights"
    dls = seg_dls(path)
    learn = unet_learner(dls, 'test_resnet', pretrained=False, path=tmp_path, **kw)
    assert not any(isinstance(o,Normalize) for o in dls.after_batch.fs) and learn.arch=='test_resnet'
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        learn.save('x')
        again = unet_learner(dls, 'test_resnet', pretrained=False, path=tmp_path, **kw).load('x')
        with again.no_bar(): close(again.get_preds()[0], learn.get_preds()[0])

@pytest.mark.parametrize('name,kw,words', [('hrnet_w18_small',{},'hrnet_w18_small cannot be the encoder of a U-Net.*Take another'),
    ('vit_tiny_patch16_224',{},'does not run on images of 64x64'), ('resnet18d',dict(weights='x'),'in its name'), ('resnet18d',dict(output_stride=12),'can be one of')],
    ids=['hrnet','vit','weights','stride'])
def test_a_unet_of_timm_refuses_in_words(path, name, kw, words):
    "In words, and the data are as they were"
    dls = seg_dls(path)
    before = [*dls.after_batch.fs]
    with pytest.raises(ValueError, match=words): unet_learner(dls, name, pretrained=False, **kw)
    assert [*dls.after_batch.fs]==before

def test_maps_with_channels_last_are_refused():
    "A Swin runs in a row, but its maps are no levels of a U-Net"
    with pytest.raises(ValueError, match='cannot be the encoder of a U-Net'):
        create_unet_model('swin_tiny_patch4_window7_224', 2, (224,224), pretrained=False)
