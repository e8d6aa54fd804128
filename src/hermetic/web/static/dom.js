// Elements from plain calls. Text only ever becomes text nodes; the one way to markup is rich.js, through a sanitiser.

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// A failure where it happened: what went wrong and what to do.
export function showProblem(place, problem) {
  if (!problem) return place.replaceChildren();
  if (typeof problem.detail !== "string") throw problem; // a bug of this page, not an answer of the server
  place.replaceChildren(
    h("div", { class: "problem" },
      h("div", {}, h("p", {}, problem.detail), problem.hint ? h("p", { class: "hint" }, problem.hint) : null),
      h("button", { type: "button", class: "quiet", onclick: () => place.replaceChildren() }, "Dismiss")),
  );
}

// A screen reader hears it. `now`: before whatever it is saying.
export function announce(text, now = false) {
  if (!text) return;
  const place = $(now ? "announce-now" : "announce");
  place.append(h("p", {}, text));
  while (place.children.length > 5) place.firstChild.remove();
}

const TOAST_MS = 6000;

// A line at the edge that goes by itself, later when somebody points at it. → {gone: a promise, close()}.
export function toast(text, { action = null, onaction = () => {}, bad = false, ms = TOAST_MS } = {}) {
  let timer = 0;
  let settle;
  const gone = new Promise((resolve) => (settle = resolve));
  const close = () => {
    clearTimeout(timer);
    element.remove();
    settle();
  };
  const wait = () => (timer = setTimeout(close, ms));
  const element = h("div", { class: bad ? "toast bad" : "toast", onmouseenter: () => clearTimeout(timer), onmouseleave: wait,
    onfocusin: () => clearTimeout(timer), onfocusout: wait },
    h("p", {}, text),
    action ? h("button", { type: "button", onclick: () => (onaction(), close()) }, action) : null);
  $("toasts").append(element);
  announce(action ? `${text} ${action} is at the end of the page.` : text, bad);
  wait();
  return { gone, close };
}

export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "vh", "aria-hidden": "true" }); // plain http on another host has no clipboard API
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("The browser refused to copy.");
}

// A button that copies and says so for a moment.
export function copyButton(text, label, ...face) {
  const button = h("button", { type: "button", class: "quiet small", "aria-label": label, title: label }, face);
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await copyText(text());
    } catch {
      said = "The browser refused to copy";
    }
    button.dataset.said = said;
    announce(said);
    setTimeout(() => delete button.dataset.said, 1600);
  });
  return button;
}

const CHUNK_CHARS = 4000; // a text node is laid out as a whole at every append: a long text is cut at line ends

// → a function that appends to `box`, in chunks that are blocks of their own.
export function growing(box) {
  let node = null;
  return (fresh) => {
    while (fresh) {
      if (!node) box.append(h("span", { class: "chunk" }, (node = document.createTextNode(""))));
      const room = Math.max(CHUNK_CHARS - node.length, 0);
      const cut = fresh.length > room ? fresh.indexOf("\n", room) + 1 : 0;
      node.appendData(cut ? fresh.slice(0, cut) : fresh);
      fresh = cut ? fresh.slice(cut) : "";
      if (cut) node = null;
    }
  };
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

export const clockTime = (seconds) => clock.format(seconds * 1000);

export function ago(seconds) {
  const s = Date.now() / 1000 - seconds;
  if (s < 60) return "now";
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h`;
  return day.format(seconds * 1000);
}

export function span(s) {
  if (s < 0.1) return `${Math.round(s * 1000)} ms`;
  if (s < 60) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  const power = Math.min(Math.floor(Math.log10(n) / 3), 4);
  const value = n / 1000 ** power;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}
