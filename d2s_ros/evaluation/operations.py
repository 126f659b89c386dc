"""Counts what PyTorch does: operations, arithmetic, bytes made, transfers between host and device.

Counts do not depend on how busy a computer is, so tests can hold them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from d2s_ros import kernels


def _matrix(args: Any, result: Tensor) -> int:
    return 2 * result.numel() * int(args[0].shape[-1])


def _added_matrix(args: Any, result: Tensor) -> int:
    return 2 * result.numel() * int(args[1].shape[-1])


def _convolution(args: Any, result: Tensor) -> int:
    return 2 * result.numel() * math.prod(args[1].shape[1:])


def _integer_convolution(args: Any, result: Tensor) -> int:
    return 2 * result.numel() * math.prod(args[3].shape[1:])


def _attention(args: Any, result: Any) -> int:
    queries, keys = args[0], args[1]
    return 4 * queries.numel() * int(keys.shape[-2])


_ARITHMETIC: dict[str, Callable[[Any, Any], int]] = {
    'aten::mm': _matrix,
    'aten::bmm': _matrix,
    'aten::_int_mm': _matrix,
    'aten::addmm': _added_matrix,
    'aten::baddbmm': _added_matrix,
    'aten::convolution': _convolution,
    'aten::_convolution': _convolution,
    'aten::mkldnn_convolution': _convolution,
    'onednn::qconv2d_pointwise': _integer_convolution,
    'onednn::qlinear_pointwise': _matrix,
    'aten::_scaled_dot_product_flash_attention_for_cpu': _attention,
    'aten::_scaled_dot_product_efficient_attention': _attention,
    'aten::_scaled_dot_product_flash_attention': _attention,
    'aten::_scaled_dot_product_cudnn_attention': _attention,
}
#: Operations that make the host wait for a number or a shape from the device.
_WAITING = ('aten::_local_scalar_dense', 'aten::nonzero', 'aten::masked_select', 'aten::equal')


class OperationCounter(TorchDispatchMode):
    """Counts the operations of a `with` block, on all devices.

    Attributes:
        operations: Number of calls by name; composite operations count as their parts.
        flops: Multiplications and additions of products, convolutions and attention, those of the
            compiled part included.
        tensors: Tensors that were made, views excepted, and `tensor_bytes` their size.
        to_device, to_host: Copies from the host to a device and back, waits for numbers included.
        largest_product: Largest result of a matrix product, in elements.
        compiled_calls: Calls of the compiled part of the package, which are no operations here.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.flops = 0
        self.tensors = 0
        self.tensor_bytes = 0
        self.to_device = 0
        self.to_host = 0
        self.largest_product = 0
        self.compiled_calls = 0
        self._depth = 0

    def __enter__(self) -> OperationCounter:
        """Count from here on, what the compiled part of the package does included."""
        self._depth += 1
        if self._depth == 1:
            kernels.observers.append(self._on_compiled)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Count until here."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if self._depth == 0:
            kernels.observers.remove(self._on_compiled)

    def _on_compiled(self, name: str, flops: int) -> None:
        self.compiled_calls += bool(name)
        self.flops += flops

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        name = func._schema.name
        if name not in _ARITHMETIC:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        self.operations[name] += 1
        inputs = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
        outputs = [item for item in tree_flatten(result)[0] if isinstance(item, Tensor)]
        if name in _ARITHMETIC:
            first = outputs[0]
            self.flops += _ARITHMETIC[name](args, first)
            if name.endswith('mm') or name == 'onednn::qlinear_pointwise':
                self.largest_product = max(self.largest_product, first.numel())
        known = {_storage(item) for item in inputs}
        for item in outputs:
            if _storage(item) not in known:
                self.tensors += 1
                self.tensor_bytes += item.numel() * item.element_size()
        self._count_transfers(name, inputs, outputs)
        return result

    def _count_transfers(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        on_device = any(item.device.type != 'cpu' for item in inputs)
        if name in _WAITING:
            self.to_host += on_device
        elif name in ('aten::_to_copy', 'aten::copy_'):
            source = inputs[1] if name == 'aten::copy_' else inputs[0]
            before, after = source.device.type != 'cpu', outputs[0].device.type != 'cpu'
            self.to_host += before and not after
            self.to_device += after and not before

    def report(self) -> dict[str, Any]:
        """Return the counts (JSON types)."""
        return {
            'operations': sum(self.operations.values()),
            'gflop': round(self.flops / 1e9, 3),
            'tensors': self.tensors,
            'tensor_mb': round(self.tensor_bytes / 1e6, 2),
            'to_device': self.to_device,
            'to_host': self.to_host,
            'largest_product': self.largest_product,
            'compiled_calls': self.compiled_calls,
        }


def _storage(item: Tensor) -> int:
    try:
        return item.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        # Packed weights have no storage that could be looked at.
        return id(item)


def count_operations(call: Callable[[], Any]) -> dict[str, Any]:
    """Return the counts of one call."""
    counter = OperationCounter()
    with torch.inference_mode(), counter:
        call()
    return counter.report()
