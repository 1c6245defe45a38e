"What `explain` says of a network is what `set_output_stride` does to it; and the command that says it"
import re, subprocess, sys, pytest, timm
from fastai.vision.all import nn, partial, xse_resnet18
from fastai_dilation.all import CannotDilate, InexactWarning, explain, set_output_stride
from fastai_dilation.ask import Layer, Table
from fastai_dilation.layers import DilatedPool, as_tuple
from fastai_dilation.strides import is_inside
from util import small, small_densenet

nets = dict(small=small, xse_resnet18=partial(xse_resnet18,widen=.25), densenet=small_densenet)
nets |= {o:partial(timm.create_model,o) for o in ('test_efficientnet','test_convnext')}

def largest(o): return max(o) if isinstance(o,tuple) else o
def apart(m):
    "How far apart the taps of `m` are"
    if isinstance(m, DilatedPool): return m.spacing
    return largest(m.dilation) if isinstance(m,nn.modules.conv._ConvNd) else 1

@pytest.mark.parametrize('name,T', [('small',16), *[(o,8) for o in nets]])
def test_it_is_what_happens(name, T):
    "Strides, taps and phases in the table are those of the changed network; the table changes nothing"
    net = nets[name]()
    before = [*net.state_dict()],str(net)
    layers = explain(net, T)
    assert ([*net.state_dict()],str(net))==before
    native = {n:(largest(m.stride),apart(m)) for n,m in net.named_modules() if hasattr(m,'stride')}
    set_output_stride(net, T)
    phased = [n for n,m in net.named_modules() if '_by_phases' in vars(m)]
    for layer in layers:
        m,n,says = net.get_submodule(layer.name),layer.name,str(layer.becomes)
        if 'phases' in says:
            assert is_inside(n, phased)
            continue
        traded,times = re.search(r'stride (\d+) -> (\d+)', says),re.search(r'taps (\d+) times', says)
        if max(as_tuple(m.kernel_size))>1: assert apart(m)==native[n][1]*int(times[1] if times else 1)
        if isinstance(m,nn.modules.conv._ConvNd): assert largest(m.stride)==(int(traded[2]) if traded else native[n][0])
    assert any(str(o.becomes)!='as it is' for o in layers)

def test_of_a_changed_network_it_says_how_it_runs_now():
    "Also with a hook that came later, with which a change would be another one; the table names no hook"
    net = set_output_stride(timm.create_model('tf_mobilenetv3_small_075'), 8)
    says = repr(explain(net, 8))
    inside = next(o.name for o in explain(net,8) if 'with `' in str(o.becomes))
    net.get_submodule(inside).register_forward_hook(lambda m,args,y: None)
    assert repr(explain(net,8))==says

def test_the_native_stride_changes_nothing(): assert {str(o.becomes) for o in explain(small(), 32)}=={'as it is'}

def test_the_table_prints_in_columns_and_as_html():
    "Each row is a line, no column is cut, signs of HTML are escaped; a slice is a table too, and pandas is asked for"
    table = Table([Layer('0','Conv2d 3x3','1','2','stride 2 -> 1'), Layer('body.1','AvgPool2d 2x2','2','4','as it is')])
    first,*rows = repr(table).splitlines()
    assert first.split()==[*Layer._fields] and len(rows)==2
    assert all(row.index(str(o.becomes))==first.index('becomes') for row,o in zip(rows,table))
    assert 'stride 2 -&gt; 1' in table._repr_html_() and table._repr_html_().count('<tr>')==3
    assert repr(table[:1]).count('\n')==1 and repr(Table())==''
    assert table.to_frame().loc['body.1','becomes']=='as it is'

def test_it_refuses_and_warns_as_the_change_does():
    "A transformer that makes no map, and a network that resizes its map"
    net = timm.create_model('vit_tiny_patch16_224')
    with pytest.raises(CannotDilate, match='makes no map of its tokens'): explain(net, 8)
    class Resizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*[nn.Conv2d(3 if i==0 else 4, 4, 3, 2, 1) for i in range(3)])
        def forward(self, x): return nn.functional.interpolate(self.body(x), x.shape[2:], mode='bicubic')
    with pytest.warns(InexactWarning): explain(Resizes(), 4)

@pytest.mark.slow
def test_the_command_says_whether_it_is_exact():
    "`python -m fastai_dilation`, in a process of its own; what it refuses is a test of its words"
    args = [sys.executable,'-W','ignore','-m','fastai_dilation','resnet18d','8']
    res = subprocess.run(args, capture_output=True, text=True)
    assert res.returncode==0 and '\nexact: ' in res.stdout

def test_a_network_that_is_dilated_already_is_explained_as_it_was_before():
    "Its layers have their own names: a pool, and not what took its place"
    m = small()
    native = str(explain(m, 8))
    assert str(explain(set_output_stride(m,16), 8))==native and 'MaxPool2d' in native
