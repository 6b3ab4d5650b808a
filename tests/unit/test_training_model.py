"""What a training leaves: a folder that transformers loads, generates from, and reads the tokenizer of."""

import numpy as np
import pytest
import torch

from aut.training.augment import Augment
from aut.training.data import IGNORED, Example, collate
from aut.training.job import write_model
from aut.training.model import Captioner, open_whisper
from tests.unit.training_case import settings, whisper_of, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("case"))


def examples(lengths=(4000, 2500)):
    rng = np.random.default_rng(0)
    pcm = [rng.integers(-9000, 9000, n).astype(np.int16) for n in lengths]
    return [Example(i, f"x/{i}", i, p, [280, 281, 5, 6 + i, 279][: 5 - i] + [279] * i) for i, p in enumerate(pcm)]


@torch.no_grad()
def test_the_loss_equals_transformers_on_padded_input(case):
    whisper = whisper_of(case).eval()
    model = Captioner(whisper, settings(length="padded"), Augment(settings(), 0)).eval()
    micro = collate(examples())
    sums = model(micro, torch.device("cpu"))
    from aut.audio.mel import log_mel

    mel_BMF, _ = log_mel(torch.from_numpy(micro.x_BT).float() / 32767.0, torch.from_numpy(micro.n_B), 80, padded=True)
    logits = whisper(input_features=mel_BMF, decoder_input_ids=torch.from_numpy(micro.ids_BL)).logits
    targets = torch.from_numpy(micro.targets_BL)
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    torch.testing.assert_close(sums.loss, theirs, rtol=1e-5, atol=1e-4)  # fp32, fused kernels
    loss, tokens = sums.counts_2G.sum(dim=1).tolist()
    assert loss == pytest.approx(sums.loss.item(), rel=1e-6)
    assert tokens == micro.tokens


def test_a_saved_model_loads_and_generates(case, tmp_path):
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    whisper = whisper_of(case)
    write_model(whisper, tmp_path, {"kind": "test"})
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(whisper.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    features = WhisperFeatureExtractor.from_pretrained(tmp_path)(np.zeros(8000), sampling_rate=16000)
    ids = again.generate(torch.tensor(np.array(features["input_features"])), max_new_tokens=4)
    assert ids.shape[1] >= 1
    assert torch.equal(open_whisper(tmp_path).proj_out.weight, whisper.model.decoder.embed_tokens.weight)


def test_augmentation_belongs_to_the_row():
    augment = Augment(settings(spec_augment=True, gain_jitter_db=6.0), seed=3)
    x_BT, mel_BMF = torch.ones(3, 800), torch.ones(3, 80, 100)
    n_B, at = torch.full((3,), 16000), np.array([5, 6, 7])
    together = augment.gain(x_BT, at), augment.masks(mel_BMF, n_B, at)
    alone = augment.gain(x_BT[1:2], at[1:2]), augment.masks(mel_BMF[1:2], n_B[1:2], at[1:2])
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[1:2], b)
    assert not torch.equal(together[0][0], together[0][1])
    assert (together[1] == 0).any()
