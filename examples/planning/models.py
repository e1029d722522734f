"""Models by their public configurations (config.json on Hugging Face, or the paper named)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of a dense feed-forward layer."""

    count: int
    per_token: int
    width: int
    """Inner width of one expert."""

    shared_width: int = 0
    """Inner width of the expert that every token visits."""

    dense_layers: int = 0
    """First layers that have a dense feed-forward layer instead."""

    capacity_factor: float = 1.25
    """Places of an expert over the tokens that it has on average; tokens beyond are dropped."""


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: queries, and keys with values, come from narrow vectors."""

    query_rank: int
    key_value_rank: int
    rotary_dim: int
    """Of each key, shared by all heads, what carries the position."""


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer with RMSNorm, rotary positions and gated feed-forward layers."""

    name: str
    source: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff_width: int
    vocabulary: int
    experts: Experts | None = None
    latent: Latent | None = None
    window: int | None = None
    """Every other layer sees only so many tokens back."""

    dtype: str = "bfloat16"
    """Of activations, and of products."""

    moment_dtype: str = "float32"
    """Of AdamW's two moments."""

    @property
    def expert_layers(self) -> int:
        """Layers with experts."""
        return 0 if self.experts is None else self.layers - self.experts.dense_layers

    @property
    def dense_layers(self) -> int:
        """Layers without."""
        return self.layers - self.expert_layers


LLAMA3_70B = Model(
    name="Llama-3-70B",
    source="The Llama 3 Herd of Models (arXiv:2407.21783), table 3; meta-llama/Meta-Llama-3-70B",
    layers=80,
    width=8192,
    heads=64,
    kv_heads=8,
    head_dim=128,
    ff_width=28672,
    vocabulary=128256,
)

LLAMA3_405B = Model(
    name="Llama-3-405B",
    source="The Llama 3 Herd of Models (arXiv:2407.21783), table 3; meta-llama/Llama-3.1-405B",
    layers=126,
    width=16384,
    heads=128,
    kv_heads=8,
    head_dim=128,
    ff_width=53248,
    vocabulary=128256,
)

MIXTRAL_8X22B = Model(
    name="Mixtral-8x22B",
    source="mistral-community/Mixtral-8x22B-v0.1 config.json",
    layers=56,
    width=6144,
    heads=48,
    kv_heads=8,
    head_dim=128,
    ff_width=16384,
    vocabulary=32000,
    experts=Experts(count=8, per_token=2, width=16384),
)

# Without the multi-token prediction module. Values are as wide as keys (192, padded from 128), as
# attention kernels want them; the router takes the best eight of all, not of the best groups, and
# is taken to be balanced, which the report aims at and finds.
DEEPSEEK_V3 = Model(
    name="DeepSeek-V3-like",
    source="DeepSeek-V3 Technical Report (arXiv:2412.19437), 4.2; deepseek-ai/DeepSeek-V3",
    layers=61,
    width=7168,
    heads=128,
    kv_heads=128,
    head_dim=128,
    ff_width=18432,
    vocabulary=129280,
    experts=Experts(
        count=256, per_token=8, width=2048, shared_width=2048, dense_layers=3, capacity_factor=1.0
    ),
    latent=Latent(query_rank=1536, key_value_rank=512, rotary_dim=64),
    moment_dtype="bfloat16",  # the report, 3.3.3
)

GPT_OSS_120B = Model(
    name="gpt-oss-120b",
    source="gpt-oss-120b & gpt-oss-20b Model Card (arXiv:2508.10925); openai/gpt-oss-120b",
    layers=36,
    width=2880,
    heads=64,
    kv_heads=8,
    head_dim=64,
    ff_width=2880,
    vocabulary=201088,
    experts=Experts(count=128, per_token=4, width=2880),
    window=128,
)

TRAINED = (LLAMA3_70B, LLAMA3_405B, MIXTRAL_8X22B, DEEPSEEK_V3)
