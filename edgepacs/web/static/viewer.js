/** The viewer: the series of a study, their pictures, the window and the cine. */

import { Cine } from "./cine.js";
import { Frames } from "./frames.js";
import { ask, problem } from "./page.js";
import { Stage } from "./stage.js";

/**
 * @typedef {{id: number, instance_number: string, frames: number, rows: number, columns: number}} Instance
 * @typedef {{id: number, modality: string, instances: Instance[]}} Series
 * @typedef {{frames: number, rows: number, columns: number, frame_ms: number, aspect: number,
 *   windows: [string, number, number][], windowable: boolean, note: string}} Display
 * @typedef {{instance: Instance, frame: number}} Position
 */

/** @param {string} id @returns {any} */
export const by = (id) => document.getElementById(id);
export const main = /** @type {HTMLElement} */ (document.querySelector("main.viewer"));
const EDGES = [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096];
const LIVE_EDGE = 640; // while the window is being dragged
const NO_RATE_MS = 100; // a frame of what has no recorded rate
/** Windows in Hounsfield units everybody who reads CT knows. @type {[string, number, number][]} */
const CT_WINDOWS = [["Soft tissue", 40, 400], ["Lung", -600, 1500], ["Bone", 500, 2000], ["Brain", 40, 80]];
const SPEEDS = [0.25, 0.5, 1, 2, 4];
const AHEAD = 12;
const WAIT_FOR = 8; // frames before a cine starts

export class Viewer {
  constructor() {
    this.frames = new Frames();
    this.stage = new Stage(by("canvas"));
    this.cine = new Cine((frame) => this.#showDue(frame), () => this.#showTransport());
    /** @type {Series[]} */
    this.series = [];
    /** @type {Series | null} */
    this.current = null;
    /** @type {Position[]} */
    this.positions = [];
    this.index = 0;
    this.step = 1;
    /** @type {Map<number, Promise<Display>>} */
    this.displays = new Map();
    /** @type {Display | null} */
    this.display = null;
    /** @type {{centre: number, width: number} | null} null: as recorded */
    this.window = null;
    this.tool = "window";
    this.live = false;
    /** @type {ImageBitmap | null} shown while the window is dragged, on no shelf */
    this.passing = null;
    this.loopStart = 0;
    this.busy = false;
    this.again = false;
    /** @type {(instance: Instance) => void} */
    this.arrived = () => {};
    this.frames.arrived = () => this.#showLoaded();
    this.stage.resized = () => this.refresh();
  }

  async begin() {
    await this.reload();
    const first = this.series.find((one) => one.instances.some((i) => i.frames)) ?? this.series[0];
    if (first) await this.open(first);
  }

  /** Take over what the node has of the study now; the position stays. */
  async reload() {
    const response = await ask(`/studies/${main.dataset.study}.json`);
    if (!response.ok) throw new Error(await problem(response));
    this.series = (await response.json()).series;
    const same = this.series.find((one) => one.id === this.current?.id);
    if (!same) return;
    const here = this.positions[this.index];
    this.current = same;
    this.positions = positionsOf(same);
    const at = this.positions.findIndex((p) => p.instance.id === here?.instance.id && p.frame === here.frame);
    this.index = Math.max(0, at);
    markSeries(same.id);
    this.#showTransport();
  }

  /** @param {Series} series */
  async open(series) {
    this.cine.stop();
    this.current = series;
    this.positions = positionsOf(series);
    this.index = 0;
    this.window = null;
    this.stage.centre();
    markSeries(series.id);
    await this.#arrive();
  }

  /** @param {number} step among the series */
  openNext(step) {
    const at = this.series.findIndex((one) => one.id === this.current?.id);
    const next = this.series[at + step];
    if (next) this.open(next);
  }

  /** @param {number} index */
  async go(index) {
    const bounded = Math.min(this.positions.length - 1, Math.max(0, index));
    if (bounded === this.index) return;
    this.step = bounded > this.index ? 1 : -1;
    this.index = bounded;
    await this.#arrive();
  }

  /** @param {number} steps by a person: it ends playing */
  scroll(steps) {
    this.cine.stop();
    this.go(this.index + steps);
  }

  get here() {
    return this.positions[this.index];
  }

  /** @param {Instance} instance */
  displayOf(instance) {
    let found = this.displays.get(instance.id);
    if (!found) {
      found = fetchDisplay(instance);
      this.displays.set(instance.id, found);
      found.catch(() => this.displays.delete(instance.id)); // to be asked for again
    }
    return found;
  }

  async #arrive() {
    const { here } = this;
    this.#showTransport();
    if (!here) {
      const evicted = Number(document.getElementById("main")?.dataset.evicted) > 0;
      showNoPicture(
        evicted ? "No longer here" : "Nothing to show",
        evicted
          ? "It has provably arrived at its destinations and was deleted here to make room."
          : "This series has no stored instances.",
      );
      return;
    }
    const display = await this.displayOf(here.instance).catch((error) => failed(error));
    if (here.instance !== this.here?.instance) return;
    const other = this.display !== display;
    this.display = display;
    if (other) this.#showDisplay(display);
    if (display.note) {
      this.stage.show(null, 1);
      showNoPicture("No picture", display.note);
      this.#showCorners();
    } else await this.refresh();
    this.arrived(here.instance);
  }

  /** @param {Position} position @param {number} [most] */
  wanted(position, most) {
    const display = /** @type {Display} */ (this.display);
    const longest = Math.max(display.columns, display.rows * display.aspect);
    const needed = longest * this.stage.scale * devicePixelRatio;
    const edge = most ?? EDGES.find((one) => one >= needed) ?? Infinity;
    const query = new URLSearchParams();
    if (this.window) {
      query.set("wc", this.window.centre.toFixed(3));
      query.set("ww", this.window.width.toFixed(3));
    }
    if (edge < longest) query.set("edge", String(edge));
    const path = `/instances/${position.instance.id}/frames/${position.frame}`;
    const url = `${path}?${query}`;
    return { key: url, url };
  }

  /** Show what is wanted now. One request is under way at a time; the latest wish follows it. */
  async refresh() {
    if (!this.display || this.display.note || !this.here) return;
    const ready = this.live ? undefined : this.frames.ready(this.wanted(this.here).key);
    if (ready) {
      this.#put(this.here, ready);
      this.#prefetch();
      return;
    }
    if (this.busy) {
      this.again = true;
      return;
    }
    this.busy = true;
    do {
      this.again = false;
      await this.#fetchOne();
    } while (this.again);
    this.busy = false;
    this.#prefetch();
  }

  async #fetchOne() {
    const { here, live, display } = this;
    if (!here) return;
    const wanted = this.wanted(here, live ? LIVE_EDGE : undefined);
    try {
      const bitmap = await (live ? this.frames.passing(wanted) : this.frames.load(wanted));
      if (this.display !== display || this.here?.instance !== here.instance) return;
      this.#put(here, bitmap);
      if (live) this.passing = bitmap;
    } catch (error) {
      if (this.here === here) showNoPicture("This picture cannot be shown", /** @type {Error} */ (error).message);
    }
  }

  /** @param {Position} position @param {ImageBitmap} bitmap */
  #put(position, bitmap) {
    by("no-picture").hidden = true;
    this.frames.pinned = this.live ? "" : this.wanted(position).key;
    this.stage.show(bitmap, /** @type {Display} */ (this.display).columns);
    this.passing?.close();
    this.passing = null;
    this.stage.canvas.dispatchEvent(new CustomEvent("frame", { detail: { index: this.positions.indexOf(position) } }));
    this.#showCorners();
  }

  #prefetch() {
    if (this.live || !this.display || this.display.note) return;
    const { start, count } = this.#loop();
    const round = this.cine.playing || this.display.frame_ms > 0;
    const size = this.stage.bitmap ? this.stage.bitmap.width * this.stage.bitmap.height * 4 : 1;
    const reach = Math.min(count - 1, this.frames.room(size), round ? count : AHEAD);
    const list = [];
    for (let away = 1; away <= reach; away += 1) {
      const at = this.index - start + away * this.step;
      const position = this.positions[start + (round ? (at + count) % count : at)];
      if (position && at < (round ? Infinity : count)) list.push(this.wanted(position));
    }
    this.frames.prefetch(list);
  }

  /** What plays round: the frames of this instance, or the single frames of one size around it. */
  #loop() {
    const { here, positions } = this;
    const belongs = (/** @type {Position | undefined} */ other) => other !== undefined
      && (here.instance.frames > 1
        ? other.instance.id === here.instance.id
        : other.instance.frames === 1 && sameShape(other.instance, here.instance));
    let start = this.index;
    let end = this.index;
    while (belongs(positions[start - 1])) start -= 1;
    while (belongs(positions[end + 1])) end += 1;
    return { start, count: end - start + 1 };
  }

  // Cine -------------------------------------------------------------------------------------

  togglePlay() {
    if (this.cine.playing) {
      this.cine.stop();
      this.refresh();
    } else if (this.here && this.display && !this.display.note && this.#loop().count > 1) this.#play();
  }

  async #play() {
    const { current, index } = this;
    const { start, count } = this.#loop();
    this.step = 1;
    const soon = this.positions.slice(index, Math.min(index + WAIT_FOR, start + count));
    await Promise.allSettled(soon.map((one) => this.frames.load(this.wanted(one))));
    if (this.current !== current || this.index !== index) return;
    this.loopStart = start;
    this.cine.start(this.display?.frame_ms || NO_RATE_MS, count, index - start);
    this.#prefetch();
  }

  /** @param {number} due in the loop @returns {boolean} */
  #showDue(due) {
    const index = this.loopStart + due;
    const position = this.positions[index];
    const ready = position && this.frames.ready(this.wanted(position).key);
    this.index = index; // the clock goes on, whether the frame is here or not
    if (index % AHEAD === 0) this.#prefetch();
    if (!ready) {
      if (position) this.frames.prefetch([this.wanted(position), ...this.frames.queue]);
      return false;
    }
    this.#put(position, ready);
    this.#showPosition();
    return true;
  }

  /** @param {number} step */
  changeSpeed(step) {
    const at = SPEEDS.indexOf(this.cine.speed) + step;
    const speed = SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, at))];
    if (speed) this.cine.setSpeed(speed);
  }

  // Window -----------------------------------------------------------------------------------

  get effectiveWindow() {
    if (this.window) return this.window;
    const first = this.display?.windows[0];
    return first ? { centre: first[1], width: first[2] } : null;
  }

  /** @param {{centre: number, width: number} | null} window @param {boolean} live */
  setWindow(window, live) {
    if (!this.display?.windowable) return;
    this.window = window;
    this.live = live;
    this.#showPreset();
    this.#showCorners();
    this.refresh();
  }

  /** What is recorded first, then what is usual. @returns {[string, number, number][]} */
  get presets() {
    const recorded = this.display?.windowable ? this.display.windows : [];
    return this.current?.modality === "CT" && recorded.length ? [...recorded, ...CT_WINDOWS] : recorded;
  }

  /** @param {number} number of the preset */
  preset(number) {
    const found = this.presets[number];
    if (found) this.setWindow(number === 0 ? null : { centre: found[1], width: found[2] }, false);
  }

  /** @param {number} wider steps @param {number} higher steps */
  nudgeWindow(wider, higher) {
    const now = this.effectiveWindow;
    if (now) this.setWindow({ centre: now.centre + (higher * now.width) / 40, width: now.width * 1.05 ** wider }, false);
  }

  reset() {
    this.cine.setSpeed(1);
    this.stage.inverted = false;
    this.stage.centre();
    this.#showInvert();
    this.setWindow(null, false);
    this.#showCorners();
  }

  invert() {
    this.stage.inverted = !this.stage.inverted;
    this.stage.draw();
    this.#showInvert();
  }

  /** @param {() => void} change */
  view(change) {
    change();
    this.#showCorners();
    if (!this.cine.playing) this.refresh();
  }

  actualPixels() {
    this.view(() => this.stage.centre(1 / (this.stage.fitScale * devicePixelRatio)));
  }

  // Showing ----------------------------------------------------------------------------------

  /** @param {Display} display */
  #showDisplay(display) {
    const select = by("presets");
    select.replaceChildren(...this.presets.map(([name], at) => new Option(name, String(at))));
    select.append(new Option("By hand", "hand", false, false));
    select.disabled = !display.windowable;
    select.closest(".presets").hidden = !display.windowable;
    for (const tool of document.querySelectorAll('[data-tool="window"]')) {
      /** @type {HTMLButtonElement} */ (tool).disabled = !display.windowable;
    }
    this.setTool(this.tool);
    this.#showPreset();
    this.#showTransport();
  }

  #showPreset() {
    const select = by("presets");
    const { window } = this;
    const at = window ? this.presets.findIndex(([, c, w]) => c === window.centre && w === window.width) : 0;
    select.value = at < 0 ? "hand" : String(at);
  }

  #showInvert() {
    document.querySelector('[data-act="invert"]')?.setAttribute("aria-pressed", String(this.stage.inverted));
  }

  /** @param {string} tool */
  setTool(tool) {
    this.tool = tool;
    const works = tool === "window" && this.display && !this.display.windowable ? "pan" : tool;
    this.stage.canvas.className = `tool-${works}`;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(/** @type {HTMLElement} */ (button).dataset.tool === works));
    }
  }

  /** What dragging does: window where there is one, else pan. */
  get dragging() {
    return this.tool === "window" && !this.display?.windowable ? "pan" : this.tool;
  }

  #showTransport() {
    const many = this.positions.length > 1;
    by("scrub").max = String(Math.max(0, this.positions.length - 1));
    by("scrub").disabled = !many;
    by("play").disabled = !many || Boolean(this.display?.note);
    by("play").setAttribute("aria-pressed", String(this.cine.playing));
    by("play").setAttribute("aria-label", this.cine.playing ? "Pause" : "Play");
    this.#showPosition();
    this.#showLoaded();
  }

  #showPosition() {
    by("scrub").value = String(this.index);
    by("where").textContent = this.positions.length ? `${this.index + 1} of ${this.positions.length}` : "";
    by("rate").textContent = this.#rateWords();
  }

  #rateWords() {
    if (this.positions.length < 2) return "";
    const recorded = this.display?.frame_ms ? 1000 / this.display.frame_ms : 0;
    const speed = this.cine.speed === 1 ? "" : ` × ${this.cine.speed}`;
    if (!this.cine.playing) return recorded ? `${recorded.toFixed(1)} fps${speed}` : speed;
    const aim = recorded || 1000 / NO_RATE_MS;
    return `${(this.cine.rate || aim * this.cine.speed).toFixed(1)} / ${(aim * this.cine.speed).toFixed(1)} fps`;
  }

  #showLoaded() {
    if (!this.display || this.display.note || !this.positions.length) {
      by("loaded").value = 0;
      return;
    }
    const here = this.positions.filter((p) => this.frames.has(this.wanted(p).key)).length;
    by("loaded").value = here / this.positions.length;
  }

  #showCorners() {
    const { here, display, stage } = this;
    const corner = (/** @type {string} */ at, /** @type {string[]} */ lines) => {
      by(`corner-${at}`).textContent = lines.filter(Boolean).join("\n");
    };
    if (!here || !display || display.note) {
      for (const at of ["tl", "tr", "bl", "br"]) corner(at, []);
      return;
    }
    const name = document.querySelector(`.series[data-series="${this.current?.id}"] .series-name`)?.textContent ?? "";
    const number = here.instance.instance_number;
    corner("tl", [name, number && `Instance ${number}`]);
    corner("tr", [`${display.columns} × ${display.rows}`]);
    const window = display.windowable ? this.effectiveWindow : null;
    corner("bl", [window ? `C ${short(window.centre)}   W ${short(window.width)}` : "", stage.inverted ? "Inverted" : ""]);
    corner("br", [`${Math.round(stage.scale * devicePixelRatio * 100)} %`]);
  }
}

/** @param {number} value */
function short(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

/** @param {Instance} a @param {Instance} b */
function sameShape(a, b) {
  return a.rows === b.rows && a.columns === b.columns;
}

/** @param {Series} series @returns {Position[]} */
function positionsOf(series) {
  return series.instances.flatMap((instance) => Array.from({ length: Math.max(1, instance.frames) }, (_, frame) => ({ instance, frame })));
}

/** @param {Instance} instance @returns {Promise<Display>} */
async function fetchDisplay(instance) {
  const response = await ask(`/instances/${instance.id}/display.json`);
  if (!response.ok) throw new Error(await problem(response));
  return response.json();
}

/** @param {Error} error @returns {Display} */
function failed(error) {
  return { frames: 0, rows: 0, columns: 0, frame_ms: 0, aspect: 1, windows: [], windowable: false, note: error.message };
}

/** @param {string} title @param {string} note */
export function showNoPicture(title, note) {
  by("no-picture-title").textContent = title;
  by("no-picture-note").textContent = note;
  by("no-picture").hidden = false;
}

/** @param {number} id */
function markSeries(id) {
  for (const button of document.querySelectorAll(".series")) {
    const mine = /** @type {HTMLElement} */ (button).dataset.series === String(id);
    button.setAttribute("aria-pressed", String(mine));
    if (mine) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
