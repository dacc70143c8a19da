// What htmx does not do by itself: no requests from a page that nobody sees, and a word when the console is away.
"use strict";

const patienceMilliseconds = 10000;
let lastAnswer = Date.now();

document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) event.preventDefault();
});
document.addEventListener("htmx:after:request", () => {
  lastAnswer = Date.now();
});
document.addEventListener("visibilitychange", () => {
  lastAnswer = Date.now();
});
setInterval(() => {
  const renewed = document.querySelector("[hx-trigger]");
  const silent = Date.now() - lastAnswer > patienceMilliseconds;
  document.getElementById("stale").hidden = !(renewed && silent && !document.hidden);
}, 1000);
