"Copies and files, compilers, exporters, precisions, layouts, gradients, callbacks, two processes, a thousand changes"
import copy, gc, os, pickle, re, shutil, signal, subprocess, sys
from pathlib import Path
import onnxruntime, pytest, torch, torchvision.models as tvm
from torch import nn
from safetensors.torch import load_model, save_model
from fastai.vision.all import Callback, GradientAccumulation, MixUp, MixedPrecision
from fastai.vision.all import SaveModelCallback, ToTensorBase, accuracy, create_body
from fastai.vision.models import xresnet
from fastai_dilation.all import create_unet_model, get_output_stride, load_weights, set_output_stride
from fastai_dilation.all import unet_learner, vision_learner
from seg_data import class_dls, make_files, seg_dls
from util import close, program_file, randomize, same, slow_if, small, small50, tensors

archs = dict(small=small, small50=small50, resnet18=tvm.resnet18)
def classifier(name, T=8): return randomize(set_output_stride(archs[name](), T))
def unet(name, T=8): return randomize(create_unet_model(archs[name], 3, (64,64), pretrained=False, output_stride=T))

@pytest.fixture(scope='module')
def path(tmp_path_factory): return make_files(tmp_path_factory.mktemp('data'))

def label(o): return getattr(o,'__name__',o)
all_kinds = [(classifier,'small50'), (unet,'small')]
large = (classifier,'small'),(classifier,'resnet18'),(unet,'resnet18'),(unet,'small50')
all_kinds += [pytest.param(*o, marks=pytest.mark.slow) for o in large]
kinds = pytest.mark.parametrize('f,name', all_kinds, ids=label)

@kinds
def test_copies_and_files(tmp_path, f, name):
    "deepcopy, pickle, torch.save, safetensors and jit.trace say the same, bit for bit"
    m,x = f(name),torch.randn(1,3,64,64)
    torch.save(m, tmp_path/'m.pt')
    save_model(m, tmp_path/'m.safetensors')
    fresh = f(name)
    load_model(fresh, tmp_path/'m.safetensors')
    with torch.no_grad():
        want = m(x)
        loaded = torch.load(tmp_path/'m.pt', weights_only=False)
        for o in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), loaded, fresh): assert o(x).equal(want)
        close(torch.jit.trace(m, x)(x), want)
    assert get_output_stride(pickle.loads(pickle.dumps(m)))==8

@kinds
def test_bfloat16(f, name):
    "Autocast keeps its type, and stays as near to float32 as the native net does"
    def off(T):
        torch.manual_seed(0)
        m,x = f(name,T),torch.randn(2,3,97,65)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): y = m(x)
        assert y.dtype==torch.bfloat16
        with torch.no_grad(): want = m(x)
        return ((y-want).abs().max()/want.abs().max()).item()
    # the U-Nets of two strides have decoders of their own
    assert off(8)<max(.05 if f is classifier else .1, 3*off(32))

@kinds
def test_channels_last(f, name):
    "No layer turns a channels_last map into another layout"
    m,bad = f(name).to(memory_format=torch.channels_last),[]
    def look(n, o, x, y):
        is_real_map = isinstance(y,torch.Tensor) and y.ndim==4 and min(y.shape[1:])>1
        if is_real_map and not y.is_contiguous(memory_format=torch.channels_last): bad.append(n)
    for n,o in m.named_modules(): o.register_forward_hook(lambda o,x,y,n=n: look(n,o,x,y))
    x = torch.randn(2,3,64,64)
    with torch.no_grad(): y = m(x.to(memory_format=torch.channels_last))
    theirs = [n for n in bad if isinstance(m.get_submodule(n), (nn.PixelShuffle,nn.ReplicationPad2d)) or 'layers.' in n]
    assert [n for n in bad if n not in theirs]==[]
    with torch.no_grad(): close(y, m.to(memory_format=torch.contiguous_format)(x), 1e-4)

@pytest.mark.parametrize('name', slow_if(archs,'resnet18'))
def test_gradients(name):
    "A loss on the native grid has the native gradients, in every weight and in the image"
    m = create_body(randomize(archs[name]()).double()).eval()
    def grads(T):
        x = torch.linspace(-1, 1, 3*65*97).sin().view(1,3,65,97).double().requires_grad_()
        m.zero_grad()
        set_output_stride(m,T)(x)[...,::32//T,::32//T].square().mean().backward()
        return [x.grad,*[p.grad.clone() for p in m.parameters()]]
    native = grads(32)
    for T in (16,8):
        for a,b in zip(grads(T), native): close(a, b, 1e-9)

def test_callbacks(path):
    "MixUp, gradient accumulation, SaveModelCallback, lr_find, fine_tune, and training in bfloat16's autocast"
    class Autocast(Callback):
        def before_batch(self): (ctx := torch.autocast('cpu',torch.bfloat16)).__enter__(), setattr(self,'ctx',ctx)
        def after_loss(self): self.ctx.__exit__(None,None,None)
    kw = dict(pretrained=False, output_stride=8, metrics=accuracy, path=path)
    learn = vision_learner(class_dls(path), small, **kw)
    native = vision_learner(class_dls(path), small, pretrained=False)
    with learn.no_bar(), learn.no_logging():
        saver = SaveModelCallback(fname='best')
        for cb in (MixUp(), GradientAccumulation(8), saver, Autocast(), MixedPrecision('bf16')): learn.fit(1, cbs=[cb])
        ts = tensors(learn.model)
        learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
        assert same(learn.model, ts)
        learn.fine_tune(1)
    assert (path/'models'/'best.pth').exists() and get_output_stride(learn.model)==8
    for o in (learn,native): o.freeze()
    def kinds_of(ps): return [(p.shape,p.requires_grad) for p in ps]
    for a,b in zip(learn.opt.param_lists, native.opt.param_lists): assert kinds_of(a)==kinds_of(b)
    assert all(p.isfinite().all() for p in learn.model.parameters())

@pytest.mark.parametrize('f', [vision_learner,unet_learner])
def test_interrupted_fit(path, f):
    "After an interruption in the middle of `fit` the learner trains and predicts"
    class Boom(Callback):
        def after_backward(self): raise KeyboardInterrupt
    dls = seg_dls(path) if f is unet_learner else class_dls(path)
    learn = f(dls, small, pretrained=False, output_stride=8)
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Boom())
        learn.remove_cbs([o for o in learn.cbs if isinstance(o,Boom)])
        learn.fit(1)
        assert learn.get_preds()[0].isfinite().all()

def child(*args, **env):
    "Run Python in a new process, with one thread"
    paths = os.pathsep.join(map(str,sys.path))
    env = {**os.environ, 'PYTHONPATH':paths, 'OMP_NUM_THREADS':'1', 'PYTHONWARNINGS':'ignore', **env}
    return subprocess.run([sys.executable,*map(str,args)], env=env, capture_output=True, text=True, timeout=300)

@pytest.mark.slow
@pytest.mark.parametrize('how', ['full','killed'])
def test_half_a_file(tmp_path, how):
    "No room for a whole checkpoint, or a process killed while it writes: half of one is not taken for a whole"
    import ddp
    res = child(program_file('save_half'), tmp_path, how)
    half,whole = [tmp_path/'models'/f'{o}.pth' for o in ('half','whole')]
    if how=='full': assert res.returncode==1 and re.search('write|writing|large', res.stderr), res.stderr[-3000:]
    else: assert res.returncode==-signal.SIGXFSZ, res.stderr[-3000:]
    assert 0<half.stat().st_size<whole.stat().st_size
    learn = ddp.learner(4, range(16))
    learn.path,ts = tmp_path,tensors(learn.model)
    with pytest.raises(RuntimeError): learn.load('half')
    with pytest.raises(ValueError, match='half.pth'): load_weights(learn.model, half)
    assert same(learn.model, ts)
    learn.load('whole')
    assert get_output_stride(learn.model)==8

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='a device of Linux')
def test_full_disk(path):
    "A device without room while a learner is saved: an error, and the learner as it was"
    learn = vision_learner(class_dls(path), small, pretrained=False, output_stride=8, path=path)
    ts,f = tensors(learn.model),path/'models'/'full.pth'
    f.parent.mkdir(exist_ok=True)
    f.symlink_to('/dev/full')
    with pytest.raises((OSError,RuntimeError), match='writ|space|unexpected pos'): learn.save('full')
    assert same(learn.model, ts) and get_output_stride(learn.model)==8

@pytest.mark.slow
def test_two_hundred_changes():
    "No growth in memory, in the module tree or in a pickle"
    m = create_body(xresnet.XResNet(xresnet.ResBlock, 1, [1,1]), cut=-4)
    def size(): return len(pickle.dumps(m)),len(list(m.modules())),repr(m)
    def objects():
        gc.collect()
        return len(gc.get_objects())
    for T in (4,2,1,8): set_output_stride(m, T)
    before,n = size(),objects()
    for i in range(200): set_output_stride(m, (4,2,1,8)[i%4])
    assert size()==before and objects()-n<100

@pytest.mark.slow
def test_two_processes(tmp_path):
    "`accelerate launch`, `distrib_ctx`: losses and weights of one process on joined batches; what they save loads here"
    import ddp
    res = child(*ddp.launch(2), ddp.__file__, tmp_path, ACCELERATE_USE_CPU='true')
    assert res.returncode==0, res.stderr[-3000:]
    # rank 0 has the first half of the images, rank 1 the second: a joined batch is 4 of each
    learn = ddp.learner(8, [i for k in (0,4) for i in (*range(k,k+4),*range(k+8,k+12))])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    a,b = (torch.tensor(torch.load(tmp_path/f'losses{i}.pt')) for i in (0,1))
    close((a+b)/2, torch.tensor(learn.losses.all), 1e-4)
    there = ddp.learner(8, range(16))
    there.path = tmp_path
    there.load('there')
    assert get_output_stride(there.model)==8 and list(there.model.state_dict())==list(learn.model.state_dict())
    theirs,ours = there.model.state_dict(),learn.model.state_dict()
    for a,b in zip(theirs.values(), ours.values()): close(a.float()+1, b.float()+1, 1e-4)
    assert same(nn.SyncBatchNorm.convert_sync_batchnorm(learn.model), tensors(learn.model))

def dynamic(x):
    "The sides of `x` are free: any multiples of 32, as for the native net, whose ceil-mode pools ask for them"
    h,w = torch.export.Dim('h',min=2,max=16),torch.export.Dim('w',min=2,max=16)
    return dict(dynamic_shapes=({2:32*h,3:32*w},))

def traceable(m):
    "fastai's U-Nets end with layers that turn a tensor into its own class, which no compiler can follow"
    for i,o in enumerate(getattr(m,'layers',[])):
        if isinstance(o,ToTensorBase): m.layers[i] = nn.Identity()
    return m

@pytest.mark.slow
@kinds
def test_compile(f, name):
    "One graph without a break"
    m,x = traceable(f(name)),torch.randn(2,3,64,96)
    torch._dynamo.reset()
    compiled = torch.compile(m, fullgraph=True, backend='inductor' if shutil.which('g++') else 'aot_eager')
    with torch.no_grad(): close(compiled(x), m(x), 1e-4)

@pytest.mark.slow
@kinds
def test_exported_with_free_sides_and_as_onnx(tmp_path, f, name):
    "torch.export with free sides, and ONNX run by onnxruntime, at two sizes"
    m,x = traceable(f(name)),torch.randn(2,3,64,96)
    ep = torch.export.export(m, (x,), **dynamic(x))
    torch.onnx.export(ep, (), dynamo=True, verbose=False).save(tmp_path/'m.onnx')
    run = onnxruntime.InferenceSession(tmp_path/'m.onnx')
    for sz in ((64,96),(96,64)):
        x = torch.randn(2,3,*sz)
        with torch.no_grad(): want = m(x)
        close(ep.module()(x), want, 1e-4)
        close(torch.from_numpy(run.run(None, {run.get_inputs()[0].name:x.numpy()})[0]), want, 1e-4)
