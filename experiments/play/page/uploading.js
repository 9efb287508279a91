// The picture to begin with.

import { about } from "./model.js";
import { $, lineOf, lineOfError, refuse } from "./page_parts.js";

export let picture = null; // what was uploaded: { picture, name }

export async function upload(file) {
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
    refuse(lineOfError(error));
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


export function withoutPicture() {
  picture = null;
  $("#uploaded").hidden = true;
  $("#upload").focus();
}
