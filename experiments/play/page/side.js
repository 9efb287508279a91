// One clip: its screens, its strip of latent frames, and what can be done with it.

import { drawGrid, drawPicture, pictures } from "./drawing.js";
import { $, still } from "./page_parts.js";
import { describeKnobs } from "./settings.js";

const HOLD_MS = 900; // at the last picture, before the clip begins again

export class Side {
  /**
   * name: A or B, of two; onContinue(side) is called where the clip is to go on.
   */
  constructor({ name, caption, knobs, others, onContinue }) {
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
    $(".continue", this.element).onclick = () => onContinue(this);
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
    $(".mp4", this.element).textContent = suffix === ".png" ? "Save picture" : "Save clip";
    $(".record", this.element).href = `api/clips/${clip}.json`;
    $(".record", this.element).textContent = "Save record";
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

  /** In the colours of the day or the night. */
  redraw() {
    if (this.reel) this.showAt(this.at);
    else drawGrid(this.grid, null);
  }

  goTo(t) {
    if (!this.reel) return;
    this.pause();
    this.showAt(this.reel.findLastIndex(([frame]) => frame === t));
  }
}
