// Keyboard shortcuts, which can be turned off, and buttons that copy ids and commands.
"use strict";

const setting = "ordersaga-shortcuts";
const dialog = document.getElementById("shortcuts");
const areOn = document.getElementById("shortcuts-on");

function readSetting() {
  try {
    return localStorage.getItem(setting) !== "off";
  } catch {
    return true; // a browser without storage keeps no setting
  }
}

function storeSetting() {
  try {
    localStorage.setItem(setting, areOn.checked ? "on" : "off");
  } catch {
    // It then holds for this page.
  }
}

function isTyping(target) {
  return target.isContentEditable || ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName);
}

function act(key) {
  const section = /^[1-9]$/.test(key) && document.querySelectorAll(".top nav a")[Number(key) - 1];
  const search = key === "/" && document.querySelector("form[role=search] input:not([type=hidden])");
  if (key === "?") dialog.showModal();
  else if (section) section.click();
  else if (search) search.focus();
  else return false;
  return true;
}

areOn.checked = readSetting();
areOn.addEventListener("change", storeSetting);
document.getElementById("shortcuts-open").addEventListener("click", () => dialog.showModal());
document.addEventListener("keydown", (event) => {
  if (!areOn.checked || dialog.open || event.ctrlKey || event.altKey || event.metaKey || isTyping(event.target)) return;
  if (act(event.key)) event.preventDefault();
});
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const said = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    said.textContent = `Copied ${button.dataset.copy}`;
  } catch {
    said.textContent = "The browser does not allow copying";
  }
});
// Without scripts, or where a page may not copy, these buttons would do nothing.
document.documentElement.classList.add("scripted");
document.documentElement.classList.toggle("copies", Boolean(navigator.clipboard));
