// Elements from plain calls. Text only ever becomes text nodes: nothing that an agent or a file says is markup.

export const $ = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
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
