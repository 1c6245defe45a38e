"`to_pixels` at any size, offset and precision; DeepLab's rates, logits, learner and files over many networks"
import warnings
import numpy as np, pytest, timm, torch, torchvision
from functools import partial
from hypothesis import given, settings, strategies as st
from fastai.vision.all import F, Normalize, create_body, foreground_acc, nn, xresnet18_deep
from fastai_dilation.all import create_deeplab_model, deeplab_learner, get_output_stride, output_stride_report
from fastai_dilation.all import pool_over, set_output_stride, to_pixels, vision_learner
from fastai_dilation.deeplab import check_rates
from seg_checks import says_the_same_compiled_and_exported
from safetensors.torch import save_file
from seg_data import class_dls, make_files, seg_dls
from util import alive, close, never_download, randomize, same, small, tensors

def rates_of(m): return [o.dilation[0] for o in m[1].modules() if isinstance(o,nn.Conv2d) and o.kernel_size==(3,3)]

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_to_pixels_drawn(data):
    "Value `i` is at `T*i+offset`, what lies between is linear, what lies outside is the border"
    ndim,T = data.draw(st.integers(1,3)),data.draw(st.sampled_from([1,2,3,4,8,32]))
    offset = data.draw(st.one_of(st.none(), st.floats(-8,40)))
    szs,sides = [data.draw(st.lists(st.integers(1,hi), min_size=ndim, max_size=ndim)) for hi in (6,70)]
    x = torch.randn(2, *szs, dtype=torch.float64)
    want = x.numpy()
    for ax,n in enumerate(sides, 1):
        at = (np.arange(n)-((T-1)/2 if offset is None else offset))/T
        want = np.apply_along_axis(lambda o: np.interp(at, np.arange(len(o)), o), ax, want)
    y = to_pixels(x, sides, T, offset)
    assert y.shape==(2,*sides) and np.allclose(y.numpy(), want, atol=1e-5*abs(want).max())   # coordinates are float32

@pytest.mark.parametrize('sides', [(64,96), (57,83), (1,130)])
def test_to_pixels_is_interpolate(sides):
    "Where an image has room for the whole map, values are those of `F.interpolate`"
    x = torch.randn(2, 3, 5, 9)
    for T in (8,16,32):
        y = F.interpolate(x, scale_factor=T, mode='bilinear')[...,:sides[0],:sides[1]]
        assert torch.allclose(to_pixels(x,sides,T)[...,:y.shape[2],:y.shape[3]], y, atol=1e-5)

@pytest.mark.parametrize('dtype,tol', [(torch.float16,2e-3), (torch.bfloat16,2e-2)], ids=str)
def test_to_pixels_half(dtype, tol):
    "Coordinates of a large image do not fit into half precision; they are float32"
    x = torch.randn(1, 2, 130, 3)
    y = to_pixels(x.to(dtype), (4100,60), 32)
    assert y.dtype==dtype
    close(y.float(), to_pixels(x, (4100,60), 32), tol)

def test_to_pixels_gradient():
    "By finite differences"
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: to_pixels(o, (17,20), 8, 5.5), x)

def test_to_pixels_compiled():
    "One graph for maps of all sizes"
    f = torch.compile(to_pixels, fullgraph=True, dynamic=True, backend='aot_eager')
    for szs in ((3,4),(5,2)):
        x = torch.randn(1, 2, *szs)
        close(f(x, (40,33), 8, 15.5), to_pixels(x, (40,33), 8, 15.5))

def slow(*args): return pytest.param(*args, marks=pytest.mark.slow)
archs = [small, 'test_efficientnet']
archs += [slow(o) for o in ('resnet18d',torchvision.models.resnet18,torchvision.models.convnext_tiny,torchvision.models.vgg11_bn)]

@pytest.mark.parametrize('arch', archs, ids=lambda o: getattr(o,'__name__',o))
def test_rates_follow_and_logits_stay(arch):
    "Rates follow; logits at native positions are the native ones, and all comes back bit for bit"
    kw = dict(cut=-2) if arch is torchvision.models.convnext_tiny else {}
    m = alive(create_deeplab_model(arch, 5, pretrained=False, output_stride=32, rates=(1,2), **kw)).double()
    x,ts = torch.randn(2,3,97,130).double(),tensors(m)
    logits = pool_over(m, 'grid')[:2]
    with torch.no_grad():
        native,whole = logits(x),m(x)
        assert whole.shape==(2,5,97,130)
        for T in (16,8):
            set_output_stride(m, T, warn=False)
            assert rates_of(m)==[32//T*r for r in (1,2)] and m[2].offset==15.5 and same(m, ts)
            close(logits(x)[...,::32//T,::32//T], native, 1e-9)
        assert set_output_stride(m, 32)(x).equal(whole)

def test_other_native_stride():
    "The same pixels on a native map of another stride, or a refusal"
    def fine(pretrained): return nn.Sequential(*create_body(small())[:-1], nn.AdaptiveAvgPool2d(1))
    m = create_deeplab_model(fine, 3, pretrained=False, output_stride=8)
    assert get_output_stride(m)==8 and m[2].native_stride==16 and rates_of(m)==[12,24,36]
    deep = partial(xresnet18_deep, widen=.25)
    with pytest.raises(ValueError, match='whole numbers'): create_deeplab_model(deep, 3, pretrained=False)
    assert rates_of(create_deeplab_model(deep, 3, pretrained=False, rates=(4,8)))==[8,16]

def warned(f, *args, **kwargs):
    "What `f` returns, and its warnings of the head's largest rate and of strides"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always', UserWarning)
        res = f(*args, **kwargs)
    return res,[str(o.message) for o in ws if str(o.message).startswith(('At output','The largest','`rates` are'))]

def test_deeplab_does_not_warn_of_its_own_mean():
    "Neither building nor a change of stride warns of the head's own mean, over the native grid or over all"
    m,ws = warned(create_deeplab_model, small, 3, pretrained=False)
    assert not ws
    for o in ('grid','all'): assert not warned(set_output_stride, pool_over(m,o), 8)[1]
    _,ws = warned(set_output_stride, pool_over(m,'grid'), 16)
    assert not ws
    plain,_ = warned(create_deeplab_model, small, 3, pretrained=False, rates=())
    assert not warned(set_output_stride, plain, 8)[1]

@pytest.fixture
def dls(tmp_path): return seg_dls(make_files(tmp_path))

def test_rates_that_fit(dls):
    "64 pixels are two positions of 32"
    _,ws = warned(deeplab_learner, dls, small, pretrained=False)
    assert len(ws)==1 and '`rates=(1,)` would fit' in ws[0]
    assert not warned(deeplab_learner, dls, small, pretrained=False, rates=(1,))[1]
    assert not warned(deeplab_learner, dls, small, pretrained=False, rates=())[1]

trained = [small, slow(torchvision.models.resnet18), slow('resnet18d')]
@pytest.mark.parametrize('arch', trained, ids=lambda o: getattr(o,'__name__',o))
def test_a_deeplab_learner_trains(dls, arch, tmp_path):
    "Groups as `vision_learner` has them; fit, a change of stride, validate, show, save, load"
    kw = dict(pretrained=False, rates=(1,), path=tmp_path)
    learn = deeplab_learner(dls, arch, output_stride=16, metrics=foreground_acc, **kw)
    groups,theirs = [l.splitter(l.model) for l in (learn, vision_learner(dls,arch,pretrained=False,n_out=2))]
    assert [len(g) for g in groups[:-1]]==[len(g) for g in theirs[:-1]]
    assert len(groups[-1])==len([*learn.model[1].parameters()])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        learn.set_output_stride(8)
        assert (learn.output_stride,get_output_stride(learn.model),rates_of(learn.model))==(8,8,[4])
        before = learn.validate()
        learn.fine_tune(1)
        learn.show_results(max_n=2)
        learn.save('x')
        want = learn.get_preds()[0]
        again = deeplab_learner(dls, arch, output_stride=16, **kw).load('x').set_output_stride(8)
        with again.no_bar(): close(again.get_preds()[0], want)
    assert np.isfinite(before[0]) and want.shape[1:]==(2,64,64)

def test_pretrained_freezes(dls, monkeypatch):
    "With weights the body is frozen, and the images are normalised as the weights were trained"
    never_download(monkeypatch)
    learn = deeplab_learner(dls, 'resnet18d', rates=(1,))
    assert any(isinstance(o,Normalize) for o in dls.after_batch.fs)
    frozen = [p for n,p in learn.model[0].named_parameters() if 'bn' not in n and '.1.' not in n and p.ndim>1]
    assert not any(p.requires_grad for p in frozen) and all(p.requires_grad for p in learn.model[1].parameters())

@pytest.mark.parametrize('sz', [(64,64), (97,75), (33,130)])
def test_batch_of_one(sz):
    "One image has no statistics of its mean; the other norms go on as they are"
    m = create_deeplab_model(small, 3, pretrained=False, rates=(1,)).train()
    norm = m[1][0].convs[-1][2]
    ts = tensors(norm)
    m(torch.randn(1,3,*sz)).mean().backward()
    assert same(norm, ts) and all(p.grad is not None for p in m.parameters())
    m(torch.randn(2,3,*sz))
    assert not same(norm, ts)

@pytest.mark.slow
def test_deeplab_compiled_exported_and_as_onnx(tmp_path):
    "In one graph, with free sides, and as ONNX"
    m = randomize(create_deeplab_model(small, 3, pretrained=False, output_stride=8, rates=(1,2)))
    says_the_same_compiled_and_exported(m, tmp_path)

def test_the_report_takes_a_deeplab_learner(dls):
    "The report takes it as any learner"
    learn = deeplab_learner(dls, small, pretrained=False, rates=(1,), output_stride=32, metrics=foreground_acc)
    pool_over(learn.model, 'grid')
    df = output_stride_report(learn, n=2)
    assert df.shape[0]==3 and df.grid_error.max()<1e-5

def test_rates_of_a_paper_are_warned_of(dls):
    "Those of 16 and 8, where they step over two thirds of an image; it is said what to write, and that fits"
    for rates,T,side in (((6,12,18),16,864), ([12,24,36],8,1728)):
        words, = warned(check_rates, rates, (side-1,2048), 32)[1]
        assert f'{tuple(rates)} are the paper' in words and f'at {T}, which are `rates=(3, 6, 9)` here' in words and 'would fit' not in words
        assert not warned(check_rates, rates, (side,2048), 32)[1] and not warned(check_rates, (3,6,9), (513,513), 32)[1]
    for rates in ((6,12,17), (4,8,12), (18,)): assert not warned(check_rates, rates, (600,600), 32)[1] # not for others
    words, = warned(deeplab_learner, dls, small, pretrained=False, rates=(6,12,18))[1]
    assert words.startswith('`rates` are in steps of 32 pixels') and words.endswith('For this image of 64x64, `rates=(1,)` would fit')

def test_timms_keywords(dls, tmp_path):
    "Weights from a file, in both learners' heads, and in the model alone; the Learner's keywords go to it"
    theirs = randomize(timm.create_model('resnet18d'))
    save_file(theirs.state_dict(), tmp_path/'w.safetensors')
    kw = dict(pretrained_cfg_overlay=dict(file=str(tmp_path/'w.safetensors')), rates=(1,))
    learn = deeplab_learner(dls, 'resnet18d', path=tmp_path, wd=.1, skip=4, **kw)
    assert (learn.path,learn.wd)==(tmp_path,.1)
    for m in (learn.model, create_deeplab_model('resnet18d', 2, **kw)):
        assert all(v.equal(theirs.state_dict()[k]) for k,v in m[0].model.state_dict().items())
    with pytest.raises(TypeError, match='ouput_stride.*are not known: did you mean output_stride'): deeplab_learner(dls, small, pretrained=False, ouput_stride=8)

@pytest.mark.parametrize('kw,words', [({},'have to be masks.*not a TensorCategory.*`MaskBlock`.*take `vision_learner`$'),
    (dict(n_in=4),'images have 3 channels.*made for 4: pass `n_in=3`$')], ids=['no_masks','channels'])
def test_other_data_are_refused(tmp_path, kw, words):
    "Before any training, and the data are as they were"
    dls = class_dls(make_files(tmp_path))
    before = [*dls.after_batch.fs]
    with pytest.raises(ValueError, match=words): deeplab_learner(dls, small, pretrained=False, rates=(1,), **kw)
    assert [*dls.after_batch.fs]==before

def uncut(pretrained): return nn.Sequential(nn.Conv2d(3,8,3,2))
refused = [(dict(rates=(0,1)),'whole numbers from 1'), (dict(rates=(1.5,)),'whole numbers from 1'),
    (dict(output_stride=12),'can be one of'),
    (dict(arch=uncut),'say where to cut'), (dict(arch='resnet18d',weights='x'),'in its name'), (dict(n_out=0),'n_out')]
@pytest.mark.parametrize('kw,words', refused, ids=lambda o: o if isinstance(o,str) else None)
def test_deeplab_refuses_in_words(dls, kw, words):
    "In words, and the data are as they were"
    before = [*dls.after_batch.fs]
    with pytest.raises(ValueError, match=words): deeplab_learner(dls, **{'arch':small, 'pretrained':False, **kw})
    assert [*dls.after_batch.fs]==before
