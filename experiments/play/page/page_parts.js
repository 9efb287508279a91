// What the other files share: finding a part of the page, and telling how it goes. What comes from the server or the
// user is only ever text, numbers and pixels: nothing in these files makes HTML of it.

export const $ = (selector, within = document) => within.querySelector(selector);
export const still = matchMedia("(prefers-reduced-motion: reduce)");
export const NO_SERVER = "the server does not answer | is `lumos play` still running?";

/** How far the clip is; `spoken`, if given, to those who listen to the page. */
export function say(status, spoken) {
  $("#status").textContent = status;
  if (spoken !== undefined) $("#spoken").textContent = spoken;
}

/** Show the line of a refusal; "" takes it away. */
export function refuse(line) {
  $("#refusal").textContent = line;
  $("#refusal").hidden = !line;
}

/** The line of what was thrown while the server was asked. */
export function lineOfError(error) {
  return error instanceof TypeError ? NO_SERVER : error.message;
}

/** The line that a refused request says, or what can be said without one. */
export async function lineOf(response) {
  try {
    return (await response.json()).line;
  } catch {
    return `the server answered ${response.status}`;
  }
}
