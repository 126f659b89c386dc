"""Attention over the keypoints of one image (paper, section III-B)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Most tokens attended to whose scores are kept as a whole.
_MOST_KEYS = 512


class AttentionLayer(nn.Module):
    """Residual self-attention: d + MLP([d || m]), m the message of equations (5) to (7).

    The paper writes alpha = softmax(q k); like the multi-head attention it cites, and its code, the
    product is divided by the square root of the head's width. The last layer of the MLP starts at
    zero where `zero_init` is set, so that a new layer changes nothing at first.
    """

    def __init__(
        self, dim: int, num_heads: int, *, norm: bool = False, zero_init: bool = False
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'{dim} features do not split into {num_heads} heads')
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.merge = nn.Linear(dim, dim)
        self.mlp_in = nn.Linear(2 * dim, 2 * dim)
        self.mlp_out = nn.Linear(2 * dim, dim)
        self.norm: nn.Module = nn.LayerNorm(dim) if norm else nn.Identity()
        nn.init.zeros_(self.mlp_out.bias)
        if zero_init:
            nn.init.zeros_(self.mlp_out.weight)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Update tokens (B, N, D).

        Args:
            x: (B, N, D).
            mask: (B, N) bool, False for padding.
            context: (K,) int64, the only tokens that are attended to; all by default.
        """
        batch, count, dim = x.shape
        normed = self.norm(x)
        seen = normed
        if context is not None:
            seen = normed[:, context]
            mask = None if mask is None else mask[:, context]

        def heads(linear: nn.Linear, tokens: Tensor) -> Tensor:
            split = linear(tokens).view(batch, -1, self.num_heads, dim // self.num_heads)
            return split.transpose(1, 2)

        message = attention(
            heads(self.query, normed),
            heads(self.key, seen),
            heads(self.value, seen),
            None if mask is None else mask[:, None, None, :],
        )
        message = self.merge(message.transpose(1, 2).reshape(batch, count, dim))
        hidden = functional.relu(self.mlp_in(torch.cat([normed, message], dim=-1)))
        return x + self.mlp_out(hidden)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value (B, H, N, d).

    Args:
        query: (B, H, N, d).
        key: (B, H, K, d), and `value` likewise.
        mask: Bool, broadcast to (B, H, N, K); False is not attended to.
    """
    plain = query.device.type == 'cpu' and query.dtype is torch.bfloat16
    if not plain or key.shape[-2] > _MOST_KEYS:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # On a CPU, PyTorch's own takes twice as long with bfloat16, three times with its gradient.
    # Autocast would turn the weights into float32 and back.
    with torch.autocast('cpu', enabled=False):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if mask is not None and not bool(mask.all()):
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=-1) @ value
