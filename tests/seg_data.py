"Small files, and the functions that an exported learner asks for: nothing here imports fastai_dilation"
import numpy as np
from fastai.vision.all import *

def make_files(path, n=12, sz=64):
    "`n` pictures in two classes, and a mask beside each"
    rng = np.random.default_rng(0)
    for i in range(n):
        mask = np.zeros((sz,sz),'uint8')
        y,x = rng.integers(0, sz//2, 2)
        mask[y:y+sz//2,x:x+sz//2] = 1
        img = (mask*150+rng.integers(0,80,(sz,sz))).astype('uint8')
        for d,a in ((f'images/{"ab"[i%2]}',img), ('masks',mask)):
            (path/d).mkdir(parents=True, exist_ok=True)
            PILImageBW.create(a).save(path/d/f'{i}.png')
    return path

def mask_of(o): return o.parent.parent.parent/'masks'/o.name

def class_dls(path): return ImageDataLoaders.from_folder(path/'images', valid_pct=.34, seed=1, bs=4, num_workers=0)
def seg_dls(path):
    "`DataLoaders` for the masks of `make_files`"
    fs = get_image_files(path/'images')
    return SegmentationDataLoaders.from_label_func(path, fs, mask_of, codes=['no','yes'], valid_pct=.34, seed=1,
        bs=4, num_workers=0)
