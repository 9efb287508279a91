// The page of `lumos play`. What comes from the server or the user is only ever text, numbers and pixels:
// nothing here makes HTML of it.

const $ = (selector, within = document) => within.querySelector(selector);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const visitor = [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
const KNOBS = [
  { name: "guidance", label: "Guidance", step: 0.1, low: 0, high: 8, hint: "How strongly the caption pulls; at 1 not at all." },
  { name: "steps", label: "Steps", step: 1, low: 1, high: 16, hint: "Rounds in which the codes of a frame are filled in." },
  { name: "partial_context", label: "Partial context ρ", step: 0.05, low: 0, high: 1, hint: "Share of a finished frame hidden from the next." },
  { name: "temperature", label: "Temperature", step: 0.05, low: 0.05, high: 2, hint: "How daring the draws are." },
];
const HOLD_MS = 900; // at the last picture, before the clip begins again

let about, palette;
let sides = [];
let running = null; // the AbortController of the clip in the making
let picture = null; // what was uploaded: { picture, name }

// -- drawing ------------------------------------------------------------------------------------

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The codes of a latent frame, hidden ones as dots, those of the last step outlined. */
function drawGrid(canvas, codes, fresh) {
  const { rows, cols } = about;
  const cell = Math.max(6, Math.min(48, Math.floor(768 / Math.max(rows, cols))));
  if (canvas.width !== cols * cell) [canvas.width, canvas.height] = [cols * cell, rows * cell];
  const context = canvas.getContext("2d");
  const gap = cell > 12 ? cell / 16 : 0.5, round = cell / 8;
  const [hidden, dot, accent] = ["hidden", "dot", "accent"].map(color);
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < rows * cols; i++) {
    const x = (i % cols) * cell, y = Math.floor(i / cols) * cell, code = codes ? codes[i] : -1;
    context.beginPath();
    context.roundRect(x + gap, y + gap, cell - 2 * gap, cell - 2 * gap, round);
    if (code < 0) {
      context.fillStyle = hidden;
      context.fill();
      context.beginPath();
      context.arc(x + cell / 2, y + cell / 2, cell / 14 + 0.5, 0, 7);
      context.fillStyle = dot;
      context.fill();
    } else {
      context.fillStyle = `rgb(${palette.subarray(3 * code, 3 * code + 3).join()})`;
      context.fill();
      if (fresh?.has(i)) {
        context.lineWidth = cell / 12;
        context.strokeStyle = accent;
        context.stroke();
      }
    }
  }
}

function drawPicture(canvas, image) {
  if (canvas.width !== about.width || canvas.height !== about.height) [canvas.width, canvas.height] = [about.width, about.height];
  const context = canvas.getContext("2d");
  image ? context.putImageData(image, 0, 0) : context.clearRect(0, 0, canvas.width, canvas.height);
}

function pictures(rgb, count) {
  const bytes = Uint8Array.from(atob(rgb), (c) => c.charCodeAt(0)), size = about.width * about.height;
  return Array.from({ length: count }, (_, n) => {
    const image = new ImageData(about.width, about.height);
    for (let i = 0; i < size; i++) {
      image.data.set(bytes.subarray(3 * (n * size + i), 3 * (n * size + i) + 3), 4 * i);
      image.data[4 * i + 3] = 255;
    }
    return image;
  });
}

// -- one clip: its screens, its strip and its actions -------------------------------------------

class Side {
  constructor(name, caption, knobs, others) {
    this.element = $("#side").content.firstElementChild.cloneNode(true);
    this.knobs = knobs;
    [this.picture, this.grid] = [$(".picture", this.element), $(".grid", this.element)];
    [this.pictureAt, this.gridAt] = this.element.querySelectorAll(".at");
    if (name) {
      const bold = document.createElement("b");
      bold.textContent = name;
      $("h3", this.element).append(bold, describeKnobs(knobs, others));
    }
    this.picture.setAttribute("aria-label", `Picture: ${caption}`);
    this.frames = []; // of each latent frame: { codes, images, button, canvas }
    this.playing = false;
    $(".play", this.element).onclick = () => (this.playing ? this.pause() : this.play());
    $(".continue", this.element).onclick = () => make({ clip: this.clip, knobs: [this.knobs] });
    $("#sides").append(this.element);
    drawPicture(this.picture, null);
    drawGrid(this.grid, null);
  }

  begin({ latent_frames, kept, fps }) {
    Object.assign(this, { fps, kept, total: latent_frames });
    this.frames = Array.from({ length: latent_frames }, (_, t) => {
      const item = document.createElement("li"), button = document.createElement("button"), canvas = document.createElement("canvas");
      button.type = "button";
      button.append(canvas, String(t + 1));
      button.setAttribute("aria-label", `Latent frame ${t + 1}`);
      button.onclick = () => this.goTo(t);
      item.append(button);
      drawGrid(canvas, null);
      return { item, button, canvas, codes: null, images: [] };
    });
    $(".strip", this.element).replaceChildren(...this.frames.map((frame) => frame.item));
  }

  show(t, image, fresh) {
    const frame = this.frames[t];
    if (image) drawPicture(this.picture, image);
    drawGrid(this.grid, frame.codes, fresh);
    this.gridAt.textContent = `frame ${t + 1} of ${this.total}`;
    this.frames.forEach((other, i) => other.button.setAttribute("aria-current", String(i === t)));
  }

  takeCodes({ frame: t, codes }) {
    const frame = this.frames[t], before = frame.codes;
    const fresh = new Set(codes.flatMap((code, i) => (code >= 0 && !(before && before[i] >= 0) ? [i] : [])));
    frame.codes = codes;
    drawGrid(frame.canvas, codes);
    this.show(t, null, fresh);
  }

  takePictures({ frame: t, count, rgb }) {
    const frame = this.frames[t];
    frame.images = pictures(rgb, count);
    drawPicture(frame.canvas, frame.images.at(-1));
    this.show(t, frame.images.at(-1));
    this.pictureAt.textContent = `${this.images.length} so far`;
  }

  get images() {
    return this.frames.flatMap((frame, t) => frame.images.map((image) => [t, image]));
  }

  finish({ clip, suffix }) {
    this.clip = clip;
    this.reel = this.images;
    $(".mp4", this.element).href = `api/clips/${clip}${suffix}`;
    $(".mp4", this.element).textContent = suffix === ".png" ? "Picture" : "Clip";
    $(".record", this.element).href = `api/clips/${clip}.json`;
    $(".record", this.element).textContent = "Record";
    $(".play", this.element).hidden = this.reel.length < 2;
    $(".continue", this.element).hidden = this.reel.length < 2;
    $(".actions", this.element).hidden = false;
    this.at = this.reel.length - 1;
    still.matches || this.reel.length < 2 ? this.pause() : this.play();
  }

  play() {
    this.playing = true;
    $(".play", this.element).textContent = "Pause";
    const began = performance.now(), duration = (this.reel.length / this.fps) * 1000;
    const tick = (now) => {
      if (!this.playing || !this.element.isConnected) return;
      const at = Math.min(this.reel.length - 1, Math.floor((((now - began) % (duration + HOLD_MS)) / 1000) * this.fps));
      if (at !== this.at && at >= 0) this.showAt(at);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    this.playing = false;
    $(".play", this.element).textContent = "Play";
  }

  showAt(at) {
    this.at = at;
    const [t, image] = this.reel[at];
    this.pictureAt.textContent = `${at + 1} of ${this.reel.length}`;
    this.show(t, image);
  }

  goTo(t) {
    if (!this.reel) return;
    this.pause();
    this.showAt(this.reel.findLastIndex(([frame]) => frame === t));
  }
}

/** Where two settings differ. */
function describeKnobs(knobs, others) {
  return KNOBS.filter(({ name }) => knobs[name] !== others[name])
    .map(({ name, label }) => `${label.toLowerCase()} ${knobs[name]}`).join(", ") || "the same settings";
}

// -- making a clip ------------------------------------------------------------------------------

function say(status, spoken) {
  $("#status").textContent = status;
  if (spoken !== undefined) $("#spoken").textContent = spoken;
}

function refuse(line) {
  $("#refusal").textContent = line;
  $("#refusal").hidden = !line;
}

function setBusy(busy) {
  $("#progress").classList.toggle("busy", busy);
  $("#make").textContent = busy ? "Stop" : "Make it move";
  $("#make").classList.toggle("stop", busy);
  document.querySelectorAll(".continue").forEach((button) => (button.disabled = busy));
}

/** The line that a refused request says, or what can be said without one. */
async function lineOf(response) {
  try {
    return (await response.json()).line;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function make({ clip = null, knobs = null } = {}) {
  if (running) return;
  refuse("");
  const body = {
    caption: $("#caption").value,
    seed: Math.floor(Number($("#seed").value) || 0),
    frames: Number($("#frames").value),
    knobs: knobs ?? ($("#compare").checked ? [sideKnobs(0), sideKnobs(1)] : [sideKnobs(0)]),
    clip,
    picture: clip === null && picture !== null ? picture.picture : null,
  };
  running = new AbortController();
  setBusy(true);
  if ($("#stage").getBoundingClientRect().bottom > innerHeight + 200) $("#stage").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
  say("Asking", "Asking");
  try {
    const response = await fetch("api/clips", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "Lumos-Visitor": visitor },
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await lineOf(response));
    await follow(response, body);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.", "Stopped.");
    else {
      say("", "");
      refuse(error instanceof TypeError ? "the server does not answer | is `lumos play` still running?" : error.message);
    }
  } finally {
    running = null;
    setBusy(false);
  }
}

async function* lines(response) {
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let chunk; !(chunk = await reader.read()).done; ) {
    const parts = (rest + chunk.value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

async function follow(response, { caption, knobs }) {
  let made = 0;
  const named = knobs.length > 1 ? ["A", "B"] : [""];
  const bar = $(".bar i");
  for await (const event of lines(response)) {
    const side = sides[event.side], steps = knobs[event.side ?? 0].steps;
    switch (event.kind) {
      case "waiting":
        say(event.place ? `Waiting, ${event.place} before this one` : "Starting", event.place ? `Waiting, ${event.place} before this one` : "Starting");
        break;
      case "begun":
        if (event.side === 0) {
          $("#sides").replaceChildren();
          $("#sides").classList.toggle("two", knobs.length > 1);
          sides = named.map((name, i) => new Side(name, caption, knobs[i], knobs[1 - i]));
        }
        sides[event.side].begin(event);
        break;
      case "codes": {
        side.takeCodes(event);
        if (!event.step) break;
        const done = event.frame - side.kept + event.step / steps, all = side.total - side.kept;
        bar.style.width = `${(100 * (event.side + done / all)) / knobs.length}%`;
        const frame = `${named[event.side]} Frame ${event.frame + 1} of ${side.total}`.trim();
        say(`${frame}, step ${event.step} of ${steps}`, frame);
        break;
      }
      case "pictures":
        side.takePictures(event);
        break;
      case "made":
        made += 1;
        side.finish(event);
        say(`Made in ${event.seconds.toFixed(1)} s`, "The clip is made.");
        break;
      case "refused":
        throw new Error(event.line);
    }
  }
  if (made < knobs.length) throw new Error("the server ended before the clip was made");
  if (made > 1) sides.filter((side) => side.playing).forEach((side) => (side.pause(), side.play())); // in step
}

// -- settings -----------------------------------------------------------------------------------

function slider(id, low, high, step) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", id, min: low, max: high, step });
  return input;
}

function buildKnobs() {
  for (const { name, label, step, low, high, hint } of KNOBS) {
    const normal = about.knobs[name], most = name === "steps" ? about.limits.steps : name === "guidance" ? 30 : high;
    const row = document.createElement("div");
    row.className = "knob";
    const top = Math.min(most, Math.max(high, Math.ceil(1.5 * normal)));
    [0, 1].forEach((side) => {
      const part = document.createElement("div"), text = document.createElement("label"), output = document.createElement("output");
      const input = slider(`${name}-${side}`, low, top, step);
      part.className = "b";
      text.htmlFor = output.htmlFor = input.id;
      text.textContent = side ? "B" : label;
      if (side) text.setAttribute("aria-label", `${label} of B`);
      input.oninput = () => (output.textContent = String(Number(input.value)));
      input.setAttribute("aria-describedby", `${name}-hint`);
      part.append(text, output, input);
      part.hidden = side === 1;
      row.append(part);
    });
    const note = document.createElement("p");
    note.className = "note";
    note.id = `${name}-hint`;
    note.textContent = hint;
    row.append(note);
    $("#knobs").append(row);
  }
  const frames = $("#frames");
  Object.assign(frames, { min: 1, max: Math.min(about.limits.frames, Math.max(2 * about.frames - 1, 1)), step: about.stride });
  if ((about.frames - 1) % about.stride) frames.step = 1;
  frames.oninput = () => ($("output[for=frames]").textContent = frames.value === "1" ? "a picture" : `${frames.value} frames`);
  setKnobs();
}

function setKnobs() {
  const values = [0, 1].flatMap((side) => KNOBS.map(({ name }) => [`${name}-${side}`, about.knobs[name]]));
  for (const [id, value] of [...values, ["frames", about.frames]]) {
    const input = document.getElementById(id);
    input.value = value;
    input.dispatchEvent(new Event("input"));
  }
}

function sideKnobs(side) {
  return Object.fromEntries(KNOBS.map(({ name }) => [name, Number(document.getElementById(`${name}-${side}`).value)]));
}

// -- words --------------------------------------------------------------------------------------

function setCaption(text) {
  $("#caption").value = text;
  noteUnknown();
}

function chip(text, onclick) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.onclick = onclick;
  item.append(button);
  return item;
}

function showExamples() {
  const shown = [...about.examples].sort(() => Math.random() - 0.5).slice(0, 3);
  const more = chip("others", () => (showExamples(), $("#examples li:last-child button").focus()));
  $("#examples").replaceChildren(...shown.map((text) => chip(text, () => (setCaption(text), $("#caption").focus()))), more);
}

function buildWords() {
  if (!about.words) return;
  $("#words").hidden = false;
  for (const [group, words] of Object.entries(about.words)) {
    if (!group || !words.length) continue;
    const list = document.createElement("ul");
    list.className = "chips";
    list.setAttribute("aria-label", group);
    list.append(...words.map((word) => chip(word, () => setCaption(`${$("#caption").value.trimEnd()} ${word}`.trimStart()))));
    $(".groups").append(list);
  }
}

function noteUnknown() {
  const known = new Set(Object.values(about.words ?? {}).flat().join(" ").split(" "));
  const said = $("#caption").value.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const unknown = about.words ? [...new Set(said.filter((word) => !known.has(word)))].slice(0, 6) : [];
  $("#unknown").textContent = unknown.length ? `It has never seen: ${unknown.join(", ")}` : "";
}

// -- the picture to begin with ------------------------------------------------------------------

async function upload(file) {
  refuse("");
  if (file.size > about.limits.upload) {
    refuse(`the picture is too large | ${file.name} | got ${file.size} bytes, expected at most ${about.limits.upload} bytes`);
    return;
  }
  try {
    const response = await fetch(`api/pictures?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    if (!response.ok) throw new Error(await lineOf(response));
    picture = await response.json();
  } catch (error) {
    refuse(error instanceof TypeError ? "the server does not answer | is `lumos play` still running?" : error.message);
    return;
  }
  $("#uploaded span").textContent = picture.name;
  $("#uploaded").hidden = false;
  const bitmap = await createImageBitmap(file).catch(() => null);
  const context = $("#uploaded canvas").getContext("2d");
  context.clearRect(0, 0, 40, 40);
  if (bitmap) {
    const side = Math.min(bitmap.width, bitmap.height);
    context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, 40, 40);
  }
}

// -- begin --------------------------------------------------------------------------------------

async function start() {
  about = await (await fetch("api/about")).json();
  palette = new Uint8Array(await (await fetch("api/palette")).arrayBuffer());
  const length = about.frames === 1 ? "pictures" : `clips of ${about.frames} frames at ${about.fps} a second`;
  $("#model").textContent = `${about.name || "the small model that comes along"}: ${length}, ${about.width} × ${about.height} pixels`;
  $("#caption").maxLength = about.limits.caption;
  $("#legend").textContent = `Each latent frame is a grid of ${about.rows} × ${about.cols} codes out of ${about.codebook_size}. The first stands for one picture, each later one for ${about.stride}. Dots are codes still hidden; outlined ones are new in this step.`;
  buildKnobs();
  buildWords();
  showExamples();
  if (!about.examples.length) $("#examples").hidden = true;
  setCaption(about.examples[0] ?? "");
  sides = [new Side("", "none yet", sideKnobs(0))];

  $("#caption").oninput = noteUnknown;
  $("#caption").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      make();
    }
  };
  $("#ask").onsubmit = (event) => {
    event.preventDefault();
    running ? running.abort() : make();
  };
  document.onkeydown = (event) => {
    if (event.key === "Escape") running?.abort();
  };
  $("#upload").onchange = (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) upload(file);
  };
  $("#uploaded button").onclick = () => {
    picture = null;
    $("#uploaded").hidden = true;
    $("#upload").focus();
  };
  $("#another").onclick = () => ($("#seed").value = String(Math.floor(Math.random() * 1e6)));
  $("#reset").onclick = setKnobs;
  $("#compare").onchange = (event) => {
    document.body.classList.toggle("comparing", event.target.checked);
    document.querySelectorAll(".knob .b:nth-child(2)").forEach((part) => (part.hidden = !event.target.checked));
  };
  matchMedia("(prefers-color-scheme: dark)").onchange = () => {
    sides.forEach((side) => side.reel ? side.showAt(side.at) : drawGrid(side.grid, null));
  };
}

start().catch(() => refuse("the server does not answer | is `lumos play` still running?"));
