"What importing the package does, and does not do; each in a process of its own"
import os, subprocess, sys
from pathlib import Path
import pytest
from reconstruct import patched
from util import program_file

root = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)] # a process may run whole files

without_the_package = """
import runpy, sys
sys.modules['fastai_dilation'] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""

def environment(*path):
    "One thread, and `path` in front of Python's own"
    paths = [*map(str,path), os.environ.get('PYTHONPATH','')]
    return {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':os.pathsep.join(paths)}

def run(name, *args, path=(root,)):
    "Output of a program in a new process with `path`; without one, it cannot import fastai_dilation"
    bar = [] if path else ['-c',without_the_package]
    args = [sys.executable,'-W','ignore',*bar,*map(str,[program_file(name),*args])]
    res = subprocess.run(args, env=environment(*path), capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    return res.stdout.strip()

@pytest.mark.parametrize('when', ['after','before'])
def test_nothing_changes(tmp_path, when):
    "Networks that do not ask are the same, bit for bit, and load where the package is not installed"
    run('build_nets', tmp_path/'a', path=())
    run('build_nets', tmp_path/'b', when)
    assert run('same_nets', tmp_path/'a', tmp_path/'b', path=())=='same'

orders = ['fastai, package','package, fastai','fastai, names of neither','modules, fastai, package']
@pytest.mark.parametrize('order', orders)
def test_import_orders(order):
    "Learners and constructors take an output stride, whatever was imported first"
    assert run('import_order', order).endswith('ok')

def test_the_core_needs_no_fastai():
    "And yet a `Learner` is changed in place and a U-Net refused, though nothing but the core was imported"
    assert run('core_alone').endswith('ok')

old_paths = """
from fastai_dilation.deeplab import DeepLab, ToPixels, to_pixels
from fastai_dilation.evaluate import GridPool, class_maps, explain, grid_error, multiply_adds, peak_memory, pool_over
from fastai_dilation.learner import GradientCheckpointing
from fastai_dilation.output_stride import make_plan, pool_over, try_out
from fastai_dilation.strides import closed_inside, is_closed
"""

def test_what_moved_is_found_where_it_was():
    "Pickles and imports of 0.0.2 and 0.0.3 name those paths"
    exec(old_paths, {})

def test_reload():
    "What was built before a reload can still be changed, pickled and taken back"
    assert run('reload_all').endswith('ok')

@pytest.fixture(scope='module')
def fastai2(tmp_path_factory):
    dest = tmp_path_factory.mktemp('fastai')/'fastai'
    return patched(dest, 'maxpool', 'output_stride', 'unet')

def test_steps_aside(fastai2):
    "On a fastai that has the pull request its blocks are its own; networks, learners and live changes do more"
    assert run('steps_aside', path=[fastai2,root]).endswith('ok')

@pytest.mark.parametrize('file', ['test_xresnet.py','test_learner.py'])
def test_on_top(fastai2, file):
    "This package's own tests of networks and learners pass on that fastai"
    paths = os.pathsep.join([str(fastai2),str(root)])
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'MAX_EXAMPLES':'20', 'PYTHONPATH':paths}
    def python(*args):
        args = [sys.executable,'-W','ignore',*args]
        return subprocess.run(args, env=env, cwd=root, capture_output=True, text=True)
    res = python('-m', 'pytest', '-q', '-n', '0', '-p', 'no:cacheprovider', str(root/'tests'/file))
    assert res.returncode==0 and ' passed' in res.stdout, res.stdout[-4000:]
    assert python('-c', 'import fastai; print(fastai.__file__)').stdout.startswith(str(fastai2))

def test_one_network(fastai2):
    "fastai's constructors with the pull request and ours: the same convs and outputs, but for squeeze-and-excitation"
    out = run('one_network', path=[fastai2,root])
    print(out)
    assert out.endswith('ok')

def test_the_import_brings_nothing_but_the_package():
    "After fastai's: no timm, no pandas, nothing that takes seconds; and fewer than 50 modules in all"
    n,*packages = run('imported').split()
    assert {*packages}<={'fastai_dilation','torch'}
    assert int(n)<50

def test_dilated_pickle_asks_for_the_package(tmp_path):
    "A dilated network loads in a process that does not import the package, and a restored one where it is missing"
    run('save_dilated', tmp_path)
    assert '(1, 1)' in run('print_stride', tmp_path/'d.pt')
    assert '(2, 2)' in run('print_stride', tmp_path/'n.pt', path=())

def test_pickles_of_0_0_2_load(tmp_path):
    "What it kept of the native settings is understood: such a net goes back, and to another stride"
    run('save_as_0_0_2', tmp_path/'m.pt')
    print(run('load_0_0_2', tmp_path/'m.pt'))
