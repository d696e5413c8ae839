/** The list of studies: searching while typing, rows that keep themselves up to date, keys. */

import { ask, isTyping, poll, problem, say } from "./page.js";

const TYPING_MS = 220;
const form = /** @type {HTMLFormElement} */ (document.querySelector("form.search"));
const rows = /** @type {HTMLElement} */ (document.getElementById("rows"));
const clear = /** @type {HTMLElement} */ (document.getElementById("clear"));
const field = /** @type {HTMLInputElement} */ (document.getElementById("search"));
let shown = { search: rows.dataset.search ?? "", page: rows.dataset.page ?? "1" };
document.body.classList.add("scripted");
remember();

/** Where the study page's way back leads: a key that means nothing outside this session. */
function remember() {
  sessionStorage.setItem("list", location.search);
}

/** @param {string} path */
function address(path) {
  const query = new URLSearchParams();
  if (shown.search) query.set("s", shown.search);
  if (shown.page !== "1") query.set("page", shown.page);
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

/** @param {string} html put in place, with the focus where it was */
function put(html) {
  const focused = document.activeElement?.closest("tr[data-study]")?.getAttribute("data-study");
  rows.innerHTML = html;
  if (focused) rows.querySelector(`tr[data-study="${focused}"] a`)?.focus({ preventScroll: true });
  return true;
}

const showing = poll(() => address("/studies/rows"), rows.dataset.etag ?? "", put);

/** @type {AbortController | null} */
let searching = null;

async function search() {
  searching?.abort();
  searching = new AbortController();
  const values = new URLSearchParams(/** @type {any} */ (new FormData(form)));
  try {
    const response = await ask(form.action, { method: "POST", body: values, signal: searching.signal });
    if (!response.ok) {
      say(await problem(response));
      return;
    }
    put(await response.text());
    shown = { search: response.headers.get("X-Search") ?? "", page: "1" };
    showing(response.headers.get("ETag") ?? "");
    clear.hidden = !shown.search;
    history.replaceState(null, "", address("/studies"));
    remember();
  } catch (error) {
    if (/** @type {Error} */ (error).name !== "AbortError") say("The node does not answer.");
  }
}

let timer = 0;
form.addEventListener("input", (event) => {
  clearTimeout(timer);
  timer = setTimeout(search, event.target === field ? TYPING_MS : 0);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  search();
});
form.addEventListener("reset", (event) => {
  event.preventDefault(); // it would go back to what the page came with
  for (const input of form.querySelectorAll("input:not([type=hidden]), select")) {
    /** @type {HTMLInputElement} */ (input).value = "";
  }
  search();
  field.focus();
});

rows.addEventListener("click", (event) => {
  const target = /** @type {Element} */ (event.target);
  if (target.closest("a, button") || String(getSelection())) return;
  /** @type {HTMLElement | null} */ (target.closest("tr")?.querySelector("a"))?.click();
});

/** @param {number} step */
function move(step) {
  const links = [...rows.querySelectorAll("tr[data-study] a")];
  const at = links.findIndex((link) => link === document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : links.length - 1) : at + step;
  if (next < 0) field.focus();
  else /** @type {HTMLElement | undefined} */ (links[Math.min(next, links.length - 1)])?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === field) {
    if (event.key === "ArrowDown") move(1);
    else if (event.key === "Escape" && !field.value) field.blur();
    else return;
    event.preventDefault();
    return;
  }
  if (isTyping(event.target)) return;
  if (event.key === "/") field.focus();
  else if (event.key === "j" || event.key === "ArrowDown") move(1);
  else if (event.key === "k" || event.key === "ArrowUp") move(-1);
  else return;
  event.preventDefault();
});
