/**
 * Frames: fetched as JPEG, kept in memory only. Two shelves, both bounded: decoded bitmaps, ready
 * to draw, and below them the encoded bytes of many more.
 */

import { ask, problem } from "./page.js";

/** @typedef {{key: string, url: string}} Wanted */

const small = (/** @type {any} */ (navigator)).deviceMemory <= 2;
const MOST_DECODED = (small ? 64 : 192) * 1048576;
const MOST_ENCODED = (small ? 32 : 96) * 1048576;
const AT_ONCE = 3;

/** @template T */
class Shelf {
  /**
   * @param {number} most bytes
   * @param {(value: T) => number} weigh
   * @param {(value: T) => void} drop
   */
  constructor(most, weigh, drop) {
    this.most = most;
    this.weigh = weigh;
    this.drop = drop;
    this.bytes = 0;
    /** @type {Map<string, T>} */
    this.kept = new Map();
  }

  /** @param {string} key */
  get(key) {
    const value = this.kept.get(key);
    if (value !== undefined) {
      this.kept.delete(key);
      this.kept.set(key, value);
    }
    return value;
  }

  /**
   * @param {string} key
   * @param {T} value
   * @param {string} pinned stays whatever happens
   */
  put(key, value, pinned) {
    if (this.kept.has(key)) return;
    this.kept.set(key, value);
    this.bytes += this.weigh(value);
    for (const [other, old] of this.kept) {
      if (this.bytes <= this.most) break;
      if (other === pinned || other === key) continue;
      this.kept.delete(other);
      this.bytes -= this.weigh(old);
      this.drop(old);
    }
  }
}

export class Frames {
  constructor() {
    /** @type {Shelf<ImageBitmap>} */
    this.decoded = new Shelf(MOST_DECODED, (b) => b.width * b.height * 4, (b) => b.close());
    /** @type {Shelf<ArrayBuffer>} */
    this.encoded = new Shelf(MOST_ENCODED, (b) => b.byteLength, () => {});
    /** @type {Map<string, Promise<ImageBitmap>>} */
    this.underWay = new Map();
    /** @type {Wanted[]} */
    this.queue = [];
    this.active = 0;
    this.pinned = "";
    /** @type {() => void} */
    this.arrived = () => {};
  }

  /**
   * The frame, if it can be drawn at once.
   * @param {string} key
   */
  ready(key) {
    return this.decoded.get(key);
  }

  /** @param {string} key whether it need not be fetched any more */
  has(key) {
    return this.decoded.kept.has(key) || this.encoded.kept.has(key);
  }

  /**
   * @param {Wanted} wanted
   * @returns {Promise<ImageBitmap>}
   */
  load(wanted) {
    const ready = this.decoded.get(wanted.key);
    if (ready) return Promise.resolve(ready);
    const running = this.underWay.get(wanted.key);
    if (running) return running;
    const promise = this.#fetch(wanted).finally(() => this.underWay.delete(wanted.key));
    this.underWay.set(wanted.key, promise);
    return promise;
  }

  /** @param {Wanted} wanted */
  async #fetch(wanted) {
    let bytes = this.encoded.get(wanted.key);
    if (!bytes) {
      bytes = await fetchBytes(wanted.url);
      this.encoded.put(wanted.key, bytes, "");
    }
    const bitmap = await decode(bytes);
    this.decoded.put(wanted.key, bitmap, this.pinned);
    this.arrived();
    return bitmap;
  }

  /**
   * A frame that will not be asked for again, such as one on the way through a window drag.
   * @param {Wanted} wanted
   */
  async passing(wanted) {
    return decode(await fetchBytes(wanted.url));
  }

  /**
   * Fetch these in this order when nothing better is to do; forgets what was queued before.
   * @param {Wanted[]} wanted
   */
  prefetch(wanted) {
    this.queue = wanted.filter((one) => !this.decoded.kept.has(one.key));
    this.#pump();
  }

  #pump() {
    while (this.active < AT_ONCE && this.queue.length) {
      const next = /** @type {Wanted} */ (this.queue.shift());
      if (this.decoded.kept.has(next.key) || this.underWay.has(next.key)) continue;
      this.active += 1;
      this.load(next).catch(() => {}).finally(() => {
        this.active -= 1;
        this.#pump();
      });
    }
  }

  /** How many frames of that size fit on the upper shelf. @param {number} bytes */
  room(bytes) {
    return Math.max(2, Math.floor((MOST_DECODED * 0.9) / Math.max(1, bytes)));
  }
}

/** @param {string} url */
async function fetchBytes(url) {
  const response = await ask(url);
  if (!response.ok) throw new Error(await problem(response));
  return response.arrayBuffer();
}

/** @param {ArrayBuffer} bytes */
function decode(bytes) {
  return createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
}
