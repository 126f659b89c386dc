"""Runs the main program of a module where PyTorch cannot be imported.

without_torch.py MODULE ARGUMENT...
"""

import importlib
import sys


class Missing:
    """Finds that PyTorch is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'torchvision', 'kornia'):
            raise ModuleNotFoundError(f'No module named {name!r}', name='torch')
        return None


if __name__ == '__main__':
    sys.meta_path.insert(0, Missing())
    module = sys.argv.pop(1)
    status = importlib.import_module(module).main()
    assert 'torch' not in sys.modules
    sys.exit(status)
