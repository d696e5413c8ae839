/** The stage: one canvas that shows one bitmap, zoomed, panned and inverted. */

export class Stage {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    /** @type {ImageBitmap | null} */
    this.bitmap = null;
    this.columns = 1; // of the instance, whatever the bitmap's resolution
    this.rows = 1;
    this.zoom = 1; // times the fit
    this.x = 0; // of the picture's middle from the stage's, CSS pixels
    this.y = 0;
    this.inverted = false;
    /** @type {() => void} */
    this.resized = () => {};
    new ResizeObserver(() => {
      this.#size();
      this.draw();
      this.resized();
    }).observe(canvas);
    this.#size();
  }

  #size() {
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.max(1, Math.round(this.width * devicePixelRatio));
    this.canvas.height = Math.max(1, Math.round(this.height * devicePixelRatio));
  }

  /** CSS pixels a pixel of the instance takes when all of it fits. */
  get fitScale() {
    return Math.min((this.width ?? 1) / this.columns, (this.height ?? 1) / this.rows);
  }

  /** CSS pixels a pixel of the instance takes now. */
  get scale() {
    return this.fitScale * this.zoom;
  }

  /**
   * @param {ImageBitmap | null} bitmap
   * @param {number} columns
   */
  show(bitmap, columns) {
    this.bitmap = bitmap;
    if (bitmap) {
      this.columns = columns;
      this.rows = (columns * bitmap.height) / bitmap.width; // its pixels are square
    }
    this.draw();
  }

  draw() {
    const { context: c, canvas, bitmap } = this;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.globalCompositeOperation = "source-over";
    c.fillStyle = "#000";
    c.fillRect(0, 0, canvas.width, canvas.height);
    if (!bitmap) return;
    const scale = this.scale * devicePixelRatio;
    const width = this.columns * scale;
    const height = this.rows * scale;
    const left = canvas.width / 2 + this.x * devicePixelRatio - width / 2;
    const top = canvas.height / 2 + this.y * devicePixelRatio - height / 2;
    c.imageSmoothingEnabled = scale < 6; // beyond, single pixels are what one wants to see
    c.imageSmoothingQuality = "high";
    c.drawImage(bitmap, left, top, width, height);
    if (this.inverted) {
      c.globalCompositeOperation = "difference";
      c.fillStyle = "#fff";
      c.fillRect(left, top, width, height);
    }
  }

  /**
   * @param {number} factor
   * @param {number} [atX] the point that stays, CSS pixels from the stage's left
   * @param {number} [atY]
   */
  zoomBy(factor, atX = (this.width ?? 0) / 2, atY = (this.height ?? 0) / 2) {
    const zoom = Math.min(40, Math.max(0.2, this.zoom * factor));
    const ratio = zoom / this.zoom;
    const fromX = atX - (this.width ?? 0) / 2 - this.x;
    const fromY = atY - (this.height ?? 0) / 2 - this.y;
    this.x += fromX * (1 - ratio);
    this.y += fromY * (1 - ratio);
    this.zoom = zoom;
    this.draw();
  }

  /**
   * @param {number} dx CSS pixels
   * @param {number} dy
   */
  panBy(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.draw();
  }

  /** @param {number} [zoom] times the fit */
  centre(zoom = 1) {
    this.zoom = zoom;
    this.x = 0;
    this.y = 0;
    this.draw();
  }
}
