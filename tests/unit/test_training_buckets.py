"""Buckets by duration: the rows of a step in another order, and nothing else, on the loader that trains."""

from pathlib import Path

import numpy as np
import pytest

from aut.audio.decode import Unreadable
from aut.contracts import Silent
from aut.layout import Layout
from aut.order import Order
from aut.stages.mixture import mixture
from aut.training import data
from aut.training.groups import divide
from aut.training.kept import Kept, held_out
from aut.training.plan import Plan
from aut.training.sizes import EDGES_S, GPU_S, Sizes
from benchmarks import _pool as pool

SIZES = {"speech": 700, "environment": 90, "music": 130}
BUDGET_S, STEPS, BATCH = 60.0, 12, 20  # a step is a window of 20


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    layout = Layout(tmp_path_factory.mktemp("mixture"))
    for domain, rows in SIZES.items():
        pool.source(layout, domain, domain, rows)
    pool.block(layout, [])
    mixture(pool.params({d: [d] for d in SIZES}, rows=600, window=BATCH, parts=5), layout, Silent())
    order = Order.of_mixture(layout.mixture, 0)
    return Kept(order, held_out(order, 30))


def loader(order: Kept, rank: int = 0, world: int = 1) -> data.Loader:
    roots = {name: Path("unread") for name in SIZES}
    return data.Loader(order, roots, lambda text: [1, 2, 3], 30.0, Sizes(BUDGET_S), rank, world)


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read: a clip is as long as its row says."""
    monkeypatch.setattr(data, "read_clip", lambda root, row, max_s: np.zeros(round(row["duration_s"] * 16_000)))


class Mixture:
    """Rows as long as the mixture's: speech 8 s, sound 10 s, music 8 s on average."""

    MEAN_S = (8.0,) * 8 + (10.0,) + (8.0,)

    def __init__(self, clips: int) -> None:
        rng = np.random.default_rng(0)
        self.durations_s = [float(np.clip(rng.gamma(4.0, self.MEAN_S[i % 10] / 4.0), 0.5, 30.0)) for i in range(clips)]

    def rows(self, positions: np.ndarray) -> list[dict]:
        rest = {"domain": "speech", "source": "speech", "text": ""}
        return [{"id": str(p), "duration_s": self.durations_s[p], **rest} for p in positions]


def steps(order: Kept, world: int, first: int = 0) -> list[list[data.Batch]]:
    """By step, the batch of each process."""
    found = []
    for rank in range(world):
        share = loader(order, rank, world)
        found.append(list(share.steps(Plan(STEPS, STEPS * BATCH), first)))
        share.close()
    return [list(batches) for batches in zip(*found, strict=True)]


@pytest.mark.parametrize("world", [1, 3])
def test_each_step_has_its_positions_once_and_its_quotas(order: Kept, world: int) -> None:
    for step, batches in enumerate(steps(order, world)):
        micros = [m for b in batches for m in b.micros]
        assert sorted(np.concatenate([m.position_B for m in micros])) == list(range(step * BATCH, (step + 1) * BATCH))
        assert np.bincount(np.concatenate([m.domain_B for m in micros]), minlength=3).tolist() == [16, 2, 2]


def test_micro_batches_are_of_like_length_and_within_the_budget(order: Kept) -> None:
    padding = []
    for batches in steps(order, 2):
        assert len({len(b.micros) for b in batches}) == 1  # no process waits for one that is missing
        for micro in (m for b in batches for m in b.micros):
            assert len(micro.n_B) * micro.seconds <= BUDGET_S + 30.0 * (len(micro.n_B) == 1)
            padding.append(micro.x_BT.size - micro.n_B.sum())
    in_order = np.array([order.rows(np.arange(s, s + 4))[i]["duration_s"] for s in range(0, 240, 4) for i in range(4)])
    unsorted = (in_order.reshape(-1, 4).max(1, keepdims=True) - in_order.reshape(-1, 4)).sum() * 16_000
    assert sum(padding) < unsorted / 2


def test_beginning_in_the_middle_gives_the_same_steps(order: Kept) -> None:
    whole, later = (
        [[b.row_ids for b in batches] for batches in found] for found in (steps(order, 1), steps(order, 1, 7))
    )
    assert later == whole[7:]


@pytest.mark.parametrize(("packed", "padding"), [(False, 0.25), (True, 1e-9)])
def test_the_recipe_on_eight_gpus_pads_less_than_a_quarter(packed: bool, padding: float) -> None:
    """16 clips a process and step, of which 30-s ones would all fit; nothing was timed."""
    plan, sizes = Plan(10, 1280), Sizes(GPU_S, [16] * len(EDGES_S), packed=packed)
    totals, counts = np.zeros(2), []
    for rank in range(8):
        share = data.Loader(Mixture(1280), {"speech": Path("unread")}, lambda text: [1, 2, 3], 30.0, sizes, rank, 8)
        batches = list(share.steps(plan, 0))
        share.close()
        totals += [sum(b.seconds for b in batches), sum(b.padded_s for b in batches)]
        counts.append([len(b.micros) for b in batches])
    assert 1.0 - totals[0] / totals[1] < padding
    assert all(count == counts[0] for count in counts)


def test_packed_clips_go_together_as_far_as_their_sum_fits() -> None:
    """Long clips and short ones side by side cost their own seconds: fewer micro-batches than of clips padded."""
    seconds = [20.0, 1.0, 1.0, 1.0, 1.0, 12.0, 2.0, 2.0]  # 40 s; padded to the longest 160
    padded, packed = (divide(seconds, Sizes(40.0, packed=packed), 1) for packed in (False, True))
    assert len(padded) > 1
    assert packed == [[0, 5, 6, 7, 1, 2, 3, 4]]
    assert all(sum(seconds[i] for i in group) <= 20.0 for group in divide(seconds, Sizes(20.0, packed=True), 1))
    of_eight = Sizes(1e9, [8] * 4 + [2] * (len(EDGES_S) - 4), packed=True)  # two whose mean is over 4 s fit
    for group in divide(seconds, of_eight, 1):
        assert len(group) <= 2 or sum(seconds[i] for i in group) / len(group) <= EDGES_S[3]


def test_each_process_decodes_its_own_share_of_what_is_given(order: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip cannot be read: its process computes as many micro-batches as the others, in which nothing counts."""
    rows, read = order.rows(np.arange(5, dtype=np.int64)), []
    lost = rows[int(np.argmax([row["duration_s"] for row in rows]))]["id"]

    def decode(root, row, max_s):
        read.append(row["id"])
        if row["id"] == lost:
            raise Unreadable("truncated", "cut short")
        return np.zeros(round(row["duration_s"] * 16_000))

    monkeypatch.setattr(data, "read_clip", decode)
    batches = []
    for rank in range(2):
        share = loader(order, rank, 2)
        batches.append(share.batch(0, rows))
        share.close()
    assert sorted(read) == sorted(row["id"] for row in rows)
    assert len(batches[0].micros) == len(batches[1].micros)
    assert sorted(i for b in batches for i in b.row_ids) == sorted(row["id"] for row in rows if row["id"] != lost)
    counted = sum(int((m.targets_BL != data.IGNORED).any(axis=1).sum()) for b in batches for m in b.micros)
    assert counted == 4
