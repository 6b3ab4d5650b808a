"""The served interface: every way in, every format out, equal to the encoder alone and in a crowd."""

import asyncio
import base64
import gzip
import io
import json

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load

import aut
from aut.encoders import AudioEncoder, open_encoder
from aut.serving.limits import Limits
from tests.unit.serving_fixture import WIDTH, Shelf, file_of, serving, sound, write_version

ATOL = 1e-5  # float32, batches of other shapes


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return write_version(tmp_path_factory.mktemp("versions") / "1")


@pytest.fixture(scope="module")
def encoder(version):
    return aut.load_encoder(version)


def run(coroutine):
    return asyncio.run(coroutine)


def npy(answer):
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def test_every_way_in_gives_the_encoders_own_vector(version, encoder):
    clip = sound(1.3)
    file = file_of(clip)
    text = base64.b64encode(file).decode()
    (expected,) = encoder.embed(clip, 16_000)

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            form = {"file": ("clip.wav", file, "audio/wav")}
            table = {"dataframe_split": {"columns": ["audio"], "data": [[base64.encodebytes(file).decode()]]}}
            return (
                [
                    await client.post("/v1/embeddings", files=form),
                    await client.post("/v1/embeddings", content=file),
                    await client.post("/v1/embeddings", content=file, headers={"Content-Type": "audio/wav"}),
                    await client.post("/v1/embeddings", json={"input": text}),
                    await client.post("/v1/embeddings", json={"input": [f"data:audio/wav;base64,{text}"]}),
                ],
                [
                    await client.post("/invocations", json=table),
                    await client.post("/invocations", json={"dataframe_records": [{"audio": text}]}),
                    await client.post("/invocations", json={"instances": [{"audio": text}]}),
                    await client.post("/invocations", json={"inputs": {"audio": [text]}}),
                ],
            )

    ours, mlflows = run(ask())
    for answer in ours:
        body = answer.json()
        np.testing.assert_allclose(body["data"][0]["embedding"], expected, atol=ATOL)
        assert body["data"][0]["seconds"] == pytest.approx(1.3)
        assert body["model"] == "models:/whisper-aut/1"
        assert answer.headers["x-model-version"] == "models:/whisper-aut/1"
        assert answer.headers["x-model-run-id"] == "run1"
        assert answer.headers["x-model-weights"] == encoder.digest
    for answer in mlflows:
        (row,) = answer.json()["predictions"]
        np.testing.assert_allclose(row["embedding"], expected, atol=ATOL)
        assert set(row) == {"embedding"}, "as the registered model answers"


def test_formats_pools_and_layers(version, encoder):
    clips = [sound(0.7, 1), sound(1.1, 2)]
    h_BFD, f_B = encoder.encode(clips, 16_000)
    text = [base64.b64encode(file_of(c)).decode() for c in clips]

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            out = {}
            for form in ("json", "npy", "safetensors", "base64"):
                for pool in ("mean", "none"):
                    path = f"/v1/embeddings?format={form}&pool={pool}"
                    out[form, pool] = await client.post(path, json={"input": text})
            out["layer"] = await client.post("/v1/embeddings?layer=1&format=npy", json={"input": text})
            out["layer frames"] = await client.post(
                "/v1/embeddings", json={"input": text, "layer": 1, "pool": "none", "format": "npy"}
            )
            out["too deep"] = await client.post("/v1/embeddings?layer=3", json={"input": text})
            out["openai"] = await client.post("/v1/embeddings", json={"input": text, "encoding_format": "base64"})
            return out

    out = run(ask())
    means = encoder.embed(clips, 16_000)
    np.testing.assert_allclose(npy(out["npy", "mean"]), means, atol=ATOL)
    np.testing.assert_allclose(npy(out["npy", "none"]), h_BFD, atol=ATOL)
    assert out["npy", "none"].headers["x-valid-frames"] == ",".join(map(str, f_B))
    np.testing.assert_allclose(load(out["safetensors", "mean"].content)["embeddings"], means, atol=ATOL)
    tensors = load(out["safetensors", "none"].content)
    np.testing.assert_allclose(tensors["embeddings"], h_BFD, atol=ATOL)
    assert tensors["valid_frames"].tolist() == f_B.tolist()
    for i in range(2):
        np.testing.assert_allclose(out["json", "mean"].json()["data"][i]["embedding"], means[i], atol=ATOL)
        frames = np.array(out["json", "none"].json()["data"][i]["embedding"])
        np.testing.assert_allclose(frames, h_BFD[i, : f_B[i]], atol=ATOL)
        for name in (("base64", "mean"), "openai"):
            packed = base64.b64decode(out[name].json()["data"][i]["embedding"])
            np.testing.assert_allclose(np.frombuffer(packed, "<f4"), means[i], atol=ATOL)
    layers = encoder.encoder.pooled(clips, ["valid"], layers=True)
    np.testing.assert_allclose(npy(out["layer"]), layers["valid.layer01"], atol=ATOL)
    assert npy(out["layer frames"]).shape == h_BFD.shape
    middle = npy(out["layer frames"])[1, : f_B[1]].mean(axis=0)
    np.testing.assert_allclose(middle, layers["valid.layer01"][1], atol=ATOL)
    assert out["too deep"].status_code == 400
    assert "layer 3" in out["too deep"].json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/v1/embeddings?pool=max", "pool"),
        ("/v1/embeddings?format=pickle", "format"),
        ("/v1/embeddings?layer=x", "layer"),
        ("/v1/embeddings?layer=-1", "layer"),
        ("/v1/classify?top=0", "top"),
        ("/v1/classify?top=1e9", "top"),
        ("/v1/classify?neighbours=-4", "neighbours"),
    ],
)
def test_a_wrong_option_of_the_query_is_told_by_its_name(version, path, reason):
    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            return await client.post(path, content=file_of(sound(0.1)))

    answer = run(ask())
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, reason)


def test_a_crowd_of_other_lengths_changes_nothing(version, encoder):
    """Batches form while the model is busy; each answer still is the clip's own, a long one in windows included."""
    lengths = [*np.linspace(0.2, 3.0, 30), 0.05, 33.5]
    clips = [sound(s, i) for i, s in enumerate(lengths)]

    async def ask():
        sizes = []
        async with serving(Shelf({"1": version}, "1"), Limits(linger_s=0.02)) as (client, service):
            service.batcher.batched = lambda clips, seconds, took: sizes.append(clips)
            paths = [f"/v1/embeddings?format=npy&pool={'none' if i % 3 else 'mean'}" for i in range(len(clips))]
            calls = [client.post(p, content=file_of(c)) for p, c in zip(paths, clips, strict=True)]
            return await asyncio.gather(*calls), sizes

    answers, sizes = run(ask())
    assert max(sizes) > 2
    assert sum(sizes) == len(clips)
    for i, (answer, clip) in enumerate(zip(answers, clips, strict=True)):
        expected = encoder.encode([clip], 16_000)[0] if i % 3 else encoder.embed(clip, 16_000)
        np.testing.assert_allclose(npy(answer), expected, atol=ATOL)


@pytest.mark.parametrize(
    ("kind", "subtype", "rate_hz", "channels", "atol"),
    [
        ("WAV", "PCM_24", 44_100, 2, 2e-3),
        ("FLAC", "PCM_16", 48_000, 1, 2e-3),
        ("WAV", "PCM_16", 8_000, 6, 2e-3),
        ("OGG", "VORBIS", 22_050, 2, None),
        ("MP3", "MPEG_LAYER_III", 44_100, 1, None),
    ],
)
def test_any_format_rate_and_channels(version, encoder, kind, subtype, rate_hz, channels, atol):
    clip = sound(1.0, rate_hz=rate_hz)
    spread = np.repeat(clip[:, None], channels, axis=1)

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            file = file_of(spread, rate_hz, kind, subtype)
            return await client.post("/v1/embeddings?format=npy", content=file)

    (found,) = npy(run(ask()))
    assert found.shape == (WIDTH,)
    if atol:  # lossless to quantisation; lossy codecs change the sound
        np.testing.assert_allclose(found, encoder.embed(clip, rate_hz)[0], atol=atol)


@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_loud_clips_are_those_of_the_encoder_alone(version, encoder, kind):
    """Full scale at 44.1 kHz, over which a resampler shoots; an mp3 whose peaks are over 1."""
    rng = np.random.default_rng([4])
    loud = np.sign(rng.standard_normal(4_410)).repeat(10).astype(np.float32)
    file = file_of(loud, 44_100, kind, "PCM_16" if kind == "WAV" else None)
    samples, rate_hz = soundfile.read(io.BytesIO(file), dtype="float32")
    assert kind == "WAV" or np.abs(samples).max() > 1.05

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            answer = await client.post("/v1/embeddings?format=npy", content=file)
            async with aut.AsyncClient("http://aut", transport=client._transport) as ours:
                return npy(answer)[0], await ours.embed(samples, rate_hz), await ours.embed(1.5 * samples, rate_hz)

    served, sent, louder = run(ask())
    np.testing.assert_allclose(served, encoder.embed(samples, rate_hz)[0], atol=ATOL)
    np.testing.assert_allclose(sent, encoder.embed(samples, rate_hz)[0], atol=ATOL)
    np.testing.assert_allclose(louder, encoder.embed(1.5 * samples, rate_hz)[0], atol=ATOL)


def test_classes_are_the_heads_softmax_and_neighbours_the_nearest(version, encoder):
    clip = sound(1.0, 5)
    (x_D,) = encoder.embed(clip, 16_000)

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, service):
            answer = await client.post("/v1/classify?top=2&neighbours=3", files={"file": file_of(clip)})
            return answer.json(), service.watcher.served

    body, served = run(ask())
    sets = body["data"][0]["sets"]
    for name, head in served.heads.items():
        logits = x_D @ head.weight_CD.T + head.bias_C
        p_C = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-p_C)[:2]
        assert [row["label"] for row in sets[name]["top"]] == [head.labels[i] for i in best]
        np.testing.assert_allclose([row["probability"] for row in sets[name]["top"]], p_C[best], atol=1e-4)
    cosines = served.neighbours["words"].unit_ND @ x_D / np.linalg.norm(x_D)
    nearest = sets["words"]["nearest"]
    assert [row["id"] for row in nearest] == [f"words/{i}" for i in np.argsort(-cosines)[:3]]


def test_options_are_honoured_wherever_they_are_written_or_refused(version):
    file = file_of(sound(0.5))
    text = base64.b64encode(file).decode()

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            form = {"file": ("clip.wav", file, "audio/wav")}
            return [
                await client.post("/v1/classify", files=form, data={"neighbours": "3", "top": "1"}),
                await client.post("/v1/classify", json={"input": text, "neighbours": 3, "top": 1}),
                await client.post("/v1/classify", files=form, data={"neighbours": "many"}),
                await client.post("/v1/embeddings", json={"input": text, "dimensions": 8}),
                await client.post("/v1/embeddings", json={"input": text, "dimensions": WIDTH}),
                await client.post("/invocations", content=b"audio\nAAAA", headers={"Content-Type": "text/csv"}),
            ]

    answers = run(ask())
    assert [a.status_code for a in answers] == [200, 200, 400, 400, 200, 415]
    for answer in answers[:2]:
        words = answer.json()["data"][0]["sets"]["words"]
        assert (len(words["top"]), len(words["nearest"])) == (1, 3)
    assert f"have {WIDTH} dimensions" in answers[3].json()["error"]["message"]
    assert "application/json" in answers[5].json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "document", "status", "reason"),
    [
        ("/v1/embeddings", {"encoding_format": "int8"}, 400, "encoding_format"),
        ("/v1/embeddings", {"encoding_format": "float", "model": "whisper-aut", "user": "me"}, 200, ""),
        ("/v1/embeddings", {"model": "models:/whisper-aut/1"}, 200, ""),
        ("/v1/embeddings", {"model": "models:/whisper-aut@champion"}, 200, ""),
        ("/v1/embeddings", {"model": "models:/whisper-aut/2"}, 404, "model"),
        ("/v1/classify", {"model": "models:/whisper-aut@candidate"}, 404, "model"),
        ("/v1/embeddings", {"model": 3}, 404, "model"),
        ("/v1/embeddings?pol=none", {}, 400, "option"),
        ("/v1/embeddings", {"pol": "none"}, 400, "option"),
    ],
)
def test_what_is_asked_for_is_what_answers_or_it_is_refused(version, path, document, status, reason):
    text = base64.b64encode(file_of(sound(0.2))).decode()

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            return await client.post(path, json={"input": text, **document})

    answer = run(ask())
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["reason"] == reason


def test_what_http_clients_do_by_themselves(version):
    """A misspelt field of a form, curl's type of a raw body, a packed body, HEAD, another method."""
    file = file_of(sound(0.2))

    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            curls = {"Content-Type": "application/x-www-form-urlencoded"}
            return [
                await client.post("/v1/classify", files={"file": file}, data={"tpo": "3"}),
                await client.post("/v1/embeddings", content=file, headers=curls),
                await client.post("/v1/embeddings", content=gzip.compress(file), headers={"Content-Encoding": "gzip"}),
                await client.get("/v1/embeddings"),
                await client.head("/health/ready"),
                await client.head("/v1/models"),
            ]

    form, curls, packed, method, ready, models = run(ask())
    assert (form.status_code, form.json()["error"]["reason"]) == (400, "option")
    assert (curls.status_code, packed.status_code) == (415, 415)
    assert "-H 'Content-Type: application/octet-stream'" in curls.json()["error"]["message"]
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert (ready.status_code, ready.content, models.status_code) == (200, b"", 200)


def test_mlflows_own_client_works_unchanged(version, encoder):
    """A table sent by MLflow's client to a real socket."""
    import threading

    import pandas as pd
    import uvicorn

    from aut.edges.store import pyfunc_module

    pyfunc_module()  # its first import warns about its own code
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    from aut.serving.app import create
    from aut.serving.service import Service

    server = uvicorn.Server(uvicorn.Config(create(Service(Shelf({"1": version}, "1"))), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
        client = ScoringServerClient("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
        client.wait_server_ready(timeout=20)
        clip = sound(0.6)
        found = client.invoke(pd.DataFrame({"audio": [base64.b64encode(file_of(clip)).decode()]})).get_predictions()
        assert client.get_version().split(".")[0] == "3"
        np.testing.assert_allclose(found["embedding"][0], encoder.embed(clip, 16_000)[0], atol=ATOL)
    finally:
        server.should_exit = True
        thread.join(10)


def test_models_metrics_openapi_and_page(version):
    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            await client.post("/v1/embeddings", content=file_of(sound(2.0)))
            await client.post("/v1/embeddings", content=b"no audio")
            names = ("/v1/models", "/metrics", "/openapi.json", "/", "/app.js", "/report", "/v1/evidence", "/ping")
            return {name: await client.get(name) for name in names}

    out = run(ask())
    assert {a.status_code for a in out.values()} == {200}
    (model,) = out["/v1/models"].json()["data"]
    assert model["heads"]["scenes"]["labels"] == ["rain", "dog"]
    assert model["evidence"]["verdicts"][0]["passed"] is True
    text = out["/metrics"].text
    for line in (
        'aut_requests_total{route="/v1/embeddings",status="200"} 1.0',
        'aut_requests_total{route="/v1/embeddings",status="422"} 1.0',
        "aut_audio_seconds_total 2.0",
        "aut_batch_clips_count 1.0",
        'aut_version{version="models:/whisper-aut/1"',
        'aut_refused_total{reason="not_audio"} 1.0',
    ):
        assert line in text
    paths = out["/openapi.json"].json()["paths"]
    assert "multipart/form-data" in json.dumps(paths["/v1/embeddings"]["post"]["requestBody"])
    assert {"/v1/classify", "/invocations", "/health/ready"} <= set(paths)
    named = [{o["name"] for o in paths[path]["post"]["parameters"]} for path in ("/v1/embeddings", "/v1/classify")]
    openai = {"encoding_format", "dimensions"}
    assert named == [{"pool", "format", "layer", "model", "user"} | openai, {"top", "neighbours", "model", "user"}]
    for kind in ("multipart/form-data", "application/json"):
        schema = paths["/v1/embeddings"]["post"]["requestBody"]["content"][kind]["schema"]
        assert named[0] < set(schema["properties"])
    assert set(out["/openapi.json"].json()["components"]["securitySchemes"]) == {"bearer", "key"}
    told = paths["/v1/embeddings"]["post"]["responses"]
    assert {"200", "400", "413", "422", "429", "503", "504"} <= set(told)
    assert {"application/json", "application/x-npy", "application/x-safetensors"} <= set(told["200"]["content"])
    version = {"X-Model-Version", "X-Model-Run-Id", "X-Model-Weights"}
    assert set(told["200"]["headers"]) == version | {"X-Valid-Frames"}
    assert set(told["429"]["headers"]) == version | {"Retry-After"}
    policy = out["/"].headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in out["/"].text.replace("http-equiv", "")
    assert out["/report"].headers["content-security-policy"].endswith("sandbox")


def test_an_encoder_folder_alone_is_served(version):
    from aut.serving.watcher import Folder

    async def ask():
        async with serving(Folder(version / "encoder")) as (client, _):
            return await client.post("/v1/classify", content=file_of(sound(0.5))), await client.get("/v1/evidence")

    classes, evidence = run(ask())
    assert classes.json()["data"][0]["sets"] == {}
    assert evidence.status_code == 404


def test_load_encoder_and_the_folder_are_one(version):
    direct = AudioEncoder(open_encoder(version / "encoder"))
    assert direct.digest == aut.load_encoder(version).digest
