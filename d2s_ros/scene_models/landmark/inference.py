"""`LandmarkNetwork` arranged for one image after another: the same numbers in half the time.

What depends on a landmark alone is computed once, products of matrices that follow each other are
multiplied beforehand, and layers that read the same tokens are one product.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from d2s_ros.kernels.interface import ScorerParts
from d2s_ros.kernels.tensors import fourier, scores
from d2s_ros.scene_models.attention import AttentionLayer
from d2s_ros.scene_models.landmark.network import LandmarkNetwork, context_of


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
        network: Read only, on any device.
        points: (M, 3) float32 points of all landmarks, centred and scaled as for the network, on
            the CPU.
        device: Where to compute.
        dtype: torch.float32 or torch.bfloat16, of weights and activations; logits are float32.
    """

    @torch.inference_mode()
    def __init__(
        self, network: LandmarkNetwork, points: Tensor, *, device: str, dtype: torch.dtype
    ) -> None:
        config = network.config
        self.config, self.dtype = config, dtype
        # In float32 on the CPU; only what came out is moved and rounded.
        state = {name: value.detach().float().cpu() for name, value in network.state_dict().items()}
        plain = LandmarkNetwork(config)
        plain.load_state_dict(state)
        hidden = config.hidden_inputs

        def moved(value: Tensor) -> Tensor:
            return value.detach().to(device=device, dtype=dtype).contiguous()

        length = 3 + 6 * config.num_frequencies
        of_best, of_second = plain.from_points.weight.split(length, dim=1)
        of_point, of_evidence = plain.candidate_in.weight.split([length, 4], dim=1)
        # What a landmark is as the best candidate, as the second, and as any.
        self._point_weights = torch.stack([of_best.T, of_second.T, of_point.T])
        no_bias = torch.zeros(2, config.width)
        self._point_biases = torch.cat([no_bias, plain.candidate_in.bias[None]])[:, None]
        self._points = points
        scale = 0.0 if 'descriptors' in hidden else math.sqrt(config.descriptor_dim) * 0.7
        inputs = (plain.from_evidence, plain.from_keypoint)
        weight = torch.cat(
            [plain.from_descriptor.weight * scale, *(i.weight for i in inputs)], dim=1
        )
        bias = plain.from_descriptor.bias + plain.from_points.bias + sum(i.bias for i in inputs)
        self._layers = [_Layer(layer, moved) for layer in plain.layers]  # type: ignore[arg-type]
        # (W h + c) . q = h . (W^T q) + c . q, and q is linear too.
        out = torch.cat([plain.candidate_out.weight.T, plain.candidate_out.bias[None]])
        self._parts = ScorerParts(
            moved(weight),
            moved(bias),
            moved(torch.cat([out @ plain.query.weight, plain.none.weight])),
            moved(torch.cat([out @ plain.query.bias, plain.none.bias])),
            moved(self._from_points(points)),
            moved(of_evidence.T),
            float(plain.gain),
            config.num_frequencies,
            'keypoints' in hidden,
        )

    @property
    def sees_one_keypoint(self) -> bool:
        """Whether what it says of a keypoint depends on that keypoint and its candidates alone."""
        return not self._layers

    def parts(self) -> ScorerParts:
        """Return what the scorer is made of as NumPy arrays, where it has no attention layers.

        Raises:
            ValueError: if it has some, or is not in float32 on the CPU.
        """
        if self._layers:
            raise ValueError('a network with attention layers is not linear')
        if self.dtype is not torch.float32:
            raise ValueError('the kernels take float32')
        return ScorerParts._make(x.numpy() if isinstance(x, Tensor) else x for x in self._parts)

    def _from_points(self, points: Tensor) -> Tensor:
        """Return (3, M, width) float32 from (M, 3) points."""
        if 'candidate_points' in self.config.hidden_inputs:
            points = torch.zeros_like(points)
        place = fourier(points, self.config.num_frequencies)
        return place @ self._point_weights + self._point_biases

    @torch.inference_mode()
    def with_points(self, points: Tensor) -> LandmarkScorer:
        """Return a scorer to which the landmarks lie at other points (M, 3)."""
        scorer = copy.copy(self)
        rows = (points != self._points).any(dim=1).nonzero()[:, 0]
        of_points = self._parts.of_points.clone()
        changed = self._from_points(points[rows]).to(of_points)
        of_points[:, rows.to(changed.device)] = changed
        scorer._points, scorer._parts = points, self._parts._replace(of_points=of_points)
        return scorer

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return logits (N, C + 1) float32 from `ScorerInputs`; the last is 'none of them'."""
        return scores(self._parts, *inputs, between=self._attend if self._layers else None)

    def _attend(self, x: Tensor) -> Tensor:
        context = context_of(len(x), self.config.max_context, x.device)
        for layer in self._layers:
            x = layer(x, context)
        return x
