"""The skewed split: exact sizes, disjoint parts, the mixes that Dir(alpha) promises, and a picture that reads."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console

from fedmq.app.partition import dirichlet_partition, partition, shard_partition, user_partition
from fedmq.app.partition_picture import partition_picture
from fedmq.errors import SettingError


def balanced(classes: int, each: int) -> NDArray[np.uint8]:
    """Labels with equally many examples of each class, shuffled."""
    return np.random.default_rng(5).permutation(np.repeat(np.arange(classes, dtype=np.uint8), each))


def drawn(
    labels: NDArray[np.uint8], parts: list[NDArray[np.int64]], names: list[str], width: int = 80
) -> str:
    """The picture as text without colour."""
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(partition_picture(labels, parts, names))
    return capture.get()


@given(data=st.data())
def test_every_client_gets_its_number_and_no_example_is_given_twice(data: st.DataObject) -> None:
    """Also when classes run out, when a class does not occur, and for extreme alpha."""
    labels = np.array(
        data.draw(st.lists(st.sampled_from([0, 1, 2, 7]), min_size=1, max_size=60)), dtype=np.int64
    )
    clients = data.draw(st.integers(1, len(labels)))
    per_client = data.draw(st.none() | st.integers(1, len(labels) // clients))
    alpha = data.draw(st.sampled_from([1e-300, 0.01, 0.3, 1.0, 1e6, 1e308]))

    parts = dirichlet_partition(labels, clients=clients, alpha=alpha, per_client=per_client, seed=3)

    size = len(labels) // clients if per_client is None else per_client
    together = np.concatenate(parts)
    assert [size] * clients == [len(part) for part in parts]
    assert len(together) == len(np.unique(together))
    assert together.min() >= 0
    assert together.max() < len(labels)
    assert {np.dtype(np.int64)} == {part.dtype for part in parts}


def test_the_seed_alone_decides() -> None:
    """The same seed gives the same parts in the same order, another seed gives others."""
    labels = balanced(10, 600)
    first, second, other = (
        dirichlet_partition(labels, clients=10, alpha=0.3, per_client=100, seed=seed) for seed in (0, 0, 1)
    )

    assert [part.tolist() for part in first] == [part.tolist() for part in second]
    assert [part.tolist() for part in first] != [part.tolist() for part in other]


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
def test_the_mixes_have_the_spread_of_the_dirichlet_distribution(alpha: float) -> None:
    """The variance of a class's share over many clients is that of Dir(alpha), plus that of drawing the examples.

    With K classes a share has mean 1/K and variance v = (1/K)(1 - 1/K)/(K alpha + 1); a multinomial draw of n
    examples makes it v (1 - 1/n) + (1/K)(1 - 1/K)/n.
    """
    classes, clients, size = 5, 2000, 50
    labels = balanced(classes, 200_000)

    parts = dirichlet_partition(labels, clients=clients, alpha=alpha, per_client=size, seed=1)

    shares = np.array([np.bincount(labels[part], minlength=classes) for part in parts]) / size
    base = (1 / classes) * (1 - 1 / classes)
    expected = base / (classes * alpha + 1) * (1 - 1 / size) + base / size
    assert shares.var() == pytest.approx(expected, rel=0.06)
    assert shares.mean(axis=0) == pytest.approx(np.full(classes, 1 / classes), abs=0.03)


def test_small_alpha_gives_specialists_and_large_alpha_gives_equals() -> None:
    """The dial does what its description says."""
    labels = balanced(10, 1000)

    def largest_share(alpha: float) -> float:
        parts = dirichlet_partition(labels, clients=10, alpha=alpha, per_client=100, seed=0)
        return float(np.mean([np.bincount(labels[part]).max() for part in parts])) / 100

    assert largest_share(0.001) > 0.9
    assert 0.25 < largest_share(0.3) < 0.75
    assert largest_share(1000.0) < 0.2


def test_examples_come_in_random_order() -> None:
    """A client that trains on the first few examples does not see one class only."""
    labels = balanced(2, 500)
    (part,) = dirichlet_partition(labels, clients=1, alpha=100.0, per_client=400, seed=0)

    assert {0, 1} == set(labels[part[:20]].tolist())
    assert part.tolist() != sorted(part.tolist())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clients": 0}, "clients = 0"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"per_client": 0}, "per_client = 0 .* 40 examples for 4 clients allow 1 to 10"),
        ({"per_client": 11}, "per_client = 11 .* 40 examples for 4 clients allow 1 to 10"),
        ({"clients": 41, "per_client": None}, "40 examples for 41 clients"),
    ],
)
def test_what_cannot_be_split_is_refused(changed: dict[str, float | None], message: str) -> None:
    """The message names the setting, its value and what would do."""
    settings: dict[str, Any] = {"clients": 4, "alpha": 0.5, "per_client": 5, "seed": 0, **changed}

    with pytest.raises(SettingError, match=message):
        dirichlet_partition(balanced(4, 10), **settings)


def test_the_picture_shows_counts_and_shades_on_80_columns() -> None:
    """Ten clients and ten classes with long names fit, and the numbers are those of the parts."""
    labels = balanced(10, 6000)
    names = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
    parts = dirichlet_partition(labels, clients=10, alpha=0.3, per_client=1000, seed=0)

    text = drawn(labels, parts, names)

    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.split()[:1] == ["3"])
    numbers = [int(word) for word in row.replace("·", "0").split() if word.isdecimal()]
    assert [3, *np.bincount(labels[parts[3]], minlength=10).tolist(), 1000] == numbers
    assert "9=Ankle boot" in text.replace("\n", " ")


@pytest.mark.parametrize(
    ("count", "shade"), [(0, "·"), (9, "░"), (10, "▒"), (25, "▓"), (50, "█"), (100, "█")]
)
def test_a_shade_stands_for_a_share(count: int, shade: str) -> None:
    """The limits are those that the key below the picture states."""
    labels = np.array([0] * count + [1] * (100 - count))

    text = drawn(labels.astype(np.uint8), [np.arange(100)], ["0", "1"])

    assert shade == next(line.split()[1][0] for line in text.splitlines() if line.split()[:1] == ["0"])


def test_a_large_picture_is_cut_and_says_so() -> None:
    """Many clients and many classes still fit 80 columns; what is left out is counted."""
    labels = balanced(40, 100)
    parts = dirichlet_partition(labels, clients=25, alpha=1.0, per_client=100, seed=0)

    text = drawn(labels, parts, [str(index) for index in range(40)])

    assert max(map(len, text.splitlines())) <= 80
    assert "… and 5 more clients" in text
    assert "… and 10 more classes" in text


@given(clients=st.integers(1, 12), classes=st.integers(1, 6), seed=st.integers(0, 9))
def test_shards_are_disjoint_and_of_few_classes(clients: int, classes: int, seed: int) -> None:
    """Every example is given away once; two shards of sorted labels touch at most four classes when they are small."""
    labels = balanced(classes, 2 * clients)
    parts = shard_partition(labels, clients=clients, seed=seed)

    assert list(range(len(labels))) == sorted(np.concatenate(parts).tolist())
    assert {2 * classes} == {len(part) for part in parts}
    if clients >= classes:
        assert max(len(np.unique(labels[part])) for part in parts) <= 4


def test_the_first_users_get_what_is_theirs() -> None:
    """In the data's order; nobody else's."""
    owners = np.array([7, 3, 7, 5, 3, 3])

    assert [[1, 4, 5], [3]] == [part.tolist() for part in user_partition(owners, clients=2)]


def test_a_split_is_chosen_by_name() -> None:
    """And `auto` by what the data knows."""
    labels, owners = balanced(2, 6), np.repeat([1, 2, 3], 4)
    settings: dict[str, Any] = {"clients": 3, "alpha": 0.5, "per_client": None, "seed": 0}

    def of(split: str, owners: NDArray[np.int64] | None) -> list[list[int]]:
        return [part.tolist() for part in partition(labels, owners, split=split, **settings)]

    assert (
        of("user", owners)
        == of("auto", owners)
        == [part.tolist() for part in user_partition(owners, clients=3)]
    )
    assert of("dirichlet", owners) == of("auto", None)
    assert of("shards", owners) == [p.tolist() for p in shard_partition(labels, clients=3, seed=0)]
    with pytest.raises(SettingError, match=r"split = 'user' .* does not say whose its examples are"):
        of("user", None)


@pytest.mark.parametrize(
    ("split", "clients", "message"),
    [
        ("user", 4, "the data is of 3 users; use 1 to 3"),
        ("shards", 7, "12 examples in two shards each allow 1 to 6"),
    ],
)
def test_too_many_clients_are_refused(split: str, clients: int, message: str) -> None:
    """With the number that would be allowed."""
    with pytest.raises(SettingError, match=message):
        partition(
            balanced(2, 6),
            np.repeat([1, 2, 3], 4),
            split=split,
            clients=clients,
            alpha=1.0,
            per_client=None,
            seed=0,
        )
