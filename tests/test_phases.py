"Phases: a map that is split and merged is the map it was, and a module that runs by phases is native on its own phase"
import copy, os, pickle, threading
from concurrent.futures import ThreadPoolExecutor
import pytest, torch
from hypothesis import given, settings, strategies as st
from timm.layers import BlurPool2d
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_map
from fastai.layers import SEModule
from fastai.vision.all import TensorImage
from fastai_dilation import phases
from fastai_dilation.layers import ceil_div, restore
from fastai_dilation.phases import Phases, join_runs, merge, run_by_phases, split
from util import close

drawn = settings(max_examples=int(os.environ.get('MAX_EXAMPLES',100)), deadline=None)
formats = {4:torch.channels_last, 5:torch.channels_last_3d}

def native_part(x, every, dims=None):
    "The positions of the map `x` that the native network has"
    dims = dims or range(2,x.ndim)
    return x[tuple(slice(None,None,every) if i in dims else slice(None) for i in range(x.ndim))]

def by_phases(m, *args, **kwargs):
    "`m`, which runs by phases from now on"
    run_by_phases(m, Phases(*args, **kwargs))
    return m

class Call(nn.Module):
    "A module whose forward is `f`"
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, *args, **kwargs): return self.f(*args, **kwargs)

def mean_of(x): return x.mean((2,3), keepdim=True)
def centred(x): return x-mean_of(x)

# Split and merge

@st.composite
def maps(draw):
    "A map of 1 to 3 dims, with its channels first or last, and phases to split it into"
    n_dims = draw(st.integers(1,3))
    dtype = draw(st.sampled_from([torch.float16,torch.bfloat16,torch.float32,torch.float64]))
    sides = [draw(st.integers(1,13)) for _ in range(n_dims)]
    batch,channels,first = draw(st.integers(1,3)),draw(st.integers(1,4)),draw(st.integers(1,2))
    shape = (batch,channels,*sides) if first==2 else (batch,*sides,channels)
    p = Phases(draw(st.integers(1,9)), dims=tuple(range(first,first+n_dims)))
    return torch.randn(shape).to(dtype),p

@st.composite
def traded(draw, max_spacing=9):
    "Phases of a module with a stride that is traded, in whole or in part; in part only where nothing was traded before"
    spacing,stride = draw(st.integers(1,max_spacing)),draw(st.integers(1,4))
    kept = [o for o in range(1,stride+1) if stride%o==0] if spacing==1 else [1]
    return Phases(spacing, stride, draw(st.sampled_from(kept)))

@drawn
@given(maps())
def test_a_map_that_is_split_and_merged_is_the_map_it_was(drawn):
    "Any dims, spacing, sides and type, bit for bit"
    x,p = drawn
    assert merge(split(x,p), p, p.sides(x)).equal(x)

@drawn
@given(maps())
def test_the_phases_have_the_type_of_the_map(drawn):
    "A map of half precision is not split in single precision"
    x,p = drawn
    assert split(x,p).dtype==x.dtype

@drawn
@given(maps())
def test_the_native_phase_comes_first(drawn):
    "The first images of the batch are those that the native network sees"
    x,p = drawn
    assert split(x,p)[:len(x)].equal(native_part(x, p.spacing, p.dims))

@drawn
@given(traded(), st.integers(1,13), st.integers(1,13))
def test_the_native_phase_comes_first_where_a_stride_is_traded(p, height, width):
    "The shifted maps stand behind the map that the native module reads"
    x = torch.randn(2, 3, height, width)
    assert split(x,p)[:2].equal(native_part(x, p.spacing))

def positions(side, p, start):
    "What a phase that begins at `start` reads on an axis; where it is at its end, its last position again"
    last = max(range(start%p.spacing, side, p.spacing))
    return [min(start+p.spacing*i, last) for i in range(ceil_div(side,p.spacing))]

@drawn
@given(traded(), st.integers(1,13), st.integers(1,13), st.data())
def test_each_phase_is_the_map_shifted(p, height, width, data):
    "Phase `i` begins `i*kept` positions later, and goes on in steps of the spacing"
    x = torch.randn(2, 3, height, width)
    i,j = [data.draw(st.sampled_from([o for o in range(p.n) if o*p.kept%p.spacing<side])) for side in (height,width)]
    phase = split(x,p).unflatten(0, (p.n,p.n,2))[i,j]
    assert phase.equal(x[:,:,positions(height,p,i*p.kept)][...,positions(width,p,j*p.kept)])

@st.composite
def formatted(draw):
    "A map in one of the memory formats, and phases to split it into"
    n_dims = draw(st.integers(2,3))
    sides = [draw(st.integers(1,13 if n_dims==2 else 7)) for _ in range(n_dims)]
    p = draw(traded(9 if n_dims==2 else 3))._replace(dims=tuple(range(2,2+n_dims)))
    x = torch.randn(draw(st.integers(1,3)), draw(st.integers(1,4)), *sides)
    return x.contiguous(memory_format=draw(st.sampled_from([torch.contiguous_format,formats[x.ndim]]))),p

def formats_of(x): return {f for f in (torch.contiguous_format,formats[x.ndim]) if x.is_contiguous(memory_format=f)}

@drawn
@given(formatted())
def test_the_phases_have_the_memory_format_of_the_map(drawn):
    "Convs on the phases of a channels_last map are as fast as they are natively, and `view` works where it does"
    x,p = drawn
    assert formats_of(split(x,p))>=formats_of(x)

@drawn
@given(formatted(), st.booleans())
def test_a_merged_map_has_the_memory_format_of_its_phases(drawn, contiguous):
    "What a module made in channels_last stays so"
    x,p = drawn
    y = split(x, p).contiguous(memory_format=torch.contiguous_format if contiguous else formats[x.ndim])
    assert formats_of(merge(y, p, p.sides(x))) & formats_of(y)

@drawn
@given(formatted())
def test_a_map_has_its_memory_format_after_a_module_by_phases(drawn):
    "Also a small map, whose phases have one position and are in both formats at once"
    x,p = drawn
    m = nn.Identity()
    run_by_phases(m, p._replace(stride=1, kept=1))
    assert formats_of(m(x))==formats_of(x)

def test_a_map_of_one_channel_is_made_into_a_contiguous_map():
    "Its own format cannot be told, but the convs behind must not change to another one"
    conv,x = nn.Conv2d(1, 8, 3, padding=1),torch.randn(2, 1, 16, 16)
    native = formats_of(conv(x))
    assert formats_of(by_phases(conv,2)(x))==native

# A module by phases

def pad_and_cut(): return nn.Sequential(nn.ReflectionPad2d((2,1,1,2)), nn.Conv2d(4, 6, 3))

def drawn_conv(draw, n_dims, stride):
    "A conv with any padding"
    ks,pad = draw(st.integers(1,3)),draw(st.integers(0,2))
    mode = draw(st.sampled_from(['zeros','reflect','replicate','circular']))
    return getattr(nn, f'Conv{n_dims}d')(4, 6, ks, stride, pad, padding_mode=mode)

def drawn_pool(draw, n_dims, stride):
    "A pool that cannot be dilated"
    ks,ceil_mode = draw(st.integers(1,3)),draw(st.booleans())
    if draw(st.booleans()): return getattr(nn, f'LPPool{n_dims}d')(2, ks, stride, ceil_mode)
    return getattr(nn, f'AvgPool{n_dims}d')(ks, stride, ks//2, ceil_mode, count_include_pad=False)

@st.composite
def modules(draw):
    "A module that reads several positions, its phases, and a map that it can read"
    n_dims = draw(st.integers(1,3))
    p = draw(traded(9 if n_dims<3 else 3))._replace(dims=tuple(range(2,2+n_dims)))
    makers = [lambda: drawn_conv(draw, n_dims, p.stride), lambda: drawn_pool(draw, n_dims, p.stride)]
    if n_dims==2: makers += [lambda: BlurPool2d(4, draw(st.sampled_from([3,5])), p.stride)]
    if p.stride==1: makers += [lambda: nn.GroupNorm(2, 4)]
    if p.stride==1 and n_dims==2: makers += [lambda: SEModule(4, 2), lambda: Call(centred), pad_and_cut]
    native_side = st.integers(4,7) if n_dims<3 else st.integers(3,4)
    sides = [p.spacing*draw(native_side)-draw(st.integers(0,p.spacing-1)) for _ in range(n_dims)]
    m = draw(st.sampled_from(makers))().double()
    return m,p,torch.randn(2, 4, *sides, dtype=torch.double)

@drawn
@given(modules())
def test_a_module_makes_at_native_positions_what_it_made(drawn):
    "Convs with and without padding, blurs, pools, means over the map, group norm: in double precision"
    m,p,x = drawn
    native = m(native_part(x, p.spacing))
    run_by_phases(m, p)
    close(native_part(m(x), p.n), native, 1e-12)

@drawn
@given(modules())
def test_a_module_that_neither_pads_nor_cuts_makes_a_position_for_each_that_is_kept(drawn):
    "So its map can be added to one that went another way"
    m,p,x = drawn
    native_sides = [*m(native_part(x, p.spacing)).shape[2:]]
    run_by_phases(m, p)
    keeps_size = native_sides==[ceil_div(ceil_div(n,p.spacing),p.stride) for n in x.shape[2:]]
    want = [ceil_div(n,p.kept) for n in x.shape[2:]] if keeps_size else [*m(x).shape[2:]]
    assert [*m(x).shape[2:]]==want

def test_sides_that_are_last():
    "A module that reads maps with their channels last is told by `dims`"
    m,x = Call(lambda x: x-x.mean((1,2),keepdim=True)),torch.randn(2, 13, 10, 4)
    native = m(native_part(x, 4, (1,2)))
    close(native_part(by_phases(m,4,dims=(1,2))(x), 4, (1,2)), native)

def test_a_batch_without_an_image():
    "An empty batch stays empty"
    assert by_phases(nn.GroupNorm(1,4), 2)(torch.zeros(0,4,7,7)).shape==(0,4,7,7)

def test_the_subclass_of_the_tensor_stays():
    "fastai's `TensorImage` stays one"
    assert type(by_phases(nn.GroupNorm(1,3), 2)(TensorImage(torch.randn(2,3,8,8)))) is TensorImage

x,y = torch.randn(2, 4, 13, 10),torch.randn(2, 4, 13, 10)
mask,embedding = torch.rand(2, 1, 13, 10)>.5,torch.randn(2, 4)
calls = {}
def case(name, f, *args, **kwargs): calls[name] = f,args,kwargs
case('a second map', lambda x,y: centred(x)+mean_of(y), x, y)
case('a map as keyword', lambda x,skip: centred(x)+mean_of(skip), x, skip=y)
case('all as keywords', lambda x,skip: centred(x)+mean_of(skip), x=x, skip=y)
case('maps in a list', lambda xs: centred(xs[0])+mean_of(xs[1]), [x,y])
case('maps in a dict', lambda xs: centred(xs['x'])+mean_of(xs['y']), dict(x=x,y=y))
case('a mask', lambda x,mask: x-mean_of(x*mask), x, mask)
case('an embedding per image', lambda x,e: centred(x)*e[:,:,None,None], x, embedding)
case('an embedding in front', lambda e,x: centred(x)*e[:,:,None,None], embedding, x)
case('an embedding with sides of 1', lambda x,e: centred(x)*e, x, embedding[:,:,None,None])
case('an embedding with sides of 1 in front', lambda e,x: centred(x)*e, embedding[:,:,None,None], x)
case('a number per image', lambda x,t: centred(x)*t.view(-1,1,1,1), x, torch.tensor([1.,2.]))
case('a tensor without dims', lambda x,t: centred(x)*t, x, torch.tensor(2.))
case('a flag', lambda x,flag: centred(x) if flag else x, x, True)
case('a flag as keyword', lambda x,flag: centred(x) if flag else x, x, flag=True)
case('none', lambda x,e: centred(x) if e is None else x, x, None)

def natively(o):
    "`o` as the native module is given it, where the map is 4 times as fine"
    return tree_map(lambda t: native_part(t,4) if isinstance(t,torch.Tensor) and t.shape[2:]==x.shape[2:] else t, o)

@pytest.mark.parametrize('name', calls)
def test_further_arguments(name):
    "Other maps are split too, what there is once for each image is repeated, and all else is passed on"
    f,args,kwargs = calls[name]
    native = f(*natively(args), **natively(kwargs))
    close(native_part(by_phases(Call(f),4)(*args,**kwargs), 4), native)

returned = {}
returned['map_and_state'] = lambda x: (centred(x),x.mean((2,3)))
returned['map_and_state_per_channel'] = lambda x: (centred(x),x[0].mean((1,2)))
returned['two_maps'] = lambda x: (centred(x),x*mean_of(x))
returned['map_and_none'] = lambda x: (centred(x),None)
returned['map_and_number'] = lambda x: (centred(x),3)
returned['maps_in_a_list'] = lambda x: [centred(x),x*mean_of(x)]
returned['maps_in_a_dict'] = lambda x: dict(x=centred(x), y=x*mean_of(x))

@pytest.mark.parametrize('name', returned)
def test_what_is_returned_beside_the_map(name):
    "Each map is merged, a state is that of the native phase, and all else is passed on"
    f = returned[name]
    got = natively(by_phases(Call(f),4)(x))
    torch.testing.assert_close(got, f(native_part(x,4)))

# Gradients, precisions, threads

@pytest.mark.parametrize('p', [Phases(2),Phases(3),Phases(1,2),Phases(2,2)], ids=str)
def test_the_gradient_is_that_of_finite_differences(p):
    "Also where a position is read twice, or by phases that overlap"
    m = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3, p.stride)).double()
    run_by_phases(m, p)
    assert torch.autograd.gradcheck(m, torch.randn(1, 2, 7, 6, dtype=torch.double, requires_grad=True))

def gradients(m, x, every):
    "Of a loss that reads each `every`-th position: of the weights, and of the map"
    x = x.clone().requires_grad_()
    m.zero_grad()
    native_part(m(x), every).square().sum().backward()
    return [p.grad.clone() for p in m.parameters()],x.grad

def conv_and_norm(): return nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, padding_mode='reflect'), nn.GroupNorm(2, 6)).double()

def test_weights_have_their_native_gradients():
    "Where the loss reads native positions alone"
    m,x = conv_and_norm(),torch.randn(2, 4, 29, 18, dtype=torch.double)
    native,_ = gradients(m, native_part(x,4), 1)
    found,_ = gradients(by_phases(m,4,2), x, 8)
    for a,b in zip(found, native): close(a, b, 1e-12)

def test_the_map_has_its_native_gradient():
    "At native positions that of the native map, and none between them"
    m,x = conv_and_norm(),torch.randn(2, 4, 29, 18, dtype=torch.double)
    _,native = gradients(m, native_part(x,4), 1)
    _,found = gradients(by_phases(m,4,2), x, 8)
    want = torch.zeros_like(x)
    native_part(want, 4).copy_(native)
    close(found, want, 1e-12)

@pytest.mark.parametrize('dtype', [torch.float16,torch.bfloat16], ids=str)
def test_half_precision_stays(dtype):
    "A module in half precision makes a map in half precision"
    assert by_phases(nn.Conv2d(4,4,3,padding=1).to(dtype), 3)(torch.randn(2,4,13,10).to(dtype)).dtype==dtype

def test_autocast_keeps_its_type():
    "In bfloat16's autocast a map comes out as natively"
    m,x = conv_and_norm().float(),torch.randn(2, 4, 29, 18)
    with torch.autocast('cpu', torch.bfloat16):
        native = m(native_part(x,4))
        found = native_part(by_phases(m,4,2)(x), 8)
    assert found.dtype==native.dtype
    close(found, native, .02)

def test_two_threads_may_run_a_module_at_once():
    "Nothing of a call is kept on the module: each thread gets what it gets alone"
    m = by_phases(nn.Sequential(SEModule(4,2), Call(centred)), 3)
    xs = [torch.randn(2, 4, side, 2*side+1) for side in (7,30)]
    alone = [m(x) for x in xs]
    start = threading.Barrier(2)
    def many_times(x):
        start.wait()
        return [m(x) for _ in range(50)]
    with ThreadPoolExecutor(2) as pool: together = [*pool.map(many_times, xs)]
    for ys,want in zip(together, alone): assert all(y.equal(want) for y in ys)

# In place, and back

def se_block(): return nn.Sequential(nn.Conv2d(4,4,3,padding=1), SEModule(4,2), nn.GroupNorm(2,4)).eval()

def test_a_module_stays_what_it_is():
    "`isinstance` holds"
    assert isinstance(by_phases(nn.GroupNorm(2,4), 4), nn.GroupNorm)

def test_a_class_keeps_its_names():
    "What looks for a class by its name finds it"
    m = by_phases(nn.GroupNorm(2,4), 4)
    assert [type(m).__name__,type(m).__qualname__,type(m).__module__]==['GroupNorm','GroupNorm',nn.GroupNorm.__module__]

def test_weights_keep_their_names():
    "A file of weights fits before and after"
    m = se_block()
    names = [*m.state_dict()]
    assert [*by_phases(m,4).state_dict()]==names

def test_weights_stay_the_same_objects():
    "An optimizer that was made before goes on to train them"
    m = se_block()
    before = [*m.parameters()]
    assert all(a is b for a,b in zip(before, by_phases(m,4).parameters()))

def test_repr_shows_the_phases():
    "Who prints a network sees which of its modules run by phases"
    own = repr(nn.GroupNorm(2,4)).removesuffix(')')
    assert f'{own}, by phases: spacing=4)' in repr(nn.Sequential(by_phases(nn.GroupNorm(2,4), 4)))

def test_repr_shows_the_stride_that_is_traded():
    "And what is left of it"
    assert 'by phases: spacing=1, stride 4 -> 2' in repr(by_phases(nn.LPPool2d(2,4), 1, stride=4, kept=2))

def test_hooks_stay_and_see_the_finer_map():
    "Who looks at a module sees a map, and not its phases"
    m,seen = nn.GroupNorm(2,4),[]
    m.register_forward_hook(lambda m,x,y: seen.append((x[0].shape,y.shape)))
    by_phases(m, 4)(x)
    assert seen==[(x.shape,x.shape)]

def group_norm(): return nn.GroupNorm(2, 4)
def se(): return SEModule(4, 2)
def lp_pool(): return nn.LPPool2d(2, 2)
undone = pytest.mark.parametrize('make', [group_norm,se,lp_pool,se_block])

@undone
def test_restore_gives_back_the_pickle(make):
    "Bit for bit"
    m = make()
    before = pickle.dumps(m)
    restore(by_phases(m, 4))
    assert pickle.dumps(m)==before

@undone
def test_restore_gives_back_the_class(make):
    "And not one that looks like it"
    m = make()
    cls = type(m)
    restore(by_phases(m, 4))
    assert type(m) is cls

@undone
def test_restore_gives_back_the_repr(make):
    "Nothing of the phases is shown any more"
    m = make()
    before = repr(m)
    restore(by_phases(m, 4))
    assert repr(m)==before

def saved_and_loaded(m, path):
    "By `torch.save`"
    torch.save(m, path/'m.pt')
    return torch.load(path/'m.pt', weights_only=False)
copies = dict(deepcopy=lambda m,path: copy.deepcopy(m), copy=lambda m,path: copy.copy(m),
    pickle=lambda m,path: pickle.loads(pickle.dumps(m)), torch_save=saved_and_loaded)

@pytest.mark.parametrize('how', copies)
def test_a_copy_says_the_same(how, tmp_path):
    "Bit for bit"
    m = by_phases(se_block(), 4)
    assert copies[how](m,tmp_path)(x).equal(m(x))

@pytest.mark.parametrize('how', copies)
def test_a_copy_can_be_restored(how, tmp_path):
    "It has its own way back"
    m = by_phases(se_block(), 4)
    copied = copies[how](m, tmp_path)
    restore(copied)
    assert type(copied) is nn.Sequential

def test_a_restored_copy_leaves_the_module_as_it_is():
    "The two have nothing in common but their weights"
    m = by_phases(se_block(), 4)
    restore(copy.copy(m))
    assert 'by phases' in repr(m)

class WithLock(nn.Module):
    "Someone's module that says itself what goes into a pickle"
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
    def __getstate__(self): return {k:v for k,v in vars(self).items() if k!='lock'}
    def __setstate__(self, state):
        super().__setstate__(state)
        self.lock = threading.Lock()
    def forward(self, x): return centred(x)

@pytest.mark.parametrize('how', copies)
def test_a_module_that_says_what_is_pickled_is_asked(how, tmp_path):
    "A lock that it leaves out of its pickle is left out still"
    m = by_phases(WithLock(), 4)
    assert copies[how](m,tmp_path)(x).equal(m(x))

class WithPhases(nn.Module):
    "Someone's module, with an attribute of the same name as ours"
    def __init__(self):
        super().__init__()
        self.phases = 3
    def forward(self, x): return self.phases*centred(x)

def test_an_attribute_of_the_same_name_is_not_taken():
    "A module may have its own `phases`"
    m = WithPhases()
    native = m(native_part(x,4))
    close(native_part(by_phases(m,4)(x), 4), native)

def test_a_slice_of_a_sequential_that_runs_by_phases_runs():
    "Who cuts a network gets modules that can be called"
    m = by_phases(se_block(), 4)
    assert m[:2](x).shape==x.shape

# Runs of modules

def run_of(*ms, spacing=4): return nn.Sequential(*[by_phases(m,spacing) for m in ms]).eval()
def three(): return run_of(Call(centred), nn.GroupNorm(2,4), SEModule(4,2))
def joined(m):
    "`m`, whose runs of phased modules split and merge once"
    join_runs(m)
    return m

def keeps_size(draw):
    "A module whose output is as large as its input"
    makers = [lambda: SEModule(4,2), lambda: nn.GroupNorm(2,4), lambda: Call(centred), nn.ReLU]
    makers += [lambda: nn.Conv2d(4,4,3,padding=1,padding_mode='reflect')]
    return draw(st.sampled_from(makers))()

def of_any_kind(draw):
    "A module by some phases, with a stride or without, or natively"
    kind = draw(st.sampled_from(['strided','native','by 2','by 2','by 3']))
    if kind=='strided': return by_phases(BlurPool2d(4,3,2), 2, 2)
    return keeps_size(draw) if kind=='native' else by_phases(keeps_size(draw), int(kind[-1]))

def of_one_spacing(draw): return by_phases(keeps_size(draw), 2)

@st.composite
def sequentials(draw, module=of_any_kind):
    "A `Sequential` of such modules, and a map that it reads"
    m = nn.Sequential(*[module(draw) for _ in range(draw(st.integers(0,6)))]).double()
    return m,torch.randn(2, 4, draw(st.integers(6,20)), draw(st.integers(6,20)), dtype=torch.double)

@drawn
@given(sequentials())
def test_joined_runs_say_the_same_of_sides_that_are_multiples(drawn):
    "There each phase is as long as the others"
    m,x = drawn
    x = x[...,:x.shape[2]//6*6,:x.shape[3]//6*6]
    want = m(x)
    close(joined(m)(x), want, 1e-12)

@drawn
@given(sequentials(of_one_spacing))
def test_joined_runs_say_the_same_at_native_positions(drawn):
    "For any sides"
    m,x = drawn
    want = native_part(m(x), 2)
    close(native_part(joined(m)(x),2), want, 1e-12)

def reflected(): return nn.ReflectionPad2d(1)
def conv(): return nn.Conv2d(4, 4, 3)
def pad_then_cut(): return reflected(),conv()
def cut_then_pad(): return conv(),reflected()
def pad(): return Call(centred),nn.ZeroPad2d((0,1,0,1))
def cut(): return Call(centred),conv()

@pytest.mark.parametrize('sides', [(24,20),(22,19)], ids=str)
@pytest.mark.parametrize('modules', [pad_then_cut,cut_then_pad,pad,cut])
def test_a_joined_run_that_pads_or_cuts_makes_a_map_of_the_same_size(modules, sides):
    "A hook on one of its modules must not change the size of what comes out"
    m,x = run_of(*modules()),torch.randn(2, 4, *sides)
    want = m(x).shape
    assert joined(m)(x).shape==want

def test_a_run_splits_the_map_once(monkeypatch):
    "That is what runs are for: fewer copies of the map"
    n_splits,m = [],joined(three())
    monkeypatch.setattr(phases, 'split', lambda x,p: n_splits.append(1) or split(x,p))
    m(x)
    assert len(n_splits)==1

def hook(m, seen): return m.register_forward_hook(lambda m,x,y: seen.append((x[0].shape,y.shape)))
def pre_hook(m, seen): return m.register_forward_pre_hook(lambda m,x: seen.append((x[0].shape,x[0].shape)))
def keyword_hook(m, seen):
    "A hook that sees keywords too"
    def see(m, x, kwargs, y): seen.append((x[0].shape,y.shape))
    return m.register_forward_hook(see, with_kwargs=True)

@pytest.mark.parametrize('register', [hook,pre_hook,keyword_hook])
@pytest.mark.parametrize('i', [0,1,2])
def test_a_hooked_module_of_a_run_sees_a_map(register, i):
    "Who hooks a module wants to see what it makes of the map"
    m,seen = joined(three()),[]
    register(m[i], seen)
    m(x)
    assert seen==[(x.shape,x.shape)]

def test_a_hook_changes_no_value():
    "A run that is broken up by a hook says the same"
    m = joined(three())
    want = m(x)
    hook(m[1], [])
    close(m(x), want)

def test_what_a_hook_returns_is_used():
    "A hook may put another map in the place of a module's own"
    m = joined(three())
    m[2].register_forward_hook(lambda m,x,y: torch.zeros_like(y))
    assert m(x).eq(0).all()

def test_a_hook_for_all_modules_sees_each_module_of_a_run():
    "Counters of operations and profilers hook all modules at once"
    m,seen = joined(three()),[]
    handle = register_module_forward_hook(lambda m,x,y: seen.append(m))
    try: m(x)
    finally: handle.remove()
    assert all(any(o is s for s in seen) for o in m)

def test_gradients_go_through_a_run():
    "Joined and not, in every weight"
    m = three().double()
    want,_ = gradients(m, x.double(), 1)
    found,_ = gradients(joined(m), x.double(), 1)
    for a,b in zip(found, want): close(a, b, 1e-12)

def test_a_module_of_a_run_is_right_when_called_alone():
    "Someone who takes a module out of the network need not know of runs"
    m = joined(three())[1]
    native = copy.deepcopy(m)
    restore(native)
    close(native_part(m(x), 4), native(native_part(x,4)))

@pytest.mark.parametrize('part', [slice(0,1),slice(0,2),slice(1,3),slice(0,0)], ids=str)
def test_a_slice_of_joined_runs_is_right(part):
    "Someone who cuts the network need not know of runs"
    m = three()
    want = nn.Sequential(*m[part])(x)
    close(joined(m)[part](x), want)

def test_a_slice_of_joined_runs_can_be_restored():
    "And then is a `Sequential` like any other"
    m = joined(three())[:2]
    restore(m)
    assert type(m) is nn.Sequential

def test_a_module_may_be_added_to_joined_runs():
    "`append` and item assignment work, and the new module is called"
    m = joined(three())
    want = m(x)
    m.append(nn.ReLU())
    close(m(x), want.relu())

def test_joined_runs_are_restored():
    "The pickle is as before, bit for bit"
    m = three()
    before = pickle.dumps(nn.Sequential(nn.ReLU(), *m[:2]))
    m = nn.Sequential(nn.ReLU(), *m[:2])
    join_runs(m)
    restore(m)
    assert pickle.dumps(m)==before

@pytest.mark.parametrize('how', copies)
def test_a_copy_of_joined_runs_says_the_same(how, tmp_path):
    "Bit for bit"
    m = joined(run_of(SEModule(4,2), nn.GroupNorm(2,4)))
    assert copies[how](m,tmp_path)(x).equal(m(x))
