// Shows times in the viewer's time zone, with UTC in the title, or in UTC if the viewer prefers that.
"use strict";

const zoneSetting = "ordersaga-times";
const viewersZone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const zoneIsUtc = ["UTC", "Etc/UTC", "Etc/UCT", "UCT", "Zulu", "Etc/Zulu", "GMT", "Etc/GMT"].includes(viewersZone);
const inViewersZone = new Intl.DateTimeFormat("en-GB", {
  year: "numeric",
  month: "2-digit",
  day: "2-digit",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
  timeZoneName: "short",
});
let showsUtc = zoneIsUtc || readZone() === "utc";

function readZone() {
  try {
    return localStorage.getItem(zoneSetting);
  } catch {
    return null; // a browser without storage keeps no setting
  }
}

function storeZone() {
  try {
    localStorage.setItem(zoneSetting, showsUtc ? "utc" : "local");
  } catch {
    // It then holds for this page.
  }
}

function utcText(at) {
  return `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

// As on the server: 2026-03-14 09:30:00, and the name of the zone.
function localText(at) {
  const parts = Object.fromEntries(inViewersZone.formatToParts(at).map((part) => [part.type, part.value]));
  return `${parts.year}-${parts.month}-${parts.day} ${parts.hour}:${parts.minute}:${parts.second} ${parts.timeZoneName}`;
}

// The part of a whole time that an element shows; one in a sentence names its zone.
function shortened(text, element) {
  if (element.dataset.clock === "minute") return text.slice(11, 16);
  if (element.dataset.clock === "second") return text.slice(11);
  if (element.dataset.clock === "day") return text.slice(5, 16);
  return element.dataset.names === "zone" ? text : text.slice(0, 19);
}

function setText(element, text) {
  // A text that is set anew ends a selection, even if it is the same.
  if (element.textContent !== text) element.textContent = text;
}

function showTime(element) {
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime())) return;
  if ("clock" in element.dataset) setText(element, shortened(showsUtc ? utcText(at) : localText(at), element));
  element.title = showsUtc ? utcText(at) : `${localText(at)}\n${utcText(at)}`;
}

// The title of a place in a drawing, which begins with its time.
function showTitle(element) {
  const at = new Date(element.dataset.at);
  const time = showsUtc ? utcText(at) : `${localText(at)} (${utcText(at)})`;
  setText(element, `${time}: ${element.dataset.words}`);
}

function showTimes() {
  document.querySelectorAll("time[datetime]").forEach(showTime);
  document.querySelectorAll("title[data-at]").forEach(showTitle);
  document.getElementById("zone").textContent = showsUtc ? "UTC" : viewersZone;
  const button = document.getElementById("zone-switch");
  button.hidden = zoneIsUtc;
  button.textContent = showsUtc ? `Show times in ${viewersZone}` : "Show times in UTC";
}

document.getElementById("zone-switch").addEventListener("click", () => {
  showsUtc = !showsUtc;
  storeZone();
  showTimes();
});
document.addEventListener("htmx:after:swap", showTimes);
showTimes();
