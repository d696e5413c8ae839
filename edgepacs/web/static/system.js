/** The system page: echo a destination, ask before something is removed. */

import { ask, problem } from "./page.js";

const PATIENCE_MS = 30000;
const EVERY_MS = 400;

/** @param {HTMLButtonElement} button */
async function echo(button) {
  const line = /** @type {HTMLElement} */ (button.parentElement?.querySelector(".echo-result"));
  const say = (/** @type {string} */ words, /** @type {string} */ kind) => {
    line.textContent = words;
    line.className = `echo-result small ${kind}`;
  };
  button.disabled = true;
  say("Asking…", "");
  try {
    const asked = await ask(button.dataset.echo ?? "", { method: "POST" });
    if (!asked.ok) throw new Error(await problem(asked));
    const { errand } = await asked.json();
    const answer = await answered(errand);
    if (!answer) say("The forwarder has not answered. Is it running?", "bad");
    else say(answer.result || (answer.succeeded ? "Answered" : "No answer"), answer.succeeded ? "good" : "bad");
  } catch (error) {
    say(/** @type {Error} */ (error).message, "bad");
  }
  button.disabled = false;
}

/**
 * @param {number} errand
 * @returns {Promise<{done: boolean, succeeded: boolean, result: string} | null>}
 */
async function answered(errand) {
  const until = performance.now() + PATIENCE_MS;
  while (performance.now() < until) {
    const found = await (await ask(`/system/errands/${errand}.json`)).json();
    if (found.done) return found;
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
  return null;
}

document.addEventListener("click", (event) => {
  const button = /** @type {Element} */ (event.target).closest("[data-echo]");
  if (button instanceof HTMLButtonElement) echo(button);
});

const confirm = /** @type {HTMLDialogElement | null} */ (document.getElementById("confirm"));
/** @type {HTMLFormElement | null} */
let asking = null;

document.addEventListener("submit", (event) => {
  const form = /** @type {HTMLFormElement} */ (event.target);
  if (!confirm || !form.dataset.confirm || form === asking) return;
  event.preventDefault();
  asking = form;
  /** @type {HTMLElement} */ (document.getElementById("confirm-words")).textContent = form.dataset.confirm;
  confirm.showModal();
});
confirm?.addEventListener("close", () => {
  asking = null;
});
document.getElementById("confirm-yes")?.addEventListener("click", () => asking?.requestSubmit());
