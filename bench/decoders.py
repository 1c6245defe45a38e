"What becomes of whole models that answer for each pixel, when one call changes their stride: the table of docs/decoders.md"
import sys, warnings
warnings.filterwarnings('ignore')
import segmentation_models_pytorch as smp, torch, torchvision.models.segmentation as tvs
from copy import deepcopy
from functools import partial
from pathlib import Path
from fastcore.script import call_parse
from timing import fwd, ratio
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from util import alive, each_resize_is_native
from fastai_dilation import CannotDilate, get_output_stride, set_output_stride
from fastai_dilation.ask import multiply_adds
from fastai_dilation.evaluate import time_in_turns

def torchvisions(name): return partial(getattr(tvs,name), weights=None, weights_backbone=None)
def smps(name, encoder='resnet18', **kw): return partial(getattr(smp,name), encoder, encoder_weights=None, classes=3, **kw)

of_torchvision = 'deeplabv3_resnet50','fcn_resnet50','lraspp_mobilenet_v3_large'
at_16,at_32 = dict(encoder_output_stride=16),dict(encoder_output_stride=32)
of_smp = dict(DeepLabV3=at_16, DeepLabV3Plus={}, FPN={}, UPerNet={}, PSPNet=dict(encoder_depth=5,upsampling=32), PAN=at_32,
    Segformer={}, Unet={}, UnetPlusPlus={}, MAnet={}, Linknet={})
on_timm = dict(DeepLabV3Plus='tu-tf_efficientnet_lite0', FPN='tu-convnext_atto')
models = {f'torchvision `{o}`':torchvisions(o) for o in of_torchvision}
models |= {f'smp `{o}`':smps(o,**kw) for o,kw in of_smp.items()}
models |= {f'smp `{o}`, `{encoder}`':smps(o,encoder) for o,encoder in on_timm.items()}

def body_alone(m, T, x):
    "In words, what happens where the body is changed, and the decoder resizes as before"
    body = getattr(m, 'encoder', None) or m.backbone
    try: set_output_stride(body, T)
    except CannotDilate: return 'refused'
    try: y = m(x)
    except Exception: return 'raises'
    return 'runs'

def row(name, make, px, turns):
    torch.manual_seed(0)
    m = alive(make()).double().eval()
    S = get_output_stride(m)
    px = max(px, S) # PAN pools its coarsest map three times
    x = torch.randn(1, 3, px, px*3//2).double()
    T = 4 if S==8 else 8
    changed = deepcopy(m)
    try: set_output_stride(changed, T)
    except CannotDilate as e: return f'| {name} | {S} to {T} | refused: `{e.layer}` | | | | {body_alone(m,T,x)} |'
    with torch.no_grad(): off = each_resize_is_native(m, changed, x)
    work = multiply_adds(changed,x)/multiply_adds(m,x)
    times,_ = ratio(*time_in_turns([partial(fwd,changed.float(),x.float()), partial(fwd,m.float(),x.float())], turns))
    return f'| {name} | {S} to {T} | aligned | {off:.0e} | {work:.1f} | {times:.1f} | {body_alone(m.double(),T,x)} |'

@call_parse
def main(
    only:str='',   # models with this in their name
    px:int=256,    # the shorter side of an image
    turns:int=4,   # in which times are taken
):
    print('| model | output stride | its resizes | each, given a map with nothing new in it, is off by | multiply-adds | time of a forward | with the body changed alone |\n|---|---|---|---|---|---|---|')
    for name,make in models.items():
        if only in name: print(row(name,make,px,turns), flush=True)
