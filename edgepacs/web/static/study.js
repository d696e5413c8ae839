/** The study page: what people do with the viewer, the attributes, and what stands beside. */

import { ask, isTyping, poll, problem } from "./page.js";
import { listen } from "./pointer.js";
import { by, main, showNoPicture, Viewer } from "./viewer.js";

/** @typedef {import("./viewer.js").Instance} Instance */

const viewer = new Viewer();

/** The drawer with the attributes of the instance shown. */
const attributes = {
  shown: 0,

  /** @param {Instance} instance */
  follow(instance) {
    const link = by("download");
    if (link) link.href = `/instances/${instance.id}/file`;
    if (!by("drawer").hidden && this.shown !== instance.id) this.load(instance);
  },

  toggle() {
    const drawer = by("drawer");
    drawer.hidden = !drawer.hidden;
    if (drawer.hidden) {
      by("canvas").focus();
      return;
    }
    if (viewer.here && this.shown !== viewer.here.instance.id) this.load(viewer.here.instance);
    by("filter").focus();
  },

  /** @param {Instance} instance */
  async load(instance) {
    this.shown = instance.id;
    const response = await ask(`/instances/${instance.id}/attributes`);
    if (this.shown !== instance.id) return;
    if (response.ok) by("attributes").innerHTML = await response.text();
    else by("attributes").textContent = await problem(response);
    this.filter();
  },

  filter() {
    const words = by("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of by("attributes").querySelectorAll("tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((/** @type {string} */ word) => text.includes(word));
    }
  },
};

viewer.arrived = (instance) => attributes.follow(instance);

// What people do ------------------------------------------------------------------------------

const DRAG_WIDTH_PX = 220;
const DRAG_CENTRE_PX = 320;
/** @type {{centre: number, width: number} | null} */
let dragFrom = null;

listen(by("picture").querySelector("canvas"), {
  tool: () => viewer.dragging,
  window(dx, dy, start) {
    if (start) dragFrom = viewer.effectiveWindow;
    else if (dragFrom) {
      const width = Math.max(1e-3, dragFrom.width * Math.exp(dx / DRAG_WIDTH_PX));
      viewer.setWindow({ centre: dragFrom.centre + (dy * dragFrom.width) / DRAG_CENTRE_PX, width }, true);
    }
  },
  windowEnd() {
    const moved = viewer.live;
    dragFrom = null;
    viewer.live = false;
    if (moved) viewer.refresh();
  },
  pan: (dx, dy) => viewer.stage.panBy(dx, dy),
  zoom: (factor, x, y) => viewer.view(() => viewer.stage.zoomBy(factor, x, y)),
  scroll: (steps) => viewer.scroll(steps),
  fit: () => viewer.view(() => viewer.stage.centre()),
});

const acts = {
  previous: () => viewer.scroll(-1),
  next: () => viewer.scroll(1),
  play: () => viewer.togglePlay(),
  invert: () => viewer.invert(),
  fit: () => viewer.view(() => viewer.stage.centre()),
  reset: () => viewer.reset(),
  attributes: () => attributes.toggle(),
  help: () => by("help").showModal(),
};

document.addEventListener("click", (event) => {
  const target = /** @type {Element} */ (event.target);
  const act = target.closest("[data-act]")?.getAttribute("data-act");
  if (act) acts[/** @type {keyof typeof acts} */ (act)]();
  const tool = target.closest("[data-tool]")?.getAttribute("data-tool");
  if (tool) viewer.setTool(tool);
  const chosen = target.closest(".series")?.getAttribute("data-series");
  const series = viewer.series.find((one) => String(one.id) === chosen);
  if (series) viewer.open(series);
});

by("presets").addEventListener("change", () => {
  if (by("presets").value !== "hand") viewer.preset(Number(by("presets").value));
  by("canvas").focus();
});
by("scrub").addEventListener("input", () => {
  viewer.cine.stop();
  viewer.go(Number(by("scrub").value));
});
by("filter").addEventListener("input", () => attributes.filter());
by("filter").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key === "Escape") attributes.toggle();
});

/** @type {Record<string, () => void>} */
const keys = {
  ArrowUp: acts.previous,
  ArrowDown: acts.next,
  ArrowLeft: () => viewer.openNext(-1),
  ArrowRight: () => viewer.openNext(1),
  PageUp: () => viewer.scroll(-10),
  PageDown: () => viewer.scroll(10),
  Home: () => viewer.scroll(-Infinity),
  End: () => viewer.scroll(Infinity),
  " ": acts.play,
  "[": () => viewer.changeSpeed(-1),
  "]": () => viewer.changeSpeed(1),
  "Shift+ArrowLeft": () => viewer.nudgeWindow(-1, 0),
  "Shift+ArrowRight": () => viewer.nudgeWindow(1, 0),
  "Shift+ArrowUp": () => viewer.nudgeWindow(0, -1),
  "Shift+ArrowDown": () => viewer.nudgeWindow(0, 1),
  "Alt+ArrowLeft": () => viewer.stage.panBy(-40, 0),
  "Alt+ArrowRight": () => viewer.stage.panBy(40, 0),
  "Alt+ArrowUp": () => viewer.stage.panBy(0, -40),
  "Alt+ArrowDown": () => viewer.stage.panBy(0, 40),
  "+": () => viewer.view(() => viewer.stage.zoomBy(1.25)),
  "=": () => viewer.view(() => viewer.stage.zoomBy(1.25)),
  "-": () => viewer.view(() => viewer.stage.zoomBy(0.8)),
  f: acts.fit,
  o: () => viewer.actualPixels(),
  i: acts.invert,
  r: acts.reset,
  w: () => viewer.setTool("window"),
  s: () => viewer.setTool("scroll"),
  p: () => viewer.setTool("pan"),
  z: () => viewer.setTool("zoom"),
  a: acts.attributes,
  h: () => by("picture").classList.toggle("bare"),
  d: () => togglePanel(),
  "?": acts.help,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || isTyping(event.target)) return;
  const target = /** @type {Element} */ (event.target);
  if (event.key === " " && target.closest("button, a, summary")) return;
  if (/^Arrow|Page|Home|End/.test(event.key) && target.closest(".panel, .drawer-body")) return;
  const arrow = event.key.startsWith("Arrow");
  const prefix = arrow && event.shiftKey ? "Shift+" : arrow && event.altKey ? "Alt+" : "";
  const act = /^[1-9]$/.test(event.key) ? () => viewer.preset(Number(event.key) - 1) : keys[prefix + event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

// What stands beside --------------------------------------------------------------------------

const panel = by("panel");

function togglePanel() {
  const off = main.classList.toggle("no-panel");
  by("panel-toggle").setAttribute("aria-expanded", String(!off));
  localStorage.setItem("panel", off ? "off" : "on");
}
by("panel-toggle").addEventListener("click", togglePanel);
if (localStorage.getItem("panel") === "off") togglePanel();

by("back").href = `/studies${sessionStorage.getItem("list") ?? ""}`;

async function reloadSeries() {
  const response = await ask(`/studies/${main.dataset.study}/strip`);
  if (response.ok) by("strip").innerHTML = await response.text();
  await viewer.reload();
}

poll(() => `/studies/${main.dataset.study}/panel`, "", (html) => {
  if (panel.querySelector("dialog[open]") || panel.contains(document.activeElement)) return false;
  panel.innerHTML = html;
  const count = panel.querySelector("[data-instances]")?.getAttribute("data-instances");
  if (count && count !== main.dataset.instances) {
    main.dataset.instances = count;
    reloadSeries().catch(() => {});
  }
  return true;
});

viewer.begin().catch((error) => showNoPicture("This study cannot be shown", error.message));
