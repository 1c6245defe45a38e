"Networks with modules that run by phases: compilers, exporters, files, other processes; and the trial leaves no trace"
import copy, os, pickle, random, shutil, subprocess, sys
from functools import cache
import numpy as np
import onnxruntime, pytest, timm, torch
from safetensors.torch import load_model, save_model
from timm.layers import BlurPool2d
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from fastai.layers import SEModule
from fastai.vision.models import xresnet
from fastai_dilation.all import CannotDilate, get_output_stride, grid_error, output_strides, set_output_stride
from fastai_dilation.phases import Phased, WithRuns, is_sequential
from util import alive, close, program_file, slow_if

class Residual(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.norm,self.se = nn.GroupNorm(2, nf),SEModule(nf, 2)
    def forward(self, x): return x+self.se(self.norm(x).relu())

def tiny():
    "A stride traded by phases, and blocks behind it that join in a run; blocks that run as a whole; a blur; an SE"
    stem = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.BatchNorm2d(8), nn.ReLU())
    reflected = nn.Conv2d(8, 8, 3, 2, 1, padding_mode='reflect')
    with_run = nn.Sequential(reflected, Residual(8), Residual(8), nn.Conv2d(8,8,3,padding=1))
    whole = nn.Sequential(Residual(8), Residual(8), nn.Conv2d(8,8,3,padding=1))
    return nn.Sequential(stem, nn.Conv2d(8,8,3,2,1), with_run, whole, BlurPool2d(8), SEModule(8,2))

def padded():
    "Its padding stands in modules of its own"
    stem = nn.Conv2d(3,4,3,2,1),nn.Conv2d(4,4,3,2,1),nn.Conv2d(4,4,3,2,1)
    return nn.Sequential(*stem, nn.ZeroPad2d((0,1,0,1)), nn.Conv2d(4,4,3,2), nn.ReflectionPad2d(1), nn.Conv2d(4,4,3))

def odd():
    "Its phased modules read a map with odd sides, though those of the image are multiples of 32: as in ConvNeXt"
    blocks = nn.Sequential(Residual(8), Residual(8))
    return nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,2,2), blocks, nn.GroupNorm(2,8))

def of_timm(name): return lambda: timm.create_model(name, num_classes=5)

small = dict(tiny=tiny, padded=padded, odd=odd)
real = dict(xse=lambda: xresnet.xse_resnet18(n_out=5, widen=.25), efficientnet=of_timm('test_efficientnet'),
    blur=of_timm('resnetblur18'), mnasnet=of_timm('semnasnet_050'), convnext=of_timm('convnextv2_atto'))
strides = dict(tiny=4, padded=4, odd=2)
makers = {**small,**real}
all_nets = pytest.mark.parametrize('name', slow_if(makers, 'blur', 'mnasnet', 'convnext'))
tiny_then_all = pytest.mark.parametrize('name', slow_if(makers, 'padded', 'odd', *real))

@cache
def made(name): return set_output_stride(alive(makers[name]()), strides.get(name,8))
def phased(name):
    "The net by its name, at an output stride where modules run by phases"
    return copy.deepcopy(made(name))

def images(*shape): return torch.randn(*(shape or (2,3,64,96)))
def answer(m, x):
    with torch.no_grad(): return m(x)

@all_nets
def test_the_nets_of_this_file_have_modules_that_run_by_phases(name):
    "Else it would test nothing"
    assert any(isinstance(o,Phased) for o in phased(name).modules())

@pytest.mark.parametrize('name', ['tiny','mnasnet'])
def test_some_nets_of_this_file_have_joined_runs(name):
    "Else it would not test these"
    assert any(isinstance(o,WithRuns) for o in phased(name).modules())

@all_nets
def test_no_sequential_runs_by_phases_as_a_whole(name):
    "Its modules do: anybody may call them one by one"
    assert not any(isinstance(o,Phased) and is_sequential(o) for o in phased(name).modules())

@pytest.mark.parametrize('name', small)
@pytest.mark.parametrize('sides', [(64,96),(65,97),(49,63)], ids=str)
def test_the_small_nets_are_exact(name, sides):
    "In double precision, at native positions"
    m,x = alive(makers[name]()).double(),images(2,3,*sides).double()
    native = answer(m, x)
    every = get_output_stride(m)//strides[name]
    close(answer(set_output_stride(m,strides[name]),x)[...,::every,::every], native, 1e-12)

def names_of_phased(m): return [n for n,o in m.named_modules() if isinstance(o,Phased)]

@all_nets
def test_the_same_modules_run_by_phases_in_half_precision(name):
    "In bfloat16 a NaN between the native positions must not be taken for a fault of a 1x1 conv, which reads none"
    # oneDNN's bfloat16 carries a NaN to other positions, on some processors
    m,T = alive(makers[name]()).bfloat16(),strides.get(name,8)
    with torch.backends.mkldnn.flags(enabled=False): set_output_stride(m, T)
    assert names_of_phased(m)==names_of_phased(phased(name))

@all_nets
def test_the_same_modules_run_by_phases_in_autocast(name):
    "It makes no difference that the stride is set inside of an autocast block"
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast('cpu', torch.bfloat16): m = made.__wrapped__(name)
    assert names_of_phased(m)==names_of_phased(phased(name))

@all_nets
def test_a_net_comes_back_bit_for_bit(name):
    "There and back, its pickle is as before"
    m = makers[name]()
    before,native = pickle.dumps(m),get_output_stride(m)
    set_output_stride(set_output_stride(m, strides.get(name,8)), native)
    assert pickle.dumps(m)==before

# Copies and files

def saved_and_loaded(m, path):
    "By `torch.save`"
    torch.save(m, path/'m.pt')
    return torch.load(path/'m.pt', weights_only=False)
copies = dict(deepcopy=lambda m,path: copy.deepcopy(m), pickle=lambda m,path: pickle.loads(pickle.dumps(m)),
    torch_save=saved_and_loaded)

@all_nets
@pytest.mark.parametrize('how', copies)
def test_a_copy_of_a_phased_net_says_the_same(name, how, tmp_path):
    "Bit for bit"
    m,x = phased(name),images()
    assert answer(copies[how](m,tmp_path), x).equal(answer(m,x))

@pytest.mark.parametrize('name', small)
@pytest.mark.parametrize('how', copies)
def test_a_copy_goes_back_to_its_native_stride(name, how, tmp_path):
    "It knows the way, and is native then, bit for bit"
    m,x = alive(makers[name]()),images()
    native,native_stride = answer(m, x),get_output_stride(m)
    copied = copies[how](set_output_stride(m,strides[name]), tmp_path)
    assert answer(set_output_stride(copied,native_stride), x).equal(native)

@all_nets
def test_safetensors_say_the_same(name, tmp_path):
    "Weights alone, loaded into a net that was made anew"
    m,fresh,x = phased(name),made.__wrapped__(name),images()
    save_model(m, tmp_path/'m.safetensors')
    load_model(fresh, tmp_path/'m.safetensors')
    assert answer(fresh,x).equal(answer(m,x))

@all_nets
def test_a_traced_net_says_the_same(name):
    "`torch.jit.trace`"
    m,x = phased(name),images()
    close(answer(torch.jit.trace(m, x, check_trace=False), x), answer(m,x))

# Compilers and exporters

def compiled(m, backend):
    "In one graph, or an error"
    torch._dynamo.reset()
    return torch.compile(m, fullgraph=True, backend=backend)

in_inductor = ['tiny','odd','xse','convnext'] # in one graph too
# a compiler takes a few seconds for a small net, and half a minute for a real one
@pytest.mark.parametrize('name', slow_if([*small,*[o for o in real if o not in in_inductor]], *real))
def test_a_compiled_net_is_one_graph(name):
    "No break in it, and it says the same"
    m,x = phased(name),images()
    close(answer(compiled(m,'aot_eager'), x), answer(m,x), 1e-4)

@pytest.mark.slow
@pytest.mark.parametrize('name', in_inductor)
@pytest.mark.skipif(not shutil.which('g++'), reason='inductor compiles C++')
def test_a_compiled_net_says_the_same_in_inductor(name):
    "In the code that is generated too"
    m,x = phased(name),images()
    close(answer(compiled(m,'inductor'), x), answer(m,x), 1e-4)

def test_a_compiled_net_has_the_same_gradients():
    "In every weight"
    m,x = phased('tiny').double(),images().double()
    def gradients(f):
        m.zero_grad()
        f(x).square().mean().backward()
        return [p.grad.clone() for p in m.parameters()]
    want = gradients(m)
    for a,b in zip(gradients(compiled(m,'aot_eager')), want): close(a, b, 1e-9)

def test_a_compiled_net_follows_another_stride():
    "What was compiled before the change does not answer after it"
    m,x = alive(tiny()),images()
    c = compiled(m, 'aot_eager')
    answer(c, x)
    set_output_stride(c, 4)
    close(answer(c,x), answer(m,x), 1e-4)

def test_a_net_that_compiles_itself_follows_another_stride():
    "`m.compile()`"
    m,x = alive(tiny()),images()
    want = answer(set_output_stride(copy.deepcopy(m),4), x)
    torch._dynamo.reset()
    m.compile(fullgraph=True, backend='aot_eager')
    answer(m, x)
    close(answer(set_output_stride(m,4),x), want, 1e-4)

@cache
def exported(name):
    "The net, and what it is exported to, with free batch and sides: multiples of 32, as ceil-mode pools ask for"
    h,w = [torch.export.Dim(o,min=2,max=16) for o in ('h','w')]
    batch = torch.export.Dim('batch', min=1, max=64)
    m = phased(name)
    return m,torch.export.export(m, (images(),), dynamic_shapes=({0:batch,2:32*h,3:32*w},))

shapes = [(2,3,64,96),(2,3,96,64),(1,3,160,64),(3,3,128,128)]

def test_a_module_by_phases_is_exported_with_a_free_batch():
    "And with free sides; in an instant, where the whole nets below take their time"
    m = set_output_stride(alive(nn.Sequential(nn.Conv2d(3,4,3,2,1), nn.Conv2d(4,4,3,2,1), SEModule(4,2))), 2)
    batch,h,w = [torch.export.Dim(o,min=1,max=64) for o in ('batch','h','w')]
    program = torch.export.export(m, (images(),), dynamic_shapes=({0:batch,2:4*h,3:4*w},))
    for x in images(3,3,64,96),images(1,3,32,64): close(answer(program.module(),x), answer(m,x), 1e-5)

@pytest.mark.slow
@pytest.mark.parametrize('name', makers)
def test_an_exported_net_is_right_for_other_batches_and_sides(name):
    "`torch.export`: it is not bound to the image that it was exported with"
    m,program = exported(name)
    for x in [images(*o) for o in shapes]: close(answer(program.module(),x), answer(m,x), 1e-4)

@pytest.mark.slow
def test_a_net_is_exported_with_sides_that_torch_finds_out():
    "`Dim.AUTO`"
    m,auto = phased('tiny'),torch.export.Dim.AUTO
    program = torch.export.export(m, (images(),), dynamic_shapes=({0:auto,2:auto,3:auto},))
    for x in [images(*o) for o in shapes]: close(answer(program.module(),x), answer(m,x), 1e-4)

@pytest.mark.parametrize('name', small)
def test_a_net_is_exported_for_one_size(name):
    "Sides that are no multiples"
    m,x = phased(name),images(2,3,61,83)
    close(answer(torch.export.export(m,(x,)).module(), x), answer(m,x), 1e-4)

@pytest.mark.slow
@pytest.mark.parametrize('name', makers)
def test_onnx_is_right_for_other_batches_and_sides(name, tmp_path):
    "Run by onnxruntime, against torch"
    m,program = exported(name)
    torch.onnx.export(program, (), dynamo=True, verbose=False).save(tmp_path/'m.onnx')
    run = onnxruntime.InferenceSession(tmp_path/'m.onnx')
    for x in [images(*o) for o in shapes]:
        found = run.run(None, {run.get_inputs()[0].name:x.numpy()})[0]
        close(torch.from_numpy(found), answer(m,x), 1e-4)

# New processes

def run_python(*args):
    "Run Python in a new process"
    paths = os.pathsep.join(map(str,sys.path))
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONWARNINGS':'ignore', 'PYTHONPATH':paths}
    return subprocess.Popen([sys.executable,*map(str,args)], env=env, stderr=subprocess.PIPE, text=True)

def wait_for(process):
    "Until `process` ends well"
    _,said = process.communicate(timeout=300)
    assert process.returncode==0, said[-3000:]

@pytest.mark.slow
def test_pickled_nets_say_the_same_in_a_new_process(tmp_path):
    "One that never imported fastai_dilation by hand"
    nets,x = {o:phased(o) for o in real},images()
    for name,m in nets.items(): torch.save((m,x), tmp_path/f'{name}.pt')
    wait_for(run_python(program_file('load_nets'), tmp_path, *nets))
    for name,m in nets.items(): assert torch.load(tmp_path/f'{name}.there.pt').equal(answer(m,x)), name

@pytest.mark.slow
def test_an_exported_net_says_the_same_where_nothing_is_installed(tmp_path):
    "`torch.export.load` in a process that has torch alone"
    (m,program),x = exported('tiny'),images(3,3,96,64)
    torch.save(x, tmp_path/'x.pt')
    torch.export.save(program, tmp_path/'m.pt2')
    wait_for(run_python(program_file('load_exported'), tmp_path))
    close(torch.load(tmp_path/'there.pt'), answer(m,x))

@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    "DDP on the CPU, on a net that was changed before it was wrapped, and on one after"
    import ddp_phased
    for p in [run_python(ddp_phased.__file__, rank, tmp_path) for rank in (0,1)]: wait_for(p)
    want = ddp_phased.gradients(set_output_stride(ddp_phased.network(), 8), *ddp_phased.images())
    for rank in (0,1):
        for found in torch.load(tmp_path/f'gradients{rank}.pt'):
            for a,b in zip(found, want): close(a, b, 1e-9)

# The trial leaves no trace

class Restless(nn.Module):
    "Draws numbers, counts its calls, and keeps what it saw, in evaluation too"
    def __init__(self):
        super().__init__()
        self.n_calls,self.last = 0,None
        self.register_buffer('mean', torch.zeros(8))
        self.plain = torch.zeros(8)
    def forward(self, x):
        self.n_calls += 1
        self.last = x.detach()
        for o in (self.mean,self.plain): o.lerp_(x.detach().mean((0,2,3)), .1)
        random.random(), np.random.rand(), torch.rand(1)
        return x

def restless():
    "A net in the midst of training: with gradients, some modules in evaluation, some weights frozen"
    m = tiny()
    m.insert(3, Restless())
    m(images()).square().mean().backward()
    m[0].eval(), m[4].requires_grad_(False)
    m[3].n_calls,m[3].last = 0,None
    return m

def stride_that_cannot_be_had(m):
    with pytest.raises(CannotDilate): set_output_stride(m, 3)

acts = dict(set_output_stride=lambda m: set_output_stride(m,4), error=stride_that_cannot_be_had,
    get_output_stride=get_output_stride, output_strides=output_strides, grid_error=lambda m: grid_error(m,4))

hook_dicts = [o for o in vars(nn.Module()) if o.endswith('_hooks')]
traces = {}
traces['parameters'] = lambda m: [*m.parameters()]
traces['parameter_objects'] = lambda m: [id(p) for p in m.parameters()]
traces['parameter_versions'] = lambda m: [p._version for p in m.parameters()]
traces['requires_grad'] = lambda m: [p.requires_grad for p in m.parameters()]
traces['gradients'] = lambda m: [p.grad for p in m.parameters()]
traces['gradient_objects'] = lambda m: [id(p.grad) for p in m.parameters()]
traces['buffers'] = lambda m: [*m.buffers()]
traces['buffer_objects'] = lambda m: [id(o) for o in m.buffers()]
traces['buffer_versions'] = lambda m: [o._version for o in m.buffers()]
traces['plain_tensor'] = lambda m: m[3].plain
traces['attributes'] = lambda m: [m[3].n_calls,m[3].last]
traces['training'] = lambda m: [o.training for o in m.modules()]
traces['hooks'] = lambda m: [[*vars(o)[k]] for o in m.modules() for k in hook_dicts]
traces['torch_random'] = lambda m: torch.get_rng_state().tolist()
traces['numpy_random'] = lambda m: np.random.get_state()
traces['python_random'] = lambda m: random.getstate()
traces['grad_mode'] = lambda m: torch.is_grad_enabled()

@pytest.mark.parametrize('act', acts)
@pytest.mark.parametrize('what', traces)
def test_the_trial_leaves_no_trace(act, what):
    "What is not asked to change is as it was, bit for bit"
    m = restless()
    before = pickle.dumps(traces[what](m))
    acts[act](m)
    assert pickle.dumps(traces[what](m))==before

class LazyParts(nn.Module):
    "Makes at each call, for each size of map, what it needs for that: as a cache of positions does"
    def __init__(self, make):
        super().__init__()
        self.make,self.cache,self.shapes,self.sizes = make,{},[],set()
    def forward(self, x):
        self.make(self, x)
        return x
def positions(x): return torch.zeros(x.shape[2:], device=x.device)
lazy = {}
lazy['a_dict'] = lambda m,x: m.cache.setdefault(x.shape, positions(x))
lazy['a_list'] = lambda m,x: m.shapes.append(x.shape)
lazy['a_set'] = lambda m,x: m.sizes.add(x.shape)
lazy['an_attribute'] = lambda m,x: setattr(m, 'positions', positions(x))
lazy['a_buffer'] = lambda m,x: m.register_buffer('positions', positions(x))
lazy['a_buffer_that_is_not_saved'] = lambda m,x: m.register_buffer('positions', positions(x), persistent=False)
lazy['a_weight'] = lambda m,x: m.register_parameter('weight', nn.Parameter(positions(x)))
lazy['a_module'] = lambda m,x: m.add_module('conv', nn.Identity())

@pytest.mark.parametrize('what', lazy)
def test_what_a_module_makes_when_it_is_called_is_gone_after_the_trial(what):
    "A tensor without values, or for maps that the user never had, must not be found in a cache"
    m = tiny()
    m.insert(3, LazyParts(lazy[what]))
    before = {k:copy.copy(v) for k,v in vars(m[3]).items()}
    set_output_stride(m, 4)
    assert vars(m[3])==before

def hook_all(m, seen):
    "Register each kind of hook, on each module"
    for o in m.modules():
        o.register_forward_pre_hook(lambda *_: seen.append('forward pre'))
        o.register_forward_pre_hook(lambda *_: seen.append('forward pre, keywords'), with_kwargs=True)
        o.register_forward_hook(lambda *_: seen.append('forward'))
        o.register_forward_hook(lambda *_: seen.append('forward, always'), always_call=True)
        o.register_full_backward_pre_hook(lambda *_: seen.append('backward pre'))
        o.register_full_backward_hook(lambda *_: seen.append('backward'))
        o.register_state_dict_post_hook(lambda *_: seen.append('state_dict'))

@pytest.mark.parametrize('act', [o for o in acts if o!='grid_error'])
def test_the_hooks_of_the_user_are_not_called(act):
    "Who counts calls or logs maps does not see the trial"
    m,seen = restless(),[]
    hook_all(m, seen)
    acts[act](m)
    assert seen==[]

@pytest.mark.parametrize('act', [o for o in acts if o!='grid_error'])
@pytest.mark.parametrize('register', [register_module_forward_hook,register_module_forward_pre_hook])
def test_hooks_for_all_modules_are_not_called(act, register):
    "Neither do profilers and counters of operations"
    m,seen = restless(),[]
    handle = register(lambda *_: seen.append('called'))
    try: acts[act](m)
    finally: handle.remove()
    assert seen==[]

def test_hooks_work_after_the_trial():
    "They were set aside, and not lost"
    m,seen = restless(),[]
    m[5].register_forward_hook(lambda *_: seen.append('called'))
    set_output_stride(m, 4)(images())
    assert seen==['called']

def test_an_optimizer_that_was_made_before_goes_on():
    "The weights that it has are still those of the net"
    m = restless().requires_grad_()
    opt = torch.optim.SGD(m.parameters(), lr=.1, momentum=.9)
    opt.step()
    set_output_stride(m, 4)
    before = [p.clone() for p in m.parameters()]
    m(images()).square().mean().backward()
    opt.step()
    assert all(not a.equal(b) for a,b in zip(before, m.parameters()))

class Strict(nn.Module):
    "Its own forward stops at a map that is finer than at 8: at an error, or at an interruption"
    def __init__(self, error):
        super().__init__()
        self.error,self.body = error,tiny()
    def forward(self, x):
        y = self.body(x)
        if 8*y.shape[-1]>=x.shape[-1]+8: raise self.error('a finer map')
        return y

errors = {str(T):(tiny,T,CannotDilate) for T in (3,5,32,64,0,-4)}
errors.update({str(T):(tiny,T,TypeError) for T in (None,'4',4.,True)})
errors['error'] = lambda: Strict(RuntimeError),4,CannotDilate
errors['interruption'] = lambda: Strict(KeyboardInterrupt),4,KeyboardInterrupt

@pytest.mark.parametrize('name', errors)
def test_after_an_error_the_model_is_as_before(name):
    "Its pickle is the same, bit for bit"
    make,T,error = errors[name]
    m = make()
    before = pickle.dumps(m)
    with pytest.raises(error): set_output_stride(m, T)
    assert pickle.dumps(m)==before

@pytest.mark.parametrize('name', errors)
def test_after_an_error_a_phased_model_is_as_before(name):
    "It runs by the phases that it had"
    make,T,error = errors[name]
    m = set_output_stride(make(), 8)
    before = pickle.dumps(m)
    with pytest.raises(error): set_output_stride(m, T)
    assert pickle.dumps(m)==before

def test_after_a_sample_that_does_not_run_the_model_is_as_before():
    "`x=` of four channels, where the net reads three"
    m = tiny()
    before = pickle.dumps(m)
    with pytest.raises(CannotDilate): set_output_stride(m, 4, x=images(1,4,64,64))
    assert pickle.dumps(m)==before

class SmallMapsOnly(nn.Module):
    "Takes away the mean of a map, and stops at one that is larger than any natively"
    def __init__(self, side):
        super().__init__()
        self.side = side
    def forward(self, x):
        if not x.is_meta and x.shape[-1]>self.side: raise ValueError('the map is too large')
        return x-x.mean((2,3), keepdim=True)

def test_a_module_that_raises_at_a_finer_map_is_run_by_phases():
    "By phases it sees the map that it can read"
    stem = nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,8,3,2,1)
    m,x = nn.Sequential(*stem, SmallMapsOnly(16), nn.Conv2d(8,8,3,padding=1)).double(),images(2,3,61,64).double()
    native = answer(m, x)
    close(answer(set_output_stride(m,2),x)[...,::2,::2], native, 1e-12)

class WithPhases(nn.Module):
    "Someone's module, which has an attribute of the name of ours"
    def __init__(self):
        super().__init__()
        self.phases,self.conv = 3,nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x): return self.phases*self.conv(x-x.mean((2,3),keepdim=True))

def test_a_net_whose_module_has_phases_of_its_own_is_exact():
    "An attribute of the same name is not taken for ours"
    m,x = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), WithPhases()).double(),images().double()
    native = answer(m, x)
    close(answer(set_output_stride(m,2),x)[...,::2,::2], native, 1e-12)

# Parts of a net

def beginning_of_a_run(m): return nn.Sequential(*m[:2], m[2][:3])
def blocks_of_a_run(m): return nn.Sequential(*m[:2], m[2][0], m[2][1:3])
def blocks_of_a_whole(m): return nn.Sequential(*m[:3], m[3][:1])
all_parts = pytest.mark.parametrize('cut', [beginning_of_a_run,blocks_of_a_run,blocks_of_a_whole])

@all_parts
def test_a_part_of_a_phased_net_is_right(cut):
    "Someone cuts it in the middle of blocks that run by phases"
    m,x = alive(tiny()).double(),images().double()
    native = answer(cut(m), x)
    close(answer(cut(set_output_stride(m,4)),x)[...,::2,::2], native, 1e-12)

@all_parts
def test_a_part_of_a_phased_net_goes_back_to_its_native_stride(cut):
    "It knows the way"
    m,x = alive(tiny()).double(),images().double()
    native = answer(cut(m), x)
    close(answer(set_output_stride(cut(set_output_stride(m,4)),8), x), native, 1e-12)

@all_parts
def test_a_part_of_a_phased_net_can_be_pickled_after_each_change(cut):
    "It says the same then, bit for bit"
    part,x = cut(set_output_stride(alive(tiny()),4)),images()
    for T in (8,4):
        set_output_stride(part, T)
        assert answer(pickle.loads(pickle.dumps(part)),x).equal(answer(part,x))

def test_a_part_of_a_stage_that_runs_by_phases_can_be_called():
    "A slice of the blocks of a stage of ConvNeXt"
    blocks,x = phased('convnext').stages[2].blocks,images(2,160,8,12)
    assert answer(blocks[:2],x).shape==x.shape
