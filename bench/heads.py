"Is it dilation that pays, or a skip? Heads on one body at several output strides: mIoU on scenes of digits"
import itertools, sys
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.demo import name_digits, scene_dls
from fastcore.script import call_parse
from timing import costs
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import grid_diff, with_weights

heads = {'1x1 conv':dict(rates=()), 'DeepLabV3':dict(rates=(1,)), 'a skip':dict(rates=(),skip=4),
    'DeepLabV3+':dict(rates=(1,),skip=4), 'DeepLabV3+, plain convs':dict(rates=(1,),skip=4,separable=False)}

def net(widen):
    "An `xresnet18` of this width, as learners want it"
    def arch(pretrained=False, n_out=10): return xresnet18(n_out=n_out, widen=widen)
    return arch

loss = CrossEntropyLossFlat(axis=1, weight=tensor([.3]+[1.]*10))

def classifier(arch, n, seed):
    "The body of `arch`, trained at 32 to say which of ten digits are in a scene of three larger ones"
    set_seed(seed, reproducible=True)
    dls = scene_dls(n, 100, masks=False, bs=16)
    learn = Learner(dls, arch(n_out=10), loss_func=BCEWithLogitsLossFlat(), metrics=accuracy_multi)
    with learn.no_logging(): learn.fit_one_cycle(1, 5e-3)
    return create_body(learn.model).state_dict()

def learner(dls, head, T, seed, arch, weights=None, freeze=False):
    "`head` on a body of `arch` with `weights`, if any; `freeze` keeps the body as it is, its norms' statistics too"
    set_seed(seed, reproducible=True)
    kw = dict(train_bn=False, cbs=BnFreeze) if freeze else {}
    learn = deeplab_learner(dls, arch, pretrained=False, normalize=False, output_stride=T, loss_func=loss,
        metrics=JaccardCoeffMulti(), **heads[head], **kw)
    if weights: learn.model[0].load_state_dict(weights)
    if freeze: learn.freeze()
    return learn

def score(learn):
    "mIoU, the IoU of the thinnest digit, and the share of digits that are named rightly"
    gather,jaccard = GatherPredsCallback(),learn.metrics[0]
    miou = learn.validate(cbs=gather)[1]
    one = 2 # class 0 is paper
    named = name_digits(gather.preds.argmax(1), learn.dls.valid.items)
    return {'mIoU':miou, 'IoU of the 1':jaccard.inter[one]/jaccard.union[one], 'named':named}

def step(model, x, y): loss(model(x), y).backward()

def costs_of_step(dls, models):
    "Seconds and bytes of a training step of each of `models`, in turns"
    return costs([partial(step, m.train(), *dls.one_batch()) for m in models])

def show(*cells): print('| '+' | '.join(map(str,cells))+' |', flush=True)

def show_scores(cells, seeds, scores, header):
    "A row of a table: `cells`, then each score of each seed; with its title, if it is the first"
    names = [*cells, *[f'{k}, seed {s}' for k in scores[0] for s in seeds]]
    if header: show(*names), show(*['---']*len(names))
    show(*cells.values(), *[f'{o[k]:.2f}'.lstrip('0') for k in scores[0] for o in scores])

def trained(learn, epochs, lr):
    "The scores of `learn` after `epochs`"
    with learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return score(learn)

def all_heads(dls, cases, seeds, epochs, lr, arch, same_seconds, bodies, freeze):
    "A row for each head and stride"
    secs,mem = costs_of_step(dls, [learner(dls, *o, 0, arch, freeze=freeze).model for o in cases])
    for i,((head,T),t,m) in enumerate(zip(cases, secs, mem)):
        more = max(1, round(max(secs)/t)) if same_seconds else 1
        scores = [trained(learner(dls, head, T, s, arch, bodies.get(s), freeze), epochs*more, lr) for s in seeds]
        cells = {'head':head, 'output stride':T, 'steps':epochs*more*len(dls.train)}
        cells |= {'time of a step':f'{t/min(secs):.1f}', 'memory':f'{m/min(mem):.1f}'}
        show_scores(cells, seeds, scores, header=i==0)

def beside_smp(dls, seeds, epochs, lr, n, T=16):
    "Our DeepLabV3+ on torchvision's resnet18 beside segmentation_models.pytorch's, with a classifier's weights"
    import segmentation_models_pytorch as smp
    from torchvision.models import resnet18
    def arch(n_out):
        head = nn.AdaptiveAvgPool2d(1),Flatten(),nn.Linear(512,n_out)
        return nn.Sequential(*create_body(resnet18(), cut=-2), *head)
    weights = {s:classifier(arch,n,s) for s in seeds}
    def ours(seed):
        m = create_deeplab_model(resnet18, 11, pretrained=False, output_stride=T, rates=(1,2,3), skip=4)
        with_weights(m[0], weights[seed])
        return m
    def theirs(seed):
        m = smp.DeepLabV3Plus('resnet18', encoder_weights=None, encoder_output_stride=T, classes=11,
            decoder_atrous_rates=(2,4,6))
        with_weights(m.encoder, weights[seed])
        return m
    def learner(new_model, seed):
        set_seed(seed, reproducible=True)
        return Learner(dls, new_model(seed), loss_func=loss, metrics=JaccardCoeffMulti())
    makers = {'ours':ours, 'smp':theirs}
    a,b = models = [f(seeds[0]) for f in makers.values()]
    secs,mem = costs_of_step(dls, models)
    x = dls.one_batch()[0].as_subclass(Tensor).double()
    with torch.no_grad():
        for m in models: m.double().eval()
        native = set_output_stride(deepcopy(a[0]), 32, warn=False)(x)[0]
        errs = [grid_diff(f, native, T) for f in (a[0](x)[0],b.encoder(x)[-1])]
    for i,((name,f),e,t,m) in enumerate(zip(makers.items(), errs, secs, mem)):
        scores = [trained(learner(f,s), epochs, lr) for s in seeds]
        cells = {'DeepLabV3+':name, 'error of the body':f'{e:.1g}'}
        cells |= {'time of a step':f'{t/secs[1]:.2f}', 'memory':f'{m/mem[1]:.2f}'}
        show_scores(cells, seeds, scores, header=i==0)

@call_parse
def main(
    n:int=400,           # scenes to train on, eight a step
    n_valid:int=100,     # scenes to validate on
    epochs:int=3,        # passes through the scenes
    lr:float=4e-3,       # learning rate
    seeds:str='7 8',     # one run for each
    strides:str='32 16 8', # output strides
    only:str='',         # only the heads whose name fits this expression
    same_seconds:bool=False, # train the others as long as the slowest one?
    frozen:bool=False,   # keep the weights of a classifier of digits?
    smp:bool=False,      # beside segmentation_models.pytorch, and nothing else
    widen:float=.5,      # width of the xresnet18
    n_class:int=4800,    # scenes for the classifier
):
    "Print a table in Markdown"
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    seeds = [*map(int,seeds.split())]
    dls,arch = scene_dls(n, n_valid),net(widen)
    if smp: return beside_smp(dls, seeds, epochs, lr, n_class)
    cases,bodies = [*itertools.product([o for o in heads if re.search(only,o)], map(int,strides.split()))],{}
    if frozen: bodies = {s:classifier(arch,n_class,s) for s in seeds}
    all_heads(dls, cases, seeds, epochs, lr, arch, same_seconds, bodies, frozen)
