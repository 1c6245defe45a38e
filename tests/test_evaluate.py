"The report, the pools' positions: exactness of answers, learners left alone, several kinds of networks and tasks"
import math, random
from functools import partial
import numpy as np, pytest, timm, torch, torchvision.models as tvm
from torch import nn
from fastai.vision.all import BCEWithLogitsLossFlat, Callback, DataLoaders, Learner, MSELossFlat, SaveModelCallback
from fastai.vision.all import accuracy, accuracy_multi, create_body, mae, noop
from fastai.vision.models import xresnet
from fastai_dilation.all import create_unet_model, get_output_stride, set_output_stride, unet_learner, vision_learner
from fastai_dilation.all import output_stride_report, pool_over
from fastai_dilation.ask import multiply_adds
from fastai_dilation.evaluate import peak_memory
from seg_data import class_dls, make_files, seg_dls
from util import close, narrow, randomize, same, small, small_densenet, tensors

@pytest.fixture(scope='module')
def path(tmp_path_factory): return make_files(tmp_path_factory.mktemp('data'))

se = ['xse_resnet18','xse_resnet50','xse_resnext34_deep','xse_resnext18_deeper','xse_resnext50']
nets = {o:partial(narrow,o) for o in se+['xresnet18','xresnet34','xresnet18_deep','xresnext50']}
nets |= {o:getattr(tvm,o) for o in ('resnet18','vgg11_bn','efficientnet_b0','mobilenet_v3_small')}
nets['timm resnet18d'] = lambda: timm.create_model('resnet18d')

@pytest.mark.slow
@pytest.mark.parametrize('name', nets)
def test_answers(name):
    "Over the native grid a classifier's answers, with SE or without, are the native ones; it can be undone"
    # SE gates multiply rounding errors in a random net: double precision tells those from a wrong rule
    m = randomize(nets[name]()).double()
    ts,x = tensors(m),torch.randn(2,3,97,130).double()
    with torch.no_grad():
        native = m(x)
        pool_over(m)
        for T in (16,8):
            close(set_output_stride(m,T)(x), native)
            assert get_output_stride(m)==T
        dilated = pool_over(m,'all')(x)
        assert (dilated-native).abs().max()>1e-4*native.abs().max() or '_deep' in name
        assert set_output_stride(m, 512 if '_deeper' in name else 128 if '_deep' in name else 32)(x).equal(native)
    assert same(m, ts)

def test_inside():
    "The mean of all positions up to the last native one; natively of all"
    m,x = randomize(small()),torch.randn(1,3,160,96)
    with torch.no_grad():
        fs = nn.Sequential(*list(set_output_stride(m,8).children())[:-4])(x)
        close(pool_over(m,'inside')(x), m[11](fs[...,:17,:9].mean((2,3))))
        assert pool_over(set_output_stride(m,32),'inside')(x).equal(pool_over(m,'all')(x))

def test_pool_over_refuses_a_head_without_a_pool():
    "Nets whose head has no adaptive pool are refused; the pools of a U-Net's gates are no head's"
    for m in (small_densenet(), nn.Conv2d(3,3,3)):
        with pytest.raises(ValueError, match='no adaptive pool'): pool_over(m)
    m = create_unet_model(partial(xresnet.xse_resnet18,widen=.25), 2, (64,64), pretrained=False, output_stride=8)
    assert get_output_stride(pool_over(m))==8 and m(torch.randn(1,3,64,64)).shape==(1,2,64,64)

def test_multiply_adds():
    "Against the count by hand, natively and dilated"
    head = nn.AdaptiveAvgPool2d(1),nn.Flatten(),nn.Linear(16,5)
    m = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.Conv2d(8,16,3,2,1), *head)
    x = torch.randn(4,3,32,32)
    assert multiply_adds(m, x)==16*16*27*8 + 8*8*72*16 + 16*5
    assert multiply_adds(set_output_stride(m,2), x)==16*16*27*8 + 16*16*72*16 + 16*5

def test_multiply_adds_unet():
    "In the middle of training, which goes on as it was"
    m,x = create_unet_model(small, 2, (64,64), pretrained=False, output_stride=8),torch.randn(2,3,64,64)
    m[0].eval()
    m(x).mean().backward()
    modes,ts = [o.training for o in m.modules()],tensors(m)
    n = multiply_adds(m, x)
    assert n==multiply_adds(m, x[:1])>multiply_adds(m[0], x)>0
    assert [o.training for o in m.modules()]==modes and same(m, ts)

def test_peak_memory(capfd):
    "Counts what lives at the same time, and prints nothing"
    assert peak_memory(lambda: torch.zeros(2**20) + torch.zeros(2**20))==12*2**20
    assert capfd.readouterr()==('','')

class Boom(Callback):
    n = 0
    def after_pred(self):
        self.n += 1
        if self.n==2: raise KeyboardInterrupt

@pytest.mark.parametrize('stop', [False,True])
def test_learner_as_it_was(path, stop):
    "Model, callbacks, metrics, recorder, random numbers; SaveModelCallback saves nothing"
    dls = class_dls(path)
    learn = vision_learner(dls, small, pretrained=False, output_stride=16, metrics=accuracy, path=path,
        cbs=SaveModelCallback(fname='best'))
    with learn.no_logging(): learn.fit(1)
    (path/'models'/'best.pth').unlink()
    if stop: learn.add_cb(Boom())
    model,ts,cbs,vals = learn.model,tensors(learn.model),list(learn.cbs),list(learn.recorder.values)
    def states(): return torch.get_rng_state().tolist(),random.getstate(),np.random.get_state()[1].tolist()
    before = states()
    try: output_stride_report(learn, n=2)
    except KeyboardInterrupt: assert stop
    else: assert not stop
    assert learn.model is model and same(model, ts) and list(learn.cbs)==cbs and learn.recorder.values==vals
    assert learn.output_stride==get_output_stride(model)==16
    assert states()==before
    assert not (path/'models'/'best.pth').exists() and not torch.are_deterministic_algorithms_enabled()
    if stop: learn.remove_cb(Boom)
    with learn.no_logging(): learn.fit(1)
    assert (path/'models'/'best.pth').exists()

def test_rows_and_figures_of_the_report(path):
    "Rows, columns, figures: loss and metrics are those of `validate` at that stride"
    dls = class_dls(path)
    learn = vision_learner(dls, small, pretrained=False, metrics=accuracy)
    randomize(learn.model)
    df = output_stride_report(learn, (8,16), plot=True)
    columns = ['loss','accuracy','agreement','grid_error','images/s','peak MB','multiply-adds G']
    assert list(df.index)==[8,16] and list(df.columns)==columns
    assert df.notna().all().all() and (df['images/s']>0).all() and df.grid_error.max()<1e-5
    assert df.loc[8,'multiply-adds G']>df.loc[16,'multiply-adds G']
    for T in (8,16):
        with learn.no_bar(): want = learn.set_output_stride(T).validate()
        assert np.allclose(df.loc[T,['loss','accuracy']].tolist(), want, rtol=1e-5)

def test_the_report_takes_another_dataloader(path):
    "Of which it reads `n` batches"
    dls = class_dls(path)
    learn = vision_learner(dls, small, pretrained=False, metrics=accuracy)
    df = output_stride_report(learn, (8,), dl=dls.train.new(shuffle=False, drop_last=False), n=2)
    assert list(df.index)==[8] and df.agreement.between(0,1).all()

class Head(nn.Module):
    def forward(self, x): return x.mean((2,3))

y = torch.ones(8,4)
tasks = [(BCEWithLogitsLossFlat(), accuracy_multi, y), (MSELossFlat(), mae, y)]
tasks += [(nn.CrossEntropyLoss(), accuracy, y[:,0].long())]
@pytest.mark.parametrize('loss,metric,y', tasks, ids=['labels','numbers','plain'])
def test_other_tasks(loss, metric, y):
    "Several labels, numbers, a loss without `decodes`, a head without a pool module"
    from torch.utils.data import TensorDataset
    from fastai.data.load import DataLoader
    ds = TensorDataset(torch.randn(8,3,64,64), y)
    dls = DataLoaders(DataLoader(ds, bs=4), DataLoader(ds, bs=4))
    net = nn.Sequential(nn.Conv2d(3,8,3,2,1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8,4,3,2,1), Head())
    dls.valid.n_inp = dls.train.n_inp = 1
    df = output_stride_report(Learner(dls, net, loss_func=loss, metrics=metric), (4,2,1), n=2)
    assert df.grid_error.max()<1e-5 and math.isnan(df.agreement[1])==(not isinstance(loss, BCEWithLogitsLossFlat))

def test_unet_refused(path):
    "A U-Net cannot change its stride, so it has no report, with gradients or without"
    learn = unet_learner(seg_dls(path), small, pretrained=False)
    for f in (noop, lambda o: o.mean().backward()):
        f(learn.model(learn.dls.one_batch()[0]))
        with pytest.raises(ValueError, match='build a learner at each output stride'): output_stride_report(learn)

@pytest.mark.parametrize('arch', [small, tvm.resnet18, partial(xresnet.xse_resnet18,widen=.25)])
def test_cut_after_pool_over(arch):
    "`create_body` finds the head by its pool, also by one that reads the native grid"
    want,m = create_body(arch()),arch()
    body = create_body(set_output_stride(pool_over(m,'grid'), 8))
    assert list(body.state_dict())==list(want.state_dict())
