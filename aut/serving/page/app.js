"use strict";
/* The page: a clip in, what the model hears and says of it out. It asks this server, and nobody else. */

const byId = (id) => document.getElementById(id);
/** Text that is there already is left alone: a screen reader would read it again. */
const say = (id, text) => { if (byId(id).textContent !== text) byId(id).textContent = text; };
const status = (text) => say("status", text);
const fail = (text) => { say("error", text); if (text) status(""); };
const ended = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
const sentence = (text) => ended(text[0].toUpperCase() + text.slice(1));
let latest = 0; // only the newest clip's answer is shown
let waiting = null; // a clip that is asked again once there is a key, or a version

/** An element with text or children; nothing is ever parsed as HTML. */
function make(tag, content = "", attributes = {}) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...[].concat(content));
  return node;
}

/** A route's answer, asked with the key where there is one; an Error with the server's own word and sentence otherwise. */
async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${inBytes(key)}` } : {}) };
  const answer = await fetch(path, { ...options, headers }).catch(() => { throw new Error("the server does not answer"); });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  if (answer.status === 401) askForKey(key);
  throw Object.assign(new Error(error ? error.message : `the server answered ${answer.status}`), { reason: error?.reason });
}

/** UTF-8, a character a byte: a header holds no others, and the server's key may be in any script. */
const inBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** `tried` is the key that was refused, null where none was sent. */
function askForKey(tried) {
  if (tried !== sessionStorage.getItem("key")) return; // refused meanwhile, or another has been given
  sessionStorage.removeItem("key");
  byId("key").hidden = false;
  if (!tried) return;
  say("wrong", "That is not the key of this server.");
  byId("secret").select();
}

/* The server's words for what is wrong with a file, where its sentence is one for programs. */
const PLAIN = {
  not_audio: "no recording that can be read here: wav, flac, ogg and mp3 are",
  truncated: "it ends too early, the file is not whole",
  corrupt: "it is damaged",
  empty: "the file is empty",
  no_clip: "the file is empty",
  zero_length: "there is no sound in it",
  busy: "the server is busy, try again in a moment",
};

/** What became of a file, for a person: named, without its number in the request, in MB. */
function told(file, { reason, message }) {
  const megabytes = (_, bytes) => `${(bytes.replaceAll(",", "") / 2 ** 20).toFixed(0)} MB`;
  const it = message.replace(/^clip 0:? /, "").replace("the body", "it").replace(/^[\d.]+ s,/, "it lasts $&");
  return ended(`${file.name}: ${PLAIN[reason] || it.replace(/([\d,]+) bytes/g, megabytes)}`);
}

const AWAITED = ["key", "starting", "no_version", "registry_away", "refused"]; // the server's words for what may come yet

/** `others` were given with it, and are not heard. */
async function listen(file, others = 0) {
  const turn = ++latest;
  waiting = null;
  fail("");
  status(`Listening to ${file.name} …`);
  byId("results").setAttribute("aria-busy", "true"); // those of the clip before
  const send = (path) => ask(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
  try {
    await file.slice(0, 1).arrayBuffer().catch(() => { throw new Error("it cannot be read, is it a folder?"); });
    const features = await (await send("/v1/features")).json();
    const answer = await send("/v1/classify?top=5&neighbours=5");
    const classes = await answer.json();
    if (turn !== latest) return;
    reveal(true);
    show(file, features, classes);
    const first = others ? ` Of ${others + 1} files the first was heard.` : "";
    status(`Done: ${file.name}, ${features.seconds} s, answered by ${classes.model}.${first}`);
    if (shown !== identity(answer.headers.get("X-Model-Version"), answer.headers.get("X-Model-Weights"))) introduce();
  } catch (error) {
    if (turn !== latest) return;
    reveal(false);
    if (!AWAITED.includes(error.reason)) return fail(told(file, error));
    waiting = file;
    status(`${file.name} waits for a ${error.reason === "key" ? "key" : "version that answers"}.`);
    if (error.reason !== "key") introduce();
  } finally {
    if (turn === latest) byId("results").removeAttribute("aria-busy");
  }
}

/** The results, and the link that leads to them. */
function reveal(on) {
  byId("results").hidden = byId("skip").hidden = !on;
}

function show(file, features, classes) {
  byId("clip").textContent = `${file.name}, ${features.seconds.toFixed(2)} s, heard by ${classes.model}`;
  const player = byId("player");
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  drawn = features;
  drawWave();
  drawMel(features.mel);
  const silent = loudest(features) ? "" : " The clip is silent.";
  const cut = features.seconds > features.shown_s ? ` The first ${features.shown_s} s are drawn.` : "";
  byId("axis").textContent = `0 to ${features.shown_s.toFixed(2)} s. Above the waveform, below log-mel up to 8 kHz.${cut}${silent}`;
  byId("sets").replaceChildren(...Object.entries(classes.data[0].sets).map(([name, set]) => card(name, set)));
  if (!byId("sets").children.length) byId("sets").append(make("p", "This version has no heads: it gives embeddings only."));
}

function card(name, set) {
  const node = make("section", make("h3", name.replaceAll("_", " ")), { class: "card", "aria-label": name });
  if (set.top) node.append(make("ol", set.top.map(bar), { class: "top" }));
  if (set.nearest) {
    const rows = set.nearest.map((n) => make("li", [
      make("span", [n.label, " ", make("small", n.id)]), make("span", n.cosine.toFixed(2)),
    ]));
    node.append(make("h4", "Nearest clips, by cosine"), make("ol", rows, { class: "near" }));
  }
  return node;
}

function bar({ label, probability }) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  const rect = document.createElementNS(space, "rect");
  picture.setAttribute("aria-hidden", "true");
  rect.setAttribute("width", `${100 * probability}%`);
  rect.setAttribute("height", "100%");
  rect.setAttribute("rx", "3");
  picture.append(rect);
  const percent = probability < 0.001 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`;
  return make("li", [picture, make("span", label.replaceAll("_", " ")), make("span", percent)]);
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
let drawn = null; // redrawn when light turns dark

const loudest = ({ low, high }) => Math.max(0, ...high, ...low.map((v) => -v));

function drawWave() {
  const features = drawn, peak = loudest(features);
  const canvas = byId("wave"), pen = canvas.getContext("2d");
  const { width, height } = canvas, middle = height / 2;
  const step = width / features.low.length, scale = (middle - 6) / Math.max(0.05, peak);
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = colour("--accent");
  features.low.forEach((low, i) => {
    const top = middle - features.high[i] * scale;
    pen.fillRect(i * step, top, Math.max(1, step - 0.5), Math.max(1.5, middle - low * scale - top));
  });
  canvas.setAttribute("aria-label", `Waveform, ${features.shown_s} s, ${peak ? `peak ${peak.toPrecision(2)} of 1` : "silent"}`);
}

/* Five stops from dark blue to yellow, lightness rising evenly. */
const STOPS = [[13, 8, 55], [70, 20, 120], [170, 45, 105], [240, 120, 50], [252, 240, 160]];
function heat(value) {
  const at = (value / 255) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2), part = at - low;
  return STOPS[low].map((from, c) => from + (STOPS[low + 1][c] - from) * part);
}

function drawMel({ frames, bins, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const picture = new ImageData(frames, bins);
  for (let f = 0; f < frames; f++) {
    for (let m = 0; m < bins; m++) {
      picture.data.set([...heat(bytes[f * bins + m]), 255], 4 * ((bins - 1 - m) * frames + f));
    }
  }
  const small = make("canvas");
  small.width = frames;
  small.height = bins;
  small.getContext("2d").putImageData(picture, 0, 0);
  const canvas = byId("mel");
  canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
}

/* A recording is turned into a WAV file here: browsers record in formats that no audio library of the server reads. */
let recorder = null; // "asked" while the browser asks a person for the microphone
async function record() {
  if (recorder === "asked") return;
  if (recorder) return recorder.stop();
  recorder = "asked";
  fail("");
  status("Waiting for the microphone …");
  let stream = null;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    recorder = recording(stream);
    recorder.start();
  } catch {
    if (stream) silence(stream);
    recorder = null;
    return fail(stream ? "This browser cannot record what its microphone gives." : "No microphone: it was refused, or there is none.");
  }
  label("Stop");
  status("Recording, 30 s at most. Press Stop to end it.");
}

function recording(stream) {
  const parts = [], made = new MediaRecorder(stream);
  const limit = setTimeout(() => made.stop(), 30_000);
  made.ondataavailable = (event) => parts.push(event.data);
  made.onstop = async () => {
    clearTimeout(limit);
    silence(stream);
    label("Record");
    recorder = null;
    try {
      listen(await wav(new Blob(parts)));
    } catch {
      fail("The recording could not be read: it may have been too short.");
    }
  };
  return made;
}

const silence = (stream) => stream.getTracks().forEach((track) => track.stop());

function label(text) {
  say("record", text);
  byId("record").classList.toggle("running", text === "Stop");
}

async function wav(blob) {
  const audio = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await blob.arrayBuffer());
  const samples = audio.getChannelData(0), view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, 16000, true); view.setUint32(28, 32000, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((v, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, v)) * 32767, true));
  return new File([view.buffer], "recording.wav", { type: "audio/wav" });
}

let shown = null; // which version is
let looks = 0; // only the newest look counts, so that there is one timer
let timer = 0;
const identity = (version, weights) => `${version} ${weights}`;

/** Shows the version that answers, and looks again: an alias moves while a page is open. */
async function introduce() {
  const look = ++looks;
  clearTimeout(timer);
  try {
    const model = await answering();
    if (look !== looks) return;
    present(model);
    timer = setTimeout(introduce, 30_000);
  } catch (error) {
    if (look !== looks) return;
    shown = null;
    byId("facts").replaceChildren();
    byId("evidence").replaceChildren();
    const needed = error.reason === "key"; // then a person is waited for, not the server
    if (!needed) timer = setTimeout(introduce, 5_000);
    say("answering", needed ? "A key is needed." : error.reason ? "No version answers." : sentence(error.message));
    say("absent", needed || !error.reason ? "" : sentence(error.message));
  }
}

async function answering() {
  const [model] = (await (await ask("/v1/models")).json()).data;
  if (model) return model;
  await ask("/health/ready"); // says why, as an error; or one came meanwhile
  return answering();
}

function present(model) {
  say("answering", `${model.id}${model.alias ? `, the ${model.alias}` : ""}`);
  say("absent", "");
  say("wrong", "");
  if (byId("key").contains(document.activeElement)) byId("file").focus();
  byId("key").hidden = true;
  if (shown !== identity(model.id, model.weights)) {
    shown = identity(model.id, model.weights);
    facts(model);
    evidence(model);
  }
  if (waiting) listen(waiting);
}

function facts(model) {
  const rows = {
    Version: model.id, Alias: model.alias, "MLflow run": model.run_id, "Weights digest": model.weights,
    Encoder: `${model.name} (${model.kind}), ${model.width} wide, a frame every ${1000 * model.hop_s} ms`,
    "Probe heads": Object.entries(model.heads).map(([n, h]) => `${n} (${h.labels.length})`).join(", "),
  };
  const pairs = Object.entries(rows).filter(([, value]) => value);
  byId("facts").replaceChildren(...pairs.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
}

function evidence(model) {
  const place = byId("evidence");
  place.replaceChildren();
  if (!model.evidence) return place.append(make("p", "It carries no evidence."));
  const gates = model.evidence.verdicts.map((v) => {
    const word = v.decides ? (v.passed ? "pass" : "FAIL") : (v.passed ? "yes" : "no");
    const text = [make("strong", word), ` ${v.gate}: ${v.detail}`];
    return make("li", text, { class: v.decides ? (v.passed ? "pass" : "fail") : "" });
  });
  place.append(make("ul", gates, { class: "gates", "aria-label": "Verdicts" }), differences(model.evidence.differences));
  if (model.report) place.append(make("p", report()));
}

/** A link to the report. Behind a key it is fetched with it, which a link could not, and saved: opened from here it would
    be under this page's policy, which allows none of its styles. */
function report() {
  const link = make("a", "The whole report", { href: "/report" });
  link.addEventListener("click", async (event) => {
    if (!sessionStorage.getItem("key")) return;
    event.preventDefault();
    try {
      const saved = make("a", "", { href: URL.createObjectURL(await (await ask("/report")).blob()), download: "report.html" });
      saved.click();
      setTimeout(() => URL.revokeObjectURL(saved.href), 60_000);
      status("The report is saved as report.html.");
    } catch (error) {
      fail(sentence(error.message));
    }
  });
  return link;
}

function differences(rows) {
  const signed = (v) => `${v < 0 ? "−" : "+"}${Math.abs(v).toFixed(1)}`;
  const head = ["set", "difference", "points", "interval", "p (Holm)", "clips"].map((t) => make("th", t, { scope: "col" }));
  const body = rows.map((r) => make("tr", [
    make("th", r.set, { scope: "row" }), make("td", `${r.a} − ${r.b}`), make("td", signed(r.diff)),
    make("td", `${signed(r.low)} to ${signed(r.high)}`),
    make("td", typeof r.p_holm === "number" ? r.p_holm.toPrecision(2) : ""), make("td", String(r.clips ?? "")),
  ]));
  const caption = make("caption", "Differences in accuracy on the probe sets");
  return make("div", make("table", [caption, make("thead", make("tr", head)), make("tbody", body)]),
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Differences" });
}

/* A file is taken wherever it is dropped: beside the box the browser would leave the page for it. */
const over = (on) => byId("drop").classList.toggle("over", on);
const files = (event) => event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!files(event)) return;
  event.preventDefault();
  over(true);
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); }); // out of the window
document.addEventListener("drop", (event) => {
  if (!files(event)) return;
  event.preventDefault();
  over(false);
  listen(event.dataTransfer.files[0], event.dataTransfer.files.length - 1);
});
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) listen(event.target.files[0]);
  event.target.value = ""; // the same file again is a change, too
});
byId("record").addEventListener("click", record);
if (!(navigator.mediaDevices && window.MediaRecorder)) {
  byId("record").disabled = true;
  say("unrecorded", isSecureContext ? "This browser does not record." : "Browsers record on https or localhost only.");
}
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", byId("secret").value);
  byId("secret").focus(); // a wrong key is typed again
  introduce();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) introduce(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn && drawWave());
introduce();
