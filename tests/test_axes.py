"A stride for each axis: asked for where the native ones are equal, and followed where they are not"
import pickle
from functools import partial
import onnxruntime, pytest, timm, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from torchvision.models import video
from fastai.vision.models import xresnet
from fastai_dilation.all import CannotDilate, ToPixels, class_maps, create_deeplab_model, explain, get_output_stride
from fastai_dilation.all import grid_error, output_stride_report, output_strides, pool_over, set_output_stride, to_pixels
from fastai_dilation.all import deeplab_learner, unet_learner, vision_learner
from fastai_dilation.__main__ import check
from fastai_dilation.layers import as_tuple, by_axis
from fastai_dilation.phases import Phases
from seg_data import class_dls, make_files, seg_dls
from util import Call, alive, close, said, small, small50, slow_if

def block(ni, nf, stride=1): return nn.Sequential(nn.Conv2d(ni,nf,3,stride,1), nn.BatchNorm2d(nf), nn.ReLU())
def for_lines():
    "A network for lines of text: one value for 16x4 pixels"
    return nn.Sequential(block(1,16,2), block(16,32,2), block(32,32,(2,1)), block(32,32,(2,1)), block(32,32))
def first_uneven(): return nn.Sequential(nn.Conv2d(3,8,3,(2,1),1), nn.MaxPool2d(2), nn.AvgPool2d((1,2)), nn.Conv2d(8,8,3,(2,1),1))
def signal(): return nn.Sequential(*[nn.Conv1d(3 if i==0 else 8,8,3,2,1) for i in range(4)])
def volumes():
    "One value for 8 frames and 16x16 pixels, as torchvision's video networks have it"
    stem = nn.Sequential(nn.Conv3d(3,8,(3,5,5),(1,2,2),(1,2,2)), nn.BatchNorm3d(8), nn.ReLU())
    return nn.Sequential(stem, *[nn.Sequential(nn.Conv3d(8,8,3,2,1), nn.BatchNorm3d(8), nn.ReLU()) for _ in range(3)])

def body(net):
    "torchvision's video network `net`, up to its last map"
    return nn.Sequential(*[*net.children()][:-2])

def fully(name): return timm.create_model(name, features_only=True, out_indices=[-1])
def last(m, x):
    "The last map that `m` makes of `x`"
    with torch.no_grad(): y = m(x)
    return y[-1] if isinstance(y,list) else y

def off(m, T, *all_sides, ni=3):
    "How far the native positions of `m` at `T` are off, in double precision, and the stride that it has then"
    m = alive(m).double()
    xs = [torch.randn(2,ni,*sides).double() for sides in all_sides]
    natives,S = [last(m,x) for x in xs],as_tuple(get_output_stride(m),len(all_sides[0]))
    before = pickle.dumps(m)
    assert said(set_output_stride, m, T)==[]
    now = get_output_stride(m)
    every = [slice(None,None,s//t) for s,t in zip(S,as_tuple(now,len(S)))]
    worst = max(close(last(m,x)[(...,*every)],native,1e-9) for x,native in zip(xs,natives))
    set_output_stride(m, S)
    assert pickle.dumps(m)==before
    return worst,now

odd,even = (97,67),(64,96)
asked = [(small,(32,8)), (small,(8,32)), (small50,(16,4)), (small,(None,16))]
@pytest.mark.parametrize('f,T', asked, ids=lambda o: getattr(o,'__name__',str(o)))
def test_axes_of_an_xresnet(f, T):
    "The same weights, exact on odd and even sides, and back bit for bit"
    body = nn.Sequential(*[*f().children()][:-4])
    assert off(body, T, odd, even)[1]==by_axis(lambda T: T or 32, T)

phased = ['test_resnet','test_efficientnet','test_convnext']
large = ['resnet34','resnet50','legacy_seresnet18','efficientnet_b0','convnext_atto','tf_efficientnet_lite0']
@pytest.mark.parametrize('T', [(32,8),(8,32),(16,4)], ids=str)
@pytest.mark.parametrize('name', slow_if(phased+large, *large))
def test_axes_of_networks_of_timm(name, T):
    "Convs, pools, depthwise convs, what runs by phases, and TensorFlow's padding"
    assert off(fully(name), T, (97,66))[1]==T

@pytest.mark.slow
def test_axes_of_a_deep_xresnet():
    "Of a native stride of 128"
    body = nn.Sequential(*[*xresnet.xresnet34_deep(widen=.25).children()][:-4])
    assert off(body, (16,64), (257,290))[1]==(16,64)

lines = [(1,1),(16,1),(16,2),(4,4),(2,4),(None,1)]
@pytest.mark.parametrize('T', lines, ids=str)
def test_native_strides_that_differ(T):
    "Told, and changed on the axis that is asked for"
    assert get_output_stride(for_lines())==(16,4) and output_strides(for_lines())==[1,2,4,8,16]
    assert off(for_lines(), T, (49,37), (48,40), ni=1)[1]==by_axis(lambda T: T or 16, T)

def test_one_number_is_at_most_that_on_each_axis():
    "So one that both axes have is a number again, and the largest one changes nothing"
    assert [off(for_lines(), T, (49,38), ni=1)[1] for T in (16,8,4,2)]==[(16,4),(8,4),4,2]

def test_a_first_layer_and_pools_with_strides_that_differ():
    assert get_output_stride(first_uneven())==(8,4)
    for T in ((8,1),(2,4),(1,2)): assert off(first_uneven(), T, (49,33), (64,48))[1]==T

def test_one_axis_alone():
    "A network of one axis takes a number, or a tuple of one"
    assert [off(signal(), T, (161,))[1] for T in (4,(2,))]==[4,2]

def test_volumes():
    "Frames are kept apart from their sides: strides (8, 16, 16)"
    assert get_output_stride(volumes())==(8,16,16)
    for T in ((1,16,16),(2,8,4)): assert off(volumes(), T, (9,33,34))[1]==T

videos = dict(r3d_18=[(1,16,16),(2,8,8)], r2plus1d_18=[(1,16,16)], mc3_18=[(1,8,8)])
@pytest.mark.slow
@pytest.mark.parametrize('name,T', [(n,T) for n,Ts in videos.items() for T in Ts])
def test_video_networks_of_torchvision(name, T): assert off(body(getattr(video,name)()), T, (9,33,34))[1]==T

@pytest.mark.slow
def test_a_video_network_of_separable_convs(): assert off(video.s3d().features[:-1], (1,16,16), (17,65,66))[1]==(1,16,16)

def centred(x): return x-x.mean((2,3),keepdim=True)/2

strides = st.sampled_from([1,2,(1,2),(2,1)])
@st.composite
def drawn_nets(draw):
    "A network of convs, pools and a mean, its strides drawn by axis, and sides of an image"
    def layer(ni, s):
        makers = [lambda: nn.Conv2d(ni,4,draw(st.sampled_from([3,(3,1),(2,3)])),s,1), lambda: nn.AvgPool2d(3,s,1),
            lambda: nn.MaxPool2d(2,s,ceil_mode=True), lambda: nn.Conv2d(ni,4,3,s,1,padding_mode='reflect')]
        return draw(st.sampled_from(makers))()
    layers = [layer(4,draw(strides)) for _ in range(draw(st.integers(2,4)))]
    layers.insert(draw(st.integers(0,len(layers))), Call(centred))
    net = nn.Sequential(nn.Conv2d(3,4,3,draw(strides),1), *layers, nn.Conv2d(4,4,3,1,1))
    return net,[draw(st.integers(40,70)) for _ in range(2)]

@settings(max_examples=15, deadline=None, suppress_health_check=[*HealthCheck])
@given(drawn_nets(), st.data())
def test_drawn_strides_by_axis(drawn, data):
    "Whatever the strides, each axis can have each divisor of its own"
    net,sides = drawn
    S = as_tuple(get_output_stride(net), 2)
    T = tuple(data.draw(st.sampled_from([t for t in (1,2,4,8,16,32) if s%t==0])) for s in S)
    assert off(net, T, sides)[1]==by_axis(int, T)

# What is refused

refused = [((32,12),CannotDilate,'a tuple of one of [1, 2, 4, 8, 16, 32] and one of [1, 2, 4, 8, 16, 32], not (32, 12)'),
    ((8,8,8),CannotDilate,'one for each side of an image: 2, not (8, 8, 8)'), ((64,8),CannotDilate,'not (64, 8)'),
    ((8.,8),TypeError,'not (8.0, 8)'), ((True,8),TypeError,'not (True, 8)'), ((),CannotDilate,'2, not ()')]
@pytest.mark.parametrize('T,error,words', refused, ids=str)
def test_an_impossible_tuple_is_refused(T, error, words):
    "In words that say what each axis can have; nothing is changed"
    m = small()
    before = pickle.dumps(m)
    with pytest.raises(error) as e: set_output_stride(m, T)
    assert words in str(e.value) and pickle.dumps(m)==before

def test_a_number_that_no_axis_has_is_refused():
    "And both forms are offered, where the native strides differ"
    with pytest.raises(CannotDilate) as e: set_output_stride(for_lines(), 3)
    assert 'one of [1, 2, 4, 8, 16], or a tuple of one of [1, 2, 4, 8, 16] and one of [1, 2, 4], not 3' in str(e.value)
    with pytest.raises(CannotDilate, match='not .4, 8.'): set_output_stride(for_lines(), (4,8))

# What is stored

class Spaced(nn.Module):
    "Somebody's own module that says itself how fine its map is"
    spacing = 1
    def __init__(self):
        super().__init__()
        self.spacing = 1
    def forward(self, x): return x[(...,*[slice(None,None,d) for d in as_tuple(self.spacing,2)])].mean((2,3))

def kept(m):
    "The numbers and tuples that the library has put on the modules of `m`"
    settings = [v for o in m.modules() for k,v in vars(o).items() if k in ('_by_phases','spacing','keep','_phases')]
    return [o for v in settings for o in (v[:3] if isinstance(v,Phases) else [v])]

@pytest.mark.parametrize('make', [lambda: timm.create_model('test_efficientnet'), lambda: pool_over(small()),
    lambda: create_deeplab_model(small, 4, pretrained=False, rates=(1,2), cut=-4)], ids=['phases','pools','deeplab'])
def test_numbers_are_stored_where_the_axes_agree(make):
    "As in 0.0.2 and 0.0.3, whose pickles load; a tuple stands there only where the axes differ"
    m = make()
    set_output_stride(m, 8)
    even = kept(m)
    assert even and {*map(type,even)}=={int}
    assert tuple in map(type, kept(set_output_stride(m,(8,32))))
    assert kept(set_output_stride(m,(8,8)))==even

def test_a_module_that_has_a_spacing_is_given_a_number():
    "Or a tuple, where the axes differ"
    m = nn.Sequential(nn.Conv2d(3,4,3,2,1), nn.Conv2d(4,4,3,2,1), Spaced())
    assert [set_output_stride(m,T)[2].spacing for T in (1,(4,2),(2,2),4)]==[4,(1,2),2,1]

def test_an_uneven_network_goes_through_a_pickle():
    "And from there to any other stride"
    m,x = alive(timm.create_model('test_efficientnet')).double(),torch.randn(1,3,97,66).double()
    native = m.forward_features(x)
    set_output_stride(m, (8,32))
    again = pickle.loads(pickle.dumps(m))
    assert get_output_stride(again)==(8,32) and again(x).equal(m(x))
    close(set_output_stride(again,(32,16)).forward_features(x)[...,::2], native, 1e-9)

# What else takes a stride

def test_grid_error_explain_and_class_maps_take_a_tuple():
    net = alive(small(n_out=5))
    assert grid_error(net, (8,None))<1e-4 and set(grid_error(net, (8,32), levels=True))=={2,4,8,16,32}
    says = {str(o.becomes) for o in explain(net, (32,8))}
    assert {'as it is','stride 2 -> 2x1','stride 2 -> 2x1, taps 1x2 times as far apart','taps 1x4 times as far apart'}<=says
    assert class_maps(net, torch.randn(2,3,96,64), (8,32)).shape==(2,5,12,2)

def test_grid_error_of_volumes_needs_no_image(): assert grid_error(alive(volumes()), (1,16,16))<1e-4

def test_a_value_stays_at_its_pixel_on_each_axis():
    "A map that rises from pixel to pixel says where it stands, at each stride"
    for T in ((16,4),(4,4),(16,2),(2,4)):
        resize = ToPixels((16,4), 16)
        resize.spacing = by_axis(lambda S,T: S//T, (16,4), T)
        rows,columns = [torch.arange(96//t)*t+first for t,first in zip(T,(7.5,1.5))]
        y = resize((1000*rows[:,None]+columns)[None,None], (96,96))[0,0]
        px = torch.arange(96.)
        torch.testing.assert_close(y[16:72,8:80], (1000*px[:,None]+px)[16:72,8:80])

def test_rates_of_deeplab_stay_in_pixels_on_each_axis():
    m = alive(create_deeplab_model(small, 4, pretrained=False, rates=(1,2), output_stride=(8,32), cut=-4)).double()
    rates = [o.dilation for o in m[1].modules() if isinstance(o,nn.Conv2d) and o.kernel_size==(3,3)]
    assert rates==[(4,1),(8,2)]
    x = torch.randn(1,3,97,130).double()
    def logits(T): return set_output_stride(m,T)[1](m[0](x))
    close(logits((8,32))[...,::4,:], logits(32), 1e-9)

def test_deeplab_plus_on_a_body_of_uneven_strides():
    "Its level is named by a tuple, and the head's rates are steps of 32 pixels"
    def lines(pretrained=False): return nn.Sequential(block(3,16,2), block(16,16,(2,1)), block(16,32,2), block(32,32,(2,1)), nn.AdaptiveAvgPool2d(1))
    make = partial(create_deeplab_model, lines, 4, pretrained=False, rates=(1,), output_stride=(8,4), cut=-1)
    m = alive(make(skip=(4,2))).double()
    assert get_output_stride(m)==(8,4) and m(torch.randn(1,3,64,48).double()).shape==(1,4,64,48)
    assert [o.dilation for o in m[1].modules() if isinstance(o,nn.Conv2d) and o.kernel_size==(3,3)]==[(4,8)]
    with pytest.raises(ValueError, match='one of .*4, 2.* not 4'): make(skip=4)

# In learners

@pytest.fixture(scope='module')
def path(tmp_path_factory): return make_files(tmp_path_factory.mktemp('data'))

def test_constructors_and_learners_take_a_tuple(path):
    "And a learner notes what the axes have then"
    assert get_output_stride(xresnet.xresnet18(widen=.125,output_stride=(32,8)))==(32,8)
    learn = vision_learner(class_dls(path), small, pretrained=False, output_stride=(32,8))
    assert get_output_stride(learn)==(32,8)
    learn.set_output_stride((16,None))
    assert get_output_stride(learn)==learn.output_stride==(16,8)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

@pytest.mark.parametrize('T', [(32,8),(8,32)])
def test_a_unet_on_an_uneven_encoder(path, T):
    "Its decoder is built for such maps, and its answer has the size of the image"
    learn = unet_learner(seg_dls(path), small, pretrained=False, output_stride=T)
    assert get_output_stride(learn)==T
    with torch.no_grad(): assert learn.model.eval()(torch.randn(1,3,64,64)).shape==(1,2,64,64)

@pytest.mark.slow
def test_a_report_has_rows_for_tuples(path):
    learn = vision_learner(class_dls(path), small, pretrained=False)
    with learn.no_bar(): df = output_stride_report(learn, [32,(32,8),8])
    assert [*df.index]==[32,(32,8),8] and df.grid_error.max()<1e-4
    work = df['multiply-adds G']
    assert work[32]<work.iloc[1]<work[8]

# Parts of the machinery

stems = [lambda: nn.Conv2d(3,4,4,4), lambda: nn.Sequential(nn.Conv2d(3,4,1),nn.MaxPool2d(4,4)), lambda: nn.Sequential(nn.Conv2d(3,4,1),nn.AvgPool2d(4))]
@pytest.mark.parametrize('T', [(2,1),(1,2),(8,2),(2,8)], ids=str)
@pytest.mark.parametrize('stem', stems, ids=['conv','max','avg'])
def test_a_stride_is_traded_in_part_on_an_axis(stem, T):
    "Of a stem's stride of 4, two are left on one axis, one or all on the other"
    assert off(nn.Sequential(stem(),nn.Conv2d(4,8,3,2,1)), T, (64,48), (68,60))[1]==T

@pytest.mark.parametrize('T', [(8,2),(1,8),(2,1)], ids=str)
def test_a_depthwise_conv_has_the_gradients_of_its_dilated_self(T):
    "By phases that differ by axis, in training"
    def net():
        torch.manual_seed(0)
        convs = [nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,8,3,2,1), nn.Conv2d(8,8,5,1,2,groups=8), nn.Conv2d(8,8,3,2,1)]
        return nn.Sequential(*convs).double()
    by_phases,dilated = [set_output_stride(net(),T) for _ in range(2)]
    assert by_phases[2].extra_repr()!=nn.Conv2d.extra_repr(by_phases[2])
    dilated[2].__class__ = nn.Conv2d
    x = torch.randn(2,3,33,41).double()
    grads = [torch.autograd.grad(m(x).square().sum(), [*m.parameters()]) for m in (by_phases,dilated)]
    for a,b in zip(*grads): close(a, b, 1e-9)

@pytest.mark.slow
def test_an_uneven_network_compiles_and_is_exported(tmp_path):
    "In one graph; with free sides; and as ONNX, run by onnxruntime"
    m = set_output_stride(alive(timm.create_model('test_efficientnet',num_classes=0,global_pool='')), (8,32))
    x,batch = torch.randn(2,3,96,64),torch.export.Dim('batch',min=2,max=8)
    with torch.no_grad():
        want = m(x)
        close(torch.compile(m,fullgraph=True,backend='aot_eager')(x), want)
        sides = {2:torch.export.Dim('h',min=2,max=16)*32, 3:torch.export.Dim('w',min=2,max=16)*32}
        program = torch.export.export(m, (x,), dynamic_shapes=[{0:batch,**sides}])
        other = torch.randn(3,3,128,160)
        close(program.module()(other), m(other))
        torch.onnx.export(program, (), dynamo=True, verbose=False).save(tmp_path/'m.onnx')
        run = onnxruntime.InferenceSession(tmp_path/'m.onnx')
        found, = run.run(None, {run.get_inputs()[0].name:other.numpy()})
        close(torch.tensor(found), m(other))

# What a strict reader found

def conv(ni, nf, s=1, ks=3, pad=1): return nn.Conv2d(ni,nf,ks,s,pad)

def far(x): return nn.functional.pad(x,(0,10))[...,10:]
def test_taps_far_away_show_beside_an_axis_of_a_large_stride():
    "A native stride of 128 on one axis leaves the other its room"
    convs = [conv(3 if i==0 else 4,4,(2,2) if i<2 else (2,1)) for i in range(7)]
    assert off(nn.Sequential(*convs,Call(far)), (128,1), (257,96))[1]==(128,1)

def swapped(x): return x.transpose(2,3)
def test_a_map_with_its_sides_swapped_is_refused():
    "Where the strides differ by axis; where they agree it is exact"
    net = nn.Sequential(conv(3,4,2), conv(4,4,2), Call(swapped), conv(4,4,2))
    assert off(net, 2, (32,48))[1]==2
    with pytest.raises(CannotDilate, match='sides in another order'): set_output_stride(net, (8,2))

@pytest.mark.parametrize('first,S', [((3,4),(6,8)), ((3,5),(6,10)), ((2,3),(4,6))], ids=str)
def test_strides_of_other_primes_on_each_axis(first, S):
    net = nn.Sequential(conv(3,4,first), nn.ReLU(), conv(4,4,2))
    assert get_output_stride(net)==S
    assert off(net, first, (65,83))[1]==first

def rows_with_channels(x): return x.transpose(1,2).flatten(2)
def test_a_side_that_holds_channels_is_no_map():
    "A plain number works behind which rows are flattened with their channels"
    net = nn.Sequential(conv(3,8,2), conv(8,8,2), conv(8,8,2), conv(8,2,2), nn.ReLU(), Call(rows_with_channels))
    assert get_output_stride(set_output_stride(net,4,warn=False))==4

def test_settings_of_another_number_of_axes_are_an_error():
    "They would be cut in silence"
    for kw in (dict(output_stride=(8,)), dict(output_stride=8,offset=(3.5,)), dict(output_stride=(8,8,8))):
        with pytest.raises(ValueError): to_pixels(torch.zeros(1,1,4,4), (32,32), **kw)
    with pytest.raises(ValueError): by_axis(min, (1,2), (1,2,3))

def test_kernels_on_an_axis_without_a_stride_have_room():
    "Unpadded ones of 5 and of 9 taps, as networks of sound have them"
    sound = nn.Sequential(conv(3,4,(1,2),(5,3),(0,1)), conv(4,4,(1,2),(5,3),(0,1)), conv(4,4,(1,2)))
    assert off(sound, (1,2), (64,49))[1]==(1,2)
    assert off(nn.Sequential(conv(3,4,(1,2),(9,3),(0,1)), conv(4,4,(1,2),(9,3),(0,1))), (1,1), (64,49))[1]==1

class Multiples(nn.Module):
    "Refuses sides that are no multiples"
    def __init__(self, sides, *mods):
        super().__init__()
        self.sides,self.mods = sides,nn.Sequential(*mods)
    def forward(self, x):
        if any(n%side for n,side in zip(x.shape[2:],self.sides)): raise ValueError('no multiple')
        return self.mods(x)

@pytest.mark.parametrize('S,T', [((2,32),(2,8)), ((32,2),(8,2))], ids=str)
def test_a_network_that_wants_multiples_of_its_strides(S, T):
    convs = [conv(3 if i==0 else 4,4,tuple(2 if S[ax]>2 or i==0 else 1 for ax in (0,1))) for i in range(5)]
    assert off(Multiples(S,*convs), T, (64,64))[1]==T

def test_a_tuple_of_one_number_is_that_number(path):
    "Also of a U-Net, which cannot be changed; and a learner notes numbers"
    learn = unet_learner(seg_dls(path), small, pretrained=False, output_stride=16)
    for T in (16,(16,16),(16,None)): assert get_output_stride(set_output_stride(learn,T))==16
    with pytest.raises(CannotDilate, match='decoder of a U-Net'): set_output_stride(learn, (16,8))
    learn = deeplab_learner(seg_dls(path), small, pretrained=False, rates=(), cut=-4, output_stride=(None,8))
    assert learn.output_stride==(32,8)

def test_the_command_answers_of_a_single_1x1_conv(): assert check(nn.Sequential(nn.Conv2d(3,8,1)), 1).traded==0
