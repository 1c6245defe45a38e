"Is it dilation that pays, or a skip? Heads on one body at several output strides: mIoU on scenes of digits and of photos, from random and from kept weights"
import itertools, sys, numpy as np
from functools import lru_cache
from skimage import data
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.demo import name_digits, places, scene_dls
from fastai_dilation.evaluate import peak_memory, time_in_turns
from fastcore.script import call_parse
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import grid_diff, lite0, packaged_photos, with_weights

heads = {'1x1 conv':dict(rates=()), 'DeepLabV3':dict(rates=(1,)), 'a skip':dict(rates=(),skip=4), 'DeepLabV3+':dict(rates=(1,),skip=4),
    'DeepLabV3+, plain convs':dict(rates=(1,),skip=4,separable=False)}

# what is cut out of which photo: top, bottom, left, right
cuts = dict(astronaut=(20,400,40,420), cat=(0,300,40,340), cup=(5,385,70,450), tower=(20,360,40,380), flower=(70,350,160,440), motorcycle=(30,470,140,580))

@lru_cache(None)
def things():
    "Things cut from photos, and grey textures to paste them on"
    ims = packaged_photos()
    cut = [PILImage.create(ims[k][t:b,l:r]) for k,(t,b,l,r) in cuts.items()]
    return cut,[data.grass(),data.gravel(),data.brick()]

@lru_cache(4096)
def photo_scene(i, n=8, sz=160):
    "`n` small round things of other sizes, angles and colours on a texture, and the mask of what they are"
    rng,(cut,textures) = np.random.default_rng(i),things()
    def tint(im, least): return im*rng.uniform(least, 1, 3)
    y,x = rng.integers(0, 512-sz, 2)
    img,mask = tint(textures[rng.integers(3)][y:y+sz,x:x+sz,None], .3),np.zeros((sz,sz),'uint8')
    for top,left,s,c in places(rng, n, sz, (20,44), (0,len(cut))):
        thing = cut[c].rotate(rng.uniform(-30,30), resample=2).resize((s,s), 2)
        if rng.random()<.5: thing = thing.transpose(0)
        disc = np.hypot(*(np.mgrid[:s,:s]-(s-1)/2))<s/2
        at = (slice(top,top+s),slice(left,left+s))
        img[at] = np.where(disc[...,None], tint(np.asarray(thing),.6), img[at])
        mask[at] = np.where(disc, c+1, mask[at])
    return img.clip(0,255).astype('uint8'),mask

def photo_dls(n, n_valid):
    db = DataBlock((ImageBlock,MaskBlock(['texture',*cuts])), get_x=lambda i: PILImage.create(photo_scene(i)[0]),
        get_y=lambda i: PILMask.create(photo_scene(i)[1]), splitter=FuncSplitter(lambda i: i>=100_000),
        batch_tfms=Normalize.from_stats([.5]*3, [.5]*3)) # as this network's weights want it
    return db.dataloaders([*range(n), *range(100_000,100_000+n_valid)], bs=8, num_workers=0)

def net(widen):
    def arch(pretrained=False, n_out=10): return xresnet18(n_out=n_out, widen=widen)
    return arch

def loss(dls): return CrossEntropyLossFlat(axis=1, weight=tensor([.3]+[1.]*(get_c(dls)-1)))

def classifier(arch, n, seed):
    "The body of `arch`, trained at 32 to say which of ten digits are in a scene of three larger ones"
    set_seed(seed, reproducible=True)
    learn = Learner(scene_dls(n, 100, masks=False, bs=16), arch(n_out=10), loss_func=BCEWithLogitsLossFlat(), metrics=accuracy_multi)
    with learn.no_logging(): learn.fit_one_cycle(1, 5e-3)
    return create_body(learn.model).state_dict()

def learner(dls, head, T, seed, arch, weights=None, freeze=False):
    "`head` on a body of `arch` with `weights`, if any; `freeze` keeps the body as it is, its norms' statistics too"
    set_seed(seed, reproducible=True)
    kw = dict(train_bn=False, cbs=BnFreeze) if freeze else {}
    learn = deeplab_learner(dls, arch, pretrained=False, normalize=False, output_stride=T, loss_func=loss(dls), metrics=JaccardCoeffMulti(),
        **heads[head], **kw)
    if weights: learn.model[0].load_state_dict(weights)
    if freeze: learn.freeze()
    return learn

def score(learn):
    "mIoU, and of digits also the IoU of the thinnest, and the share of them that are named rightly"
    gather,jaccard = GatherPredsCallback(),learn.metrics[0]
    miou = learn.validate(cbs=gather)[1]
    if get_c(learn.dls)!=11: return {'mIoU':miou}
    one = 2 # class 0 is paper
    return {'mIoU':miou, 'IoU of the 1':jaccard.inter[one]/jaccard.union[one], 'named':name_digits(gather.preds.argmax(1), learn.dls.valid.items)}

def step(model, loss, x, y): loss(model(x), y).backward()

def costs(dls, models, n=4):
    "Seconds and bytes of a training step of each of `models`, in turns"
    fs = [partial(step, m.train(), loss(dls), *dls.one_batch()) for m in models]
    return [np.median(ts) for ts in time_in_turns(fs, n)],[peak_memory(f) for f in fs]

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
    secs,mem = costs(dls, [learner(dls, *o, 0, arch, freeze=freeze).model for o in cases])
    for i,((head,T),t,m) in enumerate(zip(cases, secs, mem)):
        more = max(1, round(max(secs)/t)) if same_seconds else 1
        scores = [trained(learner(dls, head, T, s, arch, bodies.get(s), freeze), epochs*more, lr) for s in seeds]
        cells = {'head':head, 'output stride':T, 'steps':epochs*more*len(dls.train)}
        cells |= {'time of a step':f'{t/min(secs):.1f}', 'memory':f'{m/min(mem):.1f}'}
        show_scores(cells, seeds, scores, header=i==0)

def beside_smp(dls, seeds, epochs, lr, n, T=16):
    "Our DeepLabV3+ on torchvision's resnet18 beside segmentation_models.pytorch's, the body with a classifier's weights"
    import segmentation_models_pytorch as smp
    from torchvision.models import resnet18
    def arch(n_out): return nn.Sequential(*create_body(resnet18(), cut=-2), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(512,n_out))
    weights = {s:classifier(arch,n,s) for s in seeds}
    def ours(seed):
        m = create_deeplab_model(resnet18, 11, pretrained=False, output_stride=T, rates=(1,2,3), skip=4)
        with_weights(m[0], weights[seed])
        return m
    def theirs(seed):
        m = smp.DeepLabV3Plus('resnet18', encoder_weights=None, encoder_output_stride=T, decoder_atrous_rates=(2,4,6), classes=11)
        with_weights(m.encoder, weights[seed])
        return m
    def learner(new_model, seed):
        set_seed(seed, reproducible=True)
        return Learner(dls, new_model(seed), loss_func=loss(dls), metrics=JaccardCoeffMulti())
    makers = {'ours':ours, 'smp':theirs}
    a,b = models = [f(seeds[0]) for f in makers.values()]
    secs,mem = costs(dls, models)
    x = dls.one_batch()[0].as_subclass(Tensor).double()
    with torch.no_grad():
        for m in models: m.double().eval()
        native = set_output_stride(deepcopy(a[0]), 32, warn=False)(x)[0]
        errs = [grid_diff(f, native, T) for f in (a[0](x)[0],b.encoder(x)[-1])]
    for i,((name,f),e,t,m) in enumerate(zip(makers.items(), errs, secs, mem)):
        scores = [trained(learner(f,s), epochs, lr) for s in seeds]
        cells = {'DeepLabV3+':name, 'error of the body':f'{e:.1g}', 'time of a step':f'{t/secs[1]:.2f}', 'memory':f'{m/mem[1]:.2f}'}
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
    real:bool=False,     # things cut from photos, and a body that keeps its ImageNet weights: EfficientNet-Lite0
    smp:bool=False,      # beside segmentation_models.pytorch, and nothing else
    widen:float=.5,      # width of the xresnet18
    n_class:int=4800,    # scenes for the classifier
):
    "Print a table in Markdown"
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    seeds = [*map(int,seeds.split())]
    dls,arch = (photo_dls if real else scene_dls)(n, n_valid),'tf_efficientnet_lite0' if real else net(widen)
    if smp: return beside_smp(dls, seeds, epochs, lr, n_class)
    cases,bodies = [*itertools.product([o for o in heads if re.search(only,o)], map(int,strides.split()))],{}
    if real: bodies = {s:{f'model.{k}':v for k,v in lite0().state_dict().items() if 'classifier' not in k} for s in seeds}
    elif frozen: bodies = {s:classifier(arch,n_class,s) for s in seeds}
    all_heads(dls, cases, seeds, epochs, lr, arch, same_seconds, bodies, frozen or real)
