"""The visual projector: features of a frozen image encoder → visual prompts (V2 paper, sec 4.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QueryProjector(nn.Module):
    """Learned queries read the patch tokens and become the visual prompts.

    Features (B, S, F) → width → norm; the queries stand before them in ``blocks`` pre-norm transformer blocks; what
    becomes of the queries → hidden_size → norm: prompts (B, queries, hidden_size).
    """

    def __init__(self, feature_width: int, hidden_size: int, width: int, blocks: int, heads: int, queries: int):
        super().__init__()
        self.input = nn.Linear(feature_width, width)
        self.input_norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                dim_feedforward=4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(blocks)
        )
        self.output = nn.Linear(width, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        x = self.input_norm(self.input(features))  # (B, S, width)
        x = torch.cat((self.queries.expand(len(x), -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.output_norm(self.output(x[:, : len(self.queries)]))


class LinearProjector(nn.Module):
    """Every patch token, or with ``pooled`` their mean, straight to a prompt: (B, S, F) → (B, S or 1, hidden_size)."""

    def __init__(self, feature_width: int, hidden_size: int, pooled: bool):
        super().__init__()
        self.pooled = pooled
        self.output = nn.Linear(feature_width, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        x = features.mean(1, keepdim=True) if self.pooled else features
        return self.output_norm(self.output(x))


class BottleneckProjector(nn.Module):
    """Two linear layers with SiLU between: (B, S, F) → (B, P, hidden_size).

    With ``scales`` that many tokens of an image are joined and become one prompt, P = 1 (V1 paper, sec 3.3: multi-scale
    global features through a simple MLP; its activation is not given, SiLU is ours). Without, each token becomes a
    prompt, P = S (LaVIN).
    """

    def __init__(self, feature_width: int, hidden_size: int, width: int, scales: int | None = None):
        super().__init__()
        self.joined = scales is not None
        self.input = nn.Linear((scales or 1) * feature_width, width)
        self.output = nn.Linear(width, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        x = features.flatten(1)[:, None] if self.joined else features
        return self.output(F.silu(self.input(x)))
