/** Every page: theme, dialogs, menu. */

import { isTyping } from "./page.js";

const YEAR = 31536000;
const root = document.documentElement;

/** @returns {boolean} whether the page is dark now */
function isDark() {
  return root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Change between light and dark; a cookie keeps it, so that the next page comes right at once. */
function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  root.dataset.theme = theme;
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `theme=${theme}; Path=/; Max-Age=${YEAR}; SameSite=Strict${secure}`;
  nameTheme();
}

function nameTheme() {
  const button = document.getElementById("theme");
  button?.setAttribute("aria-pressed", String(isDark()));
}

document.getElementById("theme")?.addEventListener("click", toggleTheme);
nameTheme();

document.addEventListener("keydown", (event) => {
  if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey && !isTyping(event.target)) toggleTheme();
  if (event.key === "Escape") closeMenus(null);
});

/** @param {Node | null} inside the one that stays open */
function closeMenus(inside) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!inside || !menu.contains(inside)) menu.removeAttribute("open");
  }
}

document.addEventListener("click", (event) => {
  const target = /** @type {Element} */ (event.target);
  closeMenus(target);
  const opener = target.closest("[data-opens]");
  if (opener) openDialog(opener.getAttribute("data-opens") ?? "");
  if (target.closest("[data-closes]")) target.closest("dialog")?.close();
  if (target instanceof HTMLDialogElement) target.close(); // its backdrop
});

/** @param {string} id */
function openDialog(id) {
  const dialog = document.getElementById(id);
  if (dialog instanceof HTMLDialogElement) dialog.showModal();
}
