"What is a finer map of a ViT worth? Shifted runs beside resized maps, overlapping patches and larger images, on scenes of digits"
from fastai.vision.all import *
from fastai_dilation.all import *
from fastai_dilation.demo import point, scene
from fastai_dilation.evaluate import time_in_turns
from fastcore.script import call_parse
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from heads import loss, trained
from timing import ratio

side,patch,first_valid = 128,16,100_000
middle = (patch-1)/2   # pixel in the middle of the first patch

class ViT(VisionTransformer):
    "A small ViT. What it says of an image is close to the largest of what its tokens say: `logsumexp`, and not their mean"
    def __init__(self):
        super().__init__(img_size=side, patch_size=patch, embed_dim=128, depth=4, num_heads=4, num_classes=10,
            class_token=False, global_pool='', fc_norm=False)
        # sines let it find out early that tokens which are near belong together
        self.pos_embed.data = build_sincos2d_pos_embed([side//patch]*2, 128)[None]*.5
        nn.init.constant_(self.head.bias, -5)   # most answers are no
    def forward_head(self, x): return self.head(x).logsumexp(1)

def image(pixels): return ((tensor(np.stack(pixels))/255-.2)/.25)[:,None].expand(-1,3,-1,-1)

def window(rng, w, n, largest):
    "A part of `w` x `w` patches, that cuts no digit, of a scene of `n` digits; and which ones are there"
    size = patch*w
    while True:
        # where the windows vary, scenes may come again, and need not be drawn again
        img,_,boxes = scene(int(rng.integers(first_valid if size==side else 4000)), n=n, szs=(16,largest))
        y,x,s,_ = boxes[rng.integers(len(boxes))]
        y,x = [np.clip(o-rng.integers(0, size-s), 0, side-size) for o in (y,x)]
        apart = [min(b+s,x+size)<=max(b,x) or min(a+s,y+size)<=max(a,y) for a,b,s,_ in boxes]
        within = [y<=a and a+s<=y+size and x<=b and b+s<=x+size for a,b,s,_ in boxes]
        seen = [o[-1] for o,there in zip(boxes,within) if there]
        if all(a or b for a,b in zip(apart,within)): return img[y:y+size,x:x+size],seen

# a ViT does not learn from whole scenes at first: most of what it sees there is paper. By twentieths of the time,
# the patches along a side, the digits of the scenes that they are parts of, and the largest side of a digit;
# at last some are as large as in an image that is enlarged
lessons = [(3,1,44)]*6 + [(5,5,40)]*6 + [(8,3,64)]*8

def tell(net, x, corner=(0,0)):
    "The answers of `net` to images that may be smaller than its own, with the positions from `corner` on"
    y = net.patch_embed.proj(x)
    at = [slice(a,a+n) for a,n in zip(corner,y.shape[2:])]
    pos = net.pos_embed.unflatten(1, (side//patch,)*2)[:,at[0],at[1]]
    return net.forward_head(net.norm(net.blocks(y.flatten(2).mT+pos.flatten(1,2))))

def classifier(seed, minutes, bs=64, lr=1e-3):
    "A ViT that says which digits are in a scene, after `minutes` of a processor"
    set_seed(seed, reproducible=True)
    net,rng,start = ViT(),np.random.default_rng(seed),time.process_time()
    opt = torch.optim.AdamW(net.parameters(), lr, weight_decay=.05)
    while (done:=(time.process_time()-start)/60/minutes)<1:
        lesson = lessons[int(done*len(lessons))]
        n = lesson[0]
        ims,cs = zip(*[window(rng,*lesson) for _ in range(bs)])
        y = torch.stack([one_hot(o,10) for o in cs]).float()
        said = tell(net, image(ims), rng.integers(0, side//patch-n+1, 2))
        F.binary_cross_entropy_with_logits(said, y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        for o in opt.param_groups: o['lr'] = lr*min(done/.03, 1, (1-done)/.5)
        opt.step()
        opt.zero_grad()
    return net.eval()

@torch.no_grad()
def tokens(net, x):
    "The map of the last tokens of `net`, as its head sees them"
    y = net.forward_features(x).mT
    return y.unflatten(-1, (math.isqrt(y.shape[-1]),)*2)

class MapOf(nn.Module):
    "The map of the last tokens of `net`, as a network"
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, x): return tokens(self.net, x)

def with_tokens(net, n, T=patch):
    "A copy of `net` with patches every `T` pixels, and positions for `n` x `n` of them"
    net = deepcopy(net)
    net.patch_embed.proj.stride,net.patch_embed.strict_img_size = (T,T),False
    net.pos_embed = nn.Parameter(resample_abs_pos_embed(net.pos_embed, [n,n], num_prefix_tokens=0))
    return net

def ways(net):
    "By name: how to make a map of an image, its stride, and the pixel of its first value"
    half,wide = patch//2,with_tokens(net, 2*side//patch)
    def enlarged(x): return tokens(wide, F.interpolate(x, scale_factor=2, mode='bilinear'))
    res = {'native':(partial(tokens,net),patch,middle)}
    res |= {f'shifts, at {T}':(set_output_stride(MapOf(net),T),T,middle) for T in (half,half//2)}
    def lapped(T): return partial(tokens, with_tokens(net,(side-patch)//T+1,T))
    res |= {f'patches every {T} px':(lapped(T),T,middle) for T in (half,half//2)}
    return res | {'image twice as large':(enlarged,half,(half-1)/2)}

def resized(m, mode, k): return F.interpolate(m, scale_factor=k, mode=mode)

def smoothed(m, T, offset):
    "Means of 2 x 2 values, or of 3 x 3 of the finest ones; their stride, and the pixel of the first of them"
    n = 3 if T<patch//2 else 2
    return F.avg_pool2d(m, n, 1),T,offset+T*(n-1)/2

def asked(maps):
    "What is asked where: `maps` by way, with stride and first pixel, and others that are made of them"
    half,native,more = patch//2,maps['native'][0],{}
    for mode in ('bilinear','bicubic'):
        for k in (2,4): more[f'native, {mode} to {patch//k}'] = resized(native,mode,k),patch//k,(patch//k-1)/2
    # is it the values between that help, or that each place is looked at more often?
    mean = F.avg_pool2d(maps[f'shifts, at {half}'][0], 2)
    more[f'shifts, at {half}, mean of each 4'] = mean,patch,middle+half/2
    # where evidence lies around a digit, its middle may be better than its highest value
    more |= {f'{k}, smoothed':smoothed(*o) for k,o in maps.items()}
    return maps | more | {'at random, and no to everything':(torch.rand_like(native)-99,patch,middle)}

def few(i): return scene(i, n=3, szs=(20,32))   # the demo's scenes for `point`

def where(net, items):
    "Which digits, and where? By way, the share of right answers, of digits hit, and the median distance in pixels"
    w,bias = net.head.weight[...,None,None],net.head.bias[:,None,None]
    xs = image([few(i)[0] for i in items]).split(50)
    truth = torch.stack([one_hot([b[-1] for b in few(i)[2]],10) for i in items])>0
    maps = {k:(torch.cat([F.conv2d(f(x),w) for x in xs]),*o) for k,(f,*o) in ways(net).items()}
    def row(m, T, offset):
        # four times the tokens say the same four times
        right = ((m+bias).logsumexp((2,3))>math.log(m[0,0].numel()/(side//patch)**2))==truth
        return {'right':right.float().mean().item(), **dict(zip(('hit','px'), point(m,items,T,offset)))}
    return {k:row(*o) for k,o in asked(maps).items()}

class Maps:
    "Maps of scenes of ten digits, made once since the network is kept, and the masks"
    def __init__(self, f, items):
        self.items = items
        self.maps = torch.cat([f(image([scene(i)[0] for i in o])) for o in chunked(items,50)])
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.maps[i],tensor(scene(self.items[i])[1]).long()

class Head(nn.Module):
    "A 1x1 conv, with `k` x `k` answers for each value of a map, and its answers at the pixels"
    def __init__(self, T, offset, k=1, n_in=128):
        super().__init__()
        self.conv,self.T,self.k = nn.Conv2d(n_in, 11*k*k, 1),T/k,k
        self.offset = offset-(T-T/k)/2
    def forward(self, y):
        y = F.pixel_shuffle(self.conv(y), self.k)
        return to_pixels(y, (side,side), self.T, offset=self.offset)

def learner(f, T, offset, k, n, n_valid, seed, bs=8):
    "A head of `k` x `k` answers on maps that `f` makes of `n` scenes"
    train,valid = Maps(f, range(n)),Maps(f, range(first_valid,first_valid+n_valid))
    set_seed(seed, reproducible=True)
    dls = DataLoaders(DataLoader(train, bs=bs, shuffle=True), DataLoader(valid, bs=bs))
    return Learner(dls, Head(T,offset,k), loss_func=loss, metrics=JaccardCoeffMulti())

def costs(net, bs=8, n=6):
    "Of each way, the time of a map, and that of a training step with its head, relative to the native ones"
    ws,x = ways(net),image([scene(i)[0] for i in range(bs)])
    y = torch.stack([tensor(scene(i)[1]).long() for i in range(bs)])
    heads = {k:Head(T,o) for k,(_,T,o) in ws.items()}
    def step(k): loss(heads[k](ws[k][0](x)),y).backward()
    ts = time_in_turns([partial(f,x) for f,*_ in ws.values()]+[partial(step,k) for k in ws], n)
    def ratios(ts): return [ratio(t,ts[0])[0] for t in ts]
    return {k:{'map':a,'step':b} for k,a,b in zip(ws, ratios(ts[:len(ws)]), ratios(ts[len(ws):]))}

def heads_on(net, seed, costs, n, n_valid, epochs, lr):
    "The scores of heads on the maps of the kept `net`, by way"
    ws,finest = ways(net),costs[f'shifts, at {patch//4}']['step']
    cases = {k:(*w,1,n) for k,w in ws.items()}
    # a token has seen all the pixels of its patch, so it can answer for parts of it
    shifts,patches = f'shifts, at {patch//2}',f'patches every {patch//2} px'
    parts = ('native',2),('native',4),(shifts,2),(patches,2)
    cases |= {f'{way}, {k} x {k} answers':(*ws[way],k,n) for way,k in parts}
    def longer(way): return round(n*finest/costs[way]['step'])
    cases |= {f'{way}, {k} x {k} answers, as long as shifts at {patch//4}':(*ws[way],k,longer(way))
        for way,k in (('native',1),('native',4),(shifts,2))}
    return {k:trained(learner(*o,n_valid,seed), epochs, lr) for k,o in cases.items()}

def kept(seed, minutes, folder):
    "The ViT of this seed, from `folder` if it is there"
    path = Path(folder)/f'vit{seed}.pt' if folder else None
    if not path or not path.exists():
        net = classifier(seed, minutes)
        if path: torch.save(net.state_dict(), path)
        return net
    net = ViT().eval()
    net.load_state_dict(torch.load(path))
    return net

@call_parse
def main(
    seeds:str='0 1',    # one run for each
    minutes:float=9,    # of a processor, to train each ViT
    weights:str='',     # folder to keep the ViTs in; those that are there are not trained again
    n_where:int=400,    # scenes to ask where
    n:int=400,          # scenes to train heads on, eight a step
    n_valid:int=100,    # scenes to validate heads on
    epochs:int=6,       # passes through the scenes
    lr:float=1e-2,      # learning rate of the heads
):
    "Print a table"
    defaults.callbacks = [o for o in defaults.callbacks if o is not ProgressCallback]
    torch.set_num_threads(1)
    seeds = seeds.split()
    nets = {s:kept(int(s),minutes,weights) for s in seeds}
    cost = costs(nets[seeds[0]])
    cols = deepcopy(cost)
    for s,net in nets.items():
        found = where(net, range(first_valid,first_valid+n_where))
        for part in (found, heads_on(net,int(s),cost,n,n_valid,epochs,lr)):
            for k,row in part.items(): cols.setdefault(k,{}).update({f'{name} {s}':v for name,v in row.items()})
    df = pd.DataFrame(cols).T
    names = ('right','hit','px','mIoU','named')
    print(df[['map','step',*[f'{o} {s}' for o in names for s in seeds]]].round(2).to_string(na_rep='-'))
