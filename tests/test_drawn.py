"Networks drawn at random of parts that people write (bench/drawn.py): what nobody refuses or warns of is exact"
import itertools, os, sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent/'bench'))
from drawn import apart, bugs, drawn, frames, made, outcome, reducing, same, told, tried

few,many = range(10),range(10,110)
once_silent = 20003,20127,20945,30350,30552,40035,40232

def count_forever():
    for _ in itertools.count(): pass

def exact_or_said(seed, sizes):
    net,o = tried(seed, sizes)
    assert o.verdict not in bugs, f'{o.detail}\n{told(net.program)}'

@pytest.mark.parametrize('seed', few)
def test_a_drawn_net_is_exact_or_it_is_said(seed):
    "A few networks, at some sizes of image"
    exact_or_said(seed, 8)

@pytest.mark.slow
@pytest.mark.parametrize('seed', [*many,*once_silent])
def test_many_drawn_nets_are_exact_or_it_is_said(seed):
    "At 30 sizes of image each, as a whole, block by block, and in training"
    exact_or_said(seed, 30)

@pytest.mark.slow
def test_each_part_is_drawn():
    "Among the networks of this file"
    seen = {o for seed in (*few,*many) for o in drawn(seed).parts}
    assert seen=={*frames,*reducing,*same}

def test_a_seed_is_a_network():
    "The same one each time, with the same weights"
    net = drawn(3)
    assert net==drawn(3)!=drawn(4)
    a,b = [made(net.program,3).state_dict() for _ in range(2)]
    assert all(a[k].equal(b[k]) for k in a)

def test_a_process_that_dies_is_a_line():
    "And so is one that takes too long, and one that raises"
    assert 'signal 6' in apart(os.abort).detail
    assert 'more than' in apart(count_forever, secs=1).detail
    assert 'ZeroDivisionError' in apart(divmod, 1, 0).detail

def test_the_bench_sees_what_is_not_exact(monkeypatch):
    "A net that is changed and not mended is silent, if it has anything that reads several positions"
    import drawn
    def unmended(m, T, x): m[1].stride = 1,1
    monkeypatch.setattr(drawn, 'set_output_stride', unmended)
    def verdict(part): return outcome(f'nn.Sequential(nn.Conv2d(3,8,3,2,1),nn.Conv2d(8,8,3,2,1),{part})', 0, 10, 2).verdict
    assert verdict('nn.ReLU()')=='exact'
    assert verdict('nn.Conv2d(8,8,3,1,1)')==verdict('Call(mean)')=='SILENT'
