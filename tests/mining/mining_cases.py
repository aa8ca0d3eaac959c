"""Embeddings and labels that mining must get right, and the device it runs on."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batch(groups, items, width, values, seed, dtype=torch.float64):
    """Unit vectors (G, N, D) and labels (G, N) in -1..values-1."""
    draws = torch.Generator().manual_seed(seed)
    vectors = torch.randn(groups, items, width, generator=draws, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(vectors, dim=-1).to(dtype)
    labels = torch.randint(-1, values, (groups, items), generator=draws)
    return vectors.to(DEVICE), labels.to(DEVICE)


def exact_grid(groups, items, seed, distinct):
    """Vectors whose distances float32 holds exactly, so that ties are ties in any order of sums."""
    draws = torch.Generator().manual_seed(seed)
    pool = torch.randint(-3, 4, (groups, distinct, 9), generator=draws) / 8
    picked = torch.randint(distinct, (groups, items), generator=draws)
    return pool.gather(1, picked[..., None].expand(-1, -1, 9)).float().to(DEVICE)


KINDS = ["random", "clustered", "duplicates", "one label", "unknown", "long tail"]


def hard_case(kind, items, seed):
    """Vectors (2, N, 9) float32, their distances exact in float32, and labels (2, N)."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 5, (2, items), generator=draws)
    distinct = {"duplicates": max(1, items // 8), "clustered": max(1, items // 2)}
    vectors = exact_grid(2, items, seed, distinct.get(kind, 4 * items))
    if kind == "clustered":  # by label
        vectors = vectors / 8 + labels[..., None].to(DEVICE) / 4
    if kind == "one label":
        labels.fill_(1)
    if kind == "unknown":
        labels.fill_(-1)
    if kind == "long tail":
        labels = (torch.rand(2, items, generator=draws) ** 6 * 30).long()
    return vectors, labels.to(DEVICE)
