/** What every page needs: asking the node, polling it, speaking to the person. */

/** @returns {string} the token that must go with every request that changes something */
export function csrf() {
  return document.querySelector('meta[name="csrf"]')?.getAttribute("content") ?? "";
}

/**
 * Ask the node. A session that has ended leads to the login.
 * @param {string} url
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function ask(url, options = {}) {
  const headers = new Headers(options.headers);
  if (options.method && options.method !== "GET") headers.set("X-CSRF-Token", csrf());
  const response = await fetch(url, { ...options, headers, credentials: "same-origin" });
  if (response.status === 401) location.assign("/login");
  return response;
}

/**
 * The words of an answer that is not good.
 * @param {Response} response
 * @returns {Promise<string>}
 */
export async function problem(response) {
  try {
    return (await response.json()).error ?? response.statusText;
  } catch {
    return response.statusText || `Error ${response.status}`;
  }
}

/**
 * Say something in passing.
 * @param {string} words
 */
export function say(words) {
  const toast = document.createElement("p");
  toast.className = "toast";
  toast.textContent = words;
  document.querySelector(".toasts")?.append(toast);
  setTimeout(() => toast.remove(), 5000);
}

/**
 * Whether keys typed there are text, or a dialog is open and has them.
 * @param {EventTarget | null} target
 * @returns {boolean}
 */
export function isTyping(target) {
  if (document.querySelector("dialog[open]")) return true;
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return target.type !== "range" && target.type !== "checkbox";
  return target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement;
}

const POLL_MS = 3000;

/**
 * Fetch a fragment again and again while the page is seen; `taken` gets it when it has changed.
 * @param {() => string} url
 * @param {string} etag of what is shown now
 * @param {(html: string) => boolean} taken whether it was put in place; else it comes again
 * @returns {(etag: string) => void} to be told that another state is shown
 */
export function poll(url, etag, taken) {
  let known = etag;
  let failures = 0;
  const once = async () => {
    const asked = url();
    const response = await ask(asked, known ? { headers: { "If-None-Match": known } } : {});
    failures = 0;
    if (!response.ok || response.status === 304) return;
    const html = await response.text();
    if (asked === url() && taken(html)) known = response.headers.get("ETag") ?? "";
  };
  const loop = async () => {
    if (!document.hidden) {
      try {
        await once();
      } catch {
        failures += 1;
        if (failures === 2) say("The node does not answer. What is shown may be out of date.");
      }
    }
    setTimeout(loop, POLL_MS);
  };
  setTimeout(loop, POLL_MS);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) once().catch(() => {});
  });
  return (now) => {
    known = now;
  };
}
