"""Optimizers that leave PyTorch's compiler alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` to the last bit, for training that is not compiled.

    PyTorch wraps these methods in ones that import its compiler when they are first called, which
    takes two seconds: a sixth of a map of ten images.
    """

    add_param_group: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad: Any = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict: Any = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
