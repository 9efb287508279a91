// The page of `lumos play`: its parts, joined once the model is known.

import { emptyStage, isMaking, make, redraw, stop } from "./making.js";
import { about, ask } from "./model.js";
import { $, NO_SERVER, refuse } from "./page_parts.js";
import { buildKnobs, setKnobs } from "./settings.js";
import { upload, withoutPicture } from "./uploading.js";
import { buildWords, noteUnknown, setCaption, showExamples } from "./words.js";

async function start() {
  await ask();
  const length = about.frames === 1 ? "pictures" : `clips of ${about.frames} frames at ${about.fps} a second`;
  $("#model").textContent = `${about.name || "the small model that comes along"}: ${length}, ${about.width} × ${about.height} pixels`;
  $("#caption").maxLength = about.limits.caption;
  $("#legend").textContent = `Each latent frame is a grid of ${about.rows} × ${about.cols} codes out of ${about.codebook_size}. The first stands for one picture, each later one for ${about.stride}. Dots are codes still hidden; outlined ones are new in this step.`;
  buildKnobs();
  buildWords();
  showExamples();
  if (!about.examples.length) $("#examples").hidden = true;
  setCaption(about.examples[0] ?? "");
  emptyStage();

  $("#caption").oninput = noteUnknown;
  $("#caption").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      make();
    }
  };
  $("#ask").onsubmit = (event) => {
    event.preventDefault();
    isMaking() ? stop() : make();
  };
  document.onkeydown = (event) => {
    if (event.key === "Escape") stop();
  };
  $("#upload").onchange = (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) upload(file);
  };
  $("#uploaded button").onclick = withoutPicture;
  $("#another").onclick = () => ($("#seed").value = String(Math.floor(Math.random() * 1e6)));
  $("#reset").onclick = setKnobs;
  $("#compare").onchange = (event) => {
    document.body.classList.toggle("comparing", event.target.checked);
    document.querySelectorAll(".knob .b:nth-child(2)").forEach((part) => (part.hidden = !event.target.checked));
  };
  matchMedia("(prefers-color-scheme: dark)").onchange = redraw;
}

start().catch(() => refuse(NO_SERVER));
