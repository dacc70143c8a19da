// What htmx does not do by itself: no requests from a page that nobody sees, and a word when the figures are old.
"use strict";

const patienceMilliseconds = 10000;
let renewedAt = Date.now();
let shownAt = Date.now();

document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) event.preventDefault();
});
// An answer such as 503 leaves the page as it is, so it does not count.
document.addEventListener("htmx:after:request", (event) => {
  const status = event.detail.ctx.response.status;
  if (status >= 200 && status < 300) renewedAt = Date.now();
});
// A page that was hidden has time to catch up before it says that it is old.
document.addEventListener("visibilitychange", () => {
  shownAt = Date.now();
});
setInterval(() => {
  const renews = document.querySelector("[hx-trigger]");
  const silent = Date.now() - Math.max(renewedAt, shownAt) > patienceMilliseconds;
  document.getElementById("stale-since").textContent = new Date(renewedAt).toISOString().slice(11, 19);
  document.getElementById("stale").hidden = !(renews && silent && !document.hidden);
}, 1000);
