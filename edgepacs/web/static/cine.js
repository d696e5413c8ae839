/**
 * Cine: which frame is due follows from the time elapsed since the start, so it cannot drift;
 * a frame that is late is skipped, never caught up with.
 */

export class Cine {
  /**
   * @param {(frame: number) => boolean} show whether that frame could be shown
   * @param {() => void} changed something about playing has changed
   */
  constructor(show, changed) {
    this.show = show;
    this.changed = changed;
    this.playing = false;
    this.speed = 1;
    this.frameMs = 0;
    this.count = 0;
    this.from = 0;
    this.began = 0;
    this.last = -1;
    /** @type {number[]} when frames were shown, within the last second */
    this.shownAt = [];
  }

  /**
   * @param {number} frameMs recorded time of a frame
   * @param {number} count frames in the loop
   * @param {number} from the frame to begin with
   */
  start(frameMs, count, from) {
    this.frameMs = frameMs;
    this.count = count;
    this.playing = true;
    this.#rebase(from);
    this.changed();
    requestAnimationFrame((now) => this.#tick(now));
  }

  stop() {
    if (!this.playing) return;
    this.playing = false;
    this.changed();
  }

  /** @param {number} speed times the recorded rate */
  setSpeed(speed) {
    this.speed = speed;
    if (this.playing) this.#rebase(Math.max(0, this.last));
    this.changed();
  }

  /** @param {number} from */
  #rebase(from) {
    this.from = from;
    this.began = performance.now();
    this.last = -1;
    this.shownAt = [];
  }

  /** Frames a second that were really shown. */
  get rate() {
    const times = this.shownAt;
    if (times.length < 2) return 0;
    return (1000 * (times.length - 1)) / (times[times.length - 1] - times[0]);
  }

  /** @param {number} now */
  #tick(now) {
    if (!this.playing) return;
    const elapsed = Math.max(0, now - this.began) * this.speed;
    const due = (this.from + Math.floor(elapsed / this.frameMs)) % this.count;
    if (due !== this.last && this.show(due)) {
      this.last = due;
      this.shownAt.push(now);
      while (now - this.shownAt[0] > 1000) this.shownAt.shift();
    }
    requestAnimationFrame((next) => this.#tick(next));
  }
}
