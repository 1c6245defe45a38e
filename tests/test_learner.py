"Learners: pretrained weights, save and load, export to another process, refusals"
import inspect, os, subprocess, sys
from itertools import product
import pytest, torch
from functools import partial
from torch import nn
from torchvision.models import resnet18
from fastai.vision.all import Normalize, NormType, accuracy, create_body, get_image_files, load_learner, model_meta
from fastai.vision.all import xresnet18_deep, xresnet50
from fastai.vision.models.xresnet import xse_resnet18
from fastai_dilation.all import cnn_learner, deeplab_learner, unet_learner, vision_learner
from fastai_dilation.all import create_unet_model, create_vision_model, get_output_stride
from seg_data import class_dls, make_files, seg_dls
from util import alive, close, program_file, randomize, same, small, tensors

@pytest.fixture(scope='module')
def path(tmp_path_factory): return make_files(tmp_path_factory.mktemp('data'))
@pytest.fixture(scope='module')
def cdls(path): return class_dls(path)
@pytest.fixture(scope='module')
def sdls(path): return seg_dls(path)

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub folder in which the weights that fastai asks for lie already, so that its own loading code finds them"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    d = tmp_path/'hub'/'checkpoints'
    d.mkdir(parents=True)
    def put(arch):
        "Random weights of `arch`; the network that has them"
        torch.manual_seed(3)
        m = randomize(arch())
        if arch is resnet18: torch.save(m.state_dict(), d/'resnet18-f37072fd.pth')
        else: torch.save({'model':m.state_dict()}, d/'xrn50_940.pth')
        return m
    return put

def body_of(learn): return learn.model[0].eval()

weighted = [(vision_learner,resnet18)]
weighted += [pytest.param(*o, marks=pytest.mark.slow) for o in ((cnn_learner,resnet18),(unet_learner,resnet18),(vision_learner,xresnet50))]
@pytest.mark.parametrize('f,arch', weighted)
def test_weights_are_loaded_first_and_dilated_after(hub, path, f, arch):
    "Pretrained weights are loaded first and dilated after; cut, split and normalisation are the arch's"
    dls,theirs = seg_dls(path) if f is unet_learner else class_dls(path),hub(arch)
    native,learn = f(dls, arch),f(dls, arch, output_stride=8)
    assert learn.output_stride==8 and get_output_stride(body_of(learn))==8
    x = torch.randn(1,3,96,80)
    with torch.no_grad(): close(body_of(learn)(x)[...,::4,::4], body_of(native)(x))
    with torch.no_grad(): close(body_of(native)(x), create_body(theirs, cut=model_meta[arch]['cut'])(x))
    assert list(body_of(learn).state_dict())==list(body_of(native).state_dict())
    assert learn.splitter(learn.model).map(len)[:2]==native.splitter(native.model).map(len)[:2]
    assert [o.__class__ for o in dls.after_batch.fs].count(Normalize)==1

def cut(m): return nn.Sequential(*list(m.children())[:-4])
head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128,2))
vision_kws = [dict(n_in=1), dict(n_in=4), dict(cut=-4), dict(cut=cut), dict(ps=.1), dict(custom_head=head)]
@pytest.mark.parametrize('kw', vision_kws, ids=lambda o: '-'.join(o))
def test_vision_model_options(kw):
    "Same random numbers, same parameters, with every option"
    torch.manual_seed(0)
    native = create_vision_model(small, 2, pretrained=False, **kw)
    torch.manual_seed(0)
    m = create_vision_model(small, 2, pretrained=False, output_stride=8, **kw)
    if 'custom_head' not in kw: assert same(m, tensors(native))
    x = torch.randn(2, kw.get('n_in',3), 64, 64)
    assert m[0](x).shape[-1]==8 and m(x).shape==(2,2)

small_deep = partial(xresnet18_deep, widen=.25)
unets = [(small,T) for T in (32,16,8,4)] + [(small_deep,T) for T in (32,8)]
large = [*product((xresnet18_deep,resnet18),(16,4)), (small,2), (small,1), (small_deep,2)]
unets += [pytest.param(*o,marks=pytest.mark.slow) for o in large]
@pytest.mark.parametrize('arch,T', unets)
def test_unet_strides(arch, T):
    "A U-Net at each stride makes masks of the image's size, and trains"
    sz = (64,96) if T>4 else (32,48)
    m = create_unet_model(arch, 3, sz, pretrained=False, output_stride=T)
    y = m(torch.randn(2,3,*sz))
    assert y.shape==(2,3,*sz) and get_output_stride(m)==T
    y.mean().backward()

unet_kws = [dict(self_attention=True), dict(blur=True), dict(last_cross=False), dict(n_in=1), dict(y_range=(0,1))]
unet_kws += [dict(norm_type=NormType.Weight)]
@pytest.mark.parametrize('kw', unet_kws, ids=lambda o: '-'.join(o))
def test_unet_options(kw):
    "With each option of fastai's U-Net"
    m = create_unet_model(small, 2, (64,64), pretrained=False, output_stride=8, **kw)
    assert m(torch.randn(2,kw.get('n_in',3),64,64)).shape==(2,2,64,64)

def test_unet_refuses(sdls):
    "A U-Net cannot change its stride, and is as it was"
    learn = unet_learner(sdls, small, pretrained=False, output_stride=8)
    ts = tensors(learn.model)
    with pytest.raises(ValueError, match='Build the net anew'): learn.set_output_stride(16)
    assert learn.output_stride==8 and get_output_stride(learn.model)==8 and same(learn.model, ts)

@pytest.mark.parametrize('f', [vision_learner, unet_learner])
def test_bad_stride(path, f):
    "A stride that cannot be had is refused with those that can"
    dls = seg_dls(path) if f is unet_learner else class_dls(path)
    for T,err in ((12,ValueError),('8',TypeError),(True,TypeError)):
        with pytest.raises(err, match=r'\[1, 2, 4, 8, 16, 32\]'): f(dls, small, pretrained=False, output_stride=T)

def test_signatures():
    "All learners and model functions show the argument, beside fastai's own"
    for f in (vision_learner, cnn_learner, unet_learner, create_vision_model, create_unet_model):
        ps = inspect.signature(f).parameters
        assert ps['output_stride'].default is None and len(ps)>2
    assert {'n_in','concat_pool','y_range'}<=inspect.signature(vision_learner).parameters.keys()

def test_save_load(path, cdls):
    "A file that was saved at one output stride loads at another, and training goes on"
    kw = dict(pretrained=False, path=path, metrics=accuracy)
    a,b = [vision_learner(cdls, small, output_stride=o, **kw) for o in (32,8)]
    with a.no_bar(), a.no_logging(): a.fit(1)
    a.save('a')
    b.load('a')
    assert same(b.model, tensors(a.model))
    with b.no_bar(), b.no_logging():
        b.fit(1)
        b.save('b')
        a.load('b')
        assert a.set_output_stride(8).validate()==b.validate()

def test_summary_and_results(cdls, sdls):
    "fastai's summary and pictures work"
    for f,dls in ((vision_learner,cdls), (unet_learner,sdls)):
        learn = f(dls, small, pretrained=False, output_stride=8)
        assert '8 x 8' in learn.summary()
        with learn.no_bar(): learn.show_results(max_n=2)

def answers(learn, path):
    "What `learn` says of the files of `make_files`"
    with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(get_image_files(path/'images').sorted()))[0]

def test_an_exported_learner_predicts_the_same(path, cdls, tmp_path):
    "It has its output stride too"
    learn = vision_learner(cdls, small, pretrained=False, output_stride=8, path=tmp_path)
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    assert loaded.output_stride==8
    assert answers(loaded, path).equal(answers(learn, path))

exported = dict(vision=(vision_learner,small,{}), phased=(vision_learner,xse_resnet18,{}))
exported |= dict(timm=(vision_learner,'test_efficientnet',{}))
exported |= dict(unet=(unet_learner,small,{}), unet_of_timm=(unet_learner,'resnet18d',{}))
exported |= {f'deeplab_{o}':(deeplab_learner,small,dict(rates=(1,),skip=o)) for o in (None,4)}

@pytest.mark.slow
def test_exported_learners_predict_the_same_in_a_new_process(path, cdls, sdls):
    "One that never imports fastai_dilation by hand: of all kinds, with modules by phases and without"
    here = {}
    for name,(f,arch,kw) in exported.items():
        learn = f(cdls if f is vision_learner else sdls, arch, pretrained=False, output_stride=8, path=path, **kw)
        alive(learn.model)
        learn.export(f'{name}.pkl')
        here[name] = answers(learn, path)
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':os.pathsep.join(sys.path)}
    args = [sys.executable,'-W','ignore',program_file('load_learners'),path,*exported]
    res = subprocess.run(args, env=env, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    for name in exported:
        there,T = torch.load(path/f'{name}.there.pt')
        assert T==8
        close(there, here[name])

def test_fine_tune(hub, cdls):
    "Freezing and training work as ever"
    hub(resnet18)
    learn = vision_learner(cdls, resnet18, output_stride=16, metrics=accuracy)
    assert learn.model[0][0].weight.requires_grad is False
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    assert learn.model[0][0].weight.requires_grad
