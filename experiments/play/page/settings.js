// The sliders.

import { about } from "./model.js";
import { $ } from "./page_parts.js";

const KNOBS = [
  { name: "guidance", label: "Guidance", step: 0.1, low: 0, high: 8, hint: "How strongly the caption pulls; at 1 not at all." },
  { name: "steps", label: "Steps", step: 1, low: 1, high: 16, hint: "Rounds in which the codes of a frame are filled in." },
  { name: "partial_context", label: "Partial context ρ", step: 0.05, low: 0, high: 1, hint: "Share of a finished frame hidden from the next." },
  { name: "temperature", label: "Temperature", step: 0.05, low: 0.05, high: 2, hint: "How daring the draws are." },
];

function slider(id, low, high, step) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", id, min: low, max: high, step });
  return input;
}

export function buildKnobs() {
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

export function setKnobs() {
  const values = [0, 1].flatMap((side) => KNOBS.map(({ name }) => [`${name}-${side}`, about.knobs[name]]));
  for (const [id, value] of [...values, ["frames", about.frames]]) {
    const input = document.getElementById(id);
    input.value = value;
    input.dispatchEvent(new Event("input"));
  }
}

export function sideKnobs(side) {
  return Object.fromEntries(KNOBS.map(({ name }) => [name, Number(document.getElementById(`${name}-${side}`).value)]));
}


/** Where two settings differ. */
export function describeKnobs(knobs, others) {
  return KNOBS.filter(({ name }) => knobs[name] !== others[name])
    .map(({ name, label }) => `${label.toLowerCase()} ${knobs[name]}`).join(", ") || "the same settings";
}
