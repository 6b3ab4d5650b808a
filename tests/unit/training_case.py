"""A tiny corpus of noise with texts, an index of it, a tokenizer, and a job over them, for tests of training."""

from pathlib import Path

import numpy as np

from aut.config import ModelShape, Schedule, Training
from aut.contracts import INDEX_SCHEMA, Silent

CLIPS = 32
LOST = 4  # a step whose loss is not finite
ODD = 5  # clips held out, of which the last batch of an evaluation has fewer than there are processes
TEXTS = ("low hum", "rain on a roof", "a bell")


def write_case(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile as sf

    from aut.training.tokenizer import train_tokenizer

    rows = []
    for i in range(CLIPS):
        rng = np.random.default_rng([0, i])
        samples = int(rng.integers(2000, 6000))
        tone = np.sin(np.arange(samples) * (0.05 + 0.2 * (i % 3))) * 0.3 + rng.normal(0, 0.02, samples)
        sf.write(folder / f"{i:04d}.wav", tone, 16000, subtype="PCM_16")
        row = dict.fromkeys(INDEX_SCHEMA)
        row |= {"id": f"noise/{i:04d}", "domain": "speech", "source": "noise", "uri": f"{i:04d}.wav", "start_s": 0.0}
        row |= {"duration_s": samples / 16000, "sample_rate_hz": 16000, "text": TEXTS[i % 3]}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")
    train_tokenizer(TEXTS * 5, 290, "en", folder)
    return folder


def settings(**changes):
    values = {
        "precision": "fp32", "length": "native", "max_s": 30.0, "language": "en", "spec_augment": False,
        "gain_jitter_db": 0.0, "label_smoothing": 0.0, "checkpoint_every": 4, "keep_checkpoints": 2, "eval_every": 3,
        "eval_clips": 4, "activation_checkpointing": False, "compile": False,
        "deepspeed_stage": 0,
    }  # fmt: skip
    return Training(**(values | changes))


def job_of(case: Path, steps: int = 6, **changes):
    from aut.order import Order
    from aut.training.job import Job
    from aut.training.kept import Kept, held_out
    from aut.training.plan import plan

    schedule = Schedule(
        steps=steps, epochs=None, batch=4, lr=3e-3, warmup_fraction=0.1, weight_decay=0.01, betas=(0.9, 0.999),
        clip_norm=1.0,
    )  # fmt: skip
    training = settings(spec_augment=True, gain_jitter_db=3.0, **changes)
    order = Order.of_index([case / "part-0.parquet"], None, 0)
    held = held_out(order, training.eval_clips)
    rows = order.rows(np.arange(len(held), dtype=np.int64))
    return Job("base", "case", 0, schedule, training, Kept(order, held), plan(schedule, order.length), rows, {})


def whisper_of(case: Path):
    from aut.training.model import new_whisper

    shape = ModelShape(d_model=16, encoder_layers=2, decoder_layers=1, heads=2, mels=80, vocabulary=290)
    return new_whisper(shape, case, "en", 0)


def curve(state):
    """Losses, learning rates and evaluations, exactly."""
    return state.log, state.evals


def main(case: str, work: str, stop: str, *stages: str) -> None:
    """The same job at each `ZeRO stage:port`, in forks of a process that has the libraries: a start is mostly imports.

    `2bf16` is ZeRO-2 in bf16 with activations computed again. Leaves `stage-N/final.pt`. With a `stop`, SIGTERM comes
    in that step. AUT_TEST_FULL is what `fill` takes, AUT_TEST_MICRO each process's AUT_MICRO_S. Exits like the last
    stage, or like the first to be started again.
    """
    import os
    import sys

    import accelerate  # noqa: F401
    from transformers import WhisperForConditionalGeneration  # noqa: F401

    from aut.training.recall import AGAIN

    code = 0
    for stage, port in (word.split(":") for word in stages):
        # They meet anew: torchrun's store and DeepSpeed's shared memory hold what the stage before left there.
        os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
        if stage != "0":
            import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  which compiles, and so imports all of torch
        child = os.fork()
        if not child:
            if micro := os.environ.get("AUT_TEST_MICRO"):
                os.environ["AUT_MICRO_S"] = micro.split(":")[int(os.environ["RANK"])]
            if full := os.environ.get("AUT_TEST_FULL"):
                fill(*full.split(":"))
            lose()
            watch_group()
            train(Path(case), Path(work) / f"stage-{stage}", int(stop), **changes_of(stage))
            sys.exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == AGAIN:
            break
    sys.exit(code)


def share_all() -> None:
    """ZeRO-3 keeps weights of under 100,000 elements whole in each process: here that would be every one."""
    from aut.training import sharded

    plain = sharded._config

    def config(schedule, training):
        made = plain(schedule, training)
        made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    sharded._config = config


def fill(where: str, rank: str, clips: str) -> None:
    """In training, the memory of process `rank` ends in the decoder's `forward`, or a `backward`, of so many clips."""
    import os

    import torch

    from aut.training import model, sharded
    from aut.training.engine import Engine

    decode, seen = model.decoder_forward, [0]

    def limit(now: str) -> None:
        if now == where and os.environ["RANK"] == rank and seen[0] >= int(clips) and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    def forward(decoder, ids_BL, *args, **named):
        seen[0] = len(ids_BL)
        limit("forward")
        return decode(decoder, ids_BL, *args, **named)

    model.decoder_forward = forward
    for engine in (Engine, sharded.Sharded):
        before = engine._backward

        def backward(self, loss, last, before=before):
            limit("backward")
            before(self, loss, last)

        engine._backward = backward


def lose() -> None:
    """In step LOST the loss is not finite, and the gradients are."""
    from aut.training.engine import Engine

    accumulate = Engine.accumulate

    def lost(engine, micros, tokens, seed):
        counts_2G = accumulate(engine, micros, tokens, seed)
        return counts_2G + float("inf") if seed // engine.world == LOST else counts_2G

    Engine.accumulate = lost


def watch_group() -> None:
    """The group ends when no reducer holds it any more: one that outlives it can wait for its threads for ever."""
    import weakref

    import torch

    wrapped, made, before = torch.nn.parallel.DistributedDataParallel, list[weakref.ref](), {}
    before["init"], before["destroy"] = wrapped.__init__, torch.distributed.destroy_process_group

    def init(self, *args, **named):
        made.append(weakref.ref(self))
        before["init"](self, *args, **named)

    def destroy(*args):
        assert not any(model() for model in made), "a reducer outlives its group"
        before["destroy"](*args)

    wrapped.__init__, torch.distributed.destroy_process_group = init, destroy


def changes_of(stage: str) -> dict:
    made = {"deepspeed_stage": int(stage[0]), "eval_clips": ODD, "compile": stage.endswith("compiled")}
    return made | ({"precision": "bf16", "activation_checkpointing": True} if stage.endswith("bf16") else {})


def train(case: Path, work: Path, stop: int = 0, **changes) -> None:
    import os
    import signal

    import torch

    from aut.encoders import whisper as forward
    from aut.training.job import execute

    class Stop(Silent):
        def metrics(self, values, step=None):
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

    whisper = whisper_of(case)
    if changes.get("deepspeed_stage") == 3:
        share_all()
    if changes.get("compile"):
        forward.BACKEND = "aot_eager"  # traces and divides the graph as the default does, and generates no code
    execute(job_of(case, 6, **changes), whisper, case, {"noise": case}, work, Stop())
    if os.environ.get("RANK", "0") == "0":
        torch.save(whisper.state_dict(), work / "final.pt")
        if changes.get("deepspeed_stage"):
            opens(whisper, work / "model")


def opens(whisper, folder: Path) -> None:
    """As `aut finetune` does after a training, to hear how well it still writes down speech."""
    import torch

    from aut.training.model import open_whisper, save_whisper

    folder.mkdir(exist_ok=True)
    save_whisper(whisper, folder)
    opened = open_whisper(folder).state_dict()
    assert all(torch.equal(opened[name], value.cpu()) for name, value in whisper.state_dict().items())


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
