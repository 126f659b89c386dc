"""The optimizer that leaves PyTorch's compiler alone is PyTorch's."""

from __future__ import annotations

import copy
import subprocess
import sys

import torch

from d2s_ros.scene_models.optimizers import AdamW

#: Prints whether training imported the compiler.
_TRAINING = """
import sys
import torch
from d2s_ros.scene_models.optimizers import AdamW
network = torch.nn.Linear(3, 2)
optimizer = AdamW(network.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
for _ in range(2):
    optimizer.zero_grad(set_to_none=True)
    network(torch.ones(4, 3)).sum().backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
optimizer.load_state_dict(optimizer.state_dict())
print('torch._dynamo' in sys.modules)
"""


def trained(kind, steps, state=None):
    """Return the weights and the state of the optimizer after some steps."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 2))
    optimizer = kind(network.parameters(), lr=0.02, weight_decay=0.1)
    if state is not None:
        network.load_state_dict(state[0])
        # What was loaded is updated in place.
        optimizer.load_state_dict(copy.deepcopy(state[1]))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        network(torch.arange(10.0).reshape(2, 5) + step).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return network.state_dict(), optimizer.state_dict()


def test_steps_are_those_of_pytorch():
    state = trained(AdamW, 3)
    for own, other in (
        (trained(AdamW, 5), trained(torch.optim.AdamW, 5)),
        (trained(AdamW, 2, state), trained(torch.optim.AdamW, 2, state)),
    ):
        for name, values in own[0].items():
            assert torch.equal(values, other[0][name])
            assert values.requires_grad == other[0][name].requires_grad


def test_training_does_not_import_the_compiler():
    found = subprocess.run(
        [sys.executable, '-c', _TRAINING], check=True, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.strip() == 'False'
