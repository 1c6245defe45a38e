"Weights: timm's and fastai's names, files that do not fit or cannot be read, tags without a network, learners"
import os, pickle, sys
from pathlib import Path
import pytest, timm, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file
from huggingface_hub import constants as hub_constants
from fastai.vision.all import Normalize, create_body
from fastai.vision.models import xresnet
from fastai_dilation.all import cnn_learner, create_vision_model, load_weights, set_output_stride
from fastai_dilation.all import unet_learner, vision_learner
from seg_data import class_dls, make_files, seg_dls
from util import close, names, randomize, same, slow_if, tensors

pairs = {f'xresnet{n}':f'resnet{n}d' for n in (18,34,50,101,152)} | {'xresnext50':'resnext50d_32x4d'}
published = {**{k:f'{v}.ra2_in1k' for k,v in pairs.items()}, 'xresnext50':'resnext50d_32x4d.bt_in1k'}

def twin(name): return randomize(timm.create_model(name))
def net(name, **kwargs): return getattr(xresnet,name)(**kwargs).eval()
def body(m): return create_body(m, cut=-4).eval()
def old_names(sd):
    "The names that fastai used in 2019, as they are in xrn50_940.pth"
    def old(k):
        if k.startswith('11.'): return k.replace('11.','10.')
        return k.replace('convpath','convs').replace('idpath.0.','idconv.').replace('idpath.1.','idconv.')
    return {old(k):v for k,v in sd.items()}

@pytest.fixture(scope='module')
def t18(tmp_path_factory):
    "A random `resnet18d`, and files of it"
    torch.manual_seed(1)
    path,t = tmp_path_factory.mktemp('weights'),twin('resnet18d')
    torch.save(t.state_dict(), path/'t.pth')
    save_file(t.state_dict(), path/'t.safetensors')
    return path,t

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub's cache, offline: `put(tag)` lays random weights where timm's or torch's own code looks for them"
    vals = dict(HF_HUB_CACHE=str(tmp_path/'hf'), HF_HUB_OFFLINE=True)
    for k,v in vals.items(): monkeypatch.setattr(hub_constants, k, v)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    def put(tag):
        torch.manual_seed(2)
        if tag.endswith('.pth'):
            m = randomize(net('xresnet50'))
            (tmp_path/'hub'/'checkpoints').mkdir(parents=True)
            torch.save({'model':old_names(m.state_dict()), 'opt':None}, tmp_path/'hub'/'checkpoints'/tag)
            return m
        m,d = twin(tag.split('.')[0]),tmp_path/'hf'/f'models--timm--{tag}'
        for o in (d/'refs',d/'snapshots'/'1'): o.mkdir(parents=True)
        (d/'refs'/'main').write_text('1')
        save_file(m.state_dict(), d/'snapshots'/'1'/'model.safetensors')
        return m
    return put

@pytest.mark.parametrize('name', slow_if(pairs,'34','101','152','50'))
def test_pairs(tmp_path, name):
    "Bitwise timm's network at 32; on the native grid at 8, where timm's own rule is not"
    t,t8 = twin(pairs[name]),timm.create_model(pairs[name], output_stride=8).eval()
    t8.load_state_dict(t.state_dict())
    torch.save({'state_dict':t.state_dict()}, tmp_path/'t.pth')
    save_file(t.state_dict(), tmp_path/'t.safetensors')
    m,m2 = (net(name, weights=tmp_path/o) for o in ('t.pth','t.safetensors'))
    assert same(m, tensors(m2))
    with torch.no_grad():
        for sz in ((64,96),(97,130)):
            x = torch.randn(1,3,*sz)
            assert m(x).equal(t(x)) and m2(x).equal(t(x))
            native = t.forward_features(x)
            err = close(body(set_output_stride(m,8))(x)[...,::4,::4], native)
            theirs = (t8.forward_features(x)[...,::4,::4]-native).abs().max()/native.abs().max()
            print(f'{name} {sz}: ours {err:.1e}, timm {theirs:.1e}')
            assert theirs>.01
            set_output_stride(m,32)

@pytest.mark.parametrize('words', slow_if(['module.', '_orig_mod.', 'model.', 'encoder.', 'backbone.', 'module.model.encoder.'],'back','_orig','el.enc'))
def test_wrapped_files(t18, tmp_path, capsys, words):
    "Words that wrappers put in front of names are taken off, and said; what has none, as a decoder, is left out"
    path,t = t18
    sd = {words+k:v for k,v in t.state_dict().items()}
    torch.save({'state_dict':{**sd, 'decoder.weight':torch.ones(3)}}, tmp_path/'w.ckpt')
    m = net('xresnet18', weights=tmp_path/'w.ckpt')
    assert same(m, tensors(net('xresnet18', weights=path/'t.pth')))
    assert f'took {words!r} off the names, and left out 1 without it' in capsys.readouterr().out

@pytest.mark.parametrize('T', [32,pytest.param(8,marks=pytest.mark.slow)])
def test_fastai_files(tmp_path, T):
    "fastai's names of today and of 2019, from a network or a learner, with or without an optimizer"
    dls = class_dls(make_files(tmp_path))
    learn = vision_learner(dls, xresnet.xresnet18, pretrained=False, path=tmp_path)
    randomize(learn.model)
    files = [learn.save('a'), learn.save('b', with_opt=False)]
    files += [tmp_path/o for o in ('c.pth','d.safetensors','e.pth')]
    torch.save(learn.model[0].state_dict(), files[2])
    save_file(learn.model[0].state_dict(), files[3])
    torch.save({'model':old_names(learn.model[0].state_dict()), 'opt':None}, files[4])
    for f in files:
        m = net('xresnet18', weights=f, n_out=7, output_stride=T)
        assert same(body(m), tensors(learn.model[0])), f
        assert m(torch.randn(1,3,64,64)).shape==(1,7)

def test_head(t18):
    "A head of the same size is taken, another one stays"
    path,t = t18
    assert net('xresnet18', weights=path/'t.pth')[11].weight.equal(t.fc.weight)
    assert net('xresnet18', weights=str(path/'t.pth'), n_out=10)[11].weight.shape==(10,512)

def bad(o, f):
    "Put `o` into the file `f`"
    torch.save(o, f)
    return f

class Evil:
    def __reduce__(self): return os.mkdir, ('evil',)

def test_unreadable(t18, tmp_path, monkeypatch):
    "Truncated, corrupted, with code, not weights, not there: an error with the file's name, and the model as it was"
    path,t = t18
    monkeypatch.chdir(tmp_path)
    for nm in ('t.pth','t.safetensors'):
        whole = (path/nm).read_bytes()
        (tmp_path/f'half_{nm}').write_bytes(whole[:len(whole)//2])
        (tmp_path/f'junk_{nm}').write_bytes(b'<html>not found</html>')
        (tmp_path/f'empty_{nm}').write_bytes(b'')
    bad({'a':Evil()}, tmp_path/'evil.pth')
    (tmp_path/'evil.bin').write_bytes(pickle.dumps({'a':Evil()}))
    for o,f in (([1,2],'list.pth'), ({'a':1},'int.pth'), ({'model':{'a':'b'}},'str.pth')): bad(o, tmp_path/f)
    m = net('xresnet18')
    ts = tensors(m)
    for f in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f.name): load_weights(m, f)
    assert not (tmp_path/'evil').exists()
    for f in ('gone.pth', Path('gone')):
        with pytest.raises(FileNotFoundError, match='gone'): load_weights(m, f)
    assert same(m, ts)

n_cuts,allowed = int(os.environ.get('MAX_EXAMPLES',10)),[HealthCheck.function_scoped_fixture]
@settings(max_examples=n_cuts, deadline=None, suppress_health_check=allowed)
@given(st.data())
def test_cut_anywhere(t18, data):
    "However much of a checkpoint is there, less than all of it is refused"
    path,nm = t18[0],data.draw(st.sampled_from(['t.pth','t.safetensors']))
    whole,m = (path/nm).read_bytes(),net('xresnet18')
    ts,f = tensors(m),path/f'cut_{nm}'
    f.write_bytes(whole[:data.draw(st.integers(0,len(whole)-1))])
    with pytest.raises(ValueError, match=f.name): load_weights(m, f)
    assert same(m, ts)

def test_misfits(t18, tmp_path):
    "Wrong names or shapes are an error that names the first few; nothing has been loaded"
    path,t = t18
    sd = t.state_dict()
    m = net('xresnet18')
    ts = tensors(m)
    k = 'layer2.0.downsample.1.weight'
    cases = {'`5.0.idpath.1.0.weight` is missing': {o:v for o,v in sd.items() if o!=k},
        r'`5.0.idpath.1.0.weight` is \(128, 64, 3, 3\), not \(128, 64, 1, 1\)': {**sd, k:torch.zeros(128,64,3,3)},
        '`foo` is left over': {**sd, 'foo':torch.zeros(1)}, 'is missing': {f'network.{o}':v for o,v in sd.items()}}
    cases['in 122 of 132 tensors|is missing'] = torch.nn.Linear(3,3).state_dict()
    for msg,o in cases.items():
        with pytest.raises(ValueError, match=msg): load_weights(m, bad(o, tmp_path/'o.pth'))
    for nm in ('xresnet34','xresnet50','xresnext50','xse_resnet18','xresnet18_deep'):
        with pytest.raises(ValueError, match='do not fit'): net(nm, weights=path/'t.pth')
    for kw in (dict(sa=True), dict(widen=.5), dict(c_in=1)):
        with pytest.raises(ValueError, match='do not fit'): net('xresnet18', weights=path/'t.pth', **kw)
    with pytest.raises(TypeError, match='not for a ResNet'): load_weights(t, path/'t.pth')
    assert same(m, ts)

def test_without_head(t18, tmp_path):
    "A file without a head fills the body"
    path,t = t18
    m = net('xresnet18', weights=bad({k:v for k,v in t.state_dict().items() if 'fc' not in k}, tmp_path/'o.pth'))
    assert m[4][0].convpath[0][0].weight.equal(t.layer1[0].conv1.weight)

@pytest.mark.parametrize('name', slow_if(pairs,'34','101','152','50'))
def test_published_weights(hub, name):
    "`pretrained=True`, by timm's and torch's own loading code"
    m = hub('xrn50_940.pth' if name=='xresnet50' else published[name])
    x = torch.randn(1,3,64,96)
    got = create_vision_model(getattr(xresnet,name), 5, output_stride=16).eval()
    want = body(m) if name=='xresnet50' else m.forward_features
    with torch.no_grad(): close(got[0](x)[...,::2,::2], want(x))
    if name!='xresnext50':
        with torch.no_grad(): assert net(name, pretrained=True)(x).equal(m(x))

@pytest.mark.parametrize('name', slow_if([o for o in names if o not in pairs],'101','152','deeper','xse'))
def test_unpublished(name):
    "No twin: said so, by learners and constructors"
    arch,words = getattr(xresnet,name),f'published for {name}. .*pretrained=False.*path of a file'
    with pytest.raises(ValueError, match=words): create_vision_model(arch, 5)
    if name.startswith('xresnet') and name!='xresnet18_deeper':
        with pytest.raises(ValueError, match=f'published for {name}'): net(name, pretrained=True)
    with torch.device('meta'): create_vision_model(arch, 5, pretrained=False)

@pytest.mark.parametrize('name', slow_if(['xse_resnet18','xresnext18','xresnet18_deep','xse_resnext18_deeper'],'resnext'))
def test_own_weights(tmp_path, name):
    "Every constructor takes a file of its own"
    m = randomize(net(name))
    torch.save(m.state_dict(), tmp_path/'m.pth')
    assert same(net(name, weights=tmp_path/'m.pth'), tensors(m))
    learn = vision_learner(class_dls(make_files(tmp_path)), getattr(xresnet,name), weights=tmp_path/'m.pth')
    assert same(learn.model[0], tensors(body(m)))
    assert [type(o) for o in learn.dls.after_batch.fs].count(Normalize)==1

def test_siblings(hub):
    "A deep net takes the stages that it shares with its sibling, if it is given its name"
    t = hub('resnet18d.ra2_in1k')
    x = torch.randn(1,3,96,64)
    m = net('xresnet18_deep', weights='xresnet18')
    with torch.no_grad(): assert create_body(m, cut=8)(x).equal(t.forward_features(x))
    torch.manual_seed(0)
    m = net('xresnet18_deeper', weights='xresnet18')
    torch.manual_seed(0)
    fresh = net('xresnet18_deeper')
    assert m[5][1].convpath[1][0].weight.equal(t.layer2[1].conv2.weight)
    assert all(a.equal(b) for a,b in zip(m[6].parameters(),fresh[6].parameters()))
    for nm,w in (('xresnet34','xresnet18'),('xresnet50_deep','xresnet18'),('xresnet18_deep','resnet18d.ra2_in1k')):
        with pytest.raises(ValueError, match='do not fit|single stage'): net(nm, weights=w)

def unreachable(*args, **kwargs):
    "What a download does without a network"
    raise OSError('Name or service not known')

def test_tags(hub, monkeypatch):
    "A tag that is wrong, that does not fit, that cannot be fetched; and no timm at all"
    refused = ('resnet18d.foo','it has .*ra2_in1k'), ('foo','has no weights .foo.'), ('resnet50d.ra2_in1k','do not fit')
    for tag,msg in refused:
        with pytest.raises(ValueError, match=msg): net('xresnet18', weights=tag)
    for nm in ('xresnet18','xresnet50'):
        monkeypatch.setattr(sys.modules[load_weights.__module__], 'load_state_dict_from_url', unreachable)
        with pytest.raises(OSError, match='Cannot fetch .*weights=PATH'): net(nm, pretrained=True)
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match='pip install timm'): net('xresnet18', weights='resnet18d.ra2_in1k')

@pytest.mark.parametrize('f', [unet_learner, *[pytest.param(o,marks=pytest.mark.slow) for o in (vision_learner,cnn_learner)]])
def test_tags_in_learners(hub, tmp_path, f):
    "Tags in learners: the body, frozen, normalised with the tag's own statistics"
    path,dls_of = make_files(tmp_path),seg_dls if f is unet_learner else class_dls
    tags = [('resnet18d.ra4_e3600_r224_in1k',.5)]
    if f is vision_learner: tags.append(('resnet18d.ra2_in1k',.485))
    for tag,mean in tags:
        t = hub(tag)
        learn = f(dls_of(path), xresnet.xresnet18, weights=tag, output_stride=8)
        norm, = (o for o in learn.dls.after_batch.fs if isinstance(o,Normalize))
        assert abs(norm.mean.flatten()[0].item()-mean)<1e-6
        x = torch.randn(1,3,64,64)
        with torch.no_grad(): close(learn.model[0].eval()(x)[...,::4,::4], t.forward_features(x))
        assert not learn.model[0][0][0].weight.requires_grad
        if f is not vision_learner: continue
        learn = f(dls_of(path), xresnet.xresnet18, weights=tag, normalize=False)
        assert not any(isinstance(o,Normalize) for o in learn.dls.after_batch.fs)

@pytest.mark.parametrize('n_in', [1,2,4])
def test_n_in(t18, n_in):
    "Images with other numbers of channels: fastai fits the first conv's weights to them"
    path,t = t18
    w = create_vision_model(xresnet.xresnet18, 3, weights=path/'t.pth', n_in=n_in)[0][0][0].weight
    theirs = t.conv1[0].weight
    want = theirs.sum() if n_in!=2 else 1.5*theirs[:,:2].sum()
    assert w.shape[1]==n_in and torch.allclose(w.sum(), want, atol=1e-3)
