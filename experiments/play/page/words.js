// The caption: examples, words that the model has seen, and those that it has not.

import { about } from "./model.js";
import { $ } from "./page_parts.js";

export function setCaption(text) {
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

export function showExamples() {
  const shown = [...about.examples].sort(() => Math.random() - 0.5).slice(0, 3);
  const more = chip("others", () => (showExamples(), $("#examples li:last-child button").focus()));
  $("#examples").replaceChildren(...shown.map((text) => chip(text, () => (setCaption(text), $("#caption").focus()))), more);
}

export function buildWords() {
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

export function noteUnknown() {
  const known = new Set(Object.values(about.words ?? {}).flat().join(" ").split(" "));
  const said = $("#caption").value.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const unknown = about.words ? [...new Set(said.filter((word) => !known.has(word)))].slice(0, 6) : [];
  $("#unknown").textContent = unknown.length ? `It has never seen: ${unknown.join(", ")}` : "";
}
