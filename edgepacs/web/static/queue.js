/** The queue keeps itself up to date. */

import { poll } from "./page.js";

const rows = /** @type {HTMLElement} */ (document.getElementById("rows"));

poll(() => rows.dataset.url ?? "/queue/rows", "", (html) => {
  if (rows.contains(document.activeElement)) return false; // somebody is about to press something
  if (rows.querySelector("input:checked, details[open]")) return false; // or has begun to choose
  rows.innerHTML = html;
  return true;
});
