/** Mouse, pen and fingers on the stage, as movements a viewer understands. */

/**
 * @typedef {object} Hands what the movements do
 * @property {() => string} tool what the first button or one finger does
 * @property {(dx: number, dy: number, start: boolean) => void} window
 * @property {() => void} windowEnd
 * @property {(dx: number, dy: number) => void} pan
 * @property {(factor: number, x: number, y: number) => void} zoom
 * @property {(steps: number) => void} scroll
 * @property {() => void} fit
 */

const SCROLL_PX = 14; // of dragging for one step
const WHEEL_PX = 60;

/**
 * @param {HTMLElement} surface
 * @param {Hands} hands
 */
export function listen(surface, hands) {
  /** @type {Map<number, {x: number, y: number}>} */
  const down = new Map();
  let tool = "";
  let moved = { x: 0, y: 0 };
  let rest = 0;

  /** @param {PointerEvent} event */
  const at = (event) => {
    const box = surface.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  surface.addEventListener("pointerdown", (event) => {
    surface.setPointerCapture(event.pointerId);
    down.set(event.pointerId, at(event));
    if (down.size > 1) {
      finish();
      tool = "pinch";
      return;
    }
    tool = event.button === 1 || event.shiftKey ? "pan" : event.button === 2 ? "zoom" : hands.tool();
    if (event.ctrlKey) tool = "zoom";
    moved = { x: 0, y: 0 };
    rest = 0;
    if (tool === "window") hands.window(0, 0, true);
  });

  surface.addEventListener("pointermove", (event) => {
    const before = down.get(event.pointerId);
    if (!before) return;
    const now = at(event);
    if (tool === "pinch") pinch(event.pointerId, before, now);
    else drag(before, now);
    down.set(event.pointerId, now);
  });

  /**
   * @param {{x: number, y: number}} before
   * @param {{x: number, y: number}} now
   */
  function drag(before, now) {
    const dx = now.x - before.x;
    const dy = now.y - before.y;
    moved = { x: moved.x + dx, y: moved.y + dy };
    if (tool === "window") hands.window(moved.x, moved.y, false);
    else if (tool === "pan") hands.pan(dx, dy);
    else if (tool === "zoom") hands.zoom(Math.exp(-dy / 160), now.x - moved.x, now.y - moved.y);
    else if (tool === "scroll") {
      rest += dy;
      const steps = Math.trunc(rest / SCROLL_PX);
      rest -= steps * SCROLL_PX;
      if (steps) hands.scroll(steps);
    }
  }

  /**
   * @param {number} id
   * @param {{x: number, y: number}} before
   * @param {{x: number, y: number}} now
   */
  function pinch(id, before, now) {
    const other = [...down].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const was = Math.hypot(before.x - other.x, before.y - other.y);
    const is = Math.hypot(now.x - other.x, now.y - other.y);
    hands.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    if (was > 4) hands.zoom(is / was, (now.x + other.x) / 2, (now.y + other.y) / 2);
  }

  function finish() {
    if (tool === "window") hands.windowEnd();
    tool = "";
  }
  /** @param {PointerEvent} event */
  const up = (event) => {
    down.delete(event.pointerId);
    if (tool !== "pinch" || down.size === 0) finish();
  };
  surface.addEventListener("pointerup", up);
  surface.addEventListener("pointercancel", up);
  surface.addEventListener("contextmenu", (event) => event.preventDefault());
  surface.addEventListener("dblclick", hands.fit);

  let turned = 0;
  surface.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 20 : event.deltaMode === 2 ? 400 : 1);
    if (event.ctrlKey) {
      hands.zoom(Math.exp(-pixels / 240), event.offsetX, event.offsetY);
      return;
    }
    turned += pixels;
    const notch = Math.abs(pixels) >= WHEEL_PX ? Math.sign(pixels) : Math.trunc(turned / WHEEL_PX);
    if (!notch) return;
    turned = 0;
    hands.scroll(notch);
  }, { passive: false });
}
