"What pickled networks say of their image, without an import of fastai_dilation: `load_nets.py FOLDER NAME ...`"
import sys, torch

folder,*names = sys.argv[1:]
for name in names:
    m,x = torch.load(f'{folder}/{name}.pt', weights_only=False)
    with torch.no_grad(): torch.save(m(x), f'{folder}/{name}.there.pt')
