"""The benchmark of a GPU host, where there is none: when memory or the disk ends, and what its peer is given."""

from types import SimpleNamespace

import pytest
import torch

import aut  # noqa: F401 - before the benchmark, which makes bare packages where it is not there
from benchmarks import train
from benchmarks.train import Pace, case_of, fastest, keep, make_clips, theirs


@pytest.fixture
def case():
    return case_of(quick=False, rehearse=True)


def test_the_best_of_what_fits_is_taken(case, monkeypatch, capsys):
    paces = {120.0: Pace(7.0, 1.0), 240.0: Pace(9.0, 1.0)}

    def own_steps(case, model, clips, padded, budget_s):
        if budget_s not in paces:
            raise RuntimeError("CUDA error: out of memory")
        return paces[budget_s]

    monkeypatch.setattr(train, "own_steps", own_steps)
    tried = train.replace(case, budgets_s=(120.0, 240.0, 480.0))
    found = fastest(tried, torch.nn.Linear(1, 1), [])
    assert found == (240.0, paces[240.0], {"120": 7.0, "240": 9.0})
    assert "480 s a micro-batch: does not fit" in capsys.readouterr().err
    paces.clear()
    with pytest.raises(SystemExit, match="not even 120 s"):
        fastest(tried, torch.nn.Linear(1, 1), [])


def test_a_checkout_that_cannot_be_written_loses_nothing(case, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "__file__", str(tmp_path / "nowhere" / "train.py"))
    keep({"figures": {}}, case)
    assert "the result is not kept" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")  # the name that older ones know, too
def test_the_peer_never_meets_the_end_of_its_rows(case, monkeypatch):
    given = {}

    class Trainer:
        def __init__(self, **named):
            given.update(named)

        def add_callback(self, ends):
            pass

        def train(self):
            given["data_collator"](given["train_dataset"][-2:])

    monkeypatch.setattr(train, "Seq2SeqTrainer", Trainer)
    model = SimpleNamespace(
        config=SimpleNamespace(num_mel_bins=80), zero_grad=lambda **_: None, gradient_checkpointing_disable=lambda: None
    )
    theirs(case, model, make_clips(case.batch * case.steps, 500), again=True)
    arguments = given["args"]
    step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert len(given["train_dataset"]) > arguments.max_steps * step
