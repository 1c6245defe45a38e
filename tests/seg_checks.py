"What the tests of both DeepLabs ask of a learner and of a model"
import os, subprocess, sys, torch
from fastai.vision.all import get_image_files
from util import close, program_file

def loads_elsewhere(learn, path):
    "Exported, it says the same in a new process of the pictures that `make_files` has put into `path`"
    learn.export('x.pkl')
    env = {**os.environ, 'PYTHONPATH':os.pathsep.join(sys.path)}
    args = [sys.executable, '-W', 'ignore', program_file('predict_masks'), path]
    there = subprocess.run(args, env=env, capture_output=True, text=True)
    files = get_image_files(path/'images')[:2]
    with learn.no_bar(): here = learn.get_preds(dl=learn.dls.test_dl(files))[0].sum().item()
    assert abs(float(there.stdout)-here)<1e-3*abs(here), there.stderr

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
