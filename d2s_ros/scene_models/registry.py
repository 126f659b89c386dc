"""The scene models that a map may have: a line for each."""

from __future__ import annotations

import importlib

from d2s_ros.device import missing_torch
from d2s_ros.errors import ConfigError
from d2s_ros.scene_models.base import SceneModel

_PACKAGE = 'd2s_ros.scene_models'

#: By the name that manifests and options use (`head`), the class or where it is, as it is imported
#: when a map asks for it; the first is the default.
MODELS: dict[str, type[SceneModel] | str] = {
    'landmark': f'{_PACKAGE}.landmark.model:LandmarkModel',
    'regression': f'{_PACKAGE}.regression.model:RegressionModel',
    'labels': f'{_PACKAGE}.labels.model:LabelModel',
}


def model_class(name: str) -> type[SceneModel]:
    """Return the scene model of a name.

    Raises:
        ConfigError: there is none.
        UsageError: it needs PyTorch, which is not installed.
    """
    if name not in MODELS:
        raise ConfigError(f'head is {name!r}, it must be one of {", ".join(MODELS)}')
    found = MODELS[name]
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(':')
    try:
        result: type[SceneModel] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != 'torch':
            raise
        raise missing_torch(f'maps with the {name} head') from error
    return result
