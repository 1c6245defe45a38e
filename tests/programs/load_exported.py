"What a network of `torch.export` says, with torch alone: `load_exported.py FOLDER`"
import sys, torch

folder = sys.argv[1]
x = torch.load(f'{folder}/x.pt')
m = torch.export.load(f'{folder}/m.pt2').module()
torch.save(m(x).detach(), f'{folder}/there.pt')
assert 'fastai_dilation' not in sys.modules
