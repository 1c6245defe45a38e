"Do two files of build_nets.py have the same networks, answers and random numbers? `same_nets.py FILE FILE`"
import pickle, sys
from fastai.vision.all import *

def read(path):
    with open(path,'rb') as f: return pickle.load(f)

(nets,answers,number),(nets2,answers2,number2) = map(read, sys.argv[1:])
assert number.equal(number2)
for y,y2 in zip(answers, answers2): assert y.as_subclass(Tensor).equal(y2.as_subclass(Tensor))
for (m,r,y),(m2,r2,y2) in zip(nets, nets2):
    assert r.equal(r2)
    assert y.equal(y2)
    assert repr(m)==repr(m2)
    for (k,p),(k2,q) in zip(m.state_dict().items(), m2.state_dict().items()): assert k==k2 and p.equal(q)
print('same')
