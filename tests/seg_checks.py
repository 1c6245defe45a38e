"What the tests of both DeepLabs ask of a model"
import torch
from util import close

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
