/** The queue keeps itself up to date. */

import { poll } from "./page.js";

const rows = /** @type {HTMLElement} */ (document.getElementById("rows"));

poll(() => "/queue/rows", "", (html) => {
  if (rows.contains(document.activeElement)) return false; // somebody is about to press something
  rows.innerHTML = html;
  return true;
});
