"""What a GPU does again and again, recorded once as a CUDA graph and started with one call.

A frame is some three hundred small operations. Starting them one by one takes the host longer than
the GPU needs for them; a graph starts them all at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from d2s_ros.errors import DeviceError

_logger = logging.getLogger(__name__)

#: Images of one kind before it is worth while.
_FRAMES_BEFORE = 3
#: Runs before a recording: libraries choose their kernels and take their memory in them.
_WARM_UP_RUNS = 3
#: Rows of the table that must be the same when a recording is played, and how close is the same:
#: a product may be summed in another order, and a keypoint of equal score be another.
_SAME_ROWS, _SAME = 0.98, 1e-2


class RecordedFrame:
    """A computation from an input to a table, of fixed shapes, as a CUDA graph.

    Args:
        compute: From a tensor on the device to a table (K, D) float32 there, without waiting.
        given: Such a tensor on the host, to try it on.
        device: A GPU.

    Raises:
        DeviceError: it cannot be recorded, or does not give what the computation gives.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], given: Tensor, device: torch.device
    ) -> None:
        try:
            self._record(compute, given, device)
        except RuntimeError as error:
            reason = str(error).strip().split('\n')[0]
            raise DeviceError(f'a frame cannot be recorded as a CUDA graph: {reason}') from error

    def _record(
        self, compute: Callable[[Tensor], Tensor], given: Tensor, device: torch.device
    ) -> None:
        # The graph reads what this refers to, and keeps nothing alive itself.
        self._compute = compute
        self._graph = torch.cuda.CUDAGraph()
        self._given = given.to(device)
        self._from_host = torch.empty_like(given, pin_memory=True)
        # As PyTorch asks for: not on the default stream.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                expected = compute(self._given).clone()
        torch.cuda.current_stream(device).wait_stream(stream)
        # Other threads of the program may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode='thread_local'):
            self._table = compute(self._given)
        self._to_host = torch.empty(self._table.shape, dtype=self._table.dtype, pin_memory=True)
        self._device = device
        found = self(given)
        same = torch.isclose(found, expected.cpu(), rtol=_SAME, atol=_SAME).all(dim=1)
        if float(same.float().mean()) < _SAME_ROWS:
            raise DeviceError(
                f'a frame recorded as a CUDA graph gives {int((~same).sum())} other rows of '
                f'{len(same)}'
            )

    def __call__(self, given: Tensor) -> Tensor:
        """Return the table of an input on the host, on the host; overwritten later."""
        self._from_host.copy_(given)
        self._given.copy_(self._from_host, non_blocking=True)
        self._graph.replay()
        self._to_host.copy_(self._table, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return self._to_host


class FrameRecorder:
    """Records a computation on a GPU as soon as inputs of one kind keep coming.

    Args:
        device: Where it is computed; on others than GPUs nothing is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kind: object = None
        self._seen = 0
        self._recorded: RecordedFrame | None = None
        self._refused = '' if device.type == 'cuda' else 'there is no GPU'

    @property
    def state(self) -> str:
        """'recorded', or why not."""
        if self._recorded is not None:
            return 'recorded'
        return self._refused or f'not yet, after {self._seen} images of one kind'

    def run(self, kind: object, compute: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """Return `compute(given)` on the host.

        Args:
            kind: Inputs of an equal kind differ in their numbers only, for `compute` too.
            compute: As for `RecordedFrame`.
            given: On the host.
        """
        if kind != self._kind:
            self._kind, self._seen, self._recorded = kind, 0, None
        self._seen += 1
        if self._recorded is None and self._seen > _FRAMES_BEFORE and not self._refused:
            try:
                self._recorded = RecordedFrame(compute, given, self._device)
            except DeviceError as error:
                self._refused = str(error)
                _logger.warning('%s; its operations are started one by one', error)
        if self._recorded is not None:
            return self._recorded(given)
        if self._device.type == 'cuda':
            given = given.pin_memory()
        return compute(given.to(self._device, non_blocking=True)).cpu()
