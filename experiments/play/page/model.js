// What the server says of its model. Everything else is built once it is known.

export let about; // experiments/play/about.py
export let palette; // the colour of every code, RGB

export async function ask() {
  about = await (await fetch("api/about")).json();
  palette = new Uint8Array(await (await fetch("api/palette")).arrayBuffer());
}
