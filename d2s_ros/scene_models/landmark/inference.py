"""`LandmarkNetwork` arranged for one image after another: the same numbers in half the time.

By PyTorch: for networks with attention layers, for GPUs and for `precision: fp32`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from d2s_ros.kernels.interface import Floats, ScorerParts
from d2s_ros.kernels.tensors import reliability_of, scores
from d2s_ros.scene_models.attention import AttentionLayer
from d2s_ros.scene_models.landmark.network import context_of
from d2s_ros.scene_models.landmark.scorer_weights import ScorerWeights
from d2s_ros.scene_models.landmark.stored_network import StoredNetwork
from d2s_ros.threads import one_thread


class _Layer:
    """An `AttentionLayer`; the merging of the message is multiplied into what reads it."""

    def __init__(self, layer: AttentionLayer, moved: Callable[[Tensor], Tensor]) -> None:
        dim = layer.query.in_features
        self.num_heads, self.dim = layer.num_heads, dim
        scale = 1.0 / math.sqrt(dim // layer.num_heads)
        from_token, from_message = layer.mlp_in.weight.split(dim, dim=1)
        hidden_bias = layer.mlp_in.bias + from_message @ layer.merge.bias
        norm = layer.norm
        self.norm: tuple[Tensor, Tensor, float] | None = None
        if isinstance(norm, torch.nn.LayerNorm):
            self.norm = moved(norm.weight), moved(norm.bias), norm.eps
        # Queries, divided as attention divides them, and the part of the MLP that needs no message.
        self.own_weight = moved(torch.cat([layer.query.weight * scale, from_token]))
        self.own_bias = moved(torch.cat([layer.query.bias * scale, hidden_bias]))
        self.seen_weight = moved(torch.cat([layer.key.weight, layer.value.weight]))
        self.seen_bias = moved(torch.cat([layer.key.bias, layer.value.bias]))
        self.message_weight = moved((from_message @ layer.merge.weight).T)
        self.out_weight = moved(layer.mlp_out.weight)
        self.out_bias = moved(layer.mlp_out.bias)

    def __call__(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Update tokens (N, D), of which those in `context` (K,) are attended to."""
        normed = x
        if self.norm is not None:
            weight, bias, epsilon = self.norm
            normed = functional.layer_norm(x, (self.dim,), weight, bias, epsilon)
        own = functional.linear(normed, self.own_weight, self.own_bias)
        seen = normed if context is None else normed.index_select(0, context)
        seen = functional.linear(seen, self.seen_weight, self.seen_bias)
        query, hidden = own.split([self.dim, own.shape[1] - self.dim], dim=1)
        key, value = seen.view(len(seen), 2, self.num_heads, -1).permute(1, 2, 0, 3)
        message = attention(query.view(len(x), self.num_heads, -1).transpose(0, 1), key, value)
        message = message.transpose(0, 1).reshape(len(x), self.dim)
        hidden = torch.addmm(hidden, message, self.message_weight).relu_()
        return x + functional.linear(hidden, self.out_weight, self.out_bias)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query key^T) value of (heads, N, d) and twice (heads, K, d)."""
    if query.device.type != 'cpu' or query.dtype is not torch.bfloat16:
        tokens = query[None], key[None], value[None]
        return functional.scaled_dot_product_attention(*tokens, scale=1.0)[0]
    # PyTorch's own takes twice as long with bfloat16. Exponentials need no maximum subtracted as
    # long as they are in range, and it is the message that is divided by their sum.
    weights = torch.bmm(query, key.transpose(1, 2)).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    least, most = total.aminmax()
    if not 1e-30 < float(least) <= float(most) < 1e30:
        weights, total = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1), torch.ones(())
    return torch.bmm(weights, value) / total


class LandmarkScorer:
    """Scores the candidate landmarks of one image's keypoints.

    A snapshot: training the network further does not change it.

    Args:
        network: Read only.
        points: (M, 3) float32 points of all landmarks, centred and scaled as for the network, on
            the CPU.
        device: Where to compute.
        dtype: torch.float32 or torch.bfloat16, of weights and activations; logits are float32.
    """

    @torch.inference_mode()
    def __init__(
        self, network: StoredNetwork, points: Tensor, *, device: str, dtype: torch.dtype
    ) -> None:
        self.config, self.dtype, self._device = network.config, dtype, device
        self._weights = ScorerWeights(network)
        self._points = points.numpy()

        def moved(value: Tensor) -> Tensor:
            return value.detach().to(device=device, dtype=dtype).contiguous()

        layers = network.network.layers if network.config.num_layers else ()
        self._layers = [_Layer(layer, moved) for layer in layers]  # type: ignore[arg-type]
        # In float32 on the CPU; only what came out is moved and rounded.
        parts = self._weights.parts(self._points)
        self._of_points = parts.of_points
        self._parts = ScorerParts._make(
            moved(torch.from_numpy(x)) if isinstance(x, np.ndarray) else x for x in parts
        )

    @property
    def sees_one_keypoint(self) -> bool:
        """Whether what it says of a keypoint depends on that keypoint and its candidates alone."""
        return not self._layers

    @torch.inference_mode()
    def with_points(self, points: Tensor) -> LandmarkScorer:
        """Return a scorer to which the landmarks lie at other points (M, 3)."""
        scorer = copy.copy(self)
        scorer._points = points.numpy()
        scorer._of_points = self._weights.moved(self._of_points, self._points, scorer._points)
        of_points = torch.from_numpy(scorer._of_points).to(self._parts.of_points)
        scorer._parts = self._parts._replace(of_points=of_points)
        return scorer

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return logits (N, C + 1) float32 from `ScorerInputs`; the last is 'none of them'."""
        return scores(self._parts, *inputs, between=self._attend if self._layers else None)

    def _attend(self, x: Tensor) -> Tensor:
        context = context_of(len(x), self.config.max_context, x.device)
        for layer in self._layers:
            x = layer(x, context)
        return x


class TensorScorer:
    """A `LandmarkScorer` from arrays to arrays, as `KernelScorer`."""

    def __init__(self, scorer: LandmarkScorer, device: str) -> None:
        self.scorer, self._device = scorer, device

    def with_points(self, points: Floats) -> TensorScorer:
        """Return a scorer to which the landmarks lie at other points (M, 3)."""
        return TensorScorer(self.scorer.with_points(torch.from_numpy(points)), self._device)

    @torch.inference_mode()
    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the reliability (N,) of the likeliest candidate, and its column (N,)."""
        with one_thread():
            logits = self.scorer(*(torch.from_numpy(i).to(self._device) for i in inputs))
            reliability, choice = reliability_of(logits)
        return reliability.cpu().numpy(), choice.cpu().numpy()
