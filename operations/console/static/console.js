// What htmx does not do: pause requests while the page is hidden, and mark what could not be renewed as old.
"use strict";

const patienceMilliseconds = 10000;
const renewedAt = new Map();
let shownAt = Date.now();
const loadedAt = shownAt;

function renewedPart(event) {
  return event.detail.ctx.sourceElement.id;
}

// Only an answer of 2xx from the address that was asked renews a part: not a refusal, nor another page that it led to.
function renews(response) {
  return response.status >= 200 && response.status < 300 && !response.raw.redirected;
}

document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) event.preventDefault();
});
document.addEventListener("htmx:before:swap", (event) => {
  if (!renews(event.detail.ctx.response)) event.preventDefault();
});
document.addEventListener("htmx:after:request", (event) => {
  if (renews(event.detail.ctx.response)) renewedAt.set(renewedPart(event), Date.now());
});
// What was opened stays open when the part around it is renewed.
let opened = [];
document.addEventListener("htmx:before:swap", () => {
  opened = [...document.querySelectorAll("details[id][open]")].map((details) => details.id);
});
document.addEventListener("htmx:after:swap", () => {
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
});

// A part that is renewed seldom says how often: it is not old before its next renewal is due.
function staleAfterMilliseconds(part) {
  return 1000 * Number(part.dataset.refreshSeconds ?? 0) + patienceMilliseconds;
}

// A page that was hidden gets time to catch up before it warns.
document.addEventListener("visibilitychange", () => {
  shownAt = Date.now();
});
// A table that scrolls sideways can be scrolled by keyboard, even if it has no link to focus.
const whileItScrolls = { tabindex: "0", role: "group", "aria-label": "Table that scrolls sideways" };

function letTablesScroll() {
  for (const box of document.querySelectorAll(".scroll")) {
    const scrolls = box.scrollWidth > box.clientWidth && !box.querySelector("a, button, input, select, [tabindex]");
    for (const [name, value] of Object.entries(whileItScrolls)) {
      if (scrolls) box.setAttribute(name, value);
      else box.removeAttribute(name);
    }
  }
}
letTablesScroll();
addEventListener("resize", letTablesScroll);
document.addEventListener("htmx:after:swap", letTablesScroll);

setInterval(() => {
  let oldest = Infinity;
  let own = Infinity;
  let stale = false;
  for (const part of document.querySelectorAll("[hx-trigger]")) {
    const at = renewedAt.get(part.id) ?? loadedAt;
    const isOld = Date.now() - Math.max(at, shownAt) > staleAfterMilliseconds(part) && !document.hidden;
    part.classList.toggle("old", isOld);
    stale ||= isOld;
    // The banner is on every page; what a page itself shows may be renewed or not. Charts change once a minute.
    if (part.id !== "outages" && part.id !== "charts") own = Math.min(own, at);
    oldest = Math.min(oldest, at);
  }
  document.getElementById("stale").hidden = !stale;
  if (stale) {
    const since = document.getElementById("stale-since");
    since.dateTime = new Date(oldest).toISOString();
    showTime(since);
  }
  document.getElementById("updated").hidden = own === Infinity;
  document.getElementById("updated-ago").textContent = `${Math.round((Date.now() - own) / 1000)} s`;
}, 1000);
