"""Who holds which examples: a split of one dataset among many clients, skewed by a draw or as its users are.

Pure: labels and a seed in, indices out. Nothing here knows images, devices or files.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmq.errors import SettingError

#: Ways to split. `auto` is by user where the data says whose an example is, and by Dirichlet elsewhere.
SPLITS: Final = ("auto", "dirichlet", "shards", "user")
#: So many examples each client gets by default, if there are as many.
_PER_CLIENT: Final = 1000


def partition(
    labels: NDArray[np.integer[Any]],
    owners: NDArray[np.integer[Any]] | None,
    *,
    split: str,
    clients: int,
    alpha: float,
    per_client: int | None,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Split in one of the ways of `SPLITS`.

    Args:
        labels: shape (n,), integers.
        owners: whose each example is, shape (n,); None when the data does not say.
        split: the way.
        clients: how many parts.
        alpha: of Dirichlet's.
        per_client: examples per client for Dirichlet's; 1000, or as many as there are, when None.
        seed: the same seed and arguments give the same parts.

    Returns:
        One int64 array of indices into `labels` per client.

    Raises:
        SettingError: an argument is out of range, or the data does not have what the split needs.
    """
    if split == "user" or (split == "auto" and owners is not None):
        if owners is None:
            raise SettingError(
                "split", split, "the data does not say whose its examples are; use dirichlet or shards"
            )
        return user_partition(owners, clients=clients)
    if split == "shards":
        return shard_partition(labels, clients=clients, seed=seed)
    size = min(_PER_CLIENT, len(labels) // max(clients, 1)) if per_client is None else per_client
    return dirichlet_partition(labels, clients=clients, alpha=alpha, per_client=size, seed=seed)


def user_partition(owners: NDArray[np.integer[Any]], *, clients: int) -> list[NDArray[np.int64]]:
    """Give each client what one user made, in the data's order; with fewer clients than users, the first users'.

    Args:
        owners: whose each example is, shape (n,).
        clients: how many parts.

    Raises:
        SettingError: there are not so many users.
    """
    users = np.unique(owners)
    if not 1 <= clients <= len(users):
        raise SettingError("clients", clients, f"the data is of {len(users)} users; use 1 to {len(users)}")
    return [np.flatnonzero(owners == user) for user in users[:clients]]


def shard_partition(labels: NDArray[np.integer[Any]], *, clients: int, seed: int) -> list[NDArray[np.int64]]:
    """Sort by label, cut into two shards for every client, give each client two of them at random.

    Most clients then know two classes. Source: McMahan et al. 2017 (AISTATS), section 3, "pathological non-IID".

    Args:
        labels: shape (n,), integers.
        clients: how many parts.
        seed: the same seed and arguments give the same parts.

    Raises:
        SettingError: there are not enough examples.
    """
    if not 1 <= clients <= len(labels) // 2:
        raise SettingError(
            "clients", clients, f"{len(labels)} examples in two shards each allow 1 to {len(labels) // 2}"
        )
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.permutation(len(labels)), labels))  # within a class, any order
    shards = np.array_split(order, 2 * clients)
    drawn = rng.permutation(2 * clients).reshape(clients, 2)
    return [
        rng.permutation(np.concatenate([shards[a], shards[b]])).astype(np.int64) for a, b in drawn.tolist()
    ]


def dirichlet_partition(
    labels: NDArray[np.integer[Any]], *, clients: int, alpha: float, per_client: int | None, seed: int
) -> list[NDArray[np.int64]]:
    """Give every client equally many examples, with a label mix of its own drawn from Dir(alpha).

    Small `alpha` gives clients that know one or two classes, large `alpha` gives clients that are alike.
    Mixes are drawn over the classes that occur, with a uniform prior; examples are drawn without replacement,
    so the parts are disjoint. When a class is exhausted its share goes to the client's other classes in
    proportion, or, when those have no weight, to what is left. The larger the share of `labels` that is given
    away, the more the last clients take what is left rather than what they drew.
    Source: Hsu, Qi, Brown 2019 (arXiv:1909.06335), section 3.

    Args:
        labels: shape (n,), integers.
        clients: how many parts.
        alpha: concentration, above 0.
        per_client: examples per client; None gives each client n // clients.
        seed: the same seed and arguments give the same parts.

    Returns:
        One int64 array of indices into `labels` per client, shape (per_client,), in random order.

    Raises:
        SettingError: an argument is out of range, or there are not enough examples.
    """
    if clients < 1:
        raise SettingError("clients", clients, "use at least 1")
    if not (math.isfinite(alpha) and alpha > 0):
        raise SettingError("alpha", alpha, "use a number above 0, such as 0.3")
    share = len(labels) // clients
    size = share if per_client is None else per_client
    if not 1 <= size <= share:
        raise SettingError(
            "per_client", size, f"{len(labels)} examples for {clients} clients allow 1 to {share}"
        )
    rng = np.random.default_rng(seed)
    _, classes = np.unique(labels, return_inverse=True)
    pools = [rng.permutation(np.flatnonzero(classes == index)) for index in range(int(classes.max()) + 1)]
    left = np.array([len(pool) for pool in pools])
    parts = []
    for _ in range(clients):
        wanted = _draw_counts(rng, rng.dirichlet(np.full(len(pools), alpha)), left, size)
        chosen = [pool[rest - count : rest] for pool, rest, count in zip(pools, left, wanted, strict=True)]
        left = left - wanted
        parts.append(rng.permutation(np.concatenate(chosen)).astype(np.int64))
    return parts


def _draw_counts(
    rng: np.random.Generator, mix: NDArray[np.float64], left: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """Draw how many examples of each class a client takes: `size` in all, at most `left` of each."""
    counts = np.zeros_like(left)
    while (missing := size - int(counts.sum())) > 0:
        weights = np.where(counts < left, mix, 0.0)
        if weights.sum() == 0.0:
            weights = (left - counts).astype(np.float64)
        counts = np.minimum(counts + rng.multinomial(missing, weights / weights.sum()), left)
    return counts
