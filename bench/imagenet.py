"The forum's test: does a pretrained classifier keep its accuracy when its strides are traded? On a folder of photos, beside timm's own `output_stride`"
import sys, timm
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.demo import lite0
from fastcore.script import call_parse
from timm.data import ImageNetInfo, resolve_data_config
from PIL.Image import Resampling
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import with_weights

wnids = ImageNetInfo('imagenet-1k').label_names()   # n01440764, ...: the classes in the order of the network's answers

def wnid(path):
    "The class of a photo: its folder, or how its name begins, as in n01440764_tench.JPEG"
    for o in (path.parent.name, path.name.split('_')[0]):
        if o in wnids: return o
    raise ValueError(f'{path.name}: neither its folder nor the beginning of its name is a class of ImageNet, such as n01440764')

def photos(path, cfg, bs):
    "`DataLoaders` of the photos in `path`, all of them for validation, as timm prepares them"
    side = cfg['input_size'][-1]
    enlarged = Resize(round(side/cfg['crop_pct']), resamples=(getattr(Resampling,cfg['interpolation'].upper()),Resampling.NEAREST))
    db = DataBlock((ImageBlock,CategoryBlock(vocab=wnids, sort=False)), get_items=get_image_files, get_y=wnid, splitter=lambda o: ([0],range_of(o)),
        item_tfms=[enlarged,CropPad(side)], batch_tfms=Normalize.from_stats(cfg['mean'],cfg['std']))
    return db.dataloaders(path, bs=bs, num_workers=0)

def network(arch, weights, **kwargs):
    "timm's `arch` with ImageNet weights: those in the file `weights`, by name or in their order; a package's; or timm's own, fetched"
    if arch=='tf_efficientnet_lite0' and not weights: return lite0(**kwargs)
    m = timm.create_model(arch, pretrained=not weights, **kwargs)
    if not weights: return m
    sd = torch.load(weights, map_location='cpu', weights_only=True)
    if sd.keys()!=m.state_dict().keys(): return with_weights(m, sd)
    m.load_state_dict(sd)
    return m

def report(model, dls, strides, n):
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=[accuracy,partial(top_k_accuracy,k=5)])
    return learn,output_stride_report(learn, strides, n=n)

def said(learn):
    with learn.no_bar(): return learn.get_preds(ds_idx=1)[0].argmax(1)

@call_parse
def main(
    images:str='',       # folder of photos, in folders by class (n01440764/a.jpg) or named by class (n01440764_tench.JPEG)
    weights:str='',      # file of weights; by default those of a package or of timm
    arch:str='tf_efficientnet_lite0', # a timm network
    strides:str='32 16 8', # output strides
    bs:int=16,           # photos in a batch
    n:int=3,             # timed forward passes of a batch
):
    "Print a table in Markdown: accuracy, agreement with the native net, and cost, for three ways to pool, and for timm's `output_stride`"
    if not images: raise SystemExit('--images is a folder of photos of ImageNet classes')
    strides,model = [*map(int,strides.split())],network(arch,weights).eval()
    dls,rows = photos(images, resolve_data_config(model=model), bs),{}
    for positions in ('all','inside','grid'):
        learn,df = report(pool_over(model,positions), dls, strides, n)
        rows |= {(f'ours, pool over {positions}',T):r for T,r in df.iterrows()}
    native = said(learn)
    for T in strides:
        try: theirs = network(arch, weights, output_stride=T)
        except Exception as e: print(f'timm at {T}: {str(e).splitlines()[0]}')
        else:
            learn,df = report(theirs.eval(), dls, [T], n)
            rows['timm',T] = df.loc[T].copy()
            rows['timm',T]['agreement'] = (said(learn)==native).float().mean().item()
            rows['timm',T]['grid_error'] = np.nan
    df = pd.DataFrame(rows).T.rename_axis(['','output stride']).drop(columns='loss').reset_index()
    print(f'{arch}, {len(dls.valid_ds)} photos of {dls.valid.one_batch()[0].shape[-1]} pixels\n\n{df.to_markdown(index=False, floatfmt=".4g")}')
