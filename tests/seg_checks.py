"What the tests of both DeepLabs ask of a learner and of a model"
import subprocess, sys, torch
from pathlib import Path
from fastai.vision.all import get_image_files
from util import close

def loads_elsewhere(learn, path):
    "Exported, it says the same in a new process of the pictures that `make_files` has put into `path`"
    learn.export('x.pkl')
    code = f'from fastai.vision.all import *; import seg_data; l = load_learner(r"{path}/x.pkl")\n' \
        f'with l.no_bar(): print(l.get_preds(dl=l.dls.test_dl(get_image_files(r"{path}/images")[:2]))[0].sum().item())'
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent)
    with learn.no_bar(): here = learn.get_preds(dl=learn.dls.test_dl(get_image_files(path/'images')[:2]))[0].sum().item()
    assert abs(float(res.stdout)-here)<1e-3*abs(here), res.stderr

def says_the_same_compiled_and_exported(m, path):
    "One graph; exported with free sides, at two sizes; and as ONNX, in a file in `path`"
    x,y = torch.randn(2,3,96,128),torch.randn(2,3,97,75)
    with torch.no_grad():
        close(torch.compile(m, fullgraph=True)(x), m(x), 1e-4)
        auto = {2:torch.export.Dim.AUTO, 3:torch.export.Dim.AUTO}
        ep = torch.export.export(m, (x,), dynamic_shapes=(auto,)).module()
        for o in (x,y): close(ep(o), m(o), 1e-4)
        torch.onnx.export(m, (x,), path/'m.onnx', dynamo=True)
        import onnxruntime
        res = onnxruntime.InferenceSession(path/'m.onnx').run(None, {'x':x.numpy()})[0]
        close(torch.tensor(res), m(x), 1e-4)
