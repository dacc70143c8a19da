// What htmx does not do: pause requests while the page is hidden, and warn when the data is old.
"use strict";

const staleAfterMilliseconds = 10000;
let refreshedAt = Date.now();
let shownAt = Date.now();

document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) event.preventDefault();
});
// A response such as 503 does not refresh the page, so it does not count.
document.addEventListener("htmx:after:request", (event) => {
  const status = event.detail.ctx.response.status;
  if (status >= 200 && status < 300) refreshedAt = Date.now();
});
// A page that was hidden gets time to catch up before it warns.
document.addEventListener("visibilitychange", () => {
  shownAt = Date.now();
});
setInterval(() => {
  const refreshes = document.querySelector("[hx-trigger]");
  const silent = Date.now() - Math.max(refreshedAt, shownAt) > staleAfterMilliseconds;
  document.getElementById("stale-since").textContent = new Date(refreshedAt).toISOString().slice(11, 19);
  document.getElementById("stale").hidden = !(refreshes && silent && !document.hidden);
}, 1000);
