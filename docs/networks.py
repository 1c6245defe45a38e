"Make networks.md of networks.jsonl, in which `bench/zoo.py` has a row for each network: `python docs/networks.py`"
import json, re
from collections import Counter
from pathlib import Path

folder = Path(__file__).resolve().parent
jsonl,page = folder/'networks.jsonl',folder/'networks.md'

# the better ones first
verdicts = dict(o.split(': ', 1) for o in """exact: the native map is there, to 1e-6 of its largest value, and there is no warning
warned, but exact: there is a warning, and the last map is exact all the same
warned: the network changes, and a warning says that it is not exact, and why
refused: an error says why, and the network stays as it was
no map: refused, since it makes no map, but an answer alone
too large: more than 60 million parameters: not asked
out of time: more than two minutes of a processor
out of memory: more than 10 GB
not run: it cannot be built here, or does not run
silent: not exact, and no warning, which is a bug
crash: any other error, which is a bug""".split('\n'))
bugs = 'silent','crash'

# what most people use: what a reader calls it, library and name
best_known = [(fam,lib,name) for line in """ResNet: timm resnet18 resnet34 resnet50 resnet50d; torchvision resnet18 resnet34 resnet50; fastai xresnet34 xresnet50
ResNeXt: timm resnext50_32x4d
SE-ResNet: timm seresnet50
RegNet: timm regnety_008
DenseNet: timm densenet121; torchvision densenet121
Inception: timm inception_v3
EfficientNet: timm efficientnet_b0 tf_efficientnet_lite0; torchvision efficientnet_b0
MobileNet: timm mobilenetv2_100 mobilenetv3_large_100; torchvision mobilenet_v3_large
ConvNeXt: timm convnext_tiny; torchvision convnext_tiny
HRNet: timm hrnet_w18
ViT: timm vit_tiny_patch16_224 vit_small_patch16_224
DINOv2, DINOv3: timm vit_small_patch14_dinov2 vit_small_patch16_dinov3
Swin: timm swin_tiny_patch4_window7_224; torchvision swin_t
U-Net, built: fastai unet_resnet18
DeepLabV3: torchvision deeplabv3_resnet50
Faster R-CNN: torchvision fasterrcnn_resnet50_fpn""".split('\n')
    for fam,libs in [line.split(': ')] for lib,*names in map(str.split,libs.split('; ')) for name in names]

# The rows

def key(row): return row['library'],row['family'],row['name']

def read(path=jsonl):
    "Heads, one for each library, and rows, one for each network: the last there is"
    lines = [json.loads(o) for o in Path(path).read_text(encoding='utf-8').splitlines()] if Path(path).exists() else []
    rows = {key(o):o for o in lines if 'name' in o}
    return [o for o in lines if 'names' in o],[rows[o] for o in sorted(rows)]

def write(path, heads, rows): Path(path).write_text(''.join(f'{json.dumps(o)}\n' for o in (*heads,*rows)))

# What the page says of them

def table(cols, rows):
    "Markdown"
    return '\n'.join(f"| {' | '.join(map(str,o))} |" for o in [cols, ['---']*len(cols), *rows])

hyphen,blank = '\u2011','\u00a0' # at which no line breaks

def series(xs):
    "Figures that stay on one line; a map of another size has no error"
    return f',{blank}'.join('–' if o is None else f'{o:g}'.replace('-',hyphen) for o in xs)

# titles of columns with a value for each output stride, and what rows call them
lists = dict(strides='strides', error='errors', sides='sides', time='times', change='secs')

def cells(row):
    "What tables have of a row, by the name of the column"
    way = row.get('why', row.get('how',''))
    if way=='whole': way = f"whole, {row['passes']} passes"
    res = dict(network=f"`{row['name']}`", M=series([row['millions']] if row['millions'] else []), verdict=row['verdict'], how=way)
    res['from'] = f"{row['library']} {row['family']}"
    res['asked'] = '' if row.get('form','whole')=='whole' else f"`{row['form']}`"
    res |= {title:series(row.get(k,[])) for title,k in lists.items()}
    if row.get('single'): res['error'] += ' in single precision'
    if row.get('px',224)!=224: res['sides'] += f" of {row['px']} px"
    return res

def counted(rows):
    "How many rows have each verdict, by library"
    libs = sorted({o['library'] for o in rows})
    n = Counter((o['verdict'],k) for o in rows for k in ('all',o['library']))
    lines = [(v,n[v,'all'],*[n[v,k] for k in libs],about) for v,about in verdicts.items()]
    return table(['verdict','networks',*libs,'meaning'], lines)

def known_table(rows):
    "The best-known networks, as far as they have a row"
    rows = {(o['library'],o['name']):o for o in rows}
    found = [(lib,cells(rows[lib,name])) for _,lib,name in best_known if (lib,name) in rows]
    cols = 'network','from','verdict','strides','error','sides','how'
    return table(cols, [[(o|{'from':f"{lib} {o['asked']}"})[k] for k in cols] for lib,o in found])

def general(why):
    "A reason without names and numbers, so that equal ones can be counted"
    return re.sub(r'\d[\d.,x]*', 'N', re.sub(r'`[^`]*`', '`…`', why))

def reasons(rows):
    "Why networks are not exact, the most frequent reason first"
    groups = {}
    for o in rows:
        if 'why' in o: groups.setdefault((o['verdict'],general(o['why'])), []).append(o['name'])
    def such(names): return ', '.join(f'`{o}`' for o in names[:6])+(' …' if len(names)>6 else '')
    lines = [(v,len(names),why,such(names)) for (v,why),names in groups.items()]
    lines.sort(key=lambda o: ([*verdicts].index(o[0]),-o[1],o[2]))
    return table(['verdict','networks','why','such as'], lines)

def how_far(head, rows):
    "How many of the names of a library have a row"
    mine = [o for o in rows if o['library']==head['library']]
    large = sum(o['verdict']=='too large' for o in mine)
    who,n,left = f"{head['library']} {head['version']}",head['names'],head['names']-len(mine)
    what = f'{len(mine)-large:,} asked, {large:,} too large'
    if not left: return f'- {who}: all {n:,} names, {what}.'
    return f'- {who}: {len(mine):,} of {n:,} names so far, the smallest of each family and the best-known ones: {what}. {left:,} are still to be asked.'

def all_rows(rows):
    cols = 'network','from','M','asked','verdict','strides','error','sides','time','change','how'
    return table(cols, [[o[k] for k in cols] for o in map(cells,rows)])

def text(heads, rows):
    "The page"
    far = '\n'.join(how_far(o,rows) for o in heads)
    return f"""# Which networks

Networks of timm with up to 60 million parameters, torchvision's, and fastai's XResNets, by name, as far as they have been asked ([how many](#how-many)).
Another one is asked by `fastai-dilation NAME 8`.

## The best-known ones

{known_table(rows)}

*Exact*: at every second or fourth position (the *native grid*) the last map is the one from before the change, but for the error that stands
beside it. *By phases*: a module runs natively on each of the shifted maps that a finer map consists of. The sides of the maps of an image of
224 pixels follow from exactness where they are not 7, 14 and 28: a layer that does not pad its border has fewer positions (ConvNeXt,
Inception). So resize a map by its stride (`to_pixels`), and not to the image's size.

## How many

{far}

{counted(rows)}

An *exact* network can change its stride at any time, before training or after. One that is *warned* of works, but is no longer the function
that was trained: train on at the new stride. One that is *refused* stays as it was.

## Why not

Names in a reason are `…`, and numbers N.

{reasons(rows)}

## Every network

- *M*: millions of parameters.
- *asked*: `features`: the network is refused as it is, so what `timm.create_model(name, features_only=True, out_indices=[-1])` makes was
  asked. `body`: that of a detector is what changes of it. `backbone`: that of a segmenter that is refused as a whole.
- *strides*: the native one, and those that were asked for: 16 and 8, or those next to them that it can have. The columns behind it have
  their values in this order.
- *error*: the largest difference of the last map from the native one, on the native grid, as a part of its largest value, in double
  precision. Weights are random, and none is near 0, which would hide a difference. There are two images: one of 65x129 pixels, of which
  the native maps have odd sides, and one of 64x128. What does not run on these has one of its own size.
- *sides*: of the last map (of a segmenter: before it is resized to the image), natively and at each stride, of an image of 224 pixels, or
  of the number that stands there.
- *time*: of a forward pass of that image, relative to native, on one thread of a CPU: medians of few turns beside other work, so a figure
  may be off by a half. [What a finer map costs](peers.md#what-a-finer-map-costs) was measured with more care.
- *change*: seconds that the change of stride takes.
- *how*: *dilated*: layers alone are dilated. *By phases*: some modules run so. *Whole*: all of it does. Or why it is not exact.

{all_rows(rows)}

The same is in `docs/networks.jsonl`, a line for each network. `python bench/zoo.py` asks those that have none, and this page is made by
`python docs/networks.py`.
"""

def write_page(): page.write_text(text(*read()), encoding='utf-8')

if __name__=='__main__': write_page()
