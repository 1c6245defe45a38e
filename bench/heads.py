"Heads on one body, with an early map and without, at several output strides: mIoU on scenes of digits after the same steps, and after the same seconds"
import itertools, numpy as np
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.demo import name_digits, scene_dls
from fastai_dilation.evaluate import time_in_turns
from fastcore.script import call_parse

heads = {'1x1 conv':dict(rates=()), 'DeepLabV3':dict(rates=(1,)), '1x1 conv and a skip':dict(rates=(),skip=4), 'DeepLabV3+':dict(rates=(1,),skip=4)}

def learner(dls, head, T, seed, widen):
    set_seed(seed, reproducible=True)
    def arch(pretrained=False): return xresnet18(widen=widen)
    loss = CrossEntropyLossFlat(axis=1, weight=tensor([.3]+[1.]*10))
    return deeplab_learner(dls, arch, pretrained=False, output_stride=T, loss_func=loss, metrics=JaccardCoeffMulti(), **heads[head])

def score(learn):
    "mIoU, and the share of the digits that are named rightly"
    gather = GatherPredsCallback()
    miou = learn.validate(cbs=gather)[1]
    return miou,name_digits(gather.preds.argmax(1), learn.dls.valid.items)

def step_times(dls, cases, widen):
    "Seconds of a training step of each case, taken in turns"
    x,y = dls.one_batch()
    learners = [learner(dls, *case, 0, widen) for case in cases]
    def step(l): l.loss_func(l.model(x), y).backward()
    return [np.median(ts) for ts in time_in_turns([partial(step,l) for l in learners], 4)]

@call_parse
def main(
    n:int=400,           # scenes to train on, eight a step
    n_valid:int=100,     # scenes to validate on
    epochs:int=3,        # passes through the scenes
    seeds:str='7 8',     # one run for each
    strides:str='32 16 8', # output strides
    only:str='',         # only the heads whose name fits this expression
    same_seconds:bool=False, # train the others as long as the slowest one?
    widen:float=.5,      # width of the xresnet18
):
    "Print a table in Markdown"
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    cases = [*itertools.product([o for o in heads if re.search(only,o)], map(int,strides.split()))]
    dls = scene_dls(n, n_valid)
    times = step_times(dls, cases, widen)
    rows = []
    for (head,T),t in zip(cases, times):
        more = max(1, round(max(times)/t)) if same_seconds else 1
        scores = []
        for seed in map(int,seeds.split()):
            learn = learner(dls, head, T, seed, widen)
            with learn.no_logging(): learn.fit_one_cycle(epochs*more, 4e-3)
            scores.append(score(learn))
        mious,named = zip(*scores)
        rows.append([head, T, epochs*more*n//8, t/min(times), *[f'{o:.2f}' for o in mious], *[f'{o:.2f}' for o in named]])
        print('| '+' | '.join(f'{o:.1f}' if isinstance(o,float) else str(o) for o in rows[-1])+' |', flush=True)
