// Asking for a clip, and following it into being.

import { $, lineOf, lineOfError, refuse, say, still } from "./page_parts.js";
import { sideKnobs } from "./settings.js";
import { Side } from "./side.js";
import { picture } from "./uploading.js";

const visitor = [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");

let sides = []; // the clips on the page, one or two
let running = null; // the AbortController of the clip in the making

/** Room for a clip, before the first. */
export function emptyStage() {
  sides = [new Side({ name: "", caption: "none yet", knobs: sideKnobs(0), onContinue })];
}

export const isMaking = () => running !== null;
export const stop = () => running?.abort();
export const redraw = () => sides.forEach((side) => side.redraw());

function onContinue(side) {
  make({ clip: side.clip, knobs: [side.knobs] });
}

function setBusy(busy) {
  $("#progress").classList.toggle("busy", busy);
  $("#make").textContent = busy ? "Stop" : "Make it move";
  $("#make").classList.toggle("stop", busy);
  document.querySelectorAll(".continue").forEach((button) => (button.disabled = busy));
}

export async function make({ clip = null, knobs = null } = {}) {
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
      refuse(lineOfError(error));
    }
  } finally {
    running = null;
    setBusy(false);
  }
}

/** The events of an answer, each as it comes. */
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
          sides = named.map((name, i) => new Side({ name, caption, knobs: knobs[i], others: knobs[1 - i], onContinue }));
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
