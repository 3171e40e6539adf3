// Fetches the page every few seconds and replaces its sections. The page works without it.
// A section in which someone is writing is left alone.
"use strict";

const EVERY = 3000;
const main = document.getElementById("board");
let ahead = Date.now() - Date.parse(main.dataset.now);

const writing = (section) =>
  section.contains(document.activeElement) && document.activeElement.matches("input, textarea, button")
  || [...section.querySelectorAll("textarea, input:not([type=hidden])")].some((field) => field.value !== field.defaultValue);

function span(seconds) {
  const parts = [];
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    const count = Math.floor(seconds / length);
    seconds -= count * length;
    if (count) parts.push(count + unit);
  }
  return parts.slice(0, 2).join(" ") || "0s";
}

function countDown() {
  for (const time of document.querySelectorAll("time[data-until]")) {
    const left = Math.floor((Date.parse(time.dateTime) - (Date.now() - ahead)) / 1000);
    time.textContent = left > 0 ? "in " + span(left) : "now";
    time.classList.toggle("soon", left > 0 && left < 300);
  }
}

function replace(fresh) {
  const known = new Map([...main.children].filter((one) => one.id).map((one) => [one.id, one]));
  const children = [...fresh.children].map((one) => {
    const old = known.get(one.id);
    return old && (writing(old) || old.isEqualNode(one)) ? old : one;
  });
  // What stays is not taken out and put in again: it would lose what is being written.
  for (const old of [...main.children]) if (!children.includes(old)) old.remove();
  children.forEach((child, index) => {
    if (main.children[index] !== child) main.insertBefore(child, main.children[index] ?? null);
  });
}

async function refresh() {
  if (document.hidden) return;
  const fresh = document.getElementById("fresh");
  try {
    const answer = await fetch("/", { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const board = page.getElementById("board");
    ahead = Date.now() - Date.parse(board.dataset.now);
    replace(board);
    document.title = page.title;
    fresh.textContent = page.getElementById("fresh").textContent;
    fresh.classList.remove("stale");
  } catch {
    fresh.textContent = "not reachable, retrying";
    fresh.classList.add("stale");
  }
  countDown();
}

setInterval(countDown, 1000);
setInterval(refresh, EVERY);
document.addEventListener("visibilitychange", refresh);
