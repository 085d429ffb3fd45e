"""torchvision is usable even where the operators of its wheel do not load."""

from __future__ import annotations

import subprocess
import sys

from tinyml_edu import _torchvision


def test_data_sets_transforms_and_models_are_usable():
    torchvision = _torchvision.load()
    assert torchvision.models.resnet18().fc.out_features == 1000
    assert torchvision.datasets.CIFAR10.tgz_md5
    from torchvision.transforms import v2

    assert v2.Identity()(3) == 3


def test_a_second_call_returns_the_same_module():
    assert _torchvision.load() is _torchvision.load()


def test_another_failure_of_the_import_is_not_hidden():
    code = (
        "import sys, types, importlib\n"
        "from tinyml_edu import _torchvision\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchvision': raise RuntimeError('disk on fire')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "_torchvision.load()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "disk on fire" in done.stderr
